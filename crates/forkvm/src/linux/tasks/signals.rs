//! Signals: their set-up is kept, so that programs can ask for what they set, but handlers are never run.
//! A signal that a program sends itself ends it, unless it is ignored or blocked.

use std::time::Duration;

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Reply, Value, field_u32, field_u64, int};
use crate::linux::call::{Outcome, Wait, WaitOn};

/// Number of the last signal (`_NSIG` of asm-generic/signal.h).
const LAST: i32 = 64;
const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;
/// `write` to a pipe that nobody reads.
pub const SIGPIPE: i32 = 13;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;

const SS_DISABLE: u32 = 2;
const MINSIGSTKSZ: u64 = 2048;

/// The one process and thread there is.
pub const SELF: i32 = 1;

/// The kernel's `struct sigaction` on x86-64: handler, flags, restorer, mask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// Everything a program may have set up about signals.
#[derive(Debug, Clone)]
pub struct Signals {
    actions: [Action; 64],
    blocked: u64,
    pending: u64,
    stack: Option<(u64, u64)>,
}

impl Signals {
    /// As after `execve` from a shell.
    pub fn new() -> Self {
        Self {
            actions: [Action::default(); 64],
            blocked: 0,
            pending: 0,
            stack: None,
        }
    }

    /// As execve(2) does: what had a handler has its default again.
    pub fn forget_handlers(&mut self) {
        for action in &mut self.actions {
            if action.handler != SIG_IGN {
                *action = Action::default();
            }
        }
        self.stack = None;
    }

    /// Sends the program a signal: what ends it, or `None` if it lives on.
    pub fn send(&mut self, signal: i32, guest: &mut Guest<'_>) -> Option<Outcome> {
        if self.blocked & bit(signal) != 0 && signal != SIGKILL && signal != SIGSTOP {
            self.pending |= bit(signal);
            return None;
        }
        let action = self.action(signal).unwrap_or_default();
        // The default of these is to do nothing; SIGCONT finds nothing that is stopped.
        let harmless = matches!(signal, SIGCHLD | SIGCONT | SIGURG | SIGWINCH);
        let catchable = signal != SIGKILL && signal != SIGSTOP;
        match action.handler {
            SIG_DFL if harmless => None,
            SIG_IGN if catchable => None,
            SIG_DFL | SIG_IGN => Some(Outcome::Killed(signal)),
            handler => {
                guest.note(&format!(
                    "signal {signal} ends the program: running its handler at {handler:#x} is not supported"
                ));
                Some(Outcome::Killed(signal))
            }
        }
    }

    /// Sends what is pending and no longer blocked.
    fn deliver(&mut self, guest: &mut Guest<'_>) -> Option<Outcome> {
        let ready = self.pending & !self.blocked;
        self.pending &= self.blocked;
        (1..=LAST)
            .filter(|signal| ready & bit(*signal) != 0)
            .find_map(|signal| self.send(signal, guest))
    }

    fn action(&self, signal: i32) -> Option<Action> {
        self.actions
            .get(usize::try_from(signal.checked_sub(1)?).ok()?)
            .copied()
    }
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal.saturating_sub(1))
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift))
        .unwrap_or(0)
}

fn check_size(size: u64) -> Result<(), Errno> {
    if size == 8 { Ok(()) } else { Err(Errno::INVAL) }
}

/// rt_sigaction(2)
pub fn rt_sigaction(signals: &mut Signals, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
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
            mask: field(24),
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
    let index = usize::try_from(signal.saturating_sub(1)).map_err(|_| Errno::INVAL)?;
    if let (Some(action), Some(place)) = (action, signals.actions.get_mut(index)) {
        *place = action;
    }
    Ok(0)
}

/// rt_sigprocmask(2). Unblocking a pending signal delivers it: musl's `raise` and `abort` rely on that.
pub fn rt_sigprocmask(signals: &mut Signals, guest: &mut Guest<'_>, args: [u64; 6]) -> Reply {
    let [how, new, old, size, ..] = args;
    check_size(size)?;
    let before = signals.blocked;
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
    signals.blocked = after & !(bit(SIGKILL) | bit(SIGSTOP));
    Ok(signals.deliver(guest).unwrap_or(Outcome::Return(0)))
}

/// rt_sigpending(2)
pub fn rt_sigpending(signals: &Signals, guest: &mut Guest<'_>, address: u64, size: u64) -> Value {
    check_size(size)?;
    guest.write(address, &signals.pending.to_le_bytes())?;
    Ok(0)
}

/// sigaltstack(2), `stack_t`: pointer, flags, size.
pub fn sigaltstack(signals: &mut Signals, guest: &mut Guest<'_>, new: u64, old: u64) -> Value {
    let before = signals.stack;
    let mut after = before;
    if new != 0 {
        let bytes: [u8; 24] = guest.read(new)?;
        let (start, flags, size) = (
            field_u64(&bytes, 0),
            field_u32(&bytes, 8),
            field_u64(&bytes, 16),
        );
        // SS_ONSTACK (1) is accepted and SS_AUTODISARM (1 << 31) has no handler to matter to.
        after = match flags & !(1 | 1 << 31) {
            SS_DISABLE => None,
            0 if size < MINSIGSTKSZ => return Err(Errno::NOMEM),
            0 => Some((start, size)),
            _ => return Err(Errno::INVAL),
        };
    }
    let layout = Layout::<24>::new();
    let bytes = match before {
        Some((start, size)) => layout.u64(0, start).u64(16, size),
        None => layout.u32(8, SS_DISABLE),
    };
    guest.write_unless_null(old, bytes.done())?;
    signals.stack = after;
    Ok(0)
}

/// kill(2), tkill(2), tgkill(2): `target` and `group` are this process or nobody.
pub fn kill(signals: &mut Signals, guest: &mut Guest<'_>, targets: &[i32], signal: u64) -> Reply {
    let signal = int(signal);
    if !(0..=LAST).contains(&signal) {
        return Err(Errno::INVAL);
    }
    if targets.iter().any(|target| *target != SELF) {
        return Err(Errno::SRCH);
    }
    if signal == 0 {
        return Ok(Outcome::Return(0));
    }
    Ok(signals.send(signal, guest).unwrap_or(Outcome::Return(0)))
}

/// pause(2) and rt_sigsuspend(2) with its temporary mask: only a pending signal could end them.
pub fn suspend(signals: &mut Signals, guest: &mut Guest<'_>, mask: Option<u64>) -> Reply {
    if let Some(address) = mask {
        let mask = guest.read_u64(address)?;
        let before = std::mem::replace(&mut signals.blocked, mask & !(bit(SIGKILL) | bit(SIGSTOP)));
        let ended = signals.deliver(guest);
        signals.blocked = before;
        if let Some(outcome) = ended {
            return Ok(outcome);
        }
    }
    Ok(wait(None))
}

/// rt_sigtimedwait(2) without a timeout or with one.
pub fn rt_sigtimedwait(signals: &mut Signals, guest: &mut Guest<'_>, args: [u64; 6]) -> Reply {
    let [set, info, timeout, size, ..] = args;
    check_size(size)?;
    let ready = guest.read_u64(set)? & signals.pending;
    if let Some(signal) = (1..=LAST).find(|signal| ready & bit(*signal) != 0) {
        // siginfo_t: signo, errno, code (SI_USER is 0), pid.
        let number = u32::try_from(signal).unwrap_or(0);
        guest.write_unless_null(info, Layout::<128>::new().u32(0, number).u32(16, 1).done())?;
        signals.pending &= !bit(signal);
        return Ok(Outcome::Return(i64::from(signal)));
    }
    let time = match timeout {
        0 => None,
        address => Some(crate::linux::time::read_duration(guest, address)?),
    };
    Ok(wait(time))
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
