//! Reading and writing: read(2), write(2), their vectored and positioned forms, lseek(2).

use rustix::fs::fstat;
use rustix::io::Errno;

use crate::linux::abi::{CHUNK, Guest, MOST_BYTES, Reply, Value, int, length};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{Device, Files, Kind, O_APPEND, O_NONBLOCK};
use crate::linux::files::pieces::Pieces;
use crate::linux::files::pipe_calls;
use crate::linux::files::pipes::Stuck;
use crate::linux::files::volumes;
use crate::linux::kept::Kept;
use crate::linux::process::random;
use crate::linux::tasks::task::Tasks;

/// How far a transfer of one buffer came.
enum Moved {
    Bytes(u64),
    Stuck(Stuck),
}

/// read(2), readv(2), pread64(2), preadv(2)
pub fn read(
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    at: Option<u64>,
) -> Reply {
    let file = files.get(fd)?;
    if !file.readable() {
        return Err(Errno::BADF);
    }
    if let Some(offset) = at {
        check_positioned(&file.kind, offset)?;
    }
    let start = at.unwrap_or(file.offset);
    transfer(files, guest, fd, pieces, (start, at.is_none()), read_piece)
}

/// write(2), writev(2), pwrite64(2), pwritev(2)
pub fn write(
    files: &mut Files,
    tasks: &mut Kept<Tasks>,
    guest: &mut Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    at: Option<u64>,
) -> Reply {
    let file = files.get(fd)?;
    if !file.writable() {
        return Err(Errno::BADF);
    }
    if let Some(offset) = at {
        check_positioned(&file.kind, offset)?;
    }
    if let Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe) = file.kind {
        let blocks = file.flags & O_NONBLOCK == 0;
        return pipe_calls::write(files, tasks, guest, (pipe, blocks), pieces);
    }
    if let Kind::File(_) = file.kind {
        return volumes::write(files, guest, fd, pieces, at);
    }
    // As Linux does, and POSIX does not, pwrite(2) appends too.
    let start = match &file.kind {
        Kind::Node(id, _) if file.flags & O_APPEND != 0 => files.overlay.size(*id)?,
        _ => at.unwrap_or(file.offset),
    };
    transfer(files, guest, fd, pieces, (start, at.is_none()), write_piece)
}

fn check_positioned(kind: &Kind, offset: u64) -> Result<(), Errno> {
    match kind {
        Kind::Stdin
        | Kind::Output(_)
        | Kind::PipeReader(_)
        | Kind::PipeWriter(_)
        | Kind::PipeBoth(_)
        | Kind::Socket(_) => Err(Errno::SPIPE),
        _ if i64::try_from(offset).is_err() => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

type MovePiece = fn(&mut Files, &mut Guest<'_>, &Kind, (u64, u64), u64) -> Result<Moved, Errno>;

/// Moves the pieces one after the other until one comes short or it is enough. What was moved before an error counts. The
/// file's position follows if it is to.
fn transfer(
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    (start, moves): (u64, bool),
    move_piece: MovePiece,
) -> Reply {
    let file = files.get(fd)?;
    let (kind, flags) = (file.kind.clone(), file.flags);
    let mut done = 0u64;
    for (address, len) in pieces.iter() {
        match move_piece(
            files,
            guest,
            &kind,
            (address, len.min(MOST_BYTES.saturating_sub(done))),
            start.saturating_add(done),
        ) {
            Ok(Moved::Bytes(moved)) => {
                done = done.saturating_add(moved);
                if moved < len || done >= MOST_BYTES {
                    break;
                }
            }
            _ if done > 0 => break,
            Ok(Moved::Stuck(Stuck::Closed)) => return Err(Errno::PIPE),
            Ok(Moved::Stuck(Stuck::Waiting)) if flags & O_NONBLOCK != 0 => {
                return Err(Errno::AGAIN);
            }
            Ok(Moved::Stuck(Stuck::Waiting)) => return Ok(pipe_calls::WAITS),
            Err(errno) => return Err(errno),
        }
    }
    if moves {
        files.get_mut(fd)?.offset = start.saturating_add(done);
    }
    Ok(Outcome::Return(i64::try_from(done).unwrap_or(i64::MAX)))
}

fn read_piece(
    files: &mut Files,
    guest: &mut Guest<'_>,
    kind: &Kind,
    (address, len): (u64, u64),
    offset: u64,
) -> Result<Moved, Errno> {
    match kind {
        Kind::Stdin => {
            let most = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
            // Bytes that are taken and can't be given would be lost.
            let last = address.saturating_add(length(most).saturating_sub(1));
            if most > 0 && !(guest.memory.can_write(address) && guest.memory.can_write(last)) {
                return Err(Errno::FAULT);
            }
            let mut bytes = vec![0; most];
            let got = guest.host.input(&mut bytes);
            let got = got.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            guest.write(address, bytes.get(..got).unwrap_or_default())?;
            Ok(Moved::Bytes(length(got)))
        }
        Kind::Device(Device::Null | Device::Tty) => Ok(Moved::Bytes(0)),
        Kind::Device(Device::Random | Device::Urandom) => {
            guest.random.note_read();
            let moved = random(guest, address, len)?;
            Ok(Moved::Bytes(moved.unsigned_abs()))
        }
        Kind::Device(Device::Zero | Device::Full) => fill(guest, (address, len), |bytes, _| {
            bytes.fill(0);
            Ok(bytes.len())
        }),
        Kind::File(file) => fill(guest, (address, len), |bytes, done| {
            let at = offset.checked_add(done).ok_or(Errno::INVAL)?;
            rustix::io::pread(file, bytes, at)
        }),
        Kind::Node(id, _) => fill(guest, (address, len), |bytes, done| {
            files.overlay.read(*id, offset.saturating_add(done), bytes)
        }),
        Kind::Text(text) => fill(guest, (address, len), |bytes, done| {
            let at = usize::try_from(offset.saturating_add(done)).unwrap_or(usize::MAX);
            let rest = text.get(at..).unwrap_or_default();
            bytes
                .iter_mut()
                .zip(rest)
                .for_each(|(to, from)| *to = *from);
            Ok(rest.len().min(bytes.len()))
        }),
        Kind::PipeReader(pipe) | Kind::PipeBoth(pipe) => {
            let most = usize::try_from(len).unwrap_or(usize::MAX);
            let bytes = match files.pipes.peek(*pipe, most) {
                Ok(bytes) => bytes,
                Err(stuck) => return Ok(Moved::Stuck(stuck)),
            };
            guest.write(address, &bytes)?;
            files.pipes.consume(*pipe, bytes.len());
            Ok(Moved::Bytes(length(bytes.len())))
        }
        Kind::Inotify => Ok(Moved::Stuck(Stuck::Waiting)),
        Kind::Folder(..) => Err(Errno::ISDIR),
        Kind::Output(_) | Kind::PipeWriter(_) | Kind::Handle(_) => Err(Errno::BADF),
        // The others were read elsewhere.
        Kind::Socket(_)
        | Kind::Epoll(_)
        | Kind::EventFd(_)
        | Kind::TimerFd(_)
        | Kind::SignalFd(_)
        | Kind::Pidfd(_) => Err(Errno::INVAL),
    }
}

/// Copies to the program what `source` puts into the buffer for a position of the transfer.
fn fill(
    guest: &mut Guest<'_>,
    (address, len): (u64, u64),
    source: impl Fn(&mut [u8], u64) -> Result<usize, Errno>,
) -> Result<Moved, Errno> {
    in_chunks(len, |bytes, done| {
        let got = source(&mut *bytes, done)?;
        let at = address.checked_add(done).ok_or(Errno::FAULT)?;
        guest.write(at, bytes.get(..got).unwrap_or_default())?;
        Ok(got)
    })
}

fn write_piece(
    files: &mut Files,
    guest: &mut Guest<'_>,
    kind: &Kind,
    (address, len): (u64, u64),
    offset: u64,
) -> Result<Moved, Errno> {
    match kind {
        Kind::Output(stream) => in_chunks(len, |bytes, done| {
            guest
                .memory
                .read(address.checked_add(done).ok_or(Errno::FAULT)?, bytes)?;
            guest.host.output(*stream, bytes);
            Ok(bytes.len())
        }),
        Kind::Node(id, _) => in_chunks(len, |bytes, done| {
            let from = address.checked_add(done).ok_or(Errno::FAULT)?;
            guest.memory.read(from, bytes)?;
            files.overlay.write(*id, offset.saturating_add(done), bytes)
        }),
        Kind::Device(Device::Full) => Err(Errno::NOSPC),
        Kind::Device(_) => Ok(Moved::Bytes(len)),
        Kind::Epoll(_) | Kind::TimerFd(_) | Kind::SignalFd(_) | Kind::Pidfd(_) => Err(Errno::INVAL),
        _ => Err(Errno::BADF),
    }
}

/// Moves `len` bytes through a small buffer, until a chunk comes short or fails. A failure counts only if it is
/// the first thing to happen.
fn in_chunks(
    len: u64,
    mut chunk: impl FnMut(&mut [u8], u64) -> Result<usize, Errno>,
) -> Result<Moved, Errno> {
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(CHUNK).min(CHUNK)];
    let mut done = 0u64;
    while done < len {
        let wanted = usize::try_from(len - done)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let Some(bytes) = buffer.get_mut(..wanted) else {
            break;
        };
        match chunk(bytes, done) {
            Ok(got) => {
                done = done.saturating_add(length(got));
                if got < wanted {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(Moved::Bytes(done))
}

/// The size of something with one.
pub fn size(files: &Files, kind: &Kind) -> Result<u64, Errno> {
    match kind {
        Kind::Node(id, _) => files.overlay.size(*id),
        Kind::File(file) => Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0)),
        Kind::Text(text) => Ok(length(text.len())),
        _ => Ok(0),
    }
}

/// lseek(2). Files count as having no holes.
pub fn lseek(files: &mut Files, fd: u64, offset: u64, whence: u64) -> Value {
    let file = files.get(fd)?;
    if !file.readable() && !file.writable() {
        return Err(Errno::BADF);
    }
    let size = match &file.kind {
        Kind::Stdin
        | Kind::Output(_)
        | Kind::PipeReader(_)
        | Kind::PipeWriter(_)
        | Kind::PipeBoth(_)
        | Kind::Socket(_) => return Err(Errno::SPIPE),
        // Devices and their like have no position: every seek succeeds and gives 0.
        Kind::Device(_)
        | Kind::Epoll(_)
        | Kind::EventFd(_)
        | Kind::TimerFd(_)
        | Kind::SignalFd(_) => return Ok(0),
        kind => size(files, kind)?,
    };
    let distance = offset.cast_signed();
    let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::OVERFLOW);
    let position = match int(whence) {
        libc::SEEK_SET => distance,
        libc::SEEK_CUR => signed(file.offset)?
            .checked_add(distance)
            .ok_or(Errno::OVERFLOW)?,
        libc::SEEK_END => signed(size)?.checked_add(distance).ok_or(Errno::OVERFLOW)?,
        libc::SEEK_DATA | libc::SEEK_HOLE if !(0..signed(size)?).contains(&distance) => {
            return Err(Errno::NXIO);
        }
        libc::SEEK_DATA => distance,
        libc::SEEK_HOLE => signed(size)?,
        _ => return Err(Errno::INVAL),
    };
    let position = u64::try_from(position).map_err(|_| Errno::INVAL)?;
    files.get_mut(fd)?.offset = position;
    signed(position)
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::{HEAP_LEN, Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn output_goes_to_the_host() {
        let mut machine = Machine::new(Vec::new());
        let text = machine.put_str(0, "hello, world");
        assert_eq!(machine.call(Sysno::write, &[1, text, 5]), 5);
        let vector = [text, 5, text + 5, 7]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<_>>();
        let vector = machine.put(1, &vector);
        assert_eq!(machine.call(Sysno::writev, &[2, vector, 2]), 12);
        assert_eq!(machine.host.stdout, b"hello");
        assert_eq!(machine.host.stderr, b"hello, world");
        assert_eq!(machine.call(Sysno::write, &[1, 0, 5]), -14);
        assert_eq!(machine.call(Sysno::write, &[0, text, 5]), -9);
        assert_eq!(machine.call(Sysno::write, &[77, text, 5]), -9);
        assert_eq!(machine.call(Sysno::writev, &[2, vector, 1025]), -22);
        assert_eq!(machine.call(Sysno::pwrite64, &[1, text, 5, 0]), -29);
    }

    #[test]
    fn output_that_reaches_bad_memory_comes_short() {
        let mut machine = Machine::new(Vec::new());
        let near_end = SCRATCH + 64 * 4096 - 16384;
        assert_eq!(machine.call(Sysno::write, &[1, near_end, 20000]), 16384);
        assert_eq!(machine.host.stdout.len(), 16384);
    }

    #[test]
    fn input_is_at_its_end() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::read, &[0, SCRATCH, 100]), 0);
        assert_eq!(machine.call(Sysno::read, &[1, SCRATCH, 100]), -9);
        assert_eq!(machine.call(Sysno::lseek, &[0, 0, 0]), -29);
    }

    #[test]
    fn a_call_moves_so_much_and_no_more() {
        let mut machine = Machine::new(Vec::new());
        let heap = machine.call(Sysno::mmap, &[0, HEAP_LEN, 3, 0x22, u64::MAX, 0]) as u64;
        // The same buffer over and over: 256 MiB.
        let piece = [heap.to_le_bytes(), HEAP_LEN.to_le_bytes()].concat();
        let vector = machine.put(0, &piece.repeat(1024));
        for device in ["/dev/zero", "/dev/urandom"] {
            let path = machine.put_str(10, device);
            let fd = machine.call(Sysno::open, &[path, 0]) as u64;
            assert_eq!(machine.call(Sysno::readv, &[fd, vector, 1024]), 16 << 20);
            assert_eq!(machine.call(Sysno::preadv, &[fd, vector, 1024]), 16 << 20);
        }
        assert_eq!(machine.call(Sysno::writev, &[1, vector, 1024]), 16 << 20);
        assert_eq!(machine.host.stdout.len(), 16 << 20);
    }
}
