//! What is counted of a storage.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters.
#[derive(Debug, Default)]
pub struct Counters {
    pub calls: AtomicU64,
    pub failures: AtomicU64,
    pub restarts: AtomicU64,
    pub tasks: AtomicU64,
    pub task_failures: AtomicU64,
    pub exits: AtomicU64,
}

/// What is counted of a storage. All only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Calls that had their turn.
    pub calls: u64,
    /// Calls that failed, those included that had none; but not those with pointers or lengths that are no good.
    pub failures: u64,
    /// How often it was started again, because it had failed.
    pub restarts: u64,
    /// Runs of tasks.
    pub tasks: u64,
    /// Of these, those that failed.
    pub task_failures: u64,
    /// How often its machine came back from `KVM_RUN` in calls and tasks.
    pub exits: u64,
}

impl Counters {
    /// What has been counted.
    pub fn stats(&self) -> StorageStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StorageStats {
            calls: get(&self.calls),
            failures: get(&self.failures),
            restarts: get(&self.restarts),
            tasks: get(&self.tasks),
            task_failures: get(&self.task_failures),
            exits: get(&self.exits),
        }
    }
}
