//! Sockets of `AF_NETLINK` (netlink(7), rtnetlink(7)): programs ask for network interfaces and their addresses. Nothing there
//! ever changes, and no program may change it.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::linux::abi::{Layout, field_u32, length};
use crate::linux::net::address::Address;
use crate::linux::net::interfaces::{self, Interface, QUEUE_LEN};
use crate::linux::net::socket::{Family, Id, Message, cost};
use crate::linux::net::sockets::{MAX_BYTES, Sockets};

/// `struct nlmsghdr`: length, type, flags, number, port.
const HEAD: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The last type that rtnetlink has (`RTM_MAX` of Linux 6.1).
const LAST: u16 = 123;
const RTM_BASE: u16 = 16;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;

const IFLA_ADDRESS: u16 = 1;
const IFLA_BROADCAST: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u8 = 0x80;
/// `rtnetlink`'s scopes.
const UNIVERSE: u8 = 0;
const HOST: u8 = 254;

/// A request, of which this is the head.
struct Request<'a> {
    kind: u16,
    flags: u16,
    number: u32,
    /// All of it.
    bytes: &'a [u8],
}

impl<'a> Request<'a> {
    /// The first one, and what comes after it.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let head: &[u8; HEAD] = bytes.first_chunk()?;
        let len = usize::try_from(field_u32(head, 0)).ok()?;
        if len < HEAD || len > bytes.len() {
            return None;
        }
        let both = field_u32(head, 4).to_le_bytes();
        let request = Self {
            kind: u16::from_le_bytes([both[0], both[1]]),
            flags: u16::from_le_bytes([both[2], both[3]]),
            number: field_u32(head, 8),
            bytes: bytes.get(..len)?,
        };
        let next = len.next_multiple_of(4).min(bytes.len());
        Some((request, bytes.get(next..)?))
    }

    /// What follows its head.
    fn body(&self) -> &[u8] {
        self.bytes.get(HEAD..).unwrap_or_default()
    }

    /// An answer to it.
    fn answer(&self, port: u32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let len = HEAD.saturating_add(body.len());
        let head = Layout::<HEAD>::new()
            .u32(0, u32::try_from(len).unwrap_or(0))
            .u16(4, kind)
            .u16(6, flags)
            .u32(8, self.number)
            .u32(12, port);
        [head.done(), body].concat()
    }

    /// What comes of it, if that is an error, or it wants to be told that it is none.
    fn error(&self, port: u32, errno: Option<Errno>) -> Vec<u8> {
        let told = errno.map_or(0, |errno| -errno.raw_os_error());
        let whole = match errno {
            Some(_) => self.bytes,
            None => self.bytes.get(..HEAD).unwrap_or_default(),
        };
        let body = [&told.to_le_bytes()[..], whole].concat();
        self.answer(port, NLMSG_ERROR, 0, &body)
    }

    /// The answers, each of which is a message.
    fn answers(&self, port: u32, all: &[Interface]) -> Vec<Vec<u8>> {
        if self.flags & NLM_F_REQUEST == 0 || self.kind < RTM_BASE {
            return match self.flags & NLM_F_ACK {
                0 => Vec::new(),
                _ => vec![self.error(port, None)],
            };
        }
        if self.kind > LAST {
            return vec![self.error(port, Some(Errno::OPNOTSUPP))];
        }
        // Types go by fours: new, delete, get, set.
        if self.kind % 4 != RTM_GETLINK % 4 {
            return vec![self.error(port, Some(Errno::PERM))];
        }
        if self.flags & NLM_F_DUMP == 0 {
            return self.one(port, all);
        }
        let family = self.body().first().copied().unwrap_or(0);
        let items: Vec<Vec<u8>> = match self.kind {
            RTM_GETLINK => all.iter().map(link).collect(),
            RTM_GETADDR => {
                let both = all.iter().flat_map(|of| of.addresses().map(|at| (of, at)));
                let wanted = both.filter(|(_, (ip, _))| family == 0 || family == family_of(*ip));
                wanted.map(|(of, at)| address(of, at)).collect()
            }
            // Routes, neighbours, rules and such: there are none.
            _ => Vec::new(),
        };
        // What is got is told as new.
        let kind = self.kind - 2;
        let items = items
            .iter()
            .map(|item| self.answer(port, kind, NLM_F_MULTI, item))
            .collect::<Vec<_>>()
            .concat();
        let done = self.answer(port, NLMSG_DONE, NLM_F_MULTI, &0i32.to_le_bytes());
        let items = Some(items).filter(|items| !items.is_empty());
        items.into_iter().chain([done]).collect()
    }

    /// The answer about one interface, by its number or its name.
    fn one(&self, port: u32, all: &[Interface]) -> Vec<Vec<u8>> {
        if self.kind != RTM_GETLINK {
            return vec![self.error(port, Some(Errno::OPNOTSUPP))];
        }
        let body = self.body();
        let Some(told) = body.first_chunk::<16>() else {
            return vec![self.error(port, Some(Errno::INVAL))];
        };
        let name = attribute(body.get(16..).unwrap_or_default(), IFLA_IFNAME);
        let name = name.and_then(|name| name.split(|&byte| byte == 0).next());
        let found = all.iter().find(|of| match field_u32(told, 4) {
            0 => name == Some(of.name.as_bytes()),
            index => index == of.index,
        });
        let answer = match found {
            Some(found) => self.answer(port, RTM_NEWLINK, 0, &link(found)),
            None => self.error(port, Some(Errno::NODEV)),
        };
        let ack = found.is_some() && self.flags & NLM_F_ACK != 0;
        let ack = ack.then(|| self.error(port, None));
        [answer].into_iter().chain(ack).collect()
    }
}

fn family_of(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The first attribute of a kind among some.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let &[a, b, c, d] = bytes.first_chunk()?;
        let len = usize::from(u16::from_le_bytes([a, b]));
        let value = bytes.get(4..len)?;
        if u16::from_le_bytes([c, d]) == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// `struct rtattr`, whole words.
fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    to.extend(len.to_le_bytes());
    to.extend(kind.to_le_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn with_nul(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// `struct ifinfomsg`, and attributes.
fn link(of: &Interface) -> Vec<u8> {
    let head = Layout::<16>::new()
        .u16(2, of.kind)
        .u32(4, of.index)
        .u32(8, of.flags);
    let mut bytes = head.done().to_vec();
    put(&mut bytes, IFLA_IFNAME, &with_nul(of.name));
    put(&mut bytes, IFLA_TXQLEN, &QUEUE_LEN.to_le_bytes());
    // Unknown of the loopback, else up.
    let state = if of.is_loopback() { 0 } else { 6 };
    put(&mut bytes, IFLA_OPERSTATE, &[state]);
    put(&mut bytes, IFLA_MTU, &of.mtu.to_le_bytes());
    put(&mut bytes, IFLA_ADDRESS, &of.hardware[0]);
    put(&mut bytes, IFLA_BROADCAST, &of.hardware[1]);
    bytes
}

/// `struct ifaddrmsg`, and attributes.
fn address(of: &Interface, (ip, prefix): (IpAddr, u8)) -> Vec<u8> {
    let scope = if of.is_loopback() { HOST } else { UNIVERSE };
    let mut bytes = vec![family_of(ip), prefix, IFA_F_PERMANENT, scope];
    bytes.extend(of.index.to_le_bytes());
    match ip {
        IpAddr::V4(ip) => {
            put(&mut bytes, IFA_ADDRESS, &ip.octets());
            put(&mut bytes, IFA_LOCAL, &ip.octets());
            if !of.is_loopback() {
                put(&mut bytes, IFA_BROADCAST, &of.broadcast().octets());
            }
            put(&mut bytes, IFA_LABEL, &with_nul(of.name));
        }
        IpAddr::V6(ip) => put(&mut bytes, IFA_ADDRESS, &ip.octets()),
    }
    put(
        &mut bytes,
        IFA_FLAGS,
        &u32::from(IFA_F_PERMANENT).to_le_bytes(),
    );
    bytes
}

impl Sockets {
    /// bind(2) of one of netlink: to this port, or with 0 to a free one.
    pub fn bind_netlink(&mut self, id: Id, port: u32) -> Result<u32, Errno> {
        let bound = |of: &Self, port| {
            let mut all = of.all.values();
            all.any(|socket| socket.local == Some(Address::Netlink(port)))
        };
        match self.get(id)?.local {
            Some(Address::Netlink(local)) if port == local || port == 0 => return Ok(local),
            Some(_) => return Err(Errno::INVAL),
            None => {}
        }
        let port = match port {
            0 => (1..=u32::MAX)
                .find(|&port| !bound(self, port))
                .ok_or(Errno::ADDRINUSE)?,
            port if bound(self, port) => return Err(Errno::ADDRINUSE),
            port => port,
        };
        self.get_mut(id)?.local = Some(Address::Netlink(port));
        Ok(port)
    }

    /// A program sends requests to netlink, which answers at once, as far as there is room.
    pub fn ask_netlink(
        &mut self,
        id: Id,
        to: Option<&Address>,
        mut bytes: &[u8],
    ) -> Result<(), Errno> {
        match to {
            None | Some(Address::Netlink(0)) => {}
            Some(Address::Netlink(_)) => return Err(Errno::CONNREFUSED),
            Some(_) => return Err(Errno::INVAL),
        }
        let port = self.bind_netlink(id, 0)?;
        let all = interfaces::all(self.outgoing.is_allowed());
        while let Some((request, rest)) = Request::first(bytes) {
            bytes = rest;
            for bytes in request.answers(port, all) {
                let counted = length(cost(bytes.len()));
                let most = length(MAX_BYTES.saturating_sub(self.held));
                let socket = self.get_mut(id)?;
                if counted > most.min(length(socket.room())) {
                    return Err(Errno::NOBUFS);
                }
                let counted = socket.push_message(Message {
                    bytes,
                    from: Address::Netlink(0),
                    rights: Vec::new(),
                    packet: None,
                });
                self.held = self.held.saturating_add(counted);
            }
        }
        Ok(())
    }

    /// Whether a socket is one of netlink.
    pub fn is_netlink(&self, id: Id) -> bool {
        self.get(id)
            .is_ok_and(|socket| socket.nature.family == Family::Netlink)
    }
}
