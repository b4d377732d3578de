//! The dispatcher: ring-3 code of ours in the guest of an unmodified program, where its system calls arrive first. What the
//! host has said before it may answer, it answers without an exit; what changes anything it puts into a queue as well, which the host
//! carries out at the next exit. All else leaves as it would have without it, with all registers as they were.
//!
//! It is the program's own as far as trust goes: what it says the host takes for calls of the program's. It uses no stack
//! of the program's, whose red zone stays whole, and changes no vector register.

mod code;
mod offer;
mod places;

pub use code::{addresses, code};
pub use offer::Offer;
pub use places::{
    ACCEPTABLE, FUTEXES_KNOWN, INET, INPUT, INPUT_LEN, MOST_ALIKE, MOST_QUEUED, NEVER_BLOCKS,
    NO_SIGNALS, NONE_WAITS, OTHERS_QUIET, OUTPUT_LEN, QUEUE, QUEUED, QUEUED_LEN, REGISTERS, STATE,
    STATUS, UNTOLD, WATCHED, Way, address,
};
