//! A function of the program's that runs for a request until it returns, or answers.

use std::time::Instant;

use crate::arch::stubs::HANDLER_RETURNED;
use crate::call::http::Exchange;
use crate::call::hypercall::{self, Outcome, Response};
use crate::call::stored::Stored;
use crate::failure::Cause;
use crate::machine::{Event, Machine};
use crate::request::Host;

/// How it ended.
pub enum Ended {
    /// It returned this, in RAX and RDX.
    Returned(u64, u64),
    /// It answered the request.
    Responded(Response),
}

/// Runs what the vCPU points at, which may call this storage.
pub fn run(
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
    storage: Option<&dyn Stored>,
    deadline: Instant,
    host: &mut dyn Host,
) -> Result<Ended, Cause> {
    loop {
        let Event::Hypercall(number) = machine.run(deadline, host)? else {
            continue;
        };
        if number == HANDLER_RETURNED {
            let regs = machine.vcpu().regs();
            return Ok(Ended::Returned(regs.rdi, regs.rdx));
        }
        match hypercall::during_request(number, machine, exchange, storage, host)? {
            Outcome::Return(result) => machine.vcpu().set_result(result as u64),
            Outcome::Respond(response) => return Ok(Ended::Responded(response)),
        }
    }
}
