//! Random programs: whatever a request did, and however it ended, the fork's whole memory equals the master's after it,
//! and the next request finds the machine exactly as the first one did.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/ops.rs"]
mod ops;

use std::cell::Cell;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use common::{Tenant, kvm_or_skip, slowness};
use forkvm::{Quiet, Request};
use ops::{ENDINGS, Ending, Finale, Op};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

/// Addresses that matter: nothing, code, data, the monitor's pages, windows and their ends, the kernel's half.
const ADDRESSES: [u64; 24] = [
    0,
    0x1000,
    0x40_1000,
    0x7e00_0000_1000, // GDT
    0x7e00_0000_2000, // TSS
    0x7e00_0000_3000, // IDT
    0x7e00_0000_4000, // ring-0 code
    0x7e00_0000_6ff8, // ring-0 stack
    0x7e00_0000_7000, // its end
    0x7e00_0000_8000, // ring-3 stubs
    0x7e00_0000_8800,
    0x7e00_0000_9000, // vector state
    0x7e00_0000_d008, // bases
    0x7e00_0000_e000, // entry block
    0x7e00_0000_e020,
    0x7e00_0001_e000, // page tables
    0x7eff_ffff_fff8,
    0x7f00_0000_0000, // mmap window
    0x7f00_0000_0800,
    0x7ffc_fff0_0008, // stack
    0x7fff_ffff_fff8,
    0x8000_0000_0000, // non-canonical
    0xffff_8000_0000_0000,
    0xffff_ffff_8100_0000,
];

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

/// A file for the guest.
struct TestFile(PathBuf);

impl TestFile {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forkvm-{test}-{}", std::process::id()));
        std::fs::write(&path, "0123456789".repeat(1000)).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn boot(file: &TestFile, concurrency: usize) -> Tenant {
    Tenant::boot_with("ops", |config| {
        config.concurrency = concurrency;
        config.limits.max_memory = 24 << 20;
        config.limits.max_request_memory = 5 << 20; // 1,280 pages; the ring is full before
        config.limits.req_mem_limit_after_reset = 4 << 20;
        config.allowed_paths = vec![file.0.clone()];
        config.main_arguments = vec![file.0.to_str().unwrap().into()];
    })
}

/// Long enough for what does not loop.
fn deadline() -> Duration {
    Duration::from_millis(40) * slowness().min(25)
}

fn perform(tenant: &Tenant, finale: &Finale, ops: &[Op]) -> Result<u16, forkvm::Failure> {
    let body = ops::body(finale, ops);
    let request = Request {
        method: "POST",
        url: b"/",
        body: &body,
        ..Default::default()
    };
    tenant
        .try_send(&request, Instant::now() + deadline(), &mut Quiet)
        .map(|reply| reply.status)
}

/// The first line that differs, for a message.
fn difference(first: &str, now: &str) -> String {
    let differs = first
        .lines()
        .zip(now.lines())
        .find(|(before, after)| before != after);
    match differs {
        Some((before, after)) => format!("was {before:?}, is {after:?}"),
        None => format!("{} bytes were {}", now.len(), first.len()),
    }
}

/// As many cases as fit in the time: fewer where the machine is emulated.
fn for_a_while(time: Duration, mut one: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end && one() {}
}

#[test]
fn nothing_of_a_random_program_is_left() {
    kvm_or_skip!();
    let file = TestFile::new("random");
    let tenant = boot(&file, 1);
    let first = tenant.get("/probe").text().to_owned();
    assert!(first.contains("umask 27"), "{first}");
    assert!(first.contains("read 16 0123456789012345"), "{first}");
    let lists = (finale(), prop::collection::vec(op(), 0..24));
    let [answered, failed, timed_out] = [const { Cell::new(0u32) }; 3];
    let count = |cell: &Cell<u32>| cell.set(cell.get() + 1);

    let mut runner = TestRunner::new(Config {
        cases: 20,
        failure_persistence: None,
        ..Config::default()
    });
    for_a_while(Duration::from_secs(10) * slowness().min(6), || {
        runner
            .run(&lists, |(finale, ops)| {
                match perform(&tenant, &finale, &ops) {
                    Ok(_) => count(&answered),
                    Err(failure) if failure.is_timeout() => count(&timed_out),
                    Err(_) => count(&failed),
                }
                prop_assert_eq!(
                    tenant.differing_pages(),
                    0,
                    "pages differ from the master's"
                );
                let now = tenant.get("/probe");
                prop_assert!(now.text() == first, "{}", difference(&first, now.text()));
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
        true
    });
    let [answered, failed, timed_out] = [answered, failed, timed_out].map(|cell| cell.get());
    let stats = tenant.stats();
    eprintln!(
        "{answered} answered, {failed} failed, {timed_out} timed out; {} forks",
        stats.created
    );
    assert!(
        answered > 0 && failed > 0,
        "the lists have to end in many ways"
    );
}

/// Each ending by itself, with registers full of ones: none is left to chance.
#[test]
fn nothing_is_left_by_any_ending() {
    kvm_or_skip!();
    let file = TestFile::new("endings");
    let tenant = boot(&file, 1);
    let first = tenant.get("/probe").text().to_owned();
    let load = Op {
        what: 5,
        a: 3,
        b: 8,
        c: u32::MAX,
        d: 0x5ec2_e75e_c2e7,
    };
    for ending in ENDINGS {
        for set in [0, 2, 4, 1] {
            let finale = Finale {
                general: [0x5ec2_e75e_c2e7; 16],
                flags: 0x24_4cd7 & !(1 << 18),
                fs_base: 0x5ec2_e75e,
                gs_base: 0x5ec2_e75e,
                address: ADDRESSES[20],
                selectors: [0x2b; 4],
                pkru: 0x5555_5554,
                ending,
                set,
                ..Finale::default()
            };
            let outcome = perform(&tenant, &finale, &[load]);
            assert_eq!(
                tenant.differing_pages(),
                0,
                "after {ending:?}, set {set}: {outcome:?}"
            );
            let now = tenant.get("/probe");
            let message = difference(&first, now.text());
            assert!(
                now.text() == first,
                "after {ending:?}, set {set}, {outcome:?}: {message}"
            );
        }
    }
}

/// Many threads, fewer forks: each answer is right, and at the end all forks are the master's.
#[test]
fn many_forks_are_reset_at_once() {
    kvm_or_skip!();
    const FORKS: usize = 6;
    const THREADS: usize = 9;
    let file = TestFile::new("many");
    let tenant = boot(&file, FORKS);
    let first = tenant.get("/probe").text().to_owned();
    let time = Duration::from_secs(3) * slowness().min(5);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let lists = (finale(), prop::collection::vec(op(), 0..12));
                let mut runner = TestRunner::new(Config {
                    cases: 10,
                    failure_persistence: None,
                    max_shrink_iters: 0,
                    ..Config::default()
                });
                for_a_while(time, || {
                    runner
                        .run(&lists, |(finale, ops)| {
                            // Who gets which fork is left to the pool.
                            let _ = perform(&tenant, &finale, &ops);
                            let now = tenant.get("/probe");
                            prop_assert!(now.text() == first, "{}", difference(&first, now.text()));
                            Ok(())
                        })
                        .unwrap_or_else(|error| panic!("{error}"));
                    true
                });
            });
        }
    });
    common::eventually("all forks are idle", || {
        let stats = tenant.stats();
        stats.idle == stats.forks
    });
    tenant.assert_pristine();
    assert!(tenant.stats().created >= FORKS as u64);
}
