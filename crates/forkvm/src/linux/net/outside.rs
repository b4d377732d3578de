//! Connections from outside: what the engine brings to a program's listening sockets, and takes from them. Their other
//! ends are sockets as well, which no descriptor stands for.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::net::address::{Address, reachable};
use crate::linux::net::socket::{Id, Nature, Socket, State, Style};
use crate::linux::net::sockets::{Connected, Sockets};

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId(pub(super) Id);

/// The engine's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) Id);

/// A listening socket as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Which it is.
    pub id: ListenerId,
    /// Where it listens.
    pub address: Address,
    /// How many connections wait to be accepted.
    pub waiting: usize,
}

impl Sockets {
    /// The streams that listen.
    pub fn listeners(&self) -> Vec<Listener> {
        let listener = |(id, socket): (Id, &Socket)| match &socket.state {
            State::Listening { waiting, .. } if socket.nature.style == Style::Stream => {
                Some(Listener {
                    id: ListenerId(id),
                    address: socket.local.clone().unwrap_or(Address::Unnamed),
                    waiting: waiting.len(),
                })
            }
            _ => None,
        };
        self.iter().filter_map(listener).collect()
    }

    /// Has a connection wait at a listener, whose program sees it come from `peer`. `None` where nobody listens, the
    /// backlog is full or there are too many sockets.
    pub fn connect_from_outside(
        &mut self,
        listener: ListenerId,
        peer: Address,
    ) -> Option<ConnectionId> {
        let of = self.get(listener.0).ok()?;
        let to = match of.local {
            Some(Address::Inet(address)) => Some(reachable(address)),
            _ => None,
        };
        let nature = Nature { ..of.nature };
        let local = match (&peer, nature.is_inet()) {
            (Address::Inet(_), true) => peer,
            (Address::Inet(_), false) | (_, true) => Address::Unnamed,
            _ => peer,
        };
        let id = self
            .add(Socket {
                local: Some(local),
                of_engine: true,
                ..Socket::new(nature)
            })
            .ok()?;
        match self.connect(id, listener.0, to) {
            Ok(Connected::Done) => Some(ConnectionId(id)),
            _ => {
                self.close_how(id, true);
                None
            }
        }
    }

    /// Brings bytes to the program. Gives how many there was room for: none too where it reads no more.
    pub fn feed(&mut self, connection: ConnectionId, bytes: &[u8]) -> usize {
        let id = connection.0;
        if self.is_closed(connection) {
            return 0;
        }
        let room = self.room(id).unwrap_or(0);
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if !part.is_empty() {
            self.send_bytes(id, part);
        }
        part.len()
    }

    /// The client sends no more.
    pub fn finish(&mut self, connection: ConnectionId) {
        // One that is gone needs not be told.
        let _ = self.shutdown(connection.0, false, true);
    }

    /// The client is gone without having said so.
    pub fn reset(&mut self, connection: ConnectionId) {
        self.close_how(connection.0, true);
    }

    /// The engine is done with the connection: to the program the client has closed it.
    pub fn hang_up(&mut self, connection: ConnectionId) {
        self.close(connection.0);
    }

    /// Takes what the program has sent, at most `most` bytes.
    pub fn take(&mut self, connection: ConnectionId, most: usize) -> Vec<u8> {
        let bytes = match self.get(connection.0) {
            Ok(socket) => socket.peek_bytes(most),
            Err(_) => return Vec::new(),
        };
        self.drop_bytes(connection.0, bytes.len());
        bytes
    }

    /// True once after the program has sent something to a client, or has ended a connection.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Whether nothing more will come from the program than what can be taken.
    pub fn sent_end(&self, connection: ConnectionId) -> bool {
        self.get(connection.0).is_ok_and(|socket| socket.read_shut) || self.is_closed(connection)
    }

    /// Whether the program has reset it, or closed it without having read all: whoever is connected so may not get what was sent last.
    pub fn is_reset(&self, connection: ConnectionId) -> bool {
        let socket = self.get(connection.0);
        socket.is_ok_and(|socket| socket.error == Some(Errno::CONNRESET))
    }

    /// The program's end of it, accepted or not.
    pub fn program_end(&self, connection: ConnectionId) -> Option<Id> {
        let peer = self.get(connection.0).ok()?.peer()?;
        self.get(peer).ok().map(|_| peer)
    }

    /// Whether the program has closed it.
    pub fn is_closed(&self, connection: ConnectionId) -> bool {
        let peer = self.get(connection.0).ok().and_then(Socket::peer);
        peer.is_none_or(|peer| self.get(peer).is_err())
    }
}
