//! What files are like: fstat(2), newfstatat(2), statx(2), access(2), readlink(2); and refusing to change them.

use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::linux::abi::{Guest, Value, count, flags, int};
use crate::linux::files::fds::{Device, Files, Kind};
use crate::linux::files::inode::Inode;
use crate::linux::files::overlay::tree::Nature;
use crate::linux::files::paths::{Place, Target};
use crate::linux::files::resolve::{Lookup, Resolved, Shared};
use crate::linux::files::volumes;
use crate::linux::process::Process;

const AT_EMPTY_PATH: u32 = 0x1000;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_EACCESS: u32 = 0x200;
const AT_STATX_SYNC_TYPE: u32 = 0x6000;
/// What stat and statx take, `AT_NO_AUTOMOUNT` among it.
const KNOWN: u32 = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | 0x800 | AT_STATX_SYNC_TYPE;
const STATX_RESERVED: u32 = 1 << 31;
/// `AT_SYMLINK_NOFOLLOW` as an argument register, which makes `newfstatat` an `lstat`.
pub const NOFOLLOW: u64 = AT_SYMLINK_NOFOLLOW as u64;
const W_OK: u32 = 2;
const R_OK: u32 = 4;

/// fstat(2)
pub fn fstat(files: &Files, guest: &mut Guest<'_>, fd: u64, address: u64) -> Value {
    let attributes = Inode::of(files, &files.get(fd)?.kind)?;
    guest.write(address, attributes.stat().done())?;
    Ok(0)
}

/// newfstatat(2), and stat(2) and lstat(2) in its terms.
pub fn fstatat(shared: &Shared, files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [dirfd, path, address, how, ..] = args;
    if flags(how) & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let attributes = attributes_at(shared, files, guest, (dirfd, path, flags(how)))?;
    guest.write(address, attributes.stat().done())?;
    Ok(0)
}

/// statx(2)
pub fn statx(shared: &Shared, files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [dirfd, path, how, mask, address, _] = args;
    let sync = flags(how) & AT_STATX_SYNC_TYPE;
    if flags(how) & !KNOWN != 0 || sync == AT_STATX_SYNC_TYPE || flags(mask) & STATX_RESERVED != 0 {
        return Err(Errno::INVAL);
    }
    let attributes = attributes_at(shared, files, guest, (dirfd, path, flags(how)))?;
    guest.write(address, attributes.statx().done())?;
    Ok(0)
}

fn attributes_at(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    (dirfd, path, how): (u64, u64, u32),
) -> Result<Inode, Errno> {
    // Since Linux 6.11 a null pointer counts as an empty path there.
    let path = if path == 0 && how & AT_EMPTY_PATH != 0 {
        Vec::new()
    } else {
        guest.read_path(path)?
    };
    if path.is_empty() && how & AT_EMPTY_PATH != 0 && int(dirfd) != libc::AT_FDCWD {
        return Inode::of(files, &files.get(dirfd)?.kind);
    }
    let lookup = Lookup {
        dirfd,
        path,
        empty_is_here: how & AT_EMPTY_PATH != 0,
    };
    let (absolute, target) = shared.find(files, &lookup, how & AT_SYMLINK_NOFOLLOW == 0)?;
    let attributes = match target {
        Target::Node(id) => Inode::node(files.overlay.tree().node(id)?),
        Target::Device(device) => Inode::device(device),
        Target::Report(_) => Inode::report(),
        Target::Passage | Target::Descriptors => Inode::passage(),
        Target::Descriptor(_) if how & AT_SYMLINK_NOFOLLOW != 0 => {
            Inode::made_up(libc::S_IFLNK | 0o777)
        }
        Target::Descriptor(fd) => {
            let file = files.get(fd).map_err(|_| Errno::NOENT)?;
            Inode::of(files, &file.kind)?
        }
        Target::Executable if how & AT_SYMLINK_NOFOLLOW != 0 => {
            Inode::made_up(libc::S_IFLNK | 0o777)
        }
        Target::Executable => Inode::made_up(libc::S_IFREG | 0o555),
        Target::Host(place) => {
            // A slash at the end follows a link even where links are not followed.
            let follow = how & AT_SYMLINK_NOFOLLOW == 0 || absolute.folder;
            if place.link.is_some() && !follow {
                Inode::made_up(libc::S_IFLNK | 0o777)
            } else {
                Inode::host(handle(&place, follow, files, guest)?)?
            }
        }
    };
    if absolute.folder && attributes.mode & libc::S_IFMT != libc::S_IFDIR {
        return Err(Errno::NOTDIR);
    }
    Ok(attributes)
}

/// Fails if nothing is there. A link counts itself.
pub fn check_there(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    (dirfd, path): (u64, u64),
) -> Result<(), Errno> {
    attributes_at(shared, files, guest, (dirfd, path, AT_SYMLINK_NOFOLLOW)).map(|_| ())
}

/// Opens a place for looking at it, and tells the host if its kernel can't.
fn handle(
    place: &Place<'_>,
    follow: bool,
    files: &mut Files,
    guest: &mut Guest<'_>,
) -> Result<OwnedFd, Errno> {
    place
        .handle(follow)
        .map_err(|errno| crate::linux::files::open::explain(errno, files, guest))
}

/// access(2), faccessat(2), faccessat2(2). Nothing may be written.
pub fn access(shared: &Shared, files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [dirfd, path, mode, how, ..] = args;
    let (mode, how) = (flags(mode), flags(how));
    if mode & !7 != 0 || how & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let attributes = attributes_at(shared, files, guest, (dirfd, path, how))?;
    let kind = attributes.mode & libc::S_IFMT;
    if mode & W_OK != 0
        && kind != libc::S_IFCHR
        && !may_change(shared, files, guest, (dirfd, path, how))?
    {
        return Err(Errno::ROFS);
    }
    if mode & 1 != 0 && attributes.mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    if mode & R_OK != 0 && kind == libc::S_IFREG {
        // Whether the host lets us read it shows in trying.
        let path = guest.read_path(path)?;
        let lookup = Lookup {
            dirfd,
            path,
            empty_is_here: false,
        };
        if let Ok((_, Target::Host(place))) = shared.find(files, &lookup, true) {
            place.open(true)?;
        }
    }
    Ok(0)
}

/// True for what may be written to.
fn may_change(
    shared: &Shared,
    files: &Files,
    guest: &Guest<'_>,
    (dirfd, path, how): (u64, u64, u32),
) -> Result<bool, Errno> {
    if !shared.has_overlay() {
        return Ok(false);
    }
    let lookup = Lookup {
        dirfd,
        path: guest.read_path(path)?,
        empty_is_here: how & AT_EMPTY_PATH != 0,
    };
    match shared.resolve(files, &lookup, how & AT_SYMLINK_NOFOLLOW == 0)? {
        Resolved::There(..) => Ok(true),
        Resolved::Volume(spot) => volumes::may_write(&spot).map(|()| true),
        _ => Ok(false),
    }
}

/// readlink(2), readlinkat(2)
pub fn readlink(
    shared: &Shared,
    process: &Process,
    files: &mut Files,
    guest: &mut Guest<'_>,
    args: [u64; 6],
) -> Value {
    let [dirfd, path, address, size, ..] = args;
    if int(size) <= 0 {
        return Err(Errno::INVAL);
    }
    let path = guest.read_path(path)?;
    if path.is_empty() {
        // A link that was opened itself (open(2), O_PATH).
        let text = open_link(files, dirfd)?;
        let len = usize::try_from(int(size)).unwrap_or(0).min(text.len());
        guest.write(address, text.get(..len).unwrap_or_default())?;
        return Ok(count(len));
    }
    let (absolute, target) = shared.find(files, &Lookup::new(dirfd, path), false)?;
    let text = match target {
        Target::Node(id) => match &files.overlay.tree().node(id)?.nature {
            Nature::Link(to) => to.to_vec(),
            _ => return Err(Errno::INVAL),
        },
        Target::Executable => process.executable.to_vec(),
        Target::Descriptor(fd) => name_of(files, fd)?,
        Target::Host(Place { link: Some(to), .. }) if !absolute.folder => to.to_vec(),
        Target::Host(place) if !absolute.folder => {
            let link = handle(&place, false, files, guest)?;
            if FileType::from_raw_mode(rustix::fs::fstat(&link)?.st_mode) != FileType::Symlink {
                return Err(Errno::INVAL);
            }
            rustix::fs::readlinkat(&link, "", Vec::new())?.into_bytes()
        }
        _ => return Err(Errno::INVAL),
    };
    let len = usize::try_from(int(size)).unwrap_or(0).min(text.len());
    guest.write(address, text.get(..len).unwrap_or_default())?;
    Ok(count(len))
}

/// What a link leads to that a descriptor stands for.
fn open_link(files: &Files, fd: u64) -> Result<Vec<u8>, Errno> {
    match &files.get(fd).map_err(|_| Errno::NOENT)?.kind {
        Kind::Node(id, _) => match &files.overlay.tree().node(*id)?.nature {
            Nature::Link(to) => Ok(to.to_vec()),
            _ => Err(Errno::NOENT),
        },
        Kind::Handle(link) => {
            let to = rustix::fs::readlinkat(&**link, "", Vec::new());
            to.map(|to| to.into_bytes()).map_err(|_| Errno::NOENT)
        }
        _ => Err(Errno::NOENT),
    }
}

/// What a link in /proc/self/fd leads to (proc_pid_fd(5)).
fn name_of(files: &Files, fd: u64) -> Result<Vec<u8>, Errno> {
    Ok(match &files.get(fd).map_err(|_| Errno::NOENT)?.kind {
        Kind::Node(_, path) | Kind::Folder(_, path) => path.to_vec(),
        Kind::File(file) | Kind::Handle(file) => file.seen().to_vec(),
        Kind::Stdin => b"/dev/null".to_vec(),
        Kind::Device(device) => match device {
            Device::Null => b"/dev/null".to_vec(),
            Device::Zero => b"/dev/zero".to_vec(),
            Device::Full => b"/dev/full".to_vec(),
            Device::Random => b"/dev/random".to_vec(),
            Device::Urandom => b"/dev/urandom".to_vec(),
            Device::Tty => b"/dev/tty".to_vec(),
        },
        Kind::PipeReader(pipe) | Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe) => {
            match files.pipes.name(*pipe) {
                Some(name) => name.path.to_vec(),
                None => format!("pipe:[{pipe}]").into_bytes(),
            }
        }
        Kind::Inotify => b"anon_inode:inotify".to_vec(),
        Kind::Socket(id) => format!("socket:[{id}]").into_bytes(),
        Kind::Epoll(_) => b"anon_inode:[eventpoll]".to_vec(),
        Kind::EventFd(_) => b"anon_inode:[eventfd]".to_vec(),
        Kind::TimerFd(_) => b"anon_inode:[timerfd]".to_vec(),
        Kind::SignalFd(_) => b"anon_inode:[signalfd]".to_vec(),
        Kind::Pidfd(_) => b"anon_inode:[pidfd]".to_vec(),
        _ => b"anon_inode:[text]".to_vec(),
    })
}

/// What a call would do to the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Make something new: mkdir(2), symlink(2), mknod(2), link(2).
    Create,
    /// Change or remove what is there: unlink(2), rename(2), chmod(2), truncate(2), utimensat(2) …
    Existing,
}

/// Refuses a change: EROFS for what may be read, ENOENT or EACCES for what is not there.
pub fn refuse(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: (u64, u64),
    change: Change,
) -> Errno {
    let (dirfd, path) = at;
    let exists = attributes_at(shared, files, guest, (dirfd, path, AT_SYMLINK_NOFOLLOW));
    match (exists, change) {
        (Ok(_), Change::Create) => Errno::EXIST,
        (Ok(_), Change::Existing) => Errno::ROFS,
        (Err(Errno::NOENT), Change::Create) => Errno::ACCESS,
        (Err(errno), _) => errno,
    }
}

/// ftruncate(2), fchmod(2) and their like.
pub fn refuse_open(files: &Files, fd: u64) -> Errno {
    files.get(fd).map_or_else(|errno| errno, |_| Errno::ROFS)
}

#[cfg(test)]
mod tests {
    use crate::linux::AllowedPath;
    use crate::linux::abi::{field_u32, field_u64};
    use crate::linux::files::fds::O_NOFOLLOW;
    use crate::linux::testing::{self, Machine, SCRATCH, TestFolder};
    use std::os::unix::fs::{MetadataExt, symlink};
    use syscalls::Sysno;

    const HERE: u64 = libc::AT_FDCWD as u64;

    #[test]
    fn stat_tells_what_the_host_knows() {
        let folder = TestFolder::new();
        folder.file("a", &[1; 5000]);
        let host = std::fs::metadata(folder.path("a")).unwrap();
        let mut machine = Machine::new(vec![folder.0.clone()]);
        let path = machine.put_str(1, &folder.path("a"));
        assert_eq!(machine.call(Sysno::stat, &[path, SCRATCH]), 0);
        let stat = machine.get(SCRATCH, 144);
        assert_eq!(field_u64(&stat, 8), host.ino());
        assert_eq!(field_u32(&stat, 24), host.mode());
        assert_eq!(field_u64(&stat, 48), 5000);
        assert_eq!(field_u64(&stat, 88), host.mtime() as u64);
        assert_eq!(field_u64(&stat, 96), host.mtime_nsec() as u64);
        assert_eq!(
            machine.call(Sysno::statx, &[HERE, path, 0, 0x7ff, SCRATCH]),
            0
        );
        let statx = machine.get(SCRATCH, 256);
        assert_eq!(
            u32::from(u16::from_le_bytes([statx[28], statx[29]])),
            host.mode()
        );
        assert_eq!(field_u64(&statx, 32), host.ino());
        assert_eq!(field_u64(&statx, 40), 5000);
        assert_eq!(field_u64(&statx, 112), host.mtime() as u64);
        assert_eq!(machine.call(Sysno::stat, &[path, 0]), -14);
        let outside = machine.put_str(1, "/etc/passwd");
        assert_eq!(machine.call(Sysno::stat, &[outside, SCRATCH]), -2);
    }

    #[test]
    fn standard_descriptors_are_pipes() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::fstat, &[1, SCRATCH]), 0);
        assert_eq!(field_u32(&machine.get(SCRATCH, 144), 24), 0o010600);
        let empty = machine.put_str(1, "");
        assert_eq!(
            machine.call(Sysno::newfstatat, &[0, empty, SCRATCH, 0x1000]),
            0
        );
        let stat = machine.get(SCRATCH, 144);
        assert_eq!(
            (field_u32(&stat, 24), field_u64(&stat, 40)),
            (0o020666, 0x103)
        );
        assert_eq!(machine.call(Sysno::newfstatat, &[0, empty, SCRATCH, 0]), -2);
        assert_eq!(machine.call(Sysno::fstat, &[9, SCRATCH]), -9);
    }

    #[test]
    fn links_are_read_and_not_followed_by_lstat() {
        let folder = TestFolder::new();
        folder.file("a", b"");
        symlink("a", folder.path("link")).unwrap();
        symlink("/etc/passwd", folder.path("out")).unwrap();
        let mut machine = Machine::new(vec![folder.0.clone()]);
        let mode = |machine: &mut Machine, call: Sysno, path: &str| {
            let path = machine.put_str(1, path);
            let result = machine.call(call, &[path, SCRATCH]);
            if result == 0 {
                i64::from(field_u32(&machine.get(SCRATCH, 144), 24) & 0o170000)
            } else {
                result
            }
        };
        assert_eq!(
            mode(&mut machine, Sysno::stat, &folder.path("link")),
            0o100000
        );
        assert_eq!(
            mode(&mut machine, Sysno::lstat, &folder.path("link")),
            0o120000
        );
        assert_eq!(
            mode(&mut machine, Sysno::lstat, &folder.path("out")),
            0o120000
        );
        assert_eq!(mode(&mut machine, Sysno::stat, &folder.path("out")), -13);
        assert_eq!(mode(&mut machine, Sysno::lstat, &folder.path("link/")), -20);
        assert_eq!(mode(&mut machine, Sysno::stat, "/"), 0o040000);

        let link = machine.put_str(1, &folder.path("out"));
        assert_eq!(machine.call(Sysno::readlink, &[link, SCRATCH, 4]), 4);
        assert_eq!(machine.get(SCRATCH, 4), b"/etc");
        let exe = machine.put_str(1, "/proc/self/exe");
        assert_eq!(
            machine.call(Sysno::readlinkat, &[HERE, exe, SCRATCH, 100]),
            8
        );
        assert_eq!(machine.get(SCRATCH, 8), b"/program");
        let file = machine.put_str(1, &folder.path("a"));
        assert_eq!(machine.call(Sysno::readlink, &[file, SCRATCH, 100]), -22);
        assert_eq!(machine.call(Sysno::readlink, &[exe, SCRATCH, 0]), -22);
    }

    /// One that is none in the host: the tenant's settings say that there is one.
    #[test]
    fn a_path_may_be_seen_as_a_link() {
        let folder = TestFolder::new();
        folder.file("a", b"content");
        let mut machine = Machine::new(Vec::new());
        machine.linux = testing::linux_with(vec![AllowedPath {
            seen: "/data/link".into(),
            link: true,
            ..AllowedPath::from(folder.path("a"))
        }]);
        let path = machine.put_str(1, "/data/link");
        let mode = |machine: &mut Machine, call| {
            assert_eq!(machine.call(call, &[path, SCRATCH]), 0);
            field_u32(&machine.get(SCRATCH, 144), 24) & 0o170000
        };
        assert_eq!(mode(&mut machine, Sysno::stat), 0o100000);
        assert_eq!(mode(&mut machine, Sysno::lstat), 0o120000);
        let to = folder.path("a");
        let len = machine.call(Sysno::readlink, &[path, SCRATCH, 4096]);
        assert_eq!(machine.get(SCRATCH, len as usize), to.as_bytes());
        let no_follow = u64::from(O_NOFOLLOW);
        assert_eq!(machine.call(Sysno::open, &[path, no_follow]), -40);
        let fd = machine.call(Sysno::open, &[path, 0]) as u64;
        assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 100]), 7);
        // The place in the host is not one of the program's.
        let real = machine.put_str(1, &to);
        assert_eq!(machine.call(Sysno::stat, &[real, SCRATCH]), -2);
    }

    #[test]
    fn access_knows_that_nothing_is_writable() {
        let folder = TestFolder::new();
        folder.file("a", b"");
        let mut machine = Machine::new(vec![folder.0.clone()]);
        let path = machine.put_str(1, &folder.path("a"));
        assert_eq!(machine.call(Sysno::access, &[path, 0]), 0);
        assert_eq!(machine.call(Sysno::access, &[path, 4]), 0);
        assert_eq!(machine.call(Sysno::access, &[path, 2]), -30);
        assert_eq!(machine.call(Sysno::faccessat, &[HERE, path, 1]), -13);
        assert_eq!(machine.call(Sysno::access, &[path, 8]), -22);
    }
}
