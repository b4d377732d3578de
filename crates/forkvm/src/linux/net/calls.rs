//! Sockets: socket(2), bind(2), listen(2), accept(2), connect(2) and what their addresses are.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

use crate::linux::abi::{Guest, Reply, Value, flags, int};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::files::fds::{Files, Kind, O_CLOEXEC, O_NONBLOCK, OpenFile, close};
use crate::linux::files::resolve::Shared;
use crate::linux::net::address::{Address, reachable};
use crate::linux::net::outgoing::Way;
use crate::linux::net::socket::{Family, Id, Name, Nature, Socket, State, Style};
use crate::linux::net::sockets::Connected;
use crate::linux::net::unix_names;
use crate::linux::told::{Told, Topic};

/// The socket behind a descriptor.
pub fn socket_of(files: &Files, fd: u64) -> Result<Id, Errno> {
    match files.get(fd)?.kind {
        Kind::Socket(id) => Ok(id),
        _ => Err(Errno::NOTSOCK),
    }
}

/// Has the task wait for its descriptor, and get `EAGAIN` if the socket's own time for that is over.
pub fn wait(time: Option<Duration>) -> Outcome {
    Outcome::Block(Wait {
        on: WaitOn::Descriptor,
        time,
        result: -i64::from(Errno::AGAIN.raw_os_error()),
    })
}

/// The flags of socket(2)'s type and of accept4(2).
fn check_flags(how: u32) -> Result<(), Errno> {
    match how & !(O_CLOEXEC | O_NONBLOCK) {
        0 => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

fn open_file(id: Id, how: u32) -> (OpenFile, bool) {
    let file = OpenFile::new(Kind::Socket(id), 2 | how & O_NONBLOCK);
    (file, how & O_CLOEXEC != 0)
}

fn add(files: &mut Files, id: Id, how: u32) -> Result<u64, Errno> {
    let (file, close_on_exec) = open_file(id, how);
    let fd = files.add(file, close_on_exec);
    if fd.is_err() {
        files.sockets.close(id);
    }
    fd
}

/// socket(2)
pub fn socket(files: &mut Files, family: u64, style: u64, protocol: u64) -> Value {
    const STYLE: u32 = 0xf;
    let how = flags(style) & !STYLE;
    check_flags(how)?;
    let style = int(u64::from(flags(style) & STYLE));
    let nature = Nature::new(int(family), style, int(protocol))?;
    if !files.has_room_for(1) {
        return Err(Errno::MFILE);
    }
    let socket = Socket::new(nature);
    let id = files.sockets.add(socket)?;
    add(files, id, how).map(u64::cast_signed)
}

/// socketpair(2)
pub fn socketpair(files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [family, style, protocol, address, ..] = args;
    let how = flags(style) & !0xf;
    check_flags(how)?;
    let nature = Nature::new(
        int(family),
        int(u64::from(flags(style) & 0xf)),
        int(protocol),
    )?;
    if nature.family != Family::Unix {
        return Err(Errno::OPNOTSUPP);
    }
    if !files.has_room_for(2) {
        return Err(Errno::MFILE);
    }
    // A bad pointer must not leave descriptors behind.
    guest.write(address, &[0; 8])?;
    let (first, second) = files.sockets.pair(nature)?;
    let first = add(files, first, how)?;
    let second = match add(files, second, how) {
        Ok(second) => second,
        Err(errno) => {
            close(files, first)?;
            return Err(errno);
        }
    };
    // Both are small.
    guest.write(address, &(first | second << 32).to_le_bytes())?;
    Ok(0)
}

/// The address that the program gives to a call on a socket of this family.
fn read_address(
    guest: &Guest<'_>,
    family: Family,
    address: u64,
    len: u64,
) -> Result<Address, Errno> {
    let read = Address::read(guest, address, len);
    match family {
        // A family is looked at only if there is enough of an address.
        Family::V4 if read == Err(Errno::INVAL) && int(len) >= 16 => Err(Errno::AFNOSUPPORT),
        _ => read,
    }
}

/// bind(2)
pub fn bind(
    shared: &Shared,
    umask: u32,
    files: &mut Files,
    guest: &Guest<'_>,
    args: [u64; 6],
) -> Value {
    let [fd, address, len, ..] = args;
    let id = socket_of(files, fd)?;
    let nature = files.sockets.get(id)?.nature;
    let mut address = read_address(guest, nature.family, address, len)?;
    if nature.family == Family::Netlink {
        let Address::Netlink(port) = address else {
            return Err(Errno::INVAL);
        };
        files.sockets.bind_netlink(id, port)?;
        return Ok(0);
    }
    if address == Address::Unspecified {
        // An old habit: no family, and no address either.
        if nature.family != Family::V4 || int(len) < 16 {
            return Err(if nature.is_inet() {
                Errno::AFNOSUPPORT
            } else {
                Errno::INVAL
            });
        }
        address = Address::Inet(([0, 0, 0, 0], 0).into());
    }
    if files.sockets.get(id)?.name.is_some() {
        return Err(Errno::INVAL);
    }
    let name = match &address {
        Address::Path(path) if !nature.is_inet() => {
            Some(unix_names::bind(shared, files, path, umask)?)
        }
        _ => None,
    };
    files.sockets.bind(id, address, name)?;
    Ok(0)
}

/// listen(2)
pub fn listen(files: &mut Files, fd: u64, backlog: u64) -> Value {
    let id = socket_of(files, fd)?;
    // As an unsigned number: a negative one is the most there is.
    let backlog = usize::try_from(flags(backlog)).unwrap_or(usize::MAX);
    files.sockets.listen(id, backlog)?;
    Ok(0)
}

/// accept(2), accept4(2)
pub fn accept4(files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6], how: u64) -> Reply {
    let [fd, address, len, ..] = args;
    let how = flags(how);
    check_flags(how)?;
    let id = socket_of(files, fd)?;
    let waiting = files.sockets.waiting(id)?;
    let Some(end) = waiting else {
        if files.get(fd)?.flags & O_NONBLOCK != 0 {
            return Err(Errno::AGAIN);
        }
        return Ok(wait(files.sockets.get(id)?.receive_time));
    };
    if !files.has_room_for(1) {
        return Err(Errno::MFILE);
    }
    if address != 0 {
        let remote = files.sockets.get(end)?.remote.clone();
        remote
            .unwrap_or(Address::Unnamed)
            .write(guest, address, len)?;
    }
    files.sockets.accept(id);
    let fd = add(files, end, how)?;
    Ok(Outcome::Return(fd.cast_signed()))
}

/// connect(2): to the program itself, or to what it may reach outside.
pub fn connect(shared: &Shared, files: &mut Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Reply {
    let [fd, address, len, ..] = args;
    let id = socket_of(files, fd)?;
    let socket = files.sockets.get(id)?;
    let nature = socket.nature;
    let address = read_address(guest, nature.family, address, len)?;
    if address == Address::Unspecified {
        return disconnect(files, id);
    }
    if nature.family == Family::Netlink {
        // Whom it would send to by itself is who answers.
        return match address {
            Address::Netlink(0) => Ok(Outcome::Return(0)),
            Address::Netlink(_) => Err(Errno::CONNREFUSED),
            _ => Err(Errno::INVAL),
        };
    }
    if nature.is_inet() != matches!(address, Address::Inet(_)) {
        return Err(if nature.is_inet() {
            Errno::AFNOSUPPORT
        } else {
            Errno::INVAL
        });
    }
    if let Address::Inet(to) = &address
        && to.is_ipv6() != (nature.family == Family::V6)
    {
        return Err(if nature.family == Family::V6 {
            Errno::INVAL
        } else {
            Errno::AFNOSUPPORT
        });
    }
    if address == Address::Unnamed {
        return Err(Errno::INVAL);
    }
    let name = unix_names::find(shared, files, &address)?;
    let blocks = files.get(fd)?.flags & O_NONBLOCK == 0;
    match (&socket.state, nature.style) {
        (_, Style::Datagram) => return aim(files, id, &name, address),
        (State::Connected(_), _) if socket.connecting => {
            // It was told that this goes on, and now is that it is done.
            files.sockets.get_mut(id)?.connecting = false;
            return Ok(Outcome::Return(0));
        }
        (State::New, _) if socket.connecting => {
            let socket = files.sockets.get_mut(id)?;
            socket.connecting = false;
            (socket.read_shut, socket.write_shut) = (false, false);
            return Err(socket.error.take().unwrap_or(Errno::CONNABORTED));
        }
        (State::New, _) => {}
        (State::Connecting, _) if blocks => return Ok(wait_to_connect(socket)),
        (State::Connecting, _) => return Err(Errno::ALREADY),
        (State::Listening { .. }, _) if !nature.is_inet() => return Err(Errno::INVAL),
        _ => return Err(Errno::ISCONN),
    }
    let name = match name {
        Name::Inet(to) => {
            let to = reachable(to);
            match files.sockets.way_to(id, to)? {
                Way::Within | Way::Names => Name::Inet(to),
                Way::Outside => return connect_to_outside(files, id, to, blocks),
                Way::Asking => return Ok(wait(None)),
            }
        }
        name => name,
    };
    let Some(listener) = files.sockets.listener_at(nature, &name) else {
        return Err(match name {
            Name::Path(_) | Name::File(_) => no_listener(files, &name, nature.style),
            Name::Inet(_) if !blocks => {
                let socket = files.sockets.get_mut(id)?;
                socket.error = Some(Errno::CONNREFUSED);
                (socket.read_shut, socket.write_shut) = (true, true);
                socket.connecting = true;
                socket.opened();
                Errno::INPROGRESS
            }
            _ => Errno::CONNREFUSED,
        });
    };
    let to = match name {
        Name::Inet(to) => {
            files.sockets.bind_to_loopback(id, to)?;
            Some(to)
        }
        _ => None,
    };
    match files.sockets.connect(id, listener, to)? {
        // Over IP that takes its time, however short it is.
        Connected::Done if to.is_some() && !blocks => {
            files.sockets.get_mut(id)?.connecting = true;
            Err(Errno::INPROGRESS)
        }
        Connected::Done => Ok(Outcome::Return(0)),
        Connected::Full if !blocks => Err(Errno::AGAIN),
        Connected::Full => Ok(wait(files.sockets.get(id)?.send_time)),
    }
}

fn connect_to_outside(files: &mut Files, id: Id, to: SocketAddr, blocks: bool) -> Reply {
    files.sockets.connect_to_outside(id, to)?;
    match blocks {
        true => Ok(wait_to_connect(files.sockets.get(id)?)),
        false => Err(Errno::INPROGRESS),
    }
}

/// The call is made again until the connection is there, or has failed.
fn wait_to_connect(socket: &Socket) -> Outcome {
    Outcome::Block(Wait {
        on: WaitOn::Descriptor,
        time: socket.send_time,
        result: -i64::from(Errno::INPROGRESS.raw_os_error()),
    })
}

/// Why nobody takes a connection at a path where there is something.
fn no_listener(files: &Files, name: &Name, style: Style) -> Errno {
    let taken = files
        .sockets
        .iter()
        .find(|(_, other)| other.name.as_ref() == Some(name));
    match taken {
        Some((_, other)) if other.nature.style != style => Errno::PROTOTYPE,
        _ => Errno::CONNREFUSED,
    }
}

/// connect(2) of a datagram socket: where its datagrams go.
fn aim(files: &mut Files, id: Id, name: &Name, address: Address) -> Reply {
    match name {
        Name::Inet(to) => {
            let to = reachable(*to);
            match files.sockets.way_to(id, to)? {
                Way::Within | Way::Names => files.sockets.bind_to_loopback(id, to)?,
                Way::Outside => files.sockets.aim_outside(id, to)?,
                Way::Asking => return Ok(wait(None)),
            }
            files.sockets.get_mut(id)?.state = State::Aimed(to);
        }
        _ => {
            let target = files.sockets.unix_socket_at(name)?;
            let aimed = files.sockets.get(target)?.peer();
            if aimed.is_some_and(|peer| peer != id) {
                return Err(Errno::PERM);
            }
            files.sockets.get_mut(id)?.state = State::Connected(target);
        }
    }
    files.sockets.get_mut(id)?.remote = Some(address);
    Ok(Outcome::Return(0))
}

/// connect(2) to nothing (`AF_UNSPEC`).
fn disconnect(files: &mut Files, id: Id) -> Reply {
    let socket = files.sockets.get_mut(id)?;
    match (socket.nature.style, socket.nature.is_inet()) {
        (Style::Datagram, _) => {
            socket.state = State::New;
            socket.remote = None;
            Ok(Outcome::Return(0))
        }
        (_, false) => Err(Errno::INVAL),
        // A connection that is taken back would be a reset.
        (_, true) if matches!(socket.state, State::New) => Ok(Outcome::Return(0)),
        (_, true) => Err(Errno::OPNOTSUPP),
    }
}

/// getsockname(2)
pub fn getsockname(files: &Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [fd, address, len, ..] = args;
    let socket = files.sockets.get(socket_of(files, fd)?)?;
    let none = match socket.nature.family {
        Family::V4 => Address::Inet(([0, 0, 0, 0], 0).into()),
        Family::V6 => Address::Inet(([0u16; 8], 0).into()),
        Family::Unix => Address::Unnamed,
        Family::Netlink => Address::Netlink(0),
    };
    socket
        .local
        .as_ref()
        .unwrap_or(&none)
        .write(guest, address, len)?;
    Ok(0)
}

/// getpeername(2)
pub fn getpeername(files: &Files, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [fd, address, len, ..] = args;
    let socket = files.sockets.get(socket_of(files, fd)?)?;
    let connected = matches!(socket.state, State::Connected(_) | State::Aimed(_));
    // One of IP whose connection is over both ways has no other end any more.
    let over = socket.nature.is_inet() && socket.read_shut && socket.write_shut;
    let remote = socket.remote.as_ref().filter(|_| connected && !over);
    remote.ok_or(Errno::NOTCONN)?.write(guest, address, len)?;
    Ok(0)
}

/// shutdown(2)
pub fn shutdown(files: &mut Files, fd: u64, how: u64) -> Value {
    let id = socket_of(files, fd)?;
    let (read, write) = match int(how) {
        libc::SHUT_RD => (true, false),
        libc::SHUT_WR => (false, true),
        libc::SHUT_RDWR => (true, true),
        _ => return Err(Errno::INVAL),
    };
    files.sockets.shutdown(id, read, write)?;
    Ok(0)
}

/// Calls of programs that have no sockets: an open descriptor is none.
pub fn not_one(files: &Files, fd: u64) -> Errno {
    files.get(fd).map_or_else(|errno| errno, |_| Errno::NOTSOCK)
}

/// socket(2), socketpair(2) of programs that have none. They are told so once, and by the error that says it.
pub fn refuse(guest: &mut Guest<'_>, told: &mut Told, family: i32) -> Errno {
    // AF_UNIX is what resolvers and loggers try first, and do without; the others are meant.
    if family != libc::AF_UNIX {
        told.tell(Topic::Network, guest);
    }
    Errno::AFNOSUPPORT
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::Machine;
    use syscalls::Sysno;

    #[test]
    fn programs_without_an_address_space_have_no_network() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::socket, &[1, 1, 0]), -97);
        assert!(machine.host.stderr.is_empty());
        assert_eq!(machine.call(Sysno::socket, &[2, 1, 0]), -97);
        assert_eq!(machine.call(Sysno::socket, &[10, 1, 0]), -97);
        assert_eq!(
            String::from_utf8_lossy(&machine.host.stderr)
                .lines()
                .count(),
            1
        );
        assert_eq!(machine.call(Sysno::connect, &[1, 0, 0]), -88);
        assert_eq!(machine.call(Sysno::connect, &[7, 0, 0]), -9);
        assert_eq!(machine.call(Sysno::epoll_create1, &[0]), -38);
        assert_eq!(machine.call(Sysno::eventfd2, &[0, 0]), -38);
    }
}
