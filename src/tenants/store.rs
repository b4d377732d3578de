//! A tenant's updates on disk, in a folder of their own:
//!
//! - `<version>.elf`: a program, or the archive of a server's folder, under the SHA-256 of its content;
//! - `manifest.json`: which one is current, which ones were before, and the content of the tenant's `path` at that time;
//! - `state`: what the program's storage keeps there itself;
//! - `lock`: held while the folder is changed.
//!
//! Every file is written aside, synchronised and renamed, programs before the manifest that names them. So whenever
//! the machine stops, the manifest names whole programs, and what is read is checked against its name all the same.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::tenants::archive;
use crate::tenants::version::Version;

/// Longest manifest that is read.
const MANIFEST_LIMIT: u64 = 64 << 10;

/// The folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    /// How many versions before the current one are kept.
    keep: usize,
}

/// Why something can't be stored or read back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process changes it.
    #[error("{0}: another process changes it (lock)")]
    Busy(PathBuf),
    /// The system refuses.
    #[error("{path}: {error}{hint}", path = .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it says.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Somebody else could put programs into the folder.
    #[error("{path}: {problem}", path = .path.display())]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A program is not what its name says.
    #[error("{0}: damaged, its SHA-256 is not its name")]
    Damaged(PathBuf),
    /// The manifest is none.
    #[error("{path}: {error}", path = .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { error, .. } => error,
            StoreError::Untrusted { .. } => Errno::ACCESS.into(),
            other => io::Error::other(other),
        }
    }
}

impl StoreError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "; give kvm.tenant() a state_dir that varnishd's child may write"
                }
                _ => "",
            };
            Self::Io { path, error, hint }
        }
    }
}

/// What is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The tenant, for whoever looks into the folder.
    pub tenant: String,
    /// What runs.
    pub current: Version,
    /// What `path` held at the time of the update. When it holds something else, that wins.
    pub base: Option<Version>,
    /// What ran before, the last one first.
    #[serde(default)]
    pub previous: Vec<Version>,
}

impl Manifest {
    /// All programs, the newest first.
    pub fn versions(self) -> impl Iterator<Item = Version> {
        std::iter::once(self.current).chain(self.previous)
    }

    /// The programs that are older than this one, the newest first; all if it is not among them.
    fn older_than(self, version: Option<Version>) -> Vec<Version> {
        let mut versions: Vec<_> = self.versions().collect();
        if let Some(at) = versions.iter().position(|&this| Some(this) == version) {
            versions.drain(..=at);
        }
        versions
    }
}

/// A program and its version.
#[derive(Debug)]
pub struct Stored {
    /// Its version.
    pub version: Version,
    /// Its file.
    pub elf: Vec<u8>,
}

impl Stored {
    /// A program.
    pub fn new(elf: Vec<u8>) -> Self {
        Self {
            version: Version::of(&elf),
            elf,
        }
    }
}

/// The right to change a store.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// The store of a tenant in `state_dir`.
    pub fn new(state_dir: &Path, tenant: &str, keep: usize) -> Self {
        Self {
            // A name may be "..": not with this ending.
            folder: state_dir.join(format!("{tenant}.versions")),
            keep,
        }
    }

    /// Makes the folder, and keeps other updates away from it.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        self.make_folder()?;
        let path = self.folder.join("lock");
        let file = to_write(false).open(&path).map_err(StoreError::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Busy(self.folder.clone())),
            Err(TryLockError::Error(error)) => Err(StoreError::io(&path)(error)),
        }
    }

    /// Makes the folder, unless it is there.
    fn make_folder(&self) -> Result<(), StoreError> {
        if !self.is_there()? {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(&self.folder)
                .map_err(StoreError::io(&self.folder))?;
            if let Some(parent) = self.folder.parent() {
                sync_folder(parent)?;
            }
        }
        Ok(())
    }

    /// What the program's storage has kept here, if it has: so many bytes at most.
    pub fn read_state(&self, most: u64) -> Result<Option<Vec<u8>>, StoreError> {
        if !self.is_there()? {
            return Ok(None);
        }
        let path = self.folder.join("state");
        match File::open(&path).and_then(|file| read_whole(file, most)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io(&path)(error)),
        }
    }

    /// Keeps this in its place. One at a time.
    pub fn write_state(&self, content: &[u8]) -> Result<(), StoreError> {
        self.make_folder()?;
        // An update that is stored meanwhile removes what is aside by another name.
        let aside = self.folder.join("state.aside");
        write_aside(&aside, &self.folder.join("state"), content)
    }

    /// Whether the folder is there. It is used only if nobody else can put programs into it.
    fn is_there(&self) -> Result<bool, StoreError> {
        let found = match fs::symlink_metadata(&self.folder) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StoreError::io(&self.folder)(error)),
        };
        let us = geteuid().as_raw();
        let problem = if !found.is_dir() {
            "is no folder (or a link to one): remove it".to_owned()
        } else if found.uid() != us && found.uid() != 0 {
            let owner = found.uid();
            format!("belongs to user {owner}, varnishd's child is user {us}: chown or remove it")
        } else if found.mode() & 0o022 != 0 {
            let mode = found.mode() & 0o7777;
            format!("others may write to it (mode {mode:o}): chmod it to 700, or remove it")
        } else {
            return Ok(true);
        };
        let path = self.folder.clone();
        Err(StoreError::Untrusted { path, problem })
    }

    /// The manifest, if there ever was an update.
    pub fn manifest(&self) -> Result<Option<Manifest>, StoreError> {
        if !self.is_there()? {
            return Ok(None);
        }
        let path = self.folder.join("manifest.json");
        let mut text = Vec::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(&path)(error)),
        };
        file.take(MANIFEST_LIMIT)
            .read_to_end(&mut text)
            .map_err(StoreError::io(&path))?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| StoreError::Manifest { path, error })
    }

    /// A program, whole.
    pub fn read(&self, version: Version) -> Result<Stored, StoreError> {
        let path = self.program(version);
        let elf = fs::read(&path).map_err(StoreError::io(&path))?;
        if Version::of(&elf) == version {
            Ok(Stored { version, elf })
        } else {
            Err(StoreError::Damaged(path))
        }
    }

    /// What is to run in the place of `path`'s program, whose version is `base`: what was stored, as long as `path` holds
    /// what it held then, or is gone; a folder whatever `path` holds, which runs it. The newest comes first, and the others
    /// should that one not boot. A program that is damaged or gone is complained about.
    pub fn programs(
        &self,
        base: Option<Version>,
        mut complain: impl FnMut(StoreError),
    ) -> impl Iterator<Item = Stored> {
        let manifest = self.manifest().unwrap_or_else(|error| {
            complain(error);
            None
        });
        let same = manifest
            .as_ref()
            .is_some_and(|manifest| base.is_none() || base == manifest.base);
        manifest
            .into_iter()
            .flat_map(Manifest::versions)
            .filter(move |version| same || self.has_folder(*version))
            .filter_map(move |version| self.read(version).map_err(&mut complain).ok())
    }

    /// Whether what is stored as this version is the archive of a folder.
    fn has_folder(&self, version: Version) -> bool {
        let mut head = Vec::new();
        File::open(self.program(version))
            .and_then(|file| file.take(archive::HEAD as u64).read_to_end(&mut head))
            .is_ok_and(|_| archive::is_archive(&head))
    }

    /// What ran before `running`: the newest one that is whole.
    pub fn before(&self, running: Option<Version>) -> Result<Option<Stored>, StoreError> {
        let older = self
            .manifest()?
            .map_or_else(Vec::new, |manifest| manifest.older_than(running));
        Ok(older
            .into_iter()
            .find_map(|version| self.read(version).ok()))
    }

    /// Makes `elf` the current program. `before` is what ran until now: it stays, if it is here and to be kept. Programs
    /// that are newer than that are forgotten: they did not boot.
    pub fn commit(
        &self,
        _lock: &Lock,
        tenant: &str,
        elf: &Stored,
        base: Option<Version>,
        before: Option<Version>,
    ) -> Result<(), StoreError> {
        self.keep_program(elf)?;
        let mut previous: Vec<Version> = before.into_iter().collect();
        // A damaged manifest is replaced; it was complained about when it was read at boot.
        if let Ok(Some(old)) = self.manifest() {
            previous.extend(old.older_than(before));
        }
        self.name_current(tenant, elf.version, base, previous)
    }

    /// Stores a program beside the current one, if earlier ones are to be kept at all.
    pub fn keep_before(&self, _lock: &Lock, before: &Stored) -> Result<(), StoreError> {
        if self.keep == 0 {
            return Ok(());
        }
        self.keep_program(before)
    }

    /// The size of a program's file in bytes, if it is here.
    pub fn size(&self, version: Version) -> Option<u64> {
        let file = fs::metadata(self.program(version)).ok()?;
        Some(file.len())
    }

    /// Whether a program is here, and whole.
    pub fn has(&self, version: Version) -> bool {
        File::open(self.program(version))
            .and_then(Version::of_file)
            .is_ok_and(|found| found == version)
    }

    /// Whether this is the same folder.
    pub fn is(&self, other: &Self) -> bool {
        self.folder == other.folder
    }

    /// Makes one of the previous programs the current one; those after it are forgotten.
    pub fn go_back(
        &self,
        _lock: &Lock,
        tenant: &str,
        to: Version,
        base: Option<Version>,
    ) -> Result<(), StoreError> {
        let previous = self
            .manifest()?
            .map_or_else(Vec::new, |manifest| manifest.older_than(Some(to)));
        self.name_current(tenant, to, base, previous)
    }

    /// Writes the manifest, and removes what it does not name.
    fn name_current(
        &self,
        tenant: &str,
        current: Version,
        base: Option<Version>,
        candidates: Vec<Version>,
    ) -> Result<(), StoreError> {
        let mut previous: Vec<Version> = Vec::new();
        for version in candidates {
            if previous.len() < self.keep
                && version != current
                && !previous.contains(&version)
                && self.program(version).exists()
            {
                previous.push(version);
            }
        }
        let manifest = Manifest {
            tenant: tenant.to_owned(),
            current,
            base,
            previous,
        };
        let path = self.folder.join("manifest.json");
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| StoreError::Manifest {
            path: path.clone(),
            error,
        })?;
        write_whole(&path, &text)?;
        self.clean(&manifest);
        Ok(())
    }

    /// Where the programs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn program(&self, version: Version) -> PathBuf {
        self.folder.join(format!("{version}.elf"))
    }

    /// Writes a program, unless it is there and whole.
    fn keep_program(&self, elf: &Stored) -> Result<(), StoreError> {
        if self.has(elf.version) {
            return Ok(());
        }
        write_whole(&self.program(elf.version), &elf.elf)
    }

    /// Removes programs that are not to be kept, and what a crash has left. What can't be removed stays.
    fn clean(&self, manifest: &Manifest) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let kept = |name: &str| {
            name.strip_suffix(".elf")
                .and_then(|stem| stem.parse().ok())
                .is_some_and(|version| {
                    manifest.current == version || manifest.previous.contains(&version)
                })
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tmp") || name.ends_with(".elf") && !kept(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Writes a file so that after a crash it is there as it was before, or as it is to be.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    // Several of a folder may be written at a time.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let aside = format!(".{}-{number}.tmp", std::process::id());
    write_aside(&path.with_file_name(aside), path, bytes)
}

fn write_aside(aside: &Path, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let written = || -> io::Result<()> {
        let mut file = to_write(true).open(aside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    written().map_err(|error| {
        // A full disk should not stay full because of us.
        let _ = fs::remove_file(aside);
        StoreError::io(aside)(error)
    })?;
    fs::rename(aside, path).map_err(StoreError::io(path))?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// All of a file, if that is so many bytes at most.
fn read_whole(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut content)?;
    match content.len() as u64 > most {
        true => Err(Errno::FBIG.into()),
        false => Ok(content),
    }
}

/// Opens a file of ours, or makes it. A link in its place is an error: it could lead to any file that we may write.
fn to_write(truncate: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(truncate)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io(folder))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
