//! The table's part for calls that send signals, now or at a time.

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, Value, flags, int};
use crate::linux::state::Linux;
use crate::linux::tasks::signals::{self, Target};
use crate::linux::tasks::timers;
use crate::linux::time;

/// kill(2) and its relatives: a signal for the process or for one of its tasks.
pub fn send(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let [a, b, c, d, ..] = args;
    let of_process = |group: u64| match int(group) {
        pid if linux.tasks.pids().contains(&pid) => Ok(()),
        ..=0 => Err(Errno::INVAL),
        _ => Err(Errno::SRCH),
    };
    let task = |tid: u64| match int(tid) {
        ..=0 => Err(Errno::INVAL),
        tid => Ok(Target::Task(linux.tasks.tid_of(tid))),
    };
    let (target, signal, info) = match number {
        Sysno::kill => (signals::process(&linux.tasks, a)?, b, None),
        Sysno::tkill => (task(a)?, b, None),
        Sysno::rt_sigqueueinfo => (signals::process(&linux.tasks, a)?, b, Some(guest.read(c)?)),
        Sysno::rt_tgsigqueueinfo => {
            let target = task(b)?;
            of_process(a)?;
            (target, c, Some(guest.read(d)?))
        }
        _ => {
            let target = task(b)?;
            of_process(a)?;
            (target, c, None)
        }
    };
    signals::kill(&mut linux.signals, &mut linux.tasks, target, signal, info)
}

/// setitimer(2), getitimer(2), alarm(2). Of programs that run no handlers there is no timer, which zeros say; arming one
/// fails.
pub fn timer(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    const REAL: i32 = 0;
    let [which, new, old, ..] = args;
    let real = number == Sysno::alarm || int(which) == REAL;
    if number != Sysno::alarm && !(0..=2).contains(&int(which)) {
        return Err(Errno::INVAL);
    }
    if guest.memory.space().is_some() && real {
        return match number {
            Sysno::alarm => Ok(signals::set_alarm(&mut linux.signals, flags(which))),
            Sysno::setitimer => signals::itimer(&mut linux.signals, guest, Some(new), old),
            _ => signals::itimer(&mut linux.signals, guest, None, new),
        };
    }
    if guest.memory.space().is_some() {
        let values = match number {
            Sysno::setitimer => (new, old),
            _ => (0, new),
        };
        let (timers, clocks) = (&mut linux.timers, &linux.clocks);
        return timers::interval(timers, clocks, guest, int(which), values);
    }
    match number {
        Sysno::alarm if flags(which) == 0 => Ok(0),
        Sysno::alarm => {
            linux.told.tell_call("alarm", Sysno::alarm as u64, guest);
            Err(Errno::NOSYS)
        }
        Sysno::setitimer => time::no_itimer(guest, Some(new), old),
        _ => time::no_itimer(guest, None, new),
    }
}
