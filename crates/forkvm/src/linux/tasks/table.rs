//! The table of the calls about how tasks are scheduled, and about a process's timers.

use syscalls::Sysno;

use crate::linux::abi::{Guest, Value};
use crate::linux::call::Outcome;
use crate::linux::state::Linux;
use crate::linux::tasks::{scheduling, timers};

/// What sched_rr_get_interval(2) tells: a task's turn, in nanoseconds.
const TURN: u64 = 10_000_000;

/// Carries out a call, if it is one of these.
pub fn call(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    number: Sysno,
    args: [u64; 6],
) -> Option<Outcome> {
    match number {
        Sysno::timer_create
        | Sysno::timer_settime
        | Sysno::timer_gettime
        | Sysno::timer_getoverrun
        | Sysno::timer_delete
            if guest.memory.space().is_some() =>
        {
            Some(timer(linux, guest, number, args).into())
        }
        Sysno::sched_getscheduler
        | Sysno::sched_setscheduler
        | Sysno::sched_getparam
        | Sysno::sched_setparam
        | Sysno::sched_get_priority_min
        | Sysno::sched_get_priority_max
        | Sysno::sched_rr_get_interval
        | Sysno::sched_getattr
        | Sysno::sched_setattr
        | Sysno::sched_setaffinity
        | Sysno::getpriority
        | Sysno::setpriority => Some(scheduling(linux, guest, number, args).into()),
        _ => None,
    }
}

fn scheduling(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let [a, b, c, d, ..] = args;
    let tasks = &mut *linux.tasks;
    match number {
        Sysno::sched_getscheduler => scheduling::policy(tasks, a),
        Sysno::sched_setscheduler => scheduling::set_policy(tasks, guest, a, b, c),
        Sysno::sched_getparam => scheduling::priority_of(tasks, guest, a, b),
        Sysno::sched_setparam => scheduling::set_priority_of(tasks, guest, a, b),
        Sysno::sched_get_priority_min => scheduling::least_priority(a),
        Sysno::sched_get_priority_max => scheduling::most_priority(a),
        Sysno::sched_rr_get_interval => scheduling::interval(tasks, guest, a, b, TURN),
        Sysno::sched_getattr => scheduling::attributes(tasks, guest, [a, b, c, d]),
        Sysno::sched_setattr => scheduling::set_attributes(tasks, guest, [a, b, c]),
        Sysno::sched_setaffinity => scheduling::set_affinity(tasks, guest, a, b, c),
        Sysno::getpriority => scheduling::nice(tasks, a, b),
        _ => scheduling::set_nice(tasks, a, b, c),
    }
}

fn timer(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let [a, b, c, d, ..] = args;
    let (timers, clocks) = (&mut *linux.timers, &linux.clocks);
    match number {
        Sysno::timer_create => timers::create(timers, &linux.tasks, guest, [a, b, c]),
        Sysno::timer_settime => timers::set(timers, clocks, guest, [a, b, c, d]),
        Sysno::timer_gettime => timers::get(timers, clocks, guest, a, b),
        Sysno::timer_getoverrun => timers::overruns(timers, a),
        _ => timers::delete(timers, a),
    }
}
