//! Every way to die ends that request only: the next one is answered by the same fork, whose memory is the master's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{NOT_EMULATED, Reply, Tenant, emulated, kvm_or_skip, scaled};
use forkvm::{Cause, Failure, Quiet, Request};

fn crash(name: &str) -> Tenant {
    Tenant::boot_with(name, |config| {
        config.limits.max_memory = 32 << 20;
        config.limits.max_request_memory = 8 << 20;
    })
}

/// Requests one way to die. Those that only a limit ends get little time.
fn die(tenant: &Tenant, name: &str, outcome: &str) -> Result<Reply, Failure> {
    let time = match outcome {
        "limits" => scaled(Duration::from_millis(200)),
        _ => tenant.config().limits.max_request_time,
    };
    let url = format!("/{name}");
    let request = Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    };
    tenant.try_send(&request, Instant::now() + time, &mut Quiet)
}

/// The list of ways, from the program itself: name and outcome.
/// Software emulation can't do some of them.
fn ways(tenant: &Tenant) -> Vec<(String, String)> {
    let list = tenant.get("/list");
    let ways: Vec<_> = list
        .text()
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, outcome)| match outcome {
            "fails" if emulated() && NOT_EMULATED.contains(&name) => {
                eprintln!("SKIPPED in emulation: {name} has to fail");
                (name.into(), "either".into())
            }
            _ => (name.into(), outcome.into()),
        })
        .collect();
    assert!(ways.len() > 100, "only {} ways to die", ways.len());
    ways
}

#[test]
fn every_way_to_die() {
    kvm_or_skip!();
    let tenant = crash("crash");
    let mut wrong = Vec::new();
    for (name, outcome) in ways(&tenant) {
        let created = tenant.stats().created;
        let result = die(&tenant, &name, &outcome);
        let text = match &result {
            Ok(reply) => format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
            Err(failure) => failure.to_string(),
        };
        let right = match (outcome.as_str(), &result) {
            ("fails" | "limits" | "either", Err(failure)) => {
                matches!(failure, Failure::Guest { cause, .. } if !matches!(cause, Cause::Machine(_)))
                    && text.starts_with("request failed: ")
                    && (outcome == "limits" || !failure.is_timeout())
            }
            ("answers" | "either", Ok(reply)) => {
                reply.status == 200 && !text.contains("survived") || outcome == "either"
            }
            _ => false,
        };
        if !right {
            wrong.push(format!("/{name} ({outcome}): {text}"));
        }
        match tenant.try_get("/ok") {
            Ok(reply) if reply.text() == "ok\n" => {}
            other => wrong.push(format!("after /{name}: {other:?}")),
        }
        // Comparing all memory takes long in emulation; then it is done for all of them at the end.
        let different = if emulated() {
            0
        } else {
            tenant.differing_pages()
        };
        if different > 0 {
            wrong.push(format!("after /{name}: {different} pages differ"));
        }
        if tenant.stats().created != created {
            wrong.push(format!("/{name} cost a fork: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    tenant.assert_pristine();
    let stats = tenant.stats();
    assert_eq!(
        (stats.forks, stats.idle, stats.busy),
        (1, 1, 0),
        "{stats:?}"
    );
}

#[test]
fn what_misbehaves_and_is_answered() {
    kvm_or_skip!();
    let tenant = crash("crash");
    let text = |name: &str| tenant.get(&format!("/{name}")).text().to_owned();
    let pointers = text("wild-syscall-pointer");
    assert_eq!(pointers.lines().count(), 11, "{pointers}");
    for line in pointers.lines() {
        assert!(
            line.split(' ').skip(1).all(|result| result == "EFAULT"),
            "{pointers}"
        );
    }
    for name in ["unknown-hypercall", "unknown-syscall", "rsp-gone-syscall"] {
        assert_eq!(text(name), "-38\n", "{name}");
    }
    assert_eq!(text("arch-prctl-kernel"), "-1\n");
    assert!(["access denied to key 0\n", "no protection keys\n"].contains(&&*text("pkru-deny")));
}

#[test]
fn the_log_says_what_and_where() {
    kvm_or_skip!();
    let tenant = crash("crash");
    for (name, what, place) in [
        (
            "null-read",
            "page fault reading 0x0 (not mapped)",
            "(null_read+",
        ),
        (
            "null-write",
            "page fault writing 0x0 (not mapped)",
            "(null_write+",
        ),
        (
            "null-call",
            "page fault executing 0x0 (not mapped)",
            "at 0x0",
        ),
        ("write-rodata", "(not permitted)", "(write_rodata+"),
        ("stack-overflow", "a stack overflow", "(recurse"),
        ("ud2", "invalid instruction", "(ud2+0x0)"),
        ("div0", "divide error", "(div0+"),
        ("x87-fpe", "x87 error", "(x87_fpe+"),
        ("sse-fpe", "SIMD error", "(sse_fpe+"),
        ("alignment-check", "alignment check", "(alignment_check+"),
        ("hlt", "general protection fault", "(hlt+0x0)"),
        ("return", "returned without a response", ""),
        ("exit1", "exit(1)", ""),
        ("abort", "SIGABRT", ""),
        ("oom", "max_request_memory", ""),
        ("bad-status", "status 99", ""),
        ("old-api", "0xFFFF", ""),
    ] {
        if emulated() && NOT_EMULATED.contains(&name) {
            continue;
        }
        let failure = tenant.failure(&format!("/{name}")).to_string();
        assert!(
            failure.contains(what) && failure.contains(place),
            "/{name}: {failure}"
        );
    }
    let failure = tenant.timeout("/loop", scaled(Duration::from_millis(50)));
    assert!(
        failure.to_string().contains("max_request_time"),
        "{failure}"
    );
}

#[test]
fn counters_count() {
    kvm_or_skip!();
    let tenant = crash("crash");
    tenant.get("/ok");
    tenant.failure("/ud2");
    tenant.timeout("/loop", scaled(Duration::from_millis(50)));
    let stats = tenant.stats();
    assert_eq!(
        (stats.requests, stats.failures, stats.timeouts, stats.busy),
        (3, 2, 1, 0),
        "{stats:?}"
    );
}

/// With an error handler, each failure is answered by it, and names the URL and the failure.
#[test]
fn every_way_to_die_with_an_error_handler() {
    kvm_or_skip!();
    let tenant = crash("crash-on_error");
    let mut wrong = Vec::new();
    for (name, outcome) in ways(&tenant) {
        if outcome != "fails" {
            continue;
        }
        let expected = format!("on_error: /{name}: request failed: ");
        match die(&tenant, &name, &outcome) {
            Ok(reply)
                if reply.status == 500
                    && reply.text().starts_with(&expected)
                    && reply.failure.is_some() => {}
            other => wrong.push(format!("/{name}: {other:?}")),
        }
    }
    for name in ["loop", "loop-sleep"] {
        let reply = die(&tenant, name, "limits").unwrap();
        assert!(reply.failure.unwrap().is_timeout());
    }
    assert_eq!(tenant.get("/ok").text(), "ok\n");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(tenant.stats().created, 1);
    tenant.assert_pristine();
}

/// Reads, writes and jumps to where the engine's own pages lie, and to their neighbours.
#[test]
fn the_monitors_pages_are_out_of_reach() {
    kvm_or_skip!();
    const MONITOR: u64 = 0x7e00_0000_0000;
    let tenant = crash("crash");
    let mut written = Vec::new();
    for page in 0..common::few(200).max(32) as u64 {
        let address = MONITOR + page * 4096 + 8;
        let answered = |way: &str| tenant.try_get(&format!("/{way}/{address:x}")).is_ok();
        let (write, _) = (answered("write"), answered("read"));
        // A jump into data or into another stub's middle may do anything but harm.
        let _ = die(&tenant, &format!("jump/{address:x}"), "limits");
        if write {
            written.push(page * 4096);
        }
        if page < 8 {
            assert!(!answered("read"), "ring 0's page {page} can be read");
        }
        assert_eq!(tenant.get("/ok").text(), "ok\n", "page {page}");
    }
    // Only the request area, 64 KiB from 0xe000.
    assert!(
        written.iter().all(|page| (0xe000..0x1_e000).contains(page)),
        "{written:x?}"
    );
    tenant.assert_pristine();
}
