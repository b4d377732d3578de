//! What becomes of signals that were sent (signal(7)): a task takes them on its way back to its code.

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::call::Call;
use crate::linux::tasks::pending::{Pending, Signal, bit};
use crate::linux::tasks::signals::{Action, SIG_DFL, SIG_IGN, Signals};
use crate::linux::tasks::task::{Task, Tasks};

/// Flags of a [`Action`]: use the alternate stack, go on with the interrupted call, do not block the signal itself, handle
/// it once (sigaction(2)).
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
/// The handler's way back is told. Without it the kernel of x86-64 runs no handler.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// What a task does next about signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    GoOn,
    /// Makes the call again that was interrupted for nothing.
    MakeAgain(Call),
    /// Runs a handler.
    Handle(Handling),
    /// Ends, and the program with it.
    Die(i32),
}

/// A handler's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handling {
    /// The signal.
    pub signal: Signal,
    /// Its handler.
    pub action: Action,
    /// What the task blocks again afterwards.
    pub mask: u64,
    /// The interrupted call, if it goes on afterwards.
    pub again: Option<Call>,
}

impl Handling {
    /// Whether it runs on the alternate stack, if there is one.
    pub fn on_stack(&self) -> bool {
        self.action.flags & SA_ONSTACK != 0
    }
}

/// Whether the current task has anything to do before it goes on.
pub fn is_due(signals: &Signals, task: &Task) -> bool {
    let of = &task.signals;
    ready(signals, task) != 0 || of.after_call.is_some() || of.interrupted.is_some()
}

fn ready(signals: &Signals, task: &Task) -> u64 {
    (signals.pending.set() | task.signals.pending.set()) & !task.signals.mask
}

/// Whether there is a signal that it does not block.
pub fn has_any(signals: &Signals, task: &Task) -> bool {
    ready(signals, task) != 0
}

/// Whether a signal ends this task's wait. What is ignored does not, and is gone.
pub fn interrupts(signals: &mut Signals, task: &mut Task) -> bool {
    let among = ready(signals, task);
    let ignored = (1..=crate::linux::tasks::pending::LAST)
        .filter(|&number| among & bit(number) != 0 && signals.ignores(number));
    for number in ignored.collect::<Vec<_>>() {
        signals.pending.forget(number);
        task.signals.pending.forget(number);
    }
    ready(signals, task) != 0
}

/// What the current task does before it goes on.
pub fn next(signals: &mut Signals, tasks: &mut Tasks) -> Next {
    let task = tasks.current();
    let interrupted = task.signals.interrupted.take();
    loop {
        let among = !task.signals.mask;
        let take = |pending: &mut Pending| pending.take(among);
        let taken = take(&mut task.signals.pending).or_else(|| take(&mut signals.pending));
        let Some(signal) = taken else {
            if let Some(mask) = task.signals.after_call.take() {
                task.signals.mask = mask;
            }
            return interrupted.map_or(Next::GoOn, Next::MakeAgain);
        };
        if signals.ignores(signal.number) {
            continue;
        }
        let action = signals.action(signal.number).unwrap_or_default();
        if matches!(action.handler, SIG_DFL | SIG_IGN) {
            return Next::Die(signal.number);
        }
        return Next::Handle(begin(signals, task, signal, action, interrupted));
    }
}

/// What the current task does about a signal that its own instruction has caused: `None` where it has no handler for it,
/// or blocks it.
pub fn fault(signals: &mut Signals, tasks: &mut Tasks, signal: Signal) -> Option<Handling> {
    let task = tasks.current();
    let action = signals.action(signal.number)?;
    let blocked = task.signals.mask & bit(signal.number) != 0;
    if blocked || matches!(action.handler, SIG_DFL | SIG_IGN) {
        return None;
    }
    Some(begin(signals, task, signal, action, None))
}

fn begin(
    signals: &mut Signals,
    task: &mut Task,
    signal: Signal,
    action: Action,
    interrupted: Option<Call>,
) -> Handling {
    let of = &mut task.signals;
    let mask = of.after_call.take().unwrap_or(of.mask);
    let itself = if action.flags & SA_NODEFER == 0 {
        bit(signal.number)
    } else {
        0
    };
    of.set_mask(of.mask | action.mask | itself);
    if action.flags & SA_RESETHAND != 0 {
        signals.reset(signal.number);
    }
    let restarts = action.flags & SA_RESTART != 0;
    Handling {
        signal,
        action,
        mask,
        again: interrupted.filter(|call| restarts && goes_on(call.number)),
    }
}

/// Whether a call goes on after a handler that asks for it (signal(7), "Interruption of system calls and library functions
/// by signal handlers"). Those that wait for a time or for readiness never do.
fn goes_on(number: u64) -> bool {
    let number = usize::try_from(number).ok().and_then(Sysno::new);
    number.is_some_and(|number| {
        matches!(
            number,
            Sysno::read
                | Sysno::readv
                | Sysno::write
                | Sysno::writev
                | Sysno::futex
                | Sysno::wait4
                | Sysno::waitid
                | Sysno::accept
                | Sysno::accept4
                | Sysno::connect
                | Sysno::recvfrom
                | Sysno::recvmsg
                | Sysno::sendto
                | Sysno::sendmsg
                | Sysno::recvmmsg
                | Sysno::sendmmsg
                | Sysno::flock
                | Sysno::ioctl
        )
    })
}

/// RAX of a call that a signal has interrupted.
pub fn interrupted() -> i64 {
    -i64::from(Errno::INTR.raw_os_error())
}
