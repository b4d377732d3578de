//! Clocks and sleeping: clock_gettime(2), gettimeofday(2), nanosleep(2), times(2) and their relatives.

use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime as host_clock};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use crate::linux::abi::{Guest, Layout, Reply, Value, field_u64, flags, int};
use crate::linux::call::{Call, Outcome};
use crate::memory::user::UserMemory;

const NANOS: i64 = 1_000_000_000;
const TIMER_ABSTIME: u32 = 1;
/// `CLK_TCK`, which is 100 for every program (sysconf(3)).
const TICKS: i64 = 100;

/// When the program started, and how much of the time since it had nothing to do: all clocks are the host's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Clocks {
    /// By the program's own CLOCK_MONOTONIC.
    start: Duration,
    idle: Duration,
    /// How far the program's CLOCK_MONOTONIC is ahead of the host's, modulo 2^64 nanoseconds: one that comes from a snapshot goes on
    /// where it was, whatever the host's says by now.
    ahead: u64,
    /// How long the program was frozen, which is to it what suspension is to a machine: CLOCK_MONOTONIC does not count it and
    /// CLOCK_BOOTTIME does (clock_gettime(2)). Else all that a runtime has planned for later, such as a collection of its heap,
    /// would be due at once in every request of an old master's.
    frozen: Duration,
}

impl Clocks {
    /// Clocks of a program that starts now.
    pub fn new() -> Self {
        Self {
            start: since_epoch(host_clock(ClockId::Monotonic)),
            idle: Duration::ZERO,
            ahead: 0,
            frozen: Duration::ZERO,
        }
    }

    /// How far the program's CLOCK_MONOTONIC and its CLOCK_BOOTTIME are ahead of the host's.
    pub fn ahead(&self) -> Ahead {
        Ahead {
            monotonic: self.ahead.wrapping_sub(nanos(self.frozen)),
            boot: self.ahead,
        }
    }

    /// The program was frozen for so long, and goes on now.
    pub fn add_frozen(&mut self, time: Duration) {
        self.frozen = self.frozen.saturating_add(time);
    }

    /// The program's CLOCK_MONOTONIC.
    pub fn monotonic(&self) -> Duration {
        shifted(host_clock(ClockId::Monotonic), self.ahead().monotonic)
    }

    /// Has the program's CLOCK_MONOTONIC say this now.
    pub fn set_monotonic(&mut self, now: Duration) {
        let host = nanos(since_epoch(host_clock(ClockId::Monotonic)));
        self.ahead = nanos(now).wrapping_sub(host);
        self.frozen = Duration::ZERO;
    }

    /// What is told as the processor's time, of the process and of its threads: the time since the start in which not all of
    /// them waited. A fork's own would be that of whichever host thread carries it and could go backwards; this is
    /// monotonic and never too little.
    pub fn used(&self) -> Duration {
        self.running().saturating_sub(self.idle)
    }

    /// All threads have waited for so long.
    pub fn add_idle(&mut self, time: Duration) {
        self.idle = self.idle.saturating_add(time);
    }

    /// How long it is until a clock says this.
    pub fn until(&self, clock: u64, then: Duration) -> Result<Duration, Errno> {
        Ok(between(self.now(clock)?, timespec(then)))
    }

    /// Time since the start.
    pub fn running(&self) -> Duration {
        self.monotonic().saturating_sub(self.start)
    }

    /// The time of a `CLOCK_*` (time.h), if there is such a clock.
    pub fn now(&self, clock: u64) -> Result<Timespec, Errno> {
        Ok(match clock_id(clock) {
            Some(Clock::Realtime) => host_clock(ClockId::Realtime),
            Some(Clock::Monotonic) => timespec(self.monotonic()),
            Some(Clock::Boot) => {
                timespec(shifted(host_clock(ClockId::Boottime), self.ahead().boot))
            }
            Some(Clock::Cpu) => timespec(self.used()),
            None => return Err(Errno::INVAL),
        })
    }
}

/// How far clocks of the program's are ahead of the host's, modulo 2^64 nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    /// CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// CLOCK_BOOTTIME.
    pub boot: u64,
}

enum Clock {
    Realtime,
    Monotonic,
    Boot,
    Cpu,
}

fn clock_id(clock: u64) -> Option<Clock> {
    Some(match int(clock) {
        // REALTIME and REALTIME_COARSE, which may be finer than its name. TAI's offset is not set up anywhere.
        0 | 5 | 11 => Clock::Realtime,
        // MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE.
        1 | 4 | 6 => Clock::Monotonic,
        // PROCESS_CPUTIME_ID, THREAD_CPUTIME_ID, and the clocks of clock_getcpuclockid(3).
        2 | 3 | i32::MIN..=-1 => Clock::Cpu,
        // BOOTTIME.
        7 => Clock::Boot,
        _ => return None,
    })
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the program is told where a clock of the host's says this, and its own is so far ahead.
fn shifted(host: Timespec, ahead: u64) -> Duration {
    Duration::from_nanos(nanos(since_epoch(host)).wrapping_add(ahead))
}

/// A time that is not before its clock's beginning.
fn since_epoch(time: Timespec) -> Duration {
    let epoch = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    between(epoch, time)
}

/// The time from `earlier` to `later`, zero if that is past.
fn between(earlier: Timespec, later: Timespec) -> Duration {
    let nanos =
        |time: Timespec| i128::from(time.tv_sec) * i128::from(NANOS) + i128::from(time.tv_nsec);
    let difference = nanos(later).saturating_sub(nanos(earlier)).max(0);
    Duration::from_nanos(u64::try_from(difference).unwrap_or(u64::MAX))
}

/// `struct timespec`: seconds, nanoseconds.
pub fn timespec_bytes(time: Timespec) -> Layout<16> {
    Layout::new().i64(0, time.tv_sec).i64(8, time.tv_nsec)
}

/// `struct timeval`: seconds, microseconds.
pub fn timeval_bytes(time: Timespec) -> Layout<16> {
    Layout::new()
        .i64(0, time.tv_sec)
        .i64(8, time.tv_nsec / 1000)
}

/// `struct timespec` of a duration.
pub fn timespec_bytes_of(time: Duration) -> Layout<16> {
    timespec_bytes(timespec(time))
}

/// `struct timeval` of one.
pub fn timeval_bytes_of(time: Duration) -> Layout<16> {
    Layout::new()
        .u64(0, time.as_secs())
        .u64(8, time.subsec_micros().into())
}

fn read_timespec(guest: &Guest<'_>, address: u64) -> Result<Timespec, Errno> {
    let bytes: [u8; 16] = guest.read(address)?;
    let time = Timespec {
        tv_sec: field_u64(&bytes, 0).cast_signed(),
        tv_nsec: field_u64(&bytes, 8).cast_signed(),
    };
    if time.tv_sec < 0 || !(0..NANOS).contains(&time.tv_nsec) {
        Err(Errno::INVAL)
    } else {
        Ok(time)
    }
}

/// A relative time of the program, from a `struct timespec`.
pub fn read_duration(guest: &Guest<'_>, address: u64) -> Result<Duration, Errno> {
    let time = read_timespec(guest, address)?;
    Ok(between(
        Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        time,
    ))
}

/// A `struct itimerspec`: interval and value.
pub fn read_timespec_pair(guest: &Guest<'_>, address: u64) -> Result<(Duration, Duration), Errno> {
    let second = address.checked_add(16).ok_or(Errno::FAULT)?;
    Ok((
        read_duration(guest, address)?,
        read_duration(guest, second)?,
    ))
}

/// A relative time of the program, from a `struct timeval`.
pub fn read_timeval(guest: &Guest<'_>, address: u64) -> Result<Duration, Errno> {
    let bytes: [u8; 16] = guest.read(address)?;
    let (seconds, micros) = (
        field_u64(&bytes, 0).cast_signed(),
        field_u64(&bytes, 8).cast_signed(),
    );
    let seconds = u64::try_from(seconds).map_err(|_| Errno::INVAL)?;
    let micros = u64::try_from(micros).map_err(|_| Errno::INVAL)?;
    Ok(Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros)))
}

/// A `struct itimerval`: interval and value.
pub fn read_timeval_pair(guest: &Guest<'_>, address: u64) -> Result<(Duration, Duration), Errno> {
    let second = address.checked_add(16).ok_or(Errno::FAULT)?;
    for at in [address, second] {
        let micros = guest.read_u64(at.checked_add(8).ok_or(Errno::FAULT)?)?;
        if micros >= 1_000_000 {
            return Err(Errno::INVAL);
        }
    }
    Ok((read_timeval(guest, address)?, read_timeval(guest, second)?))
}

/// The time left until an absolute time of the program.
pub fn read_deadline(
    clocks: &Clocks,
    guest: &Guest<'_>,
    clock: u64,
    address: u64,
) -> Result<Duration, Errno> {
    let deadline = read_timespec(guest, address)?;
    Ok(between(clocks.now(clock)?, deadline))
}

/// clock_gettime(2)
pub fn clock_gettime(clocks: &Clocks, guest: &mut Guest<'_>, clock: u64, address: u64) -> Value {
    let now = clocks.now(clock)?;
    guest.write(address, timespec_bytes(now).done())?;
    Ok(0)
}

/// clock_getres(2)
pub fn clock_getres(guest: &mut Guest<'_>, clock: u64, address: u64) -> Value {
    clock_id(clock).ok_or(Errno::INVAL)?;
    guest.write_unless_null(
        address,
        timespec_bytes(Timespec {
            tv_sec: 0,
            tv_nsec: 1,
        })
        .done(),
    )?;
    Ok(0)
}

/// gettimeofday(2); the time zone is UTC.
pub fn gettimeofday(guest: &mut Guest<'_>, address: u64, zone: u64) -> Value {
    guest.write_unless_null(address, timeval_bytes(host_clock(ClockId::Realtime)).done())?;
    guest.write_unless_null(zone, Layout::<8>::new().done())?;
    Ok(0)
}

/// time(2)
pub fn time(guest: &mut Guest<'_>, address: u64) -> Value {
    let seconds = host_clock(ClockId::Realtime).tv_sec;
    guest.write_unless_null(address, &seconds.to_le_bytes())?;
    Ok(seconds)
}

/// times(2): what the process has used, and the time since some moment in the past.
pub fn times(clocks: &Clocks, guest: &mut Guest<'_>, address: u64) -> Value {
    let ticks =
        |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX) / (1000 / TICKS);
    // struct tms: user, system, and those of children.
    let used = Layout::<32>::new().i64(0, ticks(clocks.used()));
    guest.write_unless_null(address, used.done())?;
    Ok(ticks(clocks.monotonic()))
}

/// nanosleep(2). What a signal leaves of it is written by [`write_rest`].
pub fn nanosleep(guest: &Guest<'_>, address: u64) -> Reply {
    Ok(Outcome::sleep(read_duration(guest, address)?))
}

/// What a signal has left of a sleep, where the call asks for that.
pub fn write_rest(memory: &mut dyn UserMemory, call: Call, left: Option<Duration>) {
    let [_, how, _, of_clock, ..] = call.args;
    let address = match usize::try_from(call.number).ok().and_then(Sysno::new) {
        Some(Sysno::nanosleep) => how,
        Some(Sysno::clock_nanosleep) if flags(how) & TIMER_ABSTIME == 0 => of_clock,
        _ => 0,
    };
    if let Some(left) = left.filter(|_| address != 0) {
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        let rest = Timespec {
            tv_sec: seconds,
            tv_nsec: left.subsec_nanos().into(),
        };
        // Where that is no place of the program's, it has to do without.
        let _ = memory.write(address, timespec_bytes(rest).done());
    }
}

/// clock_nanosleep(2)
pub fn clock_nanosleep(
    clocks: &Clocks,
    guest: &Guest<'_>,
    clock: u64,
    how: u64,
    address: u64,
) -> Reply {
    if clock_id(clock).is_none() {
        return Err(Errno::INVAL);
    }
    // CLOCK_THREAD_CPUTIME_ID, which would not go on meanwhile.
    if int(clock) == 3 {
        return Err(Errno::OPNOTSUPP);
    }
    let duration = if flags(how) & TIMER_ABSTIME != 0 {
        read_deadline(clocks, guest, clock, address)?
    } else {
        read_duration(guest, address)?
    };
    Ok(Outcome::sleep(duration))
}

/// getitimer(2), and setitimer(2) where it only disarms: there is no timer, which is what zeros say. Arming one fails,
/// because its signal could not be delivered.
pub fn no_itimer(guest: &mut Guest<'_>, new: Option<u64>, old: u64) -> Value {
    if let Some(new) = new.filter(|new| *new != 0) {
        let wanted: [u8; 32] = guest.read(new)?;
        if field_u64(&wanted, 16) != 0 || field_u64(&wanted, 24) != 0 {
            return Err(Errno::NOSYS);
        }
    }
    guest.write_unless_null(old, Layout::<32>::new().done())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    /// What a program was told before it was frozen is not ahead of what it is told afterwards, wherever that is.
    #[test]
    fn monotonic_time_goes_on_from_where_it_was() {
        for then in [0, 1, 1_000_000_000] {
            let then = std::time::Duration::from_secs(then);
            let mut clocks = super::Clocks::new();
            clocks.set_monotonic(then);
            let most = then + std::time::Duration::from_secs(600);
            for clock in [1, 4, 6] {
                let now = clocks.now(clock).unwrap();
                let now = super::since_epoch(now);
                assert!(then <= now && now < most, "{clock}: {now:?}");
            }
            assert!(clocks.monotonic() < most);
        }
    }

    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn clocks_tell_the_hosts_time() {
        let mut machine = Machine::new(Vec::new());
        for clock in [0, 1, 2, 3, 4, 5, 6, 7, 11] {
            assert_eq!(
                machine.call(Sysno::clock_gettime, &[clock, SCRATCH]),
                0,
                "{clock}"
            );
        }
        assert_eq!(machine.call(Sysno::clock_gettime, &[99, SCRATCH]), -22);
        assert_eq!(machine.call(Sysno::clock_gettime, &[0, 1]), -14);
        let now = machine.call(Sysno::time, &[SCRATCH]);
        let stored = i64::from_le_bytes(machine.get(SCRATCH, 8).try_into().unwrap());
        assert_eq!(now, stored);
        assert!(now > 1_700_000_000);
        assert_eq!(machine.call(Sysno::gettimeofday, &[SCRATCH, 0]), 0);
        let seconds = i64::from_le_bytes(machine.get(SCRATCH, 8).try_into().unwrap());
        assert!((now..now + 5).contains(&seconds));
    }

    #[test]
    fn sleeps_relative_and_absolute() {
        let mut machine = Machine::new(Vec::new());
        let time = machine.put(
            0,
            timespec_bytes(Timespec {
                tv_sec: 1,
                tv_nsec: 5,
            })
            .done(),
        );
        assert_eq!(
            machine.outcome(Sysno::nanosleep, &[time, 0]),
            Outcome::sleep(Duration::new(1, 5))
        );
        assert_eq!(
            machine.outcome(Sysno::clock_nanosleep, &[1, 0, time]),
            Outcome::sleep(Duration::new(1, 5))
        );
        assert_eq!(
            machine.outcome(Sysno::clock_nanosleep, &[0, 1, time]),
            Outcome::sleep(Duration::ZERO)
        );
        let later = host_clock(ClockId::Realtime).tv_sec + 100;
        let time = machine.put(
            0,
            timespec_bytes(Timespec {
                tv_sec: later,
                tv_nsec: 0,
            })
            .done(),
        );
        let wait = machine.wait(Sysno::clock_nanosleep, &[0, 1, time]);
        assert!((98..=100).contains(&wait.time.unwrap().as_secs()));
        let bad = machine.put(
            0,
            timespec_bytes(Timespec {
                tv_sec: 1,
                tv_nsec: NANOS,
            })
            .done(),
        );
        assert_eq!(machine.call(Sysno::nanosleep, &[bad, 0]), -22);
        let long = machine.put(
            0,
            timespec_bytes(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
            .done(),
        );
        assert!(machine.wait(Sysno::nanosleep, &[long]).time.is_some());
    }

    #[test]
    fn timers_may_be_disarmed_only() {
        let mut machine = Machine::new(Vec::new());
        let off = machine.put(0, &[0; 32]);
        assert_eq!(machine.call(Sysno::setitimer, &[0, off, SCRATCH + 64]), 0);
        let on = machine.put(0, Layout::<32>::new().i64(16, 1).done());
        assert_eq!(machine.call(Sysno::setitimer, &[0, on, 0]), -38);
        assert_eq!(machine.call(Sysno::alarm, &[0]), 0);
    }
}
