//! A server on its way to the freeze, and what its forks are made of.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_sregs, kvm_vcpu_events};
use parking_lot::Mutex;
use rustix::fs::SealFlags;

use crate::arch::layout::page_up;
use crate::exec::{self, NotRun, Sandbox, Started};
use crate::failure::{BootError, Cause};
use crate::image::exec::Command;
use crate::image::generators;
use crate::image::symbols::Symbols;
use crate::linux::{Address, Linux, Listener, ListenerId};
use crate::machine::probe::{self, KvmHost};
use crate::machine::{Event, Machine};
use crate::master::freeze;
use crate::master::warm_ups::WarmUps;
use crate::memory::learned::Learned;
use crate::memory::mapping::Mapping;
use crate::memory::space::Space;
use crate::request::Host;
use crate::server::connection::{self, Times};
use crate::server::limits::ServerLimits;
use crate::server::snapshot::coming::Coming;
use crate::server::snapshot::error::SnapshotError;
use crate::server::snapshot::terms::Terms;
use crate::server::warm_up;

/// So old are bytes of /dev/urandom that a program keeps for later when it reads others (OpenJDK's NativePRNG). Until then forks
/// would all give out those of the freeze. 100 ms, and as much as two clocks may be apart where many threads want the processor.
const RANDOM_KEPT: Duration = Duration::from_millis(200);

/// Why a program does not serve.
#[derive(Debug, thiserror::Error)]
pub enum NotServing {
    /// It could not be started, or was stopped.
    #[error(transparent)]
    NotRun(#[from] NotRun),
    /// It ended before it waited for a connection.
    #[error("the program ended with status {0} before it waited for a connection")]
    Exited(i32),
    /// It has forked, and so went on as its child, which ended before that.
    #[error(
        "the program forked and went on as its child, as a server does, but that ended with status {0} before it waited for a \
         connection: helper processes are not supported"
    )]
    ChildExited(i32),
    /// It is its own child after a request of the warm-up, and so has served its last one.
    #[error("the program forks for each connection: it can't be warmed up, so leave out --warmup")]
    ForksInWarmUp,
    /// A signal ended it before.
    #[error("signal {0} ended the program before it waited for a connection")]
    Signalled(i32),
    /// It is connected to something outside, which its forks can't be.
    #[error(
        "the program is connected to {0} when it waits for a connection, but each fork has connections of its own only: \
         have it connect when it serves a request, or give --drop-connections, which has it find them reset"
    )]
    Connected(String),
    /// All it does is wait, but for no connection.
    #[error("the program waits, but for no connection: {0}")]
    NoListener(&'static str),
    /// The host had it end ([`Host::give_way`]).
    #[error("the boot was stopped")]
    Stopped,
}

impl From<NotServing> for BootError {
    fn from(not: NotServing) -> Self {
        match not {
            NotServing::Stopped => Self::Stopped,
            NotServing::NotRun(NotRun::Kvm(error)) => Self::Kvm(error),
            NotServing::NotRun(NotRun::Host(what)) => Self::Host(what),
            NotServing::NotRun(NotRun::Setting(what)) => Self::Setting(what),
            not => Self::NotServing(not.to_string()),
        }
    }
}

/// What is frozen of a server.
pub(super) struct Frozen {
    pub file: Arc<File>,
    pub memory: Mapping,
    pub unused: Vec<Range<u64>>,
    pub space: Space,
    pub linux: Linux,
    pub events: kvm_vcpu_events,
    pub frozen: Instant,
    pub listener: ListenerId,
    /// Its forks' calls arrive at the dispatcher.
    pub dispatches: bool,
    pub sregs: kvm_sregs,
    pub stack: Range<u64>,
    pub terms: Terms,
    pub changed_files: Option<Vec<PathBuf>>,
    /// Of memory that comes later.
    pub coming: Option<Coming>,
}

/// A server, frozen where it waits for a connection.
#[derive(Debug)]
pub struct Server {
    pub(super) kvm: &'static KvmHost,
    pub(super) file: Arc<File>,
    pub(super) memory: Mapping,
    pub(super) unused: Vec<Range<u64>>,
    pub(super) space: Space,
    pub(super) linux: Linux,
    pub(super) listener: ListenerId,
    /// Its forks' calls arrive at the dispatcher.
    pub(super) dispatches: bool,
    pub(super) sregs: kvm_sregs,
    pub(super) events: kvm_vcpu_events,
    pub(super) frozen: Instant,
    /// What its forks' connections write.
    pub(super) learned: Learned,
    pub(super) warm_ups: WarmUps,
    pub(super) limits: ServerLimits,
    pub(super) stack: Range<u64>,
    pub(super) terms: Terms,
    changed_files: Option<Vec<PathBuf>>,
    pub(super) coming: Option<Coming>,
    boot_time: Duration,
    /// The names of system calls that it made, or a fork, and that are not there.
    unsupported: Mutex<BTreeSet<&'static str>>,
}

impl Server {
    /// Runs a program until it waits for a connection, and freezes it there. `host` gets what it prints.
    ///
    /// # Errors
    /// See [`NotServing`].
    pub fn boot(
        command: Command,
        sandbox: &Sandbox,
        limits: ServerLimits,
        host: &mut dyn Host,
    ) -> Result<Arc<Self>, NotServing> {
        let start = Instant::now();
        let kvm = probe::host().map_err(NotRun::from)?;
        let terms = Terms::new(&command, sandbox);
        let Started {
            mut machine,
            file,
            stack,
            sregs,
        } = exec::start(kvm, command, sandbox, false)?;
        machine.set_serves();
        machine.linux.note_files(true);
        if sandbox.dispatcher {
            machine.note_sites();
        }
        machine.set_slice(host.slice());
        // The making of the machine does not count, as in a program's boot.
        let deadline = Instant::now() + limits.max_boot_time;
        let listener =
            boot_and_warm_up(&mut machine, &limits, deadline, host).map_err(|ended| {
                let is_child = machine.linux.tasks().is_child();
                ended.told(is_child, &stack, sandbox, limits.max_boot_time)
            })?;
        let open = machine.linux.sockets().outside_connections();
        if !open.is_empty() && !limits.drop_connections {
            let names: Vec<String> = open.iter().map(ToString::to_string).collect();
            return Err(NotServing::Connected(names.join(", ")));
        }
        machine.flush_outside(deadline);
        machine.linux.sockets_mut().leave_outside();
        let last_random = machine.random.last_read();
        machine.linux.note_files(false);
        let froze = freeze_machine(machine, &file, deadline).map_err(NotRun::host)?;
        let kept = last_random.map_or(Duration::ZERO, |last| {
            RANDOM_KEPT.saturating_sub(last.elapsed())
        });
        std::thread::sleep(kept);
        let frozen = Frozen {
            file,
            memory: froze.memory,
            unused: froze.unused,
            space: froze.space,
            linux: froze.linux,
            events: froze.events,
            frozen: Instant::now(),
            listener,
            dispatches: sandbox.dispatcher,
            sregs,
            stack,
            terms,
            changed_files: Some(Vec::new()),
            coming: None,
        };
        Ok(Self::of(kvm, frozen, limits, start))
    }

    /// What is frozen, and was begun to be made at `start`.
    pub(super) fn of(
        kvm: &'static KvmHost,
        frozen: Frozen,
        limits: ServerLimits,
        start: Instant,
    ) -> Arc<Self> {
        let unsupported = frozen.linux.unsupported().into_iter().collect();
        Arc::new(Self {
            kvm,
            file: frozen.file,
            memory: frozen.memory,
            unused: frozen.unused,
            space: frozen.space,
            linux: frozen.linux,
            listener: frozen.listener,
            dispatches: frozen.dispatches,
            sregs: frozen.sregs,
            events: frozen.events,
            frozen: frozen.frozen,
            learned: Learned::default(),
            warm_ups: WarmUps::default(),
            limits,
            stack: frozen.stack,
            terms: frozen.terms,
            changed_files: frozen.changed_files,
            coming: frozen.coming,
            boot_time: start.elapsed(),
            unsupported: Mutex::new(unsupported),
        })
    }

    /// Where it listens, if that is an address of IP.
    pub fn address(&self) -> Option<SocketAddr> {
        let of = |listener: &Listener| listener.id == self.listener;
        match self.linux.listeners().into_iter().find(of)?.address {
            Address::Inet(address) => Some(address),
            _ => None,
        }
    }

    /// Bytes of memory that a fork has: what the program had until the freeze, and beyond that twice what a connection may
    /// write to, as it may read pages besides that it never writes to. KVM keeps ten bytes or so for each page of a machine,
    /// used or not; with all that a program may reserve this would be most of an idle fork.
    pub(super) fn fork_len(&self) -> u64 {
        let more = self.limits.max_request_memory.saturating_mul(2);
        let len = self
            .space
            .untouched()
            .saturating_add(page_up(more).unwrap_or(u64::MAX));
        len.min(self.memory.len())
    }

    /// Of one that comes from a snapshot: the files that the program had read and closed before, and that have changed since.
    /// `None` if there were too many to know.
    pub fn changed_files(&self) -> Option<&[PathBuf]> {
        self.changed_files.as_deref()
    }

    /// Of one that comes from a snapshot: waits until all its memory has come. Others are whole. Forks can be had before, and wait
    /// for what they need; where some of it is found not to be what was written, all fail, and no new one can be had.
    ///
    /// # Errors
    /// [`SnapshotError::Late`].
    pub fn wait_until_whole(&self) -> Result<(), SnapshotError> {
        let coming = self.coming.as_ref();
        let whole = coming.map_or(Ok(()), |coming| coming.arrival().wait_until_whole());
        whole.map_err(SnapshotError::Late)
    }

    /// Of one that is whole: whether the kernel has made its memory unwritable for good. It does not while it holds a page of it itself;
    /// then nobody has that mapped for writing, and nobody can map it so.
    pub fn is_sealed(&self) -> bool {
        let seals = rustix::fs::fcntl_get_seals(&*self.file);
        seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE))
    }

    /// How long it took until it waited for a connection, or to load it.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The names of the system calls that the program made so far, before the freeze and in forks, and that are not there:
    /// it got ENOSYS.
    pub fn unsupported(&self) -> Vec<&'static str> {
        self.unsupported.lock().iter().copied().collect()
    }

    /// Notes such names.
    pub(super) fn lacks(&self, names: Vec<&'static str>) {
        self.unsupported.lock().extend(names);
    }

    /// One phrase on how a connection's run ended.
    pub fn describe(&self, cause: &Cause) -> String {
        cause.describe(
            &Symbols::default(),
            &self.stack,
            &format!("{:?} (max_request_time)", self.limits.max_request_time),
            &format!(
                "{} bytes (max_request_memory)",
                self.limits.max_request_memory
            ),
        )
    }
}

/// How a program ended that was to serve.
enum NotYet {
    Ended(Cause),
    ForksInWarmUp,
    WaitsForNothing(&'static str),
}

impl NotYet {
    fn told(
        self,
        is_child: bool,
        stack: &Range<u64>,
        sandbox: &Sandbox,
        time: Duration,
    ) -> NotServing {
        match self {
            Self::Ended(Cause::Stopped) => NotServing::Stopped,
            Self::Ended(Cause::Exit(status)) if is_child => NotServing::ChildExited(status),
            Self::Ended(Cause::Exit(status)) => NotServing::Exited(status),
            Self::Ended(Cause::Killed(signal)) => NotServing::Signalled(signal),
            Self::Ended(cause) => NotServing::NotRun(NotRun::Stopped(cause.describe(
                &Symbols::default(),
                stack,
                &format!("{time:?} (max_boot_time)"),
                &format!("{} bytes (max_memory)", sandbox.max_memory),
            ))),
            Self::ForksInWarmUp => NotServing::ForksInWarmUp,
            Self::WaitsForNothing(why) => NotServing::NoListener(why),
        }
    }
}

/// Runs the program until it waits for a connection, and has it serve those of the warm-up.
fn boot_and_warm_up(
    machine: &mut Machine,
    limits: &ServerLimits,
    mut deadline: Instant,
    host: &mut dyn Host,
) -> Result<ListenerId, NotYet> {
    let mut listener = machine.watched(deadline, |machine| {
        let first = machine.run(deadline, host);
        until_it_serves(machine, first, Instant::now(), deadline, host)
    })?;
    deadline += machine.kept();
    // A worker process is what serves from now on.
    machine.linux.tasks_mut().be_no_child();
    for request in &limits.warm_up {
        let times = Times {
            request: limits.max_request_time,
            idle: warm_up::IDLE,
        };
        let mut client = warm_up::Client::new(request, None);
        connection::serve(machine, listener, &mut client, times, host).map_err(NotYet::Ended)?;
        deadline += machine.kept();
        listener = go_on_until_it_serves(machine, Instant::now(), deadline, host)?;
        deadline += machine.kept();
    }
    if !limits.warm_up_time.is_zero() {
        let least = Instant::now() + limits.warm_up_time;
        listener = go_on_until_it_serves(machine, least, deadline, host)?;
    }
    Ok(listener)
}

/// Runs the program on until it waits for the next connection, and at least until `least`.
fn go_on_until_it_serves(
    machine: &mut Machine,
    least: Instant,
    deadline: Instant,
    host: &mut dyn Host,
) -> Result<ListenerId, NotYet> {
    if machine.linux.tasks().is_child() {
        return Err(NotYet::ForksInWarmUp);
    }
    machine.watched(deadline, |machine| {
        let next = machine.go_on(deadline, host);
        until_it_serves(machine, next, least, deadline, host)
    })
}

/// Runs the program until it waits for a connection, and all its tasks wait or go on for ever; and at least until `least`.
fn until_it_serves(
    machine: &mut Machine,
    mut event: Result<Event, Cause>,
    least: Instant,
    deadline: Instant,
    host: &mut dyn Host,
) -> Result<ListenerId, NotYet> {
    loop {
        let until = match event.map_err(NotYet::Ended)? {
            Event::Idle(until) => until,
            // To a client of its warm-up that it had kept.
            Event::Sent => {
                event = machine.run(deadline, host);
                continue;
            }
            Event::Hypercall(_) | Event::SystemCall => {
                return Err(NotYet::Ended(Cause::Killed(libc::SIGSEGV)));
            }
        };
        let listener = machine.linux.waits_for_connection(&machine.memory);
        let now = Instant::now();
        let is_connected = machine.linux.outside_event().is_some();
        let until = match (listener, until) {
            (Some(listener), _) if now >= least => return Ok(listener),
            (Some(_), until) => until.map_or(least, |until| until.min(least)),
            (None, Some(until)) => until,
            (None, None) if is_connected => deadline,
            (None, None) => return Err(NotYet::WaitsForNothing(machine.linux.why_all_wait())),
        };
        if machine.wait_in_turns(until.min(deadline), host).is_break() {
            return Err(NotYet::Ended(Cause::Stopped));
        }
        event = machine.go_on(deadline, host);
    }
}

/// A machine that was taken apart.
struct Froze {
    memory: Mapping,
    unused: Vec<Range<u64>>,
    space: Space,
    linux: Linux,
    events: kvm_vcpu_events,
}

/// Takes the machine apart and makes its memory unwritable.
fn freeze_machine(
    mut machine: Machine,
    file: &Arc<File>,
    deadline: Instant,
) -> Result<Froze, Box<dyn std::error::Error>> {
    machine.save_vector_state()?;
    machine.give_sites_back();
    machine.memory.clear_free_frames()?;
    if let Some(mut space) = machine.memory.address_space() {
        space.wipe()?;
    }
    let events = machine.no_events()?;
    let frames = match machine.memory.space() {
        Some(space) => space.layout().frames.clone(),
        None => return Err("a program without an address space".into()),
    };
    let (space, mut linux) = machine
        .into_state()
        .ok_or("a program without an address space")?;
    linux.become_fork(generators::code(space.vmas()));
    let (memory, unused) = freeze::freeze(file, frames, deadline)?;
    Ok(Froze {
        memory,
        unused,
        space,
        linux,
        events,
    })
}
