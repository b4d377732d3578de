//! Random programs: whatever a request did, and however it ended, the fork's whole memory equals the master's after it,
//! and the next request finds the machine exactly as the first one did.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/lists.rs"]
mod lists;
#[path = "common/ops.rs"]
mod ops;
#[path = "common/performer.rs"]
mod performer;

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use common::{emulated, kvm_or_skip};
use ops::{ENDINGS, Ending, Finale, Op};
use performer::{ADDRESSES, Performer};
use proptest::prelude::*;
use proptest::sample::select;

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        select(&ADDRESSES[..]),
        0..0x1000u64,
        Just(u64::MAX)
    ]
}

fn op() -> impl Strategy<Value = Op> {
    (
        0..ops::KINDS,
        any::<u8>(),
        any::<u16>(),
        prop_oneof![any::<u32>(), 0..64u32],
        value(),
    )
        .prop_map(|(what, a, b, c, d)| Op { what, a, b, c, d })
}

/// Endings that take up the whole time are rare.
fn ending() -> impl Strategy<Value = Ending> {
    let quick: Vec<Ending> = ENDINGS
        .into_iter()
        .filter(|ending| *ending != Ending::Loop)
        .collect();
    prop_oneof![
        20 => Just(Ending::Respond),
        2 => Just(Ending::Loop),
        2 => Just(Ending::Pages),
        40 => select(quick),
    ]
}

fn finale() -> impl Strategy<Value = Finale> {
    let selector = select(
        &[
            0u16, 1, 2, 3, 0x23, 0x28, 0x2b, 0x33, 0x2a, 0x18, 0x43, 0x50,
        ][..],
    );
    // Carry, parity, adjust, zero, sign, direction, overflow, nested task, alignment check, ID; now and then all.
    let flags = prop_oneof![9 => any::<u64>().prop_map(|f| f & 0x24_4cd5 | 2), 1 => any::<u64>()];
    (
        proptest::array::uniform16(value()),
        flags,
        (value(), value(), value()),
        proptest::array::uniform4(selector),
        any::<u32>(),
        prop_oneof![0..8u16, any::<u16>()],
        ending(),
        0..8u8,
    )
        .prop_map(
            |(
                general,
                flags,
                (fs_base, gs_base, address),
                selectors,
                pkru,
                port,
                ending,
                mut set,
            )| {
                // A wrong selector would end most lists the same way: use them less.
                if general[0] % 4 != 0 {
                    set &= !1;
                }
                Finale {
                    general,
                    flags,
                    fs_base,
                    gs_base,
                    address,
                    selectors,
                    pkru,
                    port,
                    ending,
                    set,
                }
            },
        )
}

/// Runs random lists for a while: fewer where the machine is emulated. A failing one is made smaller and shown.
fn for_a_while(
    time: Duration,
    most: usize,
    one: impl Fn(Finale, Vec<Op>) -> Result<(), TestCaseError>,
) {
    let values = (finale(), prop::collection::vec(op(), 0..most));
    lists::for_a_while(time, 500, &values, |(finale, ops)| one(finale, ops));
}

#[test]
fn nothing_of_a_random_program_is_left() {
    kvm_or_skip!();
    let performer = Performer::boot("random", 1);
    let [answered, failed, timed_out] = [const { Cell::new(0u32) }; 3];
    let count = |cell: &Cell<u32>| cell.set(cell.get() + 1);
    let time = Duration::from_secs(if emulated() { 60 } else { 10 });
    for_a_while(time, 24, |finale, ops| {
        match performer.perform(&finale, &ops) {
            Ok(_) => count(&answered),
            Err(failure) if failure.is_timeout() => count(&timed_out),
            Err(_) => count(&failed),
        }
        performer.leftovers().map_err(TestCaseError::fail)
    });
    let [answered, failed, timed_out] = [answered, failed, timed_out].map(|cell| cell.get());
    let forks = performer.stats().created;
    eprintln!("{answered} answered, {failed} failed, {timed_out} timed out; {forks} forks");
    assert!(
        answered > 0 && failed > 0,
        "the lists have to end in many ways"
    );
}

/// Each ending by itself, with registers full of ones: none is left to chance.
#[test]
fn nothing_is_left_by_any_ending() {
    kvm_or_skip!();
    let performer = Performer::boot("endings", 1);
    const SECRET: u64 = 0x5ec2_e75e_c2e7;
    let load = Op {
        what: 5,
        a: 3,
        b: 8,
        c: u32::MAX,
        d: SECRET,
    };
    for ending in ENDINGS {
        // Where the machine is emulated, one of them.
        let sets = [0, 2, 4, 1].into_iter().enumerate();
        for (_, set) in sets.filter(|(i, _)| !emulated() || *i == ending as usize % 4) {
            let finale = Finale {
                general: [SECRET; 16],
                flags: 0x20_4cd7,
                fs_base: SECRET,
                gs_base: SECRET,
                // The far end of what mmap may give.
                address: 0x7f00_0000_0000,
                selectors: [0x2b; 4],
                pkru: 0x5555_5554,
                ending,
                set,
                ..Finale::default()
            };
            let outcome = performer.perform(&finale, &[load]);
            performer
                .leftovers()
                .unwrap_or_else(|left| panic!("after {ending:?}, set {set}, {outcome:?}: {left}"));
        }
    }
}

/// Many threads, fewer forks: each answer is right, and at the end all forks are the master's.
#[test]
fn many_forks_are_reset_at_once() {
    kvm_or_skip!();
    const FORKS: usize = 6;
    const THREADS: usize = 9;
    let performer = Performer::boot("many", FORKS);
    let time = Duration::from_secs(if emulated() { 15 } else { 3 });
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for_a_while(time, 12, |finale, ops| {
                    // Who gets which fork is left to the pool.
                    let _ = performer.perform(&finale, &ops);
                    performer.visible_leftovers().map_err(TestCaseError::fail)
                });
            });
        }
    });
    common::eventually("all forks are idle", || {
        let stats = performer.stats();
        stats.idle == stats.forks
    });
    performer.assert_pristine();
    assert!(performer.stats().created >= FORKS as u64);
}
