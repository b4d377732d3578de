//! Bytes from one file to another without the program: sendfile(2), copy_file_range(2). And files that are memory alone:
//! memfd_create(2).

use rustix::io::Errno;

use crate::linux::abi::{CHUNK, Guest, HERE, MOST_BYTES, Reply, Value, flags, length};
use crate::linux::call::Outcome;
use crate::linux::files::copies;
use crate::linux::files::fds::Files;
use crate::linux::files::open_file::{Device, Kind, O_APPEND, O_CLOEXEC, O_NONBLOCK, OpenFile};
use crate::linux::files::pipe_calls;
use crate::linux::files::pipes::Stuck;
use crate::linux::files::resolve::Shared;
use crate::linux::files::stat;
use crate::linux::files::volumes;
use crate::linux::kept::Kept;
use crate::linux::net::calls;
use crate::linux::net::socket::{Incoming, Style};
use crate::linux::tasks::task::Tasks;
use crate::memory::space::vmas::PageSource;

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 0x10;
/// Longest name of a memfd.
const NAME_MAX: usize = 249;
/// `F_SEAL_SEAL` of fcntl(2).
pub const F_SEAL_SEAL: u32 = 1;

/// memfd_create(2)
pub fn memfd_create(files: &mut Files, guest: &mut Guest<'_>, name: u64, how: u64) -> Value {
    let how = flags(how);
    // Huge pages are not there.
    if how & !(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let name = guest.read_string(name, NAME_MAX.saturating_add(1), Errno::INVAL)?;
    let id = copies::make_nameless(files, 0o777)?;
    if how & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) == 0 {
        files.overlay.tree_mut().node_mut(id)?.seals = F_SEAL_SEAL;
    }
    let path = [b"/memfd:", &name[..], b" (deleted)"].concat();
    let file = OpenFile::new(Kind::Node(id, path.into()), 2);
    let added = files.add(file, how & MFD_CLOEXEC != 0);
    if added.is_err() {
        files.overlay.tree_mut().drop_unused(id);
    }
    i64::try_from(added?).map_err(|_| Errno::MFILE)
}

/// fcntl(2) with `F_ADD_SEALS`.
pub fn add_seals(files: &mut Files, fd: u64, seals: u32) -> Value {
    let file = files.get(fd)?;
    let Kind::Node(id, _) = file.kind else {
        return Err(Errno::INVAL);
    };
    if !file.writable() {
        return Err(Errno::PERM);
    }
    if seals & !0x3f != 0 {
        return Err(Errno::INVAL);
    }
    let node = files.overlay.tree_mut().node_mut(id)?;
    if node.seals & F_SEAL_SEAL != 0 {
        return Err(Errno::PERM);
    }
    node.seals |= seals;
    Ok(0)
}

/// fcntl(2) with `F_GET_SEALS`.
pub fn seals(files: &Files, fd: u64) -> Value {
    match files.get(fd)?.kind {
        Kind::Node(id, _) => Ok(i64::from(files.overlay.tree().node(id)?.seals)),
        _ => Err(Errno::INVAL),
    }
}

/// Reads what splice(2) takes bytes from: a file at an offset, a socket's stream, a device.
pub(super) fn read_from(
    files: &mut Files,
    guest: &mut Guest<'_>,
    kind: &Kind,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize, Errno> {
    match kind {
        Kind::Socket(id) if files.sockets.get(*id)?.nature.style == Style::Stream => {
            match files.sockets.get_mut(*id)?.incoming()? {
                Incoming::Nothing => return Err(Errno::AGAIN),
                Incoming::End => return Ok(0),
                Incoming::Something => {}
            }
            let socket = files.sockets.get(*id)?;
            let bytes = socket.peek_bytes(buf.len().min(socket.reach()));
            let place = buf.get_mut(..bytes.len()).ok_or(Errno::INVAL)?;
            place.copy_from_slice(&bytes);
            files.sockets.drop_bytes(*id, bytes.len());
            files.release_unreceived();
            Ok(bytes.len())
        }
        Kind::Stdin => {
            let got = guest.host.input(buf);
            got.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Kind::Text(text) => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = text.get(start..).unwrap_or_default();
            let len = rest.len().min(buf.len());
            buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            Ok(len)
        }
        Kind::Device(Device::Zero | Device::Full) => {
            buf.fill(0);
            Ok(buf.len())
        }
        Kind::Device(Device::Random | Device::Urandom) => {
            guest.random.note_read();
            guest.random.fill(buf);
            Ok(buf.len())
        }
        _ => read_at(files, kind, offset, buf),
    }
}

/// Reads a regular file at an offset.
fn read_at(files: &Files, kind: &Kind, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    match kind {
        Kind::File(file) => rustix::io::pread(file, buf, offset),
        Kind::Node(id, _) => files.overlay.read(*id, offset, buf),
        _ => Err(Errno::INVAL),
    }
}

/// Writes as much as there is room for.
pub(super) fn write_to(
    files: &mut Files,
    guest: &mut Guest<'_>,
    kind: &Kind,
    offset: u64,
    bytes: &[u8],
) -> Result<usize, Errno> {
    match kind {
        Kind::Node(id, _) => files.overlay.write(*id, offset, bytes),
        Kind::File(file) => volumes::write_at(files, file, (offset, false), bytes),
        Kind::Output(stream) => {
            guest.host.output(*stream, bytes);
            Ok(bytes.len())
        }
        Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe) => {
            let room = files.pipes.room(*pipe).map_err(|stuck| match stuck {
                Stuck::Waiting => Errno::AGAIN,
                Stuck::Closed => Errno::PIPE,
            })?;
            let piece = bytes.get(..room.min(bytes.len())).unwrap_or_default();
            files.pipes.append(*pipe, piece);
            Ok(piece.len())
        }
        Kind::Socket(id) if files.sockets.get(*id)?.nature.style == Style::Stream => {
            let room = files.sockets.room(*id)?;
            if room == 0 {
                return Err(Errno::AGAIN);
            }
            let piece = bytes.get(..room.min(bytes.len())).unwrap_or_default();
            files.sockets.send_bytes(*id, piece);
            Ok(piece.len())
        }
        Kind::Device(_) => Ok(bytes.len()),
        _ => Err(Errno::INVAL),
    }
}

/// Copies so many bytes between two places. What was copied before an error counts.
fn copy(
    files: &mut Files,
    guest: &mut Guest<'_>,
    (from, start): (&Kind, u64),
    (to, target): (&Kind, u64),
    len: u64,
) -> Result<u64, Errno> {
    let mut buffer = vec![0; CHUNK];
    let (mut done, len) = (0u64, len.min(MOST_BYTES));
    while done < len {
        let most = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
        let piece = buffer.get_mut(..most).unwrap_or_default();
        let result = read_at(files, from, start.saturating_add(done), piece).and_then(|got| {
            match piece.get(..got).unwrap_or_default() {
                [] => Ok(0),
                bytes => write_to(files, guest, to, target.saturating_add(done), bytes),
            }
        });
        match result {
            Ok(0) => break,
            Ok(moved) => done = done.saturating_add(length(moved)),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// A position: at this address, or the file's own.
pub(super) fn position(
    files: &Files,
    guest: &Guest<'_>,
    fd: u64,
    address: u64,
) -> Result<u64, Errno> {
    let at = if address == 0 {
        files.get(fd)?.offset
    } else {
        guest.read_u64(address)?
    };
    i64::try_from(at).map_err(|_| Errno::INVAL)?;
    Ok(at)
}

pub(super) fn advance(
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    address: u64,
    to: u64,
) -> Result<(), Errno> {
    if address == 0 {
        files.get_mut(fd)?.offset = to;
        Ok(())
    } else {
        guest.write(address, &to.to_le_bytes())
    }
}

/// sendfile(2). A socket gets all of it, as its reader makes room; a pipe what there is room for, once there is any.
pub fn sendfile(
    files: &mut Files,
    tasks: &mut Kept<Tasks>,
    guest: &mut Guest<'_>,
    [to, from, offset, len]: [u64; 4],
) -> Reply {
    let target = files.get(to)?;
    let blocks = target.flags & O_NONBLOCK == 0;
    let whole = matches!(target.kind, Kind::Socket(_));
    let len = len.min(MOST_BYTES);
    let mut done = tasks.progress();
    loop {
        // Its position is where it goes on.
        match send(files, guest, [to, from, offset, len.saturating_sub(done)]) {
            Err(Errno::AGAIN) if blocks => {
                if tasks.progress() != done {
                    tasks.current().progress = done;
                }
                return Ok(calls::wait(None));
            }
            Err(errno) => {
                if errno == Errno::PIPE {
                    pipe_calls::broken(tasks);
                }
                if done == 0 {
                    return Err(errno);
                }
                break;
            }
            Ok(0) => break,
            Ok(sent) => done = done.saturating_add(sent),
        }
        if !whole || !blocks || done >= len {
            break;
        }
    }
    Ok(Outcome::Return(done.cast_signed()))
}

fn send(
    files: &mut Files,
    guest: &mut Guest<'_>,
    [to, from, offset, len]: [u64; 4],
) -> Result<u64, Errno> {
    let (source, target) = (files.get(from)?, files.get(to)?);
    if !source.readable() || !target.writable() {
        return Err(Errno::BADF);
    }
    if target.flags & O_APPEND != 0 {
        return Err(Errno::INVAL);
    }
    let (source, target) = (source.kind.clone(), target.kind.clone());
    let (start, place) = (position(files, guest, from, offset)?, files.get(to)?.offset);
    let done = copy(files, guest, (&source, start), (&target, place), len)?;
    if matches!(target, Kind::Node(..) | Kind::File(_)) {
        files.get_mut(to)?.offset = place.saturating_add(done);
    }
    advance(files, guest, from, offset, start.saturating_add(done))?;
    Ok(done)
}

/// copy_file_range(2)
pub fn copy_file_range(files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [from, from_offset, to, to_offset, len, how] = args;
    if flags(how) != 0 {
        return Err(Errno::INVAL);
    }
    let (source, target) = (files.get(from)?, files.get(to)?);
    if !source.readable() || !target.writable() || target.flags & O_APPEND != 0 {
        return Err(Errno::BADF);
    }
    let (source, target) = (source.kind.clone(), target.kind.clone());
    if matches!(source, Kind::Folder(..)) || matches!(target, Kind::Folder(..)) {
        return Err(Errno::ISDIR);
    }
    if !matches!(target, Kind::Node(..) | Kind::File(_)) {
        return Err(Errno::INVAL);
    }
    let start = position(files, guest, from, from_offset)?;
    let place = position(files, guest, to, to_offset)?;
    let same = match (&source, &target) {
        (Kind::Node(id, _), Kind::Node(other, _)) => id == other,
        (Kind::File(file), Kind::File(other)) => file.identity() == other.identity(),
        _ => false,
    };
    if same && start.abs_diff(place) < len {
        return Err(Errno::INVAL);
    }
    let done = copy(files, guest, (&source, start), (&target, place), len)?;
    advance(files, guest, from, from_offset, start.saturating_add(done))?;
    advance(files, guest, to, to_offset, place.saturating_add(done))?;
    i64::try_from(done).map_err(|_| Errno::OVERFLOW)
}

/// inotify_init1(2): a descriptor that never becomes ready.
pub fn inotify_init(files: &mut Files, how: u64) -> Value {
    let how = flags(how);
    if how & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    let file = OpenFile::new(Kind::Inotify, how & O_NONBLOCK);
    let number = files.add(file, how & O_CLOEXEC != 0)?;
    i64::try_from(number).map_err(|_| Errno::MFILE)
}

/// inotify_add_watch(2): watches are numbered from 1 on; its position counts them.
pub fn inotify_add(
    shared: &Shared,
    files: &mut Files,
    guest: &mut Guest<'_>,
    [fd, path, mask]: [u64; 3],
) -> Value {
    /// `IN_ALL_EVENTS`, `IN_UNMOUNT`, `IN_ONLYDIR`, `IN_DONT_FOLLOW`, `IN_EXCL_UNLINK`, `IN_MASK_*`, `IN_ISDIR`, `IN_ONESHOT`.
    const KNOWN: u32 = 0xf700_2fff;
    if flags(mask) & KNOWN == 0 {
        return Err(Errno::INVAL);
    }
    if !matches!(files.get(fd)?.kind, Kind::Inotify) {
        return Err(Errno::INVAL);
    }
    stat::check_there(shared, files, guest, (HERE, path))?;
    let file = files.get_mut(fd)?;
    file.offset = file.offset.saturating_add(1);
    i32::try_from(file.offset)
        .map(i64::from)
        .map_err(|_| Errno::NOSPC)
}

/// inotify_rm_watch(2)
pub fn inotify_remove(files: &Files, fd: u64, watch: u64) -> Value {
    let file = files.get(fd)?;
    if !matches!(file.kind, Kind::Inotify) || !(1..=file.offset).contains(&u64::from(flags(watch)))
    {
        return Err(Errno::INVAL);
    }
    Ok(0)
}
