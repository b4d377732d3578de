//! Addresses of sockets: `struct sockaddr_in`, `sockaddr_in6`, `sockaddr_un` (ip(7), ipv6(7), unix(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::{Guest, Layout, field_u32, int, length};

pub const AF_UNSPEC: u16 = 0;
pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const AF_NETLINK: u16 = 16;

/// `sizeof(struct sockaddr_storage)`
const MOST: usize = 128;
/// `sizeof(struct sockaddr_in)`, the least of `sockaddr_in6` (RFC 2133), and the most of `sockaddr_un`.
const INET_LEN: usize = 16;
const INET6_LEN: usize = 24;
const UNIX_LEN: usize = 110;
/// `sizeof(struct sockaddr_nl)`
const NETLINK_LEN: usize = 12;

/// An address as the program writes and reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// None of any family (`AF_UNSPEC`).
    Unspecified,
    /// An address and a port.
    Inet(SocketAddr),
    /// A path.
    Path(Vec<u8>),
    /// A name of Linux's own, without its leading NUL.
    Abstract(Vec<u8>),
    /// Of a Unix socket without a name.
    Unnamed,
    /// A port of netlink's; 0 is the kernel. Groups say nothing, as nobody sends to one.
    Netlink(u32),
}

impl Address {
    /// Copies one from the program.
    pub fn read(guest: &Guest<'_>, address: u64, len: u64) -> Result<Self, Errno> {
        let len = usize::try_from(int(len)).map_err(|_| Errno::INVAL)?;
        if len > MOST {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; len];
        guest.memory.read(address, &mut bytes)?;
        let Some((&[low, high], rest)) = bytes.split_first_chunk() else {
            return Err(Errno::INVAL);
        };
        let port = |rest: &[u8]| {
            rest.first_chunk()
                .map_or(0, |port| u16::from_be_bytes(*port))
        };
        match u16::from_le_bytes([low, high]) {
            AF_UNSPEC => Ok(Self::Unspecified),
            AF_INET if len < INET_LEN => Err(Errno::INVAL),
            AF_INET => {
                let ip: [u8; 4] = part(rest, 2);
                Ok(Self::Inet((Ipv4Addr::from(ip), port(rest)).into()))
            }
            AF_INET6 if len < INET6_LEN => Err(Errno::INVAL),
            AF_INET6 => {
                let ip = Ipv6Addr::from(part::<16>(rest, 6));
                let scope = field_u32(rest, 22);
                Ok(Self::Inet(
                    SocketAddrV6::new(ip, port(rest), 0, scope).into(),
                ))
            }
            AF_UNIX if len > UNIX_LEN => Err(Errno::INVAL),
            AF_UNIX => Ok(match rest.split_first() {
                None => Self::Unnamed,
                Some((0, name)) => Self::Abstract(name.to_vec()),
                Some(_) => {
                    let path = rest.split(|&byte| byte == 0).next();
                    Self::Path(path.unwrap_or_default().to_vec())
                }
            }),
            AF_NETLINK if len < NETLINK_LEN => Err(Errno::INVAL),
            AF_NETLINK => Ok(Self::Netlink(field_u32(rest, 2))),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }

    /// As the program reads it.
    pub fn bytes(&self) -> Vec<u8> {
        let unix = |rest: &[u8]| [&AF_UNIX.to_le_bytes()[..], rest].concat();
        match self {
            Self::Unspecified => AF_UNSPEC.to_le_bytes().to_vec(),
            Self::Inet(SocketAddr::V4(address)) => Layout::<INET_LEN>::new()
                .u16(0, AF_INET)
                .bytes(2, &address.port().to_be_bytes())
                .bytes(4, &address.ip().octets())
                .done()
                .to_vec(),
            Self::Inet(SocketAddr::V6(address)) => Layout::<28>::new()
                .u16(0, AF_INET6)
                .bytes(2, &address.port().to_be_bytes())
                .bytes(8, &address.ip().octets())
                .u32(24, address.scope_id())
                .done()
                .to_vec(),
            Self::Path(path) => unix(&[path, &b"\0"[..]].concat()),
            Self::Abstract(name) => unix(&[&b"\0"[..], name].concat()),
            Self::Unnamed => unix(b""),
            Self::Netlink(port) => Layout::<NETLINK_LEN>::new()
                .u16(0, AF_NETLINK)
                .u32(4, *port)
                .done()
                .to_vec(),
        }
    }

    /// Gives it to the program, cut to the length that is at `len_at`, where its whole length goes.
    pub fn write(&self, guest: &mut Guest<'_>, address: u64, len_at: u64) -> Result<(), Errno> {
        let room = guest.read_u32(len_at)?.cast_signed();
        let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
        let bytes = self.bytes();
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        guest.write(address, part)?;
        let len = u32::try_from(length(bytes.len())).unwrap_or(0);
        guest.write(len_at, &len.to_le_bytes())
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.copied().unwrap_or([0; N])
}

/// An IPv4 address in IPv6's clothes is the IPv4 address.
pub fn plain(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// An address as a socket of IPv6 (or not) shows it.
pub fn shown(address: SocketAddr, v6: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if v6 => (ip.to_ipv6_mapped(), address.port()).into(),
        _ => address,
    }
}

/// The loopback address for one that means any.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Recorder, SCRATCH, TestMemory};
    use crate::memory::user::UserMemory;
    use crate::random::Random;

    #[test]
    fn addresses_come_back_as_they_went() {
        let mut memory = TestMemory::with_heap();
        let mut host = Recorder::default();
        let mut random = Random::new().unwrap();
        for address in [
            Address::Inet("127.0.0.1:80".parse().unwrap()),
            Address::Inet("[fe80::1%3]:65535".parse().unwrap()),
            Address::Path(b"/run/x".to_vec()),
            Address::Abstract(b"a\0b".to_vec()),
            Address::Unnamed,
            Address::Netlink(77),
            Address::Unspecified,
        ] {
            let bytes = address.bytes();
            memory.write(SCRATCH, &bytes).unwrap();
            let guest = Guest {
                memory: &mut memory,
                host: &mut host,
                random: &mut random,
            };
            let read = |len: usize| Address::read(&guest, SCRATCH, len as u64);
            assert_eq!(read(bytes.len()), Ok(address));
            assert_eq!(read(1), Err(Errno::INVAL));
            assert_eq!(read(129), Err(Errno::INVAL));
            assert_eq!(Address::read(&guest, 1, 16), Err(Errno::FAULT));
        }
    }

    #[test]
    fn mapped_addresses_are_plain_ones() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:5".parse().unwrap();
        let v4: SocketAddr = "127.0.0.1:5".parse().unwrap();
        assert_eq!(plain(mapped), v4);
        assert_eq!(shown(v4, true), mapped);
        assert_eq!(shown(v4, false), v4);
        assert_eq!(reachable("0.0.0.0:5".parse().unwrap()), v4);
    }
}
