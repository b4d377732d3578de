//! What is behind a descriptor of eventfd(2) or timerfd_create(2). It lies in the open file itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::linux::net::readiness::{ERR, IN, OUT, RDNORM, Readiness, WRNORM};

/// A counter that its readers wait for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EventFd {
    count: u64,
    semaphore: bool,
    arrivals: u64,
    openings: u64,
}

impl EventFd {
    /// The most that it counts to.
    const MOST: u64 = u64::MAX - 1;

    /// One that starts with this; a `semaphore` gives one at a time.
    pub fn new(count: u64, semaphore: bool) -> Self {
        Self {
            count,
            semaphore,
            arrivals: 0,
            openings: 0,
        }
    }

    /// What a read gives now; `None` if it has to wait.
    pub fn peek(&self) -> Option<u64> {
        match self.count {
            0 => None,
            _ if self.semaphore => Some(1),
            count => Some(count),
        }
    }

    /// Takes away what was read.
    pub fn take(&mut self, value: u64) {
        self.count = self.count.saturating_sub(value);
        self.openings = self.openings.wrapping_add(1);
    }

    /// Adds to it, if there is room.
    pub fn add(&mut self, value: u64) -> bool {
        let room = value <= Self::MOST.saturating_sub(self.count);
        if room {
            self.count += value;
            self.arrivals = self.arrivals.wrapping_add(1);
        }
        room
    }

    /// Whether there is room for as much as a program adds that does not mean to fill it.
    pub fn is_far_from_full(&self) -> bool {
        self.count < Self::MOST / 2
    }

    /// What it is ready for.
    pub fn readiness(&self) -> Readiness {
        let mut events = 0;
        if self.count > 0 {
            events |= IN | RDNORM;
        }
        if self.count == u64::MAX {
            events |= ERR;
        }
        if self.count < Self::MOST {
            events |= OUT | WRNORM;
        }
        Readiness {
            events,
            arrivals: self.arrivals,
            openings: self.openings,
        }
    }
}

/// A timer whose readers learn how often it went off.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TimerFd {
    /// Its clock (`CLOCK_*`).
    pub clock: i32,
    /// When it goes off, or went off without anybody having read that.
    #[serde(with = "crate::saved::instant_option")]
    at: Option<Instant>,
    interval: Duration,
    /// How often it was read or set.
    taken: u64,
}

impl TimerFd {
    /// One that is not set.
    pub fn new(clock: i32) -> Self {
        Self {
            clock,
            at: None,
            interval: Duration::ZERO,
            taken: 0,
        }
    }

    /// Sets it. Without a time it is off.
    pub fn set(&mut self, at: Option<Instant>, interval: Duration) {
        self.taken = self.taken.wrapping_add(1);
        self.at = at;
        self.interval = interval;
    }

    /// Has it go off so much later.
    pub fn shift(&mut self, by: Duration) {
        self.at = self.at.map(|at| at.checked_add(by).unwrap_or(at));
    }

    /// How often it went off that nobody has read yet.
    pub fn expirations(&self, now: Instant) -> u64 {
        match self.at {
            Some(at) if at <= now => {
                let passed = now.saturating_duration_since(at).as_nanos();
                let more = passed.checked_div(self.interval.as_nanos()).unwrap_or(0);
                u64::try_from(more)
                    .unwrap_or(u64::MAX - 1)
                    .saturating_add(1)
            }
            _ => 0,
        }
    }

    /// When that becomes true that is not yet: it can be read. One that was not read stays as it is.
    pub fn next_ready(&self, now: Instant) -> Option<Instant> {
        self.at.filter(|at| *at > now)
    }

    /// When it goes off next.
    fn next(&self, now: Instant) -> Option<Instant> {
        let at = self.at?;
        if at > now {
            return Some(at);
        }
        if self.interval.is_zero() {
            return None;
        }
        let interval = self.interval.as_nanos();
        let passed = now.saturating_duration_since(at).as_nanos();
        let left = interval.saturating_sub(passed.checked_rem(interval)?);
        now.checked_add(Duration::from_nanos(
            u64::try_from(left).unwrap_or(u64::MAX),
        ))
    }

    /// Marks as read what it went off.
    pub fn take(&mut self, now: Instant) {
        self.at = self.next(now);
        self.taken = self.taken.wrapping_add(1);
    }

    /// How long it is until it goes off, and after how long it does so again (timerfd_gettime(2)).
    pub fn left(&self, now: Instant) -> (Duration, Duration) {
        let left = self.next(now).map(|at| at.saturating_duration_since(now));
        (left.unwrap_or_default(), self.interval)
    }

    /// What it is ready for.
    pub fn readiness(&self, now: Instant) -> Readiness {
        let over = self.at.is_some_and(|at| at <= now);
        Readiness {
            events: if over { IN | RDNORM } else { 0 },
            // However often it goes off before it is read, that is one edge.
            arrivals: self.taken.wrapping_add(over.into()),
            openings: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_counters() {
        let mut counter = EventFd::new(3, false);
        assert_eq!(counter.peek(), Some(3));
        counter.take(3);
        assert_eq!(counter.peek(), None);
        assert!(counter.add(u64::MAX - 1));
        assert!(!counter.add(1));
        assert_eq!(counter.readiness().events, IN | RDNORM);
        let mut semaphore = EventFd::new(2, true);
        semaphore.take(semaphore.peek().unwrap());
        assert_eq!(semaphore.peek(), Some(1));
    }

    #[test]
    fn timers_count() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut timer = TimerFd::new(1);
        assert_eq!((timer.expirations(start), timer.next(start)), (0, None));
        timer.set(Some(after(10)), Duration::ZERO);
        assert_eq!(timer.next(start), Some(after(10)));
        assert_eq!(timer.expirations(after(500)), 1);
        assert_eq!(timer.next(after(500)), None);
        timer.take(after(500));
        assert_eq!(timer.expirations(after(500)), 0);
        timer.set(Some(after(10)), Duration::from_millis(20));
        assert_eq!(timer.expirations(after(75)), 4);
        timer.take(after(75));
        assert_eq!(timer.next(after(75)), Some(after(90)));
        assert_eq!(timer.left(after(80)).0, Duration::from_millis(10));
        let edges = |millis| timer.readiness(after(millis)).arrivals;
        assert_eq!((edges(90) - edges(80), edges(500)), (1, edges(90)));
        assert_eq!(timer.next_ready(after(80)), Some(after(90)));
        assert_eq!(timer.next_ready(after(90)), None);
    }
}
