//! Several tasks on one vCPU: what a call asks for of others, switches, and what happens while all of them wait.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_vcpu_events};

use crate::arch::context::{Context, initial_vector};
use crate::arch::layout::MONITOR_BASE;
use crate::arch::regs::RFLAGS;
use crate::failure::Cause;
use crate::image::exec::Command;
use crate::linux::{Call, ConnectionId, NewThread, Outcome, Retried};
use crate::machine::waiting::wait_until;
use crate::machine::{Event, LOOK_OUTSIDE, Machine};
use crate::request::Host;

/// The id of no task.
const NOBODY: i32 = 0;
/// A task that was interrupted so often while another one waited for a connection goes on for ever.
const SPINS: u32 = 5;
/// How long a task runs while another one could.
pub(super) const SLICE: Duration = Duration::from_millis(10);
/// What there is to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// This task.
    Task(usize),
    /// All wait, but some call has done a part of its work, which may help another.
    Moved,
    /// Nothing.
    Nothing,
}

impl Machine {
    /// Does what a call of the current task asks for. `Some` if it ends the run.
    pub(super) fn task_outcome(
        &mut self,
        call: Call,
        outcome: Outcome,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Option<Cause> {
        match outcome {
            Outcome::Return(value) if !self.linux.signal_is_due() && self.has_closed() => {
                self.save_after_call(value);
                self.idle = Some(Some(Instant::now()));
                None
            }
            Outcome::Return(value) => self.return_from_call(value),
            Outcome::Block(wait) => {
                self.save_after_call(0);
                self.linux.tasks_mut().block(call, wait, Instant::now());
                self.schedule(deadline, host)
            }
            Outcome::Yield => {
                self.save_after_call(0);
                self.schedule(deadline, host)
            }
            Outcome::Fork(child_tid) => self.fork(child_tid, host),
            Outcome::Clone(thread) => self.clone_task(thread, deadline),
            Outcome::ExitThread(status) => {
                if self.linux.tasks().len() == 1 {
                    return Some(Cause::Exit(status));
                }
                self.linux
                    .end_task(&mut self.memory, host, &mut self.random);
                self.schedule(deadline, host)
            }
            Outcome::Exec(command) => self.exec(*command),
            Outcome::ReturnFromHandler => self.return_from_handler(),
            Outcome::SetFsBase(base) => self.set_bases(Some(base), None),
            Outcome::SetGsBase(base) => self.set_bases(None, Some(base)),
            Outcome::GetFsBase(address) => self.get_base(address, |sregs| sregs.fs.base),
            Outcome::GetGsBase(address) => self.get_base(address, |sregs| sregs.gs.base),
            Outcome::Exit(status) => Some(Cause::Exit(status)),
            Outcome::Killed(signal) => Some(Cause::Killed(signal)),
        }
    }

    /// The registers of the current task, which is stopped in ring 3.
    fn context(&mut self, regs: kvm_regs) -> Context {
        let sregs = self.vcpu.synced_sregs();
        Context {
            regs,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            vector: None,
        }
    }

    /// Keeps the current task's registers as they are after its call, with this result. The vector state stays in the
    /// processor until another task runs.
    fn save_after_call(&mut self, result: i64) {
        let regs = kvm_regs {
            rax: result as u64,
            ..self.after_call()
        };
        let context = self.context(regs);
        self.linux.tasks_mut().current().context = context;
    }

    fn clone_task(&mut self, thread: NewThread, deadline: Instant) -> Option<Cause> {
        let after = self.after_call();
        let mut context = self.context(kvm_regs {
            rax: 0,
            rsp: thread.stack.unwrap_or(after.rsp),
            ..after
        });
        context.fs_base = thread.tls.unwrap_or(context.fs_base);
        context.vector = match self.vcpu.xsave() {
            Ok(vector) => Some(Arc::from(vector)),
            Err(error) => return Some(Cause::Machine(format!("vector state: {error}"))),
        };
        let result = self.linux.add_task(&mut self.memory, context, thread);
        // From now on it shares the processor.
        self.begin_turn();
        self.watch.disarm();
        self.watch.arm(self.slice_end(deadline));
        self.return_from_call(result)
    }

    /// fork(2): a server goes on as its own child, alone, and the parent is over. That is what servers fork for: a child
    /// that serves, or that serves one connection.
    fn fork(&mut self, child_tid: Option<u64>, host: &mut dyn Host) -> Option<Cause> {
        if !self.serves {
            let errno = self
                .linux
                .refuse_fork(&mut self.memory, host, &mut self.random);
            return self.return_from_call(-i64::from(errno.raw_os_error()));
        }
        if let Some(Err(error)) = self.memory.address_space().map(|mut space| space.wipe()) {
            return Some(Cause::Machine(error.to_string()));
        }
        let caller = self.linux.tasks().tid();
        self.linux.become_child(&mut self.memory, child_tid);
        if self.vector_of == caller {
            self.vector_of = self.linux.tasks().pid();
        }
        self.return_from_call(0)
    }

    /// Replaces the program by another one.
    fn exec(&mut self, command: Command) -> Option<Cause> {
        let features = self.host.features();
        let loaded = match self
            .linux
            .exec(&mut self.memory, command, &mut self.random, features)
        {
            Ok(loaded) => loaded,
            Err(error) if error.too_late => return Some(Cause::Killed(libc::SIGKILL)),
            Err(error) => return self.return_from_call(-i64::from(error.errno.raw_os_error())),
        };
        if let Err(error) = self.vcpu.set_xsave(&initial_vector()) {
            return Some(Cause::Machine(format!("vector state: {error}")));
        }
        self.vector_of = self.linux.tasks().pid();
        let mut sregs = self.vcpu.synced_sregs();
        (sregs.fs.base, sregs.gs.base) = (0, 0);
        self.vcpu.set_sregs_at_next_run(sregs);
        self.resume_user(kvm_regs {
            rip: loaded.entry,
            rsp: loaded.rsp,
            rflags: RFLAGS,
            ..Default::default()
        });
        None
    }

    /// Has the next task run that can, waiting for one if need be.
    fn schedule(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        loop {
            let found = match self.next_runnable(host) {
                Ok(Found::Task(place)) => return self.switch_to(place),
                Ok(found) => found,
                Err(cause) => return Some(cause),
            };
            let now = Instant::now();
            if self.is_over(deadline) {
                return Some(Cause::Timeout);
            }
            if found == Found::Moved || self.linux.pump_outside() {
                continue;
            }
            let until = self.next_wake(now);
            if self.serves {
                self.idle = Some(until);
                return None;
            }
            if until.is_none() && self.linux.outside_event().is_none() {
                let never = self.linux.why_all_wait();
                return Some(Cause::Deadlock(never));
            }
            self.wait_outside(until.map_or(deadline, |until| until.min(deadline)));
            self.linux.add_idle(now.elapsed());
        }
    }

    /// When a task goes on that waits, if nothing happens.
    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let deadlines = [
            self.linux.tasks().next_deadline(),
            self.linux.next_alarm(),
            self.linux.next_timer(now),
            self.linux.outside_until(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Waits until something comes from outside, at most until this time.
    pub fn wait_outside(&self, until: Instant) {
        wait_until(self.linux.outside_event(), until);
    }

    /// The same while the machine boots, and so may have to leave the processor to others. What comes from outside may be found a
    /// little late then. `Break` if its host has it end.
    pub fn wait_in_turns(&mut self, until: Instant, host: &mut dyn Host) -> ControlFlow<()> {
        if self.slice.is_none() {
            self.wait_outside(until);
            return ControlFlow::Continue(());
        }
        let left = until.saturating_duration_since(Instant::now());
        let time = match self.linux.outside_event() {
            Some(_) => left.min(LOOK_OUTSIDE),
            None => left,
        };
        self.give_way(time, host)
    }

    /// Waits until the host has taken what the program has sent, as far as it takes it before the deadline.
    pub fn flush_outside(&mut self, deadline: Instant) {
        while self.linux.sockets().has_unsent() && Instant::now() < deadline {
            if !self.linux.pump_outside() {
                self.wait_outside(deadline);
            }
        }
    }

    /// Says that the program serves connections.
    pub fn set_serves(&mut self) {
        self.serves = true;
    }

    /// Says which connection is being served: the machine is [`Event::Idle`] as soon as the program has closed it.
    pub fn set_serving(&mut self, connection: ConnectionId) {
        self.serving = Some(connection);
        self.begin_sites();
        self.linux.begin_connection();
    }

    /// Whether the program has just closed the connection that is served.
    fn has_closed(&mut self) -> bool {
        let sockets = self.linux.sockets();
        self.serving
            .take_if(|connection| sockets.is_closed(*connection))
            .is_some()
    }

    pub(super) fn take_idle(&mut self) -> Option<Event> {
        let until = self.idle.take()?;
        self.idle_since = Some(Instant::now());
        Some(Event::Idle(until))
    }

    /// Runs the machine on after [`Event::Idle`]: whatever task can by now.
    pub fn go_on(&mut self, deadline: Instant, host: &mut dyn Host) -> Result<Event, Cause> {
        if let Some(since) = self.idle_since.take() {
            self.linux.add_idle(since.elapsed());
        }
        self.offer_is_stale = true;
        self.begin_turn();
        self.rearm(self.slice_end(deadline));
        let ended = self.schedule(deadline, host);
        if let Some(cause) = ended {
            return Err(cause);
        }
        if let Some(idle) = self.take_idle() {
            return Ok(idle);
        }
        match self.before_going_on(deadline) {
            Some(cause) => Err(cause),
            None => self.run(deadline, host),
        }
    }

    /// Runs the machine on after [`Event::Sent`], or where its host has stopped the current task, which goes on.
    pub fn go_on_amid(&mut self, deadline: Instant, host: &mut dyn Host) -> Result<Event, Cause> {
        // More may have come. A call that is being answered has what it needs.
        self.offer_is_stale |= !self.is_answering();
        self.begin_turn();
        self.rearm(self.slice_end(deadline));
        self.run(deadline, host)
    }

    /// Has the next run begin with the contexts that the tasks have, whatever the processor holds.
    pub fn forget_task(&mut self) {
        self.vector_of = NOBODY;
        self.foreign_selectors = true;
        (self.armed_for, self.turn_ends) = (None, None);
        (self.idle, self.idle_since, self.spins) = (None, None, 0);
        self.serving = None;
    }

    /// Keeps what the processor holds of a task with that task.
    pub fn save_vector_state(&mut self) -> Result<(), kvm_ioctls::Error> {
        let vector = self.vcpu.xsave()?;
        let of = self.vector_of;
        if let Some(task) = self
            .linux
            .tasks_mut()
            .iter_mut()
            .find(|task| task.tid == of)
        {
            task.context.vector = Some(Arc::from(vector));
        }
        Ok(())
    }

    /// The task after the current one, in turn, that can run: those that wait make their calls again.
    fn next_runnable(&mut self, host: &mut dyn Host) -> Result<Found, Cause> {
        let now = Instant::now();
        self.linux.pump_outside();
        self.linux.tick(now);
        let tasks = self.linux.tasks();
        let (count, current) = (tasks.len(), tasks.current_place());
        let mut found = Found::Nothing;
        for step in 1..=count {
            let place = (current + step) % count;
            match self
                .linux
                .retry(place, now, &mut self.memory, host, &mut self.random)
            {
                Retried::Runnable => return Ok(Found::Task(place)),
                Retried::Waits => {}
                Retried::Moved => found = Found::Moved,
                Retried::Killed(signal) => return Err(Cause::Killed(signal)),
            }
        }
        Ok(found)
    }

    fn switch_to(&mut self, place: usize) -> Option<Cause> {
        let failed = |error| Some(Cause::Machine(format!("vector state: {error}")));
        let tasks = self.linux.tasks_mut();
        tasks.switch_to(place);
        let task = tasks.current();
        let (tid, context) = (task.tid, task.context.clone());
        if self.vector_of != tid {
            let old = self.vector_of;
            if let Some(task) = tasks.iter_mut().find(|task| task.tid == old) {
                match self.vcpu.xsave() {
                    Ok(vector) => task.context.vector = Some(Arc::from(vector)),
                    Err(error) => return failed(error),
                }
            }
            if let Some(vector) = &context.vector
                && let Err(error) = self.vcpu.set_xsave(vector)
            {
                return failed(error);
            }
            self.vector_of = tid;
        }
        let mut sregs = self.vcpu.synced_sregs();
        (sregs.fs.base, sregs.gs.base) = (context.fs_base, context.gs_base);
        self.vcpu.set_sregs_at_next_run(sregs);
        self.resume_user(context.regs);
        self.begin_turn();
        None
    }

    /// The watchdog, or some other signal, has interrupted the current task. Before the deadline it is another one's turn, and
    /// while the machine boots perhaps another machine's.
    pub(super) fn interrupted(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        let ended = match self.is_answering() {
            true => None,
            false => self.carry_out(host),
        };
        if ended.is_some() {
            return ended;
        }
        if self.is_over(deadline) {
            return Some(Cause::Timeout);
        }
        self.watch.disarm();
        if self.slice.is_some() && self.give_way(Duration::ZERO, host).is_break() {
            return Some(Cause::Stopped);
        }
        if self.is_in_program() {
            if let Some(cause) = self.next_turn(deadline, host) {
                return Some(cause);
            }
            if self.serves && self.linux.waits_for_connection(&self.memory).is_some() {
                self.spins += 1;
                if self.spins.is_multiple_of(SPINS) {
                    self.save_context();
                    self.idle = Some(Some(Instant::now()));
                }
            }
        }
        self.begin_turn();
        self.rearm(self.slice_end(deadline));
        None
    }

    fn begin_turn(&mut self) {
        self.turn_ends = Instant::now().checked_add(SLICE);
    }

    /// When the current task's turn is over at the latest, and its host is to be asked whether it goes on.
    pub(super) fn slice_end(&self, deadline: Instant) -> Instant {
        let deadline = self.turn_end(deadline);
        let until = self.armed_for.map_or(deadline, |alarm| alarm.min(deadline));
        if self.linux.tasks().len() > 1 {
            until.min(self.turn_ends.unwrap_or_else(|| Instant::now() + SLICE))
        } else {
            until
        }
    }

    /// Whether the program's own code runs, and not the engine's, which goes on a little. Nor does it where the current
    /// task has an exception coming that KVM has yet to deliver: another task would get it.
    fn is_in_program(&mut self) -> bool {
        let comes = |events: kvm_vcpu_events| {
            events.exception.injected != 0 || events.exception.pending != 0
        };
        if self.vcpu.events().map_or(true, comes) {
            return false;
        }
        let ring = self.vcpu.synced_sregs().cs.selector & 3;
        let end = self
            .memory
            .space()
            .map_or(0, |space| space.layout().monitor().end);
        ring == 3 && !(MONITOR_BASE..end).contains(&self.vcpu.regs().rip)
    }

    /// Keeps the current task's registers as they are. Its vector state stays in the processor.
    fn save_context(&mut self) {
        let regs = self.vcpu.regs();
        let context = self.context(regs);
        self.linux.tasks_mut().current().context = context;
    }

    fn next_turn(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        self.offer_is_stale = true;
        let current = self.linux.tasks().current_place();
        self.save_context();
        let ended = match self.next_runnable(host) {
            Ok(Found::Task(place)) if place != current => self.switch_to(place),
            Ok(_) => None,
            Err(cause) => Some(cause),
        };
        ended.or_else(|| self.before_going_on(deadline))
    }
}
