//! What is noted of a file of the host, to find out later whether it is still the same.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, fcntl_getfl, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What is noted of an open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Where the program found it.
    pub path: Arc<[u8]>,
    /// Device and inode.
    pub identity: (u64, u64),
    /// `st_mode`.
    pub mode: u32,
    size: i64,
    /// Last modification: seconds and nanoseconds.
    modified: (i64, u64),
    /// Last change of the file or of what is said of it, which nobody can set: archives give all they hold the same modification,
    /// and a number of an inode is used again.
    status_changed: (i64, u64),
    /// `O_*`.
    pub flags: u32,
    /// What the program does to it is done in the host.
    pub changes: bool,
}

/// What kind of file has this `st_mode`.
pub fn kind(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

fn modified(found: &Stat) -> (i64, u64) {
    (found.st_mtime, found.st_mtime_nsec)
}

fn status_changed(found: &Stat) -> (i64, u64) {
    (found.st_ctime, found.st_ctime_nsec)
}

impl Noted {
    /// Of an open file that the program has found there.
    pub fn of(file: impl AsFd, path: Arc<[u8]>, changes: bool) -> Result<Self, Errno> {
        let found = fstat(&file)?;
        Ok(Self {
            path,
            identity: (found.st_dev, found.st_ino),
            mode: found.st_mode,
            size: found.st_size,
            modified: modified(&found),
            status_changed: status_changed(&found),
            flags: fcntl_getfl(&file)?.bits(),
            changes,
        })
    }

    /// How what is found there now differs, if it does.
    pub fn differs(&self, found: &Stat) -> Option<&'static str> {
        if found.st_ino != self.identity.1 || kind(found.st_mode) != kind(self.mode) {
            return Some("another file has taken its place");
        }
        // What is in a folder may change, and so may what the program's own connections write.
        if kind(self.mode) != FileType::RegularFile || self.changes {
            return None;
        }
        if found.st_size != self.size {
            return Some("its size has changed");
        }
        if modified(found) != self.modified {
            return Some("it was modified");
        }
        (status_changed(found) != self.status_changed)
            .then_some("it, its name or its mode was changed")
    }
}
