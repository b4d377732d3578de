//! Files of the host that a snapshot's program has open or mapped: how they are opened again, by
//! their paths and only as what they were.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use crate::linux::files::host_files::HostFile;
use crate::linux::files::noted::{Noted, kind};
use crate::linux::files::paths::{Absolute, Place, Target};
use crate::linux::files::resolve::Shared;

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

impl Noted {
    /// The file's path, if something else is there by now, or it was changed.
    pub fn changed(&self, shared: &Shared) -> Option<PathBuf> {
        let found = match shared.roots.find(&Absolute::new(b"/", &self.path)) {
            Some(Target::Host(place)) => place.handle(true).and_then(fstat),
            _ => return Some(shown(&self.path)),
        };
        let same = found.is_ok_and(|found| self.differs(&found).is_none());
        (!same).then(|| shown(&self.path))
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
        if let Some(what) = self.differs(&found) {
            return Err(NotThere::Changed(path(), what));
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
