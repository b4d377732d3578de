//! Regular expressions that programs have the host compile and match.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{ENOUGH, Recorder, Tenant, kvm_or_skip};
use forkvm::{Request, Stream};

#[test]
fn those_of_main_are_there_for_requests() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("regex", |config| config.concurrency = 2);
    assert_eq!(tenant.get("/main").text(), "1 2\n");
    for (url, expected) in [
        ("/match?n=1&s=abbbc", "1\n"),
        ("/match?n=1&s=abbbcd", "0\n"),
        ("/match?n=2&s=xhost:+example.com", "1\n"),
        ("/match?n=2&s=", "0\n"),
        ("/match?n=3&s=abc", "-22\n"),
        ("/match?n=0&s=abc", "-22\n"),
    ] {
        assert_eq!(tenant.get(url).text(), expected, "{url}");
    }
}

/// What a request compiles or frees is undone after it.
#[test]
fn a_request_has_its_own() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    for _ in 0..2 {
        assert_eq!(tenant.get("/compile?p=^x%2by$&s=xxy").text(), "3 1\n");
        assert_eq!(tenant.get("/match?n=3&s=xxy").text(), "-22\n");
        assert_eq!(tenant.get("/free").text(), "0 -22 -22 1\n");
        assert_eq!(tenant.get("/match?n=1&s=abc").text(), "1\n");
        // 64 in all (ENOSPC).
        assert_eq!(tenant.get("/many").text(), "62 -28\n");
    }
    tenant.assert_pristine();
}

#[test]
fn what_is_refused() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    // EFAULT, E2BIG and EINVAL.
    let expected = "-14 -14 -7 -7 -14 -7 -7 0 -22\n";
    assert_eq!(tenant.get("/pointers").text(), expected);
    let mut host = Recorder::default();
    for (pattern, expected) in [("a(", "-22"), ("(a)%5c1", "-22"), ("(a{99}){99}", "-7")] {
        let url = format!("/compile?p={pattern}&s=a");
        let request = Request {
            method: "GET",
            url: url.as_bytes(),
            ..Default::default()
        };
        let deadline = Instant::now() + ENOUGH;
        let reply = tenant.try_send(&request, deadline, &mut host).unwrap();
        assert_eq!(reply.text(), format!("{expected} -22\n"), "{pattern}");
    }
    let log = host.text(Stream::Log);
    for why in [
        "unclosed group",
        "backreferences are not supported",
        "65536 bytes",
    ] {
        assert!(log.contains(why), "{log}");
    }
    tenant.assert_pristine();
}

/// Whatever a program has matched, its deadline is soon looked at.
#[test]
fn matching_counts_as_the_requests_time() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    let start = Instant::now();
    tenant.timeout("/heavy", Duration::from_millis(200));
    assert!(start.elapsed() < ENOUGH);
    assert_eq!(tenant.get("/match?n=1&s=abc").text(), "1\n");
    tenant.assert_pristine();
}
