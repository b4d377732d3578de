//! What is counted of a program's requests.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::account::Account;
use crate::failure::{Cause, Failure};
use crate::storage::StorageStats;

/// Only grow.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub timeouts: AtomicU64,
    pub busy: AtomicU64,
    /// What else is counted, for all programs of the tenant.
    account: Account,
}

/// A program's counters. All but `forks`, `idle` and `waiting` only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forks there are, in use or idle.
    pub forks: u64,
    /// Forks waiting for a request.
    pub idle: u64,
    /// Forks made so far.
    pub created: u64,
    /// Requests that wait for a fork.
    pub waiting: u64,
    /// Requests that reached a fork.
    pub requests: u64,
    /// Requests that failed in the guest.
    pub failures: u64,
    /// Of these, the ones that ran out of time.
    pub timeouts: u64,
    /// Requests turned away because all forks were busy, or too many requests waited for one.
    pub busy: u64,
    /// Those of its storage, if it has that.
    pub storage: Option<StorageStats>,
}

impl Counters {
    /// All 0, beside a tenant's account.
    pub fn of(account: Account) -> Self {
        Self {
            account,
            ..Self::default()
        }
    }

    /// Counts a request that got no fork.
    pub fn refused(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that the guest failed.
    pub fn failed(&self, cause: Cause, what: String) -> Failure {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.account.failed(&cause);
        let failure = Failure::Guest { cause, what };
        if failure.is_timeout() {
            self.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        failure
    }

    /// What has been counted, without forks.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            requests: get(&self.requests),
            failures: get(&self.failures),
            timeouts: get(&self.timeouts),
            busy: get(&self.busy),
            ..Stats::default()
        }
    }
}
