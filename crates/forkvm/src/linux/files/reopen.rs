//! Files of the host that a snapshot's program has open or mapped: what is noted of them, and how they are opened again, by
//! their paths and only as what they were.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Stat, fcntl_getfl, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::files::host_files::HostFile;
use crate::linux::files::paths::{Absolute, Place, Target};
use crate::linux::files::resolve::Shared;

/// What is noted of an open file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Noted {
    /// Where the program found it.
    path: Arc<[u8]>,
    /// Device and inode.
    pub identity: (u64, u64),
    mode: u32,
    size: i64,
    /// Last modification: seconds and nanoseconds.
    modified: (i64, u64),
    /// `O_*`.
    flags: u32,
    /// What the program does to it is done in the host.
    changes: bool,
}

/// Why a file is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotThere {
    /// It is not among what the program may read.
    #[error(
        "{0} was open when the snapshot was taken, and is not allowed now: allow it as it was then, or take a new one"
    )]
    NotAllowed(PathBuf),
    /// It can't be opened.
    #[error(
        "{0} was open when the snapshot was taken, and can't be opened now ({1}): take a new one"
    )]
    NotOpened(PathBuf, Errno),
    /// Another file is there, or it was changed.
    #[error("{0} was open when the snapshot was taken, and {1} since: take a new one")]
    Changed(PathBuf, &'static str),
}

fn shown(path: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(path).into()
}

fn kind(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

fn modified(found: &Stat) -> (i64, u64) {
    (found.st_mtime, found.st_mtime_nsec)
}

impl Noted {
    /// Of an open file.
    pub fn of(file: &HostFile) -> Result<Self, Errno> {
        let found = fstat(file.as_fd())?;
        Ok(Self {
            path: file.seen(),
            identity: (found.st_dev, found.st_ino),
            mode: found.st_mode,
            size: found.st_size,
            modified: modified(&found),
            flags: fcntl_getfl(file.as_fd())?.bits(),
            changes: file.changes(),
        })
    }

    /// Opens it again. What is there has to be what was, and allowed as it was.
    pub fn open(&self, shared: &Shared) -> Result<Arc<HostFile>, NotThere> {
        let path = || shown(&self.path);
        let absolute = Absolute::new(b"/", &self.path);
        let place = match shared.roots.find(&absolute) {
            Some(Target::Host(place)) if place.writes || !self.changes => place,
            _ => return Err(NotThere::NotAllowed(path())),
        };
        let not_opened = |errno| NotThere::NotOpened(path(), errno);
        let right = shared.host_files.take().map_err(not_opened)?;
        let file = self.open_at(&place).map_err(not_opened)?;
        let found = fstat(&file).map_err(not_opened)?;
        let changed = |what| Err(NotThere::Changed(path(), what));
        if found.st_ino != self.identity.1 || kind(found.st_mode) != kind(self.mode) {
            return changed("another file has taken its place");
        }
        // What is in a folder may change, and so may what the program's own connections write.
        if kind(self.mode) == FileType::RegularFile && !self.changes {
            if found.st_size != self.size {
                return changed("its size has changed");
            }
            if modified(&found) != self.modified {
                return changed("it was modified");
            }
        }
        let file = HostFile::new(file, &self.path, right).that_changes(self.changes);
        Ok(Arc::new(file))
    }

    fn open_at(&self, place: &Place<'_>) -> Result<std::os::fd::OwnedFd, Errno> {
        let flags = OFlags::from_bits_retain(self.flags);
        if flags.contains(OFlags::PATH) {
            return place.handle(kind(self.mode) != FileType::Symlink);
        }
        if self.changes && flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            let kept = OFlags::WRONLY | OFlags::RDWR | OFlags::APPEND;
            let flags = flags & kept | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
            return place.open_to_change(flags, Mode::empty());
        }
        Ok(place.open(true)?.0)
    }
}
