//! What packets of UDP say beside their bytes (ip(7), ipv6(7)): where they were sent to, how far they may go, and their class.
//! Options of a socket ask for it and set it; what is sent beside a message sets it for that one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use libc::{IPPROTO_IP, IPPROTO_IPV6};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What is kept of a socket's options, by level and name.
pub type Options = BTreeMap<(i32, i32), i32>;

/// How far packets go of which nothing is said.
const HOPS: u8 = 64;
/// The loopback's number among the network interfaces.
const LOOPBACK: u32 = 1;

/// A packet that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Where it was sent to.
    pub to: IpAddr,
    /// How many hops it may go on (`ttl`).
    pub hops: u8,
    /// Its class (`tos`).
    pub class: u8,
}

/// What is wished for one message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Where it is to be from.
    pub from: Option<IpAddr>,
    hops: Option<u8>,
    class: Option<u8>,
}

/// What is sent beside a message.
#[derive(Debug, Default, Clone)]
pub struct Beside {
    /// Open files.
    pub rights: Vec<usize>,
    /// Of a packet.
    pub wishes: Wishes,
}

/// A piece of what is told beside a message (cmsg(3)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its level.
    pub level: i32,
    /// Its type.
    pub kind: i32,
    /// What it says.
    pub bytes: Vec<u8>,
}

impl Wishes {
    /// Most bytes of an item that says something.
    pub const LONGEST: usize = 20;

    /// Takes in an item, of as many bytes as it says. What is of the other family's level says nothing.
    pub fn take(&mut self, v6: bool, (level, kind): (i32, i32), bytes: &[u8]) -> Result<(), Errno> {
        let number = bytes.try_into().map(i32::from_le_bytes);
        // What is not said is left as it is.
        let small = || match number {
            Ok(-1) if v6 => Ok(None),
            Ok(number) => u8::try_from(number).map(Some).map_err(|_| Errno::INVAL),
            Err(_) => Err(Errno::INVAL),
        };
        match (level, kind) {
            (IPPROTO_IP, _) if v6 => {}
            (IPPROTO_IPV6, _) if !v6 => {}
            (IPPROTO_IP, libc::IP_TTL) => {
                self.hops = small()?.filter(|&hops| hops > 0);
                self.hops.ok_or(Errno::INVAL)?;
            }
            (IPPROTO_IP, libc::IP_TOS) => {
                self.class = match bytes {
                    [class] => Some(*class),
                    _ => small()?,
                };
            }
            (IPPROTO_IP, libc::IP_PKTINFO) => {
                let told: [u8; 12] = bytes.try_into().map_err(|_| Errno::INVAL)?;
                let [.., a, b, c, d, _, _, _, _] = told;
                self.set_from([a, b, c, d].into());
            }
            (IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => self.hops = small()?,
            (IPPROTO_IPV6, libc::IPV6_TCLASS) => self.class = small()?,
            (IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let told = bytes.first_chunk::<16>().filter(|_| bytes.len() == 20);
                self.set_from((*told.ok_or(Errno::INVAL)?).into());
            }
            (IPPROTO_IP | IPPROTO_IPV6, _) => return Err(Errno::INVAL),
            _ => {}
        }
        Ok(())
    }

    fn set_from(&mut self, address: IpAddr) {
        self.from = Some(address).filter(|address| !address.is_unspecified());
    }
}

impl Packet {
    /// One to this address, as the socket's options and the wishes have it.
    pub fn new(to: IpAddr, options: &Options, wishes: &Wishes) -> Self {
        let (level, hops, class) = match to {
            IpAddr::V4(_) => (IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
            IpAddr::V6(_) => (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS),
        };
        let set = |name| u8::try_from(*options.get(&(level, name))?).ok();
        Self {
            to,
            hops: wishes.hops.or(set(hops)).unwrap_or(HOPS),
            class: wishes.class.or(set(class)).unwrap_or(0),
        }
    }

    /// One from the outside, of which no more is known.
    pub fn from_outside(to: IpAddr) -> Self {
        Self::new(to, &Options::new(), &Wishes::default())
    }

    /// What a socket with these options is told of it.
    pub fn told(&self, v6: bool, options: &Options) -> Vec<Item> {
        let has = |level, name| options.get(&(level, name)).is_some_and(|&on| on != 0);
        let number = |number: u8| i32::from(number).to_le_bytes().to_vec();
        let interface = if self.to.is_loopback() { LOOPBACK } else { 0 }.to_le_bytes();
        let mut items = Vec::new();
        let mut tell = |level, option, kind, bytes| {
            if has(level, option) {
                items.push(Item { level, kind, bytes });
            }
        };
        if v6 {
            let (level, option) = (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO);
            let to = match self.to {
                IpAddr::V4(to) => to.to_ipv6_mapped(),
                IpAddr::V6(to) => to,
            };
            let info = [&to.octets()[..], &interface].concat();
            tell(level, option, libc::IPV6_PKTINFO, info);
        }
        match self.to {
            IpAddr::V4(to) => {
                let (level, to) = (IPPROTO_IP, to.octets());
                let info = [interface, to, to].concat();
                tell(level, libc::IP_PKTINFO, libc::IP_PKTINFO, info);
                tell(level, libc::IP_RECVTTL, libc::IP_TTL, number(self.hops));
                tell(level, libc::IP_RECVTOS, libc::IP_TOS, vec![self.class]);
            }
            IpAddr::V6(_) => {
                let level = IPPROTO_IPV6;
                let (hops, class) = (number(self.hops), number(self.class));
                tell(level, libc::IPV6_RECVHOPLIMIT, libc::IPV6_HOPLIMIT, hops);
                tell(level, libc::IPV6_RECVTCLASS, libc::IPV6_TCLASS, class);
            }
        }
        items
    }
}
