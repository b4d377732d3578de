//! Damaged programs: whatever the bytes, booting one ends with a result, in time and without a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::time::{Duration, Instant};

use common::{config, emulated, few, guest, kvm_or_skip, scaled};
use damage::{change, changed, trouble};
use forkvm::{Failure, Program, Quiet, Request};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};

/// Boots what may be anything, and asks it once if it boots.
fn try_it(elf: &[u8]) {
    let mut config = config("damaged");
    config.limits.max_boot_time = scaled(Duration::from_millis(100));
    config.limits.max_request_time = config.limits.max_boot_time;
    config.limits.max_memory = 16 << 20;
    match Program::boot(elf, config, &mut Quiet) {
        Ok(program) => {
            let request = Request {
                url: b"/",
                ..Default::default()
            };
            let deadline = Instant::now() + program.config().limits.max_request_time;
            if let Err(failure) = program.answer(&request, deadline, &mut Quiet).map(drop) {
                assert!(matches!(failure, Failure::Guest { .. }), "{failure}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn run(name: &str, cases: u32) {
    let elf = guest(name);
    let mut runner = TestRunner::new(RunnerConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..RunnerConfig::default()
    });
    runner
        .run(
            &proptest::collection::vec(change(elf.len()), 1..4),
            |changes| {
                try_it(&changed(&elf, &changes));
                Ok(())
            },
        )
        .unwrap();
}

#[test]
fn headers_of_a_fixed_program() {
    kvm_or_skip!();
    run("hello", few(250) as u32);
}

#[test]
fn headers_of_a_static_pie() {
    kvm_or_skip!();
    run("hello-static-pie", few(250) as u32);
}

#[test]
fn symbols_and_strings() {
    kvm_or_skip!();
    let elf = guest("hello");
    // Section headers and symbol table lie at the end of the file.
    let start = elf.len() - 90_000;
    let mut runner = TestRunner::new(RunnerConfig {
        cases: few(150) as u32,
        failure_persistence: None,
        ..RunnerConfig::default()
    });
    let changes = proptest::collection::vec(
        (
            start..elf.len(),
            prop_oneof![Just(4usize), Just(8)],
            trouble(),
        ),
        1..20,
    );
    runner
        .run(&changes, |changes| {
            try_it(&changed(&elf, &changes));
            Ok(())
        })
        .unwrap();
}

#[test]
fn cut_short() {
    kvm_or_skip!();
    let elf = guest("hello");
    let lengths = (0..700)
        .step_by(if emulated() { 100 } else { 25 })
        .chain((700..elf.len()).step_by(elf.len() / few(60).max(5)));
    for len in lengths {
        try_it(&elf[..len]);
    }
}
