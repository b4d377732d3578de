//! Puts what an archive has into a folder, within limits.

use std::ffi::OsStr;
use std::fs::{File, FileTimes, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::tenants::archive::entry::{EntryPath, Kind};
use crate::tenants::archive::limits::{Limits, NotUnpacked, shown};

/// How much is copied at a time.
const PIECE: usize = 64 << 10;
/// Permissions of folders and of programs, and of other files: those of the archive only say which is which, and nothing is
/// run as somebody else.
const EXECUTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// A folder that an archive is unpacked into.
pub struct Unpacker<'a> {
    folder: OwnedFd,
    limits: Limits,
    files: u32,
    is_empty: bool,
    bytes: u64,
    piece: Vec<u8>,
    pause: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl<'a> Unpacker<'a> {
    /// Into this one, which is empty.
    pub fn new(
        folder: OwnedFd,
        limits: Limits,
        pause: &'a mut dyn FnMut() -> ControlFlow<()>,
    ) -> Self {
        Self {
            folder,
            limits,
            files: 0,
            is_empty: true,
            bytes: 0,
            piece: vec![0; PIECE],
            pause,
        }
    }

    /// How many bytes files may still have.
    pub fn bytes_left(&self) -> u64 {
        self.limits.bytes - self.bytes
    }

    /// Says that there would be too many bytes.
    pub fn too_many_bytes(&self) -> NotUnpacked {
        NotUnpacked::TooLarge(format!("{} bytes (max_folder_size)", self.limits.bytes))
    }

    /// Says that there are so many entries, before each of them is looked at.
    pub fn check_count(&self, entries: usize) -> Result<(), NotUnpacked> {
        match entries > self.limits.files as usize {
            true => Err(self.too_many_files()),
            false => Ok(()),
        }
    }

    fn too_many_files(&self) -> NotUnpacked {
        NotUnpacked::TooLarge(format!("{} files (max_folder_files)", self.limits.files))
    }

    /// Counts something in the archive, which may be nothing to put there.
    pub fn count(&mut self) -> Result<(), NotUnpacked> {
        self.may_pause()?;
        if self.files == self.limits.files {
            return Err(self.too_many_files());
        }
        self.files += 1;
        Ok(())
    }

    /// Puts something there that was counted; a file has what can be read.
    pub fn put(
        &mut self,
        name: &[u8],
        kind: Kind<'_>,
        content: &mut dyn Read,
    ) -> Result<(), NotUnpacked> {
        let path = EntryPath::new(name)?;
        let Some((around, own)) = path.split() else {
            return match kind {
                Kind::Folder => Ok(()),
                _ => Err(NotUnpacked::refused(name, "names the folder itself")),
            };
        };
        self.is_empty = false;
        let parent = self.parent(around, name)?;
        match kind {
            Kind::Folder => self.put_folder(&parent, own, name),
            Kind::File {
                executable,
                modified,
            } => {
                let mut file = create(&parent, own).map_err(|errno| not_made(name, errno))?;
                self.copy(name, content, &mut file)?;
                let permissions = match executable {
                    true => EXECUTABLE,
                    false => READABLE,
                };
                let finish = || {
                    file.set_permissions(Permissions::from_mode(permissions))?;
                    match modified {
                        Some(time) => file.set_times(FileTimes::new().set_modified(time)),
                        None => Ok(()),
                    }
                };
                finish().map_err(|error| NotUnpacked::Host {
                    name: shown(name),
                    error,
                })
            }
            Kind::Link(to) => {
                path.check_link(to)
                    .map_err(|problem| NotUnpacked::refused(name, problem))?;
                rustix::fs::symlinkat(OsStr::from_bytes(to), &parent, own)
                    .map_err(|errno| not_made(name, errno))
            }
            Kind::SameAs(other) => self.put_name(&parent, own, name, other),
        }
    }

    /// To be called at the end.
    pub fn finish(self) -> Result<(), NotUnpacked> {
        match self.is_empty {
            true => Err(NotUnpacked::Empty),
            false => Ok(()),
        }
    }

    fn may_pause(&mut self) -> Result<(), NotUnpacked> {
        match (self.pause)() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(NotUnpacked::Stopped),
        }
    }

    /// The folder around something, which is made if need be. No link is followed.
    fn parent<'n>(
        &mut self,
        around: impl Iterator<Item = &'n OsStr>,
        name: &[u8],
    ) -> Result<OwnedFd, NotUnpacked> {
        let host = |errno: Errno| not_made(name, errno);
        let mut folder = open_folder(&self.folder, OsStr::new(".")).map_err(host)?;
        for part in around {
            folder = match open_folder(&folder, part) {
                Err(Errno::NOENT) => {
                    self.count()?;
                    make_folder(&folder, part).map_err(host)?;
                    open_folder(&folder, part)
                }
                opened => opened,
            }
            .map_err(host)?;
        }
        Ok(folder)
    }

    fn put_folder(
        &mut self,
        parent: &OwnedFd,
        own: &OsStr,
        name: &[u8],
    ) -> Result<(), NotUnpacked> {
        match make_folder(parent, own) {
            // What was in it may have come before it.
            Err(Errno::EXIST) => open_folder(parent, own)
                .map(drop)
                .map_err(|_| not_made(name, Errno::EXIST)),
            made => made.map_err(|errno| not_made(name, errno)),
        }
    }

    /// A hard link.
    fn put_name(
        &mut self,
        parent: &OwnedFd,
        own: &OsStr,
        name: &[u8],
        other: &[u8],
    ) -> Result<(), NotUnpacked> {
        let none = || NotUnpacked::refused(name, "is a hard link to no file before it");
        let path = EntryPath::new(other)?;
        let (around, source) = path.split().ok_or_else(none)?;
        let mut folder = open_folder(&self.folder, OsStr::new(".")).map_err(|_| none())?;
        for part in around {
            folder = open_folder(&folder, part).map_err(|_| none())?;
        }
        let found =
            rustix::fs::statat(&folder, source, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| none())?;
        if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(none());
        }
        rustix::fs::linkat(&folder, source, parent, own, AtFlags::empty())
            .map_err(|errno| not_made(name, errno))
    }

    fn copy(
        &mut self,
        name: &[u8],
        content: &mut dyn Read,
        file: &mut File,
    ) -> Result<(), NotUnpacked> {
        loop {
            let mut piece = std::mem::take(&mut self.piece);
            let read = content.read(&mut piece);
            self.piece = piece;
            let len = match read {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(NotUnpacked::Damaged(format!("{}: {error}", shown(name))));
                }
            };
            if len as u64 > self.bytes_left() {
                return Err(self.too_many_bytes());
            }
            self.bytes += len as u64;
            file.write_all(&self.piece[..len])
                .map_err(|error| NotUnpacked::Host {
                    name: shown(name),
                    error,
                })?;
            self.may_pause()?;
        }
    }
}

fn create(parent: &OwnedFd, own: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, own, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn make_folder(parent: &OwnedFd, own: &OsStr) -> Result<(), Errno> {
    rustix::fs::mkdirat(parent, own, Mode::from_raw_mode(EXECUTABLE))
}

/// A folder in another one, not a link to one.
fn open_folder(parent: &OwnedFd, own: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(parent, own, flags, Mode::empty(), how)
}

/// Why something could not be made: the archive's fault, or the host's.
fn not_made(name: &[u8], errno: Errno) -> NotUnpacked {
    match errno {
        Errno::EXIST => NotUnpacked::refused(name, "is there twice"),
        Errno::LOOP | Errno::NOTDIR => NotUnpacked::refused(name, "is beneath what is no folder"),
        Errno::ILSEQ | Errno::INVAL => NotUnpacked::refused(name, "is no name to the file system"),
        errno => NotUnpacked::Host {
            name: shown(name),
            error: errno.into(),
        },
    }
}
