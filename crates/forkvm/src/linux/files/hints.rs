//! What is said about files that makes no difference to any: fsync(2) and its relatives, posix_fadvise(2), readahead(2).
//! Nothing is written to a disk or read ahead of one; what makes no sense is refused.

use rustix::io::Errno;

use crate::linux::abi::{Value, flags, int};
use crate::linux::files::fds::{Files, Kind, O_PATH, OpenFile};

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
        Kind::PipeReader(_) | Kind::PipeWriter(_) | Kind::Output(_)
    )
}

/// fsync(2), fdatasync(2): of files, folders and devices.
pub fn sync(files: &Files, fd: u64) -> Value {
    match open(files, fd)?.kind {
        Kind::File(_) | Kind::Node(..) | Kind::Folder(..) => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// syncfs(2)
pub fn sync_system(files: &Files, fd: u64) -> Value {
    open(files, fd).map(|_| 0)
}

/// sync_file_range(2)
pub fn sync_range(files: &Files, [fd, offset, len, how]: [u64; 4]) -> Value {
    let file = open(files, fd)?;
    let end = offset.cast_signed().checked_add(len.cast_signed());
    if flags(how) & !RANGE_KNOWN != 0 || offset.cast_signed() < 0 || end.is_none_or(|end| end < 0) {
        return Err(Errno::INVAL);
    }
    match file.kind {
        Kind::File(_) | Kind::Node(..) | Kind::Folder(..) => Ok(0),
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
