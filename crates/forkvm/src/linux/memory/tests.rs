//! Tests of the memory calls.

use super::*;
use crate::linux::testing::{BRK, HEAP_LEN, MMAP, Machine};
use crate::random::Random;
use syscalls::Sysno;

const PAGES: u64 = HEAP_LEN / PAGE;
const NO_FD: u64 = u64::MAX;
const PRIVATE: u64 = 0x22;
const FIXED: u64 = 0x32;

fn map(machine: &mut Machine, pages: u64, prot: u64) -> i64 {
    machine.call(Sysno::mmap, &[0, pages * PAGE, prot, PRIVATE, NO_FD, 0])
}

fn map_fixed(machine: &mut Machine, at: u64, pages: u64, prot: u64) -> i64 {
    machine.call(Sysno::mmap, &[at, pages * PAGE, prot, FIXED, NO_FD, 0])
}

#[test]
fn the_break_moves_within_its_window() {
    let mut machine = Machine::new(Vec::new());
    assert_eq!(machine.call(Sysno::brk, &[0]), BRK as i64);
    let top = (BRK + 2 * PAGE + 5) as i64;
    assert_eq!(machine.call(Sysno::brk, &[top as u64]), top);
    assert_eq!(machine.call(Sysno::brk, &[BRK - 1]), top);
    assert_eq!(machine.call(Sysno::brk, &[BRK + HEAP_LEN + 1]), top);
    assert_eq!(machine.call(Sysno::brk, &[u64::MAX]), top);
    machine.memory.write(BRK + 2 * PAGE, &[9; 5]).unwrap();
    machine.memory.write(BRK, &[8; 5]).unwrap();
    assert_eq!(machine.call(Sysno::brk, &[BRK + PAGE]), (BRK + PAGE) as i64);
    assert_eq!(machine.call(Sysno::brk, &[top as u64]), top);
    assert_eq!(machine.get(BRK + 2 * PAGE, 5), [0; 5]);
    assert_eq!(machine.get(BRK, 5), [8; 5]);
    assert_eq!(
        machine.call(Sysno::brk, &[BRK + HEAP_LEN]),
        (BRK + HEAP_LEN) as i64
    );
    assert_eq!(map(&mut machine, 1, 3), -12);
}

#[test]
fn mappings_come_from_the_top_and_never_meet_the_break() {
    let mut machine = Machine::new(Vec::new());
    let first = map(&mut machine, 2, 3) as u64;
    assert_eq!(first, MMAP + HEAP_LEN - 2 * PAGE);
    let brk = BRK + HEAP_LEN - 2 * PAGE;
    assert_eq!(machine.call(Sysno::brk, &[brk + 1]), BRK as i64);
    assert_eq!(machine.call(Sysno::brk, &[brk]), brk as i64);
    assert_eq!(map(&mut machine, 1, 3), -12);
    assert_eq!(machine.call(Sysno::munmap, &[first, 2 * PAGE]), 0);
    assert_eq!(map(&mut machine, 2, 3) as u64, first);
    assert_eq!(map(&mut machine, u64::MAX / PAGE, 3), -12);
}

#[test]
fn memory_is_cleared_only_when_it_was_used() {
    let mut machine = Machine::new(Vec::new());
    let at = map(&mut machine, 4, 3) as u64;
    assert_eq!(machine.memory.cleared, 0);
    machine.memory.write(at, &[5; 100]).unwrap();
    assert_eq!(machine.call(Sysno::munmap, &[at + PAGE, PAGE]), 0);
    assert_eq!(machine.call(Sysno::munmap, &[at, PAGE]), 0);
    let again = map(&mut machine, 3, 3) as u64;
    assert_eq!(again, at - PAGE);
    assert_eq!(machine.memory.cleared, 2);
    assert_eq!(machine.get(at, 100), [0; 100]);
    machine.memory.write(at, &[5; 100]).unwrap();
    assert_eq!(map_fixed(&mut machine, at, 2, 3) as u64, at);
    assert_eq!(machine.memory.cleared, 4);
    assert_eq!(machine.get(at, 100), [0; 100]);
}

#[test]
fn the_freeze_clears_what_is_free() {
    let mut machine = Machine::new(Vec::new());
    let at = map(&mut machine, 4, 3) as u64;
    machine.memory.write(at, &[5; 100]).unwrap();
    machine.call(Sysno::munmap, &[at, 4 * PAGE]);
    machine.linux.before_freeze(&mut machine.memory).unwrap();
    machine.memory.frozen = true;
    machine.memory.cleared = 0;
    let body = machine
        .linux
        .map_for_engine(3 * PAGE + 1, &mut machine.memory);
    assert_eq!(body, Some(at));
    assert_eq!(
        (machine.memory.cleared, machine.get(at, 100)),
        (0, vec![0; 100])
    );
    assert_eq!(
        machine.linux.map_for_engine(HEAP_LEN, &mut machine.memory),
        None
    );
    assert_eq!(
        machine.linux.map_for_engine(u64::MAX, &mut machine.memory),
        None
    );
}

#[test]
fn fixed_mappings() {
    let mut machine = Machine::new(Vec::new());
    let at = MMAP + 4 * PAGE;
    assert_eq!(map_fixed(&mut machine, at, 2, 3), at as i64);
    let replace = |machine: &mut Machine, at| {
        machine.call(Sysno::mmap, &[at, PAGE, 3, PRIVATE | 0x10_0000, NO_FD, 0])
    };
    assert_eq!(replace(&mut machine, at), -17);
    assert_eq!(replace(&mut machine, at + 2 * PAGE), (at + 2 * PAGE) as i64);
    assert_eq!(map_fixed(&mut machine, at + 1, 1, 3), -22);
    assert_eq!(map_fixed(&mut machine, 0x1000, 1, 3), -12);
    assert_eq!(map_fixed(&mut machine, MMAP + HEAP_LEN, 1, 3), -12);
    // musl puts a guard page below its first allocation in the brk heap.
    assert_eq!(map_fixed(&mut machine, BRK, 1, 0), -12);
    machine.call(Sysno::brk, &[BRK + 2 * PAGE]);
    assert_eq!(map_fixed(&mut machine, BRK, 1, 0), BRK as i64);
    assert_eq!(replace(&mut machine, BRK), -17);
    assert_eq!(map_fixed(&mut machine, MMAP, 1, 3), -12);
}

#[test]
fn bad_requests_for_mappings() {
    let mut machine = Machine::new(Vec::new());
    assert_eq!(map(&mut machine, 0, 3), -22);
    assert_eq!(
        machine.call(Sysno::mmap, &[0, PAGE, 3, 0x20, NO_FD, 0]),
        -22
    );
    assert_eq!(
        machine.call(Sysno::mmap, &[0, 64 << 30, 0, PRIVATE | 0x4000, NO_FD, 0]),
        -12
    );
    assert_eq!(machine.call(Sysno::munmap, &[MMAP + 1, PAGE]), -22);
    assert_eq!(machine.call(Sysno::munmap, &[MMAP, 0]), -22);
    assert_eq!(machine.call(Sysno::munmap, &[MMAP, u64::MAX]), -22);
    assert_eq!(machine.call(Sysno::munmap, &[0x40_0000, PAGE]), 0);
}

#[test]
fn permissions_change_before_the_freeze_and_only_shrink_after_it() {
    let mut machine = Machine::new(Vec::new());
    let at = map(&mut machine, 3, 3) as u64;
    assert_eq!(machine.call(Sysno::mprotect, &[at, PAGE, 0]), 0);
    assert!(machine.memory.write(at, &[1]).is_err());
    assert_eq!(machine.call(Sysno::mprotect, &[at + PAGE, PAGE, 5]), 0);
    assert!(machine.memory.protection(at + PAGE).execute);
    assert_eq!(machine.call(Sysno::mprotect, &[at - PAGE, PAGE, 1]), -12);
    assert_eq!(machine.call(Sysno::mprotect, &[at + 1, PAGE, 1]), -22);
    assert_eq!(machine.call(Sysno::mprotect, &[at, 0, 1]), 0);

    machine.memory.frozen = true;
    assert_eq!(machine.call(Sysno::mprotect, &[at, PAGE, 3]), -13);
    assert_eq!(machine.call(Sysno::mprotect, &[at + PAGE, PAGE, 7]), -13);
    assert_eq!(machine.call(Sysno::mprotect, &[at + PAGE, PAGE, 5]), 0);
    assert_eq!(machine.call(Sysno::mprotect, &[at + 2 * PAGE, PAGE, 0]), 0);
    assert_eq!(machine.call(Sysno::mprotect, &[at + 2 * PAGE, PAGE, 3]), 0);
    assert_eq!(
        machine.call(Sysno::mprotect, &[at + 2 * PAGE, PAGE, 5]),
        -13
    );
    assert_eq!(map(&mut machine, 1, 7), -13);
    // Pages whose permissions can't be put back are not given out again.
    assert_eq!(machine.call(Sysno::munmap, &[at, 3 * PAGE]), 0);
    assert_eq!(map(&mut machine, 1, 3) as u64, at + 2 * PAGE);
    assert_eq!(map(&mut machine, 1, 3) as u64, at - PAGE);
    assert_eq!(map_fixed(&mut machine, at, 1, 3), -12);
}

#[test]
fn before_the_freeze_permissions_are_put_back() {
    let mut machine = Machine::new(Vec::new());
    let at = map(&mut machine, 2, 7) as u64;
    assert!(machine.memory.protection(at).execute);
    machine.call(Sysno::munmap, &[at, 2 * PAGE]);
    assert_eq!(machine.memory.protection(at), READ_WRITE);
    machine.call(Sysno::brk, &[BRK + 2 * PAGE]);
    assert_eq!(machine.call(Sysno::mprotect, &[BRK + PAGE, PAGE, 1]), 0);
    assert_eq!(
        machine.call(Sysno::mprotect, &[BRK + PAGE, 2 * PAGE, 1]),
        -12
    );
    machine.call(Sysno::brk, &[BRK]);
    assert_eq!(machine.memory.protection(BRK + PAGE), READ_WRITE);
}

#[test]
fn the_programs_own_segments() {
    let mut machine = Machine::new(Vec::new());
    let relro = machine.put(0, &[1]);
    assert_eq!(machine.call(Sysno::mprotect, &[relro, PAGE, 1]), 0);
    assert!(machine.memory.write(relro, &[1]).is_err());
    machine.memory.frozen = true;
    assert_eq!(machine.call(Sysno::mprotect, &[relro, PAGE, 3]), -13);
    assert_eq!(machine.call(Sysno::mprotect, &[relro, PAGE, 1]), 0);
    assert_eq!(machine.call(Sysno::mprotect, &[relro, PAGE, 5]), -13);
    assert_eq!(machine.call(Sysno::mprotect, &[relro + PAGE, PAGE, 3]), 0);
    assert_eq!(machine.call(Sysno::mprotect, &[0x1000, 1 << 46, 3]), -12);
}

#[test]
fn remapping() {
    let mut machine = Machine::new(Vec::new());
    let low = map(&mut machine, 2, 3) as u64;
    machine.memory.write(low + PAGE, b"second").unwrap();
    let remap = |machine: &mut Machine, at: u64, old: u64, new: u64, how: u64, to: u64| {
        machine.call(Sysno::mremap, &[at, old * PAGE, new * PAGE, how, to])
    };
    assert_eq!(remap(&mut machine, low, 2, 3, 0, 0), -12);
    let moved = remap(&mut machine, low, 2, 3, 1, 0) as u64;
    assert_eq!(moved, low - 3 * PAGE);
    assert_eq!(machine.get(moved + PAGE, 6), b"second");
    assert_eq!(remap(&mut machine, low, 2, 3, 1, 0), -14);
    assert_eq!(remap(&mut machine, moved, 3, 4, 0, 0), moved as i64);
    assert_eq!(remap(&mut machine, moved, 4, 1, 0, 0), moved as i64);
    assert_eq!(remap(&mut machine, moved, 4, 1, 0, 0), -14);
    assert_eq!(remap(&mut machine, moved, 1, 1, 3, MMAP), MMAP as i64);
    assert_eq!(remap(&mut machine, MMAP, 1, 2, 3, MMAP), -22);
    assert_eq!(remap(&mut machine, MMAP, 0, 1, 1, 0), -22);
    assert_eq!(remap(&mut machine, MMAP, 1, 0, 1, 0), -22);
    assert_eq!(remap(&mut machine, MMAP, 1, PAGES + 1, 1, 0), -12);
    assert_eq!(machine.call(Sysno::mremap, &[MMAP, PAGE, u64::MAX, 1]), -12);
}

#[test]
fn advice() {
    let mut machine = Machine::new(Vec::new());
    let at = map(&mut machine, 2, 3) as u64;
    machine.memory.write(at, &[1; 8192]).unwrap();
    assert_eq!(machine.call(Sysno::madvise, &[at, PAGE, 8]), 0);
    assert_eq!(machine.get(at, 1), [1]);
    assert_eq!(machine.call(Sysno::madvise, &[at, PAGE, 4]), 0);
    assert_eq!(machine.get(at, 4097), [&[0; 4096][..], &[1]].concat());
    assert_eq!(machine.call(Sysno::madvise, &[at - PAGE, PAGE, 4]), -12);
    assert_eq!(machine.call(Sysno::madvise, &[at, PAGE, 9]), -22);
    assert_eq!(machine.call(Sysno::madvise, &[0x40_0000, PAGE, 4]), -22);
}

#[test]
fn mappings_are_bounded() {
    use crate::linux::memory::heap::MAX_MAPPINGS;
    use crate::linux::testing::{Recorder, linux};
    use crate::linux::{HeapLayout, Linux};

    // A heap big enough to hold more single pages with gaps than there may be mappings.
    struct Big;
    impl UserMemory for Big {
        fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), crate::memory::user::BadAddress> {
            buf.fill(0);
            Ok(())
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), crate::memory::user::BadAddress> {
            Ok(())
        }
        fn clear(&mut self, _: u64, _: u64) -> Result<(), crate::memory::user::BadAddress> {
            Ok(())
        }
        fn can_write(&self, _: u64) -> bool {
            true
        }
        fn can_protect(&self) -> bool {
            false
        }
        fn protect(
            &mut self,
            at: u64,
            _: u64,
            _: Protection,
        ) -> Result<(), crate::memory::user::BadAddress> {
            Err(crate::memory::user::BadAddress(at))
        }
    }
    let layout = HeapLayout {
        brk_window: BRK,
        mmap_window: MMAP,
        len: 1 << 32,
        executable: false,
    };
    let mut linux = Linux {
        heap: crate::linux::kept::Kept::new(Heap::new(layout)),
        ..linux(Vec::new())
    };
    let mut host = Recorder::default();
    let mut call = |number: Sysno, args: [u64; 6]| {
        let call = crate::linux::Call {
            number: number.id() as u64,
            args,
            rsp: 0,
        };
        linux.call(call, &mut Big, &mut host, &mut Random::new().unwrap())
    };
    let refused = crate::linux::Outcome::Return(-12);
    let single = |i: u64| [MMAP + 2 * i * PAGE, PAGE, 3, FIXED, NO_FD, 0];
    let made = (0..100_000)
        .take_while(|i| call(Sysno::mmap, single(*i)) != refused)
        .count();
    assert_eq!(made, MAX_MAPPINGS - 1);
    assert_eq!(
        call(Sysno::munmap, [MMAP, 1 << 32, 0, 0, 0, 0]),
        crate::linux::Outcome::Return(0)
    );
    assert_ne!(call(Sysno::mmap, single(0)), refused);
}
