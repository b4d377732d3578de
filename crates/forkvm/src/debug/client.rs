//! The sockets of a debugging session: a listener on this machine, and the client, whose bytes come one by one and
//! whose every wait has an end.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gdbstub::conn::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, getsockname, listen, recv, send, socket_with,
};

use super::address::DebugAddress;

/// Reply bytes that are gathered before they are sent.
const GATHERED: usize = 16 << 10;
/// Connections that may wait to be looked at.
const BACKLOG: i32 = 4;
/// Time to the next try of a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A listening socket. A Unix socket's file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: String,
    file: Option<PathBuf>,
}

impl Listener {
    /// Listens where the settings say.
    pub fn open(address: &DebugAddress) -> io::Result<Self> {
        match address {
            DebugAddress::Loopback(port) => Self::tcp(*port),
            DebugAddress::Unix(path) => Self::unix(path.clone()),
        }
    }

    fn tcp(port: u16) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
        // A fixed port is soon free again after a session.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        listen(&socket, BACKLOG)?;
        let bound = SocketAddr::try_from(getsockname(&socket)?)?;
        Ok(Self {
            socket,
            address: bound.to_string(),
            file: None,
        })
    }

    fn unix(mut path: PathBuf) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if path.is_dir() {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            path.push(format!("forkvm-{}-{number}.gdb", std::process::id()));
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        // The socket's file gets the mode of its descriptor (Linux: unix_bind), so it is never open to others.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        let listener = Self {
            socket,
            address: path.display().to_string(),
            file: Some(path),
        };
        listen(&listener.socket, BACKLOG)?;
        Ok(listener)
    }

    /// The address, as gdb's `target remote` takes it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes a client, if one is there.
    fn accept(&self, end: Instant) -> Option<Client> {
        let socket = accept_with(&self.socket, FLAGS).ok()?;
        Some(Client {
            socket,
            received: Vec::new(),
            next: 0,
            gathered: Vec::new(),
            replied: false,
            end,
        })
    }

    /// Waits for a new client, or for bytes of the one there is.
    pub fn wait(&self, client: Option<&Client>, end: Instant) -> Option<Waited> {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(client.map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        loop {
            wait(&mut fds, end);
            if !fds[0].revents().is_empty() {
                if let Some(client) = self.accept(end) {
                    return Some(Waited::NewClient(client));
                }
                // Without a descriptor for it, the connection stays, and the socket ready.
                std::thread::sleep(ACCEPT_PAUSE);
            }
            if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
                return Some(Waited::Bytes);
            }
            if Instant::now() >= end {
                return None;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // It may be gone already.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// What came first.
#[derive(Debug)]
pub enum Waited {
    /// Another client.
    NewClient(Client),
    /// Bytes of the present client, or its end.
    Bytes,
}

/// Waits until something may be ready.
fn wait(fds: &mut [PollFd<'_>], end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    // Whatever it says, the callers look for themselves.
    let _ = poll(fds, timeout.as_ref());
}

/// A connected client.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    received: Vec<u8>,
    next: usize,
    gathered: Vec<u8>,
    replied: bool,
    end: Instant,
}

/// What a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A byte.
    Byte(u8),
    /// Nothing until the end of the wait.
    Nothing,
    /// It is gone.
    Closed,
}

impl Client {
    /// The next byte. Waits for it until `until`.
    pub fn receive(&mut self, until: Instant) -> Received {
        loop {
            if let Some(&byte) = self.received.get(self.next) {
                self.next += 1;
                return Received::Byte(byte);
            }
            let mut piece = [0; 1024];
            match recv(&self.socket, &mut piece[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Received::Closed,
                Ok((_, n)) => {
                    self.received.clear();
                    self.received.extend_from_slice(&piece[..n]);
                    self.next = 0;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    if Instant::now() >= until {
                        return Received::Nothing;
                    }
                    wait(&mut [PollFd::new(&self.socket, PollFlags::IN)], until);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Received::Closed,
            }
        }
    }

    /// True if it was ever answered: only a whole packet with the right checksum is.
    pub fn replied(&self) -> bool {
        self.replied
    }
}

impl Connection for Client {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.gathered.push(byte);
        if self.gathered.len() < GATHERED {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while let Some(rest) = self.gathered.get(sent..).filter(|rest| !rest.is_empty()) {
            // NOSIGNAL: a client that is gone must not kill the process by SIGPIPE.
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if Instant::now() < self.end => {
                    wait(&mut [PollFd::new(&self.socket, PollFlags::OUT)], self.end);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.gathered.clear();
        self.replied = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that is always ready and gives no connection, as a listener's without descriptors left.
    #[test]
    fn connections_that_cannot_be_taken_are_not_waited_for_beyond_the_end() {
        let (socket, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None).unwrap();
        send(&other, b"x", SendFlags::empty()).unwrap();
        let listener = Listener {
            socket,
            address: String::new(),
            file: None,
        };
        let end = Instant::now() + Duration::from_millis(20);
        assert!(listener.wait(None, end).is_none());
    }
}
