//! One socket: its state, and the bytes and messages that have arrived at it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::length;
use crate::linux::net::address::Address;
use crate::linux::net::packet::{Options, Packet};
use crate::linux::net::readiness::{ERR, HUP, IN, OUT, RDHUP, RDNORM, Readiness, WRBAND, WRNORM};

/// A socket's number, which no other one ever has.
pub type Id = u64;

/// What may wait to be read at a socket, in bytes.
pub const CAPACITY: usize = 256 << 10;
/// What a message counts for besides its bytes.
const MESSAGE_OVERHEAD: usize = 256;

/// Address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
    /// `AF_UNIX`
    Unix,
    /// `AF_NETLINK`, of which there is `NETLINK_ROUTE`.
    Netlink,
}

/// How bytes are carried (socket(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Style {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_DGRAM`
    Datagram,
    /// `SOCK_SEQPACKET`
    SeqPacket,
}

/// What a socket was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nature {
    /// Its family.
    pub family: Family,
    /// How it carries bytes.
    pub style: Style,
}

impl Nature {
    /// What socket(2) makes of its arguments.
    pub fn new(family: i32, style: i32, protocol: i32) -> Result<Self, Errno> {
        let family = match family {
            libc::AF_NETLINK => return Self::netlink(style, protocol),
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            libc::AF_UNIX => Family::Unix,
            _ => return Err(Errno::AFNOSUPPORT),
        };
        let unix = family == Family::Unix;
        let (style, carrier) = match style {
            libc::SOCK_STREAM => (Style::Stream, libc::IPPROTO_TCP),
            libc::SOCK_DGRAM => (Style::Datagram, libc::IPPROTO_UDP),
            libc::SOCK_RAW if unix => (Style::Datagram, 0),
            libc::SOCK_SEQPACKET if unix => (Style::SeqPacket, 0),
            libc::SOCK_RAW => return Err(Errno::PERM),
            libc::SOCK_RDM | libc::SOCK_SEQPACKET | libc::SOCK_DCCP | 10 => {
                return Err(Errno::SOCKTNOSUPPORT);
            }
            _ => return Err(Errno::INVAL),
        };
        let known = match unix {
            true => libc::AF_UNIX,
            false => carrier,
        };
        if protocol != 0 && protocol != known {
            return Err(Errno::PROTONOSUPPORT);
        }
        Ok(Self { family, style })
    }

    fn netlink(style: i32, protocol: i32) -> Result<Self, Errno> {
        match (style, protocol) {
            (libc::SOCK_RAW | libc::SOCK_DGRAM, libc::NETLINK_ROUTE) => Ok(Self {
                family: Family::Netlink,
                style: Style::Datagram,
            }),
            (libc::SOCK_RAW | libc::SOCK_DGRAM, _) => Err(Errno::PROTONOSUPPORT),
            _ => Err(Errno::SOCKTNOSUPPORT),
        }
    }

    /// Whether it is one of the two families of IP.
    pub fn is_inet(self) -> bool {
        matches!(self.family, Family::V4 | Family::V6)
    }

    /// Whether it has connections.
    pub fn connects(self) -> bool {
        self.style != Style::Datagram
    }
}

/// How far it has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum State {
    /// As it was made.
    New,
    /// It waits for connections, of which these wait to be accepted.
    Listening {
        /// Most that wait.
        backlog: usize,
        /// The ends that accept(2) gives.
        waiting: VecDeque<Id>,
    },
    /// On its way to be connected to the outside.
    Connecting,
    /// Connected to this one, which may be gone.
    Connected(Id),
    /// A datagram socket that sends to an address and receives only from there.
    Aimed(SocketAddr),
}

/// What others find a socket by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// An address and a port; IPv4's are never in IPv6's clothes.
    Inet(SocketAddr),
    /// A file, by its number.
    File(u64),
    /// An absolute path where the program has no files.
    Path(Vec<u8>),
    /// A name of Linux's own.
    Abstract(Vec<u8>),
}

/// A message that has arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Who has sent it.
    pub from: Address,
    /// Open files that came with it.
    pub rights: Vec<usize>,
    /// What it says besides, if it came by UDP.
    pub packet: Option<Packet>,
}

/// Open files that came with bytes of a stream (`SCM_RIGHTS`), counted from the stream's beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rights {
    start: u64,
    end: u64,
    files: Vec<usize>,
}

/// What a socket has for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes, or a message.
    Something,
    /// Nothing yet.
    Nothing,
    /// Nothing, for ever.
    End,
}

/// A socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Socket {
    /// What it was made for.
    pub nature: Nature,
    /// How far it has come.
    pub state: State,
    /// Its own address as the program knows it.
    pub local: Option<Address>,
    /// The other end's, of one that has one.
    pub remote: Option<Address>,
    /// What others find it by.
    pub name: Option<Name>,
    /// Nothing more will arrive.
    pub read_shut: bool,
    /// Nothing more may be sent.
    pub write_shut: bool,
    /// What the next call is told (`SO_ERROR`).
    #[serde(with = "error")]
    pub error: Option<Errno>,
    /// Options that are kept.
    pub options: Options,
    /// `SO_RCVTIMEO`
    pub receive_time: Option<Duration>,
    /// `SO_SNDTIMEO`
    pub send_time: Option<Duration>,
    /// connect(2) was told that it goes on, not yet what came of it.
    pub connecting: bool,
    /// It is the engine's end of a connection.
    pub of_engine: bool,
    pub(super) bytes: VecDeque<u8>,
    pub(super) rights: VecDeque<Rights>,
    /// Bytes of the stream that were read.
    pub(super) taken: u64,
    pub(super) messages: VecDeque<Message>,
    pub(super) queued: usize,
    pub(super) arrivals: u64,
    pub(super) openings: u64,
}

/// Errors by their numbers.
mod error {
    use rustix::io::Errno;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    /// Numbers that the kernel gives (`MAX_ERRNO`, linux/err.h).
    const NUMBERS: std::ops::Range<i32> = 1..4096;

    pub fn serialize<S: Serializer>(error: &Option<Errno>, to: S) -> Result<S::Ok, S::Error> {
        error.map(Errno::raw_os_error).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Errno>, D::Error> {
        match Option::deserialize(from)? {
            None => Ok(None),
            Some(number) if NUMBERS.contains(&number) => Ok(Some(Errno::from_raw_os_error(number))),
            Some(_) => Err(D::Error::custom("an error that is none")),
        }
    }
}

impl Socket {
    /// A new one.
    pub fn new(nature: Nature) -> Self {
        Self {
            nature,
            state: State::New,
            local: None,
            remote: None,
            name: None,
            read_shut: false,
            write_shut: false,
            error: None,
            options: BTreeMap::new(),
            receive_time: None,
            send_time: None,
            connecting: false,
            of_engine: false,
            bytes: VecDeque::new(),
            rights: VecDeque::new(),
            taken: 0,
            messages: VecDeque::new(),
            queued: 0,
            arrivals: 0,
            openings: 0,
        }
    }

    /// Whether this option is on.
    pub fn has(&self, level: i32, name: i32) -> bool {
        self.options.get(&(level, name)).is_some_and(|&on| on != 0)
    }

    /// The one that it is connected to.
    pub fn peer(&self) -> Option<Id> {
        match self.state {
            State::Connected(peer) => Some(peer),
            _ => None,
        }
    }

    /// How much waits to be read, counted as its limit counts it.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// How many bytes wait to be read, as `FIONREAD` tells it: of datagrams, the first one's.
    pub fn available(&self) -> usize {
        let lengths = self.messages.iter().map(|message| message.bytes.len());
        match self.nature.style {
            Style::Stream => self.bytes.len(),
            Style::SeqPacket => lengths.sum(),
            Style::Datagram => self
                .messages
                .front()
                .map_or(0, |message| message.bytes.len()),
        }
    }

    /// How many more bytes may arrive.
    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.queued)
    }

    /// Whether there is enough room that writers are told of it: not for each byte that was read.
    fn has_room(&self) -> bool {
        self.room() >= CAPACITY / 3
    }

    /// Something has changed about what is to be read.
    pub fn arrived(&mut self) {
        self.arrivals = self.arrivals.wrapping_add(1);
    }

    /// There is room again to write.
    pub fn opened(&mut self) {
        self.openings = self.openings.wrapping_add(1);
    }

    /// Its connection is over, or did not come about, for this reason.
    pub fn fail(&mut self, errno: Errno) {
        self.error = Some(errno);
        (self.read_shut, self.write_shut) = (true, true);
        self.arrived();
        self.opened();
    }

    /// Bytes have arrived. Gives how much that counts for.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> usize {
        self.bytes.extend(bytes);
        self.queued = self.queued.saturating_add(bytes.len());
        self.arrived();
        bytes.len()
    }

    /// These open files come with the next so many bytes.
    pub fn push_rights(&mut self, len: usize, files: Vec<usize>) {
        let start = self.taken.saturating_add(length(self.bytes.len()));
        let end = start.saturating_add(length(len));
        self.rights.push_back(Rights { start, end, files });
    }

    /// How many bytes one call may read at most: those that came with open files end it.
    pub fn reach(&self) -> usize {
        let end = self.rights.front().map_or(u64::MAX, |first| first.end);
        usize::try_from(end.saturating_sub(self.taken)).unwrap_or(usize::MAX)
    }

    /// The open files that came with the next so many bytes.
    pub fn rights_within(&self, len: usize) -> &[usize] {
        let end = self.taken.saturating_add(length(len));
        let first = self.rights.front().filter(|first| first.start < end);
        first.map_or(&[], |first| &first.files)
    }

    /// All open files that wait with what is to be read.
    pub fn all_rights(&self) -> impl Iterator<Item = usize> {
        let of_bytes = self.rights.iter().flat_map(|rights| &rights.files);
        let of_messages = self.messages.iter().flat_map(|message| &message.rights);
        of_bytes.chain(of_messages).copied()
    }

    /// A message has arrived. Gives how much that counts for.
    pub fn push_message(&mut self, message: Message) -> usize {
        let counted = cost(message.bytes.len());
        self.queued = self.queued.saturating_add(counted);
        self.messages.push_back(message);
        self.arrived();
        counted
    }

    /// The next bytes, at most `most`.
    pub fn peek_bytes(&self, most: usize) -> Vec<u8> {
        self.bytes.iter().take(most).copied().collect()
    }

    /// The next message.
    pub fn peek_message(&self) -> Option<&Message> {
        self.messages.front()
    }

    /// Takes bytes away that were peeked at. Gives how much that counts for, whether there is room again for the other end,
    /// and the open files that came with them.
    pub fn drop_bytes(&mut self, len: usize) -> (usize, bool, Vec<usize>) {
        let had_room = self.has_room();
        let len = len.min(self.bytes.len());
        self.bytes.drain(..len);
        if self.bytes.is_empty() {
            // Its memory is not needed for good.
            self.bytes = VecDeque::new();
        }
        self.queued = self.queued.saturating_sub(len);
        self.taken = self.taken.saturating_add(length(len));
        let mut files = Vec::new();
        // The rest of what they came with has none any more.
        while let Some(first) = self.rights.pop_front_if(|first| first.start < self.taken) {
            files.extend(first.files);
        }
        (len, !had_room && self.has_room(), files)
    }

    /// Takes the next message away, likewise.
    pub fn drop_message(&mut self) -> (usize, bool, Vec<usize>) {
        let had_room = self.has_room();
        let message = self.messages.pop_front();
        let counted = message
            .as_ref()
            .map_or(0, |message| cost(message.bytes.len()));
        let files = message.map_or(Vec::new(), |message| message.rights);
        self.queued = self.queued.saturating_sub(counted);
        (counted, !had_room && self.has_room(), files)
    }

    /// What it has for its reader. An error is told once.
    pub fn incoming(&mut self) -> Result<Incoming, Errno> {
        if matches!(self.state, State::Connecting) {
            return Ok(Incoming::Nothing);
        }
        let connected = matches!(self.state, State::Connected(_));
        if self.nature.connects() && !connected {
            return Err(match (self.nature.family, self.nature.style) {
                (Family::Unix, Style::Stream) => Errno::INVAL,
                _ => self.error.take().unwrap_or(Errno::NOTCONN),
            });
        }
        let datagrams = self.nature.style == Style::Datagram;
        if datagrams && let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.queued > 0 || !self.messages.is_empty() {
            return Ok(Incoming::Something);
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        Ok(match self.read_shut {
            true => Incoming::End,
            false => Incoming::Nothing,
        })
    }

    /// What it is ready for; `peer` is what it would write to.
    pub fn readiness(&self, peer: Option<&Self>) -> Readiness {
        let mut events = 0;
        if self.error.is_some() {
            events |= ERR;
        }
        if let State::Listening { waiting, .. } = &self.state {
            if !waiting.is_empty() {
                events |= IN | RDNORM;
            }
        } else if !matches!(self.state, State::Connecting) {
            let unconnected = self.nature.connects() && matches!(self.state, State::New);
            if self.read_shut && self.write_shut || unconnected {
                events |= HUP;
            }
            if self.read_shut {
                events |= IN | RDNORM | RDHUP;
            }
            if self.queued > 0 {
                events |= IN | RDNORM;
            }
            if self.write_shut || peer.is_none_or(Self::has_room) {
                events |= OUT | WRNORM;
                if !self.nature.is_inet() || !self.nature.connects() {
                    events |= WRBAND;
                }
            }
        }
        Readiness {
            events,
            arrivals: self.arrivals,
            openings: self.openings,
        }
    }
}

/// What a message of so many bytes counts for.
pub fn cost(len: usize) -> usize {
    len.saturating_add(MESSAGE_OVERHEAD)
}
