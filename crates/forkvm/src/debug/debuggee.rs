//! A machine under a debugger: running it until it stops, and what can be seen and changed while it is stopped.
//!
//! Breakpoints are `int3` in the fork's own memory, single steps are RFLAGS.TF; both come back as exceptions through
//! the guest's IDT, like any other. So nothing depends on what `KVM_SET_GUEST_DEBUG` can do, which is little on
//! `kvm_pvm` (docs/debugging.md).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use gdbstub::common::Signal;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};

use super::registers::{CpuRegisters, TRAP_FLAG, USER_END, VectorState};
use crate::arch::regs::user_flags;
use crate::arch::tables::USER_CODE;
use crate::failure::{BREAKPOINT, Cause, DEBUG, Exception};
use crate::machine::{Event, Machine};
use crate::memory::user::UserMemory;
use crate::request::Host;

/// The opcode of `int3`.
const INT3: u8 = 0xcc;
/// Most breakpoints of a session.
const MOST_BREAKPOINTS: usize = 1024;

/// What the program may do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Run.
    Continue,
    /// One instruction, and more as long as it stays in this range.
    Step(Range<u64>),
    /// End by this signal.
    Die(Signal),
}

/// Why the program stopped where a debugger can look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// At the handler's entry.
    Entry,
    /// At a breakpoint of the debugger.
    Breakpoint,
    /// After a single step.
    Step,
    /// At the `breakpoint()` hypercall.
    Hypercall,
    /// The debugger asked for it.
    Interrupt,
    /// At an exception.
    Exception(Exception),
}

/// A stopped program's registers, all in ring 3.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
}

/// A machine under a debugger.
#[derive(Debug)]
pub struct Debuggee<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The auxiliary vector, by which gdb finds out where a static-PIE program lies.
    pub auxiliary: &'a [u8],
    /// What the debugger wants to happen next.
    pub resume: Resume,
    events: kvm_vcpu_events,
    /// Why it stopped just now, until somebody asks.
    stop: Option<Stop>,
    /// The registers while stopped; while it runs KVM has them.
    cpu: Option<Cpu>,
    breakpoints: BTreeSet<u64>,
    /// Where to stop once, of our own accord.
    entry: Option<u64>,
    /// Bytes that an `int3` stands in for at present.
    replaced: Vec<(u64, u8)>,
    /// The instruction being stepped is a `pushf`.
    steps_pushf: bool,
}

impl<'a> Debuggee<'a> {
    /// Takes a machine that is about to run. `events` are no events. With `entry`, it stops there the first time.
    pub fn new(
        machine: &'a mut Machine,
        auxiliary: &'a [u8],
        events: kvm_vcpu_events,
        entry: Option<u64>,
    ) -> Self {
        Self {
            machine,
            auxiliary,
            resume: Resume::Continue,
            events,
            stop: None,
            cpu: None,
            breakpoints: BTreeSet::new(),
            entry,
            replaced: Vec::new(),
            steps_pushf: false,
        }
    }

    fn steps(&self) -> bool {
        matches!(self.resume, Resume::Step(_))
    }

    /// Runs until something happens, `until` at the latest. `deadline` is the request's, for system calls that wait.
    /// Gives the hypercall that is to be served, if that is what happened; else see [`Debuggee::take_stop`].
    pub fn run(
        &mut self,
        until: Instant,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<u32>, Cause> {
        loop {
            self.enter();
            self.machine.rearm(until);
            let result = self.machine.run(deadline, host);
            self.remove_breakpoints();
            match result {
                Ok(Event::Hypercall(number)) => return Ok(Some(number)),
                Ok(Event::SystemCall) => self.system_call_stepped()?,
                // No program for requests is.
                Ok(Event::Idle(_) | Event::Sent) => {}
                Err(Cause::Exception(exception)) => self.exception(exception)?,
                Err(Cause::Timeout) if Instant::now() < deadline => {}
                Err(cause) => return Err(cause),
            }
            match (&self.stop, &self.resume, &self.cpu) {
                (Some(Stop::Step), Resume::Step(range), Some(cpu))
                    if range.contains(&cpu.regs.rip) && Instant::now() < until =>
                {
                    self.stop = None;
                }
                _ => return Ok(None),
            }
        }
    }

    /// True if it stopped in its last run; false if the time for that was over.
    pub fn has_stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// Why it stopped in its last run, if it did.
    pub fn take_stop(&mut self) -> Option<Stop> {
        self.stop.take()
    }

    /// Gives KVM the registers, if they are here, and memory the breakpoints.
    fn enter(&mut self) {
        let steps = self.steps();
        self.machine.set_stepping(steps);
        if let Some(Cpu { mut regs, sregs }) = self.cpu.take() {
            regs.rflags = user_flags(regs.rflags) | if steps { TRAP_FLAG } else { 0 };
            self.steps_pushf = steps && self.is_pushf(regs.rip);
            let vcpu = self.machine.vcpu();
            vcpu.set_sregs_at_next_run(sregs);
            vcpu.clear_events_at_next_run(self.events);
            vcpu.set_regs(regs);
        }
        for &address in self.breakpoints.iter().chain(&self.entry) {
            let mut byte = [0];
            if self.machine.memory.read(address, &mut byte).is_ok()
                && self.machine.memory.overwrite(address, &[INT3]).is_ok()
            {
                self.replaced.push((address, byte[0]));
            }
        }
    }

    /// Takes the breakpoints out of memory, so that nobody but the processor sees them.
    fn remove_breakpoints(&mut self) {
        while let Some((address, byte)) = self.replaced.pop() {
            let mut now = [0];
            // What the program itself wrote there meanwhile stays.
            if self.machine.memory.read(address, &mut now).is_ok() && now[0] == INT3 {
                // It could be written a moment ago.
                let _ = self.machine.memory.overwrite(address, &[byte]);
            }
        }
    }

    /// True if the instruction there pushes the flags, TF included, which the program should not see.
    fn is_pushf(&self, address: u64) -> bool {
        let mut code = [0; 3];
        let n = self.read(address, &mut code);
        code[..n]
            .iter()
            .find(|byte| !matches!(byte, 0x66 | 0x40..=0x4f))
            == Some(&0x9c)
    }

    /// The user registers at an exception, from its frame.
    fn exception(&mut self, exception: Exception) -> Result<(), Cause> {
        let Some(frame) = self.machine.exception_frame() else {
            return Err(Cause::Exception(exception));
        };
        // Ring 0 and 32-bit code are not for a debugger.
        if frame.cs & 0xffff != u64::from(USER_CODE) {
            return Err(Cause::Exception(exception));
        }
        let mut regs = self.machine.vcpu().regs();
        (regs.rip, regs.rsp, regs.rflags) = (frame.rip, frame.rsp, user_flags(frame.rflags));
        let steps = self.steps();
        let before = regs.rip.wrapping_sub(1);
        let stop = match exception.vector {
            BREAKPOINT if self.entry == Some(before) => {
                self.entry = None;
                regs.rip = before;
                Stop::Entry
            }
            BREAKPOINT if self.breakpoints.contains(&before) => {
                regs.rip = before;
                Stop::Breakpoint
            }
            DEBUG if steps => {
                if std::mem::take(&mut self.steps_pushf) {
                    self.clear_pushed_trap_flag(regs.rsp);
                }
                Stop::Step
            }
            _ => Stop::Exception(exception),
        };
        self.stop(regs, stop)
    }

    fn clear_pushed_trap_flag(&mut self, rsp: u64) {
        let address = rsp.wrapping_add(1);
        let mut byte = [0];
        if self.machine.memory.read(address, &mut byte).is_ok() {
            // The program pushed it there itself.
            let _ = self
                .machine
                .memory
                .write(address, &[byte[0] & !(TRAP_FLAG >> 8) as u8]);
        }
    }

    fn stop(&mut self, regs: kvm_regs, stop: Stop) -> Result<(), Cause> {
        match self.machine.user_sregs() {
            Ok(sregs) => {
                self.cpu = Some(Cpu { regs, sregs });
                self.stop = Some(stop);
                Ok(())
            }
            Err(error) => Err(Cause::Machine(format!("KVM_GET_SREGS: {error}"))),
        }
    }

    /// A system call was served in a single step, which ends behind it: where the processor's own trap would come
    /// differs between KVMs.
    fn system_call_stepped(&mut self) -> Result<(), Cause> {
        let mut regs = self.machine.vcpu().regs();
        // By a program that reached for the stub's port; `syscall` leaves an address of its own.
        if regs.rcx >= USER_END {
            return Err(Cause::Killed(libc::SIGSEGV));
        }
        regs.rip = regs.rcx;
        regs.r11 &= !TRAP_FLAG;
        regs.rflags = user_flags(regs.r11);
        self.stop(regs, Stop::Step)
    }

    /// Stops after a hypercall, whose result is in RAX.
    pub fn stop_after_hypercall(&mut self, stop: Stop) -> Result<(), Cause> {
        let mut regs = self.machine.vcpu().regs();
        // Only a finished `out` has RIP behind it on every KVM.
        if !self.machine.vcpu().drain() {
            return Err(Cause::Machine(
                "the last hypercall can't be finished".into(),
            ));
        }
        let after = self.machine.vcpu().regs();
        (regs.rip, regs.rflags) = (after.rip, user_flags(after.rflags));
        self.stop(regs, stop)
    }

    /// Stops where it is, after a run whose time was over, unless it can't be stopped at this very place.
    pub fn interrupt(&mut self) -> Result<(), Cause> {
        if self.cpu.is_some() {
            self.stop = Some(Stop::Interrupt);
            return Ok(());
        }
        let vcpu = self.machine.vcpu();
        match (vcpu.sregs(), vcpu.events()) {
            (Ok(sregs), Ok(events)) => {
                let mut regs = vcpu.regs();
                let in_program = sregs.cs.selector == USER_CODE
                    && sregs.cs.l == 1
                    && events.exception.injected == 0
                    && events.exception.pending == 0
                    && !self.in_stub(regs.rip);
                if !in_program {
                    return Ok(());
                }
                regs.rflags = user_flags(regs.rflags);
                self.stop(regs, Stop::Interrupt)
            }
            (Err(error), _) | (_, Err(error)) => {
                Err(Cause::Machine(format!("its registers: {error}")))
            }
        }
    }

    /// True in our own stubs, whose few instructions are not the program's.
    fn in_stub(&self, rip: u64) -> bool {
        use crate::arch::layout::{PAGE, USER_STUBS, monitor};
        (monitor(USER_STUBS)..monitor(USER_STUBS) + PAGE).contains(&rip)
    }

    /// Lets go: no breakpoint and no step any more.
    pub fn detach(&mut self) {
        self.breakpoints.clear();
        self.entry = None;
        self.resume = Resume::Continue;
    }

    /// Adds or removes a breakpoint. False if it can't be.
    pub fn set_breakpoint(&mut self, address: u64, wanted: bool) -> bool {
        if !wanted {
            return self.breakpoints.remove(&address);
        }
        let there = self.machine.memory.read(address, &mut [0]).is_ok();
        if there && self.breakpoints.len() < MOST_BREAKPOINTS {
            self.breakpoints.insert(address);
        }
        self.breakpoints.contains(&address)
    }

    /// Copies as much of the program's memory as there is. Returns how much.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        use crate::arch::layout::{PAGE, page_down};
        let mut n = 0;
        while n < buf.len() {
            let Some(at) = address.checked_add(n as u64) else {
                break;
            };
            let len = (PAGE - (at - page_down(at))) as usize;
            let end = buf.len().min(n + len);
            if self.machine.memory.read(at, &mut buf[n..end]).is_err() {
                break;
            }
            n = end;
        }
        n
    }

    /// All registers.
    pub fn registers(&mut self) -> Option<CpuRegisters> {
        let Cpu { regs, sregs } = self.cpu?;
        let mut registers = CpuRegisters {
            orig_rax: u64::MAX,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            ..Default::default()
        };
        registers.load_general(&regs);
        let segments = &mut registers.core.segments;
        (segments.cs, segments.ss) = (sregs.cs.selector.into(), sregs.ss.selector.into());
        // Without it (an image of more than 4 KiB, with AMX), the vector registers show as zero.
        if let Ok(state) = self.machine.vcpu().xsave() {
            VectorState::new(state).load_into(&mut registers);
        }
        Some(registers)
    }

    /// Sets all registers but the segment selectors. False if a program could not have such.
    pub fn set_registers(&mut self, registers: &CpuRegisters) -> bool {
        let Some(cpu) = &mut self.cpu else {
            return false;
        };
        let general = registers.general();
        let bases = [registers.fs_base, registers.gs_base];
        if general.rip >= USER_END || bases.iter().any(|&base| base >= USER_END) {
            return false;
        }
        cpu.regs = general;
        [cpu.sregs.fs.base, cpu.sregs.gs.base] = bases;
        let vcpu = self.machine.vcpu();
        let Ok(state) = vcpu.xsave() else {
            return true;
        };
        let before = VectorState::new(state);
        let mut after = before.clone();
        // What does not change is not written: KVM would have to load all of it.
        let mut shown = CpuRegisters::default();
        before.load_into(&mut shown);
        let same = shown.core.st == registers.core.st
            && shown.core.fpu == registers.core.fpu
            && shown.core.xmm == registers.core.xmm
            && shown.core.mxcsr == registers.core.mxcsr
            && shown.ymm_high == registers.ymm_high;
        after.store_from(registers);
        same || vcpu.set_xsave(after.bytes()).is_ok()
    }
}
