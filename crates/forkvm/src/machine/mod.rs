//! A running machine, before the freeze or after the fork: the vCPU loop that serves system calls and hands
//! everything else to its caller.

mod calls;
pub(crate) mod clock;
mod dirtied;
mod dispatch;
mod exceptions;
mod handshake;
pub mod probe;
mod rewrite;
mod signals;
mod sites;
mod space;
pub mod spent;
mod sync;
mod tasks;
pub(crate) mod waiting;
#[allow(unsafe_code)]
pub mod watchdog;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_VCPUEVENT_VALID_SHADOW, kvm_sregs, kvm_vcpu_events};

use crate::arch::context::VectorFormat;
use crate::arch::regs::user_sregs;
use crate::arch::stubs::{
    PORT_EXCEPTION, PORT_HYPERCALL, PORT_PAGE_FAULT, PORT_SYSCALL, PORT_SYSCALL_32,
};
use crate::failure::{Cause, PAGE_FAULT, what_to_raise};
use crate::kvm::{Death, Exit, Vcpu, Vm};
use crate::linux::{ConnectionId, FIRST_TID, Linux};
use crate::machine::clock::GuestClock;
use crate::machine::probe::KvmHost;
use crate::machine::sites::Sites;
use crate::machine::spent::Spent;
use crate::machine::watchdog::{Watch, WatchdogError};
use crate::memory::faults::FaultError;
use crate::memory::guest::GuestMemory;
use crate::memory::space::Space;
use crate::random::Random;
use crate::regexes::Regexes;
use crate::request::Host;

/// How often a machine that boots looks for what comes from outside.
const LOOK_OUTSIDE: Duration = Duration::from_millis(20);

/// What the vCPU loop leaves to its caller. The guest goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A hypercall; its arguments are in the registers.
    Hypercall(u32),
    /// A system call was served; only told while stepping.
    SystemCall,
    /// All tasks wait for what the caller may bring, or the first of them until this time. Only told of machines that
    /// serve; [`Machine::go_on`] goes on from there.
    Idle(Option<Instant>),
    /// The program has sent something to a client, or has ended a connection, and is not done. Only told of machines that serve.
    Sent,
}

/// What the vCPU's last exit left behind in KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Residue {
    /// Nothing that new registers don't overwrite.
    Clean,
    /// The completion of a port access, to be drained.
    PendingIo,
    /// Nobody knows: the machine is not to be used again.
    Unknown,
}

/// A machine and all its state.
#[derive(Debug)]
pub struct Machine {
    watch: Watch,
    vcpu: Vcpu,
    vm: Vm,
    /// Its memory.
    pub memory: GuestMemory,
    /// The state of its Linux personality.
    pub linux: Linux,
    /// The regular expressions that its program has compiled.
    pub regexes: Regexes,
    /// Its random numbers, for good: a reset leaves them alone.
    pub random: Random,
    /// Which of its program's forks it is, for the program to see. 0 before the freeze.
    pub fork_number: u32,
    /// It is its program's storage, and not one for requests.
    pub is_storage: bool,
    /// What a request leaves is there for the next one, unless it fails.
    pub keeps_state: bool,
    /// Memory that a request was written to, with its length, as far as the program's heap had to give some for it.
    pub request_memory: Vec<(u64, u64)>,
    /// How often it came back from `KVM_RUN`, ever.
    pub exits: u64,
    /// How long it was there, ever.
    guest_time: Duration,
    /// What had been spent when its account was begun.
    before: Spent,
    host: &'static KvmHost,
    /// Our code in the guest answers what calls it may, and what it was told of that does not hold any more.
    dispatches: bool,
    offer_is_stale: bool,
    /// What the last call has opened, if it has.
    opened: Option<u64>,
    /// The calls of a program that is to be frozen, by where they are made.
    sites: Option<Sites>,
    residue: Residue,
    /// Something was begun on it that has not come to its end, and never will if there was a panic: it is not to be used
    /// again.
    poisoned: bool,
    /// A debugger steps through the program.
    stepping: bool,
    /// The task whose vector state the processor holds.
    vector_of: i32,
    /// What of that state a program may have, once that was asked.
    vector_format: Option<VectorFormat>,
    /// Its program serves connections: it is the caller who waits while all tasks do.
    serves: bool,
    /// The connection whose end by the program is told at once.
    serving: Option<ConnectionId>,
    /// All tasks wait, until this time if it is one. Told at once.
    idle: Option<Option<Instant>>,
    /// When that was told, of a machine that has not gone on since.
    idle_since: Option<Instant>,
    /// The processor may hold selectors that are none of its program's.
    foreign_selectors: bool,
    /// The page that tells the time, of a machine with an address space.
    clock: Option<GuestClock>,
    /// How often in a row a task had to be interrupted that runs while another one waits for a connection.
    spins: u32,
    /// The signal of a timer for which the watchdog is armed.
    armed_for: Option<Instant>,
    /// When the current task's turn is over, if others can run: whatever calls it makes meanwhile.
    turn_ends: Option<Instant>,
    /// How long it has the processor before others may have it. Only while it boots.
    slice: Option<Duration>,
    /// How long others have kept it from running since [`Machine::watched`] began: its deadline is so much later.
    kept: Duration,
    /// When what it runs for has to be over, without what it is kept.
    deadline: Instant,
}

/// A machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error("KVM: {0}{hint}", hint = what_to_raise(Some(.0.errno())))]
    Kvm(#[from] kvm_ioctls::Error),
    /// No watchdog.
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    /// The host's getrandom(2) gave no key.
    #[error("random numbers of the host: {0}")]
    Random(#[from] rustix::io::Errno),
}

impl Machine {
    /// A machine over `memory`. With `ring_entries` its writes are recorded. `dispatches`: its memory has the dispatcher, where calls
    /// are to arrive first.
    pub fn new(
        host: &'static KvmHost,
        memory: GuestMemory,
        linux: Linux,
        ring_entries: Option<u32>,
        dispatches: bool,
    ) -> Result<Self, MachineError> {
        let vm = Vm::new(
            &host.kvm,
            memory.mapping().clone(),
            memory.logged_from(),
            ring_entries,
        )?;
        let mut vcpu = vm.vcpu(&host.cpuid)?;
        host.prepare(&mut vcpu, dispatches)?;
        if memory.space().is_some() {
            vcpu.sync_sregs();
        }
        let watch = Watch::new(vcpu.run_page()?)?;
        let tells_time = memory.space().is_some() && host.report.counter_is_a_clock;
        let foreign_selectors = memory.space().is_some();
        let clock = tells_time.then(|| {
            vcpu.share_counter();
            GuestClock::new(&host.calibration, linux.clocks_ahead())
        });
        Ok(Self {
            watch,
            vcpu,
            vm,
            memory,
            linux,
            regexes: Regexes::default(),
            random: Random::new()?,
            fork_number: 0,
            is_storage: false,
            keeps_state: false,
            request_memory: Vec::new(),
            exits: 0,
            guest_time: Duration::ZERO,
            before: Spent::default(),
            host,
            dispatches,
            offer_is_stale: true,
            opened: None,
            sites: None,
            residue: Residue::Clean,
            poisoned: false,
            stepping: false,
            vector_of: FIRST_TID,
            vector_format: None,
            serves: false,
            serving: None,
            idle: None,
            idle_since: None,
            spins: 0,
            foreign_selectors,
            clock,
            armed_for: None,
            turn_ends: None,
            slice: None,
            kept: Duration::ZERO,
            deadline: Instant::now(),
        })
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// Does `work`, in which the guest runs. [`Machine::run`] ends with a timeout at `deadline`, pages dirtied count for
    /// the limit, and afterwards they are known. If `work` panics they are not, and the machine stays poisoned.
    pub fn watched<T>(&mut self, deadline: Instant, work: impl FnOnce(&mut Self) -> T) -> T {
        self.memory.start_request();
        self.watched_on(deadline, work)
    }

    /// The same for a part of what it does for a request.
    pub fn watched_on<T>(&mut self, deadline: Instant, work: impl FnOnce(&mut Self) -> T) -> T {
        /// Takes the watchdog's eyes off, also in a panic: this thread has other things to do.
        struct Watched<'a>(&'a mut Machine);
        impl Drop for Watched<'_> {
            fn drop(&mut self) {
                self.0.watch.disarm();
            }
        }
        if self.linux.changes_host_files() {
            watchdog::hold_back_file_size_signal();
        }
        self.poisoned = true;
        self.kept = Duration::ZERO;
        self.deadline = deadline;
        self.watch.arm(self.turn_end(deadline));
        let watched = Watched(self);
        let result = work(&mut *watched.0);
        drop(watched);
        self.harvest();
        self.poisoned = false;
        result
    }

    /// Begins its account anew.
    pub fn begin_account(&mut self) {
        self.before = self.spent_ever();
        // What a reset has put back is put back again when it is written again, and KVM tells of it once.
        if !self.keeps_state {
            self.before.pages = 0;
        }
    }

    /// What it has cost since then, or since it was made. To be asked before a reset, for the pages.
    pub fn spent(&self) -> Spent {
        let (now, before) = (self.spent_ever(), self.before);
        Spent {
            exits: now.exits - before.exits,
            guest: now.guest.saturating_sub(before.guest),
            pages: now.pages.saturating_sub(before.pages),
        }
    }

    fn spent_ever(&self) -> Spent {
        Spent {
            exits: self.exits,
            guest: self.guest_time,
            pages: self.memory.dirty_len() as u64,
        }
    }

    /// Says that something begins, or has ended, that leaves the machine unusable if it does not come to its end.
    pub fn set_poisoned(&mut self, poisoned: bool) {
        self.poisoned = poisoned;
    }

    /// Sets another deadline, for the same request.
    pub fn rearm(&mut self, deadline: Instant) {
        self.watch.disarm();
        self.deadline = deadline;
        self.watch.arm(deadline);
    }

    /// When what it runs for has to be over.
    pub fn deadline(&self) -> Instant {
        self.deadline + self.kept
    }

    /// Waits for something outside, by `next`, which is told until when: until the deadline, and `None` if that came first. While the
    /// program boots others have the processor meanwhile.
    pub fn await_host<T, E>(
        &mut self,
        host: &mut dyn Host,
        mut next: impl FnMut(Instant) -> Result<Option<T>, E>,
    ) -> Result<Result<Option<T>, E>, Cause> {
        loop {
            let now = Instant::now();
            let end = self.deadline();
            let until = match self.slice {
                Some(slice) => end.min(now + slice),
                None => end,
            };
            match next(until) {
                Ok(None) if Instant::now() < end => {}
                come => return Ok(come),
            }
            if self.give_way(LOOK_OUTSIDE, host).is_break() {
                return Err(Cause::Stopped);
            }
        }
    }

    /// Shares the processor with others from now on, by slices of this length ([`Host::give_way`]). Gives what it was
    /// before.
    pub fn set_slice(&mut self, slice: Option<Duration>) -> Option<Duration> {
        std::mem::replace(&mut self.slice, slice)
    }

    /// How much later than told the deadline of [`Machine::watched`] was, since others had the processor meanwhile.
    pub fn kept(&self) -> Duration {
        self.kept
    }

    /// Whether [`Machine::run`] is to end with each system call it has served.
    pub fn set_stepping(&mut self, stepping: bool) {
        self.stepping = stepping;
    }

    /// Runs the guest, serving its system calls, until something else happens. `deadline` is that of
    /// [`Machine::watched`]. At [`Cause::Exception`] the vCPU is in ring 0, in the exception's stub: whoever has an
    /// answer to the exception can go on from there.
    pub fn run(&mut self, deadline: Instant, host: &mut dyn Host) -> Result<Event, Cause> {
        let result = self.run_on(deadline, host);
        // What the guest had answered before it failed has been done. One that was stopped may go on, in the middle of an answer.
        if result.as_ref().is_err_and(|cause| *cause != Cause::Stopped) {
            let _ = self.carry_out(host);
        }
        result
    }

    fn run_on(&mut self, deadline: Instant, host: &mut dyn Host) -> Result<Event, Cause> {
        loop {
            // What the host writes is not in the ring, which a program that only makes calls never fills.
            if self.over_memory_limit() {
                return Err(Cause::MemoryLimit);
            }
            // A call may have found so, which the program was told to be something else.
            if self.memory.space().is_some_and(Space::is_lost) {
                return Err(Cause::Lost);
            }
            self.clear_selectors()?;
            self.apply_removals()?;
            self.keep_clock()?;
            self.offer(host)?;
            let entered = Instant::now();
            let exit = self.vcpu.run();
            self.guest_time += entered.elapsed();
            self.exits += 1;
            self.residue = match exit {
                Exit::Out(_) | Exit::Interrupted | Exit::RingFull => Residue::Clean,
                Exit::OtherIo { .. } => Residue::PendingIo,
                Exit::Dead(_) => Residue::Unknown,
            };
            let ended = match exit {
                Exit::Out(PORT_HYPERCALL) => match self.carry_out(host) {
                    Some(cause) => Some(cause),
                    None => return Ok(Event::Hypercall(self.vcpu.regs().rax as u32)),
                },
                Exit::Out(PORT_SYSCALL) if self.may_call_here() => {
                    let ended = self
                        .carry_out(host)
                        .or_else(|| self.system_call(deadline, host));
                    if ended.is_none() && self.stepping {
                        return Ok(Event::SystemCall);
                    }
                    ended
                }
                Exit::Out(PORT_PAGE_FAULT) if self.memory.space().is_some() => {
                    match self.page_fault() {
                        // A call may be about to be answered, by what was offered.
                        Ok(()) => continue,
                        Err(FaultError::NoMemory) => Some(Cause::MemoryLimit),
                        Err(FaultError::Lost(_)) => Some(Cause::Lost),
                        Err(error) => self.fault((PAGE_FAULT, Some(&error)), deadline, host),
                    }
                }
                Exit::Out(port @ PORT_EXCEPTION..=0x9f) if self.memory.space().is_some() => {
                    self.fault(((port - PORT_EXCEPTION) as u8, None), deadline, host)
                }
                Exit::Out(port @ PORT_EXCEPTION..=0x9f) => {
                    Some(self.exception((port - PORT_EXCEPTION) as u8, None))
                }
                Exit::Out(PORT_SYSCALL_32) => {
                    Some(Cause::Machine("a system call from 32-bit code".into()))
                }
                Exit::Out(port) | Exit::OtherIo { port } => Some(Cause::BadPort(port)),
                Exit::Interrupted if self.memory.space().is_some() => {
                    let answers = self.is_answering();
                    match self.interrupted(deadline, host) {
                        None if answers => continue,
                        ended => ended,
                    }
                }
                Exit::Interrupted => self.turn_over(deadline, host),
                Exit::RingFull => match self.ring_full() {
                    None => continue,
                    ended => ended,
                },
                Exit::Dead(death) => Some(Cause::Machine(match death {
                    Death::TripleFault => death.to_string(),
                    _ => format!("{death}, at {:#x}", self.vcpu.regs().rip),
                })),
            };
            if let Some(cause) = ended {
                return Err(cause);
            }
            if let Some(idle) = self.take_idle() {
                return Ok(idle);
            }
            if self.serves && self.linux.sockets_mut().take_news() {
                return Ok(Event::Sent);
            }
        }
    }

    fn keep_clock(&mut self) -> Result<(), Cause> {
        let kept = match &mut self.clock {
            Some(clock) => clock.keep(self.memory.mapping()),
            None => Ok(()),
        };
        kept.map_err(|error| Cause::Machine(error.to_string()))
    }

    /// Has the program's clocks be right, whenever they were last. It has not read them since the last reset.
    pub fn anchor_clock(&mut self) -> Result<(), Cause> {
        let anchored = match &mut self.clock {
            Some(clock) => clock.anchor(self.memory.mapping(), self.linux.clocks_ahead()),
            None => Ok(()),
        };
        anchored.map_err(|error| Cause::Machine(error.to_string()))
    }

    /// The watchdog, or some other signal, has interrupted the program. Before the deadline that is its slice's end.
    fn turn_over(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        if self.is_over(deadline) {
            return Some(Cause::Timeout);
        }
        if self.slice.is_none() {
            return (!self.watch.go_on()).then_some(Cause::Timeout);
        }
        self.watch.disarm();
        if self.give_way(Duration::ZERO, host).is_break() {
            return Some(Cause::Stopped);
        }
        self.watch.arm(self.turn_end(deadline));
        None
    }

    /// Whether this deadline is over, for which the time does not count that others had the processor.
    pub(super) fn is_over(&self, deadline: Instant) -> bool {
        Instant::now() >= deadline + self.kept
    }

    /// When it is to be interrupted, with this deadline for all of what it does.
    pub(super) fn turn_end(&self, deadline: Instant) -> Instant {
        let deadline = deadline + self.kept;
        let slice_end = self.slice.map(|slice| Instant::now() + slice);
        slice_end.map_or(deadline, |end| end.min(deadline))
    }

    /// Sleeps, but not past the deadline. `Some` if that came first, or the host has the run end.
    fn sleep(&mut self, time: Duration, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        let deadline = deadline + self.kept;
        let left = deadline.saturating_duration_since(Instant::now());
        match self.give_way(time.min(left), host) {
            ControlFlow::Break(()) => Some(Cause::Stopped),
            ControlFlow::Continue(()) => (time > left).then_some(Cause::Timeout),
        }
    }

    pub(super) fn give_way(&mut self, time: Duration, host: &mut dyn Host) -> ControlFlow<()> {
        let start = Instant::now();
        let goes_on = host.give_way(time);
        if self.slice.is_some() {
            self.kept += start.elapsed().saturating_sub(time);
        }
        goes_on
    }

    /// Takes away what a request was written to: it is over.
    pub fn free_request_memory(&mut self) {
        for (address, len) in self.request_memory.drain(..) {
            self.linux.unmap_for_engine(address, len, &mut self.memory);
        }
    }

    /// What tells a vCPU that no exception, interrupt or shadow is pending.
    pub fn no_events(&self) -> Result<kvm_vcpu_events, kvm_ioctls::Error> {
        let mut events = self.vcpu.events()?;
        events.exception = Default::default();
        events.interrupt = Default::default();
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        Ok(events)
    }

    /// Ends a machine, and gives what is not in its memory. `None` without an address space.
    pub fn into_state(self) -> Option<(Space, Linux)> {
        let Self { memory, linux, .. } = self;
        Some((memory.into_space()?, linux))
    }

    /// Replaces the address space by a master's, whose tables the memory holds by now.
    pub fn replace_space(&mut self, space: Space) -> Result<(), kvm_ioctls::Error> {
        if let Some(own) = self.memory.space_mut() {
            *own = space;
        }
        self.vm.forget_translations()
    }

    /// The registers a program's ring-3 code has now, with the bases it gave itself, ready to be set in another
    /// machine or at another place.
    pub fn user_sregs(&self) -> Result<kvm_sregs, kvm_ioctls::Error> {
        let now = self.vcpu.sregs()?;
        Ok(user_sregs(&now, self.host.choice, now.fs.base, now.gs.base))
    }
}
