//! How tasks are scheduled, as far as a program can ask and say: sched(7). Of itself it changes nothing: all tasks are
//! served in turn. What would need privileges, such as real-time policies, is refused.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Value, field_u32, field_u64, flags, int};
use crate::linux::tasks::task::{Scheduling, Task, Tasks};

const SCHED_OTHER: i32 = 0;
const SCHED_FIFO: i32 = 1;
const SCHED_RR: i32 = 2;
const SCHED_BATCH: i32 = 3;
const SCHED_IDLE: i32 = 5;
const SCHED_DEADLINE: i32 = 6;
const SCHED_RESET_ON_FORK: i32 = 0x4000_0000;

const PRIO_PROCESS: i32 = 0;
const PRIO_PGRP: i32 = 1;
const PRIO_USER: i32 = 2;

/// Bytes of the first `struct sched_attr`.
const ATTR_LEN: u32 = 48;

/// The task that a call means: 0 is the one that makes it.
fn task(tasks: &mut Tasks, pid: u64) -> Result<&mut Task, Errno> {
    let pid = match int(pid) {
        0 => tasks.tid(),
        pid if pid < 0 => return Err(Errno::INVAL),
        pid => tasks.tid_of(pid),
    };
    let found = tasks.iter_mut().find(|task| task.tid == pid);
    found.ok_or(Errno::SRCH)
}

/// sched_getscheduler(2)
pub fn policy(tasks: &mut Tasks, pid: u64) -> Value {
    let of = task(tasks, pid)?.scheduling;
    let reset = if of.reset_on_fork {
        SCHED_RESET_ON_FORK
    } else {
        0
    };
    Ok(i64::from(of.policy | reset))
}

/// Takes a policy with its priority.
fn set(tasks: &mut Tasks, pid: u64, wanted: Scheduling, priority: i32) -> Value {
    let (least, most) = range_of(wanted.policy)?;
    if wanted.policy == SCHED_DEADLINE || !(least..=most).contains(&priority) {
        return Err(Errno::INVAL);
    }
    let of = &mut task(tasks, pid)?.scheduling;
    let privileged = matches!(wanted.policy, SCHED_FIFO | SCHED_RR)
        || of.reset_on_fork && !wanted.reset_on_fork
        || of.policy == SCHED_IDLE && wanted.policy != SCHED_IDLE
        || wanted.nice < of.nice;
    if privileged {
        return Err(Errno::PERM);
    }
    *of = wanted;
    Ok(0)
}

/// sched_setscheduler(2)
pub fn set_policy(
    tasks: &mut Tasks,
    guest: &Guest<'_>,
    pid: u64,
    policy: u64,
    address: u64,
) -> Value {
    if address == 0 || int(policy) < 0 || int(pid) < 0 {
        return Err(Errno::INVAL);
    }
    let priority = int(guest.read_u32(address)?.into());
    let wanted = Scheduling {
        policy: int(policy) & !SCHED_RESET_ON_FORK,
        reset_on_fork: int(policy) & SCHED_RESET_ON_FORK != 0,
        nice: task(tasks, pid)?.scheduling.nice,
    };
    set(tasks, pid, wanted, priority)
}

/// sched_setparam(2)
pub fn set_priority_of(tasks: &mut Tasks, guest: &Guest<'_>, pid: u64, address: u64) -> Value {
    if address == 0 || int(pid) < 0 {
        return Err(Errno::INVAL);
    }
    let priority = int(guest.read_u32(address)?.into());
    let wanted = task(tasks, pid)?.scheduling;
    set(tasks, pid, wanted, priority)
}

/// sched_getparam(2): `struct sched_param`, whose only priority is 0.
pub fn priority_of(tasks: &mut Tasks, guest: &mut Guest<'_>, pid: u64, address: u64) -> Value {
    if address == 0 {
        return Err(Errno::INVAL);
    }
    task(tasks, pid)?;
    guest.write(address, &[0; 4])?;
    Ok(0)
}

fn range_of(policy: i32) -> Result<(i32, i32), Errno> {
    match policy {
        SCHED_FIFO | SCHED_RR => Ok((1, 99)),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE | SCHED_DEADLINE => Ok((0, 0)),
        _ => Err(Errno::INVAL),
    }
}

/// sched_get_priority_min(2)
pub fn least_priority(policy: u64) -> Value {
    range_of(int(policy)).map(|(least, _)| least.into())
}

/// sched_get_priority_max(2)
pub fn most_priority(policy: u64) -> Value {
    range_of(int(policy)).map(|(_, most)| most.into())
}

/// sched_rr_get_interval(2): how long a task runs while others could, in nanoseconds.
pub fn interval(
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    pid: u64,
    address: u64,
    slice: u64,
) -> Value {
    task(tasks, pid)?;
    guest.write(address, Layout::<16>::new().u64(8, slice).done())?;
    Ok(0)
}

/// sched_getattr(2): size, policy, flags, nice value, priority; the rest is of deadlines.
pub fn attributes(tasks: &mut Tasks, guest: &mut Guest<'_>, args: [u64; 4]) -> Value {
    let [pid, address, size, how] = args;
    let size = flags(size);
    if address == 0 || int(pid) < 0 || !(ATTR_LEN..=4096).contains(&size) || flags(how) != 0 {
        return Err(Errno::INVAL);
    }
    let of = task(tasks, pid)?.scheduling;
    let layout = Layout::<{ ATTR_LEN as usize }>::new()
        .u32(0, ATTR_LEN)
        .u32(4, of.policy.cast_unsigned())
        .u64(8, of.reset_on_fork.into())
        .u32(16, of.nice.cast_unsigned());
    guest.write(address, layout.done())?;
    Ok(0)
}

/// sched_setattr(2)
pub fn set_attributes(tasks: &mut Tasks, guest: &Guest<'_>, args: [u64; 3]) -> Value {
    let [pid, address, how] = args;
    if address == 0 || int(pid) < 0 || flags(how) != 0 {
        return Err(Errno::INVAL);
    }
    let bytes: [u8; ATTR_LEN as usize] = guest.read(address)?;
    let size = field_u32(&bytes, 0);
    if size != 0 && size < ATTR_LEN {
        return Err(Errno::TOOBIG);
    }
    let (policy, how) = (int(field_u32(&bytes, 4).into()), field_u64(&bytes, 8));
    if policy < 0 || how & !1 != 0 {
        return Err(Errno::INVAL);
    }
    let wanted = Scheduling {
        policy,
        reset_on_fork: how != 0,
        nice: int(field_u32(&bytes, 16).into()).clamp(-20, 19),
    };
    set(tasks, pid, wanted, int(field_u32(&bytes, 20).into()))
}

/// The tasks that setpriority(2) means: one, or all of the only group and user there are.
fn meant(tasks: &Tasks, which: u64, who: u64) -> Result<Vec<i32>, Errno> {
    let who = int(who);
    let all = || tasks.iter().map(|task| task.tid).collect();
    let found: Vec<i32> = match int(which) {
        PRIO_PROCESS if who == 0 => vec![tasks.tid()],
        PRIO_PROCESS => tasks
            .iter()
            .map(|task| task.tid)
            .filter(|tid| *tid == tasks.tid_of(who))
            .collect(),
        PRIO_PGRP if who == 0 || tasks.pids().contains(&who) => all(),
        PRIO_USER if who == 0 => all(),
        PRIO_PGRP | PRIO_USER => Vec::new(),
        _ => return Err(Errno::INVAL),
    };
    if found.is_empty() {
        Err(Errno::SRCH)
    } else {
        Ok(found)
    }
}

/// getpriority(2): the raw call gives 20 minus the lowest nice value ("C library/kernel differences").
pub fn nice(tasks: &Tasks, which: u64, who: u64) -> Value {
    let meant = meant(tasks, which, who)?;
    let of = tasks.iter().filter(|task| meant.contains(&task.tid));
    let least = of.map(|task| task.scheduling.nice).min();
    Ok(i64::from(20 - least.unwrap_or(0)))
}

/// setpriority(2)
pub fn set_nice(tasks: &mut Tasks, which: u64, who: u64, nice: u64) -> Value {
    let meant = meant(tasks, which, who)?;
    let nice = int(nice).clamp(-20, 19);
    let lower = |task: &Task| meant.contains(&task.tid) && task.scheduling.nice > nice;
    if tasks.iter().any(lower) {
        return Err(Errno::ACCESS);
    }
    for task in tasks.iter_mut().filter(|task| meant.contains(&task.tid)) {
        task.scheduling.nice = nice;
    }
    Ok(0)
}

/// sched_setaffinity(2): there is one processor, which has to be among those wished for.
pub fn set_affinity(
    tasks: &mut Tasks,
    guest: &Guest<'_>,
    pid: u64,
    size: u64,
    address: u64,
) -> Value {
    // The first byte has it.
    let first = match size {
        0 => 0,
        _ => guest.read::<1>(address)?[0],
    };
    task(tasks, pid)?;
    if first & 1 == 0 {
        Err(Errno::INVAL)
    } else {
        Ok(0)
    }
}
