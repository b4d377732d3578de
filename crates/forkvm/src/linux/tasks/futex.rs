//! futex(2). A word's key is its address: there is one address space, and nobody shares memory with it.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Reply, Value, count, field_u32, field_u64, flags, int};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::kept::Kept;
use crate::linux::tasks::task::Tasks;
use crate::linux::time::{Clocks, read_deadline, read_duration};

// linux/futex.h.
const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const PRIVATE_FLAG: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

/// `FUTEX_OWNER_DIED` and `FUTEX_TID_MASK`: what a robust lock's word says.
const OWNER_DIED: u32 = 0x4000_0000;
const TID_MASK: u32 = 0x3fff_ffff;
/// Most entries of a robust list that are looked at (Linux: ROBUST_LIST_LIMIT).
const ROBUST_LIMIT: usize = 2048;

/// futex(2). Locks with priority inheritance are not there.
pub fn futex(tasks: &mut Tasks, clocks: &Clocks, guest: &mut Guest<'_>, args: [u64; 6]) -> Reply {
    let [address, operation, value, timeout, second, value3] = args;
    let operation = flags(operation);
    let command = operation & !(PRIVATE_FLAG | CLOCK_REALTIME);
    let (value, value3) = (flags(value), flags(value3));
    if !address.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    let most = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let done = |woken: usize| Ok(Outcome::Return(count(woken)));
    match command {
        WAKE | WAKE_BITSET => {
            let bits = if command == WAKE { u32::MAX } else { value3 };
            if bits == 0 {
                return Err(Errno::INVAL);
            }
            guest.read_u32(address)?;
            done(tasks.wake(address, bits, most(value)))
        }
        REQUEUE | CMP_REQUEUE => {
            let now = guest.read_u32(address)?;
            guest.read_u32(second)?;
            if command == CMP_REQUEUE && now != value3 {
                return Err(Errno::AGAIN);
            }
            let woken = tasks.wake(address, u32::MAX, most(value));
            let moved = tasks.requeue(address, second, most(flags(timeout)));
            done(if command == REQUEUE {
                woken
            } else {
                woken + moved
            })
        }
        WAKE_OP => {
            let second_wakes = wake_op(guest, second, value3)?;
            let mut woken = tasks.wake(address, u32::MAX, most(value));
            if second_wakes {
                woken += tasks.wake(second, u32::MAX, most(flags(timeout)));
            }
            done(woken)
        }
        WAIT | WAIT_BITSET => {
            let bits = if command == WAIT { u32::MAX } else { value3 };
            if bits == 0 {
                return Err(Errno::INVAL);
            }
            let time = match (timeout, command) {
                (0, _) => None,
                (timeout, WAIT) => Some(read_duration(guest, timeout)?),
                (timeout, _) => {
                    let clock = u64::from(operation & CLOCK_REALTIME == 0);
                    Some(read_deadline(clocks, guest, clock, timeout)?)
                }
            };
            if guest.read_u32(address)? != value {
                return Err(Errno::AGAIN);
            }
            Ok(Outcome::Block(Wait {
                on: WaitOn::Futex { address, bits },
                time,
                result: -i64::from(Errno::TIMEDOUT.raw_os_error()),
            }))
        }
        _ => Err(Errno::NOSYS),
    }
}

/// futex_waitv(2): waits for the first of several that is woken, and gives its place.
pub fn wait_for_any(
    tasks: &mut Kept<Tasks>,
    clocks: &Clocks,
    guest: &Guest<'_>,
    [waiters, number, how, timeout, clock]: [u64; 5],
) -> Reply {
    /// `FUTEX_WAITV_MAX`
    const MOST: u32 = 128;
    /// `struct futex_waitv`: value, address, flags, nothing.
    const ENTRY: u64 = 24;
    /// `FUTEX2_SIZE_U32`, the only size there is.
    const WORD: u32 = 2;
    let number = flags(number);
    if flags(how) != 0 || !(1..=MOST).contains(&number) || waiters == 0 {
        return Err(Errno::INVAL);
    }
    let time = match timeout {
        0 => None,
        _ if !matches!(int(clock), libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC) => {
            return Err(Errno::INVAL);
        }
        _ => Some(read_deadline(clocks, guest, clock, timeout)?),
    };
    let mut wanted = Vec::new();
    for i in 0..u64::from(number) {
        let at = waiters.checked_add(i * ENTRY).ok_or(Errno::FAULT)?;
        let entry: [u8; ENTRY as usize] = guest.read(at)?;
        let how = field_u32(&entry, 16);
        if how & !PRIVATE_FLAG != WORD || field_u32(&entry, 20) != 0 {
            return Err(Errno::INVAL);
        }
        wanted.push((field_u64(&entry, 0), field_u64(&entry, 8)));
    }
    for &(value, address) in &wanted {
        if !address.is_multiple_of(4) {
            return Err(Errno::INVAL);
        }
        if u64::from(guest.read_u32(address)?) != value {
            return Err(Errno::AGAIN);
        }
    }
    tasks.current().futexes = wanted.into_iter().map(|(_, address)| address).collect();
    Ok(Outcome::Block(Wait {
        on: WaitOn::Futexes,
        time,
        result: -i64::from(Errno::TIMEDOUT.raw_os_error()),
    }))
}

/// `FUTEX_WAKE_OP`: changes the second word, and says whether its waiters are woken too.
fn wake_op(guest: &mut Guest<'_>, address: u64, encoded: u32) -> Result<bool, Errno> {
    let signed = |bits: u32| (bits << 20) as i32 >> 20;
    let (operation, comparison) = (encoded >> 28 & 7, encoded >> 24 & 15);
    let (mut argument, compared) = (signed(encoded >> 12), signed(encoded));
    if encoded & 1 << 31 != 0 {
        argument = 1i32.wrapping_shl(argument as u32);
    }
    if !address.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    let old = guest.read_u32(address)? as i32;
    let new = match operation {
        0 => argument,
        1 => old.wrapping_add(argument),
        2 => old | argument,
        3 => old & !argument,
        4 => old ^ argument,
        _ => return Err(Errno::NOSYS),
    };
    guest.write(address, &new.to_le_bytes())?;
    Ok(match comparison {
        0 => old == compared,
        1 => old != compared,
        2 => old < compared,
        3 => old <= compared,
        4 => old > compared,
        5 => old >= compared,
        _ => return Err(Errno::NOSYS),
    })
}

/// What is left to do for a task that ends: its joiner is woken, and whoever waits for a lock that it held.
pub fn ended(tasks: &mut Tasks, guest: &mut Guest<'_>) {
    let task = tasks.current();
    let (tid, clear, robust) = (task.tid, task.clear_child_tid, task.robust_list);
    if robust != 0 {
        // A list that is not readable says nothing, as in Linux.
        let _ = release_robust(tasks, guest, robust, tid);
    }
    if clear != 0 && guest.write(clear, &0u32.to_le_bytes()).is_ok() {
        tasks.wake(clear, u32::MAX, 1);
    }
}

/// Goes through `struct robust_list_head`: the list's first entry, the offset of an entry's word, the entry under way.
fn release_robust(
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    head: u64,
    tid: i32,
) -> Result<(), Errno> {
    let mut entry = guest.read_u64(head)?;
    let offset = guest.read_u64(head.wrapping_add(8))?;
    let pending = guest.read_u64(head.wrapping_add(16))?;
    for _ in 0..ROBUST_LIMIT {
        // The lowest bit marks a lock with priority inheritance.
        let at = entry & !1;
        if at == head {
            break;
        }
        let next = guest.read_u64(at)?;
        if at != pending & !1 {
            release(tasks, guest, at.wrapping_add(offset), tid)?;
        }
        entry = next;
    }
    if pending & !1 != 0 {
        release(tasks, guest, (pending & !1).wrapping_add(offset), tid)?;
    }
    Ok(())
}

fn release(tasks: &mut Tasks, guest: &mut Guest<'_>, word: u64, tid: i32) -> Result<(), Errno> {
    let value = guest.read_u32(word)?;
    if value & TID_MASK == tid.unsigned_abs() {
        let waiters = value & !(TID_MASK | OWNER_DIED);
        guest.write(word, &(waiters | OWNER_DIED).to_le_bytes())?;
        tasks.wake(word, u32::MAX, 1);
    }
    Ok(())
}

/// set_robust_list(2)
pub fn set_robust_list(tasks: &mut Tasks, head: u64, len: u64) -> Value {
    // struct robust_list_head.
    if len != 24 {
        return Err(Errno::INVAL);
    }
    tasks.current().robust_list = head;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::abi::Layout;
    use crate::linux::testing::Machine;
    use std::time::Duration;
    use syscalls::Sysno;

    #[test]
    fn waits_end_by_time_or_a_wake() {
        let mut machine = Machine::new(Vec::new());
        let word = machine.put(0, &7u32.to_le_bytes());
        let second = machine.put(1, Layout::<16>::new().i64(0, 1).done());
        let wait_private = 128;
        assert_eq!(machine.call(Sysno::futex, &[word, 129, 1]), 0);
        assert_eq!(machine.call(Sysno::futex, &[word, wait_private, 8]), -11);
        let on = WaitOn::Futex {
            address: word,
            bits: u32::MAX,
        };
        let endless = machine.wait(Sysno::futex, &[word, wait_private, 7, 0]);
        assert_eq!((endless.on, endless.time), (on, None));
        let timed = machine.wait(Sysno::futex, &[word, wait_private, 7, second]);
        assert_eq!(
            (timed.time, timed.result),
            (Some(Duration::from_secs(1)), -110)
        );
        let past = machine.wait(Sysno::futex, &[word, 9 | 256, 7, second, 0, u64::MAX]);
        assert_eq!((past.time, past.result), (Some(Duration::ZERO), -110));
        assert_eq!(machine.call(Sysno::futex, &[word, 9, 7, 0, 0, 0]), -22);
        assert_eq!(machine.call(Sysno::futex, &[word + 1, 1, 1]), -22);
        assert_eq!(machine.call(Sysno::futex, &[4, 0, 1]), -14);
        assert_eq!(machine.call(Sysno::futex, &[word, 6, 1]), -38);
    }
}
