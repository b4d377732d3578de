//! A program on its way to being a master: the run through `main()`, the CPU's state at the end of it, and what runs
//! before the freeze (state taken over, warm-up requests).

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::arch::layout::{
    FROZEN_BASES, Layout, REQUEST_AREA, REQUEST_AREA_LEN, XSAVE_IMAGE, XSAVE_LEN, monitor,
};
use crate::arch::regs::{RFLAGS, user_sregs};
use crate::arch::stubs::{self, EntryBlock, MAIN_RETURNED, STATE_SAVED};
use crate::call::handlers::Handlers;
use crate::call::http::Exchange;
use crate::call::hypercall::{
    self, Body, MAKE_EPHEMERAL, REGISTER_FUNC, WAIT_FOR_REQUESTS, WAIT_FOR_REQUESTS_PAUSED,
};
use crate::call::storage::{MOST_FUNCTIONS, STORAGE_ALLOW};
use crate::call::{Circumstances, WaitPoint, WayIn};
use crate::config::WarmUp;
use crate::failure::{BREAKPOINT, BootError, Cause};
use crate::linux::Linux;
use crate::machine::probe::{KvmHost, KvmReport};
use crate::machine::{Event, Machine, MachineError};
use crate::master::handover::Predecessor;
use crate::master::role::Role;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::memory::user::{BadAddress, UserMemory};
use crate::regexes::Regexes;
use crate::request::{Host, Quiet};

/// The opcode of `int3`.
const INT3: u8 = 0xcc;

/// The byte that an `int3` stands in for.
#[derive(Debug, Clone, Copy)]
pub struct Patch {
    address: u64,
    physical: u64,
    original: u8,
}

impl Patch {
    pub fn apply(memory: &Mapping, address: u64) -> Result<Self, BadAddress> {
        use crate::arch::paging::{Access, translate};
        let physical = translate(memory, address, Access::Any).ok_or(BadAddress(address))?;
        let mut original = [0];
        memory
            .read(physical, &mut original)
            .map_err(|_| BadAddress(address))?;
        memory
            .write(physical, &[INT3])
            .map_err(|_| BadAddress(address))?;
        Ok(Self {
            address,
            physical,
            original: original[0],
        })
    }
}

/// A machine on its way through `main()`.
pub struct Booting {
    pub machine: Machine,
    pub handlers: Handlers,
    /// `main()`, until it is entered.
    pub main: Option<Patch>,
    /// What the storage may be called for, if it becomes that.
    pub allowed: Vec<u64>,
    /// Whether `main()` may say that requests leave their state to later ones.
    pub controls_state: bool,
    /// When its program is to be ready.
    pub deadline: Instant,
}

impl Booting {
    /// A machine that is about to run the program from its entry point, with RSP as given, for so long at most. The making
    /// of the machine does not count: what the kernel does then it leaves to a worker of its own, which may be late by
    /// seconds where many threads want the processor.
    pub fn new(
        host: &'static KvmHost,
        memory: Mapping,
        linux: Linux,
        (entry, rsp): (u64, u64),
        main: Option<Patch>,
        time: Duration,
    ) -> Result<Self, MachineError> {
        let memory = GuestMemory::booting(memory);
        let mut machine = Machine::new(host, memory, linux, None, false)?;
        let template = machine.vcpu().sregs()?;
        let gs_base = monitor(REQUEST_AREA) + EntryBlock::FORK;
        let sregs = user_sregs(&template, host.choice, 0, gs_base);
        machine.vcpu().set_sregs(&sregs)?;
        machine.vcpu().set_regs(kvm_regs {
            rip: entry,
            rsp,
            rflags: RFLAGS,
            ..Default::default()
        });
        Ok(Self {
            machine,
            handlers: Handlers::default(),
            main,
            allowed: Vec::new(),
            controls_state: false,
            deadline: Instant::now() + time,
        })
    }

    /// Runs until the program waits for requests: it is ready, whatever becomes of them. `None` if `main()` returned 0.
    pub fn run_main(
        &mut self,
        role: Role<'_>,
        output: &mut dyn Host,
    ) -> Result<Option<WayIn>, Cause> {
        self.machine.is_storage = role.is_storage;
        let deadline = self.deadline;
        let mut registered = Registered {
            handlers: &mut self.handlers,
            allowed: &mut self.allowed,
            controls_state: self.controls_state,
            main: &mut self.main,
        };
        let result = self.machine.watched(deadline, |machine| {
            run_until_waiting(machine, &mut registered, role, deadline, output)
        });
        // The watchdog looks now and then; a main() that ended between two looks may be late all the same.
        self.deadline += self.machine.kept();
        let late = Instant::now() >= self.deadline;
        match result {
            Ok(_) if late => Err(Cause::Timeout),
            result => result,
        }
    }

    /// Takes the CPU's state, now that the program waits. The vector state is saved by the guest itself, since KVM
    /// does not give all of it everywhere.
    pub fn wait_point(
        &mut self,
        way_in: WayIn,
        layout: &Layout,
        report: KvmReport,
    ) -> Result<WaitPoint, Cause> {
        let text = |error: &dyn std::fmt::Display| Cause::Machine(error.to_string());
        // A page that still holds the int3 must not be frozen: main() was never entered.
        if let Some(main) = self.main.take() {
            self.machine
                .memory
                .write_physical(main.physical, &[main.original])
                .map_err(|error| text(&error))?;
        }
        // Only a finished `out` has RIP behind it on every KVM.
        if !self.machine.vcpu().drain() {
            return Err(text(&"the last hypercall can't be finished"));
        }
        let regs = self.machine.vcpu().regs();
        let sregs = self.machine.user_sregs().map_err(|error| text(&error))?;
        self.save_vector_state(&sregs)?;
        let bases = [sregs.fs.base.to_le_bytes(), sregs.gs.base.to_le_bytes()].concat();
        self.machine
            .memory
            .write_physical(FROZEN_BASES, &bases)
            .map_err(|error| text(&error))?;
        let events = self.machine.no_events().map_err(|error| text(&error))?;
        Ok(WaitPoint {
            regs,
            sregs,
            events,
            handlers: self.handlers,
            allowed: std::mem::take(&mut self.allowed),
            way_in,
            layout: layout.clone(),
            report,
        })
    }

    /// Has the program take over its predecessor's state, if it registered a handler for that and there is a state.
    /// Gives the state's length in bytes. `failed` says what a run comes to that ended so.
    pub fn restore(
        &mut self,
        wait_point: &WaitPoint,
        predecessor: Predecessor<'_>,
        role: Role<'_>,
        failed: impl Fn(Cause) -> BootError,
        output: &mut dyn Host,
    ) -> Result<Option<u64>, BootError> {
        if self.handlers.get(Handlers::ON_LIVE_RESTORE).is_none() {
            return Ok(None);
        }
        let handed_over = predecessor(self.deadline, output)?;
        self.deadline += handed_over.kept;
        let Some(state) = handed_over.state else {
            return Ok(None);
        };
        self.take_state(wait_point, &state, role, output)
            .map_err(failed)?;
        Ok(Some(state.len() as u64))
    }

    /// Runs `on_live_restore` with the state of the program before.
    fn take_state(
        &mut self,
        wait_point: &WaitPoint,
        state: &[u8],
        role: Role<'_>,
        output: &mut dyn Host,
    ) -> Result<(), Cause> {
        let deadline = self.deadline;
        self.machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
        self.machine
            .vcpu()
            .clear_events_at_next_run(wait_point.events);
        self.machine.watched(deadline, |machine| {
            wait_point.take_state(machine, state, role.access(), deadline, output)
        })?;
        self.deadline += self.machine.kept();
        if self.machine.settle() {
            Ok(())
        } else {
            Err(Cause::Machine(
                "it can't go on after on_live_restore".into(),
            ))
        }
    }

    /// Runs the warm-up requests. What they leave in memory becomes part of the frozen state; the CPU goes back to
    /// where the program waits.
    pub fn warm_up(
        &mut self,
        wait_point: &WaitPoint,
        warm_up: &WarmUp,
        time: Duration,
        output: &mut dyn Host,
    ) -> Result<(), Cause> {
        let request = warm_up.request();
        let circumstances = Circumstances {
            warm_up: true,
            ..Default::default()
        };
        for _ in 0..warm_up.num_requests {
            let deadline = self.deadline.min(Instant::now() + time);
            let mut exchange = Exchange::new(&request);
            self.machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
            self.machine
                .vcpu()
                .clear_events_at_next_run(wait_point.events);
            self.machine.watched(deadline, |machine| {
                let response = wait_point.call(
                    machine,
                    &mut exchange,
                    circumstances,
                    deadline,
                    output,
                    None,
                )?;
                match response.body {
                    Body::Whole(..) => Ok(()),
                    // There may be no end of it.
                    Body::Streamed(mut stream) => stream
                        .next_part(u64::MAX, machine, None, deadline, output)
                        .map(drop),
                }
            })?;
            self.deadline += self.machine.kept();
            if !self.machine.settle() {
                return Err(Cause::Machine(
                    "it can't go on after a warm-up request".into(),
                ));
            }
        }
        Ok(())
    }

    /// Ends the machine and hands out its personality and its regular expressions. Memory is as the forks will see it.
    pub fn finish(mut self) -> Result<(Linux, Regexes), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        self.machine
            .linux
            .before_freeze(&mut self.machine.memory)
            .map_err(|error| text(&error))?;
        self.machine
            .memory
            .write_physical(REQUEST_AREA, &[0u8; REQUEST_AREA_LEN as usize])
            .map_err(|error| text(&error))?;
        Ok((self.machine.linux.clone(), self.machine.regexes.to_frozen()))
    }

    fn save_vector_state(&mut self, sregs: &kvm_sregs) -> Result<(), Cause> {
        let text = |error: &dyn std::fmt::Display| Cause::Machine(error.to_string());
        // CPUID.(EAX=0DH,ECX=0):EBX, the bytes XSAVE takes with the present XCR0.
        let len = u64::from(std::arch::x86_64::__cpuid_count(0xd, 0).ebx);
        if len > XSAVE_LEN {
            let what = format!("the processor's vector state takes {len} bytes, not {XSAVE_LEN}");
            return Err(Cause::Machine(what));
        }
        let zeros = [0u8; REQUEST_AREA_LEN as usize];
        self.machine
            .memory
            .write_physical(REQUEST_AREA, &zeros)
            .map_err(|error| text(&error))?;
        let regs = kvm_regs {
            rip: stubs::addresses().save_state,
            r11: monitor(REQUEST_AREA),
            rflags: RFLAGS,
            ..Default::default()
        };
        self.machine.vcpu().set_sregs_at_next_run(*sregs);
        self.machine.vcpu().set_regs(regs);
        let deadline = self.deadline;
        let result = self
            .machine
            .watched(deadline, |machine| machine.run(deadline, &mut Quiet));
        match result {
            Ok(Event::Hypercall(STATE_SAVED)) => {}
            // The program has denied the stub its memory, by protection keys.
            Err(cause @ (Cause::Exception(_) | Cause::Timeout)) => return Err(cause),
            other => {
                let what = format!("the vector state can't be saved: {other:?}");
                return Err(Cause::Machine(what));
            }
        }
        let mut image = vec![0; XSAVE_LEN as usize];
        let memory = &mut self.machine.memory;
        memory
            .mapping()
            .read(REQUEST_AREA, &mut image)
            .map_err(|error| text(&error))?;
        memory
            .write_physical(XSAVE_IMAGE, &image)
            .map_err(|error| text(&error))
    }
}

/// What `main()` says about itself, and where it begins.
struct Registered<'a> {
    handlers: &'a mut Handlers,
    allowed: &'a mut Vec<u64>,
    controls_state: bool,
    main: &'a mut Option<Patch>,
}

impl Registered<'_> {
    /// `make_ephemeral(ephemeral)`.
    fn make_ephemeral(&self, machine: &mut Machine, ephemeral: u64) -> i64 {
        let keeps_state = !hypercall::is_true(ephemeral);
        if keeps_state && !machine.keeps_state && !self.controls_state {
            return -i64::from(libc::ENOSYS);
        }
        machine.keeps_state = keeps_state;
        0
    }

    /// `storage_allow(function)`.
    fn allow(&mut self, function: u64) -> i64 {
        if self.allowed.contains(&function) {
            return 0;
        }
        if self.allowed.len() >= MOST_FUNCTIONS {
            return -i64::from(libc::ENOSPC);
        }
        self.allowed.push(function);
        0
    }
}

fn run_until_waiting(
    machine: &mut Machine,
    registered: &mut Registered<'_>,
    role: Role<'_>,
    deadline: Instant,
    output: &mut dyn Host,
) -> Result<Option<WayIn>, Cause> {
    loop {
        let number = match machine.run(deadline, output) {
            Ok(Event::Hypercall(number)) => number,
            Ok(Event::SystemCall | Event::Idle(_) | Event::Sent) => continue,
            // RIP is just past the `int3`.
            Err(Cause::Exception(exception))
                if exception.vector == BREAKPOINT
                    && let Some(patch) = registered
                        .main
                        .take_if(|main| main.address.wrapping_add(1) == exception.rip) =>
            {
                enter_main(machine, patch, exception.rsp)?;
                continue;
            }
            Err(cause) => return Err(cause),
        };
        let regs = machine.vcpu().regs();
        let result = match number {
            WAIT_FOR_REQUESTS => return Ok(Some(WayIn::Handler)),
            WAIT_FOR_REQUESTS_PAUSED => return Ok(Some(WayIn::Paused(regs.rdi))),
            MAIN_RETURNED if regs.rdi as i32 == 0 => return Ok(None),
            MAIN_RETURNED => return Err(Cause::MainReturned(regs.rdi as i32)),
            REGISTER_FUNC => registered.handlers.register(regs.rdi, regs.rsi),
            STORAGE_ALLOW => registered.allow(regs.rdi),
            MAKE_EPHEMERAL => registered.make_ephemeral(machine, regs.rdi),
            _ => hypercall::common(number, machine, role.access(), output)?,
        };
        machine.vcpu().set_result(result as u64);
    }
}

/// Puts main's first byte back and our stub in the place of its return address, and goes on there in ring 3.
fn enter_main(machine: &mut Machine, main: Patch, rsp: u64) -> Result<(), Cause> {
    let failed =
        |error: &dyn std::fmt::Display| Cause::Machine(format!("entering main(): {error}"));
    machine
        .memory
        .write_physical(main.physical, &[main.original])
        .map_err(|error| failed(&error))?;
    machine
        .memory
        .write(rsp, &stubs::addresses().main_returned.to_le_bytes())
        .map_err(|error| failed(&error))?;
    let sregs = machine.user_sregs().map_err(|error| failed(&error))?;
    let mut regs = machine.vcpu().regs();
    (regs.rip, regs.rsp, regs.rflags) = (main.address, rsp, RFLAGS);
    machine.vcpu().set_sregs_at_next_run(sregs);
    machine.vcpu().set_regs(regs);
    Ok(())
}
