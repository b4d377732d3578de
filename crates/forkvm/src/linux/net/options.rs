//! getsockopt(2), setsockopt(2): options are kept and told again; those that matter here are few.

use std::time::Duration;

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Value, int};
use crate::linux::files::fds::Files;
use crate::linux::net::calls::socket_of;
use crate::linux::net::socket::{Family, Socket, State, Style};
use crate::linux::net::sockets::{IPPROTO_IPV6, IPV6_V6ONLY, SO_LINGER, SOL_SOCKET};
use crate::linux::time::{read_timeval, timeval_bytes_of};

const IPPROTO_IP: i32 = libc::IPPROTO_IP;
const IPPROTO_TCP: i32 = libc::IPPROTO_TCP;
const IPPROTO_UDP: i32 = libc::IPPROTO_UDP;
/// Of netlink (linux/netlink.h): a group to hear of, and what else is asked for, none of which there is.
const SOL_NETLINK: i32 = libc::SOL_NETLINK;

/// What an option's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// On or off.
    Switch,
    /// Between these.
    Number(i32, i32),
    /// A buffer's size: twice what is asked for, within these (socket(7)).
    Size(i32, i32),
}

use Form::{Number, Size, Switch};

const ANY: Form = Number(i32::MIN, i32::MAX);

/// The options that are kept: level, name, what it is before it was set, form.
const KEPT: &[(i32, i32, i32, Form)] = &[
    (SOL_SOCKET, libc::SO_DEBUG, 0, Switch),
    (SOL_SOCKET, libc::SO_REUSEADDR, 0, Switch),
    (SOL_SOCKET, libc::SO_DONTROUTE, 0, Switch),
    (SOL_SOCKET, libc::SO_BROADCAST, 0, Switch),
    (SOL_SOCKET, libc::SO_SNDBUF, 212_992, Size(4608, 425_984)),
    (SOL_SOCKET, libc::SO_RCVBUF, 212_992, Size(2304, 425_984)),
    (
        SOL_SOCKET,
        libc::SO_SNDBUFFORCE,
        212_992,
        Size(4608, i32::MAX),
    ),
    (
        SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        212_992,
        Size(2304, i32::MAX),
    ),
    (SOL_SOCKET, libc::SO_KEEPALIVE, 0, Switch),
    (SOL_SOCKET, libc::SO_OOBINLINE, 0, Switch),
    (SOL_SOCKET, libc::SO_PRIORITY, 0, ANY),
    (SOL_SOCKET, libc::SO_REUSEPORT, 0, Switch),
    (SOL_SOCKET, libc::SO_PASSCRED, 0, Switch),
    (SOL_SOCKET, libc::SO_RCVLOWAT, 1, ANY),
    (SOL_SOCKET, libc::SO_TIMESTAMP, 0, Switch),
    (SOL_SOCKET, libc::SO_MARK, 0, ANY),
    (SOL_SOCKET, libc::SO_BUSY_POLL, 0, ANY),
    (SOL_SOCKET, libc::SO_INCOMING_CPU, 0, ANY),
    (SOL_SOCKET, libc::SO_ZEROCOPY, 0, Switch),
    (IPPROTO_TCP, libc::TCP_NODELAY, 0, Switch),
    (IPPROTO_TCP, libc::TCP_MAXSEG, 536, Number(88, 32767)),
    (IPPROTO_TCP, libc::TCP_CORK, 0, Switch),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, 7200, Number(1, 32767)),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, 75, Number(1, 32767)),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, 9, Number(1, 127)),
    (IPPROTO_TCP, libc::TCP_SYNCNT, 6, Number(1, 255)),
    (IPPROTO_TCP, libc::TCP_LINGER2, 60, ANY),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0, ANY),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 0, ANY),
    (IPPROTO_TCP, libc::TCP_QUICKACK, 1, Switch),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0, Number(0, i32::MAX)),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 0, ANY),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0, Switch),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 0, ANY),
    (IPPROTO_IP, libc::IP_TOS, 0, ANY),
    (IPPROTO_IP, libc::IP_TTL, 64, Number(-1, 255)),
    (IPPROTO_IP, libc::IP_PKTINFO, 0, Switch),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, 1, Number(0, 5)),
    (IPPROTO_IP, libc::IP_RECVERR, 0, Switch),
    (IPPROTO_IP, libc::IP_RECVTTL, 0, Switch),
    (IPPROTO_IP, libc::IP_RECVTOS, 0, Switch),
    (IPPROTO_IP, libc::IP_FREEBIND, 0, Switch),
    (IPPROTO_IP, libc::IP_TRANSPARENT, 0, Switch),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0, Switch),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL, 1, Number(-1, 255)),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP, 1, Switch),
    (IPPROTO_IPV6, IPV6_V6ONLY, 0, Switch),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 64, Number(-1, 255)),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 1, Number(-1, 255)),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 1, Switch),
    (IPPROTO_IPV6, libc::IPV6_RECVERR, 0, Switch),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0, Switch),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 0, Switch),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0, Switch),
    (IPPROTO_IPV6, libc::IPV6_TCLASS, 0, Number(-1, 255)),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 1, Number(0, 5)),
    (SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, 0, ANY),
    (SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, 0, ANY),
    (SOL_NETLINK, libc::NETLINK_PKTINFO, 0, Switch),
    (SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 0, Switch),
    (SOL_NETLINK, libc::NETLINK_CAP_ACK, 0, Switch),
    (SOL_NETLINK, libc::NETLINK_EXT_ACK, 0, Switch),
    (SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 0, Switch),
];

/// Whether a socket knows options of a level.
fn check_level(socket: &Socket, level: i32) -> Result<(), Errno> {
    let nature = socket.nature;
    match level {
        SOL_SOCKET => Ok(()),
        SOL_NETLINK if nature.family == Family::Netlink => Ok(()),
        _ if nature.family == Family::Netlink => Err(Errno::NOPROTOOPT),
        _ if !nature.is_inet() => Err(Errno::OPNOTSUPP),
        IPPROTO_TCP if nature.style == Style::Stream => Ok(()),
        IPPROTO_UDP if nature.style == Style::Datagram => Ok(()),
        IPPROTO_IP => Ok(()),
        IPPROTO_IPV6 if nature.family == Family::V6 => Ok(()),
        _ => Err(Errno::NOPROTOOPT),
    }
}

/// setsockopt(2)
pub fn set(files: &mut Files, guest: &Guest<'_>, args: [u64; 6]) -> Value {
    let [fd, level, name, address, len, _] = args;
    let (level, name, len) = (int(level), int(name), int(len));
    let id = socket_of(files, fd)?;
    let socket = files.sockets.get_mut(id)?;
    if len < 0 {
        return Err(Errno::INVAL);
    }
    check_level(socket, level)?;
    match (level, name) {
        (SOL_SOCKET, libc::SO_RCVTIMEO) => socket.receive_time = read_time(guest, address, len)?,
        (SOL_SOCKET, libc::SO_SNDTIMEO) => socket.send_time = read_time(guest, address, len)?,
        (SOL_SOCKET, SO_LINGER) if len < 8 => return Err(Errno::INVAL),
        (SOL_SOCKET, SO_LINGER) => {
            // struct linger: on or off, seconds.
            let on = guest.read_u32(address)? != 0;
            let seconds = guest.read_u32(address.checked_add(4).ok_or(Errno::FAULT)?)?;
            match on {
                true => socket.options.insert((level, name), seconds.cast_signed()),
                false => socket.options.remove(&(level, name)),
            };
        }
        // Nobody is in a group, no program watches the socket, and all is by one algorithm.
        (
            IPPROTO_IP,
            libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP | libc::IP_MULTICAST_IF,
        )
        | (IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP) => {
            return Err(Errno::NODEV);
        }
        (IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0).min(15)];
            guest.memory.read(address, &mut bytes)?;
            let wanted = bytes.split(|&byte| byte == 0).next();
            return match wanted.unwrap_or_default() {
                b"cubic" | b"reno" => Ok(0),
                _ => Err(Errno::NOENT),
            };
        }
        _ => {
            let of = kept(level, name).ok_or(Errno::NOPROTOOPT)?;
            let value = match len {
                // Those of IP may be bytes.
                1..4 if level == IPPROTO_IP => i32::from(guest.read::<1>(address)?[0]),
                0..4 => return Err(Errno::INVAL),
                _ => guest.read_u32(address)?.cast_signed(),
            };
            if (level, name) == (IPPROTO_IPV6, IPV6_V6ONLY) && socket.name.is_some() {
                return Err(Errno::INVAL);
            }
            let value = match of.3 {
                Switch => i32::from(value != 0),
                Number(least, most) if (least..=most).contains(&value) => value,
                Number(..) => return Err(Errno::INVAL),
                Size(least, most) => value.saturating_mul(2).clamp(least, most),
            };
            let name = match name {
                libc::SO_SNDBUFFORCE if level == SOL_SOCKET => libc::SO_SNDBUF,
                libc::SO_RCVBUFFORCE if level == SOL_SOCKET => libc::SO_RCVBUF,
                name => name,
            };
            socket.options.insert((level, name), value);
        }
    }
    Ok(0)
}

fn kept(level: i32, name: i32) -> Option<&'static (i32, i32, i32, Form)> {
    KEPT.iter().find(|of| (of.0, of.1) == (level, name))
}

fn read_time(guest: &Guest<'_>, address: u64, len: i32) -> Result<Option<Duration>, Errno> {
    if len < 16 {
        return Err(Errno::INVAL);
    }
    let micros = guest.read_u64(address.checked_add(8).ok_or(Errno::FAULT)?)?;
    if micros >= 1_000_000 {
        return Err(Errno::DOM);
    }
    let time = match read_timeval(guest, address) {
        // What is before now is at once.
        Err(Errno::INVAL) => Duration::from_nanos(1),
        time => time?,
    };
    Ok((!time.is_zero()).then_some(time))
}

/// getsockopt(2)
pub fn get(files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [fd, level, name, address, len_at, _] = args;
    let (level, name) = (int(level), int(name));
    let id = socket_of(files, fd)?;
    let room = guest.read_u32(len_at)?.cast_signed();
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    let value = value(files.sockets.get_mut(id)?, level, name)?;
    let part = value.get(..room.min(value.len())).unwrap_or_default();
    guest.write(address, part)?;
    let len = u32::try_from(part.len()).unwrap_or(0);
    guest.write(len_at, &len.to_le_bytes())?;
    Ok(0)
}

fn value(socket: &mut Socket, level: i32, name: i32) -> Result<Vec<u8>, Errno> {
    let number = |value: i32| Ok(value.to_le_bytes().to_vec());
    let time =
        |time: Option<Duration>| Ok(timeval_bytes_of(time.unwrap_or_default()).done().to_vec());
    let nature = socket.nature;
    check_level(socket, level).map_err(|errno| match nature.family {
        Family::V4 => Errno::OPNOTSUPP,
        _ => errno,
    })?;
    match (level, name) {
        (SOL_SOCKET, libc::SO_TYPE) => number(match nature.style {
            Style::Stream => libc::SOCK_STREAM,
            Style::Datagram => libc::SOCK_DGRAM,
            Style::SeqPacket => libc::SOCK_SEQPACKET,
        }),
        (SOL_SOCKET, libc::SO_DOMAIN) => number(match nature.family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
            Family::Unix => libc::AF_UNIX,
            Family::Netlink => libc::AF_NETLINK,
        }),
        (SOL_SOCKET, libc::SO_PROTOCOL) => number(match nature.style {
            _ if !nature.is_inet() => 0,
            Style::Stream => IPPROTO_TCP,
            _ => IPPROTO_UDP,
        }),
        (SOL_SOCKET, libc::SO_ERROR) => {
            let error = socket.error.take();
            number(error.map_or(0, Errno::raw_os_error))
        }
        (SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            number(i32::from(matches!(socket.state, State::Listening { .. })))
        }
        (SOL_SOCKET, SO_LINGER) => {
            let seconds = socket.options.get(&(level, name)).copied();
            let on = u32::from(seconds.is_some());
            let seconds = seconds.unwrap_or(0).cast_unsigned();
            Ok(Layout::<8>::new()
                .u32(0, on)
                .u32(4, seconds)
                .done()
                .to_vec())
        }
        // struct ucred: the process, whose user is root.
        (SOL_SOCKET, libc::SO_PEERCRED) => {
            let process = match socket.peer() {
                Some(_) if !nature.is_inet() => Layout::<12>::new().u32(0, 1),
                _ => Layout::<12>::new().u32(4, u32::MAX).u32(8, u32::MAX),
            };
            Ok(process.done().to_vec())
        }
        (SOL_SOCKET, libc::SO_SNDLOWAT) => number(1),
        (SOL_SOCKET, libc::SO_RCVTIMEO) => time(socket.receive_time),
        (SOL_SOCKET, libc::SO_SNDTIMEO) => time(socket.send_time),
        (IPPROTO_TCP, libc::TCP_CONGESTION) => Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        // struct tcp_info, of which only the state is told: established, closed, listening.
        (IPPROTO_TCP, libc::TCP_INFO) => {
            let state = match socket.state {
                State::Connected(_) => 1,
                State::Connecting => 2,
                State::Listening { .. } => 10,
                _ => 7,
            };
            Ok(Layout::<232>::new().bytes(0, &[state]).done().to_vec())
        }
        _ => {
            let of = kept(level, name).ok_or(Errno::NOPROTOOPT)?;
            number(socket.options.get(&(level, name)).copied().unwrap_or(of.2))
        }
    }
}
