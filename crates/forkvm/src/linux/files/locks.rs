//! Locks of files: flock(2), and fcntl(2) with `F_SETLK` and its relatives. Nobody but the program itself holds any: what
//! one of its open files has locked, another one can't, and its own locks of a process stand against those of its open
//! files (`F_OFD_SETLK`).

use std::ops::Range;

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Reply, Value, field_u64, flags, int};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{Files, O_PATH};
use crate::linux::files::held_locks::{END, Lock, Locked, Owner};
use crate::linux::files::io::size;
use crate::linux::net::calls;

const LOCK_SH: u32 = 1;
const LOCK_EX: u32 = 2;
const LOCK_NB: u32 = 4;
const LOCK_UN: u32 = 8;

const F_RDLCK: u16 = 0;
const F_WRLCK: u16 = 1;
const F_UNLCK: u16 = 2;

/// What a descriptor's locks are of, and its open file's place.
fn locked(files: &Files, fd: u64) -> Result<(Locked, usize), Errno> {
    let place = files.descriptor(fd)?.file;
    let file = files.get(fd)?;
    if file.flags & O_PATH != 0 {
        return Err(Errno::BADF);
    }
    Ok((Locked::of(file, place)?, place))
}

/// flock(2)
pub fn flock(files: &mut Files, fd: u64, how: u64) -> Reply {
    let how = flags(how);
    let (file, place) = locked(files, fd)?;
    let owner = Owner::Flock(place);
    let writes = match how & !LOCK_NB {
        LOCK_UN => {
            files.locks.unlock(file, owner, &(0..END))?;
            return Ok(Outcome::Return(0));
        }
        LOCK_SH => false,
        LOCK_EX => true,
        _ => return Err(Errno::INVAL),
    };
    // One kind becomes the other by way of none.
    let wanted = Lock {
        file,
        owner,
        writes,
        range: 0..END,
    };
    if files.locks.has(owner, !writes) {
        files.locks.unlock(file, owner, &(0..END))?;
    }
    take(files, wanted, how & LOCK_NB == 0)
}

fn take(files: &mut Files, wanted: Lock, waits: bool) -> Reply {
    if files.locks.against(&wanted).is_none() {
        files.locks.lock(wanted)?;
        return Ok(Outcome::Return(0));
    }
    if waits {
        Ok(calls::wait(None))
    } else {
        Err(Errno::AGAIN)
    }
}

/// `struct flock`: type, from where, start, length, process. With whose lock it is about.
struct Wish {
    kind: u16,
    range: Range<u64>,
    file: Locked,
    owner: Owner,
}

impl Wish {
    fn lock(self, writes: bool) -> Lock {
        let Self {
            range, file, owner, ..
        } = self;
        Lock {
            file,
            owner,
            writes,
            range,
        }
    }
}

const FLOCK_LEN: usize = 32;

fn read(
    files: &Files,
    guest: &Guest<'_>,
    fd: u64,
    address: u64,
    of_file: bool,
) -> Result<Wish, Errno> {
    let bytes: [u8; FLOCK_LEN] = guest.read(address)?;
    let halves = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (start, len) = (
        field_u64(&bytes, 8).cast_signed(),
        field_u64(&bytes, 16).cast_signed(),
    );
    let pid = int(field_u64(&bytes, 24));
    let from = match i32::from(halves(2)) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => files.get(fd)?.offset,
        libc::SEEK_END => size(files, &files.get(fd)?.kind)?,
        _ => return Err(Errno::INVAL),
    };
    if of_file && pid != 0 {
        return Err(Errno::INVAL);
    }
    let start = i64::try_from(from)
        .ok()
        .and_then(|from| from.checked_add(start))
        .ok_or(Errno::OVERFLOW)?;
    // A negative length is of what lies before, none of all that follows.
    let (start, end) = match len {
        0 => (start, None),
        1.. => (start, Some(start.checked_add(len).ok_or(Errno::OVERFLOW)?)),
        _ => (start.checked_add(len).ok_or(Errno::INVAL)?, Some(start)),
    };
    let start = u64::try_from(start).map_err(|_| Errno::INVAL)?;
    let end = end.map_or(END, i64::unsigned_abs);
    let (file, place) = locked(files, fd)?;
    let owner = if of_file {
        Owner::OpenFile(place)
    } else {
        Owner::Process
    };
    Ok(Wish {
        kind: halves(0),
        range: start..end,
        file,
        owner,
    })
}

/// fcntl(2) with `F_SETLK` (`waits`: `F_SETLKW`), of the process or, if `of_file`, of the open file.
pub fn set(
    files: &mut Files,
    guest: &Guest<'_>,
    fd: u64,
    address: u64,
    (of_file, waits): (bool, bool),
) -> Reply {
    let wish = read(files, guest, fd, address, of_file)?;
    let writes = match wish.kind {
        F_UNLCK => {
            files.locks.unlock(wish.file, wish.owner, &wish.range)?;
            return Ok(Outcome::Return(0));
        }
        F_RDLCK if files.get(fd)?.readable() => false,
        F_WRLCK if files.get(fd)?.writable() => true,
        F_RDLCK | F_WRLCK => return Err(Errno::BADF),
        _ => return Err(Errno::INVAL),
    };
    take(files, wish.lock(writes), waits)
}

/// fcntl(2) with `F_GETLK`: who stands against a lock, or that nobody does.
pub fn get(
    files: &Files,
    guest: &mut Guest<'_>,
    fd: u64,
    address: u64,
    (of_file, pid): (bool, i32),
) -> Value {
    let wish = read(files, guest, fd, address, of_file)?;
    let writes = match wish.kind {
        F_RDLCK => false,
        F_WRLCK => true,
        _ => return Err(Errno::INVAL),
    };
    let wanted = wish.lock(writes);
    let Some(held) = files.locks.against(&wanted) else {
        guest.write(address, &F_UNLCK.to_le_bytes())?;
        return Ok(0);
    };
    let len = if held.range.end == END {
        0
    } else {
        held.range.end - held.range.start
    };
    let holder = if held.owner == Owner::Process {
        pid
    } else {
        -1
    };
    let layout = Layout::<FLOCK_LEN>::new()
        .u16(0, if held.writes { F_WRLCK } else { F_RDLCK })
        .u64(8, held.range.start)
        .u64(16, len)
        .u32(24, holder.cast_unsigned());
    guest.write(address, layout.done())?;
    Ok(0)
}
