//! Signals of a program with an address space: its handlers are run, on its way back from whatever stopped it.

use std::time::Instant;

use kvm_bindings::kvm_regs;

use crate::arch::context::{VectorFormat, initial_vector};
use crate::arch::regs::user_flags;
use crate::arch::stubs::SYSCALL;
use crate::failure::{Cause, Exception, PAGE_FAULT};
use crate::linux::{FaultDetails, Handling, NextSignal, Signal, frame};
use crate::machine::Machine;
use crate::memory::faults::FaultError;

/// `si_code` of faults (sigaction(2)): no mapping, not permitted; a divisor of zero; an operand; a misaligned address; an
/// address that has nothing behind it; a trace.
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const FPE_INTDIV: i32 = 1;
const ILL_ILLOPN: i32 = 2;
const BUS_ADRALN: i32 = 1;
const BUS_ADRERR: i32 = 2;
const TRAP_TRACE: i32 = 2;

impl Machine {
    /// Does what the current task has to do about signals before it goes on. The registers are those of ring 3. `Some` if
    /// it does not go on.
    pub(super) fn before_going_on(&mut self, deadline: Instant) -> Option<Cause> {
        while self.linux.signal_is_due() {
            let regs = self.vcpu.regs();
            let ended = match self.linux.next_signal() {
                NextSignal::GoOn => None,
                NextSignal::MakeAgain(call) => {
                    self.resume_user(again(regs, call.number));
                    None
                }
                NextSignal::Die(signal) => Some(Cause::Killed(signal)),
                NextSignal::Handle(handling) => {
                    let regs = handling.again.map_or(regs, |call| again(regs, call.number));
                    self.start_handler(regs, &handling, FaultDetails::default())
                }
            };
            if ended.is_some() {
                return ended;
            }
        }
        // A kick that came during a call is taken back where the watchdog is armed again, by the call or below: after calls
        // that each do so there may be no other one.
        if self.is_over(deadline) {
            return Some(Cause::Timeout);
        }
        let alarm = self.linux.next_alarm();
        if self.armed_for != alarm {
            self.armed_for = alarm;
            self.rearm(self.slice_end(deadline));
        }
        None
    }

    /// Has a handler run next, and the program afterwards as these registers say.
    fn start_handler(
        &mut self,
        regs: kvm_regs,
        handling: &Handling,
        fault: FaultDetails,
    ) -> Option<Cause> {
        let failed =
            |error: kvm_ioctls::Error| Some(Cause::Machine(format!("vector state: {error}")));
        let format = match self.vector_format() {
            Ok(format) => format,
            Err(error) => return failed(error),
        };
        let vector = match self.vcpu.xsave() {
            Ok(vector) => vector,
            Err(error) => return failed(error),
        };
        let stack = self.linux.tasks_mut().current().signals.stack;
        let of = (&*vector, format);
        let Ok(started) = frame::push(&mut self.memory, &regs, handling, stack, of, fault) else {
            // There is no stack to tell it on.
            return Some(Cause::Killed(libc::SIGSEGV));
        };
        if stack.is_some_and(|stack| stack.autodisarm) {
            self.linux.tasks_mut().current().signals.stack = None;
        }
        if let Err(error) = self.vcpu.set_xsave(&initial_vector()) {
            return failed(error);
        }
        self.resume_user(started);
        None
    }

    /// rt_sigreturn(2)
    pub(super) fn return_from_handler(&mut self) -> Option<Cause> {
        let failed =
            |error: kvm_ioctls::Error| Some(Cause::Machine(format!("vector state: {error}")));
        let format = match self.vector_format() {
            Ok(format) => format,
            Err(error) => return failed(error),
        };
        let Ok(popped) = frame::pop(&self.memory, &self.vcpu.regs(), format) else {
            return Some(Cause::Killed(libc::SIGSEGV));
        };
        let vector = popped.vector.unwrap_or_else(initial_vector);
        if self.vcpu.set_xsave(&vector).is_err() {
            return Some(Cause::Killed(libc::SIGSEGV));
        }
        let of = &mut self.linux.tasks_mut().current().signals;
        of.set_mask(popped.mask);
        if let Some(stack) = popped.stack {
            of.stack = stack;
        }
        self.resume_user(popped.regs);
        None
    }

    /// Has the program's handler run for an exception that it caused. Without one that ends the run.
    pub(super) fn faulted(&mut self, vector: u8, fault: Option<&FaultError>) -> Option<Cause> {
        let Some(frame) = self.exception_frame().filter(|frame| frame.cs & 3 == 3) else {
            return Some(self.exception(vector, None));
        };
        let cr2 = self.vcpu.synced_sregs().cr2;
        let signal = signal_of(vector, fault, frame.rip, cr2);
        let Some(handling) = signal.and_then(|signal| self.linux.fault(signal)) else {
            let ended_by = signal.and_then(|signal| signal.number.try_into().ok());
            return Some(self.exception(vector, ended_by));
        };
        let error = match Exception::has_error_code(vector) {
            true => self.pushed(5).unwrap_or(0),
            false => 0,
        };
        let regs = kvm_regs {
            rip: frame.rip,
            rsp: frame.rsp,
            rflags: user_flags(frame.rflags),
            ..self.vcpu.regs()
        };
        let details = FaultDetails {
            error,
            vector: vector.into(),
            address: cr2,
        };
        self.start_handler(regs, &handling, details)
    }

    fn vector_format(&mut self) -> Result<VectorFormat, kvm_ioctls::Error> {
        if let Some(format) = self.vector_format {
            return Ok(format);
        }
        let format = VectorFormat::of(self.vcpu.xcr0()?, &*self.vcpu.xsave()?);
        self.vector_format = Some(format);
        Ok(format)
    }
}

/// The registers with which a call is made again.
fn again(regs: kvm_regs, number: u64) -> kvm_regs {
    kvm_regs {
        rip: regs.rip.wrapping_sub(SYSCALL.len() as u64),
        rax: number,
        ..regs
    }
}

/// The signal that Linux makes of an exception.
fn signal_of(vector: u8, fault: Option<&FaultError>, rip: u64, cr2: u64) -> Option<Signal> {
    Some(match vector {
        0 => Signal::by_fault(libc::SIGFPE, FPE_INTDIV, rip),
        1 => Signal::by_fault(libc::SIGTRAP, TRAP_TRACE, rip),
        3 => Signal::by_kernel(libc::SIGTRAP),
        6 => Signal::by_fault(libc::SIGILL, ILL_ILLOPN, rip),
        16 | 19 => Signal::by_fault(libc::SIGFPE, 0, rip),
        11 | 12 => Signal::by_kernel(libc::SIGBUS),
        17 => Signal::by_fault(libc::SIGBUS, BUS_ADRALN, 0),
        PAGE_FAULT => match fault {
            Some(FaultError::NotPermitted) => Signal::by_fault(libc::SIGSEGV, SEGV_ACCERR, cr2),
            Some(FaultError::File(_) | FaultError::PastEnd) => {
                Signal::by_fault(libc::SIGBUS, BUS_ADRERR, cr2)
            }
            _ => Signal::by_fault(libc::SIGSEGV, SEGV_MAPERR, cr2),
        },
        4 | 5 | 10 | 13 => Signal::by_kernel(libc::SIGSEGV),
        _ => return None,
    })
}
