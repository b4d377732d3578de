//! What is counted of a tenant's forks and requests, whichever program they are of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::failure::Cause;
use crate::machine::spent::Spent;

/// A tenant's account. Its clones are one: what is booted with clones of one [`crate::Config`] counts there together, so that an
/// update does not begin it anew.
#[derive(Debug, Clone, Default)]
pub struct Account(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    made: AtomicU64,
    given_up: AtomicU64,
    waits: AtomicU64,
    waited: AtomicU64,
    timeouts: AtomicU64,
    memory_limits: AtomicU64,
    faults: AtomicU64,
    ended: AtomicU64,
    resets: AtomicU64,
    pages: AtomicU64,
    exits: AtomicU64,
    guest: AtomicU64,
}

/// All are equal: what was counted is no setting.
impl PartialEq for Account {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Account {}

/// What has been counted. All of it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Forks made.
    pub made: u64,
    /// Forks given up: idle for long, of no use any more after a request, or of a program that was replaced.
    pub given_up: u64,
    /// Requests that had to wait for a fork, those included that got none.
    pub waits: u64,
    /// How long those waited that got one.
    pub waited: Duration,
    /// Requests that ran out of time.
    pub timeouts: u64,
    /// Requests that ran out of memory.
    pub memory_limits: u64,
    /// Requests that ended by an exception of the processor, such as an access to memory that is not theirs.
    pub faults: u64,
    /// Requests whose program ended itself.
    pub ended: u64,
    /// Forks put back after a request.
    pub resets: u64,
    /// What the requests that are over have cost.
    pub spent: Spent,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Account {
    /// A fork was made.
    pub(crate) fn made(&self) {
        add(&self.0.made, 1);
    }

    /// So many forks were given up.
    pub(crate) fn given_up(&self, forks: usize) {
        add(&self.0.given_up, forks as u64);
    }

    /// A request has to wait.
    pub(crate) fn waits(&self) {
        add(&self.0.waits, 1);
    }

    /// It got its fork after this time.
    pub(crate) fn waited(&self, time: Duration) {
        add(&self.0.waited, nanos(time));
    }

    /// A request ended so.
    pub(crate) fn failed(&self, cause: &Cause) {
        let kind = match cause {
            Cause::Timeout | Cause::DebugTimeout(_) => &self.0.timeouts,
            Cause::MemoryLimit => &self.0.memory_limits,
            Cause::Exception(_) => &self.0.faults,
            Cause::Exit(_) | Cause::Killed(_) => &self.0.ended,
            _ => return,
        };
        add(kind, 1);
    }

    /// A request is over that has cost so much.
    pub(crate) fn spent(&self, spent: Spent) {
        add(&self.0.pages, spent.pages);
        add(&self.0.exits, spent.exits);
        add(&self.0.guest, nanos(spent.guest));
    }

    /// A fork was put back.
    pub(crate) fn reset(&self) {
        add(&self.0.resets, 1);
    }

    /// What has been counted by now.
    pub fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = &*self.0;
        Totals {
            made: get(&counted.made),
            given_up: get(&counted.given_up),
            waits: get(&counted.waits),
            waited: Duration::from_nanos(get(&counted.waited)),
            timeouts: get(&counted.timeouts),
            memory_limits: get(&counted.memory_limits),
            faults: get(&counted.faults),
            ended: get(&counted.ended),
            resets: get(&counted.resets),
            spent: Spent {
                exits: get(&counted.exits),
                guest: Duration::from_nanos(get(&counted.guest)),
                pages: get(&counted.pages),
            },
        }
    }
}
