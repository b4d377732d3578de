//! Pipes from the program to itself: what is in them and who holds their ends.

use std::collections::VecDeque;

use rustix::io::Errno;

use crate::linux::net::readiness::{ERR, HUP, IN, OUT, RDNORM, Readiness, WRNORM};

/// What fits into a pipe.
pub const CAPACITY: usize = 64 << 10;

/// Most pipes of a program: each may hold [`CAPACITY`] bytes in the host.
pub const MAX_PIPES: usize = 16;
/// The same of a program with an address space.
pub const MORE_PIPES: usize = 512;

#[derive(Debug, Clone, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// What it was said to hold (`F_SETPIPE_SZ`), of [`CAPACITY`].
    capacity: usize,
    read_end: bool,
    write_end: bool,
    arrivals: u64,
    openings: u64,
}

/// All pipes of a program.
#[derive(Debug, Clone, Default)]
pub struct Pipes {
    pipes: Vec<Pipe>,
}

/// Why a pipe gives or takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// It would wait for the other end, which is the program itself.
    Waiting,
    /// The other end is closed.
    Closed,
}

impl Pipes {
    /// A pipe with both ends open; `None` if there are `most` of them.
    pub fn open(&mut self, most: usize) -> Option<usize> {
        let unused = |pipe: &Pipe| !pipe.read_end && !pipe.write_end;
        let index = self
            .pipes
            .iter()
            .position(unused)
            .unwrap_or(self.pipes.len());
        if index >= most {
            return None;
        }
        if index == self.pipes.len() {
            self.pipes.push(Pipe::default());
        }
        let pipe = self.pipes.get_mut(index)?;
        *pipe = Pipe {
            capacity: CAPACITY,
            read_end: true,
            write_end: true,
            ..Pipe::default()
        };
        Some(index)
    }

    /// Bytes in a pipe.
    pub fn len(&self, pipe: usize) -> usize {
        self.pipes.get(pipe).map_or(0, |pipe| pipe.bytes.len())
    }

    /// What fits into a pipe.
    pub fn capacity(&self, pipe: usize) -> usize {
        self.pipes.get(pipe).map_or(0, |pipe| pipe.capacity)
    }

    /// Has a pipe hold that much, in whole pages: not more than [`CAPACITY`], nor less than is in it.
    pub fn set_capacity(&mut self, pipe: usize, wanted: usize) -> Result<usize, Errno> {
        let pipe = self.pipes.get_mut(pipe).ok_or(Errno::BADF)?;
        // Linux takes a power of two of pages.
        let wanted = wanted.max(4096).checked_next_power_of_two();
        let wanted = wanted
            .filter(|wanted| *wanted <= CAPACITY)
            .ok_or(Errno::PERM)?;
        if wanted < pipe.bytes.len() {
            return Err(Errno::BUSY);
        }
        pipe.capacity = wanted;
        pipe.openings = pipe.openings.wrapping_add(1);
        Ok(wanted)
    }

    /// True if somebody can still read.
    pub fn has_reader(&self, pipe: usize) -> bool {
        self.pipes.get(pipe).is_some_and(|pipe| pipe.read_end)
    }

    /// True if somebody can still write.
    pub fn has_writer(&self, pipe: usize) -> bool {
        self.pipes.get(pipe).is_some_and(|pipe| pipe.write_end)
    }

    /// What the end to read from is ready for.
    pub fn reader_readiness(&self, pipe: usize) -> Readiness {
        let bytes = if self.len(pipe) > 0 { IN | RDNORM } else { 0 };
        let end = if self.has_writer(pipe) { 0 } else { HUP };
        self.readiness(pipe, bytes | end)
    }

    /// What the end to write to is ready for.
    pub fn writer_readiness(&self, pipe: usize) -> Readiness {
        let room = if self.room(pipe).is_ok() {
            OUT | WRNORM
        } else {
            0
        };
        let end = if self.has_reader(pipe) { 0 } else { ERR };
        self.readiness(pipe, room | end)
    }

    fn readiness(&self, pipe: usize, events: u16) -> Readiness {
        let counts = |pipe: &Pipe| (pipe.arrivals, pipe.openings);
        let (arrivals, openings) = self.pipes.get(pipe).map_or((0, 0), counts);
        Readiness {
            events,
            arrivals,
            openings,
        }
    }

    /// The last descriptor to read from it is closed.
    pub fn close_reader(&mut self, pipe: usize) {
        if let Some(pipe) = self.pipes.get_mut(pipe) {
            pipe.read_end = false;
            pipe.bytes = VecDeque::new();
            pipe.openings = pipe.openings.wrapping_add(1);
        }
    }

    /// The last descriptor to write to it is closed.
    pub fn close_writer(&mut self, pipe: usize) {
        if let Some(pipe) = self.pipes.get_mut(pipe) {
            pipe.write_end = false;
            pipe.arrivals = pipe.arrivals.wrapping_add(1);
        }
    }

    /// The next bytes, at most `most`; they stay until [`Pipes::consume`]. Empty at the end.
    pub fn peek(&self, pipe: usize, most: usize) -> Result<Vec<u8>, Stuck> {
        let Some(pipe) = self.pipes.get(pipe) else {
            return Ok(Vec::new());
        };
        if pipe.bytes.is_empty() && pipe.write_end && most > 0 {
            return Err(Stuck::Waiting);
        }
        Ok(pipe.bytes.iter().take(most).copied().collect())
    }

    /// Takes bytes away that were peeked at.
    pub fn consume(&mut self, pipe: usize, len: usize) {
        if let Some(pipe) = self.pipes.get_mut(pipe) {
            let len = len.min(pipe.bytes.len());
            let was_full = pipe.bytes.len() >= pipe.capacity;
            pipe.bytes.drain(..len);
            if was_full && len > 0 {
                pipe.openings = pipe.openings.wrapping_add(1);
            }
        }
    }

    /// How much can be written now.
    pub fn room(&self, pipe: usize) -> Result<usize, Stuck> {
        let pipe = self
            .pipes
            .get(pipe)
            .filter(|pipe| pipe.read_end)
            .ok_or(Stuck::Closed)?;
        let room = pipe.capacity.saturating_sub(pipe.bytes.len());
        if room == 0 {
            Err(Stuck::Waiting)
        } else {
            Ok(room)
        }
    }

    /// Writes bytes for which there is room.
    pub fn append(&mut self, pipe: usize, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.get_mut(pipe) {
            let room = pipe.capacity.saturating_sub(pipe.bytes.len());
            pipe.bytes.extend(bytes.iter().take(room));
            pipe.arrivals = pipe.arrivals.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::call::{Outcome, WaitOn};
    use crate::linux::files::fds::{O_CLOEXEC, O_NONBLOCK};
    use crate::linux::testing::{Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn what_is_written_is_read() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(
            machine.call(Sysno::pipe2, &[SCRATCH, u64::from(O_CLOEXEC)]),
            0
        );
        assert_eq!(machine.get(SCRATCH, 8), [3, 0, 0, 0, 4, 0, 0, 0]);
        let text = machine.put(1, b"hello");
        let read = machine.wait(Sysno::read, &[3, SCRATCH, 10]);
        assert_eq!((read.on, read.time), (WaitOn::Pipe, None));
        assert_eq!(machine.call(Sysno::write, &[4, text, 5]), 5);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 3]), 3);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH + 3, 10]), 2);
        assert_eq!(machine.get(SCRATCH, 5), b"hello");
        assert_eq!(machine.call(Sysno::read, &[4, SCRATCH, 1]), -9);
        assert_eq!(machine.call(Sysno::write, &[3, SCRATCH, 1]), -9);
        assert_eq!(machine.call(Sysno::close, &[4]), 0);
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 10]), 0);
    }

    #[test]
    fn a_full_pipe_and_a_closed_one() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(
            machine.call(Sysno::pipe2, &[SCRATCH, u64::from(O_NONBLOCK)]),
            0
        );
        assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 1]), -11);
        assert_eq!(machine.call(Sysno::write, &[4, SCRATCH, 100_000]), 65536);
        assert_eq!(machine.call(Sysno::write, &[4, SCRATCH, 1]), -11);
        assert_eq!(machine.call(Sysno::close, &[3]), 0);
        assert_eq!(
            machine.outcome(Sysno::write, &[4, SCRATCH, 1]),
            Outcome::Killed(13)
        );
        let ignore = machine.put(1, &1u64.to_le_bytes());
        assert_eq!(machine.call(Sysno::rt_sigaction, &[13, ignore, 0, 8]), 0);
        assert_eq!(machine.call(Sysno::write, &[4, SCRATCH, 1]), -32);
    }

    #[test]
    fn pipes_run_out() {
        let mut machine = Machine::new(Vec::new());
        for _ in 0..MAX_PIPES {
            assert_eq!(machine.call(Sysno::pipe, &[SCRATCH]), 0);
        }
        assert_eq!(machine.call(Sysno::pipe, &[SCRATCH]), -24);
        assert_eq!(machine.call(Sysno::close_range, &[3, 1000]), 0);
        assert_eq!(machine.call(Sysno::pipe, &[SCRATCH]), 0);
    }
}
