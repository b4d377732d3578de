//! The tasks of a machine: what Linux keeps for each thread. One runs at a time; the others are runnable or wait.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::arch::context::Context;
use crate::linux::call::{Call, Wait, WaitOn};
use crate::linux::tasks::ids::Ids;
use crate::linux::tasks::pending::Pending;
use crate::linux::tasks::task_signals::TaskSignals;

/// Most tasks of a machine.
pub const MAX_TASKS: usize = 512;
/// The id of the process and of its first task, as in a PID namespace of its own.
pub const FIRST_TID: i32 = 1;

/// A call that can't go on for now.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Blocked {
    /// The call, which is made again when what it waits for may have come.
    pub call: Call,
    /// What it waits for.
    pub wait: Wait,
    /// When it stops waiting.
    #[serde(with = "crate::saved::instant_option")]
    pub until: Option<Instant>,
    /// A futex's waiter was woken, and gets this.
    pub woken: Option<i64>,
    /// Who waits longer has the lower number.
    pub order: u64,
}

/// Whether a task can run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum State {
    /// It runs, or could.
    Runnable,
    /// It waits.
    Blocked(Blocked),
}

/// How it is to be scheduled, as it was told (sched(7)).
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`
    pub policy: i32,
    /// The nice value.
    pub nice: i32,
    /// Threads that it makes have the defaults.
    pub reset_on_fork: bool,
}

/// A thread of the program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub tid: i32,
    /// Its registers, while it does not run.
    pub context: Context,
    /// Whether it can.
    pub state: State,
    /// Where a zero goes and a futex is woken when it ends (set_tid_address(2)).
    pub clear_child_tid: u64,
    /// Its list of locks that others must learn of when it ends (set_robust_list(2)).
    pub robust_list: u64,
    /// What it blocks, and what was sent to it.
    pub signals: TaskSignals,
    /// Its user and groups.
    pub ids: Ids,
    /// How it is to be scheduled.
    pub scheduling: Scheduling,
    /// Which futexes it waits for, if it does for several (futex_waitv(2)).
    pub futexes: Vec<u64>,
    /// How much of its call is done already that waits to do the rest: bytes.
    pub progress: u64,
}

impl Task {
    fn new(tid: i32) -> Self {
        Self {
            tid,
            context: Context::default(),
            state: State::Runnable,
            clear_child_tid: 0,
            robust_list: 0,
            signals: TaskSignals::default(),
            ids: Ids::default(),
            scheduling: Scheduling::default(),
            futexes: Vec::new(),
            progress: 0,
        }
    }

    /// What it waits for, if it does.
    pub fn blocked(&self) -> Option<&Blocked> {
        match &self.state {
            State::Blocked(blocked) => Some(blocked),
            State::Runnable => None,
        }
    }
}

/// All tasks of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tasks {
    list: Vec<Task>,
    current: usize,
    /// The process's id, which its first task has too, and its parent's.
    pid: i32,
    /// Of a fork: an id that is not the one before the freeze, and the code that gets it.
    forked: Option<(i32, Arc<[Range<u64>]>)>,
    parent: i32,
    /// The program has forked, and is the child.
    is_child: bool,
    next_tid: i32,
    next_order: u64,
}

impl Tasks {
    /// The one that a program starts with.
    pub fn new() -> Self {
        Self {
            list: vec![Task::new(FIRST_TID)],
            current: 0,
            pid: FIRST_TID,
            forked: None,
            parent: 0,
            is_child: false,
            next_tid: FIRST_TID + 1,
            next_order: 0,
        }
    }

    /// Whether what was read from a snapshot can be.
    pub fn is_sound(&self) -> bool {
        let tids: BTreeSet<i32> = self.list.iter().map(|task| task.tid).collect();
        self.current < self.list.len()
            && self.list.len() <= MAX_TASKS
            && tids.len() == self.list.len()
            && tids.first().is_some_and(|&first| first > 0)
            && self.list.iter().all(|task| task.context.is_whole())
            && self.next_order < u64::MAX / 2
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The one that runs, by its place.
    pub fn current_place(&self) -> usize {
        self.current
    }

    /// The one that runs.
    pub fn current(&mut self) -> &mut Task {
        let place = self.current.min(self.list.len() - 1);
        &mut self.list[place]
    }

    /// User and groups of the one that runs.
    pub fn ids(&self) -> Ids {
        let current = self.list.get(self.current);
        current.map_or_else(Ids::default, |task| task.ids.clone())
    }

    /// How much of its call the one that runs has done already.
    pub fn progress(&self) -> u64 {
        self.list.get(self.current).map_or(0, |task| task.progress)
    }

    /// The id of the one that runs.
    pub fn tid(&self) -> i32 {
        self.list
            .get(self.current)
            .map_or(self.pid, |task| task.tid)
    }

    /// The one at a place.
    pub fn at(&mut self, place: usize) -> Option<&mut Task> {
        self.list.get_mut(place)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.list.iter()
    }

    /// The same, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Task> {
        self.list.iter_mut()
    }

    /// Has another one run.
    pub fn switch_to(&mut self, place: usize) {
        self.current = place;
    }

    /// Adds a task that is runnable. `None` if there are as many as may be.
    pub fn add(&mut self, context: Context) -> Option<&mut Task> {
        if self.list.len() >= MAX_TASKS {
            return None;
        }
        let tid = self.next_tid;
        self.next_tid = self.next_tid.checked_add(1)?;
        let maker = self.current();
        let (signals, ids) = (maker.signals.of_thread(), maker.ids.clone());
        let scheduling = match maker.scheduling {
            of if of.reset_on_fork => Scheduling::default(),
            of => of,
        };
        self.list.push(Task {
            context,
            signals,
            ids,
            scheduling,
            ..Task::new(tid)
        });
        self.list.last_mut()
    }

    /// Ends the one that runs. The caller switches to another, if there is one left.
    pub fn remove_current(&mut self) {
        self.list.remove(self.current);
        // So that the search for the next one starts with the one that followed.
        self.current = match self.current {
            0 => self.list.len().saturating_sub(1),
            place => place - 1,
        };
    }

    /// Ends all of them and begins the first of another program, as execve(2) does: what the kernel keeps for a thread
    /// lay in memory that is gone. What it blocks, what was sent to it and its user stay.
    pub fn start_anew(&mut self) {
        let before = self.current();
        let ids = before.ids.after_exec();
        let signals = TaskSignals {
            mask: before.signals.mask,
            pending: before.signals.pending.clone(),
            ..TaskSignals::default()
        };
        self.list.clear();
        self.list.push(Task {
            signals,
            ids,
            ..Task::new(self.pid)
        });
        self.current = 0;
    }

    /// Goes on as a child that fork(2) makes, which has the calling task alone.
    pub fn become_child(&mut self) {
        let mut only = self.list.swap_remove(self.current);
        (self.parent, self.pid) = (self.pid, self.next_tid);
        self.next_tid = self.next_tid.saturating_add(1);
        only.tid = self.pid;
        self.forked = None;
        only.signals.pending = Pending::default();
        (only.clear_child_tid, only.robust_list) = (0, 0);
        self.list.clear();
        self.list.push(only);
        self.current = 0;
        self.is_child = true;
    }

    /// Goes on as a fork of the frozen machine: code that seeds its generators anew in a child finds that it is in one.
    pub fn become_fork(&mut self, seeds_anew: Arc<[Range<u64>]>) {
        self.forked = Some((self.next_tid, seeds_anew));
        self.next_tid = self.next_tid.saturating_add(1);
    }

    /// The process's id as code gets it that is called from there.
    pub fn pid_for(&self, caller: Option<u64>) -> i32 {
        match (&self.forked, caller) {
            (Some((id, code)), Some(at)) if code.iter().any(|code| code.contains(&at)) => *id,
            _ => self.pid,
        }
    }

    /// Whether all code gets the same one.
    pub fn has_one_pid(&self) -> bool {
        self.forked.as_ref().is_none_or(|(_, code)| code.is_empty())
    }

    /// The process's id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The ids that mean the process.
    pub fn pids(&self) -> [i32; 2] {
        let other = self.forked.as_ref().map_or(self.pid, |(id, _)| *id);
        [self.pid, other]
    }

    /// The task that an id means: both of the process's are its first task's.
    pub fn tid_of(&self, id: i32) -> i32 {
        if self.pids().contains(&id) {
            self.pid
        } else {
            id
        }
    }

    /// The id of its parent, 0 if that is none of the program's.
    pub fn parent(&self) -> i32 {
        self.parent
    }

    /// Whether a call means one of them by this id, or by 0 the one that makes it.
    pub fn has(&self, tid: i32) -> bool {
        tid == 0 || self.list.iter().any(|task| task.tid == self.tid_of(tid))
    }

    /// Whether it has done so.
    pub fn is_child(&self) -> bool {
        self.is_child
    }

    /// From now on it is what it is: its end is the program's.
    pub fn be_no_child(&mut self) {
        self.is_child = false;
    }

    /// Has the current task wait.
    pub fn block(&mut self, call: Call, wait: Wait, now: Instant) {
        let order = self.next_order;
        self.next_order += 1;
        self.current().state = State::Blocked(Blocked {
            call,
            wait,
            until: wait.time.and_then(|time| now.checked_add(time)),
            woken: None,
            order,
        });
    }

    /// Wakes up to `most` waiters of a futex that wait for any of these bits, those first who wait longest. Says how
    /// many.
    pub fn wake(&mut self, address: u64, bits: u32, most: usize) -> usize {
        let mut waiters: Vec<(&mut Blocked, i64)> = self
            .list
            .iter_mut()
            .filter_map(|task| {
                let State::Blocked(blocked) = &mut task.state else {
                    return None;
                };
                let result = match blocked.wait.on {
                    WaitOn::Futex {
                        address: at,
                        bits: of,
                    } => (at == address && of & bits != 0).then_some(0),
                    WaitOn::Futexes => {
                        let place = task.futexes.iter().position(|at| *at == address)?;
                        i64::try_from(place).ok()
                    }
                    _ => None,
                }?;
                blocked.woken.is_none().then_some((blocked, result))
            })
            .collect();
        waiters.sort_by_key(|(blocked, _)| blocked.order);
        let mut woken = 0;
        for (blocked, result) in waiters.into_iter().take(most) {
            blocked.woken = Some(result);
            woken += 1;
        }
        woken
    }

    /// Has up to `most` waiters of one futex wait for another instead. Says how many.
    pub fn requeue(&mut self, from: u64, to: u64, most: usize) -> usize {
        let mut moved = 0;
        let mut waiters: Vec<&mut Blocked> = self
            .list
            .iter_mut()
            .filter_map(|task| match &mut task.state {
                State::Blocked(blocked) if blocked.woken.is_none() => Some(blocked),
                _ => None,
            })
            .collect();
        waiters.sort_by_key(|blocked| blocked.order);
        for blocked in waiters {
            if let WaitOn::Futex { address, .. } = &mut blocked.wait.on
                && *address == from
                && moved < most
            {
                *address = to;
                moved += 1;
            }
        }
        moved
    }

    /// Has all who wait for a time stop waiting so much later.
    pub fn shift_deadlines(&mut self, by: Duration) {
        for task in &mut self.list {
            if let State::Blocked(Blocked {
                until: Some(until), ..
            }) = &mut task.state
            {
                *until = until.checked_add(by).unwrap_or(*until);
            }
        }
    }

    /// When the first of those who wait stops waiting.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.list
            .iter()
            .filter_map(|task| task.blocked()?.until)
            .min()
    }
}
