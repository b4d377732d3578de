//! Pipes from the program to itself: what is in them and who holds their ends.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::net::readiness::{ERR, HUP, IN, OUT, RDNORM, Readiness, WRNORM};

/// What fits into a pipe.
pub const CAPACITY: usize = 64 << 10;

/// Most pipes of a program: each may hold [`CAPACITY`] bytes in the host.
pub const MAX_PIPES: usize = 16;
/// The same of a program with an address space.
pub const MORE_PIPES: usize = 512;

/// Which ends of a pipe an open file is: how many of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ends {
    readers: usize,
    writers: usize,
}

impl Ends {
    /// The one to read from.
    pub const READER: Self = Self {
        readers: 1,
        writers: 0,
    };
    /// The one to write to.
    pub const WRITER: Self = Self {
        readers: 0,
        writers: 1,
    };
    /// Both.
    pub const BOTH: Self = Self {
        readers: 1,
        writers: 1,
    };
}

/// What a named pipe is called.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PipeName {
    /// The file of the overlay that it is.
    pub node: u64,
    /// By which path it was opened first.
    pub path: Arc<[u8]>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// What it was said to hold (`F_SETPIPE_SZ`), of [`CAPACITY`].
    capacity: usize,
    /// Open files of its ends.
    open: Ends,
    /// How many there were, ever.
    opened: Ends,
    name: Option<PipeName>,
    arrivals: u64,
    openings: u64,
}

impl Pipe {
    fn is_used(&self) -> bool {
        self.open != Ends::default()
    }

    fn add(&mut self, ends: Ends) {
        for count in [&mut self.open, &mut self.opened] {
            count.readers = count.readers.saturating_add(ends.readers);
            count.writers = count.writers.saturating_add(ends.writers);
        }
    }
}

/// A task that opens one end of a named pipe, which counts as open, and waits for somebody to open the other.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Opening {
    tid: i32,
    pipe: usize,
    ends: Ends,
    /// How many there had been of either end.
    opened: Ends,
}

/// All pipes of a program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pipes {
    pipes: Vec<Pipe>,
    openings: Vec<Opening>,
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
        let index = self.add(most)?;
        self.pipes.get_mut(index)?.add(Ends::BOTH);
        Some(index)
    }

    fn add(&mut self, most: usize) -> Option<usize> {
        let unused = self.pipes.iter().position(|pipe| !pipe.is_used());
        let index = unused.unwrap_or(self.pipes.len());
        if index >= most {
            return None;
        }
        if index == self.pipes.len() {
            self.pipes.push(Pipe::default());
        }
        *self.pipes.get_mut(index)? = Pipe {
            capacity: CAPACITY,
            ..Pipe::default()
        };
        Some(index)
    }

    /// The pipe that a named one is, if one has it open.
    pub fn named(&self, node: u64) -> Option<usize> {
        let is_it = |pipe: &Pipe| pipe.name.as_ref().is_some_and(|name| name.node == node);
        self.pipes
            .iter()
            .position(|pipe| pipe.is_used() && is_it(pipe))
    }

    /// A named pipe that nobody has open yet, of which one is going to have these ends; `None` if there are `most` pipes.
    pub fn open_named(&mut self, name: PipeName, ends: Ends, most: usize) -> Option<usize> {
        let index = self.add(most)?;
        let pipe = self.pipes.get_mut(index)?;
        pipe.name = Some(name);
        pipe.add(ends);
        Some(index)
    }

    /// An open file more.
    pub fn open_more(&mut self, pipe: usize, ends: Ends) {
        if let Some(pipe) = self.pipes.get_mut(pipe) {
            pipe.add(ends);
        }
    }

    /// What a named pipe is called.
    pub fn name(&self, pipe: usize) -> Option<&PipeName> {
        self.pipes.get(pipe)?.name.as_ref()
    }

    /// A task waits until the other end of what it opens is opened.
    pub fn wait_for_other_end(&mut self, tid: i32, pipe: usize, ends: Ends) {
        let opened = self.pipes.get(pipe).map_or(ends, |pipe| pipe.opened);
        self.openings.push(Opening {
            tid,
            pipe,
            ends,
            opened,
        });
    }

    /// Whether a task waits so, and for what pipe; and whether the other end has been opened since.
    pub fn opening(&self, tid: i32) -> Option<(usize, bool)> {
        let of = self.openings.iter().find(|opening| opening.tid == tid)?;
        let now = self.pipes.get(of.pipe)?.opened;
        let done = match of.ends.readers {
            0 => now.readers != of.opened.readers,
            _ => now.writers != of.opened.writers,
        };
        Some((of.pipe, done))
    }

    /// Whether any task waits so.
    pub fn are_awaited(&self) -> bool {
        !self.openings.is_empty()
    }

    /// It waits no longer; gives what it has open.
    pub fn give_up(&mut self, tid: i32) -> Option<(usize, Ends)> {
        let place = self.openings.iter().position(|of| of.tid == tid)?;
        let of = self.openings.swap_remove(place);
        Some((of.pipe, of.ends))
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
        self.pipes
            .get(pipe)
            .is_some_and(|pipe| pipe.open.readers > 0)
    }

    /// True if somebody can still write.
    pub fn has_writer(&self, pipe: usize) -> bool {
        self.pipes
            .get(pipe)
            .is_some_and(|pipe| pipe.open.writers > 0)
    }

    /// What the end to read from is ready for.
    pub fn reader_readiness(&self, pipe: usize) -> Readiness {
        let bytes = if self.len(pipe) > 0 { IN | RDNORM } else { 0 };
        let written = self
            .pipes
            .get(pipe)
            .is_some_and(|pipe| pipe.opened.writers > 0);
        // One that nobody has opened to write to yet is not at its end.
        let end = match written && !self.has_writer(pipe) {
            true => HUP,
            false => 0,
        };
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

    /// An open file less. Gives the file that it is, if it has a name and this was the last.
    pub fn close(&mut self, pipe: usize, ends: Ends) -> Option<u64> {
        let pipe = self.pipes.get_mut(pipe)?;
        pipe.open.readers = pipe.open.readers.saturating_sub(ends.readers);
        pipe.open.writers = pipe.open.writers.saturating_sub(ends.writers);
        if ends.writers > 0 && pipe.open.writers == 0 {
            pipe.arrivals = pipe.arrivals.wrapping_add(1);
        }
        if ends.readers > 0 && pipe.open.readers == 0 {
            pipe.openings = pipe.openings.wrapping_add(1);
            // Another reader may come to one with a name.
            if pipe.name.is_none() {
                pipe.bytes = VecDeque::new();
            }
        }
        if pipe.is_used() {
            return None;
        }
        pipe.bytes = VecDeque::new();
        pipe.name.take().map(|name| name.node)
    }

    /// The next bytes, at most `most`; they stay until [`Pipes::consume`]. Empty at the end.
    pub fn peek(&self, pipe: usize, most: usize) -> Result<Vec<u8>, Stuck> {
        let Some(pipe) = self.pipes.get(pipe) else {
            return Ok(Vec::new());
        };
        if pipe.bytes.is_empty() && pipe.open.writers > 0 && most > 0 {
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
            .filter(|pipe| pipe.open.readers > 0)
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
