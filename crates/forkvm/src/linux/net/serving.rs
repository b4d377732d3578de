//! The network as the engine sees it: who listens, and when a program waits for a connection.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::linux::files::fds::Kind;
use crate::linux::net::address::Address;
use crate::linux::net::outside::{ConnectionId, Listener, ListenerId};
use crate::linux::net::sockets::Sockets;
use crate::linux::net::waiting;
use crate::linux::state::Linux;
use crate::memory::user::UserMemory;

impl Linux {
    /// When the first timer goes off whose descriptor may be waited for (timerfd_create(2)).
    pub fn next_timer(&self, now: Instant) -> Option<Instant> {
        let timers = self.files.all_open().filter_map(|file| match file.kind {
            Kind::TimerFd(timer) => timer.next_ready(now),
            _ => None,
        });
        timers.min()
    }
}

impl Linux {
    /// Moves what can be moved to and from the outside. True if that was anything.
    pub fn pump_outside(&mut self) -> bool {
        self.files.sockets.outgoing.event().is_some() && self.files.sockets.pump_outside()
    }

    /// What becomes readable when that may be, if there is anything outside.
    pub fn outside_event(&self) -> Option<BorrowedFd<'_>> {
        self.files.sockets.outgoing.event()
    }

    /// When there will be something to be done in any case.
    pub fn outside_until(&self) -> Option<Instant> {
        self.files.sockets.outgoing.until()
    }
}

impl Linux {
    /// The stream sockets that listen.
    pub fn listeners(&self) -> Vec<Listener> {
        self.files.sockets.listeners()
    }

    /// A listener with no connection waiting that some task waits for: in accept(2), or by poll(2), select(2) or
    /// epoll_wait(2). The first of them, if there are several.
    pub fn waits_for_connection(&self, memory: &dyn UserMemory) -> Option<ListenerId> {
        self.waited_listeners(memory).into_iter().min()
    }

    /// All of them.
    pub fn waited_listeners(&self, memory: &dyn UserMemory) -> Vec<ListenerId> {
        let blocked = self.tasks.iter().filter_map(|task| task.blocked());
        let mut found: Vec<ListenerId> = blocked
            .flat_map(|blocked| waiting::listeners(&self.files, memory, blocked.call))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Has a connection wait at a listener; see [`Sockets::connect_from_outside`].
    pub fn connect_from_outside(
        &mut self,
        listener: ListenerId,
        peer: Address,
    ) -> Option<ConnectionId> {
        self.files.sockets.connect_from_outside(listener, peer)
    }

    /// The sockets, to look at connections.
    pub fn sockets(&self) -> &Sockets {
        &self.files.sockets
    }

    /// The sockets, to bring bytes to connections and take them.
    pub fn sockets_mut(&mut self) -> &mut Sockets {
        &mut self.files.sockets
    }
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::*;
    use crate::linux::call::{Outcome, WaitOn};
    use crate::linux::net::readiness::{HUP, IN, OUT, RDHUP};
    use crate::linux::testing::{Machine, SCRATCH};

    const LISTENER: u64 = 3;
    const ACCEPTED: u64 = 4;

    fn peer() -> Address {
        Address::Inet("192.0.2.7:4711".parse().unwrap())
    }

    /// A machine whose program listens at port 80 of any address.
    fn listening() -> (Machine, ListenerId) {
        let mut machine = Machine::with_sockets();
        assert_eq!(machine.call(Sysno::socket, &[2, 1, 0]), 3);
        let address = Address::Inet("0.0.0.0:80".parse().unwrap()).bytes();
        let address = machine.put(0, &address);
        assert_eq!(machine.call(Sysno::bind, &[LISTENER, address, 16]), 0);
        assert_eq!(machine.call(Sysno::listen, &[LISTENER, 1]), 0);
        let listeners = machine.linux.listeners();
        assert_eq!(
            listeners[0].address,
            Address::Inet("0.0.0.0:80".parse().unwrap())
        );
        let id = listeners[0].id;
        (machine, id)
    }

    fn accepted() -> (Machine, ConnectionId) {
        let (mut machine, listener) = listening();
        let connection = machine
            .linux
            .connect_from_outside(listener, peer())
            .unwrap();
        let len = machine.put(1, &100u32.to_le_bytes());
        let accept = [LISTENER, SCRATCH + 64, len, 0];
        assert_eq!(machine.call(Sysno::accept4, &accept), 4);
        assert_eq!(machine.get(SCRATCH + 64, 16), peer().bytes());
        (machine, connection)
    }

    #[test]
    fn a_connection_from_outside_is_served() {
        let (mut machine, connection) = accepted();
        let read = [ACCEPTED, SCRATCH, 100];
        assert_eq!(machine.wait(Sysno::read, &read).on, WaitOn::Descriptor);
        let sockets = machine.linux.sockets_mut();
        assert_eq!(sockets.feed(connection, b"GET /"), 5);
        assert_eq!(machine.call(Sysno::read, &read), 5);
        assert_eq!(machine.get(SCRATCH, 5), b"GET /");
        machine.linux.sockets_mut().finish(connection);
        assert_eq!(machine.call(Sysno::read, &read), 0);
        let text = machine.put(2, b"answer");
        assert_eq!(machine.call(Sysno::write, &[ACCEPTED, text, 6]), 6);
        let sockets = machine.linux.sockets_mut();
        assert!(sockets.take_news() && !sockets.take_news());
        assert_eq!(sockets.take(connection, 3), b"ans");
        assert!(!sockets.sent_end(connection));
        assert_eq!(machine.call(Sysno::close, &[ACCEPTED]), 0);
        let sockets = machine.linux.sockets_mut();
        assert!(sockets.sent_end(connection) && sockets.is_closed(connection));
        assert!(sockets.take_news());
        assert_eq!(sockets.take(connection, 100), b"wer");
        sockets.hang_up(connection);
        assert_eq!(sockets.iter().count(), 1);
    }

    #[test]
    fn a_write_goes_on_where_it_waited() {
        let (mut machine, connection) = accepted();
        let all: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let heap = machine.call(Sysno::mmap, &[0, 1 << 18, 3, 0x22, u64::MAX, 0]) as u64;
        machine.memory.write(heap, &all).unwrap();
        let twice = [heap, 200_000, heap, 200_000].map(u64::to_le_bytes);
        let vector = machine.put(3, twice.as_flattened());
        let write = [ACCEPTED, vector, 2];
        machine.wait(Sysno::writev, &write);
        let mut got = machine.linux.sockets_mut().take(connection, usize::MAX);
        assert_eq!(machine.call(Sysno::writev, &write), 400_000);
        got.extend(machine.linux.sockets_mut().take(connection, usize::MAX));
        assert_eq!(got, [&all[..], &all].concat());
    }

    #[test]
    fn clients_that_go_are_noticed() {
        let (mut machine, connection) = accepted();
        machine.linux.sockets_mut().feed(connection, b"GET");
        machine.linux.sockets_mut().reset(connection);
        let read = [ACCEPTED, SCRATCH, 100];
        assert_eq!(machine.call(Sysno::read, &read), 3);
        assert_eq!(machine.call(Sysno::read, &read), -104);
        assert_eq!(machine.call(Sysno::read, &read), 0);
        assert_eq!(
            machine.outcome(Sysno::write, &[ACCEPTED, SCRATCH, 1]),
            Outcome::Killed(13)
        );
        let entry = [&4u32.to_le_bytes()[..], &u16::MAX.to_le_bytes(), &[0; 2]].concat();
        let entry = machine.put(1, &entry);
        assert_eq!(machine.call(Sysno::poll, &[entry, 1, 0]), 1);
        let found = u16::from_le_bytes(machine.get(entry + 6, 2).try_into().unwrap());
        assert_eq!(found & (IN | OUT | HUP | RDHUP), IN | OUT | HUP | RDHUP);
    }

    #[test]
    fn the_backlog_has_an_end() {
        let (mut machine, listener) = listening();
        for _ in 0..2 {
            assert!(
                machine
                    .linux
                    .connect_from_outside(listener, peer())
                    .is_some()
            );
        }
        assert!(
            machine
                .linux
                .connect_from_outside(listener, peer())
                .is_none()
        );
        let count = machine.linux.sockets().iter().count();
        assert_eq!(count, 5);
        assert_eq!(machine.call(Sysno::close, &[LISTENER]), 0);
        assert!(
            machine
                .linux
                .connect_from_outside(listener, peer())
                .is_none()
        );
        assert!(machine.linux.listeners().is_empty());
    }

    /// What the first task waits for, once it waits in this call.
    fn waited(machine: &mut Machine, number: Sysno, args: &[u64]) -> Option<ListenerId> {
        let wait = machine.wait(number, args);
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let call = crate::linux::Call {
            number: number.id() as u64,
            args: all,
            rsp: 0,
        };
        machine.linux.tasks_mut().block(call, wait, Instant::now());
        machine.linux.waits_for_connection(&machine.memory)
    }

    #[test]
    fn waits_for_a_connection_are_seen() {
        let (mut machine, listener) = listening();
        let found = Some(listener);
        assert_eq!(
            waited(&mut machine, Sysno::accept, &[LISTENER, 0, 0]),
            found
        );
        assert_eq!(waited(&mut machine, Sysno::pause, &[]), None);
        let entry = machine.put(1, &[3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(waited(&mut machine, Sysno::poll, &[entry, 1, 500]), found);
        let entry = machine.put(1, &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(waited(&mut machine, Sysno::poll, &[entry, 1, 500]), None);
        let set = machine.put(2, &0b1000u64.to_le_bytes());
        assert_eq!(
            waited(&mut machine, Sysno::select, &[4, set, 0, 0, 0]),
            found
        );
        let set = machine.put(2, &0b1000u64.to_le_bytes());
        assert_eq!(
            waited(&mut machine, Sysno::select, &[3, set, 0, 0, 0]),
            None
        );
        // By one that watches another one.
        assert_eq!(machine.call(Sysno::epoll_create1, &[0]), 4);
        assert_eq!(machine.call(Sysno::epoll_create1, &[0]), 5);
        let event = machine.put(3, &[1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let room = SCRATCH + 0x8000;
        assert_eq!(
            waited(&mut machine, Sysno::epoll_wait, &[4, room, 9, u64::MAX]),
            None
        );
        assert_eq!(machine.call(Sysno::epoll_ctl, &[4, 1, LISTENER, event]), 0);
        assert_eq!(machine.call(Sysno::epoll_ctl, &[5, 1, 4, event]), 0);
        for epoll in [4, 5] {
            let args = [epoll, room, 9, u64::MAX];
            assert_eq!(waited(&mut machine, Sysno::epoll_wait, &args), found);
        }
        // One that waits is one to be taken first.
        machine
            .linux
            .connect_from_outside(listener, peer())
            .unwrap();
        assert_eq!(machine.linux.waits_for_connection(&machine.memory), None);
    }

    #[test]
    fn connections_are_gone_after_a_reset() {
        let (mut machine, listener) = listening();
        let master = machine.linux.clone();
        let connection = machine
            .linux
            .connect_from_outside(listener, peer())
            .unwrap();
        assert_eq!(machine.linux.sockets_mut().feed(connection, b"x"), 1);
        assert_eq!(machine.call(Sysno::accept, &[LISTENER, 0, 0]), 4);
        machine.linux.restore_from(&master);
        assert_eq!(machine.linux.sockets().iter().count(), 1);
        assert!(machine.linux.sockets().is_closed(connection));
        assert_eq!(machine.call(Sysno::read, &[ACCEPTED, SCRATCH, 1]), -9);
        let again = machine.linux.connect_from_outside(listener, peer());
        assert_eq!(again, Some(connection));
    }
}
