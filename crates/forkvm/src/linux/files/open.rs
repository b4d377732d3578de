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
use crate::linux::files::state_file;
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
    if let Some(state) = &shared.state
        && state_file::is_at(&lookup.path)
        && !how.has(O_PATH | O_DIRECTORY)
    {
        return Ok(Outcome::Return(state.open(
            files,
            how,
            how.has(O_CLOEXEC),
        )?));
    }
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
