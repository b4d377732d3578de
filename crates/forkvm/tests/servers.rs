//! Unmodified servers: frozen where they wait for a connection, and put back after each.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{kvm_or_skip, scaled};
use forkvm::{Cause, Closed, ServerFork, ServerLimits};
use server::{Client, ask, boot, limits};

#[test]
fn nothing_of_a_connection_is_left() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    assert_eq!(server.address(), Some(([127, 0, 0, 1], 8000).into()));
    let mut fork = ServerFork::new(server.clone()).unwrap();
    for round in 0..30 {
        let path = ["/", "/sleep", "/fill"][round % 3];
        let (result, answer) = ask(&mut fork, Client::get(path));
        assert_eq!(result, Ok(Closed::ByServer), "{path}");
        assert!(answer.ends_with("count 1\n"), "{round} {path}: {answer}");
        fork.reset().unwrap();
        assert_eq!(fork.differing_pages(), 0, "{round} {path}");
    }
}

/// KVM leaves this register as it is where an image of the vector state does not have it.
#[test]
fn rights_of_protection_keys_are_put_back() {
    kvm_or_skip!();
    let mut fork = ServerFork::new(boot("linux/server", limits())).unwrap();
    let answers: BTreeSet<String> = (0..3)
        .map(|_| {
            let (result, answer) = ask(&mut fork, Client::get("/keys"));
            assert_eq!(result, Ok(Closed::ByServer));
            fork.reset().unwrap();
            answer
        })
        .collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[test]
fn clients_may_leave_at_any_point() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    let mut fork = ServerFork::new(server.clone()).unwrap();
    for (request, takes) in [("", 0), ("GET / H", 0), ("GET / HTTP/1.0\r\n\r\n", 0)] {
        let client = Client {
            ends: true,
            takes,
            ..Client::new(request)
        };
        assert!(ask(&mut fork, client).0.is_ok(), "{request}");
        fork.reset().unwrap();
        assert_eq!(fork.differing_pages(), 0, "{request}");
    }
    assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 1\n"));
}

#[test]
fn what_fails_is_not_used_again() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    for path in ["/hang", "/spin", "/crash", "/exit"] {
        let mut fork = ServerFork::new(server.clone()).unwrap();
        let (result, answer) = ask(&mut fork, Client::get(path));
        let failed = match path {
            "/exit" => matches!(result, Err(Cause::Exit(3))),
            "/crash" => matches!(result, Err(Cause::Exception(_))),
            _ => matches!(result, Err(Cause::Timeout)),
        };
        assert!(failed, "{path}: {result:?}");
        assert_eq!(answer, "");
        assert!(fork.reset().is_err(), "{path}");
    }
    let mut fork = ServerFork::new(server.clone()).unwrap();
    assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 1\n"));
}

#[test]
fn a_client_has_its_answer_before_the_server_is_done() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    let mut fork = ServerFork::new(server.clone()).unwrap();
    let (result, answer) = ask(&mut fork, Client::get("/late"));
    assert_eq!(result, Err(Cause::Timeout));
    assert!(answer.ends_with("count 1\n"), "{answer}");
}

/// The time for an answer ends with its first bytes, and that for more of it begins anew with each piece.
#[test]
fn an_answer_may_take_long_that_is_computed_piece_by_piece() {
    kvm_or_skip!();
    let times = ServerLimits {
        max_request_time: scaled(Duration::from_millis(500)),
        ..limits()
    };
    let server = boot("linux/server", times);
    let mut fork = ServerFork::new(server.clone()).unwrap();
    let (result, answer) = ask(&mut fork, Client::get("/compute"));
    assert_eq!(result, Ok(Closed::ByServer));
    assert_eq!(answer.matches("drop\n").count(), 150);
}

#[test]
fn a_warm_up_is_part_of_what_is_frozen() {
    kvm_or_skip!();
    let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    let server = boot(
        "linux/server",
        ServerLimits {
            warm_up: vec![request; 3],
            ..limits()
        },
    );
    let mut fork = ServerFork::new(server.clone()).unwrap();
    for _ in 0..3 {
        assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 4\n"));
        fork.reset().unwrap();
    }
}

/// While it is frozen CLOCK_MONOTONIC stands still, as in a machine that is suspended, and the others go on. FORKVM_FROZEN: how many
/// seconds ago it was, which `make test-svm` has be minutes.
#[test]
fn clocks_are_right_however_long_ago_the_freeze_was() {
    use rustix::time::{ClockId, clock_gettime};
    /// What the rate of the processor's counter may have made of the time since it was set.
    const SLACK: f64 = 0.02;
    kvm_or_skip!();
    let seconds = std::env::var("FORKVM_FROZEN")
        .map(|seconds| seconds.parse().unwrap())
        .ok();
    let now = || {
        [ClockId::Monotonic, ClockId::Boottime, ClockId::Realtime].map(|clock| {
            let time = clock_gettime(clock);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        })
    };
    let before_boot = now()[0];
    let server = boot("linux/server", limits());
    let frozen = now()[0];
    std::thread::sleep(Duration::from_secs(seconds.unwrap_or(2)));
    let mut fork = ServerFork::new(server.clone()).unwrap();
    for _ in 0..3 {
        let before = now();
        let (result, answer) = ask(&mut fork, Client::get("/time"));
        let after = now();
        assert_eq!(result, Ok(Closed::ByServer));
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let told = body.split_whitespace().map(|n| n.parse::<f64>().unwrap());
        let told = <[f64; 3]>::try_from(told.collect::<Vec<_>>()).unwrap();
        let first = before_boot..frozen + after[0] - before[0];
        let others = [1, 2].map(|clock| before[clock]..after[clock]);
        for (told, right) in told.into_iter().zip([first].into_iter().chain(others)) {
            let right = right.start - SLACK..=right.end + SLACK;
            assert!(right.contains(&told), "{told} is not in {right:?}");
        }
        fork.reset().unwrap();
        assert_eq!(fork.differing_pages(), 0);
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_wait_uses_nothing_of_the_processor() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    let mut fork = ServerFork::new(server.clone()).unwrap();
    // Without a reset what was frozen counts once.
    for _ in 0..2 {
        let (_, answer) = ask(&mut fork, Client::get("/used"));
        let used: u32 = answer
            .rsplit("used ")
            .next()
            .and_then(|used| used.trim().parse().ok())
            .unwrap();
        assert!(used < 250, "{used}");
    }
}

#[test]
fn memory_has_a_limit() {
    kvm_or_skip!();
    let server = boot(
        "linux/server",
        ServerLimits {
            max_request_memory: 4 << 20,
            ..limits()
        },
    );
    let mut fork = ServerFork::new(server).unwrap();
    assert_eq!(
        ask(&mut fork, Client::get("/fill")).0,
        Err(Cause::MemoryLimit)
    );
    // What it has sent before is on its way, though it comes to the limit at once.
    let server = boot(
        "linux/server",
        ServerLimits {
            max_request_memory: 1 << 20,
            ..limits()
        },
    );
    let mut fork = ServerFork::new(server).unwrap();
    assert_eq!(
        ask(&mut fork, Client::get("/part")),
        (Err(Cause::MemoryLimit), "a part".into())
    );
}

/// A fork has what the server had at the freeze, and twice what a connection may write to. One that is never reset has all.
#[test]
fn memory_that_is_only_read_has_a_limit_too() {
    kvm_or_skip!();
    for (limit, result) in [
        (4 << 20, Err(Cause::MemoryLimit)),
        (64 << 20, Ok(Closed::ByServer)),
    ] {
        let limits = ServerLimits {
            max_request_memory: limit,
            ..limits()
        };
        let server = boot("linux/server", limits);
        let mut fork = ServerFork::new(server.clone()).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&mut fork, Client::get("/look")).0, result);
            if result.is_err() {
                break;
            }
            fork.reset().unwrap();
            assert_eq!((fork.differing_pages(), fork.differing_entries()), (0, 0));
        }
        let mut stays = ServerFork::never_reset(server).unwrap();
        for (path, count) in [("/look", 1), ("/", 2)] {
            let (result, answer) = ask(&mut stays, Client::get(path));
            assert_eq!(result, Ok(Closed::ByServer));
            assert!(answer.ends_with(&format!("count {count}\n")), "{answer}");
        }
    }
}

#[test]
fn forks_of_a_server_do_not_see_each_other() {
    kvm_or_skip!();
    let server = boot("linux/server", limits());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut fork = ServerFork::new(server.clone()).unwrap();
                for _ in 0..20 {
                    assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 1\n"));
                    fork.reset().unwrap();
                }
            });
        }
    });
}
