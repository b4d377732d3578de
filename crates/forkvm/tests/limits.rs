//! Limits: time, waiting, forks, memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{ENOUGH, Tenant, eventually, headers, kvm_or_skip, scaled};
use forkvm::{BootError, Config, Failure, Queue, Quiet, Request, WarmUp};

/// A time that a request is stopped after.
fn short() -> Duration {
    scaled(Duration::from_millis(100))
}

fn get(url: &str) -> Request<'_> {
    Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    }
}

#[test]
fn a_request_that_never_ends_is_stopped() {
    kvm_or_skip!();
    let tenant = Tenant::boot("crash");
    let ways = [
        "loop",
        "loop-pause",
        "loop-syscalls",
        "loop-hypercalls",
        "loop-print",
        "loop-cpuid",
        "loop-sleep",
        "lret32-loop",
    ];
    for way in ways {
        let start = Instant::now();
        tenant.timeout(&format!("/{way}"), short());
        let taken = start.elapsed();
        assert!(taken >= short(), "{way} was stopped after {taken:?}");
        assert_eq!(tenant.get("/ok").text(), "ok\n", "after {way}");
    }
    assert_eq!(tenant.stats().created, 1);
    assert_eq!(tenant.stats().timeouts, ways.len() as u64);
}

#[test]
fn a_deadline_that_is_over_already() {
    kvm_or_skip!();
    let tenant = Tenant::boot("crash");
    for _ in 0..50 {
        // There is a fork, so it starts; whether it ends in time is a matter of microseconds.
        if let Err(failure) = tenant.try_send(&get("/loop"), Instant::now(), &mut Quiet) {
            assert!(failure.is_timeout() || failure.is_busy(), "{failure}");
        } else {
            panic!("an endless loop was answered");
        }
        assert_eq!(tenant.get("/ok").text(), "ok\n");
    }
}

#[test]
fn a_deadline_far_away() {
    kvm_or_skip!();
    let tenant = Tenant::boot("hello");
    let deadline = Instant::now() + Duration::from_secs(100 * 365 * 86_400);
    assert_eq!(
        tenant
            .try_send(&get("/"), deadline, &mut Quiet)
            .unwrap()
            .text(),
        "Hello, World!\n"
    );
}

/// Kicks at all times: before, in and after what the guest does.
#[test]
fn no_kick_hits_the_next_request() {
    kvm_or_skip!();
    let tenant = Tenant::boot("crash");
    for turn in 0..common::few(150).max(20) {
        let time = Duration::from_micros(137 * turn as u64 % 12_000);
        let url = ["/ok", "/loop-syscalls", "/ok", "/stdout-flood"][turn % 4];
        match tenant.try_send(&get(url), Instant::now() + time, &mut Quiet) {
            Ok(reply) => assert_eq!(reply.status, 200),
            Err(failure) => assert!(failure.is_timeout(), "{failure}"),
        }
        assert_eq!(tenant.get("/ok").text(), "ok\n");
    }
    tenant.assert_pristine();
}

/// As many requests wait as may, the next is turned away at once, and none is lost.
#[test]
fn so_many_wait_and_no_more() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| {
        config.limits.max_wait = ENOUGH;
        config.queue = Queue::new(2);
    });
    let queue = &tenant.config().queue;
    let held = tenant
        .answer(&get("/size/100000"), Instant::now() + ENOUGH, &mut Quiet)
        .unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| tenant.get("/counter").text().to_owned()))
            .collect();
        while queue.waiting() < 2 {
            std::thread::yield_now();
        }
        let failure = tenant.failure("/counter");
        assert!(failure.is_busy() && !failure.is_timeout(), "{failure}");
        assert!(
            matches!(failure, Failure::QueueFull { waiting: 2 }),
            "{failure:?}"
        );
        assert!(failure.to_string().contains("max_queue"), "{failure}");
        drop(held);
        for one in waiting {
            assert_eq!(one.join().unwrap(), "1\n");
        }
    });
    assert_eq!(queue.waiting(), 0);
    assert_eq!(tenant.get("/counter").text(), "1\n");
    assert_eq!(tenant.stats().busy, 1);
}

/// Without a queue a request is answered by an idle fork or not at all, but asks for another one to be made.
#[test]
fn none_waits_without_a_queue() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| {
        config.concurrency = 2;
        config.queue = Queue::new(0);
    });
    let held = tenant
        .answer(&get("/size/100000"), Instant::now() + ENOUGH, &mut Quiet)
        .unwrap();
    let failure = tenant.failure("/counter");
    assert!(
        matches!(failure, Failure::QueueFull { waiting: 0, .. }),
        "{failure:?}"
    );
    let end = Instant::now() + ENOUGH;
    while tenant.stats().idle == 0 {
        assert!(Instant::now() < end, "no fork is made");
        std::thread::yield_now();
    }
    assert_eq!(tenant.get("/counter").text(), "1\n");
    drop(held);
}

/// One byte too many is a failure that names the setting, and one that `on_error` answers.
#[test]
fn a_response_that_is_too_long() {
    kvm_or_skip!();
    let short = |config: &mut Config| config.limits.max_response_size = 1000;
    let tenant = Tenant::boot_with("echo", short);
    assert_eq!(tenant.get("/size/1000").body.len(), 1000);
    let failure = tenant.failure("/size/1001").to_string();
    assert!(
        failure.contains("1001 bytes") && failure.contains("max_response_size"),
        "{failure}"
    );
    assert_eq!(tenant.get("/size/1000").body.len(), 1000);
    let tenant = Tenant::boot_with("crash-on_error", |config| {
        config.limits.max_response_size = 1000;
    });
    assert_eq!(tenant.get("/ok").text(), "ok\n");
}

#[test]
fn no_fork_in_time() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| config.limits.max_wait = short());
    // An answer that is not read to its end holds its fork.
    let held = tenant
        .answer(&get("/size/100000"), Instant::now() + ENOUGH, &mut Quiet)
        .unwrap();
    let start = Instant::now();
    let failure = tenant.failure("/counter");
    assert!(failure.is_busy() && !failure.is_timeout(), "{failure}");
    assert!(
        matches!(failure, Failure::Busy { concurrency: 1, .. }),
        "{failure:?}"
    );
    assert!(
        failure.to_string().contains("max_wait") && failure.to_string().contains("concurrency"),
        "{failure}"
    );
    assert!(start.elapsed() >= short());
    // The request's own deadline ends the wait as well.
    let failure = tenant
        .try_send(&get("/counter"), Instant::now() + short() / 4, &mut Quiet)
        .unwrap_err();
    assert!(failure.is_busy(), "{failure}");
    drop(held);
    assert_eq!(tenant.get("/counter").text(), "1\n");
    let stats = tenant.stats();
    assert_eq!(
        (stats.busy, stats.forks, stats.created, stats.requests),
        (2, 1, 1, 2),
        "{stats:?}"
    );
}

#[test]
fn a_fork_that_comes_free_serves_who_waits() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let held = tenant
        .answer(&get("/counter"), Instant::now() + ENOUGH, &mut Quiet)
        .unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let deadline = Instant::now() + ENOUGH;
                    tenant
                        .try_send(&get("/counter"), deadline, &mut Quiet)
                        .unwrap()
                        .text()
                        .to_owned()
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        drop(held);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), "1\n");
        }
    });
    assert_eq!(tenant.stats().created, 1);
}

/// The wait for a fork and the time in the guest are one time.
#[test]
fn the_deadline_is_end_to_end() {
    kvm_or_skip!();
    let tenant = Tenant::boot("crash");
    let whole = short() * 4;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| tenant.timeout("/loop", whole / 2));
        std::thread::sleep(short() / 4);
        let start = Instant::now();
        let failure = tenant
            .try_send(&get("/loop"), start + whole, &mut Quiet)
            .unwrap_err();
        // On a starved machine the first request may not be over in time to leave a fork at all.
        assert!(failure.is_timeout() || failure.is_busy(), "{failure}");
        first.join().unwrap();
    });
    assert_eq!(tenant.get("/ok").text(), "ok\n");
}

#[test]
fn forks_are_made_on_demand_up_to_the_limit_and_given_up_when_idle() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| {
        config.concurrency = 3;
        config.idle_time = Duration::from_millis(10);
        config.limits.max_memory = 32 << 20;
    });
    assert_eq!(tenant.stats().forks, 1);
    let deadline = || Instant::now() + ENOUGH;
    let held: Vec<_> = (0..3)
        .map(|_| {
            tenant
                .answer(&get("/counter"), deadline(), &mut Quiet)
                .unwrap()
        })
        .collect();
    let stats = tenant.stats();
    assert_eq!(
        (stats.forks, stats.idle, stats.created),
        (3, 0, 3),
        "{stats:?}"
    );
    assert!(
        tenant
            .try_send(&get("/counter"), Instant::now() + short(), &mut Quiet)
            .unwrap_err()
            .is_busy()
    );
    drop(held);
    assert_eq!(tenant.stats().created, 3);
    eventually("all forks but one are given up", || {
        tenant.stats().forks == 1
    });
    assert_eq!(tenant.stats().idle, 1);
    assert_eq!(tenant.get("/counter").text(), "1\n");
}

#[test]
fn the_limit_holds_whatever_the_load() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("counter", |config| {
        config.concurrency = 2;
        config.limits.max_memory = 32 << 20;
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..common::few(500) {
                    assert_eq!(tenant.get("/").text(), "1\n");
                    assert!(tenant.stats().forks <= 2);
                }
            });
        }
    });
    let stats = tenant.stats();
    assert!(stats.created <= 2, "{stats:?}");
    assert_eq!(
        (stats.requests, stats.failures, stats.busy),
        (8 * common::few(500) as u64, 0, 0),
        "{stats:?}"
    );
    tenant.assert_pristine();
}

#[test]
fn a_requests_memory_is_limited() {
    kvm_or_skip!();
    for limit in [1 << 20, 5 << 20, 16 << 20] {
        let tenant = Tenant::boot_with("crash", |config| {
            config.limits.max_memory = 64 << 20;
            config.limits.max_request_memory = limit;
        });
        for way in ["oom", "malloc-oom"] {
            let failure = tenant.failure(&format!("/{way}"));
            assert!(
                failure
                    .to_string()
                    .contains(&format!("{limit} bytes (max_request_memory)")),
                "{failure}"
            );
            assert_eq!(tenant.get("/ok").text(), "ok\n");
            tenant.assert_pristine();
        }
        assert_eq!(tenant.stats().created, 1);
    }
    // Guest memory ends before the request's limit.
    let tenant = Tenant::boot_with("crash", |config| config.limits.max_memory = 16 << 20);
    for way in ["oom", "malloc-oom"] {
        tenant.failure(&format!("/{way}"));
        assert_eq!(tenant.get("/ok").text(), "ok\n");
    }
    tenant.assert_pristine();
}

/// What the host writes for a request counts at once, not only when the request ends.
#[test]
fn memory_that_system_calls_write_is_limited() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("crash", |config| {
        config.limits.max_memory = 32 << 20;
        config.limits.max_request_memory = 4 << 20;
    });
    for way in ["/oom-system", "/oom-host"] {
        let failure = tenant.failure(way).to_string();
        assert!(failure.contains("max_request_memory"), "{way}: {failure}");
        assert_eq!(tenant.get("/ok").text(), "ok\n");
    }
    tenant.assert_pristine();
}

/// A limit of nothing still leaves what the engine itself writes, or refuses; it does not hang or panic.
#[test]
fn limits_of_nothing() {
    kvm_or_skip!();
    let nothing = Tenant::try_boot("hello", |config| config.limits.max_request_memory = 0);
    if let Ok(tenant) = nothing {
        let _ = tenant.try_get("/");
        let _ = tenant.try_get("/");
    }
    if let Ok(tenant) = Tenant::try_boot("hello", |config| {
        config.limits.req_mem_limit_after_reset = 0
    }) {
        for _ in 0..10 {
            assert_eq!(tenant.get("/").text(), "Hello, World!\n");
        }
        tenant.assert_pristine();
    }
    assert!(
        Tenant::try_boot("hello", |config| config.limits.max_boot_time =
            Duration::ZERO)
        .is_err()
    );
    if let Ok(tenant) = Tenant::try_boot("hello", |config| config.concurrency = 0) {
        let _ = tenant.try_send(&get("/"), Instant::now() + short(), &mut Quiet);
    }
    if let Ok(tenant) = Tenant::try_boot("hello", |config| config.limits.max_wait = Duration::ZERO)
    {
        assert_eq!(tenant.get("/").text(), "Hello, World!\n");
    }
}

#[test]
fn a_body_that_does_not_fit_fails_that_request_only() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| {
        config.limits.max_memory = 16 << 20;
        config.limits.max_request_memory = 8 << 20;
    });
    for len in [9 << 20, 20 << 20] {
        let body = vec![b'x'; len];
        let request = Request {
            method: "POST",
            url: b"/sum",
            body: &body,
            ..Default::default()
        };
        let failure = tenant
            .try_send(&request, Instant::now() + ENOUGH, &mut Quiet)
            .unwrap_err();
        assert!(failure.to_string().contains("memory"), "{failure}");
        assert_eq!(tenant.get("/counter").text(), "1\n");
    }
    tenant.assert_pristine();
    assert_eq!(tenant.stats().created, 1);
}

#[test]
fn warm_up_requests_are_part_of_the_frozen_state() {
    kvm_or_skip!();
    let warm_up = WarmUp {
        num_requests: 3,
        headers: headers(&[("X-Warm", "up")]),
        ..Default::default()
    };
    let tenant = Tenant::boot_with("counter", |config| {
        config.concurrency = 2;
        config.warm_up = Some(warm_up.clone());
    });
    for _ in 0..5 {
        assert_eq!(tenant.get("/").text(), "4\n");
    }
    // One that fails does not keep the program from serving, or it is refused with a reason.
    let crash = Tenant::try_boot("crash", |config| {
        config.warm_up = Some(WarmUp {
            url: "/ud2".into(),
            ..warm_up
        })
    });
    match crash {
        Ok(tenant) => assert_eq!(tenant.get("/ok").text(), "ok\n"),
        Err(error) => assert!(matches!(error, BootError::Main { .. }), "{error}"),
    }
}

#[test]
fn on_error_answers_also_when_the_body_filled_the_memory() {
    kvm_or_skip!();
    let limit = 1 << 20;
    let tenant = Tenant::boot_with("crash-on_error", |config| {
        config.limits.max_request_memory = limit;
    });
    // From one that leaves some pages for the program to one that leaves none.
    for left in (0..20).map(|n| n * 1024) {
        let body = vec![7; limit as usize - left];
        let request = Request {
            method: "POST",
            body: &body,
            ..get("/null-write")
        };
        let deadline = Instant::now() + ENOUGH;
        let reply = tenant.try_send(&request, deadline, &mut Quiet).unwrap();
        let text = reply.text();
        assert!(
            text.starts_with("on_error: /null-write: "),
            "{left}: {text}"
        );
        assert!(
            text.contains("max_request_memory") || text.contains("0x0"),
            "{left}: {text}"
        );
    }
    tenant.assert_pristine();
}

#[test]
fn arguments_longer_than_the_stack_are_a_matter_of_settings() {
    kvm_or_skip!();
    let failure = Tenant::try_boot("hello", |config| {
        config.environment = vec!["X=".to_owned() + &"x".repeat(64 << 20)];
    });
    let error = failure.err().unwrap();
    assert!(matches!(error, BootError::Setting { .. }), "{error}");
}
