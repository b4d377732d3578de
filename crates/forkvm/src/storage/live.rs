//! The machine that is a program's storage: a fork of a frozen one that is never reset.

use std::sync::Arc;
use std::time::Instant;

use crate::arch::stubs::HANDLER_RETURNED;
use crate::call::handlers::Handlers;
use crate::call::hypercall::{self, STORAGE_NORETURN, STORAGE_RETURN};
use crate::call::storage::Given;
use crate::call::stored::{Access, NewTask, NotStored, StorageCall};
use crate::failure::Cause;
use crate::fork::ForkError;
use crate::machine::{Event, Machine};
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::request::Host;
use crate::storage::tasks::Tasks;

/// What a function of the storage's has returned: the result's length, or why there is none.
type Returned = Result<u64, NotStored>;

/// The machine.
#[derive(Debug)]
pub struct Live {
    machine: Machine,
    master: Arc<Master>,
    tasks: Arc<Tasks>,
    unfinished: Option<Unfinished>,
}

/// A function that was to be done by its caller's deadline, and may go on.
#[derive(Debug)]
struct Unfinished {
    given: Given,
    /// Until then.
    end: Instant,
    loops: usize,
}

impl Live {
    /// Forks the frozen machine. Nothing of what it writes is recorded: it is not put back.
    pub fn new(master: Arc<Master>, tasks: Arc<Tasks>) -> Result<Self, ForkError> {
        let mapping = Mapping::fork(&master.file, master.memory.len(), &master.unused)?;
        let mapping = mapping.with_shared(master.shared.clone());
        let memory = GuestMemory::booting(mapping);
        let mut machine = Machine::new(master.host, memory, master.linux.clone(), None, false)?;
        machine.regexes = master.regexes.clone();
        machine.is_storage = true;
        machine.linux.may_store();
        machine.vcpu().set_sregs(&master.wait_point.sregs)?;
        Ok(Self {
            machine,
            master,
            tasks,
            unfinished: None,
        })
    }

    /// How often it came back from `KVM_RUN`.
    pub fn exits(&self) -> u64 {
        self.machine.exits
    }

    /// Calls a function for a caller, who waits until `deadline`; the function may go on until `end`, by [`Live::finish`]. After an
    /// error the machine is not to be used again, unless it [is unfinished](Live::is_unfinished).
    pub fn call(
        &mut self,
        call: &StorageCall,
        caller: &mut GuestMemory,
        (deadline, end): (Instant, Instant),
        host: &mut dyn Host,
    ) -> Result<Returned, Cause> {
        let given = match call.give(caller, &mut self.machine, &self.master.wait_point) {
            Ok(given) => given,
            Err(refused) => return Ok(Err(refused)),
        };
        let function = (call.function, call.arguments(&given));
        let take = |memory: &_, at, len| call.take(caller, memory, at, len);
        let result = self.run(function, call.loops, deadline.min(end), host, take);
        match &result {
            Err(Cause::Timeout) if Instant::now() < end => {
                self.unfinished = Some(Unfinished {
                    given,
                    end,
                    loops: call.loops,
                });
            }
            _ => given.free(&mut self.machine),
        }
        result
    }

    /// Whether the function may go on that its caller does not wait for any more.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Runs that to its end.
    pub fn finish(&mut self, host: &mut dyn Host) -> Result<(), Cause> {
        let Some(Unfinished { given, end, loops }) = self.unfinished.take() else {
            return Ok(());
        };
        let storage = &self.tasks;
        let done = self.machine.watched(end, |machine| {
            let access = Access { storage, loops };
            serve(machine, access, end, host, |_, _, len| Ok(len))
        });
        self.settle(done).map(|_| given.free(&mut self.machine))
    }

    /// Runs a task. The same holds after an error.
    pub fn run_task(
        &mut self,
        task: &NewTask,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Returned, Cause> {
        let given = match task.give(&mut self.machine, &self.master.wait_point) {
            Ok(given) => given,
            Err(refused) => return Ok(Err(refused)),
        };
        let function = (task.function, task.arguments(&given));
        // Nobody waits for a result.
        let returned = self.run(function, task.loops, deadline, host, |_, _, _| Ok(0))?;
        given.free(&mut self.machine);
        Ok(returned)
    }

    /// Runs `on_storage_save`, if there is one.
    pub fn save(&mut self, deadline: Instant, host: &mut dyn Host) -> Result<(), Cause> {
        let handlers = &self.master.wait_point.handlers;
        let Some(handler) = handlers.get(Handlers::ON_STORAGE_SAVE) else {
            return Ok(());
        };
        self.run((handler, [0; 6]), 0, deadline, host, |_, _, _| Ok(0))
            .map(drop)
    }

    /// Runs `on_live_update`, whose state may have `most` bytes. One that can't be taken is refused, and nothing happens to the machine.
    pub fn give_state(
        &mut self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Result<HandedOver, NotStored>, Cause> {
        let given = self.at_wait_point(deadline, host, |machine, master, access, host| {
            let wait_point = &master.wait_point;
            match wait_point.give_state(machine, most, Some(access), deadline, host) {
                Err(Cause::BadState(what)) => Ok(Err(NotStored::State(what))),
                given => given.map(Ok),
            }
        })?;
        let kept = self.machine.kept();
        Ok(given.map(|state| HandedOver { state, kept }))
    }

    /// Runs `on_live_restore` with the state of the storage before.
    pub fn take_state(
        &mut self,
        state: &[u8],
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<(), Cause> {
        self.at_wait_point(deadline, host, |machine, master, access, host| {
            let wait_point = &master.wait_point;
            wait_point.take_state(machine, state, Some(access), deadline, host)
        })
    }

    fn run(
        &mut self,
        (function, arguments): (u64, [u64; 6]),
        loops: usize,
        deadline: Instant,
        host: &mut dyn Host,
        take: impl FnMut(&GuestMemory, u64, u64) -> Returned,
    ) -> Result<Returned, Cause> {
        self.at_wait_point(deadline, host, |machine, master, access, host| {
            let wait_point = &master.wait_point;
            wait_point.enter_function(machine, function, arguments)?;
            serve(machine, Access { loops, ..access }, deadline, host, take)
        })
    }

    /// Does something with the machine as it was when its program waited, but for its memory and its personality's state.
    fn at_wait_point<T>(
        &mut self,
        deadline: Instant,
        host: &mut dyn Host,
        work: impl FnOnce(&mut Machine, &Master, Access<'_>, &mut dyn Host) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let (machine, master) = (&mut self.machine, &*self.master);
        machine
            .vcpu()
            .set_sregs_at_next_run(master.wait_point.sregs);
        let events = master.wait_point.events;
        machine.vcpu().clear_events_at_next_run(events);
        machine.set_slice(host.slice());
        let access = Access {
            storage: &self.tasks,
            loops: 0,
        };
        let done = machine.watched(deadline, |machine| work(machine, master, access, host));
        self.settle(done)
    }

    fn settle<T>(&mut self, done: Result<T, Cause>) -> Result<T, Cause> {
        match done {
            Ok(_) if !self.machine.settle() => Err(Cause::Machine("it can't go on".into())),
            done => done,
        }
    }
}

/// Serves a function up to its end. `take` takes its result: the first one that fits.
fn serve(
    machine: &mut Machine,
    access: Access<'_>,
    deadline: Instant,
    host: &mut dyn Host,
    mut take: impl FnMut(&GuestMemory, u64, u64) -> Returned,
) -> Result<Returned, Cause> {
    const REFUSED: u64 = -1_i64 as u64;
    let mut returned = None;
    loop {
        let Event::Hypercall(number) = machine.run(deadline, host)? else {
            continue;
        };
        let result = match number {
            HANDLER_RETURNED => break,
            STORAGE_RETURN | STORAGE_NORETURN if matches!(returned, Some(Ok(_))) => REFUSED,
            STORAGE_RETURN | STORAGE_NORETURN => {
                let regs = machine.vcpu().regs();
                let (at, len) = (regs.rdi, regs.rsi);
                let taken = take(&machine.memory, at, len);
                let result = if taken.is_ok() { len } else { REFUSED };
                returned = Some(taken);
                result
            }
            _ => hypercall::common(number, machine, Some(access), host)? as u64,
        };
        if number == STORAGE_NORETURN {
            break;
        }
        machine.vcpu().set_result(result);
    }
    Ok(returned.unwrap_or(Ok(0)))
}
