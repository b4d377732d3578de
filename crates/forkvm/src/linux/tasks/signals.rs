//! Signals: what a program has set up about them, and sending them. What becomes of one that was sent is in
//! [`delivery`](super::delivery).
//!
//! Programs without an address space are as they were written for: what they set up is kept, so that they can ask for
//! it, but handlers are never run. A signal that such a program sends itself ends it, unless it is ignored or blocked.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::{Guest, Layout, Reply, Value, field_u32, field_u64, int};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::tasks::pending::{
    Awaited, INFO_LEN, LAST, Pending, SI_TKILL, SI_USER, Signal, bit,
};
use crate::linux::tasks::task::{Task, Tasks};
use crate::linux::tasks::task_signals::{AltStack, SIGKILL, SIGSTOP};
use crate::linux::time::{read_timeval_pair, timeval_bytes_of};

/// A timer's, unless it has another.
pub const SIGALRM: i32 = 14;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;
/// `write` to a pipe that nobody reads.
pub const SIGPIPE: i32 = 13;

pub(super) const SIG_DFL: u64 = 0;
pub(super) const SIG_IGN: u64 = 1;

pub(super) const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
const SS_AUTODISARM: u32 = 1 << 31;
const MINSIGSTKSZ: u64 = 2048;

/// Most signals that are queued with what is told about them, all tasks together (RLIMIT_SIGPENDING).
const MOST_QUEUED: usize = 1024;

/// The kernel's `struct sigaction` on x86-64: handler, flags, restorer, mask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// A function, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_*`
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// What is blocked while it runs.
    pub mask: u64,
}

/// A timer whose signal is SIGALRM (setitimer(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it goes off.
    #[serde(with = "crate::saved::instant")]
    pub at: Instant,
    /// After how long it does so again, if that is not zero.
    pub interval: Duration,
}

/// What concerns all tasks of a program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Signals {
    #[serde(with = "crate::saved::array")]
    actions: [Action; LAST as usize],
    /// Sent to the process: any task may take it.
    pub(super) pending: Pending,
    alarm: Option<Alarm>,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The process.
    Process,
    /// One task, by its id.
    Task(i32),
}

impl Signals {
    /// As after `execve` from a shell.
    pub fn new() -> Self {
        Self {
            actions: [Action::default(); LAST as usize],
            pending: Pending::default(),
            alarm: None,
        }
    }

    /// As execve(2) does: what had a handler has its default again.
    pub fn forget_handlers(&mut self) {
        for action in &mut self.actions {
            if action.handler != SIG_IGN {
                *action = Action::default();
            }
        }
    }

    /// What is to be done about a signal.
    pub fn action(&self, signal: i32) -> Option<Action> {
        self.actions.get(place(signal)?).copied()
    }

    /// Forgets a handler that is to run once.
    pub(super) fn reset(&mut self, signal: i32) {
        if let Some(action) = place(signal).and_then(|place| self.actions.get_mut(place)) {
            action.handler = SIG_DFL;
        }
    }

    /// Whether nothing happens when it comes.
    pub(super) fn ignores(&self, signal: i32) -> bool {
        // The default of these is to do nothing; SIGCONT finds nothing that is stopped.
        let harmless = matches!(signal, SIGCHLD | SIGCONT | SIGURG | SIGWINCH);
        match self.action(signal).unwrap_or_default().handler {
            SIG_DFL => harmless,
            SIG_IGN => signal != SIGKILL && signal != SIGSTOP,
            _ => false,
        }
    }

    /// Has the timer go off so much later.
    pub fn shift_alarm(&mut self, by: Duration) {
        if let Some(alarm) = &mut self.alarm {
            alarm.at = alarm.at.checked_add(by).unwrap_or(alarm.at);
        }
    }

    /// What a child does not inherit (fork(2)): signals that wait, and the timer.
    pub fn forget_pending(&mut self) {
        self.pending = Pending::default();
        self.alarm = None;
    }

    /// When the timer goes off.
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarm.map(|alarm| alarm.at)
    }
}

fn place(signal: i32) -> Option<usize> {
    usize::try_from(signal.checked_sub(1)?).ok()
}

fn check_size(size: u64) -> Result<(), Errno> {
    if size == 8 { Ok(()) } else { Err(Errno::INVAL) }
}

/// Sends a signal. `EAGAIN` where a real-time signal with a value has no room, `ESRCH` without such a task.
pub fn send(
    signals: &mut Signals,
    tasks: &mut Tasks,
    target: Target,
    signal: Signal,
) -> Result<(), Errno> {
    let queued: usize = tasks.iter().map(|task| task.signals.pending.len()).sum();
    let room = queued + signals.pending.len() < MOST_QUEUED;
    let ignored = signals.ignores(signal.number);
    let blocked = |mask: u64| mask & bit(signal.number) != 0;
    match target {
        Target::Task(tid) => {
            let task = tasks.iter_mut().find(|task| task.tid == tid);
            let of = &mut task.ok_or(Errno::SRCH)?.signals;
            if !ignored || blocked(of.mask) {
                of.pending.add(signal, room);
            }
        }
        Target::Process => {
            if !ignored || tasks.iter().any(|task| blocked(task.signals.mask)) {
                signals.pending.add(signal, room);
            }
        }
    }
    Ok(())
}

/// Whether it changes anything if this is sent: it does not wait already, and is noticed.
pub fn matters(signals: &Signals, tasks: &Tasks, (target, number): (Target, i32)) -> bool {
    let blocked = |task: &Task| task.signals.mask & bit(number) != 0;
    let (pending, any_blocks) = match target {
        Target::Process => (Some(&signals.pending), tasks.iter().any(blocked)),
        Target::Task(tid) => {
            let task = tasks.iter().find(|task| task.tid == tid);
            (
                task.map(|task| &task.signals.pending),
                task.is_some_and(blocked),
            )
        }
    };
    let waits = pending.is_none_or(|pending| pending.set() & bit(number) != 0);
    !waits && (any_blocks || !signals.ignores(number))
}

/// The signal that is queued already and whose `siginfo_t` is so.
pub fn queued<'a>(
    signals: &'a mut Signals,
    tasks: &'a mut Tasks,
    is_so: impl Fn(&Signal) -> bool,
) -> Option<&'a mut Signal> {
    let of_tasks = tasks.iter_mut().map(|task| &mut task.signals.pending);
    let all = of_tasks.chain([&mut signals.pending]);
    all.flat_map(Pending::iter_mut).find(|signal| is_so(signal))
}

/// Sends what the timer's time has come for.
pub fn tick(signals: &mut Signals, tasks: &mut Tasks, now: Instant) {
    let Some(alarm) = signals.alarm.filter(|alarm| alarm.at <= now) else {
        return;
    };
    // What was missed meanwhile comes once.
    signals.alarm = (!alarm.interval.is_zero())
        .then(|| now.checked_add(alarm.interval))
        .flatten()
        .map(|at| Alarm { at, ..alarm });
    // There is a process to send it to.
    let _ = send(signals, tasks, Target::Process, Signal::by_kernel(SIGALRM));
}

/// setitimer(2) and getitimer(2) of the timer that runs in real time: `struct itimerval`, interval and value.
pub fn itimer(signals: &mut Signals, guest: &mut Guest<'_>, new: Option<u64>, old: u64) -> Value {
    let now = Instant::now();
    let before = signals.alarm;
    let mut after = before;
    if let Some(new) = new.filter(|new| *new != 0) {
        let (interval, value) = read_timeval_pair(guest, new)?;
        after = alarm(now, value, interval);
    }
    let (interval, left) = before.map_or((Duration::ZERO, Duration::ZERO), |alarm| {
        (alarm.interval, left(&alarm, now))
    });
    let both = [timeval_bytes_of(interval), timeval_bytes_of(left)];
    guest.write_unless_null(old, both.map(Layout::array).as_flattened())?;
    signals.alarm = after;
    Ok(0)
}

/// alarm(2)
pub fn set_alarm(signals: &mut Signals, seconds: u32) -> i64 {
    let now = Instant::now();
    let before = signals.alarm.map_or(0, |alarm| {
        // Whole seconds, but not none as long as there is a timer.
        left(&alarm, now).as_millis().div_ceil(1000)
    });
    signals.alarm = alarm(now, Duration::from_secs(seconds.into()), Duration::ZERO);
    i64::try_from(before).unwrap_or(i64::MAX)
}

fn alarm(now: Instant, value: Duration, interval: Duration) -> Option<Alarm> {
    let at = (!value.is_zero()).then(|| now.checked_add(value)).flatten();
    at.map(|at| Alarm { at, interval })
}

/// Never zero, which would be no timer.
fn left(alarm: &Alarm, now: Instant) -> Duration {
    let left = alarm.at.saturating_duration_since(now);
    left.max(Duration::from_micros(1))
}

/// rt_sigaction(2)
pub fn rt_sigaction(
    signals: &mut Signals,
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    args: [u64; 6],
) -> Value {
    let [signal, new, old, size, ..] = args;
    check_size(size)?;
    let signal = int(signal);
    let before = signals.action(signal).ok_or(Errno::INVAL)?;
    let mut action = None;
    if new != 0 {
        if signal == SIGKILL || signal == SIGSTOP {
            return Err(Errno::INVAL);
        }
        let bytes: [u8; 32] = guest.read(new)?;
        let field = |offset| field_u64(&bytes, offset);
        action = Some(Action {
            handler: field(0),
            flags: field(8),
            restorer: field(16),
            mask: field(24) & !(bit(SIGKILL) | bit(SIGSTOP)),
        });
    }
    let Action {
        handler,
        flags,
        restorer,
        mask,
    } = before;
    let bytes = Layout::<32>::new()
        .u64(0, handler)
        .u64(8, flags)
        .u64(16, restorer)
        .u64(24, mask);
    guest.write_unless_null(old, bytes.done())?;
    let index = place(signal).ok_or(Errno::INVAL)?;
    if let (Some(action), Some(place)) = (action, signals.actions.get_mut(index)) {
        *place = action;
        // What is pending and becomes ignored is gone.
        if signals.ignores(signal) {
            signals.pending.forget(signal);
            for task in tasks.iter_mut() {
                task.signals.pending.forget(signal);
            }
        }
    }
    Ok(0)
}

/// rt_sigprocmask(2)
pub fn rt_sigprocmask(tasks: &mut Tasks, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [how, new, old, size, ..] = args;
    check_size(size)?;
    let of = &mut tasks.current().signals;
    let before = of.mask;
    let mut after = before;
    if new != 0 {
        let set = guest.read_u64(new)?;
        after = match int(how) {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::INVAL),
        };
    }
    guest.write_unless_null(old, &before.to_le_bytes())?;
    of.set_mask(after);
    Ok(0)
}

/// rt_sigpending(2)
pub fn rt_sigpending(
    signals: &Signals,
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    address: u64,
    size: u64,
) -> Value {
    check_size(size)?;
    let of = &tasks.current().signals;
    let blocked = (signals.pending.set() | of.pending.set()) & of.mask;
    guest.write(address, &blocked.to_le_bytes())?;
    Ok(0)
}

/// A `stack_t`: pointer, flags, size. `rsp` tells whether it is in use.
pub fn stack_bytes(stack: Option<AltStack>, rsp: u64) -> Layout<24> {
    let layout = Layout::<24>::new();
    let Some(stack) = stack else {
        return layout.u32(8, SS_DISABLE);
    };
    let flags = if stack.holds(rsp) { SS_ONSTACK } else { 0 };
    let autodisarm = if stack.autodisarm { SS_AUTODISARM } else { 0 };
    layout
        .u64(0, stack.start)
        .u32(8, flags | autodisarm)
        .u64(16, stack.len)
}

/// Reads a `stack_t`.
pub fn stack_of(bytes: &[u8; 24]) -> Result<Option<AltStack>, Errno> {
    let (start, flags, len) = (
        field_u64(bytes, 0),
        field_u32(bytes, 8),
        field_u64(bytes, 16),
    );
    match flags & !(SS_ONSTACK | SS_AUTODISARM) {
        SS_DISABLE => Ok(None),
        0 if len < MINSIGSTKSZ => Err(Errno::NOMEM),
        0 => Ok(Some(AltStack {
            start,
            len,
            autodisarm: flags & SS_AUTODISARM != 0,
        })),
        _ => Err(Errno::INVAL),
    }
}

/// sigaltstack(2) of a task whose stack pointer is `rsp`.
pub fn sigaltstack(
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    rsp: u64,
    new: u64,
    old: u64,
) -> Value {
    let of = &mut tasks.current().signals;
    let before = of.stack;
    let mut after = before;
    if new != 0 {
        let in_use = before.is_some_and(|stack| stack.holds(rsp));
        let bytes = guest.read(new)?;
        if in_use {
            return Err(Errno::PERM);
        }
        after = stack_of(&bytes)?;
    }
    guest.write_unless_null(old, stack_bytes(before, rsp).done())?;
    of.stack = after;
    Ok(0)
}

/// kill(2), tkill(2), tgkill(2) and their forms with a `siginfo_t`.
pub fn kill(
    signals: &mut Signals,
    tasks: &mut Tasks,
    target: Target,
    signal: u64,
    info: Option<[u8; INFO_LEN]>,
) -> Value {
    let number = int(signal);
    if !(0..=LAST).contains(&number) {
        return Err(Errno::INVAL);
    }
    if let Target::Task(tid) = target
        && !tasks.iter().any(|task| task.tid == tid)
    {
        return Err(Errno::SRCH);
    }
    if number == 0 {
        return Ok(0);
    }
    let signal = match info {
        Some(bytes) => {
            let info = Layout::<INFO_LEN>::new()
                .bytes(0, &bytes)
                .u32(0, number.cast_unsigned())
                .array();
            Signal { number, info }
        }
        None if target == Target::Process => Signal::by_process(number, SI_USER),
        None => Signal::by_process(number, SI_TKILL),
    };
    send(signals, tasks, target, signal)?;
    Ok(0)
}

/// Which process kill(2) means: there is one, which is its own group.
pub fn process(tasks: &Tasks, pid: u64) -> Result<Target, Errno> {
    match int(pid) {
        0 => Ok(Target::Process),
        pid if tasks.pids().contains(&pid) => Ok(Target::Process),
        _ => Err(Errno::SRCH),
    }
}

/// Blocks other signals as long as the call takes, as ppoll(2) and its like have it.
pub fn mask_for_call(
    tasks: &mut Tasks,
    guest: &Guest<'_>,
    mask: u64,
    size: u64,
) -> Result<(), Errno> {
    if mask == 0 {
        return Ok(());
    }
    check_size(size)?;
    let mask = guest.read_u64(mask)?;
    tasks.current().signals.set_mask_for_call(mask);
    Ok(())
}

/// pause(2) and rt_sigsuspend(2) with its temporary mask: a signal ends them.
pub fn suspend(tasks: &mut Tasks, guest: &mut Guest<'_>, mask: Option<(u64, u64)>) -> Reply {
    if let Some((address, size)) = mask {
        check_size(size)?;
        let mask = guest.read_u64(address)?;
        tasks.current().signals.set_mask_for_call(mask);
    }
    Ok(wait(None))
}

/// rt_sigtimedwait(2) without a timeout or with one.
pub fn rt_sigtimedwait(
    signals: &mut Signals,
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    args: [u64; 6],
) -> Reply {
    let [set, info, timeout, size, ..] = args;
    check_size(size)?;
    let set = guest.read_u64(set)? & !(bit(SIGKILL) | bit(SIGSTOP));
    let time = match timeout {
        0 => None,
        address => Some(crate::linux::time::read_duration(guest, address)?),
    };
    if let Some(signal) = take(signals, tasks, set) {
        guest.write_unless_null(info, &signal.info)?;
        return Ok(Outcome::Return(i64::from(signal.number)));
    }
    Ok(wait(time))
}

/// What the current task could take.
pub fn awaited(signals: &Signals, tasks: &Tasks) -> Awaited {
    let task = tasks.iter().nth(tasks.current_place());
    signals
        .pending
        .awaited(task.map(|task| &task.signals.pending))
}

/// Takes a signal of the set that was sent to the current task or to the process.
pub fn take(signals: &mut Signals, tasks: &mut Tasks, set: u64) -> Option<Signal> {
    let of = &mut tasks.current().signals;
    of.pending.take(set).or_else(|| signals.pending.take(set))
}

/// The task waits for a signal.
fn wait(time: Option<Duration>) -> Outcome {
    Outcome::Block(Wait {
        on: WaitOn::Signal,
        time,
        result: -i64::from(Errno::AGAIN.raw_os_error()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};
    use syscalls::Sysno;

    fn act(machine: &mut Machine, signal: u64, handler: u64) -> i64 {
        let action = machine.put(
            0,
            Layout::<32>::new()
                .u64(0, handler)
                .u64(8, 0x400_0000)
                .done(),
        );
        machine.call(Sysno::rt_sigaction, &[signal, action, SCRATCH + 64, 8])
    }

    fn mask(machine: &mut Machine, how: u64, signals: u64) -> Outcome {
        let set = machine.put(1, &signals.to_le_bytes());
        machine.outcome(Sysno::rt_sigprocmask, &[how, set, 0, 8])
    }

    /// So a reset has nothing to put back.
    #[test]
    fn reading_and_writing_leave_the_signals_alone() {
        let mut machine = Machine::new(Vec::new());
        machine.linux = machine.linux.clone();
        let vector = machine.put(0, &[SCRATCH.to_le_bytes(), 8u64.to_le_bytes()].concat());
        for (number, args) in [
            (Sysno::read, [0, SCRATCH, 8]),
            (Sysno::write, [1, SCRATCH, 8]),
            (Sysno::readv, [0, vector, 1]),
            (Sysno::writev, [2, vector, 1]),
            (Sysno::write, [77, SCRATCH, 8]),
        ] {
            machine.call(number, &args);
            assert!(!machine.linux.signals.changed(), "{number:?}");
        }
        act(&mut machine, 11, 0x1234);
        assert!(machine.linux.signals.changed());
    }

    #[test]
    fn actions_are_kept() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(act(&mut machine, 11, 0x1234), 0);
        assert_eq!(machine.get(SCRATCH + 64, 32), [0; 32]);
        assert_eq!(
            machine.call(Sysno::rt_sigaction, &[11, 0, SCRATCH + 64, 8]),
            0
        );
        assert_eq!(field_u64(&machine.get(SCRATCH + 64, 32), 0), 0x1234);
        assert_eq!(act(&mut machine, 9, 1), -22);
        assert_eq!(act(&mut machine, 65, 1), -22);
        assert_eq!(machine.call(Sysno::rt_sigaction, &[0, 0, 0, 8]), -22);
        assert_eq!(machine.call(Sysno::rt_sigaction, &[11, 0, 0, 4]), -22);
        assert_eq!(machine.call(Sysno::rt_sigaction, &[11, 1, 0, 8]), -14);
    }

    #[test]
    fn a_signal_to_oneself_ends_the_program_or_not() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(
            machine.outcome(Sysno::tgkill, &[1, 1, 6]),
            Outcome::Killed(6)
        );
        assert_eq!(machine.call(Sysno::kill, &[1, 0]), 0);
        assert_eq!(machine.call(Sysno::kill, &[1, 17]), 0);
        assert_eq!(machine.call(Sysno::kill, &[2, 9]), -3);
        assert_eq!(machine.call(Sysno::kill, &[1, 65]), -22);
        act(&mut machine, 15, SIG_IGN);
        assert_eq!(machine.call(Sysno::kill, &[1, 15]), 0);
        act(&mut machine, 10, 0x1234);
        assert_eq!(machine.outcome(Sysno::tkill, &[1, 10]), Outcome::Killed(10));
        assert!(String::from_utf8_lossy(&machine.host.stderr).contains("0x1234"));
    }

    #[test]
    fn blocked_signals_wait_until_unblocked() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(mask(&mut machine, 0, u64::MAX), Outcome::Return(0));
        assert_eq!(machine.call(Sysno::tkill, &[1, 6]), 0);
        assert_eq!(machine.call(Sysno::rt_sigpending, &[SCRATCH, 8]), 0);
        assert_eq!(machine.get(SCRATCH, 1), [0x20]);
        assert_eq!(mask(&mut machine, 2, 0), Outcome::Killed(6));
        assert_eq!(mask(&mut machine, 7, 0), Outcome::Return(-22));
        assert_eq!(mask(&mut machine, 0, u64::MAX), Outcome::Return(0));
        assert_eq!(machine.outcome(Sysno::tkill, &[1, 9]), Outcome::Killed(9));
    }

    #[test]
    fn waiting_for_signals() {
        let mut machine = Machine::new(Vec::new());
        let pause = machine.wait(Sysno::pause, &[]);
        assert_eq!((pause.on, pause.time), (WaitOn::Signal, None));
        let set = machine.put(1, &u64::MAX.to_le_bytes());
        let time = machine.put(2, &[0; 16]);
        let timed = machine.wait(Sysno::rt_sigtimedwait, &[set, 0, time, 8]);
        assert_eq!((timed.time, timed.result), (Some(Duration::ZERO), -11));
        assert_eq!(
            machine.wait(Sysno::rt_sigtimedwait, &[set, 0, 0, 8]).time,
            None
        );
        mask(&mut machine, 0, u64::MAX);
        machine.call(Sysno::tkill, &[1, 12]);
        assert_eq!(machine.call(Sysno::rt_sigtimedwait, &[set, 0, 0, 8]), 12);
    }

    #[test]
    fn the_alternate_stack_is_kept() {
        let mut machine = Machine::new(Vec::new());
        let stack = machine.put(0, Layout::<24>::new().u64(0, 0x5000).u64(16, 8192).done());
        assert_eq!(machine.call(Sysno::sigaltstack, &[stack, SCRATCH + 64]), 0);
        assert_eq!(field_u32(&machine.get(SCRATCH + 64, 24), 8), SS_DISABLE);
        assert_eq!(machine.call(Sysno::sigaltstack, &[0, SCRATCH + 64]), 0);
        assert_eq!(field_u64(&machine.get(SCRATCH + 64, 24), 16), 8192);
        let small = machine.put(0, Layout::<24>::new().u64(16, 1).done());
        assert_eq!(machine.call(Sysno::sigaltstack, &[small, 0]), -12);
    }
}
