//! A client's socket as the engine needs it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use forkvm::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A client's socket, which does not block.
pub enum Client {
    /// Of TCP, with its other end's address.
    Tcp(TcpStream, Option<SocketAddr>),
    /// Of a Unix socket, with the address of the client whose request comes by it.
    Unix(UnixStream, Option<SocketAddr>),
}

impl Client {
    /// A TCP connection. Answers are sent as they are made.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr().ok();
        Ok(Self::Tcp(stream, peer))
    }

    /// A connection to a Unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self::Unix(stream, None)
    }

    /// A connection of our own, for a client of this address.
    pub fn forwarded(stream: UnixStream, peer: Option<SocketAddr>) -> Self {
        Self::Unix(stream, peer)
    }
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
        now(match self {
            Self::Tcp(stream, _) => stream.read(buf),
            Self::Unix(stream, _) => stream.read(buf),
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        now(match self {
            Self::Tcp(stream, _) => stream.write(bytes),
            Self::Unix(stream, _) => stream.write(bytes),
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream, _) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream, _) => stream.shutdown(Shutdown::Write),
        }
    }

    fn wait(&mut self, receive: bool, send: bool, until: Instant) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, receive);
        flags.set(PollFlags::OUT, send);
        let socket = match &*self {
            Self::Tcp(stream, _) => stream.as_fd(),
            Self::Unix(stream, _) => stream.as_fd(),
        };
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, peer) | Self::Unix(_, peer) => *peer,
        }
    }
}
