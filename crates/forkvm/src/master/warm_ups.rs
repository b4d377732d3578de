//! When new forks of a program run its warm-up request, and when none is asked to: one that took too long would hold up the
//! making of others each time, but may have been slow by chance.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long none is asked after a first one that failed. After each further one in a row it is twice as long.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How the last ones went.
#[derive(Debug, Default)]
pub struct WarmUps(Mutex<Option<Pause>>);

/// None is asked to until then.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl WarmUps {
    /// Whether a fork is to run it.
    pub fn are_due(&self, now: Instant) -> bool {
        self.0.lock().is_none_or(|pause| now >= pause.until)
    }

    /// One has run.
    pub fn ran(&self) {
        *self.0.lock() = None;
    }

    /// One has not come to its end.
    pub fn failed(&self, now: Instant) {
        let mut pause = self.0.lock();
        let length = pause.map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
        *pause = now.checked_add(length).map(|until| Pause { until, length });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_until_one_runs() {
        let warm_ups = WarmUps::default();
        let mut now = Instant::now();
        assert!(warm_ups.are_due(now));
        for length in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600] {
            warm_ups.failed(now);
            let length = Duration::from_secs(length);
            assert!(!warm_ups.are_due(now + length - Duration::from_nanos(1)));
            now += length;
            assert!(warm_ups.are_due(now));
        }
        warm_ups.ran();
        assert!(warm_ups.are_due(now));
        warm_ups.failed(now);
        assert!(warm_ups.are_due(now + FIRST_PAUSE));
    }
}
