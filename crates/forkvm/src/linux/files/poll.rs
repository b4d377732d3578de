//! Waiting for descriptors: poll(2), ppoll(2), select(2), pselect6(2).

use std::time::Duration;

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, Reply, Value, field_u32, int, length};
use crate::linux::call::{Call, Outcome, Wait, WaitOn};
use crate::linux::files::fds::Files;
use crate::linux::files::ready::Look;
use crate::linux::net::readiness::{ERR, HUP, IN, NVAL, OUT};
use crate::linux::tasks::pending::Awaited;
use crate::linux::time::{self, read_duration, read_timeval};
use crate::memory::user::UserMemory;

/// poll(2); a negative timeout is none.
pub fn poll(
    of: (&Files, Awaited),
    guest: &mut Guest<'_>,
    array: u64,
    number: u64,
    timeout: u64,
) -> Reply {
    let timeout = u64::try_from(int(timeout)).ok().map(Duration::from_millis);
    wait_for(of, guest, (array, number), timeout)
}

/// ppoll(2) but for its signal mask; no timeout is none.
pub fn ppoll(
    of: (&Files, Awaited),
    guest: &mut Guest<'_>,
    array: u64,
    number: u64,
    timeout: u64,
) -> Reply {
    let timeout = if timeout == 0 {
        None
    } else {
        Some(read_duration(guest, timeout)?)
    };
    wait_for(of, guest, (array, number), timeout)
}

fn wait_for(
    (files, awaited): (&Files, Awaited),
    guest: &mut Guest<'_>,
    entries: (u64, u64),
    timeout: Option<Duration>,
) -> Reply {
    let look = &mut Look::new(files, awaited);
    let ready = check(look, files.most(), guest, entries)?;
    Ok(finish(ready, timeout))
}

/// An array of `struct pollfd`: int fd, short events, short revents.
fn check(
    look: &mut Look<'_>,
    most: usize,
    guest: &mut Guest<'_>,
    (array, number): (u64, u64),
) -> Value {
    if number > length(most) {
        return Err(Errno::INVAL);
    }
    let mut ready = 0;
    for i in 0..number {
        let at = array.checked_add(i.saturating_mul(8)).ok_or(Errno::FAULT)?;
        let entry: [u8; 8] = guest.read(at)?;
        let wanted = u16::from_le_bytes([entry[4], entry[5]]);
        let fd = field_u32(&entry, 0);
        // A negative descriptor is skipped.
        let found = if fd > i32::MAX.cast_unsigned() {
            0
        } else {
            look.descriptor(fd.into()).events & (wanted | ERR | HUP | NVAL)
        };
        guest.write(at.checked_add(6).ok_or(Errno::FAULT)?, &found.to_le_bytes())?;
        ready += i64::from(found != 0);
    }
    Ok(ready)
}

fn finish(ready: i64, timeout: Option<Duration>) -> Outcome {
    match timeout {
        _ if ready > 0 => Outcome::Return(ready),
        Some(Duration::ZERO) => Outcome::Return(0),
        time => Outcome::Block(Wait {
            on: WaitOn::Descriptor,
            time,
            result: 0,
        }),
    }
}

/// How a call of the select family says how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// A `struct timeval`, as in select(2).
    Timeval,
    /// A `struct timespec`, as in pselect6(2).
    Timespec,
}

/// Where pselect6(2) has its signal mask, and how long that is.
pub fn mask_of_pselect(guest: &Guest<'_>, address: u64) -> Result<(u64, u64), Errno> {
    if address == 0 {
        return Ok((0, 0));
    }
    let second = address.checked_add(8).ok_or(Errno::FAULT)?;
    Ok((guest.read_u64(address)?, guest.read_u64(second)?))
}

/// select(2), pselect6(2) but for its signal mask
pub fn select(
    (files, awaited): (&Files, Awaited),
    guest: &mut Guest<'_>,
    args: [u64; 6],
    form: Timeout,
) -> Reply {
    let [number, read, write, except, timeout, _] = args;
    let number = usize::try_from(int(number))
        .map_err(|_| Errno::INVAL)?
        .min(1024);
    let timeout = match form {
        _ if timeout == 0 => None,
        Timeout::Timeval => Some(read_timeval(guest, timeout)?),
        Timeout::Timespec => Some(read_duration(guest, timeout)?),
    };
    // Sets are arrays of longs; only the first `number` bits count.
    let words = number.div_ceil(64);
    let sets = [(read, IN | HUP | ERR), (write, OUT | ERR), (except, 0)];
    let mut look = Look::new(files, awaited);
    let mut ready = 0;
    let mut results = Vec::new();
    for (address, wanted) in sets.into_iter().filter(|(address, _)| *address != 0) {
        for word in 0..words {
            let at = address
                .checked_add(length(word).saturating_mul(8))
                .ok_or(Errno::FAULT)?;
            let asked = guest.read_u64(at)?;
            let mut found = 0u64;
            for bit in (0..64usize.min(number.saturating_sub(word * 64)))
                .filter(|bit| asked >> bit & 1 != 0)
            {
                let now = look.descriptor(length(word * 64 + bit)).events;
                if now == NVAL {
                    return Err(Errno::BADF);
                }
                if now & wanted != 0 {
                    found |= 1 << bit;
                    ready += 1;
                }
            }
            results.push((at, found));
        }
    }
    let outcome = finish(ready, timeout);
    // A call that is made again has to find what was asked; of one that is not, this is the answer when its time is over.
    if matches!(outcome, Outcome::Return(_)) || !files.has_sockets() {
        for (at, found) in results {
            guest.write(at, &found.to_le_bytes())?;
        }
    }
    Ok(outcome)
}

/// The time of a wait is over: nothing is in the sets of select(2) then.
pub fn write_none(memory: &mut dyn UserMemory, call: Call) {
    let number = usize::try_from(call.number).ok().and_then(Sysno::new);
    if !matches!(number, Some(Sysno::select | Sysno::pselect6)) {
        return;
    }
    let [number, sets @ .., _, _] = call.args;
    let words = u64::try_from(int(number))
        .unwrap_or(0)
        .min(1024)
        .div_ceil(64);
    for set in sets.into_iter().filter(|set| *set != 0) {
        for word in 0..words {
            // What was read can be written, unless the program has taken it away meanwhile.
            let _ = memory.write(set.saturating_add(word * 8), &[0; 8]);
        }
    }
}

/// What is left of a wait's time, which the calls say that take it from where the program keeps it (select(2), "C
/// library/kernel differences").
pub fn write_left(memory: &mut dyn UserMemory, call: Call, left: Duration) {
    let number = usize::try_from(call.number).ok().and_then(Sysno::new);
    let (address, bytes) = match number {
        Some(Sysno::select) => (call.args[4], time::timeval_bytes_of(left)),
        Some(Sysno::pselect6) => (call.args[4], time::timespec_bytes_of(left)),
        Some(Sysno::ppoll) => (call.args[2], time::timespec_bytes_of(left)),
        _ => return,
    };
    if address != 0 {
        // One that the program may only read it does without.
        let _ = memory.write(address, bytes.done());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::Machine;

    fn entries(machine: &mut Machine, entries: &[(i32, u16)]) -> u64 {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(fd, events)| {
                [&fd.to_le_bytes()[..], &events.to_le_bytes(), &[0xaa; 2]].concat()
            })
            .collect();
        machine.put(0, &bytes)
    }

    #[test]
    fn the_standard_descriptors_are_open() {
        let mut machine = Machine::new(Vec::new());
        // What Rust's start-up asks.
        let array = entries(&mut machine, &[(0, 0), (1, 0), (2, 0)]);
        assert_eq!(machine.call(Sysno::poll, &[array, 3, 0]), 0);
        let array = entries(&mut machine, &[(0, IN), (1, IN | OUT), (-1, IN), (9, 0)]);
        assert_eq!(machine.call(Sysno::poll, &[array, 4, u64::MAX]), 3);
        let revents = |i: usize| machine.get(array + 8 * i as u64 + 6, 1)[0];
        assert_eq!([0, 1, 2, 3].map(revents), [1, 4, 0, 0x20]);
    }

    #[test]
    fn waiting_for_nothing() {
        let mut machine = Machine::new(Vec::new());
        let array = entries(&mut machine, &[(1, IN)]);
        assert_eq!(
            machine.wait(Sysno::poll, &[array, 1, 50]).time,
            Some(Duration::from_millis(50))
        );
        let endless = machine.wait(Sysno::poll, &[array, 1, u64::MAX]);
        assert_eq!((endless.on, endless.time), (WaitOn::Descriptor, None));
        assert_eq!(machine.call(Sysno::poll, &[array, 1000, 0]), -22);
        assert_eq!(machine.call(Sysno::poll, &[1, 1, 0]), -14);
        let time = machine.put(1, &[1u64.to_le_bytes(), 500u64.to_le_bytes()].concat());
        assert_eq!(
            machine.wait(Sysno::select, &[0, 0, 0, 0, time]).time,
            Some(Duration::new(1, 500_000))
        );
        assert_eq!(
            machine.wait(Sysno::pselect6, &[0, 0, 0, 0, time]).time,
            Some(Duration::new(1, 500))
        );
        assert_eq!(
            machine.wait(Sysno::ppoll, &[0, 0, time]).time,
            Some(Duration::new(1, 500))
        );
    }

    #[test]
    fn select_marks_what_is_ready() {
        let mut machine = Machine::new(Vec::new());
        let read = machine.put(0, &0b011u64.to_le_bytes());
        let write = machine.put(1, &0b110u64.to_le_bytes());
        assert_eq!(machine.call(Sysno::select, &[3, read, write, 0, 0]), 3);
        assert_eq!(
            (machine.get(read, 1)[0], machine.get(write, 1)[0]),
            (0b001, 0b110)
        );
        let read = machine.put(0, &0b1000u64.to_le_bytes());
        assert_eq!(machine.call(Sysno::select, &[4, read, 0, 0, 0]), -9);
    }
}
