//! The table of the calls about how tasks are scheduled.

use syscalls::Sysno;

use crate::linux::abi::Guest;
use crate::linux::call::Outcome;
use crate::linux::state::Linux;
use crate::linux::tasks::scheduling;

/// What sched_rr_get_interval(2) tells: a task's turn, in nanoseconds.
const TURN: u64 = 10_000_000;

/// Carries out a call, if it is one of these.
pub fn call(
    linux: &mut Linux,
    guest: &mut Guest<'_>,
    number: Sysno,
    args: [u64; 6],
) -> Option<Outcome> {
    let [a, b, c, d, ..] = args;
    let tasks = &mut *linux.tasks;
    let value = match number {
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
        Sysno::setpriority => scheduling::set_nice(tasks, a, b, c),
        _ => return None,
    };
    Some(value.into())
}
