//! Many forks of one program are freed while another program needs new ones. A test binary of its own: it has hundreds of
//! machines at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{ENOUGH, Tenant, few, kvm_or_skip, scaled};
use forkvm::{Config, Quiet, Request};

/// The most forks that a program may have, all idle, are freed when an update has replaced it. B has one fork and gets as
/// many requests at once as it may have forks: each needs one of its own, since its answer is kept.
#[test]
fn no_request_waits_for_another_programs_forks_to_be_freed() {
    kvm_or_skip!();
    const REQUESTS: usize = 8;
    let forks = few(255).max(REQUESTS);
    let small = |config: &mut Config| config.limits.max_memory = 16 << 20;
    let a = Tenant::boot_with("counter", |config| {
        small(config);
        config.concurrency = forks;
    });
    let deadline = || Instant::now() + ENOUGH;
    a.fill(forks, deadline());
    assert_eq!(a.stats().idle, forks as u64);
    let b = Tenant::boot_with("echo", |config| {
        small(config);
        config.concurrency = REQUESTS;
        config.limits.max_wait = scaled(Duration::from_secs(1));
    });
    assert_eq!(b.stats().forks, 1);

    let elf = common::guest("counter");
    let successor = a
        .boot_successor(&elf, a.config().clone(), &mut Quiet)
        .unwrap();
    let request = Request {
        url: b"/counter",
        ..Default::default()
    };
    drop(a);
    // An answer holds its fork.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let send = || b.answer(&request, deadline(), &mut Quiet);
        let threads: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(send)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for answer in &answers {
        assert!(answer.is_ok(), "{answer:?}");
    }
    assert_eq!(b.stats().busy, 0);
    drop(successor);
}
