//! What an exception's stub left on the ring-0 stack.

use crate::arch::layout::KERNEL_STACK_TOP;
use crate::failure::{Cause, Exception};
use crate::machine::Machine;

/// Where ring 3 was when an exception came (Intel SDM Vol. 3A, 6.14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExceptionFrame {
    /// The instruction.
    pub rip: u64,
    /// The code segment, whose lowest two bits are the ring.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack pointer.
    pub rsp: u64,
}

impl Machine {
    /// Reads a number that an exception pushed: SS first, then RSP, RFLAGS, CS, RIP and for some vectors an error code
    /// (Intel SDM Vol. 3A, 6.14.2).
    pub(super) fn pushed(&self, nth: u64) -> Option<u64> {
        let address = KERNEL_STACK_TOP - 8 * (nth + 1);
        self.memory.mapping().read_u64(address).ok()
    }

    /// Where ring 3 was when the last exception came.
    pub fn exception_frame(&self) -> Option<ExceptionFrame> {
        Some(ExceptionFrame {
            rsp: self.pushed(1)?,
            rflags: self.pushed(2)?,
            cs: self.pushed(3)?,
            rip: self.pushed(4)?,
        })
    }

    /// Reads an exception from the ring-0 stack, which ends the program by this signal.
    pub(super) fn exception(&mut self, vector: u8, signal: Option<u8>) -> Cause {
        let Some(ExceptionFrame { rip, rsp, .. }) = self.exception_frame() else {
            return Cause::Machine("no exception frame".into());
        };
        let error_code = if Exception::has_error_code(vector) {
            self.pushed(5)
        } else {
            None
        };
        match self.vcpu.sregs() {
            Ok(sregs) => Cause::Exception(Exception {
                vector,
                error_code,
                rip,
                rsp,
                cr2: sregs.cr2,
                signal,
            }),
            Err(error) => Cause::Machine(format!("KVM_GET_SREGS: {error}")),
        }
    }
}
