//! Making, removing and moving files and folders, in the overlay: mkdir(2), unlink(2), rename(2), link(2), symlink(2),
//! mknod(2). Where nothing may be written they are refused (`stat`).

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::linux::abi::{Guest, Value};
use crate::linux::files::copies::{
    copy_up, is_folder, make, make_file, node_at, node_of, touch_parent,
};
use crate::linux::files::fds::Files;
use crate::linux::files::folders;
use crate::linux::files::overlay::now;
use crate::linux::files::overlay::tree::Nature;
use crate::linux::files::paths::{Absolute, Target};
use crate::linux::files::resolve::{Lookup, Resolved, Shared, Spot};
use crate::linux::files::stat::{self, Change};
use crate::linux::files::volumes;

/// unlinkat(2) as rmdir(2).
pub const AT_REMOVEDIR: u32 = 0x200;
const AT_SYMLINK_FOLLOW: u32 = 0x400;
const AT_EMPTY_PATH: u32 = 0x1000;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
/// Longest symbolic link.
const LINK_MAX: usize = 4095;
/// A path as a call has it: descriptor, address.
pub type At = (u64, u64);

/// Where something new goes, or `None` if nothing may be made there.
fn free_place(
    shared: &Shared,
    files: &Files,
    guest: &Guest<'_>,
    (dirfd, path): At,
) -> Result<Option<Absolute>, Errno> {
    let lookup = Lookup::new(dirfd, guest.read_path(path)?);
    match shared.resolve(files, &lookup, false)? {
        Resolved::Free(path) => Ok(Some(path)),
        Resolved::There(..) => Err(Errno::EXIST),
        Resolved::Outside(..) | Resolved::Volume(_) => Ok(None),
    }
}

/// Where something is, or can be made, among the host's own files that the program may change.
fn spot<'a>(
    shared: &'a Shared,
    files: &Files,
    guest: &Guest<'_>,
    (dirfd, path): At,
) -> Result<Option<Spot<'a>>, Errno> {
    let lookup = Lookup::new(dirfd, guest.read_path(path)?);
    shared.in_volume(files, &lookup, false)
}

/// Refuses a change.
pub fn refused(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: At,
    change: Change,
) -> Value {
    Err(stat::refuse(shared, files, guest, at, change))
}

/// mkdir(2), mkdirat(2)
pub fn mkdir(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: At,
    mode: u32,
) -> Value {
    if let Some(spot) = spot(shared, files, guest, at)? {
        return volumes::mkdir(files, &spot, mode).map(|()| 0);
    }
    let Some(path) = free_place(shared, files, guest, at)? else {
        return refused(shared, files, guest, at, Change::Create);
    };
    make(files, &path, Nature::Folder { opaque: true }, mode)?;
    Ok(0)
}

/// mknod(2), mknodat(2): all but devices.
pub fn mknod(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: At,
    mode: u32,
) -> Value {
    if let Some(spot) = spot(shared, files, guest, at)? {
        return volumes::mknod(files, &spot, mode).map(|()| 0);
    }
    let Some(path) = free_place(shared, files, guest, at)? else {
        return refused(shared, files, guest, at, Change::Create);
    };
    if path.folder {
        return Err(Errno::NOENT);
    }
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => make_file(files, &path, mode)?,
        libc::S_IFIFO => make(files, &path, Nature::Fifo, mode)?,
        libc::S_IFSOCK => make(files, &path, Nature::Socket, mode)?,
        libc::S_IFCHR | libc::S_IFBLK | libc::S_IFDIR => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    };
    Ok(0)
}

/// symlink(2), symlinkat(2)
pub fn symlink(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    to: u64,
    at: At,
) -> Value {
    let to = guest.read_path(to)?;
    if let Some(spot) = spot(shared, files, guest, at)? {
        return volumes::symlink(files, &to, &spot).map(|()| 0);
    }
    let Some(path) = free_place(shared, files, guest, at)? else {
        return refused(shared, files, guest, at, Change::Create);
    };
    if to.is_empty() || path.folder {
        return Err(Errno::NOENT);
    }
    if to.len() > LINK_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    make(files, &path, Nature::Link(to.into()), 0o777)?;
    Ok(0)
}

/// link(2), linkat(2)
pub fn link(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    (from, to): (At, At),
    how: u32,
) -> Value {
    if how & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let old = guest.read_path(from.1)?;
    let open = old.is_empty() && how & AT_EMPTY_PATH != 0;
    let follow = how & AT_SYMLINK_FOLLOW != 0;
    if let Some(target) = spot(shared, files, guest, to)?
        && !open
    {
        let lookup = Lookup::new(from.0, old);
        return match shared.in_volume(files, &lookup, follow)? {
            Some(source) => volumes::link(files, &source, &target).map(|()| 0),
            None => shared.find(files, &lookup, follow).and(Err(Errno::XDEV)),
        };
    }
    let id = if open {
        node_of(shared, files, from.0)?
    } else {
        let lookup = Lookup::new(from.0, old);
        // What is copied up for nothing does no harm.
        node_at(shared, files, &lookup, follow)?
    };
    let Some(path) = free_place(shared, files, guest, to)? else {
        return refused(shared, files, guest, to, Change::Create);
    };
    let Some(id) = id else {
        // It is the host's, or nothing at all.
        return match stat::refuse(shared, files, guest, from, Change::Existing) {
            errno if errno == Errno::ROFS || open => Err(Errno::XDEV),
            errno => Err(errno),
        };
    };
    if files.overlay.tree().node(id)?.is_folder() {
        return Err(Errno::PERM);
    }
    if path.folder {
        return Err(Errno::NOENT);
    }
    files.overlay.tree_mut().name(&path.text(), id)?;
    changed(files, id)?;
    touch_parent(files, &path);
    Ok(0)
}

fn changed(files: &mut Files, id: u64) -> Result<(), Errno> {
    let node = files.overlay.tree_mut().node_mut(id)?;
    node.times = [node.times[0], node.times[1], now()];
    Ok(())
}

/// unlink(2), unlinkat(2), rmdir(2)
pub fn unlink(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    at: At,
    how: u32,
) -> Value {
    if how & !AT_REMOVEDIR != 0 {
        return Err(Errno::INVAL);
    }
    let mut lookup = Lookup::new(at.0, guest.read_path(at.1)?);
    // A slash at the end does not follow a link here.
    let slash = lookup.path.len() > 1 && lookup.path.ends_with(b"/");
    while lookup.path.len() > 1 && lookup.path.ends_with(b"/") {
        lookup.path.pop();
    }
    let removes_folder = how & AT_REMOVEDIR != 0;
    let (path, target) = match shared.resolve(files, &lookup, false)? {
        Resolved::There(path, target) => (path, target),
        Resolved::Volume(spot) => {
            let folder = spot.found == Some(FileType::Directory);
            spot.found.ok_or(Errno::NOENT)?;
            check_last(&lookup, (folder, slash), removes_folder)?;
            return volumes::unlink(&spot, removes_folder).map(|()| 0);
        }
        Resolved::Free(_) => return Err(Errno::NOENT),
        Resolved::Outside(..) => return refused(shared, files, guest, at, Change::Existing),
    };
    check_last(&lookup, (is_folder(files, &target)?, slash), removes_folder)?;
    if removes_folder {
        check_removable(shared, files, &path)?;
        files.overlay.tree_mut().remove_beneath(&path.text());
    }
    remove(shared, files, &path)?;
    Ok(0)
}

/// Whether what is there, a folder or not, can be removed as it is named.
fn check_last(
    lookup: &Lookup,
    (folder, slash): (bool, bool),
    removes_folder: bool,
) -> Result<(), Errno> {
    let last = lookup.path.rsplit(|&byte| byte == b'/').next();
    match last {
        _ if !removes_folder && folder => Err(Errno::ISDIR),
        _ if !removes_folder && slash => Err(Errno::NOTDIR),
        _ if !removes_folder => Ok(()),
        Some(b".") => Err(Errno::INVAL),
        Some(b"..") => Err(Errno::NOTEMPTY),
        _ if !folder => Err(Errno::NOTDIR),
        _ => Ok(()),
    }
}

/// Takes away what is at a path.
fn remove(shared: &Shared, files: &mut Files, path: &Absolute) -> Result<(), Errno> {
    let hide = shared.is_in_host(path);
    let text = path.text();
    if let Some(id) = files.overlay.known(&text) {
        changed(files, id)?;
    }
    files.overlay.tree_mut().remove(&text, hide)?;
    touch_parent(files, path);
    Ok(())
}

/// A folder can be removed if nothing is in it, and it is not one that others hang on.
fn check_removable(shared: &Shared, files: &Files, path: &Absolute) -> Result<(), Errno> {
    if shared.writable.contains(path) || shared.roots.leads_on(path) {
        return Err(Errno::BUSY);
    }
    if folders::is_empty(shared, files, path)? {
        Ok(())
    } else {
        Err(Errno::NOTEMPTY)
    }
}

/// rename(2), renameat(2), renameat2(2). A folder that is the host's, if only in part, is not moved: programs copy it then,
/// as they do where another file system begins.
pub fn rename(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    (from, to): (At, At),
    how: u32,
) -> Value {
    if !matches!(how, 0 | RENAME_NOREPLACE | RENAME_EXCHANGE) {
        return Err(Errno::INVAL);
    }
    let old = Lookup::new(from.0, guest.read_path(from.1)?);
    let new = Lookup::new(to.0, guest.read_path(to.1)?);
    let is_itself = |lookup: &Lookup| {
        let last = lookup.path.rsplit(|&byte| byte == b'/').next();
        matches!(last, Some(b"." | b".."))
    };
    if is_itself(&old) || is_itself(&new) {
        return Err(Errno::BUSY);
    }
    match (
        shared.in_volume(files, &old, false)?,
        shared.in_volume(files, &new, false)?,
    ) {
        (Some(source), Some(target)) => return volumes::rename(&source, &target, how).map(|()| 0),
        (None, None) => {}
        // One of them is elsewhere.
        _ => return shared.find(files, &old, false).and(Err(Errno::XDEV)),
    }
    let (old_path, source) = match shared.resolve(files, &old, false)? {
        Resolved::There(path, target) => (path, target),
        Resolved::Free(_) => return Err(Errno::NOENT),
        Resolved::Outside(..) | Resolved::Volume(_) => {
            return refused(shared, files, guest, from, Change::Existing);
        }
    };
    let (new_path, replaced) = match shared.resolve(files, &new, false)? {
        Resolved::There(..) if how & RENAME_NOREPLACE != 0 => return Err(Errno::EXIST),
        Resolved::There(path, target) => (path, Some(target)),
        Resolved::Free(path) => (path, None),
        Resolved::Outside(..) | Resolved::Volume(_) => return Err(Errno::XDEV),
    };
    if how == RENAME_EXCHANGE {
        let target = replaced.ok_or(Errno::NOENT)?;
        return exchange(shared, files, (&old_path, source), (&new_path, target));
    }
    let folder = is_folder(files, &source)?;
    if !folder && (old_path.folder || new_path.folder) {
        return Err(Errno::NOTDIR);
    }
    if old_path.len() == new_path.len() && new_path.starts_with(&old_path) {
        return Ok(0);
    }
    if folder && new_path.starts_with(&old_path) {
        return Err(Errno::INVAL);
    }
    let id = match source {
        Target::Node(id) => id,
        Target::Host(place) if !folder => copy_up(shared, files, &old_path, &place, false)?,
        _ => return Err(Errno::XDEV),
    };
    if folder {
        let whole = matches!(
            files.overlay.tree().node(id)?.nature,
            Nature::Folder { opaque: true }
        );
        if shared.writable.contains(&old_path) {
            return Err(Errno::BUSY);
        }
        if !whole {
            return Err(Errno::XDEV);
        }
    }
    if let Some(target) = &replaced {
        match (folder, is_folder(files, target)?) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) => check_removable(shared, files, &new_path)?,
            (false, false) => {}
        }
        // Two names of one file stay.
        if matches!(target, Target::Node(other) if *other == id) {
            return Ok(0);
        }
    }
    let (old_text, new_text) = (old_path.text(), new_path.text());
    let tree = files.overlay.tree_mut();
    if folder {
        tree.remove_beneath(&new_text);
        tree.move_beneath(&old_text, &new_text)?;
    }
    tree.name(&new_text, id)?;
    changed(files, id)?;
    remove(shared, files, &old_path)?;
    touch_parent(files, &new_path);
    Ok(0)
}

/// renameat2(2) with `RENAME_EXCHANGE`.
fn exchange(
    shared: &Shared,
    files: &mut Files,
    (old_path, source): (&Absolute, Target<'_>),
    (new_path, target): (&Absolute, Target<'_>),
) -> Value {
    let folders = [is_folder(files, &source)?, is_folder(files, &target)?];
    let names = [old_path, new_path].into_iter().zip(folders);
    if names.clone().any(|(path, folder)| path.folder && !folder) {
        return Err(Errno::NOTDIR);
    }
    if old_path.len() == new_path.len() && new_path.starts_with(old_path) {
        return Ok(0);
    }
    if new_path.starts_with(old_path) || old_path.starts_with(new_path) {
        return Err(Errno::INVAL);
    }
    for ((path, folder), target) in names.zip([source, target]) {
        let id = match target {
            Target::Node(id) => id,
            Target::Host(place) if !folder => copy_up(shared, files, path, &place, false)?,
            _ => return Err(Errno::XDEV),
        };
        if shared.writable.contains(path) {
            return Err(Errno::BUSY);
        }
        // As where one is moved, it has to be in memory whole.
        if matches!(
            files.overlay.tree().node(id)?.nature,
            Nature::Folder { opaque: false }
        ) {
            return Err(Errno::XDEV);
        }
        changed(files, id)?;
    }
    let tree = files.overlay.tree_mut();
    tree.exchange(&old_path.text(), &new_path.text())?;
    touch_parent(files, old_path);
    touch_parent(files, new_path);
    Ok(0)
}
