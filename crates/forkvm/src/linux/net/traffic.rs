//! Bytes and messages on their way between sockets.

use std::net::SocketAddr;

use rustix::io::Errno;

use crate::linux::net::address::{Address, plain, reachable, shown};
use crate::linux::net::dns;
use crate::linux::net::outgoing::Way;
use crate::linux::net::packet::{Beside, Packet};
use crate::linux::net::socket::{CAPACITY, Family, Id, Message, Name, Socket, State, Style, cost};
use crate::linux::net::sockets::{MAX_BYTES, Sockets, is_own, serves};

/// The longest datagram of UDP over IPv4.
const MAX_UDP: usize = 65507;

impl Sockets {
    /// How many bytes of a stream can be sent now; none: later.
    pub fn room(&mut self, id: Id) -> Result<usize, Errno> {
        self.check_writable(id)?;
        let total = MAX_BYTES.saturating_sub(self.held);
        if matches!(self.get(id)?.state, State::Connecting) {
            return Ok(0);
        }
        match self.peer_mut(id) {
            Some(_) if total == 0 => Err(Errno::NOBUFS),
            Some(peer) => Ok(peer.room().min(total)),
            // The other end is gone, which is found out by sending.
            None => Ok(CAPACITY),
        }
    }

    /// How many bytes the other end of a connection has room for, to look at.
    pub fn room_of_other_end(&self, id: Id) -> Option<usize> {
        let peer = self.get(id).ok()?.peer()?;
        let total = MAX_BYTES.saturating_sub(self.held);
        Some(self.get(peer).ok()?.room().min(total))
    }

    fn check_writable(&mut self, id: Id) -> Result<(), Errno> {
        let socket = self.get_mut(id)?;
        let inet = socket.nature.is_inet();
        if inet && let Some(error) = socket.error.take() {
            return Err(error);
        }
        match socket.state {
            _ if socket.write_shut => Err(Errno::PIPE),
            State::Connected(_) | State::Connecting => Ok(()),
            _ if inet => Err(Errno::PIPE),
            _ => Err(Errno::NOTCONN),
        }
    }

    /// Sends bytes for which there is room.
    pub fn send_bytes(&mut self, id: Id, bytes: &[u8]) {
        match self.peer_mut(id) {
            Some(peer) => {
                let counted = peer.push_bytes(bytes);
                self.news |= peer.of_engine;
                self.held = self.held.saturating_add(counted);
            }
            // Whoever is gone answers with a reset.
            None => {
                if let Ok(socket) = self.get_mut(id) {
                    socket.error = Some(Errno::PIPE);
                    (socket.read_shut, socket.write_shut) = (true, true);
                    socket.arrived();
                    socket.opened();
                }
            }
        }
    }

    /// These open files go with the next so many bytes. False if nobody will read them.
    pub fn send_rights(&mut self, id: Id, len: usize, files: &[usize]) -> bool {
        let peer = self.peer_mut(id);
        peer.map(|peer| peer.push_rights(len, files.to_vec()))
            .is_some()
    }

    /// Sends a message, with what goes beside it, to the other end or to where `to` says. False: later.
    pub fn send_message(
        &mut self,
        id: Id,
        to: Option<&Name>,
        bytes: &[u8],
        beside: &Beside,
    ) -> Result<bool, Errno> {
        let nature = self.get(id)?.nature;
        let most = match nature.is_inet() {
            true => MAX_UDP,
            false => CAPACITY - cost(0),
        };
        if bytes.len() > most {
            return Err(Errno::MSGSIZE);
        }
        let wishes = &beside.wishes;
        let mut packet = None;
        if let Some(to) = self.inet_target(id, to) {
            match self.way_to(id, to)? {
                Way::Within if wishes.from.is_some_and(|from| !is_own(from)) => {
                    return Err(Errno::INVAL);
                }
                Way::Within => {
                    let options = &self.get(id)?.options;
                    packet = Some(Packet::new(reachable(to).ip(), options, wishes));
                }
                Way::Outside => return self.send_outside(id, to, bytes).map(|()| true),
                Way::Names => return self.ask_name(id, to, bytes).map(|()| true),
                Way::Asking => return Ok(false),
            }
        }
        let target = match (nature.style, nature.is_inet()) {
            (Style::Datagram, true) => self.udp_target(id, to)?,
            (Style::Datagram, false) => Some(self.unix_target(id, to)?),
            _ => {
                self.check_writable(id)?;
                Some(self.get(id)?.peer().ok_or(Errno::NOTCONN)?)
            }
        };
        let v6 = |socket: &Socket| socket.nature.family == Family::V6;
        let from = match &self.get(id)?.local {
            Some(Address::Inet(address)) => {
                // Who is bound to any address sends from the loopback's.
                let to_v6 = target.is_some_and(|target| self.get(target).is_ok_and(v6));
                let mut from = reachable(plain(*address));
                if let Some(wished) = wishes.from {
                    from.set_ip(wished);
                }
                Address::Inet(shown(plain(from), to_v6))
            }
            Some(address) => address.clone(),
            None => Address::Unnamed,
        };
        let held = self.held;
        let Some(target) = target.and_then(|target| self.get_mut(target).ok()) else {
            return Ok(true);
        };
        if target.room() < cost(bytes.len()) {
            // UDP has nobody wait.
            return Ok(nature.is_inet());
        }
        if held.saturating_add(cost(bytes.len())) > MAX_BYTES {
            return Err(Errno::NOBUFS);
        }
        let bytes = bytes.to_vec();
        let rights = beside.rights.clone();
        let counted = target.push_message(Message {
            bytes,
            from,
            rights,
            packet,
        });
        self.held = held.saturating_add(counted);
        Ok(true)
    }

    /// Which way a connection or a datagram takes to an address, which is a plain one.
    pub fn way_to(&mut self, id: Id, to: SocketAddr) -> Result<Way, Errno> {
        let nature = self.get(id)?.nature;
        let datagrams = !nature.connects();
        if !is_own(to.ip()) {
            return self.outgoing.way_to(to, datagrams);
        }
        let to = reachable(to);
        let here = match datagrams {
            true => self.udp_socket_at(to, self.udp_source(id)).is_some(),
            false => self.listener_at(nature, &Name::Inet(to)).is_some(),
        };
        // What the program does not serve itself may be meant to be the host's.
        match here || !self.outgoing.is_allowed() {
            true => Ok(Way::Within),
            false if self.outgoing.names(to) => Ok(Way::Outside),
            false if datagrams && to.port() == dns::PORT => Ok(Way::Names),
            false => {
                self.outgoing.tell_of_loopback(to);
                Ok(Way::Within)
            }
        }
    }

    /// Where a datagram over UDP goes, as far as that is known.
    fn inet_target(&self, id: Id, to: Option<&Name>) -> Option<SocketAddr> {
        let socket = self.get(id).ok()?;
        if !socket.nature.is_inet() || socket.nature.connects() {
            return None;
        }
        match (to, &socket.state) {
            (Some(Name::Inet(to)), _) => Some(reachable(*to)),
            (None, State::Aimed(to)) => Some(*to),
            _ => None,
        }
    }

    /// Who gets a datagram over UDP; `None`: nobody, which whoever sends to one address learns of later.
    fn udp_target(&mut self, id: Id, to: Option<&Name>) -> Result<Option<Id>, Errno> {
        let socket = self.get_mut(id)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if socket.write_shut {
            return Err(Errno::PIPE);
        }
        let to = match (to, &socket.state) {
            (Some(Name::Inet(to)), _) => *to,
            (None, State::Aimed(to)) => *to,
            _ => return Err(Errno::DESTADDRREQ),
        };
        let to = reachable(to);
        self.bind_to_loopback(id, to)?;
        let found = self.udp_socket_at(to, self.udp_source(id));
        if found.is_none() {
            let socket = self.get_mut(id)?;
            if matches!(socket.state, State::Aimed(_)) {
                socket.error = Some(Errno::CONNREFUSED);
                socket.arrived();
            }
        }
        Ok(found)
    }

    fn udp_source(&self, id: Id) -> Option<SocketAddr> {
        match self.get(id).ok()?.local {
            Some(Address::Inet(address)) => Some(reachable(plain(address))),
            _ => None,
        }
    }

    /// Who receives datagrams that come to an address from another one.
    fn udp_socket_at(&self, to: SocketAddr, from: Option<SocketAddr>) -> Option<Id> {
        self.iter()
            .filter(|(_, socket)| socket.nature.style == Style::Datagram)
            .filter(|(_, socket)| match socket.state {
                State::Aimed(aim) => Some(reachable(aim)) == from,
                _ => true,
            })
            .find(|(_, socket)| {
                matches!(socket.name, Some(Name::Inet(at)) if at.port() == to.port()
                    && serves(socket, at.ip(), to.ip()))
            })
            .map(|(id, _)| id)
    }

    fn unix_target(&mut self, id: Id, to: Option<&Name>) -> Result<Id, Errno> {
        let socket = self.get_mut(id)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if socket.write_shut {
            return Err(Errno::PIPE);
        }
        let (target, connected) = match (to, &socket.state) {
            (Some(name), _) => (self.unix_socket_at(name)?, false),
            (None, State::Connected(peer)) => (*peer, true),
            _ => return Err(Errno::NOTCONN),
        };
        match self.get(target) {
            Err(_) if connected => {
                // It learns of that once.
                self.get_mut(id)?.state = State::New;
                Err(Errno::CONNREFUSED)
            }
            Err(_) => Err(Errno::CONNREFUSED),
            Ok(other) if other.read_shut => Err(Errno::PIPE),
            // Who is connected to somebody hears nobody else.
            Ok(other) if other.peer().is_some_and(|peer| peer != id) => Err(Errno::PERM),
            Ok(_) => Ok(target),
        }
    }

    /// The datagram socket of a name.
    pub fn unix_socket_at(&self, name: &Name) -> Result<Id, Errno> {
        let found = self
            .iter()
            .find(|(_, other)| other.name.as_ref() == Some(name));
        match found {
            Some((_, other)) if other.nature.style != Style::Datagram => Err(Errno::PROTOTYPE),
            Some((id, _)) => Ok(id),
            None => Err(Errno::CONNREFUSED),
        }
    }

    /// Takes bytes of a stream away that were read.
    pub fn drop_bytes(&mut self, id: Id, len: usize) {
        if let Ok(socket) = self.get_mut(id) {
            let (counted, opened, rights) = socket.drop_bytes(len);
            self.unreceived.extend(rights);
            self.dropped(id, counted, opened);
        }
    }

    /// Takes the message away that was read.
    pub fn drop_message(&mut self, id: Id) {
        if let Ok(socket) = self.get_mut(id) {
            let (counted, opened, rights) = socket.drop_message();
            self.unreceived.extend(rights);
            self.dropped(id, counted, opened);
        }
    }

    fn dropped(&mut self, id: Id, counted: usize, opened: bool) {
        self.held = self.held.saturating_sub(counted);
        if opened && let Some(peer) = self.peer_mut(id) {
            peer.opened();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::net::socket::Nature;
    use crate::linux::net::sockets::MAX_SOCKETS;

    fn nature(style: Style) -> Nature {
        Nature {
            family: Family::Unix,
            style,
        }
    }

    #[test]
    fn sockets_have_a_limit() {
        let mut sockets = Sockets::default();
        for _ in 0..MAX_SOCKETS / 2 {
            sockets.pair(nature(Style::Stream)).unwrap();
        }
        let more = sockets.pair(nature(Style::Stream));
        assert_eq!(more, Err(Errno::NFILE));
        sockets.close(0);
        // One of two finds no room, and leaves nothing behind.
        assert_eq!(sockets.pair(nature(Style::Stream)), Err(Errno::NFILE));
        assert_eq!(sockets.iter().count(), MAX_SOCKETS - 1);
    }

    #[test]
    fn bytes_have_a_limit_in_each_socket_and_together() {
        let mut sockets = Sockets::default();
        let full = vec![1; CAPACITY];
        let pairs: Vec<(Id, Id)> = (0..MAX_BYTES / CAPACITY)
            .map(|_| sockets.pair(nature(Style::Stream)).unwrap())
            .collect();
        for (one, _) in &pairs {
            assert_eq!(sockets.room(*one), Ok(CAPACITY));
            sockets.send_bytes(*one, &full);
        }
        let (one, other) = pairs[0];
        assert_eq!(sockets.room(one), Err(Errno::NOBUFS));
        assert_eq!(sockets.room(other), Err(Errno::NOBUFS));
        let (message, _) = sockets.pair(nature(Style::SeqPacket)).unwrap();
        let sent = sockets.send_message(message, None, b"x", &Beside::default());
        assert_eq!(sent, Err(Errno::NOBUFS));
        // What is read, or can't be read any more, makes room.
        sockets.drop_bytes(other, 1000);
        assert_eq!(sockets.room(one), Ok(1000));
        assert_eq!(
            sockets.send_message(message, None, b"x", &Beside::default()),
            Ok(true)
        );
        sockets.close(pairs[1].1);
        assert_eq!(sockets.room(other), Ok(CAPACITY));
        for id in pairs.iter().flat_map(|pair| [pair.0, pair.1]) {
            sockets.close(id);
        }
        assert_eq!(sockets.held, cost(1));
    }

    #[test]
    fn messages_of_nothing_fill_a_socket_too() {
        let mut sockets = Sockets::default();
        let (one, _) = sockets.pair(nature(Style::Datagram)).unwrap();
        let sent = (0..)
            .take_while(|_| sockets.send_message(one, None, b"", &Beside::default()) == Ok(true));
        assert_eq!(sent.count(), CAPACITY / cost(0));
        let long = vec![0; CAPACITY];
        assert_eq!(
            sockets.send_message(one, None, &long, &Beside::default()),
            Err(Errno::MSGSIZE)
        );
    }
}
