//! Live update: a program's state, handed over to the program that takes its place.
//!
//! The old program's `on_live_update` runs in a fork of its own and gives its state by `storage_return(data, len)`. The
//! new one's `on_live_restore(len)` runs before its freeze, and gives a buffer by the same call, which fills it.

use std::time::{Duration, Instant};

use crate::arch::stubs::HANDLER_RETURNED;
use crate::call::WaitPoint;
use crate::call::handlers::Handlers;
use crate::call::hypercall::{self, STORAGE_NORETURN, STORAGE_RETURN};
use crate::call::stored::Access;
use crate::failure::{BootError, Cause};
use crate::machine::{Event, Machine};
use crate::memory::user::UserMemory;
use crate::request::Host;

/// What the program before hands over.
#[derive(Debug, Default)]
pub struct HandedOver {
    /// Its state, if it has one to hand over.
    pub state: Option<Vec<u8>>,
    /// How long others have kept it from running meanwhile.
    pub kept: Duration,
}

/// Where the state of the program before comes from: asked once the new one's `main()` is done.
pub type Predecessor<'a> = &'a dyn Fn(Instant, &mut dyn Host) -> Result<HandedOver, BootError>;

impl WaitPoint {
    /// Runs `on_live_update` and returns the state that it hands over, `most` bytes at most. `None` if there is no such
    /// handler, or it returns without a state.
    pub fn give_state(
        &self,
        machine: &mut Machine,
        most: u64,
        access: Option<Access<'_>>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<Vec<u8>>, Cause> {
        let Some(handler) = self.handlers.get(Handlers::ON_LIVE_UPDATE) else {
            return Ok(None);
        };
        self.enter_function(machine, handler, [0; 6])?;
        let number = run_until(
            machine,
            access,
            deadline,
            host,
            &[STORAGE_RETURN, STORAGE_NORETURN, HANDLER_RETURNED],
        )?;
        if number == HANDLER_RETURNED {
            return Ok(None);
        }
        let regs = machine.vcpu().regs();
        let (address, len) = (regs.rdi, regs.rsi);
        if len > most {
            return Err(Cause::BadState(format!(
                "it hands over {len} bytes, more than max_memory ({most} bytes) of the new program"
            )));
        }
        // What it would do afterwards is lost with the fork, so it ends here.
        machine
            .memory
            .read_vec(address, len)
            .map(Some)
            .map_err(|bad| Cause::BadState(format!("{len} bytes at {bad}")))
    }

    /// Runs `on_live_restore` with this state.
    pub fn take_state(
        &self,
        machine: &mut Machine,
        state: &[u8],
        access: Option<Access<'_>>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<(), Cause> {
        let Some(handler) = self.handlers.get(Handlers::ON_LIVE_RESTORE) else {
            return Ok(());
        };
        self.enter_function(machine, handler, [state.len() as u64, 0, 0, 0, 0, 0])?;
        let ends = [STORAGE_RETURN, STORAGE_NORETURN, HANDLER_RETURNED];
        let mut taken = false;
        loop {
            let number = run_until(machine, access, deadline, host, &ends)?;
            if number == HANDLER_RETURNED {
                return if taken {
                    Ok(())
                } else {
                    Err(Cause::BadState(
                        "on_live_restore returned without taking it (storage_return)".into(),
                    ))
                };
            }
            let regs = machine.vcpu().regs();
            let len = state
                .len()
                .min(usize::try_from(regs.rsi).unwrap_or(usize::MAX));
            machine
                .memory
                .write(regs.rdi, &state[..len])
                .map_err(|bad| {
                    Cause::BadState(format!(
                        "on_live_restore's buffer of {} bytes at {bad}",
                        regs.rsi
                    ))
                })?;
            taken = true;
            if number == STORAGE_NORETURN {
                return Ok(());
            }
            machine.vcpu().set_result(len as u64);
        }
    }
}

/// Runs a handler up to one of these hypercalls, and serves all others.
fn run_until(
    machine: &mut Machine,
    access: Option<Access<'_>>,
    deadline: Instant,
    host: &mut dyn Host,
    ends: &[u32],
) -> Result<u32, Cause> {
    loop {
        match machine.run(deadline, host)? {
            Event::Hypercall(number) if ends.contains(&number) => return Ok(number),
            Event::Hypercall(number) => {
                let result = hypercall::common(number, machine, access, host)?;
                machine.vcpu().set_result(result as u64);
            }
            Event::SystemCall | Event::Idle(_) | Event::Sent => {}
        }
    }
}
