//! The host's descriptors behind a program's open files, which come out of the whole process's own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::linux::files::noted::{Noted, kind};
use crate::memory::space::vmas::PageSource;

/// Most descriptors of the host that the open files of a program and all its forks may hold. A file that `main()` left
/// open counts once.
pub const MAX_HOST_FILES: usize = 64;

/// Most files of which is noted that the program has read them.
const MOST_NOTED: usize = 16_384;

/// How many are held now, of how many. Clones count together.
#[derive(Debug, Clone)]
pub struct HostFiles {
    held: Arc<Held>,
    most: usize,
}

#[derive(Debug, Default)]
struct Held {
    count: AtomicUsize,
    noted: Mutex<AllNoted>,
}

/// What is noted of the files that a program opens.
#[derive(Debug, Default)]
struct AllNoted {
    goes_on: bool,
    /// Some could not be.
    lost: bool,
    files: BTreeMap<Arc<[u8]>, Noted>,
}

impl AllNoted {
    fn add(&mut self, file: &OwnedFd, path: &Arc<[u8]>) {
        if !self.goes_on || self.files.contains_key(path) {
            return;
        }
        match Noted::of(file, Arc::clone(path), false) {
            Ok(noted) if kind(noted.mode) != FileType::RegularFile => {}
            Ok(noted) if self.files.len() < MOST_NOTED => {
                self.files.insert(Arc::clone(path), noted);
            }
            _ => self.lost = true,
        }
    }
}

impl Default for HostFiles {
    fn default() -> Self {
        Self::new(MAX_HOST_FILES)
    }
}

impl HostFiles {
    /// None of so many.
    pub fn new(most: usize) -> Self {
        Self {
            held: Arc::default(),
            most,
        }
    }

    /// From now on it is noted which files are opened, or not any more.
    pub fn note(&self, goes_on: bool) {
        self.held.noted.lock().goes_on = goes_on;
    }

    /// Which were; `None` if not all are known.
    pub fn noted(&self) -> Option<Vec<Noted>> {
        let noted = self.held.noted.lock();
        (!noted.lost).then(|| noted.files.values().cloned().collect())
    }

    /// These were, by the program before it was in a snapshot.
    pub fn set_noted(&self, files: Option<&[Noted]>) {
        let mut noted = self.held.noted.lock();
        noted.lost = files.is_none();
        let files = files.unwrap_or_default().iter();
        noted.files = files
            .map(|file| (Arc::clone(&file.path), file.clone()))
            .collect();
    }

    /// The right to hold one more.
    pub fn take(&self) -> Result<Right, Errno> {
        let more = |held: usize| (held < self.most).then(|| held.saturating_add(1));
        self.held
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Errno::MFILE)?;
        Ok(Right(Arc::clone(&self.held)))
    }
}

/// The right to hold a descriptor of the host, given back when it is dropped.
#[derive(Debug)]
pub struct Right(Arc<Held>);

impl Drop for Right {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open file or folder of the host.
#[derive(Debug)]
pub struct HostFile {
    file: OwnedFd,
    /// Where the program found it.
    path: Arc<[u8]>,
    /// What the program does to it is done in the host.
    changes: bool,
    _right: Right,
}

impl PageSource for HostFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(rustix::io::pread(&self.file, buf, offset)?)
    }

    fn path(&self) -> &[u8] {
        &self.path
    }

    fn identity(&self) -> (u64, u64) {
        rustix::fs::fstat(&self.file).map_or((0, 0), |found| (found.st_dev, found.st_ino))
    }
}

impl HostFile {
    /// Where the program found it.
    pub fn seen(&self) -> Arc<[u8]> {
        Arc::clone(&self.path)
    }

    /// Keeps a file open by this right.
    pub fn new(file: OwnedFd, path: &[u8], right: Right) -> Self {
        let path = path.into();
        right.0.noted.lock().add(&file, &path);
        Self {
            file,
            path,
            changes: false,
            _right: right,
        }
    }

    /// One that the program may change, if it `changes`.
    pub fn that_changes(self, changes: bool) -> Self {
        Self { changes, ..self }
    }

    /// Whether the program may change it.
    pub fn changes(&self) -> bool {
        self.changes
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
