//! Counters in varnishstat: `KVM.*`, totals over all tenants. Figures for each tenant are in `backend.list -p`.
//!
//! Totals, since a counter of each tenant would be one more contended cache line in every request.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use varnish::{Vsc, VscMetric};

/// The counters, in shared memory.
#[derive(VscMetric)]
#[repr(C)]
pub struct Counters {
    /// Requests for a program, those included that found no fork free
    #[counter]
    pub requests: AtomicU64,
    /// Requests that a program failed: crashed, ran out of time or memory, or gave no response that can be sent
    #[counter]
    pub failures: AtomicU64,
    /// Failures because of max_request_time
    #[counter]
    pub timeouts: AtomicU64,
    /// Requests answered 503, because no fork was free in time or none could be made
    #[counter]
    pub busy: AtomicU64,
    /// Fetches that failed before a program was asked: unknown tenant, program not ready, request body unreadable
    #[counter]
    pub refused: AtomicU64,
    /// Fetches that programs have asked for
    #[counter]
    pub fetches: AtomicU64,
    /// Of these, those that came to nothing
    #[counter]
    pub fetch_failures: AtomicU64,
    /// Programs that became ready
    #[counter]
    pub boots: AtomicU64,
    /// Programs that did not become ready
    #[counter]
    pub boot_failures: AtomicU64,
    /// Boots of programs that had failed before
    #[counter]
    pub boot_retries: AtomicU64,
    /// Live updates and rollbacks
    #[counter]
    pub updates: AtomicU64,
    /// Live updates and rollbacks that failed, and changed nothing
    #[counter]
    pub update_failures: AtomicU64,
    /// Storages that were started again, because they had failed
    #[counter]
    pub storage_restarts: AtomicU64,
    /// Runs of storages' tasks
    #[counter]
    pub storage_tasks: AtomicU64,
    /// Tasks that failed, and were taken off the list
    #[counter]
    pub storage_task_failures: AtomicU64,
}

static COUNTERS: OnceLock<&Counters> = OnceLock::new();

/// Makes the counters known to varnishstat. Called at each VCL load, since they need varnishd's child.
pub fn publish() {
    COUNTERS.get_or_init(|| {
        // They stay as long as the child: a total must not go back to 0 when a VCL is discarded.
        let vsc: &'static Vsc<Counters> = Box::leak(Box::new(Vsc::new("KVM", "")));
        vsc
    });
}

/// Adds one to the counter that `which` picks.
pub fn count(which: fn(&Counters) -> &AtomicU64) {
    if let Some(counters) = COUNTERS.get() {
        which(counters).fetch_add(1, Ordering::Relaxed);
    }
}
