//! The stubs in the guest, and what KVM does for it: no register that a program may choose makes them write where they
//! should not, no port but ours answers, and pages are written only where the reset will find them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/ops.rs"]
mod ops;
#[path = "common/performer.rs"]
mod performer;

use common::{ENOUGH, emulated, kvm_or_skip};
use ops::{Ending, Finale, Op};
use performer::{ADDRESSES, Performer};

/// Stack pointers: with one that is not canonical, `kvm_pvm` emulates the program, its accesses and ports too.
const STACKS: [u64; 2] = [0, 1 << 63];

/// Addresses just before and after those that matter, aligned and not; a part of them where the machine is emulated.
fn addresses() -> impl Iterator<Item = u64> {
    ADDRESSES
        .into_iter()
        .flat_map(|address| [0, 8, 1, 0x7f8].map(|offset| address.wrapping_add(offset)))
        .chain([u64::MAX, 1 << 63, 0x7fff_ffff_f000])
        .step_by(one_in(7))
}

/// How many of the cases an emulated machine takes.
fn one_in(n: usize) -> usize {
    if emulated() { n } else { 1 }
}

/// What runs in ring 0 on behalf of ring 3 (exceptions, on hardware `syscall`) with the stack pointer anywhere: it
/// never writes through it.
#[test]
fn stubs_never_write_through_the_stack_pointer() {
    kvm_or_skip!();
    let performer = Performer::boot("stack", 1);
    for ending in [
        Ending::Int3At,
        Ending::Ud2At,
        Ending::SyscallAt,
        Ending::HypercallAt,
    ] {
        for address in addresses() {
            let finale = Finale {
                ending,
                address,
                ..Finale::default()
            };
            let outcome = performer.perform_within(ENOUGH, &finale, &[]);
            performer
                .leftovers()
                .unwrap_or_else(|left| panic!("{ending:?} with RSP {address:#x}: {left}"));
            let expected = matches!(ending, Ending::SyscallAt | Ending::HypercallAt);
            assert_eq!(
                outcome.is_ok(),
                expected,
                "{ending:?} with RSP {address:#x}: {outcome:?}"
            );
        }
    }
}

/// Ring 3 writes to none of the monitor's pages but the request area, and to no page of code.
#[test]
fn the_monitors_pages_are_not_writable() {
    kvm_or_skip!();
    let performer = Performer::boot("monitor", 1);
    let monitor = 0x7e00_0000_0000..0x7e00_0001_e000u64;
    let addresses = monitor
        .clone()
        .step_by(0x800 * one_in(5))
        .chain(addresses());
    for (i, address) in addresses.enumerate() {
        for ending in [Ending::Store, Ending::Push] {
            let place = if ending == Ending::Push {
                address.wrapping_sub(8)
            } else {
                address
            };
            let mut finale = Finale {
                ending,
                address,
                ..Finale::default()
            };
            finale.general[7] = STACKS[i % 2];
            let written = performer.perform_within(ENOUGH, &finale, &[]).is_ok();
            performer
                .leftovers()
                .unwrap_or_else(|left| panic!("{ending:?} at {address:#x}: {left}"));
            let protected = [
                0..0x1000,
                0x40_1000..0x40_2000,
                monitor.start..0x7e00_0000_e000,
                0x7fff_ffff_f000..u64::MAX,
            ];
            let protected = protected.iter().any(|range| range.contains(&place));
            assert!(!(protected && written), "{ending:?} at {address:#x}");
        }
    }
}

/// No port is open but ours, for no width and no direction.
#[test]
fn no_other_port_answers() {
    kvm_or_skip!();
    let performer = Performer::boot("ports", 1);
    let step = 11 * one_in(97);
    // All of the bitmap and its end, then a sample.
    let ports = (0..300).chain((300..=u16::MAX).step_by(step));
    for port in ports {
        for ending in [Ending::Out, Ending::OutByte, Ending::In] {
            if emulated() && port > 8 && port % 16 != ending as u16 % 16 {
                continue;
            }
            let mut finale = Finale {
                // A system call or hypercall that does nothing, for the ports where it is one.
                general: [39; 16],
                ending,
                port,
                ..Finale::default()
            };
            finale.general[7] = STACKS[usize::from(port) % 3 % 2];
            let answered = performer.perform_within(ENOUGH, &finale, &[]).is_ok();
            let ours = ending == Ending::Out && (port == 0 || port == 4);
            assert!(!answered || ours, "{ending:?} on port {port:#x}");
        }
    }
    performer.leftovers().unwrap();
    let forks = performer.stats().created;
    assert!(
        forks < 40,
        "{forks} forks: nearly all of these are plain exceptions"
    );
}

#[test]
fn the_red_zone_survives_calls() {
    kvm_or_skip!();
    let performer = Performer::boot("red", 1);
    let finale = Finale {
        ending: Ending::RedZone,
        ..Finale::default()
    };
    assert_eq!(performer.perform_within(ENOUGH, &finale, &[]).unwrap(), 200);
}

/// KVM completes an `ins` when the machine is entered again, which is after the request: what it writes then is put
/// back too.
#[test]
fn a_port_read_that_ends_late_leaves_nothing() {
    kvm_or_skip!();
    let performer = Performer::boot("ins", 1);
    for port in [0, 1, 4, 0x80] {
        for page in [0, 1, 7] {
            let finale = Finale {
                ending: Ending::Ins,
                port,
                address: 0x7f00_0000_0000 + page * 0x1000,
                ..Finale::default()
            };
            performer.perform_within(ENOUGH, &finale, &[]).unwrap_err();
            performer
                .leftovers()
                .unwrap_or_else(|left| panic!("port {port}, page {page}: {left}"));
        }
    }
}

/// `kvm_pvm` emulates a program whose stack pointer is not canonical, and meanwhile does not look whether the dirty
/// ring is full: entries get lost. Such a machine is not used again, and the program does not loop in it either.
#[test]
fn a_ring_that_overflows_leaves_nothing() {
    kvm_or_skip!();
    let performer = Performer::boot("overflow", 1);
    // 12 mappings of 64 pages, so that the ring is well filled before it matters.
    let maps: Vec<Op> = (0..12)
        .map(|a| Op {
            what: 1,
            a,
            b: 0,
            c: 63,
            d: 5,
        })
        .collect();
    for rsp in [0x8000_0000_0000, 1 << 63, 0xe3f7_0000_1234_5677, 0, 8] {
        for flags in [2, 0x4002, 0x4_4002] {
            let mut finale = Finale {
                flags,
                ..Finale::default()
            };
            performer.perform_within(ENOUGH, &finale, &maps).unwrap();
            finale.ending = Ending::Pages;
            finale.general[7] = rsp;
            let outcome = performer.perform_within(ENOUGH, &finale, &[]);
            assert!(
                !outcome.as_ref().is_err_and(forkvm::Failure::is_timeout),
                "RSP {rsp:#x}: {outcome:?}"
            );
            performer.leftovers().unwrap_or_else(|left| {
                panic!("RSP {rsp:#x}, flags {flags:#x}, {outcome:?}: {left}")
            });
        }
    }
}
