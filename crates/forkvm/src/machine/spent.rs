//! What a machine's work costs.

use std::time::Duration;

/// What a request, or a connection, has cost a fork.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often the machine came back from `KVM_RUN`.
    pub exits: u64,
    /// How long it was in `KVM_RUN`: the program's own time, what KVM did for it, and what the host's scheduler gave to others meanwhile.
    /// No system call, and no wait.
    pub guest: Duration,
    /// Pages of memory that a reset puts back.
    pub pages: u64,
}
