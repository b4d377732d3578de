//! A request's way into a frozen program and out again: it enters by one of the ways in, and the program's hypercalls are
//! served until it responds.

mod copied;
mod entry;
mod failed;
mod fetch;
mod fetches;
mod function;
pub mod handlers;
pub mod http;
pub mod hypercall;
mod part;
pub mod post;
mod regex;
pub mod storage;
pub mod stored;
pub mod stream;
mod structure;
mod wait_point;

use std::time::Instant;

pub use wait_point::{Circumstances, WaitPoint, WayIn};

use crate::call::function::Ended;
use crate::call::http::Exchange;
use crate::call::hypercall::Response;
use crate::debug::{Debugger, Start};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::request::Host;

impl WaitPoint {
    /// Runs a request up to its response, inside of [`Machine::watched`] with the same deadline.
    pub fn call(
        &self,
        machine: &mut Machine,
        exchange: &mut Exchange<'_>,
        circumstances: Circumstances<'_>,
        deadline: Instant,
        host: &mut dyn Host,
        debugger: Option<&mut Debugger<'_>>,
    ) -> Result<Response, Cause> {
        let entry = self.enter(machine, exchange, circumstances)?;
        if let Some(debugger) = debugger {
            let start = Start {
                entry,
                events: self.events,
            };
            return debugger.run(machine, exchange, start, deadline, host);
        }
        let storage = exchange.storage;
        match function::run(machine, exchange, storage, deadline, host)? {
            Ended::Responded(response) => Ok(response),
            Ended::Returned(..) => Err(Cause::NoResponse),
        }
    }
}
