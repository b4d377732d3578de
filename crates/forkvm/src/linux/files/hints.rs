//! What is said about files that makes no difference to any: fsync(2) and its relatives, posix_fadvise(2), readahead(2).
//! Nothing is read ahead of a disk, and written to one only what the program may change in the host; what makes no sense is refused.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::linux::abi::{Value, flags, int};
use crate::linux::files::fds::{Files, Kind, O_PATH, OpenFile};
use crate::linux::files::host_files::HostFile;

/// `SYNC_FILE_RANGE_*`
const RANGE_KNOWN: u32 = 7;
/// `POSIX_FADV_NOREUSE`, the last.
const LAST_ADVICE: i32 = 5;

/// Something that is open for more than its path.
fn open(files: &Files, fd: u64) -> Result<&OpenFile, Errno> {
    let file = files.get(fd)?;
    if file.flags & O_PATH != 0 {
        return Err(Errno::BADF);
    }
    Ok(file)
}

fn is_pipe(file: &OpenFile) -> bool {
    matches!(
        file.kind,
        Kind::PipeReader(_) | Kind::PipeWriter(_) | Kind::PipeBoth(_) | Kind::Output(_)
    )
}

/// What the program may change in the host is synchronised there, which may take as long as the disk does.
fn sync_host(file: &HostFile, sync: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Value {
    match file.changes() {
        true => sync(file.as_fd()).map(|()| 0),
        false => Ok(0),
    }
}

/// fsync(2), and fdatasync(2), which is of the `data` only: of files, folders and devices.
pub fn sync(files: &Files, fd: u64, data: bool) -> Value {
    match &open(files, fd)?.kind {
        Kind::File(file) if data => sync_host(file, |file| rustix::fs::fdatasync(file)),
        Kind::File(file) | Kind::Folder(Some(file), _) => {
            sync_host(file, |file| rustix::fs::fsync(file))
        }
        Kind::Node(..) | Kind::Folder(None, _) => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// syncfs(2)
pub fn sync_system(files: &Files, fd: u64) -> Value {
    match &open(files, fd)?.kind {
        Kind::File(file) | Kind::Folder(Some(file), _) => {
            sync_host(file, |file| rustix::fs::syncfs(file))
        }
        _ => Ok(0),
    }
}

/// sync_file_range(2)
pub fn sync_range(files: &Files, [fd, offset, len, how]: [u64; 4]) -> Value {
    let file = open(files, fd)?;
    let end = offset.cast_signed().checked_add(len.cast_signed());
    if flags(how) & !RANGE_KNOWN != 0 || offset.cast_signed() < 0 || end.is_none_or(|end| end < 0) {
        return Err(Errno::INVAL);
    }
    match &file.kind {
        Kind::File(file) => sync_host(file, |file| rustix::fs::fdatasync(file)),
        Kind::Node(..) | Kind::Folder(..) => Ok(0),
        _ => Err(Errno::SPIPE),
    }
}

/// posix_fadvise(2)
pub fn advise(files: &Files, fd: u64, len: u64, advice: u64) -> Value {
    let file = open(files, fd)?;
    if is_pipe(file) {
        return Err(Errno::SPIPE);
    }
    if len.cast_signed() < 0 || !(0..=LAST_ADVICE).contains(&int(advice)) {
        return Err(Errno::INVAL);
    }
    Ok(0)
}

/// readahead(2)
pub fn read_ahead(files: &Files, fd: u64) -> Value {
    let file = files.get(fd)?;
    if !file.readable() {
        return Err(Errno::BADF);
    }
    match file.kind {
        Kind::File(_) | Kind::Node(..) => Ok(0),
        _ => Err(Errno::INVAL),
    }
}
