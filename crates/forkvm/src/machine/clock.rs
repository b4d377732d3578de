//! The page from which the vDSO tells the time ([`vdso`]): how fast the processor's counter runs, and what all clocks said at
//! one of its values. It is each machine's own, not part of what a reset undoes, and is anchored anew when a connection begins:
//! however long ago the freeze was, the time of day is right, and CLOCK_MONOTONIC goes on from there.

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use crate::arch::layout::CLOCK;
use crate::arch::vdso::{self, ClockData};
use crate::linux::Ahead;
use crate::memory::mapping::{Mapping, OutOfRange};

/// After so long the page is anchored anew at an exit: an error of the rate of 100 ppm is 1 us by then.
const STALE: u64 = 10_000_000;
/// The rate is measured over a window of one to two of these, so that it follows the kernel's own (adjtimex(2)).
const WINDOW: u64 = 60_000_000_000;
/// A window shorter than this says too little: the time it takes to read both clocks is 100 ppm of it.
const LEAST: u64 = 1_000_000;
/// Rates of successive windows that differ by more than one part in so many are not those of one counter: the machine was
/// suspended, or moved to another one.
const PLAUSIBLE: u64 = 1000;
/// How often two clocks are read to find them close together: a thread may be interrupted in between.
const TRIES: usize = 4;

/// So close together no more is tried, in nanoseconds.
const CLOSE: u64 = 1000;

/// The counter and CLOCK_MONOTONIC, in nanoseconds, at one moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    counter: u64,
    monotonic: u64,
}

impl Moment {
    fn now() -> Self {
        let read = || {
            let before = vdso::counter();
            let monotonic = nanos(ClockId::Monotonic);
            let after = vdso::counter();
            let moment = Self {
                counter: before + after.saturating_sub(before) / 2,
                monotonic,
            };
            (after.saturating_sub(before), moment)
        };
        let mut best = read();
        for _ in 1..TRIES {
            let again = read();
            if again.0 < best.0 {
                best = again;
            }
        }
        best.1
    }

    /// Nanoseconds a tick since then, times 2^32. `None` if that says too little.
    fn rate_until(self, now: Self) -> Option<u64> {
        let ticks = now.counter.checked_sub(self.counter).filter(|&n| n > 0)?;
        let time = now.monotonic.checked_sub(self.monotonic)?;
        let rate = (u128::from(time) << 32) / u128::from(ticks);
        (time >= LEAST).then(|| u64::try_from(rate).ok())?
    }
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// How much another clock is ahead of CLOCK_MONOTONIC, modulo 2^64 nanoseconds.
fn ahead_of_monotonic(clock: ClockId) -> u64 {
    let read = || {
        let before = nanos(ClockId::Monotonic);
        let other = nanos(clock);
        let took = nanos(ClockId::Monotonic).saturating_sub(before);
        (took, other.wrapping_sub(before + took / 2))
    };
    let mut best = read();
    for _ in 1..TRIES {
        if best.0 <= CLOSE {
            break;
        }
        best = best.min(read());
    }
    best.1
}

/// How fast the counter runs.
#[derive(Debug)]
pub struct Calibration(Mutex<Window>);

#[derive(Debug)]
struct Window {
    /// Where the rate is measured from, and where it will be afterwards.
    starts: [Moment; 2],
    /// The last one. 0 before there is one.
    rate: u64,
    /// It did not hold.
    broken: bool,
}

impl Calibration {
    /// Begins to measure.
    pub fn new() -> Self {
        Self(Mutex::new(Window {
            starts: [Moment::now(); 2],
            rate: 0,
            broken: false,
        }))
    }

    /// The rate now. `None` if it is not known yet, or the counter can't be trusted.
    fn rate(&self, now: Moment) -> Option<u64> {
        self.0.lock().rate(now)
    }
}

impl Window {
    fn rate(&mut self, now: Moment) -> Option<u64> {
        if self.broken {
            return None;
        }
        let rate = self.starts[0].rate_until(now)?;
        if self.rate != 0 && self.rate.abs_diff(rate) > self.rate / PLAUSIBLE {
            self.broken = true;
            return None;
        }
        self.rate = rate;
        if now.monotonic.saturating_sub(self.starts[1].monotonic) >= WINDOW {
            self.starts = [self.starts[1], now];
        }
        Some(rate)
    }
}

/// A machine's page.
#[derive(Debug)]
pub struct GuestClock {
    calibration: &'static Calibration,
    /// How far the program's clocks are ahead of the host's.
    ahead: Ahead,
    last: ClockData,
    /// The counter's value from which on it is to be anchored anew.
    stale: u64,
}

impl GuestClock {
    /// One that has nothing yet: programs ask by the system call. The program's clocks are so far `ahead` of the host's.
    pub fn new(calibration: &'static Calibration, ahead: Ahead) -> Self {
        Self {
            calibration,
            ahead,
            // What a task has read of the master's page when it was frozen is not what it finds again.
            last: ClockData {
                sequence: vdso::counter() as u32,
                ..Default::default()
            },
            stale: 0,
        }
    }

    /// Anchors the page of this memory, for a program that has not read it and whose clocks are so far ahead of the host's: what
    /// was there may have been wrong by any amount.
    pub fn anchor(&mut self, memory: &Mapping, ahead: Ahead) -> Result<(), OutOfRange> {
        self.ahead = ahead;
        self.write(memory, Moment::now(), 0)
    }

    /// Anchors it if that is due. No clock of the program's goes back by it.
    pub fn keep(&mut self, memory: &Mapping) -> Result<(), OutOfRange> {
        // Before its last value as well: the machine was suspended, or moved to another one.
        if (self.last.tsc..self.stale).contains(&vdso::counter()) {
            return Ok(());
        }
        let now = Moment::now();
        let ticks = now.counter.saturating_sub(self.last.tsc);
        let since = (u128::from(ticks) * u128::from(self.last.rate)) >> 32;
        let told = self
            .last
            .monotonic
            .saturating_add(u64::try_from(since).unwrap_or(u64::MAX));
        self.write(memory, now, told)
    }

    /// Anchors it at this moment; the monotonic clock is at least `told`.
    fn write(&mut self, memory: &Mapping, now: Moment, told: u64) -> Result<(), OutOfRange> {
        let rate = self.calibration.rate(now);
        let monotonic = now.monotonic.wrapping_add(self.ahead.monotonic);
        // Not behind what the program was told.
        let corrected = told.saturating_sub(monotonic);
        // The other clocks at that moment, by what they differ from the host's first.
        let other = |clock| {
            let differs = ahead_of_monotonic(clock);
            now.monotonic.wrapping_add(differs).wrapping_add(corrected)
        };
        self.last = ClockData {
            sequence: match rate {
                Some(_) => self.last.sequence.wrapping_add(1).max(1),
                None => 0,
            },
            tsc: now.counter,
            rate: rate.unwrap_or(0),
            real: other(ClockId::Realtime),
            monotonic: monotonic.wrapping_add(corrected),
            boot: other(ClockId::Boottime).wrapping_add(self.ahead.boot),
        };
        let ticks = (u128::from(STALE) << 32) / u128::from(rate.unwrap_or(1 << 32).max(1));
        self.stale = now
            .counter
            .saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX));
        memory.write(CLOCK, &self.last.to_bytes())
    }
}

/// Whether the kernel itself takes the processor's counter for a clock.
pub fn kernel_trusts_counter() -> bool {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    /// CPUID.80000007H:EDX bit 8: the counter's rate does not change (Intel SDM Vol. 3B, 19.17.1).
    const INVARIANT: u32 = 1 << 8;
    let invariant = || {
        let last = std::arch::x86_64::__cpuid(0x8000_0000).eax;
        last >= 0x8000_0007 && std::arch::x86_64::__cpuid(0x8000_0007).edx & INVARIANT != 0
    };
    match std::fs::read_to_string(SOURCE).as_deref().map(str::trim) {
        Ok("tsc") => true,
        // They are made of it, but might correct for more.
        Ok("kvm-clock" | "hyperv_clocksource_tsc_page") => invariant(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// At 2.5 GHz.
    fn at(time: u64) -> Moment {
        Moment {
            counter: time / 2 * 5,
            monotonic: time,
        }
    }

    fn window() -> Window {
        Window {
            starts: [at(0); 2],
            rate: 0,
            broken: false,
        }
    }

    const RATE: u64 = (1 << 32) / 5 * 2;

    /// Also where a thread is interrupted between one clock and the next, which then are tens of milliseconds apart: by as many
    /// others as there are. Apart by less is what a host may make of it that takes the processor away.
    #[test]
    fn clocks_are_read_close_together() {
        const MOST: u64 = 10_000_000;
        let until = std::time::Instant::now() + Duration::from_secs(1);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || {
                    let mut all = Vec::new();
                    while std::time::Instant::now() < until {
                        all.push(ahead_of_monotonic(ClockId::Realtime));
                    }
                    let (first, last) = (all.iter().min().unwrap(), all.iter().max().unwrap());
                    assert!(last - first < MOST, "{}", last - first);
                });
            }
        });
    }

    #[test]
    fn the_rate_is_what_the_window_says() {
        let mut window = window();
        assert_eq!(window.rate(at(LEAST / 2)), None);
        for time in [
            LEAST,
            2 * LEAST,
            WINDOW,
            3 * WINDOW,
            3 * WINDOW + 1,
            9 * WINDOW,
        ] {
            assert!(window.rate(at(time)).unwrap().abs_diff(RATE) < 4, "{time}");
        }
        assert_eq!(window.starts[0].monotonic, 3 * WINDOW);
    }

    #[test]
    fn another_counter_is_not_trusted_any_more() {
        let mut window = window();
        window.rate(at(WINDOW)).unwrap();
        let stood_still = Moment {
            counter: at(WINDOW).counter,
            monotonic: 2 * WINDOW,
        };
        assert_eq!(window.rate(stood_still), None);
        assert_eq!(window.rate(at(3 * WINDOW)), None);
    }

    #[test]
    fn a_program_sees_no_clock_go_back() {
        static CALIBRATION: std::sync::LazyLock<Calibration> =
            std::sync::LazyLock::new(Calibration::new);
        let memory = crate::memory::testing::with_space();
        let mut clock = GuestClock::new(&CALIBRATION, Ahead::default());
        std::thread::sleep(Duration::from_nanos(2 * LEAST));
        clock.anchor(memory.mapping(), Ahead::default()).unwrap();
        let first = clock.last.sequence;
        assert_ne!(first, 0);
        let real = clock.last.real - clock.last.monotonic;
        // A rate that is too fast by a tenth.
        clock.last.rate += clock.last.rate / 10;
        std::thread::sleep(Duration::from_nanos(2 * STALE));
        let before = clock.last.monotonic;
        clock.keep(memory.mapping()).unwrap();
        assert_eq!(clock.last.sequence, first.wrapping_add(1).max(1));
        assert!(clock.last.monotonic - before > 2 * STALE / 10 * 11);
        let off = real.abs_diff(clock.last.real - clock.last.monotonic);
        assert!(off < 1_000_000_000, "{off}");
        // Until it is due again, nothing is written.
        clock.stale = u64::MAX;
        clock.keep(memory.mapping()).unwrap();
        assert_eq!(clock.last.sequence, first.wrapping_add(1).max(1));
    }
}
