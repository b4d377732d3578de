//! How slowly a body may come: all of it within a time, and never less than a least rate. Varnish's `timeout_idle` bounds the
//! silence between two pieces, but a byte now and then would keep its threads, and the memory that has come so far, for good.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Fewest bytes a second, over each [`WINDOW`].
pub const LEAST_RATE: u64 = 1 << 10;
/// How long a client may come to a stand.
pub const WINDOW: Duration = Duration::from_secs(5);

/// Too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Slow {
    /// The whole.
    #[error("has not come within {0:?} (max_body_time)")]
    Late(Duration),
    /// A part.
    #[error("comes too slowly, {LEAST_RATE} bytes a second over {WINDOW:?} are the least")]
    Trickle,
}

/// Looks at the pieces of a body as they come.
#[derive(Debug)]
pub struct Pace {
    time: Duration,
    start: Instant,
    window: Instant,
    bytes: u64,
}

impl Pace {
    /// For a body that begins now and may take this time.
    pub fn new(time: Duration, now: Instant) -> Self {
        Self {
            time,
            start: now,
            window: now,
            bytes: 0,
        }
    }

    /// A piece came.
    pub fn arrived(&mut self, len: usize, now: Instant) -> Result<(), Slow> {
        if now.saturating_duration_since(self.start) >= self.time {
            return Err(Slow::Late(self.time));
        }
        self.bytes = self.bytes.saturating_add(len as u64);
        let elapsed = now.saturating_duration_since(self.window);
        if elapsed < WINDOW {
            return Ok(());
        }
        if u128::from(self.bytes) * 1000 < u128::from(LEAST_RATE) * elapsed.as_millis() {
            return Err(Slow::Trickle);
        }
        (self.window, self.bytes) = (now, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body that comes in such pieces, so many of them, one in each of these times.
    fn comes(piece: usize, pieces: u32, every: Duration) -> Result<(), Slow> {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(60), start);
        (1..=pieces).try_for_each(|nth| pace.arrived(piece, start + every * nth))
    }

    #[test]
    fn all_of_it_has_a_time() {
        let second = Duration::from_secs(1);
        assert_eq!(comes(1 << 20, 59, second), Ok(()));
        assert_eq!(
            comes(1 << 20, 60, second),
            Err(Slow::Late(Duration::from_secs(60)))
        );
    }

    #[test]
    fn a_trickle_is_refused() {
        let second = Duration::from_secs(1);
        assert_eq!(comes(LEAST_RATE as usize, 59, second), Ok(()));
        assert_eq!(comes(1, 4, second), Ok(()));
        assert_eq!(comes(1, 5, second), Err(Slow::Trickle));
        assert_eq!(
            comes(LEAST_RATE as usize - 1, 5, second),
            Err(Slow::Trickle)
        );
    }

    #[test]
    fn a_burst_does_not_pay_for_a_trickle() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(60), start);
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(pace.arrived(64 << 20, at(1)), Ok(()));
        assert_eq!(pace.arrived(1, at(5)), Ok(()));
        assert_eq!(pace.arrived(1, at(9)), Ok(()));
        assert_eq!(pace.arrived(1, at(10)), Err(Slow::Trickle));
    }
}
