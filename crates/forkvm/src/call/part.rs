//! The next part of a response that a program makes part by part: its callback is called as if its handler did.

use std::time::Instant;

use kvm_bindings::kvm_regs;

use crate::arch::regs::RFLAGS;
use crate::call::entry;
use crate::call::function::{self, Ended};
use crate::call::stored::Stored;
use crate::call::stream::Stream;
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::user::USER_END;
use crate::request::Host;

/// How much a callback is asked for at a time.
const MOST_PART: u64 = 64 << 10;

impl Stream {
    /// Has the program make the next part, of a body of `most` bytes at most: its user address and length, checked to be
    /// readable. `None` at the body's end. Inside of [`Machine::watched_on`] with the same deadline.
    pub fn next_part(
        &mut self,
        most: u64,
        machine: &mut Machine,
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<(u64, u64)>, Cause> {
        let left = self.length.map(|length| length - self.written);
        if self.is_over || left == Some(0) {
            return Ok(None);
        }
        let wanted = left.unwrap_or(MOST_PART).min(MOST_PART);
        let total = self.length.unwrap_or(0);
        self.enter(machine, [self.argument, wanted, self.written, total])?;
        let ended = function::run(machine, &mut self.exchange, storage, deadline, host)?;
        let Ended::Returned(data, len) = ended else {
            // No answer is let through for a response that has begun.
            return Err(Cause::NoResponse);
        };
        if data == 0 || len == 0 {
            self.is_over = true;
            return self.end();
        }
        if len > wanted {
            return Err(invalid(format!(
                "gave {len} bytes, and was asked for {wanted}"
            )));
        }
        let readable = machine.memory.check_readable(data, len);
        readable.map_err(|bad| invalid(format!("gave {len} bytes at {bad}")))?;
        self.written += len;
        if self.written > most {
            let len = self.written;
            return Err(Cause::LongResponse { len, most });
        }
        Ok(Some((data, len)))
    }

    /// The callback has no more.
    fn end(&self) -> Result<Option<(u64, u64)>, Cause> {
        let written = self.written;
        match self.length {
            Some(length) => Err(invalid(format!(
                "ended it after {written} bytes of {length}"
            ))),
            None => Ok(None),
        }
    }

    /// Has the callback be what runs next.
    fn enter(&self, machine: &mut Machine, arguments: [u64; 4]) -> Result<(), Cause> {
        // There the processor may not be able to go at all, which would end the machine.
        if self.callback >= USER_END {
            return Err(invalid(format!("is at {:#x}", self.callback)));
        }
        let rsp = entry::push_frame(machine, self.rsp)
            .map_err(|bad| invalid(format!("has no stack: {bad}")))?;
        let [rdi, rsi, rdx, rcx] = arguments;
        machine.vcpu().set_regs(kvm_regs {
            rip: self.callback,
            rsp,
            rdi,
            rsi,
            rdx,
            rcx,
            rflags: RFLAGS,
            ..Default::default()
        });
        Ok(())
    }
}

fn invalid(what: String) -> Cause {
    Cause::BadResponse(format!("its callback {what}"))
}
