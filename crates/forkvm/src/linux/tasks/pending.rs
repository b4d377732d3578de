//! Signals that were sent and are not delivered yet (signal(7), "Queueing and delivery semantics").

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::linux::abi::Layout;

/// Number of the last signal (`_NSIG` of asm-generic/signal.h).
pub const LAST: i32 = 64;
/// From this one on, signals are queued as often as they are sent.
const FIRST_REAL_TIME: i32 = 32;
/// Bytes of a `siginfo_t`.
pub const INFO_LEN: usize = 128;

/// Those that a program's own instruction causes come first: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS.
const SYNCHRONOUS: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 30;

/// `si_code` of a signal by kill(2), and by tgkill(2).
pub const SI_USER: i32 = 0;
/// See [`SI_USER`].
pub const SI_TKILL: i32 = -6;
/// `si_code` of a signal that the kernel sends for no reason of its own kind.
pub const SI_KERNEL: i32 = 0x80;

/// A set of one signal.
pub fn bit(signal: i32) -> u64 {
    u32::try_from(signal.saturating_sub(1))
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift))
        .unwrap_or(0)
}

/// A signal with what is told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Its `siginfo_t`.
    #[serde(with = "crate::saved::array")]
    pub info: [u8; INFO_LEN],
}

impl Signal {
    fn layout(number: i32, code: i32) -> Layout<INFO_LEN> {
        Layout::new()
            .u32(0, number.cast_unsigned())
            .u32(8, code.cast_unsigned())
    }

    /// Sent by the process to itself, whose id is 1 and whose user is root.
    pub fn by_process(number: i32, code: i32) -> Self {
        let info = Self::layout(number, code).u32(16, 1).array();
        Self { number, info }
    }

    /// Sent by the kernel.
    pub fn by_kernel(number: i32) -> Self {
        let info = Self::layout(number, SI_KERNEL).array();
        Self { number, info }
    }

    /// Caused by an instruction that did something at this address.
    pub fn by_fault(number: i32, code: i32, address: u64) -> Self {
        let info = Self::layout(number, code).u64(16, address).array();
        Self { number, info }
    }
}

/// What a task could take of the signals that were sent to it and to its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Awaited {
    /// Which they are.
    pub set: u64,
    /// How many were sent so far.
    pub sent: u64,
}

/// Signals that wait to be delivered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pending {
    set: u64,
    /// How many were added so far.
    sent: u64,
    /// In the order they came. One that is in the set but not here had no room.
    queue: VecDeque<Signal>,
}

impl Pending {
    /// Which there are.
    pub fn set(&self) -> u64 {
        self.set
    }

    /// The same, with how many were added so far, together with those of another place.
    pub fn awaited(&self, other: Option<&Self>) -> Awaited {
        let (set, sent) = other.map_or((0, 0), |other| (other.set, other.sent));
        Awaited {
            set: self.set | set,
            sent: self.sent.wrapping_add(sent),
        }
    }

    /// How many are queued.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Those that are queued, to change what is told about them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Signal> {
        self.queue.iter_mut()
    }

    /// Adds one. Without `room` only its number is kept.
    pub fn add(&mut self, signal: Signal, room: bool) {
        let there = self.set & bit(signal.number) != 0;
        self.set |= bit(signal.number);
        self.sent = self.sent.wrapping_add(1);
        if room && (!there || signal.number >= FIRST_REAL_TIME) {
            self.queue.push_back(signal);
        }
    }

    /// Takes the one among these that is to be delivered first.
    pub fn take(&mut self, among: u64) -> Option<Signal> {
        let ready = self.set & among;
        let first = match ready & SYNCHRONOUS {
            0 => ready,
            synchronous => synchronous,
        };
        let number = i32::try_from(first.trailing_zeros()).ok()? + 1;
        if first == 0 {
            return None;
        }
        let place = self.queue.iter().position(|signal| signal.number == number);
        let signal = place.and_then(|place| self.queue.remove(place));
        if !self.queue.iter().any(|signal| signal.number == number) {
            self.set &= !bit(number);
        }
        Some(signal.unwrap_or_else(|| Signal::by_process(number, SI_USER)))
    }

    /// Forgets all of a signal, as when it becomes ignored.
    pub fn forget(&mut self, number: i32) {
        self.set &= !bit(number);
        self.queue.retain(|signal| signal.number != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pending: &mut Pending, among: u64) -> Vec<i32> {
        std::iter::from_fn(|| pending.take(among))
            .map(|signal| signal.number)
            .collect()
    }

    #[test]
    fn standard_signals_wait_once_and_real_time_ones_in_order() {
        let mut pending = Pending::default();
        for number in [40, 15, 34, 15, 40, 1, 11] {
            pending.add(Signal::by_process(number, SI_USER), true);
        }
        assert_eq!(numbers(&mut pending, bit(1)), [1]);
        assert_eq!(numbers(&mut pending, u64::MAX), [11, 15, 34, 40, 40]);
        assert_eq!((pending.set(), pending.len()), (0, 0));
    }

    #[test]
    fn what_has_no_room_is_known_by_its_number() {
        let mut pending = Pending::default();
        for _ in 0..3 {
            pending.add(Signal::by_kernel(40), false);
        }
        assert_eq!((pending.set(), pending.len()), (bit(40), 0));
        assert_eq!(numbers(&mut pending, u64::MAX), [40]);
        pending.add(Signal::by_kernel(64), true);
        pending.forget(64);
        assert_eq!(pending.take(u64::MAX), None);
    }
}
