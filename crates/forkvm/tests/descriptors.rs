//! A process that has run out of file descriptors says so, and which limit to raise. One test, since the limit is the whole
//! process's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Tenant, config, guest, kvm_or_skip, scaled};
use forkvm::{Failure, Program, Quiet, Request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets the process have no descriptor more than it has now, until dropped.
struct NoMore(Rlimit);

impl NoMore {
    fn now() -> Self {
        let before = getrlimit(Resource::Nofile);
        // The lowest number that is free is one more than what this very opening takes.
        let next = std::fs::File::open("/dev/null").unwrap();
        let current = Some(std::os::fd::AsRawFd::as_raw_fd(&next) as u64);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for NoMore {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

#[test]
fn descriptors_that_are_used_up_are_named() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("hello", |config| {
        config.concurrency = 2;
        config.limits.max_wait = scaled(Duration::from_millis(500));
    });
    let request = Request {
        method: "GET",
        url: b"/",
        ..Default::default()
    };
    let answer = || {
        let deadline = Instant::now() + scaled(Duration::from_secs(20));
        tenant.answer(&request, deadline, &mut Quiet)
    };
    let elf = guest("hello");
    let first = answer().unwrap();
    {
        let _limit = NoMore::now();
        let failure = answer().expect_err("a fork without descriptors");
        assert!(matches!(failure, Failure::NoFork { .. }), "{failure}");
        assert!(failure.to_string().contains("RLIMIT_NOFILE"), "{failure}");
        assert!(failure.to_string().contains("busy"), "{failure}");
        let error = Program::boot(&elf, config("another"), &mut Quiet).unwrap_err();
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    }
    let second = answer().unwrap();
    drop((first, second));
    assert_eq!(tenant.get("/").status, 200);
}
