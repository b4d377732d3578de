//! Calls that are not carried out, of which the program goes on with a number.

use std::fmt::Display;

use crate::machine::Machine;
use crate::request::{Host, Stream};

/// What a call gives that was not carried out. Its author is told why in the program's log.
pub fn failed(
    machine: &Machine,
    host: &mut dyn Host,
    call: &str,
    why: &dyn Display,
    errno: i64,
) -> i64 {
    // The next look at its memory ends the request, and says so.
    if !machine.over_memory_limit() {
        let line = format!("{call}() failed: {why}");
        host.output(Stream::Log, line.as_bytes());
    }
    errno
}
