//! Timers that a program makes for itself, timer_create(2) and its relatives, and those of setitimer(2) that count the
//! processor's time. What comes of one is a signal, or nothing.
//!
//! One that counts the processor's time is looked at again when it can have come, and then waits for what is left.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::{Guest, Layout, Value, field_u32, field_u64, flags, int};
use crate::linux::tasks::pending::{INFO_LEN, LAST, Signal};
use crate::linux::tasks::signals::{self, SIGALRM, Signals, Target};
use crate::linux::tasks::task::Tasks;
use crate::linux::time::{
    Clocks, read_timespec_pair, read_timeval_pair, timespec_bytes_of, timeval_bytes_of,
};

/// Most timers of a process (Linux: by RLIMIT_SIGPENDING).
const MOST: usize = 256;
/// `si_code` of a timer's signal.
const SI_TIMER: i32 = -2;
const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD: i32 = 2;
const SIGEV_THREAD_ID: i32 = 4;
/// `struct sigevent`: value, signal, how, thread.
const EVENT_LEN: usize = 64;
const TIMER_ABSTIME: u32 = 1;
const ITIMER_VIRTUAL: i32 = 1;
const SIGVTALRM: i32 = 26;
const SIGPROF: i32 = 27;

const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;

/// What a timer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Counts {
    /// The time that goes by.
    Real,
    /// The processor's time: the process's.
    Used,
}

/// When it goes off.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Next {
    /// When to look: of real time, when it is due.
    #[serde(with = "crate::saved::instant")]
    look: Instant,
    /// Of the processor's time, how much is to be used by then.
    used: Duration,
}

/// A timer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Timer {
    /// Of one of setitimer(2), its number and negative.
    id: i32,
    clock: u64,
    counts: Counts,
    signal: Option<(Target, i32)>,
    value: u64,
    next: Option<Next>,
    interval: Duration,
    overruns: i32,
}

/// All of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timers {
    list: Vec<Timer>,
    next_id: i32,
}

impl Timers {
    fn get(&mut self, id: u64) -> Result<&mut Timer, Errno> {
        let found = self.list.iter_mut().find(|timer| timer.id == int(id));
        found.filter(|timer| timer.id >= 0).ok_or(Errno::INVAL)
    }

    /// Those that execve(2) leaves.
    pub fn forget_made(&mut self) {
        self.list.retain(|timer| timer.id < 0);
    }

    /// When the next one is to be looked at, of those whose signal matters. One that sends nothing never is.
    pub fn next(&self, matters: impl Fn((Target, i32)) -> bool) -> Option<Instant> {
        let sends = self
            .list
            .iter()
            .filter(|timer| timer.signal.is_some_and(&matters));
        sends.filter_map(|timer| Some(timer.next?.look)).min()
    }

    /// Whether there are any, of whatever kind.
    pub fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// Has all go off so much later.
    pub fn shift(&mut self, by: Duration) {
        for next in self.list.iter_mut().filter_map(|timer| timer.next.as_mut()) {
            next.look = next.look.checked_add(by).unwrap_or(next.look);
        }
    }
}

impl Timer {
    /// How much is left until it goes off.
    fn left(&self, now: Instant, used: Duration) -> Option<Duration> {
        let next = self.next?;
        Some(match self.counts {
            Counts::Real => next.look.saturating_duration_since(now),
            Counts::Used => next.used.saturating_sub(used),
        })
    }

    /// Has it go off after this time.
    fn arm(&mut self, left: Duration, now: Instant, used: Duration) {
        self.next = now.checked_add(left).map(|look| Next {
            look,
            used: used.saturating_add(left),
        });
    }

    /// How often it has gone off by now, with what that leaves of it.
    fn expire(&mut self, now: Instant, used: Duration) -> u128 {
        let Some(next) = self.next else { return 0 };
        let late = match self.counts {
            Counts::Real => now.saturating_duration_since(next.look),
            Counts::Used if used < next.used => {
                self.arm(next.used.saturating_sub(used), now, used);
                return 0;
            }
            Counts::Used => used.saturating_sub(next.used),
        };
        if self.interval.is_zero() {
            self.next = None;
            return 1;
        }
        let (late, interval) = (late.as_nanos(), self.interval.as_nanos());
        let rest = interval.saturating_sub(late % interval);
        let rest = Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX));
        self.arm(rest, now, used);
        (late / interval).saturating_add(1)
    }

    fn info(&self) -> [u8; INFO_LEN] {
        let number = self.signal.map_or(0, |(_, signal)| signal);
        Layout::new()
            .u32(0, number.cast_unsigned())
            .u32(8, SI_TIMER.cast_unsigned())
            .u32(16, self.id.cast_unsigned())
            .u32(20, self.overruns.cast_unsigned())
            .u64(24, self.value)
            .array()
    }
}

/// Sends what has become due.
pub fn tick(timers: &mut Timers, to: (&mut Signals, &mut Tasks), now: Instant, used: Duration) {
    let (signals, tasks) = to;
    for timer in &mut timers.list {
        let due = timer
            .signal
            .filter(|_| timer.next.is_some_and(|next| next.look <= now));
        let Some((target, number)) = due else {
            continue;
        };
        let times = timer.expire(now, used);
        if times == 0 {
            continue;
        }
        let more = i32::try_from(times - 1).unwrap_or(i32::MAX);
        // As long as its signal waits it is not sent again, but counted.
        let id = timer.id;
        let waits = |signal: &Signal| {
            let told = |at| int(field_u32(&signal.info, at).into());
            signal.number == number && told(8) == SI_TIMER && told(16) == id
        };
        if let Some(signal) = signals::queued(signals, tasks, waits) {
            timer.overruns = timer.overruns.saturating_add(more).saturating_add(1);
            signal.info = timer.info();
            continue;
        }
        timer.overruns = more;
        let signal = match timer.id {
            ..0 => Signal::by_kernel(number),
            _ => Signal {
                number,
                info: timer.info(),
            },
        };
        // Its thread may be gone.
        let _ = signals::send(signals, tasks, target, signal);
    }
}

/// timer_create(2)
pub fn create(
    timers: &mut Timers,
    tasks: &Tasks,
    guest: &mut Guest<'_>,
    [clock, event, address]: [u64; 3],
) -> Value {
    let counts = match int(clock) {
        CLOCK_PROCESS_CPUTIME_ID | CLOCK_THREAD_CPUTIME_ID | i32::MIN..=-1 => Counts::Used,
        libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_TAI => {
            Counts::Real
        }
        libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM => return Err(Errno::PERM),
        libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE => {
            return Err(Errno::OPNOTSUPP);
        }
        _ => return Err(Errno::INVAL),
    };
    let id = timers.next_id;
    let (signal, value) = match event {
        0 => (
            Some((Target::Process, SIGALRM)),
            u64::from(id.cast_unsigned()),
        ),
        event => {
            let bytes: [u8; EVENT_LEN] = guest.read(event)?;
            let field = |at| int(field_u32(&bytes, at).into());
            let (number, tid) = (field(8), field(16));
            let target = match field(12) {
                SIGEV_NONE => None,
                SIGEV_SIGNAL | SIGEV_THREAD => Some(Target::Process),
                SIGEV_THREAD_ID if tasks.has(tid) && tid != 0 => {
                    Some(Target::Task(tasks.tid_of(tid)))
                }
                _ => return Err(Errno::INVAL),
            };
            if target.is_some() && !(1..=LAST).contains(&number) {
                return Err(Errno::INVAL);
            }
            (target.map(|target| (target, number)), field_u64(&bytes, 0))
        }
    };
    if timers.list.len() >= MOST {
        return Err(Errno::AGAIN);
    }
    guest.write(address, &id.to_le_bytes())?;
    timers.next_id = id.checked_add(1).unwrap_or(0);
    timers.list.push(Timer {
        id,
        clock,
        counts,
        signal,
        value,
        next: None,
        interval: Duration::ZERO,
        overruns: 0,
    });
    Ok(0)
}

/// setitimer(2), and getitimer(2) without a `new` one, of `ITIMER_VIRTUAL` and `ITIMER_PROF`.
pub fn interval(
    timers: &mut Timers,
    clocks: &Clocks,
    guest: &mut Guest<'_>,
    which: i32,
    (new, old): (u64, u64),
) -> Value {
    let (now, used) = (Instant::now(), clocks.used());
    let id = which.saturating_neg();
    let before = timers.list.iter().find(|timer| timer.id == id);
    let none = [Duration::ZERO; 2];
    let least = Duration::from_micros(1);
    let before = before.map_or(none, |timer| {
        let left = timer.left(now, used).map(|left| left.max(least));
        [timer.interval, left.unwrap_or_default()]
    });
    let wanted = match new {
        0 => None,
        new => Some(read_timeval_pair(guest, new)?),
    };
    let both = before.map(|time| timeval_bytes_of(time).array());
    guest.write_unless_null(old, both.as_flattened())?;
    let Some((interval, value)) = wanted else {
        return Ok(0);
    };
    timers.list.retain(|timer| timer.id != id);
    if !value.is_zero() {
        let number = if which == ITIMER_VIRTUAL {
            SIGVTALRM
        } else {
            SIGPROF
        };
        let mut timer = Timer {
            id,
            clock: 0,
            counts: Counts::Used,
            signal: Some((Target::Process, number)),
            value: 0,
            next: None,
            interval,
            overruns: 0,
        };
        timer.arm(value, now, used);
        timers.list.push(timer);
    }
    Ok(0)
}

fn spec(timer: &mut Timer, now: Instant, used: Duration) -> [[u8; 16]; 2] {
    // Nobody has looked at one that sends nothing.
    if timer.signal.is_none() && timer.left(now, used) == Some(Duration::ZERO) {
        timer.expire(now, used);
    }
    let least = Duration::from_nanos(1);
    let left = timer
        .left(now, used)
        .map_or(Duration::ZERO, |left| left.max(least));
    [timer.interval, left].map(|time| timespec_bytes_of(time).array())
}

/// timer_settime(2)
pub fn set(
    timers: &mut Timers,
    clocks: &Clocks,
    guest: &mut Guest<'_>,
    [id, how, new, old]: [u64; 4],
) -> Value {
    if new == 0 {
        return Err(Errno::INVAL);
    }
    let (interval, value) = read_timespec_pair(guest, new)?;
    let (now, used) = (Instant::now(), clocks.used());
    let timer = timers.get(id)?;
    let before = spec(timer, now, used);
    if value.is_zero() {
        timer.next = None;
    } else {
        let left = match flags(how) & TIMER_ABSTIME != 0 {
            true => clocks.until(timer.clock, value)?,
            false => value,
        };
        timer.arm(left, now, used);
    }
    timer.interval = interval;
    timer.overruns = 0;
    guest.write_unless_null(old, before.as_flattened())?;
    Ok(0)
}

/// timer_gettime(2)
pub fn get(
    timers: &mut Timers,
    clocks: &Clocks,
    guest: &mut Guest<'_>,
    id: u64,
    address: u64,
) -> Value {
    let now = spec(timers.get(id)?, Instant::now(), clocks.used());
    guest.write(address, now.as_flattened())?;
    Ok(0)
}

/// timer_getoverrun(2)
pub fn overruns(timers: &mut Timers, id: u64) -> Value {
    Ok(timers.get(id)?.overruns.into())
}

/// timer_delete(2)
pub fn delete(timers: &mut Timers, id: u64) -> Value {
    timers.get(id)?;
    timers.list.retain(|timer| timer.id != int(id));
    Ok(0)
}
