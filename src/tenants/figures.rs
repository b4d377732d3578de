//! What is counted of a tenant's requests, whatever program it has.
#![forbid(unsafe_code)]

use std::array;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The first bucket of latencies has those up to 2^6 µs; each other twice as long ones.
const FIRST: u32 = 6;
/// How many buckets there are, of which the last has what is longer than 2^24 µs.
pub const BUCKETS: usize = 20;

/// All only grow.
#[derive(Debug, Default)]
pub struct Figures {
    /// Requests handed to a program.
    pub requests: AtomicU64,
    /// Requests that the program failed.
    pub failures: AtomicU64,
    /// Requests turned away since nobody had room for them.
    pub busy: AtomicU64,
    /// Bytes of requests' bodies that programs got, and of responses' bodies that Varnish got.
    pub received: AtomicU64,
    pub sent: AtomicU64,
    /// Live updates and rollbacks, and those that failed.
    pub updates: AtomicU64,
    pub update_failures: AtomicU64,
    pub rollbacks: AtomicU64,
    statuses: [AtomicU64; 4],
    latencies: [AtomicU64; BUCKETS],
    /// All latencies together, in microseconds.
    latency: AtomicU64,
    recent: Mutex<Recent>,
}

/// For how many seconds it is known how many requests came in each.
pub const SECONDS: usize = 60;

/// Requests in the last seconds.
#[derive(Debug, Default)]
struct Recent {
    /// All requests when it was looked last.
    before: u64,
    /// The last one is the latest.
    each: VecDeque<u64>,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds so many.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// One of them now.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Figures {
    /// Counts an answer with this status, whose head was there after so long.
    pub fn answered(&self, status: u16, after: Duration) {
        let class = usize::from(status / 100).checked_sub(2);
        if let Some(counter) = class.and_then(|class| self.statuses.get(class)) {
            count(counter);
        }
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        count(&self.latencies[bucket(micros)]);
        add(&self.latency, micros);
    }

    /// How many answers had a status from 200, 300, 400 and 500 on.
    pub fn statuses(&self) -> [u64; 4] {
        array::from_fn(|at| get(&self.statuses[at]))
    }

    /// How many answers took how long: each bucket has those that are in none before it.
    pub fn latencies(&self) -> [u64; BUCKETS] {
        array::from_fn(|at| get(&self.latencies[at]))
    }

    /// A second is over.
    pub fn tick(&self) {
        let requests = get(&self.requests);
        let mut recent = self.recent.lock();
        let more = requests.saturating_sub(recent.before);
        recent.before = requests;
        if recent.each.len() == SECONDS {
            recent.each.pop_front();
        }
        recent.each.push_back(more);
    }

    /// How many requests came in each of the last [`SECONDS`], the latest last; fewer of a young tenant.
    pub fn recent(&self) -> Vec<u64> {
        self.recent.lock().each.iter().copied().collect()
    }

    /// How long all answers took together.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(get(&self.latency))
    }
}

/// The longest that a bucket has, in microseconds. `None`: the last has all that is longer.
pub fn upper(bucket: usize) -> Option<u64> {
    (bucket + 1 < BUCKETS).then(|| 1 << (FIRST as usize + bucket))
}

fn bucket(micros: u64) -> usize {
    let above = micros.saturating_sub(1) >> FIRST;
    let bits = u64::BITS - above.leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_what_is_no_longer_than_its_bound() {
        for at in 0..BUCKETS {
            let Some(most) = upper(at) else { continue };
            assert_eq!((bucket(most), bucket(most + 1)), (at, at + 1), "{most}");
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn answers_are_counted_by_status_and_time() {
        let figures = Figures::default();
        for status in [100, 200, 204, 301, 404, 599, 600] {
            figures.answered(status, Duration::from_micros(100));
        }
        assert_eq!(figures.statuses(), [2, 1, 1, 1]);
        assert_eq!(figures.latencies()[1], 7);
        assert_eq!(figures.latency(), Duration::from_micros(700));
    }
}
