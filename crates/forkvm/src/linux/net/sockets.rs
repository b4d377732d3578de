//! All sockets of a program: their names and their connections. Nothing of them is on the host but what is `outgoing`, which
//! a reset ends; all the rest it puts back with everything else.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::net::address::{Address, plain, reachable, shown};
use crate::linux::net::listening::MayListen;
use crate::linux::net::outgoing::Outgoing;
use crate::linux::net::readiness::Readiness;
use crate::linux::net::socket::{Family, Id, Name, Nature, Socket, State};

/// Most sockets, those that no descriptor stands for included: ends that wait to be accepted, and the engine's.
pub const MAX_SOCKETS: usize = 2048;
/// Most bytes that wait in all sockets together (`ENOBUFS`).
pub const MAX_BYTES: usize = 32 << 20;
/// Most connections that wait to be accepted (`net.core.somaxconn`).
pub const MAX_BACKLOG: usize = 4096;
/// Ports for those who do not choose (`net.ipv4.ip_local_port_range`).
const PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

pub const SOL_SOCKET: i32 = 1;
pub const SO_REUSEADDR: i32 = 2;
pub const SO_LINGER: i32 = 13;
pub const SO_REUSEPORT: i32 = 15;
pub const IPPROTO_IPV6: i32 = 41;
pub const IPV6_V6ONLY: i32 = 26;

/// What became of a connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connected {
    /// It is connected.
    Done,
    /// The other one's backlog is full.
    Full,
}

/// All sockets of a program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sockets {
    pub(super) all: BTreeMap<Id, Socket>,
    next_id: Id,
    ports_given: u16,
    names_given: u32,
    /// What may be reached outside, and what was.
    #[serde(skip)]
    pub outgoing: Outgoing,
    /// Where it may listen.
    #[serde(skip)]
    pub may_listen: MayListen,
    pub(super) held: usize,
    /// Open files that were on their way to sockets, and are received by now or never will be: they hold nothing any more.
    pub(super) unreceived: Vec<usize>,
    /// The program has sent something to the engine's end of a connection, or its end.
    pub(super) news: bool,
}

impl Sockets {
    /// Adds one; `ENFILE` if there are too many.
    pub fn add(&mut self, socket: Socket) -> Result<Id, Errno> {
        if self.all.len() >= MAX_SOCKETS {
            return Err(Errno::NFILE);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.all.insert(id, socket);
        Ok(id)
    }

    /// The program may from now on reach what this one may, and listen where it may.
    pub fn be_allowed_as(&mut self, other: Self) {
        (self.outgoing, self.may_listen) = (other.outgoing, other.may_listen);
    }

    /// How many open files are on their way.
    pub fn rights_under_way(&self) -> usize {
        let counts = self.all.values().map(|socket| socket.all_rights().count());
        counts.sum()
    }

    /// The next open file to let go of.
    pub fn take_unreceived(&mut self) -> Option<usize> {
        self.unreceived.pop()
    }

    /// One of them.
    pub fn get(&self, id: Id) -> Result<&Socket, Errno> {
        self.all.get(&id).ok_or(Errno::BADF)
    }

    /// One of them, to change.
    pub fn get_mut(&mut self, id: Id) -> Result<&mut Socket, Errno> {
        self.all.get_mut(&id).ok_or(Errno::BADF)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Socket)> {
        self.all.iter().map(|(&id, socket)| (id, socket))
    }

    /// The one that this is connected to, unless it is gone.
    pub fn peer_mut(&mut self, id: Id) -> Option<&mut Socket> {
        let peer = self.all.get(&id)?.peer()?;
        self.all.get_mut(&peer)
    }

    /// socketpair(2)
    pub fn pair(&mut self, nature: Nature) -> Result<(Id, Id), Errno> {
        let socket = Socket {
            local: Some(Address::Unnamed),
            remote: Some(Address::Unnamed),
            ..Socket::new(nature)
        };
        let first = self.add(socket.clone())?;
        let second = match self.add(socket) {
            Ok(second) => second,
            Err(errno) => {
                self.all.remove(&first);
                return Err(errno);
            }
        };
        self.get_mut(first)?.state = State::Connected(second);
        self.get_mut(second)?.state = State::Connected(first);
        Ok((first, second))
    }

    /// bind(2), by this name if the address is a path.
    pub fn bind(&mut self, id: Id, address: Address, path: Option<Name>) -> Result<(), Errno> {
        let nature = self.get(id)?.nature;
        if self.get(id)?.name.is_some() {
            return Err(Errno::INVAL);
        }
        let (name, local) = match address {
            Address::Inet(wanted) if nature.is_inet() => {
                let (name, local) = self.inet_name(id, wanted)?;
                // One that takes any port may be to send only: it is looked at when it listens.
                if wanted.port() != 0 {
                    self.check_listens(name)?;
                }
                (Name::Inet(name), Address::Inet(local))
            }
            Address::Path(raw) if !nature.is_inet() => {
                (path.unwrap_or(Name::Path(raw.clone())), Address::Path(raw))
            }
            Address::Abstract(raw) if !nature.is_inet() => {
                (Name::Abstract(raw.clone()), Address::Abstract(raw))
            }
            Address::Unnamed if !nature.is_inet() => {
                let raw = self.free_name().ok_or(Errno::ADDRINUSE)?;
                (Name::Abstract(raw.clone()), Address::Abstract(raw))
            }
            _ if nature.is_inet() => return Err(Errno::AFNOSUPPORT),
            _ => return Err(Errno::INVAL),
        };
        if !matches!(name, Name::Inet(_))
            && self
                .all
                .values()
                .any(|other| other.name.as_ref() == Some(&name))
        {
            return Err(Errno::ADDRINUSE);
        }
        let socket = self.get_mut(id)?;
        (socket.name, socket.local) = (Some(name), Some(local));
        Ok(())
    }

    /// Whether the program may listen there.
    fn check_listens(&mut self, at: SocketAddr) -> Result<(), Errno> {
        if self.may_listen.at(at) {
            return Ok(());
        }
        self.outgoing.tell(format!(
            "the program may not listen at {at}: --allow-listen={at} would allow it"
        ));
        Err(Errno::ACCESS)
    }

    /// A name for one that does not choose (unix(7), "Autobind feature").
    fn free_name(&mut self) -> Option<Vec<u8>> {
        (0..=MAX_SOCKETS).find_map(|_| {
            let name = format!("{:05x}", self.names_given & 0xf_ffff).into_bytes();
            self.names_given = self.names_given.wrapping_add(1);
            let taken = Some(Name::Abstract(name.clone()));
            let free = !self.all.values().any(|other| other.name == taken);
            free.then_some(name)
        })
    }

    /// The name and the address of one of IP that wants to be bound.
    fn inet_name(&mut self, id: Id, wanted: SocketAddr) -> Result<(SocketAddr, SocketAddr), Errno> {
        let of = self.get(id)?;
        let v6 = of.nature.family == Family::V6;
        if v6 != wanted.is_ipv6() {
            return Err(if v6 { Errno::INVAL } else { Errno::AFNOSUPPORT });
        }
        let name = plain(wanted);
        if v6 && name.is_ipv4() && of.has(IPPROTO_IPV6, IPV6_V6ONLY) {
            return Err(Errno::INVAL);
        }
        let ip = name.ip();
        if !is_own(ip) && !ip.is_multicast() {
            return Err(Errno::ADDRNOTAVAIL);
        }
        if name.port() == 0 {
            let name = self.free_port(id, ip).ok_or(Errno::ADDRINUSE)?;
            return Ok((name, shown(name, v6)));
        }
        if self.conflicts(id, name) {
            return Err(Errno::ADDRINUSE);
        }
        Ok((name, wanted))
    }

    fn free_port(&mut self, id: Id, ip: IpAddr) -> Option<SocketAddr> {
        PORTS.into_iter().find_map(|_| {
            let len = PORTS.end() - PORTS.start() + 1;
            let name = SocketAddr::new(ip, PORTS.start() + self.ports_given % len);
            self.ports_given = (self.ports_given + 1) % len;
            let taken = self.all.iter().any(|(&other, socket)| {
                other != id
                    && matches!(socket.name, Some(Name::Inet(of)) if of.port() == name.port())
            });
            (!taken).then_some(name)
        })
    }

    /// Whether another socket's name stands against this one.
    fn conflicts(&self, id: Id, name: SocketAddr) -> bool {
        let Ok(socket) = self.get(id) else {
            return false;
        };
        self.all.iter().any(|(&other_id, other)| {
            let Some(Name::Inet(taken)) = other.name else {
                return false;
            };
            let same = other_id != id
                && other.nature.style == socket.nature.style
                && taken.port() == name.port();
            let both = |option| socket.has(SOL_SOCKET, option) && other.has(SOL_SOCKET, option);
            let listens = matches!(other.state, State::Listening { .. });
            let shared = both(SO_REUSEPORT) || both(SO_REUSEADDR) && !listens;
            same && overlap((socket, name.ip()), (other, taken.ip())) && !shared
        })
    }

    /// listen(2)
    pub fn listen(&mut self, id: Id, most: usize) -> Result<(), Errno> {
        let most = most.min(MAX_BACKLOG);
        let socket = self.get(id)?;
        if !socket.nature.connects() {
            return Err(Errno::OPNOTSUPP);
        }
        match (&socket.state, &socket.name) {
            (State::Connected(_) | State::Connecting | State::Aimed(_), _) => {
                return Err(Errno::INVAL);
            }
            (State::New, None) if !socket.nature.is_inet() => return Err(Errno::INVAL),
            (State::New, None) => {
                let ip = match socket.nature.family {
                    Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                    _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                };
                self.bind(id, Address::Inet((ip, 0).into()), None)?;
            }
            (State::New, Some(Name::Inet(name))) => {
                // Two may have taken the same port that do not listen yet.
                let listens = |other: &Socket| matches!(other.state, State::Listening { .. });
                let reuse = |other: &Socket| {
                    socket.has(SOL_SOCKET, SO_REUSEPORT) && other.has(SOL_SOCKET, SO_REUSEPORT)
                };
                let taken = self.all.values().any(|other| {
                    matches!(other.name, Some(Name::Inet(of)) if of.port() == name.port()
                        && overlap((socket, name.ip()), (other, of.ip())))
                        && listens(other)
                        && !reuse(other)
                });
                if taken {
                    return Err(Errno::ADDRINUSE);
                }
            }
            _ => {}
        }
        if let Some(Name::Inet(at)) = self.get(id)?.name {
            self.check_listens(at)?;
        }
        let socket = self.get_mut(id)?;
        match &mut socket.state {
            State::Listening { backlog, .. } => *backlog = most,
            state => {
                *state = State::Listening {
                    backlog: most,
                    waiting: VecDeque::new(),
                };
            }
        }
        Ok(())
    }

    /// The one that listens at an address, the one with the fewest waiting first.
    pub fn listener_at(&self, nature: Nature, name: &Name) -> Option<Id> {
        let fits = |other: &Socket| match (&other.name, name) {
            (Some(Name::Inet(at)), Name::Inet(wanted)) => {
                at.port() == wanted.port() && serves(other, at.ip(), wanted.ip())
            }
            (at, wanted) => at.as_ref() == Some(wanted),
        };
        let waiting = |socket: &Socket| match &socket.state {
            State::Listening { waiting, .. } => Some(waiting.len()),
            _ => None,
        };
        self.all
            .iter()
            .filter(|(_, other)| other.nature.style == nature.style && fits(other))
            .filter_map(|(&id, other)| Some((waiting(other)?, id)))
            .min()
            .map(|(_, id)| id)
    }

    /// Connects a socket to one that listens: the end that is to be accepted waits there.
    pub fn connect(
        &mut self,
        id: Id,
        listener: Id,
        to: Option<SocketAddr>,
    ) -> Result<Connected, Errno> {
        let (nature, local) = (self.get(id)?.nature, self.get(id)?.local.clone());
        let of = self.get(listener)?;
        let State::Listening { backlog, waiting } = &of.state else {
            return Err(Errno::CONNREFUSED);
        };
        // A connection over IP does not wait for room: the kernel's would be made again and again.
        let most = match nature.is_inet() && !self.get(id)?.of_engine {
            true => MAX_BACKLOG,
            false => *backlog,
        };
        if waiting.len() > most {
            return Ok(Connected::Full);
        }
        let shown_to = |v6: bool, address: Option<Address>| match address {
            Some(Address::Inet(address)) => Some(Address::Inet(shown(plain(address), v6))),
            other => other,
        };
        let accepted = Socket {
            state: State::Connected(id),
            local: match to {
                Some(to) => shown_to(of.nature.family == Family::V6, Some(Address::Inet(to))),
                None => of.local.clone(),
            },
            // One that is not bound has no name, but is there.
            remote: shown_to(of.nature.family == Family::V6, local).or(Some(Address::Unnamed)),
            options: of.options.clone(),
            receive_time: of.receive_time,
            send_time: of.send_time,
            ..Socket::new(of.nature)
        };
        let remote = match to {
            Some(to) => shown_to(nature.family == Family::V6, Some(Address::Inet(to))),
            None => of.local.clone(),
        };
        let end = self.add(accepted).map_err(|_| Errno::NOBUFS)?;
        let socket = self.get_mut(id)?;
        socket.state = State::Connected(end);
        socket.remote = remote;
        socket.opened();
        let of = self.get_mut(listener)?;
        of.arrived();
        if let State::Listening { waiting, .. } = &mut of.state {
            waiting.push_back(end);
        }
        Ok(Connected::Done)
    }

    /// Gives one that has no address yet the loopback's.
    pub fn bind_to_loopback(&mut self, id: Id, like: SocketAddr) -> Result<(), Errno> {
        let socket = self.get(id)?;
        let v6 = socket.nature.family == Family::V6;
        let own = reachable(SocketAddr::new(like.ip(), 0)).ip();
        match socket.name {
            None => {
                let name = self.free_port(id, own).ok_or(Errno::ADDRNOTAVAIL)?;
                let socket = self.get_mut(id)?;
                socket.name = Some(Name::Inet(name));
                socket.local = Some(Address::Inet(shown(name, v6)));
            }
            Some(Name::Inet(name)) if name.ip().is_unspecified() => {
                let local = SocketAddr::new(own, name.port());
                self.get_mut(id)?.local = Some(Address::Inet(shown(local, v6)));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The next end that waits to be accepted.
    pub fn waiting(&self, id: Id) -> Result<Option<Id>, Errno> {
        let socket = self.get(id)?;
        match &socket.state {
            _ if !socket.nature.connects() => Err(Errno::OPNOTSUPP),
            State::Listening { waiting, .. } => Ok(waiting.front().copied()),
            _ => Err(Errno::INVAL),
        }
    }

    /// That one is accepted.
    pub fn accept(&mut self, id: Id) {
        if let Ok(socket) = self.get_mut(id)
            && let State::Listening { waiting, .. } = &mut socket.state
        {
            waiting.pop_front();
        }
    }

    /// shutdown(2): no more is read, no more is written.
    pub fn shutdown(&mut self, id: Id, read: bool, write: bool) -> Result<(), Errno> {
        let socket = self.get_mut(id)?;
        if let State::Listening { waiting, .. } = &mut socket.state
            && socket.nature.is_inet()
        {
            // It listens no more, which wakes those who wait in accept(2).
            if read {
                let waiting = std::mem::take(waiting);
                socket.state = State::New;
                socket.arrived();
                waiting
                    .into_iter()
                    .for_each(|end| self.close_how(end, true));
            }
            return Ok(());
        }
        let unix = !socket.nature.is_inet();
        if !unix && matches!(socket.state, State::New) {
            return Err(Errno::NOTCONN);
        }
        socket.read_shut |= read;
        socket.write_shut |= write;
        socket.arrived();
        socket.opened();
        let connects = socket.nature.connects();
        if connects && let Some(peer) = self.peer_mut(id) {
            let engine = peer.of_engine;
            peer.read_shut |= write;
            peer.write_shut |= read && unix;
            peer.arrived();
            if read && unix {
                peer.opened();
            }
            self.news |= engine;
        }
        Ok(())
    }

    /// Its last descriptor is closed.
    pub fn close(&mut self, id: Id) {
        let lingers = |socket: &Socket| {
            let key = (SOL_SOCKET, SO_LINGER);
            socket.options.get(&key).is_none_or(|&seconds| seconds != 0)
        };
        let hard = self.get(id).is_ok_and(|socket| !lingers(socket));
        self.close_how(id, hard);
    }

    /// The same; `hard` tells the other end that it is a reset.
    pub fn close_how(&mut self, id: Id, hard: bool) {
        let Some(socket) = self.all.remove(&id) else {
            return;
        };
        self.held = self.held.saturating_sub(socket.queued());
        self.unreceived.extend(socket.all_rights());
        match socket.state {
            State::Listening { waiting, .. } => {
                waiting
                    .into_iter()
                    .for_each(|end| self.close_how(end, true));
            }
            State::Connected(peer) if socket.nature.connects() => {
                if let Some(peer) = self.all.get_mut(&peer) {
                    let broken = socket.queued() > 0 || hard;
                    if broken && peer.nature.is_inet() && peer.read_shut {
                        peer.error = Some(Errno::PIPE);
                    } else if broken {
                        peer.error = Some(Errno::CONNRESET);
                    }
                    self.news |= peer.of_engine;
                    peer.read_shut = true;
                    peer.write_shut |= broken || !peer.nature.is_inet();
                    peer.arrived();
                    peer.opened();
                }
            }
            _ => {}
        }
    }

    /// Takes one away that no descriptor stands for, without a word to the other end.
    pub(super) fn remove(&mut self, id: Id) {
        if let Some(socket) = self.all.remove(&id) {
            self.held = self.held.saturating_sub(socket.queued());
        }
    }

    /// How much could be read (`FIONREAD`).
    pub fn readable(&self, id: Id) -> Result<usize, Errno> {
        match self.get(id)? {
            socket if matches!(socket.state, State::Listening { .. }) => Err(Errno::INVAL),
            socket => Ok(socket.available()),
        }
    }

    /// What one is ready for.
    pub fn readiness(&self, id: Id) -> Readiness {
        let Some(socket) = self.all.get(&id) else {
            return Readiness::default();
        };
        let peer = socket.peer().and_then(|peer| self.all.get(&peer));
        socket.readiness(peer)
    }
}

/// Whether this machine has the address.
pub fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Whether a connection to `wanted` comes to a socket that is bound to `at`.
pub fn serves(socket: &Socket, at: IpAddr, wanted: IpAddr) -> bool {
    let both = !socket.has(IPPROTO_IPV6, IPV6_V6ONLY);
    match (at, wanted) {
        (IpAddr::V6(at), IpAddr::V4(_)) => at.is_unspecified() && both,
        (IpAddr::V4(at), IpAddr::V4(wanted)) => at.is_unspecified() || at == wanted,
        (IpAddr::V6(at), IpAddr::V6(wanted)) => at.is_unspecified() || at == wanted,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}

/// Whether two sockets could be meant by one address.
fn overlap(one: (&Socket, IpAddr), other: (&Socket, IpAddr)) -> bool {
    let any = |(socket, ip): (&Socket, IpAddr), of: IpAddr| serves(socket, ip, of);
    any(one, other.1) || any(other, one.1)
}
