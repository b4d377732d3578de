//! Reading and writing: read(2), write(2), their vectored and positioned forms, lseek(2).

use rustix::fs::fstat;
use rustix::io::Errno;

use crate::linux::abi::{
    CHUNK, Guest, MOST_BYTES, PAGE, Reply, USER_END, Value, field_u64, flags, int, length,
};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::files::fds::{Device, Files, Kind, O_APPEND, O_NONBLOCK};
use crate::linux::files::pipes::Stuck;
use crate::linux::kept::Kept;
use crate::linux::process::random;
use crate::linux::tasks::pending::{SI_USER, Signal};
use crate::linux::tasks::signals::SIGPIPE;
use crate::linux::tasks::task::Tasks;

/// `IOV_MAX` (linux/uio.h).
const MAX_PIECES: u64 = 1024;
/// `MAX_RW_COUNT` (linux/fs.h).
const MOST_TOTAL: u64 = 0x7fff_f000;

/// Where a call's bytes are in the program: one buffer, or a vector of them.
#[derive(Debug)]
pub struct Pieces(Vec<(u64, u64)>);

impl Pieces {
    /// One buffer.
    pub fn one(address: u64, len: u64) -> Self {
        Self(vec![(address, len)])
    }

    /// An array of `struct iovec`: base, length.
    pub fn vector(guest: &Guest<'_>, address: u64, number: u64) -> Result<Self, Errno> {
        if number > MAX_PIECES {
            return Err(Errno::INVAL);
        }
        let pieces = (0..number).map(|i| {
            let at = address
                .checked_add(i.saturating_mul(16))
                .ok_or(Errno::FAULT)?;
            let bytes: [u8; 16] = guest.read(at)?;
            let (base, len) = (field_u64(&bytes, 0), field_u64(&bytes, 8));
            i64::try_from(len).map_err(|_| Errno::INVAL)?;
            Ok((base, len))
        });
        let pieces: Vec<_> = pieces.collect::<Result<_, Errno>>()?;
        // What can't be an address is found out before anything is moved.
        let reaches =
            |&(base, len): &(u64, u64)| base.checked_add(len).is_some_and(|end| end <= USER_END);
        if !pieces.iter().all(reaches) {
            return Err(Errno::FAULT);
        }
        Ok(Self(pieces))
    }
}

impl Pieces {
    /// Their length together.
    pub fn total(&self) -> u64 {
        let lengths = self.0.iter().map(|(_, len)| *len);
        lengths.fold(0, u64::saturating_add).min(MOST_TOTAL)
    }

    /// The part of them that `len` bytes after the first `skip` are, piece by piece.
    fn part(&self, mut skip: u64, mut len: u64) -> impl Iterator<Item = Result<(u64, u64), Errno>> {
        self.0.iter().filter_map(move |&(base, size)| {
            let before = skip.min(size);
            skip -= before;
            let part = (size - before).min(len);
            len -= part;
            let at = base.checked_add(before).ok_or(Errno::FAULT);
            (part > 0).then(|| at.map(|at| (at, part)))
        })
    }

    /// Copies `len` bytes after the first `skip` from the program. `len` is to be one that the host can hold.
    pub fn gather(&self, guest: &Guest<'_>, skip: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        for part in self.part(skip, len) {
            let (at, len) = part?;
            let start = bytes.len();
            let end = start.saturating_add(usize::try_from(len).map_err(|_| Errno::NOMEM)?);
            bytes.resize(end, 0);
            guest
                .memory
                .read(at, bytes.get_mut(start..).unwrap_or_default())?;
        }
        Ok(bytes)
    }

    /// Copies bytes to the program, after the first `skip`.
    pub fn scatter(&self, guest: &mut Guest<'_>, skip: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        for part in self.part(skip, length(bytes.len())) {
            let (at, len) = part?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let Some((now, later)) = rest.split_at_checked(len) else {
                break;
            };
            guest.write(at, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// How far a transfer of one buffer came.
enum Moved {
    Bytes(u64),
    Stuck(Stuck),
}

/// The task waits for the other end of a pipe.
const PIPE_BLOCKS: Outcome = Outcome::Block(Wait {
    on: WaitOn::Pipe,
    time: None,
    result: 0,
});

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

/// write(2), writev(2), pwrite64(2), pwritev(2). A pipe that nobody reads ends the program unless it ignores that.
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
    // As Linux does, and POSIX does not, pwrite(2) appends too.
    let start = match &file.kind {
        Kind::Node(id, _) if file.flags & O_APPEND != 0 => files.overlay.size(*id)?,
        _ => at.unwrap_or(file.offset),
    };
    let reply = transfer(files, guest, fd, pieces, (start, at.is_none()), write_piece);
    match reply {
        Err(Errno::PIPE) => {
            let signal = Signal::by_process(SIGPIPE, SI_USER);
            tasks.current().signals.pending.add(signal, true);
            reply
        }
        _ => reply,
    }
}

fn check_positioned(kind: &Kind, offset: u64) -> Result<(), Errno> {
    match kind {
        Kind::Stdin
        | Kind::Output(_)
        | Kind::PipeReader(_)
        | Kind::PipeWriter(_)
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
    for &(address, len) in &pieces.0 {
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
            Ok(Moved::Stuck(Stuck::Waiting)) => return Ok(PIPE_BLOCKS),
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
        Kind::PipeReader(pipe) => {
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
        | Kind::SignalFd(_) => Err(Errno::INVAL),
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
        Kind::PipeWriter(pipe) => {
            if len == 0 {
                return Ok(Moved::Bytes(0));
            }
            let room = match files.pipes.room(*pipe) {
                // Writes of up to PIPE_BUF bytes are atomic (pipe(7)).
                Ok(room) if length(room) < len && len <= PAGE => {
                    return Ok(Moved::Stuck(Stuck::Waiting));
                }
                Ok(room) => room,
                Err(stuck) => return Ok(Moved::Stuck(stuck)),
            };
            in_chunks(len.min(length(room)), |bytes, done| {
                guest
                    .memory
                    .read(address.checked_add(done).ok_or(Errno::FAULT)?, bytes)?;
                files.pipes.append(*pipe, bytes);
                Ok(bytes.len())
            })
        }
        Kind::Node(id, _) => in_chunks(len, |bytes, done| {
            let from = address.checked_add(done).ok_or(Errno::FAULT)?;
            guest.memory.read(from, bytes)?;
            files.overlay.write(*id, offset.saturating_add(done), bytes)
        }),
        Kind::Device(Device::Full) => Err(Errno::NOSPC),
        Kind::Device(_) => Ok(Moved::Bytes(len)),
        Kind::Epoll(_) | Kind::TimerFd(_) | Kind::SignalFd(_) => Err(Errno::INVAL),
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

/// `RWF_HIPRI`, `RWF_DSYNC`, `RWF_SYNC`: wishes that make no difference where nothing is written to a disk.
const RWF_HARMLESS: u32 = 1 | 2 | 4;
const RWF_NOWAIT: u32 = 8;
const RWF_APPEND: u32 = 16;

/// What preadv2(2) and pwritev2(2) say beside their older forms.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// Where, unless it is the file's position: an offset of -1.
    pub offset: Option<u64>,
    /// A write goes to the end, and leaves the position alone.
    pub append: bool,
    /// EAGAIN instead of a wait.
    pub now: bool,
}

impl Wishes {
    /// The offset and `RWF_*`.
    pub fn read(offset: u64, how: u64) -> Result<Self, Errno> {
        let how = flags(how);
        if how & !(RWF_HARMLESS | RWF_NOWAIT | RWF_APPEND) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            offset: (offset != u64::MAX).then_some(offset),
            append: how & RWF_APPEND != 0,
            now: how & RWF_NOWAIT != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{HEAP_LEN, Machine, NoMemory, Recorder, SCRATCH};
    use crate::random::Random;
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

    #[test]
    fn what_a_write_has_sent_that_may_not_wait_it_says() {
        let mut machine = Machine::with_sockets();
        let pair = [1, 1, 0, SCRATCH];
        assert_eq!(machine.call(Sysno::socketpair, &pair), 0);
        // More than a socket takes.
        let piece = [SCRATCH.to_le_bytes(), (64u64 << 12).to_le_bytes()].concat();
        let vector = machine.put(1, &piece.repeat(64));
        let now = [3, vector, 64, u64::MAX, 0, RWF_NOWAIT.into()];
        let sent = machine.call(Sysno::pwritev2, &now);
        assert!(0 < sent && sent < 64 << 18, "{sent}");
        assert_eq!(machine.call(Sysno::pwritev2, &now), -11);
        let mut received = 0;
        while received < sent {
            received += machine.call(Sysno::read, &[4, SCRATCH + 8192, 32 << 12]);
        }
        assert_eq!(received, sent);
        machine.wait(Sysno::read, &[4, SCRATCH + 8192, 1]);
    }

    #[test]
    fn vectors_must_make_sense() {
        let guest = Guest {
            memory: &mut NoMemory,
            host: &mut Recorder::default(),
            random: &mut Random::new().unwrap(),
        };
        assert_eq!(Pieces::vector(&guest, 0, 1).unwrap_err(), Errno::FAULT);
        assert!(Pieces::vector(&guest, 0, 0).unwrap().0.is_empty());
        let mut machine = Machine::new(Vec::new());
        let huge = machine.put(0, &[0xff; 32]);
        assert_eq!(machine.call(Sysno::writev, &[1, huge, 2]), -22);
    }
}
