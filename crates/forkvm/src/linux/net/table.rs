//! The table of the calls about sockets and about waiting for descriptors.

use std::time::Duration;

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, Reply, Value, int};
use crate::linux::call::Outcome;
use crate::linux::files::fds::Kind;
use crate::linux::files::io;
use crate::linux::files::pieces::Pieces;
use crate::linux::net::messages::Party;
use crate::linux::net::packet::Beside;
use crate::linux::net::{calls, events, options};
use crate::linux::state::Linux;
use crate::linux::tasks::signals;
use crate::linux::time::read_duration;

/// Carries out a call, if it is one of these and the program may make it.
pub fn call(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    number: Sysno,
    args: [u64; 6],
) -> Option<Outcome> {
    if !linux.files.has_sockets() {
        return refused(linux, guest, number, args).map(crate::linux::abi::failed);
    }
    let outcome = match number {
        Sysno::epoll_wait | Sysno::epoll_pwait | Sysno::epoll_pwait2 => {
            epoll_wait(linux, guest, number, args).into()
        }
        Sysno::accept | Sysno::accept4 | Sysno::connect => waits(linux, guest, number, args).into(),
        Sysno::sendto
        | Sysno::recvfrom
        | Sysno::sendmsg
        | Sysno::recvmsg
        | Sysno::sendmmsg
        | Sysno::recvmmsg => message(linux, guest, number, args).into(),
        _ => plain(linux, guest, number, args)?.into(),
    };
    Some(outcome)
}

/// What programs without sockets get.
fn refused(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    number: Sysno,
    args: [u64; 6],
) -> Option<Errno> {
    Some(match number {
        Sysno::socket | Sysno::socketpair => calls::refuse(guest, &mut linux.told, int(args[0])),
        Sysno::connect
        | Sysno::bind
        | Sysno::listen
        | Sysno::accept
        | Sysno::accept4
        | Sysno::getsockname
        | Sysno::getpeername
        | Sysno::getsockopt
        | Sysno::setsockopt
        | Sysno::sendto
        | Sysno::recvfrom
        | Sysno::sendmsg
        | Sysno::recvmsg
        | Sysno::shutdown => calls::not_one(&linux.files, args[0]),
        _ => return None,
    })
}

/// Calls that never wait.
fn plain(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Option<Value> {
    let [a, b, c, d, ..] = args;
    let (files, clocks) = (&mut linux.files, &linux.clocks);
    Some(match number {
        Sysno::socket => calls::socket(files, a, b, c),
        Sysno::socketpair => calls::socketpair(files, guest, args),
        Sysno::bind => {
            files.overlay.owner = linux.tasks.ids().owner();
            calls::bind(&linux.shared, linux.process.umask(), files, guest, args)
        }
        Sysno::listen => calls::listen(files, a, b),
        Sysno::getsockname => calls::getsockname(files, guest, args),
        Sysno::getpeername => calls::getpeername(files, guest, args),
        Sysno::getsockopt => options::get(files, guest, args),
        Sysno::setsockopt => options::set(files, guest, args),
        Sysno::shutdown => calls::shutdown(files, a, b),
        Sysno::epoll_create => events::epoll_create(files, Some(a), 0),
        Sysno::epoll_create1 => events::epoll_create(files, None, a),
        Sysno::epoll_ctl => events::epoll_ctl(files, guest, args),
        Sysno::eventfd => events::eventfd2(files, a, 0),
        Sysno::eventfd2 => events::eventfd2(files, a, b),
        Sysno::timerfd_create => events::timerfd_create(files, a, b),
        Sysno::timerfd_settime => events::timerfd_settime(files, clocks, guest, args),
        Sysno::timerfd_gettime => events::timerfd_gettime(files, guest, a, b),
        Sysno::signalfd => events::signalfd4(files, guest, args, 0),
        Sysno::signalfd4 => events::signalfd4(files, guest, args, d),
        _ => return None,
    })
}

fn waits(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Reply {
    match number {
        Sysno::connect => calls::connect(&linux.shared, &mut linux.files, guest, args),
        Sysno::accept4 => calls::accept4(&mut linux.files, guest, args, args[3]),
        _ => calls::accept4(&mut linux.files, guest, args, 0),
    }
}

fn party<'a, 'b>(linux: &'a mut Linux, guest: &'a mut Guest<'b>) -> Party<'a, 'b> {
    Party {
        shared: &linux.shared,
        files: &mut linux.files,
        tasks: &mut linux.tasks,
        guest,
    }
}

fn message(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Reply {
    let [a, b, c, ..] = args;
    let mut party = party(linux, guest);
    let reply = match number {
        Sysno::sendto => party.sendto(args),
        Sysno::recvfrom => party.recvfrom(args),
        Sysno::sendmsg => party.sendmsg(a, b, c),
        Sysno::recvmsg => party.recvmsg(a, b, c),
        _ => party.many(args, number == Sysno::sendmmsg),
    };
    linux.files.release_unreceived();
    reply
}

fn epoll_wait(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Reply {
    let [_, _, _, timeout, mask, size] = args;
    let time = match number {
        Sysno::epoll_pwait2 if timeout == 0 => None,
        Sysno::epoll_pwait2 => Some(read_duration(guest, timeout)?),
        _ => u64::try_from(int(timeout)).ok().map(Duration::from_millis),
    };
    if number != Sysno::epoll_wait {
        signals::mask_for_call(&mut linux.tasks, guest, mask, size)?;
    }
    let awaited = signals::awaited(&linux.signals, &linux.tasks);
    events::epoll_wait(&mut linux.files, awaited, guest, args, time)
}

/// read(2), readv(2), pread64(2), preadv(2) of whatever a descriptor stands for.
pub fn read(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    at: Option<u64>,
) -> Reply {
    match linux.files.get(fd)?.kind {
        Kind::Socket(_) if at.is_none() => {
            let reply = party(linux, guest).read(fd, pieces);
            linux.files.release_unreceived();
            reply
        }
        Kind::EventFd(_) => events::read_eventfd(&mut linux.files, guest, fd, pieces),
        Kind::TimerFd(_) => events::read_timerfd(&mut linux.files, guest, fd, pieces),
        Kind::SignalFd(mask) => {
            let of = (&*linux.files, &mut *linux.signals, &mut linux.tasks);
            events::read_signalfd(of, guest, (fd, mask), pieces)
        }
        _ => io::read(&mut linux.files, guest, fd, pieces, at),
    }
}

/// write(2), writev(2), pwrite64(2), pwritev(2), likewise.
pub fn write(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    fd: u64,
    pieces: &Pieces,
    at: Option<u64>,
) -> Reply {
    match linux.files.get(fd)?.kind {
        Kind::Socket(_) if at.is_none() => {
            party(linux, guest).send(fd, pieces, 0, (None, &Beside::default()))
        }
        Kind::EventFd(_) => events::write_eventfd(&mut linux.files, guest, fd, pieces),
        _ => io::write(&mut linux.files, &mut linux.tasks, guest, fd, pieces, at),
    }
}
