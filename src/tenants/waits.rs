//! How long a VCL's load waits for others. varnishd's CLI answers nothing meanwhile, and its manager takes a child for dead that says
//! nothing for too long.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a load may wait, in all its calls.
pub struct Waits {
    all: Duration,
    left: Mutex<Duration>,
}

impl Waits {
    /// So long in all.
    pub fn new(all: Duration) -> Self {
        Self {
            all,
            left: Mutex::new(all),
        }
    }

    /// Does something that takes the time that it is told at most: this long, or what is left, which may be nothing.
    pub fn spend<T>(&self, most: Duration, work: impl FnOnce(Duration) -> T) -> T {
        let mut left = self.left.lock();
        let start = Instant::now();
        let done = work(most.min(*left));
        *left = left.saturating_sub(start.elapsed());
        done
    }

    /// What there is to say where nothing is left.
    pub fn over(&self) -> String {
        let all = self.all;
        format!("the load of this VCL has waited {all:?} in all, which is half of cli_timeout")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_wait_no_longer() {
        let waits = Waits::new(Duration::from_secs(60));
        let told = waits.spend(Duration::from_secs(10), |time| time);
        assert_eq!(told, Duration::from_secs(10));
        let told = waits.spend(Duration::from_secs(100), |time| {
            std::thread::sleep(Duration::from_millis(2));
            time
        });
        assert!(told <= Duration::from_secs(60) && told > Duration::from_secs(10));
        let told = waits.spend(Duration::MAX, |time| time);
        assert!(told <= Duration::from_millis(59_998), "{told:?}");
        let none = Waits::new(Duration::ZERO);
        assert_eq!(none.spend(Duration::MAX, |time| time), Duration::ZERO);
    }
}
