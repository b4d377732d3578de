//! What a pool may have.

use std::time::Duration;

use crate::account::Account;
use crate::pool::queue::Queue;

/// How many forks there may be, for how long, and who waits for one.
#[derive(Debug, Clone)]
pub struct PoolLimits {
    /// Forks at once.
    pub concurrency: usize,
    /// How long one is kept that is not used; the last is kept always.
    pub idle_time: Duration,
    /// Who waits.
    pub queue: Queue,
    /// Where it is counted.
    pub account: Account,
}
