//! pipe(2), and writing to pipes (pipe(7)).

use rustix::io::Errno;

use crate::linux::abi::{Guest, PAGE, Reply, Value, flags, length};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::files::fds::{Files, Kind, O_CLOEXEC, O_NONBLOCK, OpenFile};
use crate::linux::files::open_file::{How, O_ACCMODE};
use crate::linux::files::pieces::Pieces;
use crate::linux::files::pipes::{Ends, MAX_PIPES, MORE_PIPES, PipeName, Stuck};
use crate::linux::kept::Kept;
use crate::linux::tasks::pending::{SI_USER, Signal};
use crate::linux::tasks::signals::SIGPIPE;
use crate::linux::tasks::task::Tasks;

/// `PIPE_BUF` (linux/limits.h): what is not longer is written at once or not at all.
const ATOMIC: u64 = PAGE;

/// The task waits for the other end of a pipe.
pub const WAITS: Outcome = Outcome::Block(Wait {
    on: WaitOn::Pipe,
    time: None,
    result: 0,
});

/// pipe(2), pipe2(2)
pub fn pipe2(files: &mut Files, guest: &mut Guest<'_>, address: u64, how: u64) -> Value {
    let how = flags(how);
    // O_DIRECT, packet mode, is not there.
    if how & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    if !files.has_room_for(2) {
        return Err(Errno::MFILE);
    }
    // A bad pointer must not leave descriptors behind.
    guest.write(address, &[0; 8])?;
    let most = match files.has_sockets() {
        true => MORE_PIPES,
        false => MAX_PIPES,
    };
    let pipe = files.pipes.open(most).ok_or(Errno::MFILE)?;
    let close_on_exec = how & O_CLOEXEC != 0;
    let reader = files.add(
        OpenFile::new(Kind::PipeReader(pipe), how & O_NONBLOCK),
        close_on_exec,
    )?;
    let writer = files.add(
        OpenFile::new(Kind::PipeWriter(pipe), 1 | how & O_NONBLOCK),
        close_on_exec,
    )?;
    // struct { int read, write }: both are small.
    guest.write(address, &(reader | writer << 32).to_le_bytes())?;
    Ok(0)
}

/// open(2) of a named pipe, which waits until somebody opens its other end (fifo(7)).
pub fn open_named(files: &mut Files, tid: i32, name: PipeName, how: How) -> Reply {
    let (ends, kind): (_, fn(usize) -> Kind) = match how.0 & O_ACCMODE {
        0 => (Ends::READER, Kind::PipeReader),
        1 => (Ends::WRITER, Kind::PipeWriter),
        _ => (Ends::BOTH, Kind::PipeBoth),
    };
    let pipe = match files.pipes.opening(tid) {
        Some((_, false)) => return Ok(WAITS),
        Some((pipe, true)) => {
            files.pipes.give_up(tid);
            pipe
        }
        None => {
            let blocks = !how.has(O_NONBLOCK);
            let there = files.pipes.named(name.node);
            let has_other = there.is_some_and(|pipe| match ends {
                Ends::READER => files.pipes.has_writer(pipe),
                _ => files.pipes.has_reader(pipe),
            });
            if ends == Ends::WRITER && !has_other && !blocks {
                return Err(Errno::NXIO);
            }
            if !files.has_room_for(1) {
                return Err(Errno::MFILE);
            }
            let pipe = match there {
                Some(pipe) => {
                    files.pipes.open_more(pipe, ends);
                    pipe
                }
                None => {
                    let node = name.node;
                    let pipe = files.pipes.open_named(name, ends, MORE_PIPES);
                    let pipe = pipe.ok_or(Errno::NFILE)?;
                    files.overlay.tree_mut().opened(node)?;
                    pipe
                }
            };
            if ends != Ends::BOTH && !has_other && blocks {
                files.pipes.wait_for_other_end(tid, pipe, ends);
                return Ok(WAITS);
            }
            pipe
        }
    };
    match files.add(OpenFile::new(kind(pipe), how.0), how.has(O_CLOEXEC)) {
        Ok(number) => Ok(Outcome::Return(number.cast_signed())),
        Err(errno) => {
            files.close_pipe(pipe, ends);
            Err(errno)
        }
    }
}

/// Tells the current task that nobody reads any more.
pub fn broken(tasks: &mut Kept<Tasks>) {
    let signal = Signal::by_process(SIGPIPE, SI_USER);
    tasks.current().signals.pending.add(signal, true);
}

/// write(2) and its relatives. One that waits for room is made again from its start; what it has written by then is kept
/// with its task, as sockets do.
pub fn write(
    files: &mut Files,
    tasks: &mut Kept<Tasks>,
    guest: &mut Guest<'_>,
    (pipe, blocks): (usize, bool),
    pieces: &Pieces,
) -> Reply {
    let total = pieces.total();
    let mut done = tasks.progress();
    // What came before an error counts.
    let ends = |done: u64, errno: Errno| match done {
        0 => Err(errno),
        done => Ok(Outcome::Return(done.cast_signed())),
    };
    while done < total {
        let room = match files.pipes.room(pipe) {
            Ok(room) if total > ATOMIC || length(room) >= total => room,
            Err(Stuck::Closed) => {
                broken(tasks);
                return ends(done, Errno::PIPE);
            }
            _ if !blocks => return ends(done, Errno::AGAIN),
            _ => {
                if tasks.progress() != done {
                    tasks.current().progress = done;
                }
                return Ok(WAITS);
            }
        };
        let len = length(room).min(PAGE).min(total - done);
        let bytes = match pieces.gather(guest, done, len) {
            Ok(bytes) => bytes,
            Err(errno) => return ends(done, errno),
        };
        files.pipes.append(pipe, &bytes);
        done = done.saturating_add(len);
    }
    Ok(Outcome::Return(done.cast_signed()))
}
