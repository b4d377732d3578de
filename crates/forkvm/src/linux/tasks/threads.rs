//! Threads and processes: there is one of each. Making more is refused with an error that libraries report well,
//! and futex(2) knows that nobody else will wake a sleeper.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Reply, field_u64, flags};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::time::{Clocks, read_deadline, read_duration};
use crate::linux::told::{Told, Topic};

const CLONE_THREAD: u64 = 0x1_0000;
/// Size of the first published `struct clone_args`, the least that clone3(2) takes.
const CLONE_ARGS_SIZE_VER0: u64 = 64;

const FUTEX_WAIT: u32 = 0;
const FUTEX_WAKE: u32 = 1;
const FUTEX_REQUEUE: u32 = 3;
const FUTEX_CMP_REQUEUE: u32 = 4;
const FUTEX_WAIT_BITSET: u32 = 9;
const FUTEX_WAKE_BITSET: u32 = 10;
const FUTEX_CLOCK_REALTIME: u32 = 256;

fn refuse(told: &mut Told, guest: &mut Guest<'_>, what: Topic) -> Errno {
    told.tell(what, guest);
    match what {
        // pthread_create(3) reports it as it is; ENOSYS would make it try the next older call.
        Topic::Thread => Errno::AGAIN,
        _ => Errno::NOSYS,
    }
}

/// clone(2)
pub fn clone(told: &mut Told, guest: &mut Guest<'_>, how: u64) -> Errno {
    refuse(
        told,
        guest,
        if how & CLONE_THREAD != 0 {
            Topic::Thread
        } else {
            Topic::Process
        },
    )
}

/// clone3(2), `struct clone_args` starting with the flags.
pub fn clone3(told: &mut Told, guest: &mut Guest<'_>, address: u64, size: u64) -> Errno {
    if size < CLONE_ARGS_SIZE_VER0 {
        return Errno::INVAL;
    }
    match guest.read::<64>(address) {
        Ok(args) => clone(told, guest, field_u64(&args, 0)),
        Err(errno) => errno,
    }
}

/// fork(2), vfork(2), execve(2), execveat(2)
pub fn process(told: &mut Told, guest: &mut Guest<'_>) -> Errno {
    refuse(told, guest, Topic::Process)
}

/// futex(2). Waking finds nobody; waiting for a value that is there ends at its timeout or never.
pub fn futex(clocks: &Clocks, guest: &Guest<'_>, args: [u64; 6]) -> Reply {
    let [address, operation, value, timeout, _, value3] = args;
    let operation = flags(operation);
    // Bit 7 is FUTEX_PRIVATE_FLAG.
    let command = operation & !(128 | FUTEX_CLOCK_REALTIME);
    if !address.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    match command {
        FUTEX_WAKE | FUTEX_WAKE_BITSET | FUTEX_REQUEUE => {
            guest.read_u32(address)?;
            Ok(Outcome::Return(0))
        }
        FUTEX_CMP_REQUEUE => {
            if guest.read_u32(address)? == flags(value3) {
                Ok(Outcome::Return(0))
            } else {
                Err(Errno::AGAIN)
            }
        }
        FUTEX_WAIT | FUTEX_WAIT_BITSET => {
            if command == FUTEX_WAIT_BITSET && flags(value3) == 0 {
                return Err(Errno::INVAL);
            }
            if guest.read_u32(address)? != flags(value) {
                return Err(Errno::AGAIN);
            }
            let time = match (timeout, command) {
                (0, _) => None,
                (timeout, FUTEX_WAIT) => Some(read_duration(guest, timeout)?),
                (timeout, _) => {
                    let clock = u64::from(operation & FUTEX_CLOCK_REALTIME == 0);
                    Some(read_deadline(clocks, guest, clock, timeout)?)
                }
            };
            Ok(Outcome::Block(Wait {
                on: WaitOn::Futex(address),
                time,
                result: -i64::from(Errno::TIMEDOUT.raw_os_error()),
            }))
        }
        // Locks with priority inheritance, and FUTEX_WAKE_OP, which no current C library uses.
        _ => Err(Errno::NOSYS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::abi::Layout;
    use crate::linux::testing::Machine;
    use std::time::Duration;
    use syscalls::Sysno;

    #[test]
    fn threads_and_processes_are_refused_and_explained_once() {
        let mut machine = Machine::new(Vec::new());
        let args = machine.put(0, Layout::<88>::new().u64(0, 0x3d0f00).done());
        assert_eq!(machine.call(Sysno::clone3, &[args, 88]), -11);
        assert_eq!(machine.call(Sysno::clone, &[0x3d0f00]), -11);
        assert_eq!(machine.call(Sysno::fork, &[]), -38);
        assert_eq!(machine.call(Sysno::vfork, &[]), -38);
        assert_eq!(machine.call(Sysno::execve, &[]), -38);
        assert_eq!(machine.call(Sysno::clone, &[17]), -38);
        assert_eq!(machine.call(Sysno::clone3, &[1, 88]), -14);
        assert_eq!(machine.call(Sysno::clone3, &[args, 8]), -22);
        let told = String::from_utf8_lossy(&machine.host.stderr);
        assert_eq!(told.matches("threads are not supported yet").count(), 1);
        assert_eq!(told.matches("other processes are not supported").count(), 1);
        assert_eq!(told.lines().count(), 2);
    }

    #[test]
    fn futexes_know_that_nobody_else_is_there() {
        let mut machine = Machine::new(Vec::new());
        let word = machine.put(0, &7u32.to_le_bytes());
        let second = machine.put(1, Layout::<16>::new().i64(0, 1).done());
        let wait_private = 128;
        assert_eq!(machine.call(Sysno::futex, &[word, 129, 1]), 0);
        assert_eq!(machine.call(Sysno::futex, &[word, wait_private, 8]), -11);
        let endless = machine.wait(Sysno::futex, &[word, wait_private, 7, 0]);
        assert_eq!((endless.on, endless.time), (WaitOn::Futex(word), None));
        let timed = machine.wait(Sysno::futex, &[word, wait_private, 7, second]);
        assert_eq!(
            (timed.time, timed.result),
            (Some(Duration::from_secs(1)), -110)
        );
        let past = machine.wait(Sysno::futex, &[word, 9 | 256, 7, second, 0, u64::MAX]);
        assert_eq!((past.time, past.result), (Some(Duration::ZERO), -110));
        assert_eq!(machine.call(Sysno::futex, &[word + 1, 1, 1]), -22);
        assert_eq!(machine.call(Sysno::futex, &[4, 0, 1]), -14);
        assert_eq!(machine.call(Sysno::futex, &[word, 6, 1]), -38);
    }
}
