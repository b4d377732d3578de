//! A response's body between the server that makes it and whoever reads it, each at its own pace.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::failure::{Cause, Failure, what_to_raise};
use crate::server::http_client::HttpClient;
use crate::server::{Awaited, Connection};

/// Bytes that a body may have in memory in any case.
const ALWAYS: usize = 64 << 10;
/// How much memory is asked for at a time.
const STEP: usize = 64 << 10;

/// What both ends share.
struct Shared {
    state: Mutex<State>,
    /// There are bytes, or an end.
    came: Condvar,
    /// Readable when there is room again, or nobody reads any more.
    taken: OwnedFd,
}

struct State {
    bytes: VecDeque<u8>,
    /// How many there may be.
    most: usize,
    room: Box<dyn FnMut(u64) -> bool + Send>,
    end: Option<Result<(), Failure>>,
    /// The server waits for room.
    waits: bool,
    is_wanted: bool,
}

/// The rest of a body that is still being made. Dropping it ends that.
pub struct Coming(Arc<Shared>);

/// The end of the server that makes it.
pub struct Writer(Arc<Shared>);

/// What there is of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    NotYet,
    /// No more.
    End,
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coming").finish_non_exhaustive()
    }
}

/// Both ends of a body that has begun so. `room` is asked for memory beyond what it has in any case.
///
/// # Errors
/// There is no room for what has begun, or no file descriptor.
pub fn pair(
    begun: Vec<u8>,
    mut room: Box<dyn FnMut(u64) -> bool + Send>,
) -> Result<(Coming, Writer), Failure> {
    let len = begun.len() as u64;
    let more = len.saturating_sub(ALWAYS as u64);
    if more > 0 && !room(more) {
        return Err(Failure::NoRoom { len });
    }
    let taken = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| lacks("file descriptor", &errno.into()))?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            most: ALWAYS.max(begun.len()),
            bytes: begun.into(),
            room,
            end: None,
            waits: false,
            is_wanted: true,
        }),
        came: Condvar::new(),
        taken,
    });
    Ok((Coming(shared.clone()), Writer(shared)))
}

/// A response can't be taken piece by piece, since the host has no such thing for it.
pub fn lacks(what: &str, error: &io::Error) -> Failure {
    let raise = what_to_raise(error.raw_os_error());
    Failure::NoFork {
        reason: format!("no {what} for a response: {error}{raise}"),
    }
}

impl Coming {
    /// Copies what there is to the start of `buf`, after a wait for it of at most `time`.
    ///
    /// # Errors
    /// The server failed: what has come is not all. That is told after the last byte that came.
    pub fn read(&self, buf: &mut [u8], time: Duration) -> Result<Piece, Failure> {
        let mut state = self.0.state.lock();
        let until = Instant::now() + time;
        while state.bytes.is_empty() && state.end.is_none() {
            if self.0.came.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        // It never fails.
        let read = state.bytes.read(buf).unwrap_or(0);
        if read > 0 {
            if std::mem::take(&mut state.waits) {
                wake(&self.0.taken);
            }
            return Ok(Piece::Bytes(read));
        }
        match &state.end {
            _ if buf.is_empty() => Ok(Piece::NotYet),
            None => Ok(Piece::NotYet),
            Some(Ok(())) => Ok(Piece::End),
            Some(Err(failure)) => Err(failure.clone()),
        }
    }

    /// Copies the start of what there is, to look at it, and says how much that is.
    pub fn look(&self, buf: &mut [u8]) -> usize {
        let state = self.0.state.lock();
        let start = state.bytes.iter().zip(buf.iter_mut());
        start.map(|(from, to)| *to = *from).count()
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.state.lock().is_wanted = false;
        wake(&self.0.taken);
    }
}

/// A write that finds it full has been made before.
fn wake(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

impl Writer {
    /// The body is over, or the server failed.
    pub fn end(&self, end: Result<(), Failure>) {
        self.0.state.lock().end.get_or_insert(end);
        self.0.came.notify_one();
    }

    /// Whether anybody reads it.
    pub fn is_wanted(&self) -> bool {
        self.0.state.lock().is_wanted
    }

    /// Whether the server waits for room.
    pub fn waits(&self) -> bool {
        self.0.state.lock().waits
    }

    /// How many bytes there is room for now, of those wanted: they have memory, too.
    fn room(&self, wanted: usize) -> usize {
        let mut state = self.0.state.lock();
        let needed = state.bytes.len().saturating_add(wanted);
        if needed > state.most {
            let more = (needed - state.most).max(STEP);
            if (state.room)(more as u64) {
                state.most += more;
            }
        }
        let mut room = state.most.saturating_sub(state.bytes.len()).min(wanted);
        if state.bytes.try_reserve(room).is_err() {
            room = 0;
        }
        state.waits |= room == 0;
        room
    }

    /// Adds what there was room for.
    fn push(&self, bytes: Vec<u8>) -> io::Result<()> {
        let mut state = self.0.state.lock();
        if !state.is_wanted {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.bytes.extend(bytes);
        drop(state);
        self.0.came.notify_one();
        Ok(())
    }

    fn forget_taken(&self) {
        let _ = rustix::io::read(&self.0.taken, &mut [0; 8]);
    }

    fn taken(&self) -> BorrowedFd<'_> {
        self.0.taken.as_fd()
    }
}

impl Drop for Writer {
    /// Whoever reads is not left waiting, whatever has become of the thread.
    fn drop(&mut self) {
        let what = "its thread ended before the response did".to_owned();
        let cause = Cause::Machine(what.clone());
        self.end(Err(Failure::Guest { cause, what }));
    }
}

/// A client whose response's body goes to its reader as it comes.
pub struct Streamed<'a> {
    client: &'a mut HttpClient,
    writer: &'a Writer,
}

impl<'a> Streamed<'a> {
    pub fn new(client: &'a mut HttpClient, writer: &'a Writer) -> Self {
        Self { client, writer }
    }
}

impl Connection for Streamed<'_> {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.client.receive(buf)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        // A body is never longer than what it comes in.
        let room = self.writer.room(bytes.len());
        if room == 0 {
            return Ok(None);
        }
        let sent = self.client.send(&bytes[..room])?;
        let body = self.client.response().drain_body();
        if !body.is_empty() {
            self.writer.push(body)?;
        }
        Ok(sent)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.client.finish()
    }

    fn break_off(&mut self) -> io::Result<()> {
        self.client.break_off()
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        if self.is_gone() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let time = until.saturating_duration_since(Instant::now());
        // One that is too long is without end; whoever waits looks again.
        let time = Timespec::try_from(time).ok();
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut waited = vec![readable(self.writer.taken())];
        waited.extend(what.other.map(readable));
        // A signal ends the wait, and whoever waits looks again.
        let _ = poll(&mut waited, time.as_ref());
        self.writer.forget_taken();
        Ok(())
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.client.peer()
    }

    fn deadline(&self) -> Option<Instant> {
        self.client.deadline()
    }

    fn is_gone(&mut self) -> bool {
        self.client.is_gone() || !self.writer.is_wanted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::ZERO;

    #[test]
    fn there_is_room_for_so_much() {
        let mut left = 2 * STEP as u64;
        let room = Box::new(move |more| {
            let granted = left >= more;
            left -= if granted { more } else { 0 };
            granted
        });
        let (coming, writer) = pair(vec![1; 10], room).unwrap();
        let mut sent = 10;
        while let room @ 1.. = writer.room(1000) {
            writer.push(vec![2; room]).unwrap();
            sent += room;
        }
        assert_eq!(sent, ALWAYS + 2 * STEP);
        assert!(writer.waits());
        let mut buf = [0; 11];
        assert_eq!(coming.look(&mut buf), 11);
        assert_eq!(coming.read(&mut buf, SOON), Ok(Piece::Bytes(11)));
        assert_eq!(buf[9..], [1, 2]);
        assert_eq!(writer.room(1000), 11);
        assert!(!writer.waits());
    }

    #[test]
    fn what_is_there_already_needs_room_too() {
        let refused = pair(vec![1; ALWAYS + 1], Box::new(|more| more != 1)).map(drop);
        let len = ALWAYS as u64 + 1;
        assert_eq!(refused, Err(Failure::NoRoom { len }));
        assert!(pair(vec![1; ALWAYS + 1], Box::new(|more| more == 1)).is_ok());
        assert!(pair(vec![1; ALWAYS], Box::new(|_| false)).is_ok());
    }

    /// Else what the server believes to have sent would be lost.
    #[test]
    fn there_is_no_room_without_memory() {
        let (_coming, writer) = pair(vec![1; 10], Box::new(|_| true)).unwrap();
        assert_eq!(writer.room(isize::MAX as usize), 0);
        assert!(writer.waits());
        assert_eq!(writer.room(1000), 1000);
    }

    #[test]
    fn an_end_comes_after_the_bytes() {
        let (coming, writer) = pair(vec![1; 10], Box::new(|_| false)).unwrap();
        let mut buf = [0; 8];
        assert_eq!(coming.read(&mut buf, SOON), Ok(Piece::Bytes(8)));
        // Its thread has panicked.
        drop(writer);
        assert_eq!(coming.read(&mut buf, SOON), Ok(Piece::Bytes(2)));
        assert!(coming.read(&mut buf, SOON).is_err());
        let (coming, writer) = pair(Vec::new(), Box::new(|_| false)).unwrap();
        assert_eq!(coming.read(&mut buf, SOON), Ok(Piece::NotYet));
        writer.end(Ok(()));
        drop(writer);
        assert_eq!(coming.read(&mut buf, SOON), Ok(Piece::End));
        let (coming, writer) = pair(Vec::new(), Box::new(|_| false)).unwrap();
        drop(coming);
        assert!(!writer.is_wanted() && writer.push(vec![1]).is_err());
    }
}
