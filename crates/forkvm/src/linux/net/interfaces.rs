//! The machine's network interfaces, as ioctl(2) tells of them (netdevice(7)); netlink does in `netlink`. There is the loopback,
//! and where programs may reach the outside one that stands for the way there: its addresses are those of documentation
//! (RFC 5737, RFC 3849), since connections are the host's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Value, field_u32, flags};

const IFF_UP: u32 = 0x1;
const IFF_BROADCAST: u32 = 0x2;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_RUNNING: u32 = 0x40;
const IFF_MULTICAST: u32 = 0x1000;
const IFF_LOWER_UP: u32 = 0x1_0000;

/// `ARPHRD_*`
const ETHER: u16 = 1;
const LOOPBACK: u16 = 772;

/// `SIOCGIF*` (linux/sockios.h).
const NAME: u32 = 0x8910;
const CONF: u32 = 0x8912;
const FLAGS: u32 = 0x8913;
const ADDRESS: u32 = 0x8915;
const BROADCAST: u32 = 0x8919;
const NETMASK: u32 = 0x891b;
const METRIC: u32 = 0x891d;
const MTU: u32 = 0x8921;
const HARDWARE: u32 = 0x8927;
const INDEX: u32 = 0x8933;
const QUEUE: u32 = 0x8942;
/// `struct ifreq`, of which the name is the first part.
const LEN: usize = 40;
const NAME_LEN: usize = 16;

/// An interface.
#[derive(Debug)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: &'static str,
    /// What it is (`ARPHRD_*`).
    pub kind: u16,
    /// `IFF_*`
    pub flags: u32,
    /// Longest packet.
    pub mtu: u32,
    /// Its hardware's address, and the one of all at once.
    pub hardware: [[u8; 6]; 2],
    /// Its address, and how many bits of it are the network's.
    pub v4: (Ipv4Addr, u8),
    /// The same of IPv6.
    pub v6: (Ipv6Addr, u8),
}

/// Packets that may wait in each.
pub const QUEUE_LEN: u32 = 1000;

const ALL: [Interface; 2] = [
    Interface {
        index: 1,
        name: "lo",
        kind: LOOPBACK,
        flags: IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP,
        mtu: 65536,
        hardware: [[0; 6]; 2],
        v4: (Ipv4Addr::LOCALHOST, 8),
        v6: (Ipv6Addr::LOCALHOST, 128),
    },
    Interface {
        index: 2,
        name: "eth0",
        kind: ETHER,
        flags: IFF_UP | IFF_BROADCAST | IFF_RUNNING | IFF_MULTICAST | IFF_LOWER_UP,
        mtu: 1500,
        // An address that nobody administers.
        hardware: [[2, 0, 0, 0, 0, 1], [0xff; 6]],
        v4: (Ipv4Addr::new(192, 0, 2, 1), 24),
        v6: (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 64),
    },
];

impl Interface {
    /// Whether it stays within the machine.
    pub fn is_loopback(&self) -> bool {
        self.flags & IFF_LOOPBACK != 0
    }

    /// The address of all in its network.
    pub fn broadcast(&self) -> Ipv4Addr {
        match self.is_loopback() {
            true => Ipv4Addr::UNSPECIFIED,
            false => self.v4.0 | !self.mask(),
        }
    }

    fn mask(&self) -> Ipv4Addr {
        u32::MAX
            .checked_shl(32 - u32::from(self.v4.1))
            .unwrap_or(0)
            .into()
    }

    /// Its addresses.
    pub fn addresses(&self) -> [(IpAddr, u8); 2] {
        [(self.v4.0.into(), self.v4.1), (self.v6.0.into(), self.v6.1)]
    }
}

/// Those of a machine, whose programs may reach the outside or not.
pub fn all(outside: bool) -> &'static [Interface] {
    match outside {
        true => &ALL,
        false => ALL.get(..1).unwrap_or_default(),
    }
}

/// `struct sockaddr_in`, as it is in a `struct ifreq`.
fn inet(address: Ipv4Addr) -> Vec<u8> {
    Layout::<16>::new()
        .u16(0, 2)
        .bytes(4, &address.octets())
        .done()
        .to_vec()
}

/// `struct sockaddr` of a kind of hardware.
fn hardware(kind: u16, address: &[u8; 6]) -> Vec<u8> {
    Layout::<16>::new()
        .u16(0, kind)
        .bytes(2, address)
        .done()
        .to_vec()
}

/// ioctl(2) of a socket about interfaces. ENOTTY for what is none of these.
pub fn ioctl(guest: &mut Guest<'_>, outside: bool, command: u32, argument: u64) -> Value {
    let all = all(outside);
    if command == CONF {
        return list(guest, all, argument);
    }
    if !matches!(
        command,
        NAME | FLAGS | ADDRESS | BROADCAST | NETMASK | METRIC | MTU | HARDWARE | INDEX | QUEUE
    ) {
        return Err(Errno::NOTTY);
    }
    let request: [u8; LEN] = guest.read(argument)?;
    let name = request.split(|&byte| byte == 0).next().unwrap_or_default();
    // A name may have that of one of its addresses behind it.
    let name = name.split(|&byte| byte == b':').next();
    let found = all.iter().find(|interface| match command {
        NAME => interface.index == field_u32(&request, NAME_LEN),
        _ => Some(interface.name.as_bytes()) == name,
    });
    let interface = found.ok_or(Errno::NODEV)?;
    let number = |number: u32| number.to_le_bytes().to_vec();
    let bytes = match command {
        NAME => {
            let name = Layout::<NAME_LEN>::new().bytes(0, interface.name.as_bytes());
            guest.write(argument, name.done())?;
            return Ok(0);
        }
        // Sixteen bits, without those that came later.
        FLAGS => flags(u64::from(interface.flags & 0xffff))
            .to_le_bytes()
            .get(..2)
            .unwrap_or_default()
            .to_vec(),
        ADDRESS => inet(interface.v4.0),
        BROADCAST => inet(interface.broadcast()),
        NETMASK => inet(interface.mask()),
        METRIC => number(0),
        MTU => number(interface.mtu),
        HARDWARE => hardware(interface.kind, &interface.hardware[0]),
        INDEX => number(interface.index),
        _ => number(QUEUE_LEN),
    };
    let place = argument.checked_add(16).ok_or(Errno::FAULT)?;
    guest.write(place, &bytes)?;
    Ok(0)
}

/// `SIOCGIFCONF`: the names and addresses of as many as there is room for, or how much room all need.
fn list(guest: &mut Guest<'_>, all: &[Interface], argument: u64) -> Value {
    // struct ifconf: length, and where to.
    let conf: [u8; 16] = guest.read(argument)?;
    let room = field_u32(&conf, 0).cast_signed();
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    let to = crate::linux::abi::field_u64(&conf, 8);
    let entries: Vec<u8> = all
        .iter()
        .flat_map(|interface| {
            Layout::<LEN>::new()
                .bytes(0, interface.name.as_bytes())
                .bytes(NAME_LEN, &inet(interface.v4.0))
                .done()
                .to_vec()
        })
        .collect();
    let len = match to {
        0 => entries.len(),
        _ => entries.len().min(room / LEN * LEN),
    };
    if to != 0 {
        guest.write(to, entries.get(..len).unwrap_or_default())?;
    }
    guest.write(argument, &u32::try_from(len).unwrap_or(0).to_le_bytes())?;
    Ok(0)
}
