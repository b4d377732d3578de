//! Bytes in and out of pipes without the program: splice(2), tee(2), vmsplice(2).

use rustix::io::Errno;

use crate::linux::abi::{Guest, Reply, flags, length};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{Files, O_APPEND, O_NONBLOCK};
use crate::linux::files::io;
use crate::linux::files::open_file::Kind;
use crate::linux::files::pieces::Pieces;
use crate::linux::files::pipe_calls;
use crate::linux::files::pipes::{CAPACITY, Stuck};
use crate::linux::files::transfer::{self, advance, position};
use crate::linux::kept::Kept;
use crate::linux::net::calls;
use crate::linux::tasks::task::Tasks;

const SPLICE_F_NONBLOCK: u32 = 2;
/// `SPLICE_F_MOVE`, `SPLICE_F_NONBLOCK`, `SPLICE_F_MORE`, `SPLICE_F_GIFT`.
const KNOWN: u32 = 15;

/// The pipe that a descriptor is an end of.
fn pipe(kind: &Kind) -> Option<usize> {
    match kind {
        Kind::PipeReader(pipe) | Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe) => Some(*pipe),
        _ => None,
    }
}

/// How a call that moves bytes ends: it waits if it may where none were moved.
fn ends(tasks: &mut Kept<Tasks>, moved: Result<usize, Errno>, waits: bool) -> Reply {
    match moved {
        Err(Errno::AGAIN) if waits => Ok(calls::wait(None)),
        Err(Errno::PIPE) => {
            pipe_calls::broken(tasks);
            Err(Errno::PIPE)
        }
        moved => Ok(Outcome::Return(crate::linux::abi::count(moved?))),
    }
}

fn stuck(stuck: Stuck) -> Errno {
    match stuck {
        Stuck::Waiting => Errno::AGAIN,
        Stuck::Closed => Errno::PIPE,
    }
}

/// Most bytes that one call moves.
fn most(len: u64) -> usize {
    usize::try_from(len).unwrap_or(CAPACITY).min(CAPACITY)
}

/// splice(2): one of the two is a pipe.
pub fn splice(
    files: &mut Files,
    tasks: &mut Kept<Tasks>,
    guest: &mut Guest<'_>,
    args: [u64; 6],
) -> Reply {
    let [from, from_offset, to, to_offset, len, how] = args;
    let how = flags(how);
    if len == 0 {
        return Ok(Outcome::Return(0));
    }
    if how & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let (source, target) = (files.get(from)?, files.get(to)?);
    if !source.readable() || !target.writable() {
        return Err(Errno::BADF);
    }
    let never_waits = |flags: u32| how & SPLICE_F_NONBLOCK != 0 || flags & O_NONBLOCK != 0;
    let (source_flags, target_flags) = (source.flags, target.flags);
    let (source, target) = (source.kind.clone(), target.kind.clone());
    match (pipe(&source), pipe(&target)) {
        (None, None) => Err(Errno::INVAL),
        (Some(_), _) if from_offset != 0 => Err(Errno::SPIPE),
        (_, Some(_)) if to_offset != 0 => Err(Errno::SPIPE),
        (Some(from), Some(to)) => {
            let moved = between(files, from, to, len, true);
            let waits = !never_waits(source_flags) && !never_waits(target_flags);
            ends(tasks, moved, waits)
        }
        (Some(pipe), None) => {
            if target_flags & O_APPEND != 0 || to_offset != 0 && !has_position(&target) {
                return Err(Errno::INVAL);
            }
            let moved = out_of(files, guest, pipe, (to, &target, to_offset), len);
            ends(tasks, moved, !never_waits(source_flags))
        }
        (None, Some(pipe)) => {
            if from_offset != 0 && !has_position(&source) {
                return Err(Errno::INVAL);
            }
            let moved = into(files, guest, (from, &source, from_offset), pipe, len);
            // Also where the source would wait: a socket.
            let waits = !never_waits(target_flags) && source_flags & O_NONBLOCK == 0;
            ends(tasks, moved, waits)
        }
    }
}

/// Whether reads and writes of it may be at an offset.
fn has_position(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::File(_) | Kind::Node(..) | Kind::Text(_) | Kind::Device(_)
    )
}

/// From a pipe to another, which are not the same. They stay in the first unless it `moves` them.
fn between(
    files: &mut Files,
    from: usize,
    to: usize,
    len: u64,
    moves: bool,
) -> Result<usize, Errno> {
    if from == to {
        return Err(Errno::INVAL);
    }
    let room = files.pipes.room(to).map_err(stuck)?;
    let bytes = files.pipes.peek(from, most(len).min(room)).map_err(stuck)?;
    files.pipes.append(to, &bytes);
    if moves {
        files.pipes.consume(from, bytes.len());
    }
    Ok(bytes.len())
}

fn out_of(
    files: &mut Files,
    guest: &mut Guest<'_>,
    pipe: usize,
    (fd, target, address): (u64, &Kind, u64),
    len: u64,
) -> Result<usize, Errno> {
    let at = position(files, guest, fd, address)?;
    let bytes = files.pipes.peek(pipe, most(len)).map_err(stuck)?;
    if bytes.is_empty() {
        return Ok(0);
    }
    let moved = transfer::write_to(files, guest, target, at, &bytes)?;
    files.pipes.consume(pipe, moved);
    if has_position(target) {
        advance(files, guest, fd, address, at.saturating_add(length(moved)))?;
    }
    Ok(moved)
}

fn into(
    files: &mut Files,
    guest: &mut Guest<'_>,
    (fd, source, address): (u64, &Kind, u64),
    pipe: usize,
    len: u64,
) -> Result<usize, Errno> {
    let at = position(files, guest, fd, address)?;
    let room = files.pipes.room(pipe).map_err(stuck)?;
    let mut bytes = vec![0; most(len).min(room)];
    let moved = transfer::read_from(files, guest, source, at, &mut bytes)?;
    files
        .pipes
        .append(pipe, bytes.get(..moved).unwrap_or_default());
    if has_position(source) {
        advance(files, guest, fd, address, at.saturating_add(length(moved)))?;
    }
    Ok(moved)
}

/// tee(2): from a pipe to another, where they stay.
pub fn tee(files: &mut Files, tasks: &mut Kept<Tasks>, [from, to, len, how]: [u64; 4]) -> Reply {
    let how = flags(how);
    if how & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if len == 0 {
        return Ok(Outcome::Return(0));
    }
    let (source, target) = (files.get(from)?, files.get(to)?);
    if !source.readable() || !target.writable() {
        return Err(Errno::BADF);
    }
    let waits = how & SPLICE_F_NONBLOCK == 0 && (source.flags | target.flags) & O_NONBLOCK == 0;
    let (Some(from), Some(to)) = (pipe(&source.kind), pipe(&target.kind)) else {
        return Err(Errno::INVAL);
    };
    let moved = between(files, from, to, len, false);
    ends(tasks, moved, waits)
}

/// vmsplice(2): a write of memory to a pipe, or a read of one.
pub fn vmsplice(
    files: &mut Files,
    tasks: &mut Kept<Tasks>,
    guest: &mut Guest<'_>,
    [fd, vector, len, how]: [u64; 4],
) -> Reply {
    let how = flags(how);
    if how & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let file = files.get(fd)?;
    let writes = match &file.kind {
        Kind::PipeWriter(_) | Kind::PipeBoth(_) => true,
        Kind::PipeReader(_) => false,
        _ => return Err(Errno::BADF),
    };
    let pieces = Pieces::vector(guest, vector, len)?;
    if pieces.total() == 0 {
        return Ok(Outcome::Return(0));
    }
    let reply = match writes {
        true => io::write(files, tasks, guest, fd, &pieces, None),
        false => io::read(files, guest, fd, &pieces, None),
    };
    match reply {
        // It waits for the first byte only.
        Ok(Outcome::Block(_)) if tasks.progress() > 0 => {
            Ok(Outcome::Return(tasks.progress().cast_signed()))
        }
        Ok(Outcome::Block(_)) if how & SPLICE_F_NONBLOCK != 0 => Err(Errno::AGAIN),
        reply => reply,
    }
}
