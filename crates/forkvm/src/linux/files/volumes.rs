//! Folders of the host that a program may change: what it does there is done to the host's own files, at once.
//!
//! A path there was followed name by name before, in the program's terms (`resolve`). What is then done to it is done beneath
//! the folder's own descriptor, by openat2(2) without any link and without leaving the file system, and the last name
//! is never followed: neither a link, be it the program's or the host's, nor a race leads out. Pipes, devices and
//! sockets of the host are not opened, and none are made; nor is anything that runs as somebody else (set-user-ID).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps,
};
use rustix::io::{Errno, ReadWriteFlags};

use crate::linux::abi::{CHUNK, Guest, MOST_BYTES, Reply, length};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{Files, Kind, O_APPEND};
use crate::linux::files::host_files::{HostFile, HostFiles};
use crate::linux::files::open_file::{How, O_ACCMODE, O_DIRECTORY, O_EXCL, O_TRUNC};
use crate::linux::files::overlay::tree::Moment;
use crate::linux::files::paths::Place;
use crate::linux::files::pieces::Pieces;
use crate::linux::files::resolve::Spot;
use crate::linux::files::written::NAME;
use crate::memory::space::vmas::{MAX_OFFSET, PageSource};

/// Permission bits that a program may give: none that have a program run as somebody else.
const PERMISSIONS: u32 = 0o1777;
/// `O_DSYNC` and `O_SYNC`, which the host keeps to.
const SYNCS: u32 = 0o401_0000;
/// How often a file is looked for that somebody else makes or removes meanwhile.
const ATTEMPTS: usize = 8;
/// Largest part of a write that the host does at once.
const AT_ONCE: u64 = 1 << 20;

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & PERMISSIONS)
}

fn kind_of(file: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// How the host is to open a file that is opened so.
fn flags(how: How) -> OFlags {
    let access = match how.0 & O_ACCMODE {
        1 => OFlags::WRONLY,
        0 if !how.has(O_TRUNC) => OFlags::RDONLY,
        _ => OFlags::RDWR,
    };
    let syncs = OFlags::from_bits_retain(how.0 & SYNCS);
    access | syncs | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW
}

/// Opens a regular file that is there. Anything else may have effects, or wait.
fn open_there(place: &Place<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let check = |file: &OwnedFd| match kind_of(file)? {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::ACCESS),
    };
    check(&place.open_to_change(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?)?;
    let file = place.open_to_change(flags, Mode::empty())?;
    // It may have been replaced since.
    check(&file)?;
    Ok(file)
}

/// openat(2) of what is opened to be changed, or made.
pub fn open(
    host_files: &HostFiles,
    files: &mut Files,
    spot: &Spot<'_>,
    how: How,
    permissions: u32,
) -> Result<Kind, Errno> {
    let right = host_files.take()?;
    let file = match spot.found {
        Some(_) if how.creates() && how.has(O_EXCL) => return Err(Errno::EXIST),
        Some(FileType::Directory) if how.makes_nameless() => {
            files.written.take(NAME)?;
            let flags = flags(how) | OFlags::TMPFILE | OFlags::EXCL;
            let flags = flags - OFlags::NOFOLLOW;
            spot.place.open_to_change(flags, mode(permissions))?
        }
        Some(_) if how.makes_nameless() => return Err(Errno::NOTDIR),
        Some(FileType::RegularFile) if spot.path.folder || how.has(O_DIRECTORY) => {
            return Err(Errno::NOTDIR);
        }
        None if !how.creates() => return Err(Errno::NOENT),
        None if spot.path.folder => return Err(Errno::ISDIR),
        _ => open_or_make(files, spot, how, permissions)?,
    };
    if how.has(O_TRUNC) && spot.found.is_some() {
        set_size(files, &file, 0)?;
    }
    let file = HostFile::new(file, &spot.path.text(), right).that_changes(true);
    Ok(Kind::File(Arc::new(file)))
}

fn open_or_make(
    files: &mut Files,
    spot: &Spot<'_>,
    how: How,
    permissions: u32,
) -> Result<OwnedFd, Errno> {
    let mut result = Err(Errno::NOENT);
    for _ in 0..ATTEMPTS {
        result = open_there(&spot.place, flags(how));
        if !matches!(result, Err(Errno::NOENT)) || !how.creates() {
            break;
        }
        result = make_file(files, spot, flags(how), permissions);
        if !matches!(result, Err(Errno::EXIST)) || how.has(O_EXCL) {
            break;
        }
    }
    result
}

/// Makes a file that is not there.
fn make_file(
    files: &mut Files,
    spot: &Spot<'_>,
    flags: OFlags,
    permissions: u32,
) -> Result<OwnedFd, Errno> {
    let (folder, name) = spot.place.parent()?;
    files.written.take(NAME)?;
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, mode(permissions))
}

/// Opens a file again that is open already, where it still has its name.
pub fn reopen(
    files: &mut Files,
    spot: &Spot<'_>,
    before: &HostFile,
    how: How,
) -> Result<OwnedFd, Errno> {
    let file = open_there(&spot.place, flags(how))?;
    let (found, known) = (rustix::fs::fstat(&file)?, rustix::fs::fstat(before)?);
    if (found.st_dev, found.st_ino) != (known.st_dev, known.st_ino) {
        return Err(Errno::NOENT);
    }
    if how.has(O_TRUNC) {
        set_size(files, &file, 0)?;
    }
    Ok(file)
}

/// Where something new goes.
fn free(spot: &Spot<'_>) -> Result<(), Errno> {
    match spot.found {
        Some(_) => Err(Errno::EXIST),
        None => Ok(()),
    }
}

/// mkdirat(2)
pub fn mkdir(files: &mut Files, spot: &Spot<'_>, permissions: u32) -> Result<(), Errno> {
    free(spot)?;
    let (folder, name) = spot.place.parent()?;
    files.written.take(NAME)?;
    rustix::fs::mkdirat(folder, name, mode(permissions))
}

/// mknodat(2): regular files only.
pub fn mknod(files: &mut Files, spot: &Spot<'_>, permissions: u32) -> Result<(), Errno> {
    free(spot)?;
    if spot.path.folder {
        return Err(Errno::NOENT);
    }
    if !matches!(permissions & libc::S_IFMT, 0 | libc::S_IFREG) {
        return Err(Errno::PERM);
    }
    make_file(files, spot, OFlags::WRONLY, permissions).map(drop)
}

/// symlinkat(2)
pub fn symlink(files: &mut Files, to: &[u8], spot: &Spot<'_>) -> Result<(), Errno> {
    free(spot)?;
    if to.is_empty() || spot.path.folder {
        return Err(Errno::NOENT);
    }
    let (folder, name) = spot.place.parent()?;
    files.written.take(NAME)?;
    rustix::fs::symlinkat(to, folder, name)
}

/// linkat(2)
pub fn link(files: &mut Files, from: &Spot<'_>, to: &Spot<'_>) -> Result<(), Errno> {
    let found = from.found.ok_or(Errno::NOENT)?;
    free(to)?;
    if from.volume != to.volume {
        return Err(Errno::XDEV);
    }
    if found == FileType::Directory {
        return Err(Errno::PERM);
    }
    if to.path.folder {
        return Err(Errno::NOENT);
    }
    let ((folder, name), (target, new)) = (from.place.parent()?, to.place.parent()?);
    files.written.take(NAME)?;
    rustix::fs::linkat(folder, name, target, new, AtFlags::empty())
}

/// unlinkat(2)
pub fn unlink(spot: &Spot<'_>, folder: bool) -> Result<(), Errno> {
    spot.found.ok_or(Errno::NOENT)?;
    let how = match folder {
        true => AtFlags::REMOVEDIR,
        false => AtFlags::empty(),
    };
    let (folder, name) = spot.place.parent()?;
    rustix::fs::unlinkat(folder, name, how)
}

/// renameat2(2) with some of `RENAME_*`.
pub fn rename(from: &Spot<'_>, to: &Spot<'_>, how: u32) -> Result<(), Errno> {
    let found = from.found.ok_or(Errno::NOENT)?;
    if from.volume != to.volume {
        return Err(Errno::XDEV);
    }
    if found != FileType::Directory && (from.path.folder || to.path.folder) {
        return Err(Errno::NOTDIR);
    }
    let ((folder, name), (target, new)) = (from.place.parent()?, to.place.parent()?);
    let how = RenameFlags::from_bits_retain(how);
    rustix::fs::renameat_with(folder, name, target, new, how)
}

/// access(2) with `W_OK`.
pub fn may_write(spot: &Spot<'_>) -> Result<(), Errno> {
    let file = spot
        .place
        .open_to_change(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    match spot.place.parent() {
        Ok((folder, name)) => {
            let how = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::accessat(folder, name, Access::WRITE_OK, how)
        }
        // Of a folder its own entry can be asked.
        Err(_) if kind_of(&file)? == FileType::Directory => {
            rustix::fs::accessat(file, c".", Access::WRITE_OK, AtFlags::EACCESS)
        }
        Err(_) => open_there(&spot.place, OFlags::WRONLY | OFlags::NONBLOCK).map(drop),
    }
}

/// Something to change the permissions or times of.
fn open_any(place: &Place<'_>) -> Result<OwnedFd, Errno> {
    match place.open(false) {
        Ok((file, _)) => Ok(file),
        // Some may only be written to.
        Err(Errno::ACCESS) => open_there(place, OFlags::WRONLY | OFlags::NONBLOCK),
        Err(errno) => Err(errno),
    }
}

/// fchmod(2). A link has no permissions.
pub fn set_mode(file: impl AsFd, permissions: u32) -> Result<(), Errno> {
    rustix::fs::fchmod(file, mode(permissions))
}

/// fchmodat(2)
pub fn set_mode_at(spot: &Spot<'_>, permissions: u32) -> Result<(), Errno> {
    match spot.found.ok_or(Errno::NOENT)? {
        FileType::Symlink => Err(Errno::OPNOTSUPP),
        _ => set_mode(open_any(&spot.place)?, permissions),
    }
}

/// fchown(2): files belong to who runs the command, and stay so.
pub fn set_owner(file: impl AsFd, (uid, gid): (u32, u32)) -> Result<(), Errno> {
    let found = rustix::fs::fstat(file)?;
    let stays = |wanted: u32, is: u32| wanted == u32::MAX || wanted == is;
    if stays(uid, found.st_uid) && stays(gid, found.st_gid) {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// fchownat(2)
pub fn set_owner_at(spot: &Spot<'_>, owner: (u32, u32)) -> Result<(), Errno> {
    spot.found.ok_or(Errno::NOENT)?;
    set_owner(spot.place.handle(false)?, owner)
}

fn timestamps((access, modification): (Option<Moment>, Option<Moment>)) -> Timestamps {
    let time = |moment: Option<Moment>| match moment {
        Some((seconds, nanos)) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: time(access),
        last_modification: time(modification),
    }
}

/// futimens(3)
pub fn set_times(file: impl AsFd, times: (Option<Moment>, Option<Moment>)) -> Result<(), Errno> {
    rustix::fs::futimens(file, &timestamps(times))
}

/// utimensat(2)
pub fn set_times_at(spot: &Spot<'_>, times: (Option<Moment>, Option<Moment>)) -> Result<(), Errno> {
    spot.found.ok_or(Errno::NOENT)?;
    match spot.place.parent() {
        Ok((folder, name)) => {
            let times = timestamps(times);
            rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
        Err(_) => set_times(open_any(&spot.place)?, times),
    }
}

/// truncate(2)
pub fn truncate(files: &mut Files, spot: &Spot<'_>, size: u64) -> Result<(), Errno> {
    spot.found.ok_or(Errno::NOENT)?;
    let file = open_there(&spot.place, OFlags::WRONLY | OFlags::NONBLOCK)?;
    set_size(files, file, size)
}

/// ftruncate(2)
pub fn set_size(files: &mut Files, file: impl AsFd, size: u64) -> Result<(), Errno> {
    rustix::fs::ftruncate(&file, size)?;
    was_resized(files, file)
}

/// Tells mappings of a file that its size may be another one.
fn was_resized(files: &mut Files, file: impl AsFd) -> Result<(), Errno> {
    if !files.mirrors.are_used() {
        return Ok(());
    }
    let found = rustix::fs::fstat(file)?;
    let (identity, size) = ((found.st_dev, found.st_ino), found.st_size.unsigned_abs());
    if let Some(node) = files.mirrors.node(identity) {
        files.overlay.set_size(node, size)?;
    }
    files.mirrors.note(identity, size..MAX_OFFSET);
    Ok(())
}

/// Tells mappings of a file what was written to it.
fn was_written(
    files: &mut Files,
    file: &HostFile,
    (offset, append): (u64, bool),
    bytes: &[u8],
) -> Result<(), Errno> {
    if !files.mirrors.are_used() {
        return Ok(());
    }
    let found = rustix::fs::fstat(file)?;
    let identity = (found.st_dev, found.st_ino);
    let start = match append {
        true => found
            .st_size
            .unsigned_abs()
            .saturating_sub(length(bytes.len())),
        false => offset,
    };
    if let Some(node) = files.mirrors.node(identity) {
        files.overlay.write(node, start, bytes)?;
    }
    let end = start.saturating_add(length(bytes.len()));
    files.mirrors.note(identity, start..end);
    Ok(())
}

/// fallocate(2) with some of `FALLOC_FL_*`.
pub fn allocate(
    files: &mut Files,
    file: &HostFile,
    how: u32,
    (offset, len): (u64, u64),
) -> Result<(), Errno> {
    /// `FALLOC_FL_KEEP_SIZE`, `FALLOC_FL_PUNCH_HOLE`, `FALLOC_FL_ZERO_RANGE`
    const KNOWN: u32 = 1 | 2 | 0x10;
    if how & !KNOWN != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let how = FallocateFlags::from_bits_retain(how);
    if !how.contains(FallocateFlags::PUNCH_HOLE) {
        files.written.take(len)?;
    }
    let mut result = Err(Errno::INTR);
    for _ in 0..ATTEMPTS {
        result = rustix::fs::fallocate(file, how, offset, len);
        if result != Err(Errno::INTR) {
            break;
        }
    }
    result?;
    if how.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE)
        && let Some(node) = files.mirrors.node(file.identity())
    {
        files.overlay.clear(node, offset, len)?;
        files.mirrors.note(file.identity(), offset..MAX_OFFSET);
    }
    was_resized(files, file)
}

/// Writes at an offset, or to the end: what is added there by others at the same time stays.
pub fn write_at(
    files: &mut Files,
    file: &HostFile,
    (offset, append): (u64, bool),
    bytes: &[u8],
) -> Result<usize, Errno> {
    i64::try_from(offset.saturating_add(length(bytes.len()))).map_err(|_| Errno::FBIG)?;
    files.written.take(length(bytes.len()))?;
    // overlayfs loses the flag on its way to the file below (seen with Linux 6.1, and not with 6.18). There the end is as of now.
    let (at, how) = match append {
        true => (end(file)?, ReadWriteFlags::APPEND),
        false => (offset, ReadWriteFlags::empty()),
    };
    let piece = [std::io::IoSlice::new(bytes)];
    let written = rustix::io::pwritev2(file, &piece, at, how);
    let done = *written.as_ref().unwrap_or(&0);
    files
        .written
        .give_back(length(bytes.len().saturating_sub(done)));
    let there = bytes.get(..done).unwrap_or_default();
    if !there.is_empty() {
        was_written(files, file, (offset, append), there)?;
    }
    written
}

/// Where a file ends now.
fn end(file: &HostFile) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

/// write(2), pwrite(2) and their relatives. As Linux does, and POSIX does not, pwrite(2) appends too.
pub fn write(
    files: &mut Files,
    guest: &Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    at: Option<u64>,
) -> Reply {
    let open = files.get(fd)?;
    let Kind::File(file) = &open.kind else {
        return Err(Errno::BADF);
    };
    let (file, append) = (Arc::clone(file), open.flags & O_APPEND != 0);
    let start = at.unwrap_or(open.offset);
    let total = pieces.total().min(MOST_BYTES);
    let mut done = 0u64;
    while done < total {
        let len = AT_ONCE.min(total - done);
        let result = gather(guest, pieces, done, len).and_then(|bytes| {
            write_at(files, &file, (start.saturating_add(done), append), &bytes)
                .map(|written| (written, bytes.len()))
        });
        match result {
            Ok((written, all)) => {
                done = done.saturating_add(length(written));
                if written < all || length(all) < len {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    if at.is_none() {
        let end = match append && done > 0 {
            true => end(&file)?,
            false => start.saturating_add(done),
        };
        files.get_mut(fd)?.offset = end;
    }
    Ok(Outcome::Return(done.cast_signed()))
}

/// What can be read of a part of the pieces.
fn gather(guest: &Guest<'_>, pieces: &Pieces, skip: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let (mut done, step) = (0, length(CHUNK));
    while done < len {
        match pieces.gather(guest, skip.saturating_add(done), step.min(len - done)) {
            Ok(piece) => bytes.extend(piece),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
        done = length(bytes.len());
    }
    Ok(bytes)
}
