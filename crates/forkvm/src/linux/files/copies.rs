//! What the overlay gets: new files and folders, and copies of the host's at their first change.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::linux::abi::{CHUNK, length};
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::host_files::HostFile;
use crate::linux::files::overlay::content::Content;
use crate::linux::files::overlay::now;
use crate::linux::files::overlay::tree::{Nature, Node};
use crate::linux::files::paths::{Absolute, Place, Target};
use crate::linux::files::resolve::{Lookup, Resolved, Shared};

/// Files of the host up to this size are copied whole at their first change; others piece by piece, for which the host's
/// stays open.
const COPIED_WHOLE: u64 = 256 << 10;

/// Makes the folders that may be written to where the host has none.
pub fn make_places(shared: &Shared, files: &mut Files) {
    for place in &shared.writable {
        if !matches!(shared.roots.find(place), Some(Target::Host(_))) {
            let folder = Node::new(Nature::Folder { opaque: false }, 0o1777, now());
            let tree = files.overlay.tree_mut();
            // There is room for them in an empty tree.
            if let Ok(id) = tree.add(folder) {
                let _ = tree.name(&place.text(), id);
            }
        }
    }
}

/// Something new, which belongs to the task that makes it.
fn new_node(files: &Files, nature: Nature, mode: u32) -> Node {
    let mut node = Node::new(nature, mode, now());
    (node.uid, node.gid) = files.overlay.owner;
    node
}

/// A new, empty file.
pub fn make_file(files: &mut Files, path: &Absolute, mode: u32) -> Result<u64, Errno> {
    make(files, path, Nature::File(Content::default()), mode)
}

/// A new, empty file without a name, which goes when it is closed.
pub fn make_nameless(files: &mut Files, mode: u32) -> Result<u64, Errno> {
    let file = new_node(files, Nature::File(Content::default()), mode);
    files.overlay.tree_mut().add(file)
}

/// A copy of a file of the host, without a name, that counts as open.
pub fn copy_of(files: &mut Files, file: &HostFile) -> Result<u64, Errno> {
    let found = rustix::fs::fstat(file)?;
    let mut node = Node::new(Nature::File(Content::default()), found.st_mode, now());
    node.identity = (found.st_dev, found.st_ino);
    let id = files.overlay.tree_mut().add(node)?;
    files.overlay.tree_mut().opened(id)?;
    let copied = copy_bytes(files, file, id);
    if copied.is_err() {
        files.overlay.tree_mut().closed(id);
    }
    copied.map(|()| id)
}

fn copy_bytes(files: &mut Files, file: &HostFile, id: u64) -> Result<(), Errno> {
    let mut piece = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let got = match rustix::io::pread(file, &mut piece, at) {
            Ok(0) => return Ok(()),
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let bytes = piece.get(..got).unwrap_or_default();
        if files.overlay.write(id, at, bytes)? < got {
            return Err(Errno::NOSPC);
        }
        at = at.saturating_add(length(got));
    }
}

/// Something new with this name.
pub fn make(files: &mut Files, path: &Absolute, nature: Nature, mode: u32) -> Result<u64, Errno> {
    let node = new_node(files, nature, mode);
    let tree = files.overlay.tree_mut();
    let id = tree.add(node)?;
    if let Err(errno) = tree.name(&path.text(), id) {
        // Nobody has it: it goes again.
        tree.drop_unused(id);
        return Err(errno);
    }
    touch_parent(files, path);
    Ok(id)
}

/// The folder around a path was changed. One that is only the host's does not tell.
pub fn touch_parent(files: &mut Files, path: &Absolute) {
    let parent = files.overlay.known(&path.parent().text());
    if let Some(id) = parent
        && let Ok(node) = files.overlay.tree_mut().node_mut(id)
    {
        let now = now();
        node.times = [node.times[0], now, now];
    }
}

/// Has the overlay own what the host has at a path, with its content unless that is not wanted.
pub fn copy_up(
    shared: &Shared,
    files: &mut Files,
    path: &Absolute,
    place: &Place<'_>,
    empty: bool,
) -> Result<u64, Errno> {
    let right = shared.host_files.take()?;
    let handle = place.handle(false)?;
    let found = rustix::fs::fstat(&handle)?;
    let nature = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Nature::Folder { opaque: false },
        FileType::Symlink => {
            let to = rustix::fs::readlinkat(&handle, c"", Vec::new())?;
            Nature::Link(to.into_bytes().into())
        }
        FileType::RegularFile if empty => Nature::File(Content::default()),
        FileType::RegularFile => {
            let (file, _) = place.open(false)?;
            let len = u64::try_from(found.st_size).unwrap_or(0);
            let file = Arc::new(HostFile::new(file, &path.text(), right));
            let content = Content::of_host(file, len);
            if len <= COPIED_WHOLE {
                let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::FBIG)?];
                content.read(0, &mut bytes)?;
                Nature::File(files.overlay.content_of(&bytes)?)
            } else {
                Nature::File(content)
            }
        }
        // A device, a pipe or a socket of the host's.
        _ => return Err(Errno::ACCESS),
    };
    let moment = |seconds: i64, nanos: u64| (seconds, u32::try_from(nanos).unwrap_or(0));
    let mut node = Node::new(nature, found.st_mode, now());
    node.uid = found.st_uid;
    node.gid = found.st_gid;
    node.identity = (found.st_dev, found.st_ino);
    node.times = [
        moment(found.st_atime, found.st_atime_nsec),
        moment(found.st_mtime, found.st_mtime_nsec),
        moment(found.st_ctime, found.st_ctime_nsec),
    ];
    let tree = files.overlay.tree_mut();
    let id = tree.add(node)?;
    if let Err(errno) = tree.name(&path.text(), id) {
        tree.drop_unused(id);
        return Err(errno);
    }
    Ok(id)
}

/// The node at a path, made from the host's if need be. `None` if nothing may be written there.
pub fn node_at(
    shared: &Shared,
    files: &mut Files,
    lookup: &Lookup,
    follow: bool,
) -> Result<Option<u64>, Errno> {
    match shared.resolve(files, lookup, follow)? {
        Resolved::There(_, Target::Node(id)) => Ok(Some(id)),
        Resolved::There(path, Target::Host(place)) => {
            copy_up(shared, files, &path, &place, false).map(Some)
        }
        Resolved::Free(_) => Err(Errno::NOENT),
        Resolved::Volume(spot) => spot.found.map(|_| None).ok_or(Errno::NOENT),
        Resolved::Outside(_, Some(Target::Descriptor(fd)))
        | Resolved::There(_, Target::Descriptor(fd))
            if follow =>
        {
            node_of(shared, files, fd)
        }
        Resolved::There(..) | Resolved::Outside(..) => Ok(None),
    }
}

/// The node behind a descriptor, likewise.
pub fn node_of(shared: &Shared, files: &mut Files, fd: u64) -> Result<Option<u64>, Errno> {
    let path = match &files.get(fd)?.kind {
        Kind::Node(id, _) => return Ok(Some(*id)),
        Kind::Folder(_, path) => Arc::clone(path),
        Kind::File(file) => file.seen(),
        _ => return Ok(None),
    };
    let lookup = Lookup::new(crate::linux::abi::HERE, path.to_vec());
    node_at(shared, files, &lookup, false)
}

/// True for a folder, and not for a link to one.
pub fn is_folder(files: &Files, target: &Target<'_>) -> Result<bool, Errno> {
    Ok(match target {
        Target::Node(id) => files.overlay.tree().node(*id)?.is_folder(),
        Target::Passage | Target::Descriptors => true,
        Target::Host(place) => {
            let found = rustix::fs::fstat(place.handle(false)?)?;
            FileType::from_raw_mode(found.st_mode) == FileType::Directory
        }
        _ => false,
    })
}
