//! What file systems are like: statfs(2), and extended attributes, of which there are none (xattr(7)).

use std::os::fd::AsFd;

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, HERE, Layout, Value, flags};
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::paths::Target;
use crate::linux::files::resolve::{Lookup, Shared};
use crate::linux::files::stat;

/// `TMPFS_MAGIC`, `PROC_SUPER_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const BLOCK: u64 = 4096;
/// `XATTR_NAME_MAX` and `XATTR_SIZE_MAX` of linux/limits.h.
const NAME_MAX: usize = 255;
const SIZE_MAX: u64 = 65536;

/// `struct statfs` of asm-generic/statfs.h: the overlay's bytes are what is left for all files.
fn write(files: &Files, guest: &mut Guest<'_>, magic: u64, address: u64) -> Value {
    let (all, free) = files.overlay.bytes();
    let layout = Layout::<120>::new()
        .u64(0, magic)
        .u64(8, BLOCK)
        .u64(16, all / BLOCK)
        .u64(24, free / BLOCK)
        .u64(32, free / BLOCK)
        .u64(40, files.overlay.tree().most())
        .u64(48, files.overlay.tree().room())
        .u64(64, 255)
        .u64(72, BLOCK);
    guest.write(address, layout.done())?;
    Ok(0)
}

/// The same of what the program may change in the host.
fn write_host(guest: &mut Guest<'_>, file: impl AsFd, address: u64) -> Value {
    let found = rustix::fs::fstatfs(file)?;
    let size = found.f_bsize.unsigned_abs();
    let layout = Layout::<120>::new()
        .i64(0, found.f_type)
        .u64(8, size)
        .u64(16, found.f_blocks)
        .u64(24, found.f_bfree)
        .u64(32, found.f_bavail)
        .u64(40, found.f_files)
        .u64(48, found.f_ffree)
        .i64(64, found.f_namelen)
        .u64(72, size);
    guest.write(address, layout.done())?;
    Ok(0)
}

/// statfs(2)
pub fn statfs(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    path: u64,
    address: u64,
) -> Value {
    stat::check_there(shared, files, guest, (HERE, path))?;
    let lookup = Lookup::new(HERE, guest.read_path(path)?);
    if let Some(spot) = shared.in_volume(files, &lookup, true)? {
        return write_host(guest, spot.place.handle(true)?, address);
    }
    let magic = match shared.find(files, &lookup, true)? {
        (path, Target::Report(_) | Target::Passage) if path.text().starts_with(b"/proc") => {
            PROC_SUPER_MAGIC
        }
        _ => TMPFS_MAGIC,
    };
    write(files, guest, magic, address)
}

/// fstatfs(2)
pub fn fstatfs(files: &Files, guest: &mut Guest<'_>, fd: u64, address: u64) -> Value {
    let magic = match &files.get(fd)?.kind {
        Kind::File(file) | Kind::Folder(Some(file), _) if file.changes() => {
            return write_host(guest, &**file, address);
        }
        Kind::Text(_) => PROC_SUPER_MAGIC,
        _ => TMPFS_MAGIC,
    };
    write(files, guest, magic, address)
}

/// getxattr(2), setxattr(2) and their relatives: no file has any, and none can be set.
pub fn xattr(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    number: Sysno,
    [first, name, _, size, how, _]: [u64; 6],
) -> Value {
    let sets = matches!(
        number,
        Sysno::setxattr | Sysno::lsetxattr | Sysno::fsetxattr
    );
    let lists = matches!(
        number,
        Sysno::listxattr | Sysno::llistxattr | Sysno::flistxattr
    );
    // XATTR_CREATE, XATTR_REPLACE.
    if sets && flags(how) & !3 != 0 {
        return Err(Errno::INVAL);
    }
    if !lists
        && guest
            .read_string(name, NAME_MAX + 1, Errno::RANGE)?
            .is_empty()
    {
        return Err(Errno::RANGE);
    }
    if sets && size > SIZE_MAX {
        return Err(Errno::TOOBIG);
    }
    match number {
        Sysno::fgetxattr | Sysno::flistxattr | Sysno::fsetxattr | Sysno::fremovexattr => {
            files.get(first)?;
        }
        _ => stat::check_there(shared, files, guest, (HERE, first))?,
    }
    match number {
        _ if lists => Ok(0),
        _ if sets => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::NODATA),
    }
}
