//! A client's connection as the engine needs it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{Awaited, Connection};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::set_socket_linger;

use super::ending::Ending;
use super::observed::record::{Begun, End, Served};

/// How long a client may be silent after an answer once the command is to end.
const LAST_SILENCE: Duration = Duration::from_secs(1);

/// What poll(2) says of a socket whose other end is gone.
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);
/// Between two looks at one that is.
const PAUSE: Duration = Duration::from_millis(10);

/// Its socket, which does not block.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Our own other end is the client's.
    Pair(UnixStream),
}

impl Socket {
    fn stream(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) | Self::Pair(stream) => stream,
        }
    }

    fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) | Self::Pair(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) | Self::Pair(stream) => stream.as_fd(),
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// What is known of a connection that is to be served.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The client's address, where it has one.
    pub peer: Option<SocketAddr>,
    /// When its first bytes were there.
    pub begun: Begun,
    /// When it has to be over.
    pub deadline: Instant,
    /// Whether the command is to end.
    pub ending: Arc<Ending>,
}

/// A connection on its way to a fork and through it.
pub struct Client {
    /// `None` once it is closed.
    socket: Option<Socket>,
    facts: Facts,
    sent: u64,
    /// Who is told how it went.
    told: Option<Box<dyn FnOnce(Served) + Send>>,
}

impl Client {
    /// `told` learns how it went.
    pub fn new(socket: Socket, facts: Facts, told: impl FnOnce(Served) + Send + 'static) -> Self {
        Self {
            socket: Some(socket),
            facts,
            sent: 0,
            told: Some(Box::new(told)),
        }
    }

    /// How long it waits already.
    pub fn waits(&self) -> Duration {
        self.facts.begun.instant.elapsed()
    }

    /// Bytes that it was sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Closes it: it has all that it gets.
    pub fn close(&mut self) {
        self.socket = None;
    }

    /// Closes it so that what the client has does not look whole.
    pub fn abort(&mut self) {
        if let Some(Socket::Tcp(stream)) = self.socket.take() {
            // Else it is closed as others are.
            let _ = set_socket_linger(&stream, Some(Duration::ZERO));
        }
    }

    /// Closes it, and tells how it went.
    pub fn end(mut self, served: Served) {
        self.close();
        if let Some(told) = self.told.take() {
            told(served);
        }
    }

    /// Closes it without a fork's having had a part.
    pub fn turn_away(self, end: End) {
        let wait = self.waits();
        self.end(Served::not_at_all(wait, end));
    }

    fn socket(&mut self) -> io::Result<&mut Socket> {
        let closed = || io::Error::from(ErrorKind::NotConnected);
        self.socket.as_mut().ok_or_else(closed)
    }
}

/// Whether the other end of a socket is closed or reset: for TCP, a client that only sends no more is not.
pub fn has_left(socket: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().intersects(GONE)
}

/// What can't be done now is `None`.
fn now(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Connection for Client {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        now(self.socket()?.stream().read(buf))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let sent = now(self.socket()?.stream().write(bytes))?;
        self.sent += sent.unwrap_or(0) as u64;
        Ok(sent)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.socket()?.finish()
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, what.receive);
        flags.set(PollFlags::OUT, what.send);
        let ending = self.facts.ending.clone();
        let socket = self.socket()?;
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        let mut waited = vec![PollFd::new(socket, flags)];
        let event = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        waited.extend(what.other.map(event));
        // Its beginning wakes once.
        if !ending.has_begun() {
            waited.push(event(ending.event()));
        }
        match poll(&mut waited, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if flags.is_empty() && waited[0].revents().intersects(GONE) {
            // It is told so at once, again and again, as long as there is something that nobody has room for.
            std::thread::sleep(left.min(PAUSE));
        }
        Ok(())
    }

    fn is_gone(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        let unread = || {
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let read = rustix::net::recv(socket, &mut [0; 1], peek);
            matches!(read, Ok((1.., _)))
        };
        has_left(socket) && (matches!(socket, Socket::Pair(_)) || !unread())
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.facts.peer
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.facts.deadline)
    }

    fn max_silence(&self, usual: Duration) -> Duration {
        if self.facts.ending.has_begun() {
            usual.min(LAST_SILENCE)
        } else {
            usual
        }
    }
}
