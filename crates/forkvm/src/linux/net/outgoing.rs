//! What a machine has on the host's network: sockets of the host's, names that are looked up, and what its program may reach.
//! It is the machine's own: neither a master nor a clone has any of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::linux::files::host_files::{HostFiles, Right};
use crate::linux::net::allowed::{Allowed, Verdict, Why};
use crate::linux::net::names::{Found, Lookup, Names, of_host};
use crate::linux::net::socket::Id;

/// Most sockets of the host that a machine has.
pub const MAX_HOST_SOCKETS: usize = 128;
/// The same of a program and all its forks.
const MAX_OF_PROGRAM: usize = 512;
/// Most addresses whose names are known, and most questions about names that wait for their answers.
const MAX_KNOWN: usize = 1024;
const MAX_QUESTIONS: usize = 64;
/// How long a name's addresses are looked at before it is looked up again, and if it was in vain.
const KEPT: Duration = Duration::from_secs(30);
const IN_VAIN: Duration = Duration::from_secs(2);
/// How long a name goes on standing for an address that is not among those that it has now, as answers of name servers differ;
/// and for how many names an address may stand.
const STANDS: Duration = Duration::from_secs(900);
const MAX_NAMES: usize = 32;
/// Bytes that the host's kernel holds of a connection, each way: it would take megabytes from a peer whose bytes nobody reads.
const HELD_BY_HOST: usize = 256 << 10;
/// Most lines that wait to be told; a call has one.
const MAX_LINES: usize = 8;
/// What stands for the names among the events; no socket has that number.
const NAMES: u64 = u64::MAX;

/// Which way an address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Within the program.
    Within,
    /// By a socket of the host's.
    Outside,
    /// We answer for it, as a name server.
    Names,
    /// That is not known yet: names are being looked up.
    Asking,
}

/// A socket of the host's, and what it was ready for when it was last tried.
#[derive(Debug)]
pub struct HostSocket {
    /// It.
    pub fd: OwnedFd,
    /// Something may have come.
    pub readable: bool,
    /// There may be room to send.
    pub writable: bool,
    _right: Right,
}

/// A connection to the outside.
#[derive(Debug)]
pub struct Stream {
    /// The host's end.
    pub socket: HostSocket,
    /// Where it goes.
    pub to: SocketAddr,
    /// It is not made yet.
    pub connecting: bool,
    /// The other end sends no more; it knows that we don't.
    pub ended: bool,
    /// See [`Stream::ended`].
    pub finished: bool,
    /// When the program had closed it, and not all was sent.
    pub closed: Option<Instant>,
}

/// What a datagram socket sends and receives by.
#[derive(Debug)]
pub struct Datagrams {
    /// The host's socket.
    pub socket: HostSocket,
    /// The only address it is for.
    pub aimed: Option<SocketAddr>,
    /// Of IPv6.
    pub v6: bool,
}

/// A question about a name.
#[derive(Debug)]
pub struct Question {
    /// The socket that has asked.
    pub socket: Id,
    /// Whom it has asked.
    pub of: SocketAddr,
    /// The question, and its name.
    pub bytes: Vec<u8>,
    /// See [`Question::bytes`].
    pub name: String,
}

/// All that is on the host.
#[derive(Debug)]
pub struct Live {
    epoll: OwnedFd,
    /// Names that are looked up.
    pub names: Names,
    /// By the engine's end of the connection.
    pub streams: BTreeMap<Id, Stream>,
    /// By the program's socket.
    pub datagrams: BTreeMap<Id, Datagrams>,
    /// Those that have no answer yet.
    pub questions: Vec<Question>,
}

impl Live {
    fn new(lookup: Lookup) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let names = Names::new(lookup)?;
        let data = epoll::EventData::new_u64(NAMES);
        let once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &names, data, once)?;
        Ok(Self {
            epoll,
            names,
            streams: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            questions: Vec::new(),
        })
    }

    /// Has a socket's events told, each once.
    pub fn watch(&self, id: Id, fd: &OwnedFd) -> Result<(), Errno> {
        use epoll::EventFlags;
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(id), all)
    }

    /// Notes what sockets are ready for by now.
    pub fn look(&mut self) {
        use epoll::EventFlags;
        let mut events = Vec::with_capacity(64);
        let now = rustix::event::Timespec::default();
        // What is left over is still there the next time.
        let found = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        );
        if found.is_err() {
            return;
        }
        for event in events {
            let (id, flags) = (event.data.u64(), event.flags);
            let stream = self.streams.get_mut(&id).map(|of| &mut of.socket);
            let datagrams = self.datagrams.get_mut(&id).map(|of| &mut of.socket);
            if let Some(socket) = stream.or(datagrams) {
                let failed = EventFlags::ERR | EventFlags::HUP;
                socket.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | failed);
                socket.writable |= flags.intersects(EventFlags::OUT | failed);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.datagrams.is_empty() && self.names.until().is_none()
    }
}

/// What a program may reach, and what it has on the host for that.
#[derive(Debug)]
pub struct Outgoing {
    allowed: Arc<Allowed>,
    rights: HostFiles,
    lookup: Lookup,
    /// Which names of the rules have an address, as far as one has asked, and until when.
    known: BTreeMap<IpAddr, BTreeMap<String, Instant>>,
    /// Names that were looked up, and until when that holds.
    looked_up: BTreeMap<String, Instant>,
    /// Lines that the host is to be told.
    lines: Vec<String>,
    /// What is on the host, if anything ever was.
    pub live: Option<Box<Live>>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new(Allowed::default())
    }
}

/// Without what is on the host.
impl Clone for Outgoing {
    fn clone(&self) -> Self {
        Self {
            allowed: Arc::clone(&self.allowed),
            rights: self.rights.clone(),
            lookup: self.lookup,
            known: self.known.clone(),
            looked_up: self.looked_up.clone(),
            lines: Vec::new(),
            live: None,
        }
    }
}

impl Outgoing {
    /// For a program that may reach this.
    pub fn new(allowed: Allowed) -> Self {
        Self {
            allowed: Arc::new(allowed),
            rights: HostFiles::new(MAX_OF_PROGRAM),
            lookup: of_host,
            known: BTreeMap::new(),
            looked_up: BTreeMap::new(),
            lines: Vec::new(),
            live: None,
        }
    }

    /// Has names looked up otherwise.
    #[cfg(test)]
    pub fn with_lookup(mut self, lookup: Lookup) -> Self {
        self.lookup = lookup;
        self
    }

    /// Whether an address is named that is not public.
    pub fn names(&self, to: SocketAddr) -> bool {
        self.allowed.names(to)
    }

    /// Whether a name may be asked for.
    pub fn has_name(&self, name: &str) -> bool {
        self.allowed.has_name(name)
    }

    /// Whether anything may be.
    pub fn is_allowed(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// Which way another machine's address is reached, if at all.
    pub fn way_to(&mut self, to: SocketAddr, datagrams: bool) -> Result<Way, Errno> {
        match self.verdict(to) {
            Verdict::Allowed => Ok(Way::Outside),
            _ if datagrams && to.port() == super::dns::PORT && self.is_allowed() => Ok(Way::Names),
            Verdict::Denied(why) => Err(self.refuse(to, why)),
            Verdict::IfNamed(names) => {
                let now = Instant::now();
                self.looked_up.retain(|_, until| *until > now);
                let mut asking = false;
                for name in names {
                    if !self.looked_up.contains_key(&name) {
                        asking |= self.live()?.names.ask(&name);
                    }
                }
                match asking {
                    true => Ok(Way::Asking),
                    false => Err(self.refuse(to, Why::NotNamed)),
                }
            }
        }
    }

    fn verdict(&self, to: SocketAddr) -> Verdict {
        let now = Instant::now();
        let known = self.known.get(&to.ip()).into_iter().flatten();
        let names = known.filter(|(_, until)| **until > now);
        let names = names.map(|(name, _)| name.clone()).collect();
        self.allowed.verdict(to, &names, is_of_this_host)
    }

    /// Those of a name's addresses that the program may know: names of a private network lead nowhere.
    pub fn told(&mut self, name: &str, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let may = |ip: &&IpAddr| self.allowed.may_be_told(**ip, is_of_this_host);
        let told: Vec<IpAddr> = addresses.iter().filter(may).copied().collect();
        if let (true, Some(first)) = (told.is_empty(), addresses.first()) {
            self.tell(format!(
                "the network is denied: {name} has no public address, but {first}, which has to be named; \
                 --allow-net={first} allows it"
            ));
        }
        told
    }

    fn refuse(&mut self, to: SocketAddr, why: Why) -> Errno {
        self.tell(format!(
            "the network is denied: the program could not reach {to}{why}; --allow-net={to} allows it"
        ));
        match self.is_allowed() {
            true => Errno::ACCESS,
            false => Errno::NETUNREACH,
        }
    }

    /// Nobody serves an address within the program, and the host's own is not named.
    pub fn tell_of_loopback(&mut self, to: SocketAddr) {
        self.tell(format!(
            "the program could not reach {to}, where it does not listen itself; if the host's is meant, \
             --allow-net={to} allows it"
        ));
    }

    /// Has the host told a line.
    pub fn tell(&mut self, line: String) {
        if self.lines.len() < MAX_LINES {
            self.lines.push(line);
        }
    }

    /// Whether there are any.
    pub fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Takes them.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// What is on the host; it begins with nothing.
    pub fn live(&mut self) -> Result<&mut Live, Errno> {
        let live = match self.live.take() {
            Some(live) => live,
            None => Box::new(Live::new(self.lookup)?),
        };
        Ok(self.live.insert(live))
    }

    /// A socket of the host's, which does not block.
    pub fn socket(&mut self, to: SocketAddr, kind: SocketType) -> Result<HostSocket, Errno> {
        let live = self.live()?;
        let right = match live.streams.len() + live.datagrams.len() < MAX_HOST_SOCKETS {
            true => self.rights.take(),
            false => Err(Errno::NFILE),
        };
        let right = right.map_err(|_| {
            self.tell(format!(
                "the program has too many connections to the outside: at most {MAX_HOST_SOCKETS}, and \
                 {MAX_OF_PROGRAM} with those of its other forks"
            ));
            Errno::NFILE
        })?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family_of(to.ip()), kind, flags, None)?;
        if kind == SocketType::STREAM {
            rustix::net::sockopt::set_socket_recv_buffer_size(&fd, HELD_BY_HOST)?;
            rustix::net::sockopt::set_socket_send_buffer_size(&fd, HELD_BY_HOST)?;
        }
        Ok(HostSocket {
            fd,
            readable: false,
            writable: true,
            _right: right,
        })
    }

    /// Keeps a question until it is answered. The oldest makes room.
    pub fn keep_question(&mut self, question: Question) -> Result<(), Errno> {
        let live = self.live()?;
        if live.questions.len() >= MAX_QUESTIONS {
            live.questions.remove(0);
        }
        live.questions.push(question);
        Ok(())
    }

    /// A name was looked up.
    pub fn learn(&mut self, found: &Found) {
        // Of others nobody will ask.
        if !self.allowed.is_about(&found.name) {
            return;
        }
        let addresses = found.addresses.as_deref().unwrap_or_default();
        let kept = if addresses.is_empty() { IN_VAIN } else { KEPT };
        if self.looked_up.len() + self.known.len() + addresses.len() > MAX_KNOWN {
            self.looked_up.clear();
            self.known.clear();
        }
        let now = Instant::now();
        self.looked_up.insert(found.name.clone(), now + kept);
        for ip in addresses {
            let names = self.known.entry(ip.to_canonical()).or_default();
            names.retain(|_, until| *until > now);
            if names.len() < MAX_NAMES {
                names.insert(found.name.clone(), now + STANDS);
            }
        }
    }

    /// Whether a datagram from there may come in.
    pub fn lets_in(&self, from: SocketAddr) -> bool {
        self.verdict(from) == Verdict::Allowed
    }

    /// What becomes readable when there is something to be done. `None` while nothing is on the host.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        let live = self.live.as_ref().filter(|live| !live.is_idle())?;
        Some(live.epoll.as_fd())
    }

    /// When there is something to be done in any case.
    pub fn until(&self) -> Option<Instant> {
        self.live.as_ref()?.names.until()
    }
}

fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Whether an address is one of the host's own: others can't be bound to. Where that can't be told, it may be.
pub fn is_of_this_host(ip: IpAddr) -> bool {
    let flags = SocketFlags::CLOEXEC;
    match rustix::net::socket_with(family_of(ip), SocketType::DGRAM, flags, None) {
        Ok(socket) => {
            let bound = rustix::net::bind(&socket, &SocketAddr::new(ip, 0));
            bound != Err(Errno::ADDRNOTAVAIL)
        }
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name whose addresses are not all public, as whoever answers for it would have it.
    fn lookup(name: &str) -> Vec<IpAddr> {
        let addresses: &[&str] = match name {
            "api.example" => &["192.1.2.3", "10.0.0.1", "127.0.0.1"],
            _ => &[],
        };
        addresses.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn outgoing(rules: &[&str]) -> Outgoing {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Outgoing::new(Allowed::new(rules)).with_lookup(lookup)
    }

    fn way(outgoing: &mut Outgoing, to: &str) -> Result<Way, Errno> {
        let to = to.parse().unwrap();
        loop {
            match outgoing.way_to(to, false) {
                Ok(Way::Asking) => {}
                way => return way,
            }
            let found = outgoing.live().unwrap().names.found();
            found.iter().for_each(|found| outgoing.learn(found));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_names_public_addresses_are_reached() {
        let mut outgoing = outgoing(&["api.example:443", "nowhere.example"]);
        let first = outgoing.way_to("192.1.2.3:443".parse().unwrap(), false);
        assert_eq!(first, Ok(Way::Asking));
        assert!(outgoing.event().is_some() && outgoing.until().is_some());
        assert_eq!(way(&mut outgoing, "192.1.2.3:443"), Ok(Way::Outside));
        for to in [
            "192.1.2.3:80",
            "192.1.2.4:443",
            "10.0.0.1:443",
            "127.0.0.1:443",
        ] {
            assert_eq!(way(&mut outgoing, to), Err(Errno::ACCESS), "{to}");
        }
        // Who was refused has waited for the other name as well.
        assert!(outgoing.event().is_none());
        assert_eq!(outgoing.take_lines().len(), 4);
        // What is known is not the machine's only; what is on the host is.
        let mut fork = outgoing.clone();
        assert!(fork.live.is_none());
        let known = fork.way_to("192.1.2.3:443".parse().unwrap(), false);
        assert_eq!(known, Ok(Way::Outside));
        assert!(fork.lets_in("192.1.2.3:443".parse().unwrap()));
        assert!(!fork.lets_in("192.1.2.4:443".parse().unwrap()));
    }

    #[test]
    fn name_servers_are_answered_for_unless_they_may_be_reached() {
        let mut outgoing = outgoing(&["api.example", "10.0.0.2:53"]);
        let mut way = |to: &str, datagrams| outgoing.way_to(to.parse().unwrap(), datagrams);
        assert_eq!(way("10.0.0.1:53", true), Ok(Way::Names));
        assert_eq!(way("10.0.0.2:53", true), Ok(Way::Outside));
        assert_eq!(way("10.0.0.1:53", false), Err(Errno::ACCESS));
        let mut denied = super::Outgoing::default();
        let way = denied.way_to("10.0.0.1:53".parse().unwrap(), true);
        assert_eq!(way, Err(Errno::NETUNREACH));
    }

    #[test]
    fn what_is_known_has_a_limit() {
        let mut outgoing = outgoing(&["api.example"]);
        for number in 0..2 * MAX_KNOWN as u32 {
            let ip = IpAddr::from(number.to_be_bytes());
            outgoing.learn(&Found {
                name: "api.example".into(),
                addresses: Some(vec![ip]),
            });
            assert!(outgoing.known.len() <= MAX_KNOWN && outgoing.known.contains_key(&ip));
        }
        (0..100).for_each(|number| outgoing.tell(number.to_string()));
        assert_eq!(outgoing.take_lines().len(), MAX_LINES);
    }
}
