//! What servers are run from: files and folders in the folder of a tenant's updates, each there as long as the program that
//! reads it. What is updated comes from the store each time, whole and checked, so none of this outlives its process.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::fs::OFlags;

/// How names of what is in use end.
const SUFFIX: &str = ".run";
/// How often something is made anew that was taken for a leftover before it was locked.
const ATTEMPTS: usize = 100;

/// A file or folder that is there as long as this. It is locked, by which other processes know that it is in use.
#[derive(Debug)]
pub struct Aside {
    path: PathBuf,
    lock: Option<File>,
}

impl Aside {
    /// A program in a file of its own: what is booted is stored only once it has booted.
    pub fn file(folder: &Path, program: &[u8]) -> io::Result<Self> {
        let aside = Self::make(folder, |path| {
            let mut options = OpenOptions::new();
            options.create_new(true).write(true).mode(0o700).open(path)
        })?;
        let mut file = aside.opened()?;
        file.write_all(program)
            .map_err(|error| told(&aside.path, &error))?;
        Ok(aside)
    }

    /// An empty folder.
    pub fn folder(folder: &Path) -> io::Result<Self> {
        Self::make(folder, |path| {
            DirBuilder::new().mode(0o700).create(path)?;
            open(path)
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It, open.
    pub fn opened(&self) -> io::Result<&File> {
        // Taken only when this is dropped.
        self.lock.as_ref().ok_or(io::ErrorKind::NotFound.into())
    }

    fn make(folder: &Path, make: impl Fn(&Path) -> io::Result<File>) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        clear(folder);
        for _ in 0..ATTEMPTS {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("boot-{}-{number}{SUFFIX}", std::process::id()));
            let lock = match make(&path) {
                Ok(lock) => lock,
                // Of a process before us that had our number, or another machine's; or removed before it was locked.
                Err(error) if is_race(&error) && folder.is_dir() => continue,
                Err(error) => return Err(told(&path, &error)),
            };
            lock.lock().map_err(|error| told(&path, &error))?;
            if is_at(&lock, &path) {
                let lock = Some(lock);
                return Ok(Self { path, lock });
            }
        }
        Err(told(folder, &io::ErrorKind::ResourceBusy.into()))
    }
}

fn is_race(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
    )
}

/// Whether this is what has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let number = |found: fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(file), Ok(found)) => number(file) == number(found),
        _ => false,
    }
}

fn told(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Nothing is followed, nor waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

impl Drop for Aside {
    fn drop(&mut self) {
        let (path, lock) = (std::mem::take(&mut self.path), self.lock.take());
        if !path.is_dir() {
            return remove(&path);
        }
        // A folder may have many files, and whoever lets go of a program last answers requests.
        let thread = thread::Builder::new().name("kvm-remove".into());
        let removed = path.clone();
        let spawned = thread.spawn(move || {
            remove(&removed);
            drop(lock);
        });
        if spawned.is_err() {
            remove(&path);
        }
    }
}

/// What can't be removed, or a crash has left, is cleared away before the next one is made.
fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// Removes what nobody uses any more: a crash has left it.
fn clear(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            continue;
        }
        // Locked until it is gone, so that who makes one at this moment notices.
        if let Ok(left) = open(&entry.path())
            && left.try_lock().is_ok()
        {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_removed() {
        let folder = std::env::temp_dir().join(format!("kvm-aside.{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        // As another process would have them: locked, and left by one that is gone.
        let used = folder.join("boot-1-0.run");
        fs::create_dir(&used).unwrap();
        fs::write(used.join("file"), "used").unwrap();
        let lock = open(&used).unwrap();
        lock.lock().unwrap();
        fs::create_dir(folder.join("boot-1-1.run")).unwrap();
        fs::write(folder.join("boot-1-1.run").join("file"), "left").unwrap();
        fs::write(folder.join("boot-2-0.run"), "left").unwrap();
        fs::write(folder.join("manifest.json"), "{}").unwrap();

        let file = Aside::file(&folder, b"program").unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"program");
        let own = file.path().file_name().unwrap().to_owned();
        let mut expected = vec!["boot-1-0.run".into(), own, "manifest.json".into()];
        expected.sort();
        assert_eq!(names(), expected);
        drop(file);
        drop(lock);
        let made = Aside::folder(&folder).unwrap();
        let own = made.path().file_name().unwrap().to_owned();
        assert_eq!(names(), [own, "manifest.json".into()]);
        let path = made.path().to_owned();
        drop(made);
        while path.exists() {
            thread::yield_now();
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
