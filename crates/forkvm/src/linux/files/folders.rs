//! Folders: getdents64(2), getcwd(2), chdir(2), fchdir(2).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use crate::linux::abi::{Guest, PATH_MAX, Value, count, length};
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::host_files::HostFile;
use crate::linux::files::open::explain;
use crate::linux::files::overlay::tree::{Entry, Nature};
use crate::linux::files::paths::{Absolute, Target};
use crate::linux::files::resolve::{Lookup, Shared};

/// Most bytes of entries one call gives.
const MAX_ENTRIES: usize = 32 << 10;

/// `d_type` of a folder (dirent.h).
const DT_DIR: u8 = 4;
/// `d_type` where it is not known.
const DT_UNKNOWN: u8 = 0;

/// getdents64(2). The host's folder is opened anew for each call, since the position in an open one is shared by
/// all forks; the position kept here is the file system's own.
pub fn getdents64(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    address: u64,
    size: u64,
) -> Value {
    let file = files.get(fd)?;
    if !file.readable() {
        return Err(Errno::BADF);
    }
    let most = usize::try_from(size)
        .unwrap_or(MAX_ENTRIES)
        .min(MAX_ENTRIES);
    let (entries, position) = match &file.kind {
        // Names come and go there: each has the position that the host knows.
        Kind::Folder(Some(folder), _) if folder.changes() => list(folder, file.offset, most)?,
        Kind::Folder(folder, path) if shared.has_overlay() => {
            let path = Absolute::new(b"/", path);
            merged(shared, files, (folder.as_deref(), &path), file.offset, most)?
        }
        Kind::Folder(Some(folder), _) => list(folder, file.offset, most)?,
        Kind::Folder(None, _) => passage(file.offset, most)?,
        _ => return Err(Errno::NOTDIR),
    };
    guest.write(address, &entries)?;
    files.get_mut(fd)?.offset = position;
    Ok(count(entries.len()))
}

fn list(folder: &HostFile, position: u64, most: usize) -> Result<(Vec<u8>, u64), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(folder, ".", flags, Mode::empty())?;
    if position != 0 {
        seek(&opened, SeekFrom::Start(position))?;
    }
    let mut buffer = Vec::with_capacity(MAX_ENTRIES);
    let mut folder = RawDir::new(&opened, buffer.spare_capacity_mut());
    let (mut entries, mut reached) = (Vec::new(), position);
    while let Some(entry) = folder.next() {
        let entry = entry?;
        let next = entry.next_entry_cookie();
        // The kernel's DT_* values are these of `st_mode`, shifted.
        let kind = (entry.file_type().as_raw_mode() >> 12).to_le_bytes()[0];
        if !push(
            &mut entries,
            most,
            (entry.ino(), next, kind),
            entry.file_name().to_bytes(),
        )? {
            break;
        }
        reached = next;
    }
    Ok((entries, reached))
}

/// A folder that only leads to others shows itself and what is above.
fn passage(position: u64, most: usize) -> Result<(Vec<u8>, u64), Errno> {
    let mut entries = Vec::new();
    let mut reached = position;
    for (next, name) in [(1, &b"."[..]), (2, b"..")] {
        if next > position && push(&mut entries, most, (1, next, DT_DIR), name)? {
            reached = next;
        }
    }
    Ok((entries, reached))
}

/// Positions from which on there is what the overlay has, and what leads to allowed paths. Those before are the host's, in
/// the order that it gives them.
const OVERLAY: u64 = 1 << 40;
const PASSAGES: u64 = 1 << 41;

/// What a folder has in the host and in the overlay. A name keeps its position whatever is removed meanwhile.
fn merged(
    shared: &Shared,
    files: &Files,
    (folder, path): (Option<&HostFile>, &Absolute),
    position: u64,
    most: usize,
) -> Result<(Vec<u8>, u64), Errno> {
    let (mut entries, mut reached) = passage(position, most)?;
    let tree = files.overlay.tree();
    let text = path.text();
    let mut add = |entry: (u64, u64, u8), name: &[u8]| {
        let fits = push(&mut entries, most, entry, name)?;
        if fits {
            reached = entry.1;
        }
        Ok::<_, Errno>(fits)
    };
    let known: BTreeMap<&[u8], Entry> = tree.children(&text).collect();
    let mut room = true;
    if let Some(folder) = folder
        && position < OVERLAY
    {
        for_each(folder, |number, inode, kind, name| {
            let next = number.saturating_add(2);
            let is_new = next > position && !known.contains_key(name);
            room = !is_new || add((inode, next, kind), name)?;
            Ok(room)
        })?;
    }
    if !room {
        return Ok((entries, reached));
    }
    let mut of_overlay: Vec<_> = known.iter().collect();
    of_overlay.sort_by_key(|(_, entry)| entry.sequence);
    for (name, entry) in of_overlay {
        let next = OVERLAY.saturating_add(entry.sequence);
        let Some(node) = entry.node.filter(|_| next > position) else {
            continue;
        };
        let node = tree.node(node)?;
        let kind = (node.full_mode() >> 12).to_le_bytes()[0];
        if !add((node.identity.1, next, kind), name)? {
            return Ok((entries, reached));
        }
    }
    let mut passages = shared.roots.names_in(path);
    if matches!(shared.roots.find(path), Some(Target::Descriptors)) {
        passages = files.numbers().map(|fd| fd.to_string().into()).collect();
    }
    for (next, name) in (PASSAGES..).zip(&passages) {
        let is_new = next > position && folder.is_none() && !known.contains_key(&name[..]);
        if is_new && !add((1, next, DT_UNKNOWN), name)? {
            break;
        }
    }
    Ok((entries, reached))
}

/// Calls `each` with number (from 1 on), inode, type and name of what the host has in a folder, `.` and `..` left out, until
/// it gives false.
fn for_each(
    folder: &HostFile,
    mut each: impl FnMut(u64, u64, u8, &[u8]) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(folder, ".", flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(MAX_ENTRIES);
    let mut folder = RawDir::new(&opened, buffer.spare_capacity_mut());
    let mut number = 0u64;
    while let Some(entry) = folder.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        number = number.saturating_add(1);
        let kind = (entry.file_type().as_raw_mode() >> 12).to_le_bytes()[0];
        if !each(number, entry.ino(), kind, name)? {
            break;
        }
    }
    Ok(())
}

/// True if a folder, as the program sees it, has nothing in it.
pub fn is_empty(shared: &Shared, files: &Files, path: &Absolute) -> Result<bool, Errno> {
    let tree = files.overlay.tree();
    let text = path.text();
    let known: BTreeMap<&[u8], Entry> = tree.children(&text).collect();
    if known.values().any(|entry| entry.node.is_some()) {
        return Ok(false);
    }
    if let Some(id) = files.overlay.known(&text)
        && matches!(tree.node(id)?.nature, Nature::Folder { opaque: true })
    {
        return Ok(true);
    }
    let Some(Target::Host(place)) = shared.roots.find(path) else {
        return Ok(true);
    };
    let right = shared.host_files.take()?;
    let (file, _) = place.open(false)?;
    let folder = HostFile::new(file, &text, right);
    let mut empty = true;
    for_each(&folder, |_, _, _, name| {
        empty &= known.contains_key(name);
        Ok(empty)
    })?;
    Ok(empty)
}

/// Appends a `struct linux_dirent64` if there is room: inode, next position, length, type, name, and zeros up to
/// a multiple of eight. Not even the first one fitting is an error.
fn push(
    entries: &mut Vec<u8>,
    most: usize,
    entry: (u64, u64, u8),
    name: &[u8],
) -> Result<bool, Errno> {
    let (inode, next, kind) = entry;
    let len = name.len().saturating_add(20).next_multiple_of(8);
    let end = entries.len().saturating_add(len);
    if end > most {
        return if entries.is_empty() {
            Err(Errno::INVAL)
        } else {
            Ok(false)
        };
    }
    entries.extend_from_slice(&inode.to_le_bytes());
    entries.extend_from_slice(&next.to_le_bytes());
    entries.extend_from_slice(
        &u16::try_from(len)
            .map_err(|_| Errno::OVERFLOW)?
            .to_le_bytes(),
    );
    entries.push(kind);
    entries.extend_from_slice(name);
    entries.resize(end, 0);
    Ok(true)
}

/// getcwd(2), which gives the length with its NUL.
pub fn getcwd(files: &Files, guest: &mut Guest<'_>, address: u64, size: u64) -> Value {
    let mut text = files.directory.to_vec();
    text.push(0);
    if length(text.len()) > size {
        return Err(Errno::RANGE);
    }
    guest.write(address, &text)?;
    Ok(count(text.len()))
}

/// chdir(2)
pub fn chdir(shared: &Shared, files: &mut Files, guest: &mut Guest<'_>, path: u64) -> Value {
    let path = guest.read_path(path)?;
    let lookup = Lookup {
        dirfd: u64::from(libc::AT_FDCWD.cast_unsigned()),
        path,
        empty_is_here: false,
    };
    let (absolute, target) = shared.find(files, &lookup, true)?;
    match target {
        Target::Node(id) if files.overlay.tree().node(id)?.is_folder() => {}
        Target::Passage | Target::Descriptors => {}
        Target::Host(place) => {
            let folder = place
                .handle(true)
                .map_err(|errno| explain(errno, files, guest))?;
            let found = rustix::fs::fstat(&folder)?;
            if found.st_mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(Errno::NOTDIR);
            }
        }
        _ => return Err(Errno::NOTDIR),
    }
    enter(files, absolute.text().into())
}

/// fchdir(2)
pub fn fchdir(files: &mut Files, fd: u64) -> Value {
    match &files.get(fd)?.kind {
        Kind::Folder(_, path) => {
            let path = Arc::clone(path);
            enter(files, path)
        }
        _ => Err(Errno::NOTDIR),
    }
}

/// Relative paths grow the directory's name with each step; a path that no call could give is refused.
fn enter(files: &mut Files, directory: Arc<[u8]>) -> Value {
    if directory.len() >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    files.directory = directory;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::{Machine, SCRATCH, TestFolder};
    use std::collections::BTreeSet;
    use syscalls::Sysno;

    const HERE: u64 = libc::AT_FDCWD as u64;

    fn names(machine: &mut Machine, fd: u64, size: u64) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let len = machine.call(Sysno::getdents64, &[fd, SCRATCH, size]);
            let mut bytes = machine.get(SCRATCH, usize::try_from(len).unwrap());
            if bytes.is_empty() {
                return names;
            }
            while !bytes.is_empty() {
                let len = usize::from(u16::from_le_bytes([bytes[16], bytes[17]]));
                let name = bytes[19..len].split(|&byte| byte == 0).next().unwrap();
                names.push(String::from_utf8(name.to_vec()).unwrap());
                bytes.drain(..len);
            }
        }
    }

    #[test]
    fn folders_are_listed_piece_by_piece() {
        let folder = TestFolder::new();
        let mut expected: BTreeSet<String> = (0..200).map(|i| format!("file-{i}")).collect();
        for name in &expected {
            folder.file(name, b"");
        }
        expected.extend([".".to_owned(), "..".to_owned()]);
        let mut machine = Machine::new(vec![folder.0.clone()]);
        let path = machine.put_str(10, &folder.path(""));
        let fd = machine.call(Sysno::openat, &[HERE, path, 0o200000]) as u64;
        for size in [64, 4096, 100_000] {
            assert_eq!(machine.call(Sysno::lseek, &[fd, 0, 0]), 0);
            let found = names(&mut machine, fd, size);
            assert_eq!(found.len(), expected.len());
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        }
        machine.call(Sysno::lseek, &[fd, 0, 0]);
        assert_eq!(machine.call(Sysno::getdents64, &[fd, SCRATCH, 10]), -22);
        assert_eq!(machine.call(Sysno::getdents64, &[1, SCRATCH, 4096]), -9);
        assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 10]), -21);
        let root = machine.put_str(10, "/");
        let fd = machine.call(Sysno::openat, &[HERE, root, 0]) as u64;
        assert_eq!(names(&mut machine, fd, 4096), [".", ".."]);
    }

    #[test]
    fn the_working_directory_moves() {
        let folder = TestFolder::new();
        std::fs::create_dir(folder.path("sub")).unwrap();
        folder.file("sub/a", b"x");
        let mut machine = Machine::new(vec![folder.0.clone()]);
        let path = machine.put_str(10, &folder.path("sub/../sub/"));
        assert_eq!(machine.call(Sysno::chdir, &[path]), 0);
        let expected = folder.path("sub\0");
        assert_eq!(
            machine.call(Sysno::getcwd, &[SCRATCH, 4096]),
            expected.len() as i64
        );
        assert_eq!(machine.get(SCRATCH, expected.len()), expected.as_bytes());
        assert_eq!(machine.call(Sysno::getcwd, &[SCRATCH, 3]), -34);
        let relative = machine.put_str(10, "a");
        assert_eq!(machine.call(Sysno::openat, &[HERE, relative, 0]), 3);
        assert_eq!(machine.call(Sysno::chdir, &[relative]), -20);
        let up = machine.put_str(10, "..");
        let fd = machine.call(Sysno::openat, &[HERE, up, 0]) as u64;
        let beneath = machine.put_str(10, "sub/a");
        assert_eq!(machine.call(Sysno::openat, &[fd, beneath, 0]), 5);
        assert_eq!(machine.call(Sysno::openat, &[3, beneath, 0]), -20);
        assert_eq!(machine.call(Sysno::fchdir, &[fd]), 0);
        assert_eq!(machine.call(Sysno::openat, &[HERE, beneath, 0]), 6);
        let outside = machine.put_str(10, "/etc");
        assert_eq!(machine.call(Sysno::chdir, &[outside]), -2);
    }
}
