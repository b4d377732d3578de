//! Connections to the outside. The program's end is a socket like any other; at the other end is one of the engine's, and
//! between that and the host's socket bytes are moved as far as there is room: nobody ever waits here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType};

use crate::linux::net::address::{Address, plain, shown};
use crate::linux::net::outgoing::Stream;
use crate::linux::net::outside::ConnectionId;
use crate::linux::net::socket::{Family, Id, Socket, State};
use crate::linux::net::sockets::Sockets;

/// How long a connection that the program has closed is there for what it has sent before.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Bytes that are moved at once.
const PIECE: usize = 64 << 10;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pumped {
    /// Something was moved.
    Moved,
    /// Nothing can be for now.
    Still,
    /// It is over.
    Over,
}

impl Sockets {
    /// Begins to connect a socket to an address that may be reached. It is [`State::Connecting`] then.
    pub fn connect_to_outside(&mut self, id: Id, to: SocketAddr) -> Result<(), Errno> {
        let nature = self.get(id)?.nature;
        let socket = self.outgoing.socket(to, SocketType::STREAM)?;
        // Pieces are as large as they can be when they are sent.
        rustix::net::sockopt::set_tcp_nodelay(&socket.fd, true)?;
        match rustix::net::connect(&socket.fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let end = self.add(Socket {
            state: State::Connected(id),
            of_engine: true,
            ..Socket::new(nature)
        })?;
        let live = self.outgoing.live()?;
        if let Err(errno) = live.watch(end, &socket.fd) {
            self.remove(end);
            return Err(errno);
        }
        let mut stream = Stream {
            socket,
            to,
            connecting: true,
            ended: false,
            finished: false,
            closed: None,
        };
        stream.socket.writable = false;
        live.streams.insert(end, stream);
        let socket = self.get_mut(id)?;
        socket.state = State::Connecting;
        socket.connecting = true;
        (socket.read_shut, socket.write_shut) = (false, false);
        let v6 = nature.family == Family::V6;
        socket.remote = Some(Address::Inet(shown(to, v6)));
        Ok(())
    }

    /// Moves what can be moved between the host and the program, and takes the addresses of names. True if that was anything.
    pub fn pump_outside(&mut self) -> bool {
        let Some(mut live) = self.outgoing.live.take() else {
            return false;
        };
        live.look();
        let found = live.names.found();
        let mut moved = !found.is_empty();
        for found in &found {
            self.outgoing.learn(found);
            self.answer(&mut live, found);
        }
        let mut buf = Vec::new();
        live.streams.retain(|&end, stream| {
            let pumped = if stream.connecting {
                self.see_connected(stream, end)
            } else {
                self.pump(stream, end, &mut buf)
            };
            moved |= pumped != Pumped::Still;
            pumped != Pumped::Over
        });
        moved |= self.pump_datagrams(&mut live, &mut buf);
        self.outgoing.live = Some(live);
        moved
    }

    /// Whether the host has yet to take what the program has sent.
    pub fn has_unsent(&self) -> bool {
        let Some(live) = &self.outgoing.live else {
            return false;
        };
        let waits = |end: &Id| self.get(*end).is_ok_and(|socket| socket.available() > 0);
        live.streams.keys().any(waits)
    }

    /// Where the program's connections to the outside go.
    pub fn outside_connections(&self) -> Vec<SocketAddr> {
        let live = self.outgoing.live.iter();
        live.flat_map(|live| live.streams.iter())
            .filter(|(end, _)| !self.is_closed(ConnectionId(**end)))
            .map(|(_, stream)| stream.to)
            .collect()
    }

    /// Ends all that is on the host. Connections are reset, as the program finds out when it next uses them.
    pub fn leave_outside(&mut self) {
        let Some(live) = self.outgoing.live.take() else {
            return;
        };
        for end in live.streams.into_keys() {
            self.broken(end, Errno::CONNRESET);
        }
    }

    fn see_connected(&mut self, stream: &mut Stream, end: Id) -> Pumped {
        let Some(id) = self.program_end(ConnectionId(end)) else {
            self.remove(end);
            return Pumped::Over;
        };
        if !stream.socket.writable {
            return Pumped::Still;
        }
        let outcome = rustix::net::sockopt::socket_error(&stream.socket.fd);
        if let Err(errno) = outcome.and_then(|error| error) {
            self.remove(end);
            if let Ok(socket) = self.get_mut(id) {
                socket.state = State::New;
                socket.fail(errno);
            }
            return Pumped::Over;
        }
        stream.connecting = false;
        let own = rustix::net::getsockname(&stream.socket.fd);
        let own = own.and_then(SocketAddr::try_from).ok();
        if let Ok(socket) = self.get_mut(id) {
            socket.state = State::Connected(end);
            let v6 = socket.nature.family == Family::V6;
            let own = own.map(|own| Address::Inet(shown(plain(own), v6)));
            socket.local = own.or(socket.local.take());
            socket.opened();
        }
        Pumped::Moved
    }

    fn pump(&mut self, stream: &mut Stream, end: Id, buf: &mut Vec<u8>) -> Pumped {
        let sent = self.pump_out(stream, end);
        let received = match sent {
            Ok(_) => self.pump_in(stream, end, buf),
            Err(errno) => Err(errno),
        };
        if self.is_closed(ConnectionId(end)) {
            return self.pump_closed(stream, end, received.is_err());
        }
        match (sent, received) {
            (Err(errno), _) | (_, Err(errno)) => {
                self.broken(end, errno);
                Pumped::Over
            }
            (Ok(false), Ok(false)) => Pumped::Still,
            _ => Pumped::Moved,
        }
    }

    /// The program has closed its end: the host gets the rest.
    fn pump_closed(&mut self, stream: &mut Stream, end: Id, failed: bool) -> Pumped {
        let since = *stream.closed.get_or_insert_with(Instant::now);
        let left = self.get(end).is_ok_and(|socket| socket.error.is_some());
        let reset = left || since.elapsed() > LONGEST_REST;
        if reset {
            // As the program has closed it, or left something unread.
            let now = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(&stream.socket.fd, now);
        }
        let rest = self.get(end).is_ok_and(|socket| socket.available() > 0);
        if rest && !reset && !failed {
            return Pumped::Still;
        }
        self.close(end);
        Pumped::Over
    }

    fn pump_out(&mut self, stream: &mut Stream, end: Id) -> Result<bool, Errno> {
        let mut moved = false;
        while stream.socket.writable {
            let bytes = self.get(end)?.peek_bytes(PIECE);
            if bytes.is_empty() {
                break;
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&stream.socket.fd, &bytes, flags) {
                Ok(sent) => {
                    self.drop_bytes(end, sent);
                    moved = true;
                }
                Err(Errno::AGAIN) => stream.socket.writable = false,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let all = self.get(end)?.available() == 0;
        if all && self.sent_end(ConnectionId(end)) && !stream.finished {
            stream.finished = true;
            // One that is over needs not be told.
            let _ = rustix::net::shutdown(&stream.socket.fd, Shutdown::Write);
        }
        Ok(moved)
    }

    fn pump_in(&mut self, stream: &mut Stream, end: Id, buf: &mut Vec<u8>) -> Result<bool, Errno> {
        let mut moved = false;
        let connection = ConnectionId(end);
        while stream.socket.readable && !stream.ended && !self.is_closed(connection) {
            let room = self.room(end).unwrap_or(0).min(PIECE);
            if room == 0 {
                break;
            }
            buf.resize(PIECE, 0);
            let part = buf.get_mut(..room).unwrap_or_default();
            match rustix::net::recv(&stream.socket.fd, part, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    stream.ended = true;
                    self.finish(connection);
                    moved = true;
                }
                Ok((len, _)) => {
                    self.feed(connection, buf.get(..len).unwrap_or_default());
                    moved = true;
                }
                Err(Errno::AGAIN) => stream.socket.readable = false,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(moved)
    }

    /// The connection has failed.
    fn broken(&mut self, end: Id, errno: Errno) {
        let id = self.program_end(ConnectionId(end));
        self.remove(end);
        if let Some(socket) = id.and_then(|id| self.get_mut(id).ok()) {
            socket.fail(errno);
        }
    }
}
