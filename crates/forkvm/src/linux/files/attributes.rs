//! Changing what files are like, in the overlay: truncate(2), fallocate(2), chmod(2), chown(2), utimensat(2). Where nothing
//! may be written they are refused (`stat`).

use std::sync::Arc;

use rustix::io::Errno;

use crate::linux::abi::{Guest, Value, flags, int};
use crate::linux::files::change::{At, refused};
use crate::linux::files::copies::{node_at, node_of};
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::overlay::now;
use crate::linux::files::overlay::tree::{Moment, Nature};
use crate::linux::files::resolve::{Lookup, Shared};
use crate::linux::files::stat::{self, Change};
use crate::linux::files::volumes;

const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_EMPTY_PATH: u32 = 0x1000;

/// truncate(2)
pub fn truncate(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    path: u64,
    size: u64,
) -> Value {
    let at = (crate::linux::abi::HERE, path);
    let lookup = Lookup::new(at.0, guest.read_path(path)?);
    let size = u64::try_from(size.cast_signed()).map_err(|_| Errno::INVAL)?;
    if let Some(spot) = shared.in_volume(files, &lookup, true)? {
        return volumes::truncate(files, &spot, size).map(|()| 0);
    }
    let Some(id) = node_at(shared, files, &lookup, true)? else {
        return refused(shared, files, guest, at, Change::Existing);
    };
    if files.overlay.tree().node(id)?.is_folder() {
        return Err(Errno::ISDIR);
    }
    files.overlay.set_size(id, size)?;
    Ok(0)
}

/// ftruncate(2)
pub fn ftruncate(shared: &Shared, files: &mut Files, fd: u64, size: u64) -> Value {
    if !shared.has_overlay() {
        return Err(stat::refuse_open(files, fd));
    }
    let size = u64::try_from(size.cast_signed()).map_err(|_| Errno::INVAL)?;
    let file = files.get(fd)?;
    match file.kind {
        Kind::Node(id, _) if file.writable() => {
            files.overlay.set_size(id, size)?;
            Ok(0)
        }
        Kind::File(ref host) if file.writable() => {
            let host = Arc::clone(host);
            volumes::set_size(files, &*host, size).map(|()| 0)
        }
        Kind::File(_) | Kind::Node(..) | Kind::Text(_) => Err(Errno::INVAL),
        _ if file.flags & crate::linux::files::fds::O_PATH != 0 => Err(Errno::BADF),
        _ => Err(Errno::INVAL),
    }
}

/// fallocate(2)
pub fn fallocate(
    shared: &Shared,
    files: &mut Files,
    fd: u64,
    (how, offset, len): (u64, u64, u64),
) -> Value {
    if !shared.has_overlay() {
        return Err(stat::refuse_open(files, fd));
    }
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    const ZERO_RANGE: u32 = 0x10;
    let how = flags(how);
    let positive = |value: u64| u64::try_from(value.cast_signed()).map_err(|_| Errno::INVAL);
    let (offset, len) = (positive(offset)?, positive(len)?);
    if len == 0 {
        return Err(Errno::INVAL);
    }
    let file = files.get(fd)?;
    if !file.writable() {
        return Err(Errno::BADF);
    }
    let id = match &file.kind {
        Kind::Node(id, _) => *id,
        Kind::File(host) => {
            let host = Arc::clone(host);
            return volumes::allocate(files, &host, how, (offset, len)).map(|()| 0);
        }
        Kind::PipeReader(_) | Kind::PipeWriter(_) | Kind::PipeBoth(_) => return Err(Errno::SPIPE),
        _ => return Err(Errno::NODEV),
    };
    match how {
        0 => files.overlay.allocate(id, (offset, len), false)?,
        KEEP_SIZE => files.overlay.allocate(id, (offset, len), true)?,
        how if how == KEEP_SIZE | PUNCH_HOLE => files.overlay.clear(id, offset, len)?,
        how if how & !KEEP_SIZE == ZERO_RANGE => {
            files.overlay.clear(id, offset, len)?;
            files
                .overlay
                .allocate(id, (offset, len), how & KEEP_SIZE != 0)?;
        }
        _ => return Err(Errno::OPNOTSUPP),
    }
    Ok(0)
}

/// What about a file is changed.
#[derive(Debug, Clone, Copy)]
pub enum Set {
    /// Its permissions.
    Mode(u32),
    /// Its owner and group; -1 leaves one as it is.
    Owner(u32, u32),
    /// Last access and modification; `None` leaves one as it is.
    Times(Option<Moment>, Option<Moment>),
}

fn set(files: &mut Files, id: u64, what: Set) -> Value {
    let node = files.overlay.tree_mut().node_mut(id)?;
    match what {
        Set::Mode(_) if matches!(node.nature, Nature::Link(_)) => return Err(Errno::OPNOTSUPP),
        Set::Mode(mode) => node.mode = mode & 0o7777,
        Set::Owner(uid, gid) => {
            if uid != u32::MAX {
                node.uid = uid;
            }
            if gid != u32::MAX {
                node.gid = gid;
            }
        }
        Set::Times(access, modification) => {
            node.times[0] = access.unwrap_or(node.times[0]);
            node.times[1] = modification.unwrap_or(node.times[1]);
        }
    }
    node.times[2] = now();
    Ok(0)
}

/// chmod(2), chown(2), utimensat(2) and their relatives by path.
pub fn set_at(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: At,
    how: u32,
    what: Set,
) -> Value {
    if how & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    // Nothing is to be done, and so nothing is looked at.
    if matches!(what, Set::Times(None, None)) {
        return Ok(0);
    }
    let path = if at.1 == 0 && how & AT_EMPTY_PATH != 0 {
        Vec::new()
    } else {
        guest.read_path(at.1)?
    };
    if path.is_empty() && how & AT_EMPTY_PATH != 0 && int(at.0) != libc::AT_FDCWD {
        return set_of(shared, files, at.0, what);
    }
    let lookup = Lookup {
        dirfd: at.0,
        path,
        empty_is_here: how & AT_EMPTY_PATH != 0,
    };
    if let Some(spot) = shared.in_volume(files, &lookup, how & AT_SYMLINK_NOFOLLOW == 0)? {
        let done = match what {
            Set::Mode(mode) => volumes::set_mode_at(&spot, mode),
            Set::Owner(uid, gid) => volumes::set_owner_at(&spot, (uid, gid)),
            Set::Times(access, modification) => {
                volumes::set_times_at(&spot, (access, modification))
            }
        };
        return done.map(|()| 0);
    }
    match node_at(shared, files, &lookup, how & AT_SYMLINK_NOFOLLOW == 0)? {
        Some(id) => set(files, id, what),
        None => refused(shared, files, guest, at, Change::Existing),
    }
}

/// fchmod(2), fchown(2), futimens(3).
pub fn set_of(shared: &Shared, files: &mut Files, fd: u64, what: Set) -> Value {
    if let Kind::File(file) | Kind::Folder(Some(file), _) = &files.get(fd)?.kind
        && file.changes()
    {
        let done = match what {
            Set::Mode(mode) => volumes::set_mode(&**file, mode),
            Set::Owner(uid, gid) => volumes::set_owner(&**file, (uid, gid)),
            Set::Times(access, modification) => volumes::set_times(&**file, (access, modification)),
        };
        return done.map(|()| 0);
    }
    match node_of(shared, files, fd)? {
        Some(id) => set(files, id, what),
        None => Err(Errno::ROFS),
    }
}

/// The two times of utimensat(2): `struct timespec` twice, of which one may be `UTIME_NOW` or `UTIME_OMIT`. Null is now.
pub fn read_times(guest: &Guest<'_>, address: u64) -> Result<Set, Errno> {
    if address == 0 {
        return Ok(Set::Times(Some(now()), Some(now())));
    }
    let bytes: [u8; 32] = guest.read(address)?;
    let moment = |at: usize| {
        let seconds = crate::linux::abi::field_u64(&bytes, at).cast_signed();
        match crate::linux::abi::field_u64(&bytes, at.saturating_add(8)).cast_signed() {
            libc::UTIME_NOW => Ok(Some(now())),
            libc::UTIME_OMIT => Ok(None),
            nanos @ 0..1_000_000_000 => Ok(Some((seconds, u32::try_from(nanos).unwrap_or(0)))),
            _ => Err(Errno::INVAL),
        }
    };
    Ok(Set::Times(moment(0)?, moment(16)?))
}

/// Those of utimes(2), `struct timeval` twice, or of utime(2), seconds twice.
pub fn read_old_times(guest: &Guest<'_>, address: u64, micros: bool) -> Result<Set, Errno> {
    if address == 0 {
        return Ok(Set::Times(Some(now()), Some(now())));
    }
    let second = |at: u64| guest.read_u64(address.checked_add(at).ok_or(Errno::FAULT)?);
    if !micros {
        let (access, change) = (second(0)?.cast_signed(), second(8)?.cast_signed());
        return Ok(Set::Times(Some((access, 0)), Some((change, 0))));
    }
    let moment = |seconds: u64, micros: u64| match u32::try_from(micros) {
        Ok(micros @ 0..1_000_000) => Ok(Some((seconds.cast_signed(), micros.saturating_mul(1000)))),
        _ => Err(Errno::INVAL),
    };
    Ok(Set::Times(
        moment(second(0)?, second(8)?)?,
        moment(second(16)?, second(24)?)?,
    ))
}
