//! A fork of a server: a machine whose memory is the master's, copy-on-write. It serves one connection at a time and is put
//! back to the master's state after each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::arch::layout::PAGE;
use crate::failure::Cause;
use crate::fork::shrink::ShrinkPolicy;
use crate::fork::{ForkError, ResetError};
use crate::machine::Machine;
use crate::machine::spent::Spent;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::memory::space::Space;
use crate::memory::space::arrival::Wanted;
use crate::request::Host;
use crate::server::connection::{Closed, Connection, Dialogue, Times};
use crate::server::master::Server;
use crate::server::warm_up;

/// Most different warm-up requests that a fork is made to serve.
const MOST_WARM_UPS: usize = 8;

/// A fork could not serve the warm-up requests.
#[derive(Debug, thiserror::Error)]
pub enum NotWarm {
    /// One failed.
    #[error("a warm-up request failed: {0}")]
    Failed(String),
    /// The fork could not be put back after one.
    #[error(transparent)]
    NotReset(#[from] ResetError),
}

/// A fork of a server.
#[derive(Debug)]
pub struct ServerFork {
    machine: Machine,
    server: Arc<Server>,
    shrink: ShrinkPolicy,
    /// The last connection was not served to its end.
    failed: bool,
    /// It has served none since it was made or reset.
    fresh: bool,
}

impl ServerFork {
    /// Forks a server, for connections after each of which it is reset.
    ///
    /// # Errors
    /// KVM or the kernel refuse.
    pub fn new(server: Arc<Server>) -> Result<Self, ForkError> {
        let len = server.fork_len();
        Self::of_length(server, len)
    }

    /// The same, to learn which frames a connection touches: their numbers.
    pub(super) fn noting(server: Arc<Server>) -> Result<(Self, Wanted), ForkError> {
        let mut fork = Self::new(server)?;
        let frames = fork.machine.memory.note_frames()?;
        Ok((fork, frames))
    }

    /// Forks a server for good: it is never reset, and its connections may together have all of the memory.
    ///
    /// # Errors
    /// KVM or the kernel refuse.
    pub fn never_reset(server: Arc<Server>) -> Result<Self, ForkError> {
        let len = server.memory.len();
        Self::of_length(server, len)
    }

    fn of_length(server: Arc<Server>, len: u64) -> Result<Self, ForkError> {
        if server.space.is_lost() {
            return Err(ForkError::Lost);
        }
        let pages = |bytes: u64| usize::try_from(bytes / PAGE).unwrap_or(usize::MAX);
        let limits = &server.limits;
        let page_limit = pages(limits.max_request_memory);
        let mapping = Mapping::fork(&server.file, len, &server.unused)?;
        // A copy that it gets of a frame that has yet to come would stay what it is now.
        if !server.space.is_coming() {
            server.learned.populate(&mapping);
        }
        let unlogged = 0..server.space.layout().tables.end;
        let memory =
            GuestMemory::forked(mapping, &unlogged, page_limit)?.with_space(server.space.fork(len));
        let ring = server.kvm.ring_entries(page_limit as u64);
        let mut machine = Machine::new(
            server.kvm,
            memory,
            server.linux.clone(),
            Some(ring),
            server.dispatches,
        )?;
        machine.set_serves();
        machine.forget_task();
        machine.vcpu().set_sregs(&server.sregs)?;
        machine.vcpu().set_sregs_at_next_run(server.sregs);
        machine.vcpu().clear_events_at_next_run(server.events);
        let shrink = ShrinkPolicy::new(pages(limits.req_mem_limit_after_reset));
        Ok(Self {
            machine,
            server,
            shrink,
            failed: false,
            fresh: true,
        })
    }

    /// Serves the warm-up requests once more, so that the first client finds what the later ones do: its pages in the
    /// processor's tables. For a thread that no client waits for. Each has to be over at `deadline`, if there is one.
    ///
    /// # Errors
    /// As [`ServerFork::serve`] and [`ServerFork::reset`]. It is not to be used then.
    pub fn warm_up(
        &mut self,
        deadline: Option<Instant>,
        host: &mut dyn Host,
    ) -> Result<(), NotWarm> {
        let server = self.server.clone();
        if !server.limits.warm_forks || !server.warm_ups.are_due(Instant::now()) {
            return Ok(());
        }
        let result = self.serve_warm_ups(&server, deadline, host);
        match result {
            Ok(()) => server.warm_ups.ran(),
            Err(_) => server.warm_ups.failed(Instant::now()),
        }
        result
    }

    fn serve_warm_ups(
        &mut self,
        server: &Server,
        deadline: Option<Instant>,
        host: &mut dyn Host,
    ) -> Result<(), NotWarm> {
        let mut seen = BTreeSet::new();
        let different = server.limits.warm_up.iter().filter(|&of| seen.insert(of));
        for request in different.take(MOST_WARM_UPS) {
            let mut client = warm_up::Client::new(request, deadline);
            match self.serve(&mut client, host) {
                Ok(Closed::OutOfTime) => return Err(NotWarm::Failed("it takes too long".into())),
                Ok(_) => self.reset()?,
                Err(cause) => return Err(NotWarm::Failed(server.describe(&cause))),
            }
        }
        Ok(())
    }

    /// Gives what memory it has back to the host, where it is not to run again. To free the machine takes longer.
    pub(crate) fn give_memory_back(&self) {
        // What is left is given back with the machine.
        let _ = self.machine.memory.mapping().drop_private_pages();
    }

    /// Serves a connection to its end. `host` gets what the program prints.
    ///
    /// # Errors
    /// What the program did instead of serving it, or a limit. [`Server::describe`] puts it into words.
    pub fn serve(
        &mut self,
        connection: &mut dyn Connection,
        host: &mut dyn Host,
    ) -> Result<Closed, Cause> {
        let times = self.times();
        self.serve_in(connection, times, host)
    }

    /// The same, where the two may be silent for other times than usual.
    pub(crate) fn serve_in(
        &mut self,
        connection: &mut dyn Connection,
        times: Times,
        host: &mut dyn Host,
    ) -> Result<Closed, Cause> {
        let mut dialogue = self.begin(connection.peer())?;
        loop {
            if let Some(closed) = self.go_on(&mut dialogue, connection, times, host)? {
                return Ok(closed);
            }
        }
    }

    /// How long the two may be silent.
    pub(crate) fn times(&self) -> Times {
        let limits = &self.server.limits;
        Times {
            request: limits.max_request_time,
            idle: limits.max_idle_time,
        }
    }

    /// Begins a connection from this address.
    pub(crate) fn begin(&mut self, peer: Option<SocketAddr>) -> Result<Dialogue, Cause> {
        if std::mem::take(&mut self.fresh) {
            let frozen = self.server.frozen.elapsed();
            self.machine.linux.add_frozen(frozen);
            let Machine {
                memory,
                linux,
                random,
                ..
            } = &mut self.machine;
            linux.renew_at_random(memory, random);
            self.machine.anchor_clock()?;
        }
        self.machine.begin_account();
        let begun = Dialogue::new(&mut self.machine, self.server.listener, peer);
        self.failed = begun.is_err();
        begun
    }

    /// Goes on with a connection: to its end, or until [`Connection::pauses`], which is `None`.
    ///
    /// # Errors
    /// As for [`ServerFork::serve`].
    pub(crate) fn go_on(
        &mut self,
        dialogue: &mut Dialogue,
        connection: &mut dyn Connection,
        times: Times,
        host: &mut dyn Host,
    ) -> Result<Option<Closed>, Cause> {
        let result = dialogue.go_on(&mut self.machine, connection, times, host);
        // Where it waits it can be reset.
        self.failed = result.is_err() || dialogue.is_amid();
        if self.machine.linux.lacks_more_than(&self.server.linux) {
            self.server.lacks(self.machine.linux.unsupported());
        }
        if self.machine.over_memory_limit() {
            return Err(Cause::MemoryLimit);
        }
        match result {
            // It was interrupted at what it did by the time of the whole, which is not the request's.
            Err(Cause::Timeout)
                if connection
                    .deadline()
                    .is_some_and(|end| Instant::now() >= end) =>
            {
                Ok(Some(Closed::OutOfTime))
            }
            result => result,
        }
    }

    /// What the last connection has cost. To be asked before the reset.
    pub fn spent(&self) -> Spent {
        self.machine.spent()
    }

    /// Whether it has become a child that was made for its connection, and so can serve another one only after a reset.
    pub fn has_forked(&self) -> bool {
        self.machine.linux.tasks().is_child()
    }

    /// Puts the fork back to the master's state. After an error it is not to be used again; so is one whose connection was
    /// not served to its end.
    ///
    /// # Errors
    /// See [`ResetError`].
    pub fn reset(&mut self) -> Result<(), ResetError> {
        if self.failed || !self.machine.settle() {
            return Err(ResetError::Ended);
        }
        let host = |error| ResetError::Host(std::io::Error::other(error));
        self.machine.set_poisoned(true);
        // Tables of before all memory had come are given up with the rest, for those that stand now.
        let outdated = self.machine.memory.space().is_some_and(Space::is_outdated);
        if outdated || self.shrink.is_due(self.machine.memory.dirty_len()) {
            self.machine.shrink()?;
            let len = self.machine.memory.mapping().len();
            self.machine
                .replace_space(self.server.space.fork(len))
                .map_err(std::io::Error::from)?;
        } else {
            let memory = &mut self.machine.memory;
            memory
                .restore(&self.server.memory)
                .map_err(|error| host(error.to_string()))?;
            self.server.learned.learn(memory.dirty_pages());
            let usable = memory
                .restore_space(&self.server.space)
                .map_err(|error| host(error.to_string()))?;
            if !usable {
                return Err(ResetError::Ended);
            }
            self.machine.keep_ring_low()?;
        }
        self.machine.linux.restore_from(&self.server.linux);
        self.machine.forget_task();
        self.machine
            .vcpu()
            .clear_debug_registers()
            .map_err(std::io::Error::from)?;
        self.machine.vcpu().set_sregs_at_next_run(self.server.sregs);
        self.machine
            .vcpu()
            .clear_events_at_next_run(self.server.events);
        self.machine.set_poisoned(false);
        self.fresh = true;
        Ok(())
    }

    /// How many entries of the fork's page tables are not as a reset leaves them, counting its mappings as one if they are not the
    /// master's. After a reset there are none. Reads all tables.
    pub fn differing_entries(&self) -> usize {
        let memory = &self.machine.memory;
        let master = (&self.server.space, &self.server.memory);
        memory.space().map_or(0, |space| {
            let (entries, same_vmas) = space.differing_entries(memory.mapping(), master);
            entries + usize::from(!same_vmas)
        })
    }

    /// How many pages of the fork's memory differ from the master's, page tables left out. After a reset there are none.
    /// Reads all memory.
    pub fn differing_pages(&self) -> usize {
        let first = self.server.space.layout().dispatcher.start;
        self.machine
            .memory
            .mapping()
            .differing_pages_from(&self.server.memory, first)
    }
}
