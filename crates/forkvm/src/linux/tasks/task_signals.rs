//! What concerns signals of one task: what it blocks, what was sent to it alone, its stack for handlers.

use serde::{Deserialize, Serialize};

use crate::linux::call::Call;
use crate::linux::tasks::pending::{Pending, bit};

/// These two can be neither blocked nor handled.
pub const SIGKILL: i32 = 9;
/// See [`SIGKILL`].
pub const SIGSTOP: i32 = 19;

/// An alternate stack for handlers (sigaltstack(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// `SS_AUTODISARM` was asked for.
    pub autodisarm: bool,
}

impl AltStack {
    /// Whether a stack pointer is in it.
    pub fn holds(&self, rsp: u64) -> bool {
        // A full stack's pointer is its start, an empty one's its end.
        rsp > self.start && rsp - self.start <= self.len
    }
}

/// What concerns one task.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TaskSignals {
    /// What it blocks.
    pub mask: u64,
    /// What it blocks again when the call that it makes is over (rt_sigsuspend(2), ppoll(2)).
    pub after_call: Option<u64>,
    /// Sent to it alone.
    pub pending: Pending,
    /// The stack for handlers that ask for it.
    pub stack: Option<AltStack>,
    /// The call that a signal has interrupted, before it is known whether there is a handler.
    pub interrupted: Option<Call>,
}

impl TaskSignals {
    /// Of a thread that this task makes.
    pub fn of_thread(&self) -> Self {
        Self {
            mask: self.after_call.unwrap_or(self.mask),
            ..Self::default()
        }
    }

    /// Sets what it blocks. These two can't be.
    pub fn set_mask(&mut self, mask: u64) {
        self.mask = mask & !(bit(SIGKILL) | bit(SIGSTOP));
    }

    /// Blocks something else as long as a call takes, which is made again when it has waited.
    pub fn set_mask_for_call(&mut self, mask: u64) {
        self.after_call.get_or_insert(self.mask);
        self.set_mask(mask);
    }
}
