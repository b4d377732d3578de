//! openat(2): files of the host and of the overlay, devices, reports.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::image::exec;
use crate::linux::abi::{Guest, HERE, PAGE, Reply, Value, flags};
use crate::linux::call::Outcome;
use crate::linux::files::copies;
use crate::linux::files::fds::{
    Device, Files, Kind, O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_TMPFILE,
    O_TRUNC, OpenFile,
};
use crate::linux::files::host_files::HostFile;
use crate::linux::files::open_file::How;
use crate::linux::files::overlay::tree::Nature;
use crate::linux::files::paths::{Absolute, Place, Target};
use crate::linux::files::pipe_calls;
use crate::linux::files::pipes::PipeName;
use crate::linux::files::reports::{self, Seen};
use crate::linux::files::resolve::{Lookup, Resolved, Shared, Spot};
use crate::linux::files::volumes;
use crate::linux::memory::MapSource;
use crate::memory::space::vmas::PageSource;

/// Tells the host, once, of a kernel that can't look up paths safely.
pub fn explain(errno: Errno, files: &mut Files, guest: &mut Guest<'_>) -> Errno {
    if errno != Errno::NOSYS {
        return errno;
    }
    if !files.explained {
        files.explained = true;
        guest.note("allowed_paths need openat2(2), which this host does not offer (Linux 5.6, and a container's seccomp filter that lets it pass)");
    }
    Errno::ACCESS
}

/// Opens programs and their dynamic linkers, by the rules that hold for all files.
pub struct Executables<'a> {
    /// What may be read.
    pub shared: &'a Shared,
    /// The working directory.
    pub files: &'a Files,
    /// What runs now, which /proc/self/exe leads to.
    pub running: &'a [u8],
}

impl exec::Files for Executables<'_> {
    fn open_executable(&mut self, path: &[u8]) -> Result<Arc<dyn PageSource>, Errno> {
        let lookup = Lookup::new(HERE, path.to_vec());
        let (absolute, target) = self.shared.find(self.files, &lookup, true)?;
        let place = match target {
            // The program has put a link to that in its own place.
            Target::Executable if path == self.running => return Err(Errno::LOOP),
            Target::Executable => return self.open_executable(self.running),
            Target::Host(place) => place,
            Target::Node(id) => {
                let snapshot = self
                    .files
                    .overlay
                    .snapshot(id, &absolute.text().into(), false);
                return Ok(Arc::new(snapshot.map_err(|_| Errno::ACCESS)?));
            }
            _ => return Err(Errno::ACCESS),
        };
        let right = self.shared.host_files.take()?;
        match place.open(true)? {
            (file, FileType::RegularFile) => {
                let real = self.shared.roots.real_path(&absolute);
                Ok(Arc::new(HostFile::new(file, &real.text(), right)))
            }
            _ => Err(Errno::ACCESS),
        }
    }
}

/// open(2), openat(2), creat(2): from what is allowed, and a few devices and reports. What may not be written to is
/// opened read-only.
pub fn openat(
    shared: &Shared,
    seen: &Seen<'_>,
    files: &mut Files,
    guest: &mut Guest<'_>,
    args: [u64; 4],
) -> Reply {
    let [dirfd, path, how, mode] = args;
    let how = How(flags(how));
    let lookup = Lookup::new(dirfd, guest.read_path(path)?);
    let mode = flags(mode) & !seen.process.umask();
    if let Some(fifo) = fifo_at(shared, files, &lookup, how)? {
        return pipe_calls::open_named(files, seen.tasks.tid(), fifo, how);
    }
    let number = open_path(shared, seen, files, guest, &lookup, how, mode)?;
    Ok(Outcome::Return(number))
}

/// The named pipe that is opened, if one is.
fn fifo_at(
    shared: &Shared,
    files: &Files,
    lookup: &Lookup,
    how: How,
) -> Result<Option<PipeName>, Errno> {
    if how.has(O_PATH) || !files.overlay.tree().has_fifos() {
        return Ok(None);
    }
    let (path, id) = match shared.resolve(files, lookup, how.follows())? {
        Resolved::There(path, Target::Node(id)) => (path, id),
        _ => return Ok(None),
    };
    let is_fifo = matches!(files.overlay.tree().node(id)?.nature, Nature::Fifo);
    match is_fifo {
        false => Ok(None),
        true if how.creates() && how.has(O_EXCL) => Err(Errno::EXIST),
        true if path.folder || how.has(O_DIRECTORY) => Err(Errno::NOTDIR),
        true => Ok(Some(PipeName {
            node: id,
            path: path.text().into(),
        })),
    }
}

fn open_path(
    shared: &Shared,
    seen: &Seen<'_>,
    files: &mut Files,
    guest: &mut Guest<'_>,
    lookup: &Lookup,
    how: How,
    mode: u32,
) -> Value {
    let (absolute, target, writable) = match shared.resolve(files, lookup, how.follows())? {
        // Nothing can be made there.
        Resolved::Outside(path, None) => {
            return Err(match shared.roots.missing(&path) {
                Errno::NOENT if how.creates() => Errno::ACCESS,
                errno => errno,
            });
        }
        Resolved::Outside(absolute, Some(target)) => (absolute, target, false),
        Resolved::There(absolute, target) => (absolute, target, true),
        Resolved::Volume(spot)
            if !how.has(O_PATH) && (how.writes() || how.creates() || how.makes_nameless()) =>
        {
            if how.makes_nameless() && !how.writes() {
                return Err(Errno::INVAL);
            }
            let kind = volumes::open(&shared.host_files, files, &spot, how, mode)?;
            if how.makes_nameless() {
                let how = How(how.0 & !(O_TMPFILE | O_DIRECTORY));
                return finish(files, &spot.path.prefix(spot.path.len()), kind, how);
            }
            return finish(files, &spot.path, kind, how);
        }
        Resolved::Volume(Spot {
            path,
            place,
            found: Some(_),
            ..
        }) => (path, Target::Host(place), false),
        Resolved::Volume(_) => return Err(Errno::NOENT),
        Resolved::Free(absolute) => {
            if !how.creates() || how.has(O_PATH) {
                return Err(Errno::NOENT);
            }
            if absolute.folder {
                return Err(Errno::ISDIR);
            }
            let id = copies::make_file(files, &absolute, mode)?;
            return finish(
                files,
                &absolute,
                Kind::Node(id, absolute.text().into()),
                how,
            );
        }
    };
    let is_new_name = how.creates() && how.has(O_EXCL) && !how.has(O_PATH);
    let kind = match target {
        _ if writable && is_new_name => return Err(Errno::EXIST),
        _ if writable && how.makes_nameless() => {
            if !how.writes() {
                return Err(Errno::INVAL);
            }
            if !copies::is_folder(files, &target)? {
                return Err(Errno::NOTDIR);
            }
            let id = copies::make_nameless(files, mode)?;
            let kind = Kind::Node(id, absolute.text().into());
            let how = How(how.0 & !(O_TMPFILE | O_DIRECTORY));
            return finish(files, &absolute.prefix(absolute.len()), kind, how);
        }
        Target::Node(id) => open_node(shared, files, &absolute, id, how)?,
        Target::Host(place) if writable && how.writes() && !how.has(O_PATH) => {
            let id = copies::copy_up(shared, files, &absolute, &place, how.has(O_TRUNC))?;
            open_node(shared, files, &absolute, id, how)?
        }
        Target::Host(place) => {
            let right = shared.host_files.take()?;
            let follow = how.follows() || absolute.folder;
            // What is there may be opened by a call that would else create it.
            let how = if writable { How(how.0 & !O_CREAT) } else { how };
            let (file, found) =
                open_host(&place, follow, how).map_err(|errno| explain(errno, files, guest))?;
            let file = HostFile::new(file, &absolute.text(), right);
            let file = Arc::new(file.that_changes(place.writes));
            match found {
                FileType::Directory => Kind::Folder(Some(file), absolute.text().into()),
                FileType::RegularFile => Kind::File(file),
                _ => Kind::Handle(file),
            }
        }
        _ if is_new_name => return Err(Errno::EXIST),
        Target::Device(Device::Tty) => return Err(Errno::NXIO),
        Target::Device(device) => Kind::Device(device),
        Target::Descriptors => Kind::Folder(None, absolute.text().into()),
        Target::Descriptor(_) if how.has(O_NOFOLLOW) => return Err(Errno::LOOP),
        Target::Descriptor(fd) => return reopen(shared, files, fd, how),
        Target::Report(_) if how.writes() => return Err(Errno::ACCESS),
        Target::Report(report) => Kind::Text(reports::text(report, seen, guest)),
        Target::Executable if how.has(O_NOFOLLOW) => return Err(Errno::LOOP),
        // The program has put a link to /proc/self/exe in its own place.
        Target::Executable if lookup.path == *seen.process.executable => return Err(Errno::LOOP),
        Target::Executable if guest.memory.space().is_some() => {
            let lookup = Lookup::new(HERE, seen.process.executable.to_vec());
            return open_path(shared, seen, files, guest, &lookup, how, mode);
        }
        // A tenant's own file is not its to read, and need not be where its name says.
        Target::Executable => return Err(Errno::ACCESS),
        Target::Passage if how.writes() || how.creates() => return Err(Errno::ISDIR),
        Target::Passage => Kind::Folder(None, absolute.text().into()),
    };
    finish(files, &absolute, kind, how)
}

/// Opens what is open already, by its link in /proc/self/fd: a file anew, at its start; anything else is the same as before.
fn reopen(shared: &Shared, files: &mut Files, fd: u64, how: How) -> Value {
    let found = files.get(fd).map_err(|_| Errno::NOENT)?.kind.clone();
    match found {
        Kind::Node(id, path) => {
            let absolute = Absolute::new(b"/", &path);
            let kind = open_node(shared, files, &absolute, id, how)?;
            finish(files, &absolute, kind, how)
        }
        Kind::File(file) if !how.writes() && !file.changes() => {
            finish(files, &Absolute::new(b"/", b"file"), Kind::File(file), how)
        }
        Kind::File(file) if file.changes() => {
            let lookup = Lookup::new(HERE, file.seen().to_vec());
            let spot = shared.in_volume(files, &lookup, false)?;
            let spot = spot.ok_or(Errno::NOENT)?;
            let right = shared.host_files.take()?;
            let again = volumes::reopen(files, &spot, &file, how)?;
            let again = HostFile::new(again, &file.seen(), right).that_changes(true);
            finish(files, &spot.path, Kind::File(Arc::new(again)), how)
        }
        Kind::File(_) => Err(Errno::ACCESS),
        _ => files.duplicate(fd, 0, how.has(O_CLOEXEC)),
    }
}

/// Gives what was opened a descriptor.
fn finish(files: &mut Files, absolute: &Absolute, kind: Kind, how: How) -> Value {
    if (absolute.folder || how.has(O_DIRECTORY)) && !matches!(kind, Kind::Folder(..)) {
        return Err(Errno::NOTDIR);
    }
    let node = match kind {
        Kind::Node(id, _) => Some(id),
        _ => None,
    };
    let added = files.add(OpenFile::new(kind, how.0), how.has(O_CLOEXEC));
    if let (Err(_), Some(id)) = (added, node) {
        files.overlay.tree_mut().drop_unused(id);
    }
    i64::try_from(added?).map_err(|_| Errno::MFILE)
}

/// Opens something of the overlay.
fn open_node(
    shared: &Shared,
    files: &mut Files,
    absolute: &Absolute,
    id: u64,
    how: How,
) -> Result<Kind, Errno> {
    let path: Arc<[u8]> = absolute.text().into();
    match files.overlay.tree().node(id)?.nature {
        _ if how.has(O_PATH) && !files.overlay.tree().node(id)?.is_folder() => {}
        Nature::Link(_) => return Err(Errno::LOOP),
        Nature::Socket | Nature::Fifo => return Err(Errno::NXIO),
        Nature::Folder { .. } if how.writes() || how.creates() => return Err(Errno::ISDIR),
        Nature::Folder { opaque } => {
            let beneath = match shared.roots.find(absolute) {
                Some(Target::Host(place)) if !opaque => {
                    let right = shared.host_files.take()?;
                    let (file, _) = open_host(&place, true, How(O_DIRECTORY))?;
                    Some(Arc::new(HostFile::new(file, &path, right)))
                }
                _ => None,
            };
            return Ok(Kind::Folder(beneath, path));
        }
        Nature::File(_) if absolute.folder || how.has(O_DIRECTORY) => return Err(Errno::NOTDIR),
        Nature::File(_) if how.has(O_TRUNC) => files.overlay.set_size(id, 0)?,
        Nature::File(_) => {}
    }
    Ok(Kind::Node(id, path))
}

/// Opens something in the host, as far as that makes and changes nothing.
fn open_host(place: &Place<'_>, follow: bool, how: How) -> Result<(OwnedFd, FileType), Errno> {
    let not_there = |errno| match errno {
        Errno::NOENT if how.creates() => Errno::ROFS,
        errno => errno,
    };
    if how.has(O_PATH) {
        let file = place.handle(follow).map_err(not_there)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        return Ok((file, kind));
    }
    let (file, kind) = place.open(follow).map_err(not_there)?;
    match kind {
        _ if how.creates() && how.has(O_EXCL) => Err(Errno::EXIST),
        FileType::Directory if how.writes() => Err(Errno::ISDIR),
        _ if how.writes() => Err(Errno::ROFS),
        _ => Ok((file, kind)),
    }
}

/// A file to be mapped, and where in it.
pub type Source = (Arc<dyn PageSource>, u64);

/// What `mmap` of a descriptor maps: nothing if it is `/dev/zero`, else a regular file, one of the overlay as it is now.
pub fn map_source(files: &Files, fd: u64, offset: u64) -> Result<Option<Source>, Errno> {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let file = files.get(fd)?;
    match &file.kind {
        _ if !file.readable() => Err(Errno::ACCESS),
        Kind::Device(Device::Zero) => Ok(None),
        Kind::File(file) => Ok(Some((Arc::clone(file) as Arc<dyn PageSource>, offset))),
        Kind::Node(id, path) => {
            let snapshot = files.overlay.snapshot(*id, path, file.writable())?;
            Ok(Some((Arc::new(snapshot), offset)))
        }
        _ => Err(Errno::NODEV),
    }
}

/// The form that `mmap` takes it in.
pub fn as_source(found: &Option<Source>) -> Option<MapSource<'_>> {
    found.as_ref().map(|(file, offset)| MapSource {
        file: &**file,
        offset: *offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH, TestFolder};
    use std::os::unix::fs::symlink;
    use syscalls::Sysno;

    const HERE: u64 = libc::AT_FDCWD as u64;

    fn machine(folder: &TestFolder) -> Machine {
        Machine::new(vec![folder.0.clone()])
    }

    fn open(machine: &mut Machine, path: &str, how: u32) -> i64 {
        let path = machine.put_str(10, path);
        machine.call(Sysno::openat, &[HERE, path, u64::from(how), 0])
    }

    fn contents(machine: &mut Machine, fd: i64) -> Vec<u8> {
        let read = machine.call(Sysno::read, &[fd as u64, SCRATCH, 4096]);
        machine.get(SCRATCH, usize::try_from(read).unwrap())
    }

    #[test]
    fn allowed_files_are_read_and_no_others() {
        let folder = TestFolder::new();
        folder.file("a", b"hello, world");
        let mut machine = machine(&folder);
        let fd = open(&mut machine, &folder.path("a"), 0);
        assert_eq!(fd, 3);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 5]), 5);
        assert_eq!(contents(&mut machine, 3), b", world");
        assert_eq!(machine.call(Sysno::pread64, &[3, SCRATCH, 5, 7]), 5);
        assert_eq!(machine.get(SCRATCH, 5), b"world");
        assert_eq!(machine.call(Sysno::lseek, &[3, 2, 0]), 2);
        assert_eq!(machine.call(Sysno::lseek, &[3, -1i64 as u64, 2]), 11);
        assert_eq!(machine.call(Sysno::lseek, &[3, -20i64 as u64, 1]), -22);
        assert_eq!(machine.call(Sysno::write, &[3, SCRATCH, 1]), -9);
        assert_eq!(open(&mut machine, "/etc/passwd", 0), -2);
        assert_eq!(open(&mut machine, &folder.path("../../etc/passwd"), 0), -2);
        assert_eq!(open(&mut machine, &folder.path("missing"), 0), -2);
        assert_eq!(open(&mut machine, &folder.path("a/"), 0), -20);
        assert_eq!(open(&mut machine, "", 0), -2);
        assert_eq!(machine.call(Sysno::openat, &[HERE, 1, 0]), -14);
    }

    #[test]
    fn links_may_not_leave_what_is_allowed() {
        let (folder, outside) = (TestFolder::new(), TestFolder::new());
        folder.file("a", b"inside");
        outside.file("secret", b"outside");
        symlink("a", folder.path("good")).unwrap();
        symlink(outside.path("secret"), folder.path("absolute")).unwrap();
        symlink("../".repeat(20) + "etc/passwd", folder.path("up")).unwrap();
        symlink(&outside.0, folder.path("folder")).unwrap();
        symlink("loop", folder.path("loop")).unwrap();
        let mut machine = machine(&folder);
        let fd = open(&mut machine, &folder.path("good"), 0);
        assert_eq!(contents(&mut machine, fd), b"inside");
        assert_eq!(open(&mut machine, &folder.path("absolute"), 0), -13);
        assert_eq!(open(&mut machine, &folder.path("up"), 0), -13);
        assert_eq!(open(&mut machine, &folder.path("folder/secret"), 0), -13);
        assert_eq!(open(&mut machine, &folder.path("loop"), 0), -40);
        assert_eq!(open(&mut machine, &folder.path("good"), O_NOFOLLOW), -40);
    }

    #[test]
    fn nothing_is_ever_written() {
        let folder = TestFolder::new();
        folder.file("a", b"x");
        let mut machine = machine(&folder);
        assert_eq!(open(&mut machine, &folder.path("a"), 2), -30);
        assert_eq!(open(&mut machine, &folder.path("a"), O_TRUNC), -30);
        assert_eq!(open(&mut machine, &folder.path("new"), O_CREAT | 1), -30);
        assert_eq!(open(&mut machine, &folder.path("a"), O_CREAT | O_EXCL), -17);
        assert_eq!(open(&mut machine, &folder.path(""), 1), -21);
        assert_eq!(open(&mut machine, "/tmp-new", O_CREAT | 1), -13);
        assert_eq!(open(&mut machine, "/etc/passwd", 1), -2);
        let path = machine.put_str(10, &folder.path("a"));
        let missing = machine.put_str(11, &folder.path("missing"));
        assert_eq!(machine.call(Sysno::unlink, &[path]), -30);
        assert_eq!(machine.call(Sysno::unlink, &[missing]), -2);
        assert_eq!(machine.call(Sysno::mkdir, &[path]), -17);
        assert_eq!(machine.call(Sysno::mkdir, &[missing]), -13);
        assert_eq!(std::fs::read(folder.path("a")).unwrap(), b"x");
    }

    #[test]
    fn only_files_and_folders_are_opened() {
        let folder = TestFolder::new();
        let fifo = std::ffi::CString::new(folder.path("fifo")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
        let mut machine = Machine::new(vec![folder.0.clone(), "/dev".into(), "/proc".into()]);
        assert_eq!(open(&mut machine, &folder.path("fifo"), 0), -13);
        assert_eq!(open(&mut machine, &folder.path("socket"), 0), -13);
        assert_eq!(open(&mut machine, "/dev/tty", 0), -13);
        assert_eq!(open(&mut machine, "/proc/self/environ", 0), -13);
        assert_eq!(open(&mut machine, "/proc/1/status", 0), -13);
        assert_eq!(open(&mut machine, &folder.path("fifo"), O_PATH), 3);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 1]), -9);
    }

    #[test]
    fn an_allowed_file_does_not_allow_its_neighbours() {
        let folder = TestFolder::new();
        folder.file("a", b"this");
        folder.file("b", b"not this");
        let mut machine = Machine::new(vec![folder.0.join("a")]);
        let fd = open(&mut machine, &folder.path("a"), 0);
        assert_eq!(contents(&mut machine, fd), b"this");
        assert_eq!(open(&mut machine, &folder.path("b"), 0), -2);
        assert_eq!(open(&mut machine, &folder.path("a/x"), 0), -20);
    }

    #[test]
    fn duplicates_share_an_offset_and_forks_do_not() {
        let folder = TestFolder::new();
        folder.file("a", b"0123456789");
        let mut machine = machine(&folder);
        assert_eq!(open(&mut machine, &folder.path("a"), 0), 3);
        assert_eq!(machine.call(Sysno::dup, &[3]), 4);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 4]), 4);
        let master = machine.linux.clone();
        assert_eq!(contents(&mut machine, 4), b"456789");
        machine.linux.restore_from(&master);
        assert_eq!(contents(&mut machine, 3), b"456789");
        machine.call(Sysno::close, &[3]);
        machine.call(Sysno::close, &[4]);
        machine.linux.restore_from(&master);
        assert_eq!(contents(&mut machine, 4), b"456789");
    }

    #[test]
    fn host_files_are_bounded() {
        let folder = TestFolder::new();
        folder.file("a", b"");
        let mut machine = machine(&folder);
        let opened = (0..1000)
            .take_while(|_| open(&mut machine, &folder.path("a"), 0) > 0)
            .count();
        assert_eq!(opened, 64);
        assert_eq!(open(&mut machine, &folder.path("a"), 0), -24);
    }

    #[test]
    fn devices_and_reports() {
        let mut machine = Machine::new(Vec::new());
        let fd = open(&mut machine, "/dev/null", 2) as u64;
        assert_eq!(machine.call(Sysno::write, &[fd, SCRATCH, 100]), 100);
        assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 100]), 0);
        let fd = open(&mut machine, "/dev/zero", 0) as u64;
        machine.put(0, &[1; 10]);
        assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 10]), 10);
        assert_eq!(machine.get(SCRATCH, 10), [0; 10]);
        let fd = open(&mut machine, "/dev/urandom", 0) as u64;
        assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 10]), 10);
        assert_ne!(machine.get(SCRATCH, 10), [0; 10]);
        let fd = open(&mut machine, "/dev/full", 1) as u64;
        assert_eq!(machine.call(Sysno::write, &[fd, SCRATCH, 10]), -28);
        let fd = open(&mut machine, "/sys/devices/system/cpu/online", 0);
        assert_eq!(contents(&mut machine, fd), b"0\n");
        assert_eq!(open(&mut machine, "/proc/self/maps", 1), -13);
        assert_eq!(open(&mut machine, "/proc/self/exe", 0), -13);
        assert!(open(&mut machine, "/", 0) > 0);
    }

    #[test]
    fn files_are_mapped_as_copies() {
        let folder = TestFolder::new();
        folder.file("a", &[7; 5000]);
        let mut machine = machine(&folder);
        let fd = open(&mut machine, &folder.path("a"), 0) as u64;
        let at = machine.call(Sysno::mmap, &[0, 3 * 4096, 1, 2, fd, 0]) as u64;
        assert_eq!(machine.get(at, 5000), [7; 5000]);
        assert_eq!(
            machine.get(at + 5000, 3 * 4096 - 5000),
            [0; 3 * 4096 - 5000]
        );
        let at = machine.call(Sysno::mmap, &[0, 4096, 3, 2, fd, 4096]) as u64;
        assert_eq!(machine.get(at, 905), [[7; 904].as_slice(), &[0]].concat());
        assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 1, fd, 0]), -13);
        assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, fd, 1]), -22);
        assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, 99, 0]), -9);
        assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, 1, 0]), -13);
        let zero = open(&mut machine, "/dev/zero", 2) as u64;
        assert!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, zero, 0]) > 0);
    }
}
