//! Regular expressions that programs have the host compile and match.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{ENOUGH, Recorder, Tenant, headers, kvm_or_skip};
use forkvm::{Request, Stream};

#[test]
fn those_of_main_are_there_for_requests() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("regex", |config| config.concurrency = 2);
    // The third is regex_copyto(), which only requests can call.
    assert_eq!(tenant.get("/main").text(), "1 2 -1\n");
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

#[test]
fn substitution() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    for (url, expected) in [
        ("/subst?n=1&s=abbc&w=[%5c1]", "4 4 [bb]\n"),
        (
            "/subst?n=2&s=HOST:a+host:b+c&w=%5c1-%5c0-%5c%26",
            "19 19 a-HOST:a-& host:b c\n",
        ),
        (
            "/subst?n=2&s=HOST:a+host:b+c&w=%3c%5c1%3e&flags=1",
            "9 9 <a> <b> c\n",
        ),
        // What does not match is as it was; nothing may be left.
        ("/subst?n=1&s=xyz&w=a", "3 3 xyz\n"),
        ("/subst?n=1&s=abc&w=", "0 0 \n"),
        ("/subst?n=1&s=&w=a", "0 0 \n"),
        // Exactly the room, and one byte less (EMSGSIZE).
        ("/subst?n=1&s=abc&w=12345&room=5", "5 5 12345\n"),
        ("/subst?n=1&s=abc&w=12345&room=4", "-90 5 \n"),
        ("/subst?n=1&s=abc&w=a&flags=2", "-22 -22 \n"),
        ("/subst?n=3&s=abc&w=a", "-22 -22 \n"),
        ("/overlap", "7 xx[aa]by\n"),
    ] {
        assert_eq!(tenant.get(url).text(), expected, "{url}");
    }
    // E2BIG.
    assert_eq!(tenant.get("/long").text(), "1 -7 65536 bb -7 -7 0 0 -7\n");
    tenant.assert_pristine();
}

/// Arguments of another layout, pointers to nowhere, lengths past the end: refused, and nothing is written.
#[test]
fn other_layouts_are_refused() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    let expected = "-22 -14 -22 -22 -22 -14 -14 -7 -14 -7 0\n";
    assert_eq!(tenant.get("/layouts").text(), expected);
    tenant.assert_pristine();
}

#[test]
fn headers_are_copied() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    let headers = headers(&[("X-Name", "abbc")]);
    let mut host = Recorder::default();
    let mut send = |url: &str| {
        let request = Request {
            method: "GET",
            url: url.as_bytes(),
            headers: &headers,
            ..Default::default()
        };
        tenant.try_send(&request, Instant::now() + ENOUGH, &mut host)
    };
    let reply = send("/copyto?n=1&from=x-name&to=X-Copy&w=b+is+%5c1").unwrap();
    assert_eq!(reply.text(), "1\n");
    assert_eq!(reply.header("X-Copy"), Some("b is bb"));
    for url in [
        // Not there; does not match; nothing is left.
        "/copyto?n=1&from=X-None&to=X-Copy&w=a",
        "/copyto?n=2&from=X-Name&to=X-Copy&w=a",
        "/copyto?n=1&from=X-Name&to=X-Copy&w=",
    ] {
        let reply = send(url).unwrap();
        assert_eq!(
            (reply.text(), reply.header("X-Copy")),
            ("0\n", None),
            "{url}"
        );
    }
    assert_eq!(
        send("/copyto?n=3&from=X-Name&to=X-Copy&w=a")
            .unwrap()
            .text(),
        "-22\n"
    );
    // As http_set() does, these fail.
    for (url, why) in [
        ("/copyto?n=1&from=X-Name&to=X+Copy&w=a", "field name"),
        ("/copyto?n=1&from=X-Name&to=&w=a", "field name"),
        ("/copyto?n=1&from=X-Name&to=A:&w=a", "field name"),
        (
            "/copyto?n=1&from=X-Name&to=X-Copy&w=a%0aB:c",
            "control characters",
        ),
        (
            "/copyto?n=1&from=X-Name&to=X-Copy&w=a&message=7",
            "no such message",
        ),
    ] {
        let failed = send(url).expect_err(url).to_string();
        assert!(failed.contains(why), "{failed}");
    }
    tenant.assert_pristine();
}

/// Whatever a program has matched, its deadline is soon looked at.
#[test]
fn matching_counts_as_the_requests_time() {
    kvm_or_skip!();
    let tenant = Tenant::boot("regex");
    let start = Instant::now();
    for url in ["/heavy", "/quadratic"] {
        tenant.timeout(url, Duration::from_millis(200));
    }
    assert!(start.elapsed() < ENOUGH);
    assert_eq!(tenant.get("/match?n=1&s=abc").text(), "1\n");
    tenant.assert_pristine();
}

/// The Rust crate's.
#[test]
fn those_of_the_rust_crate() {
    kvm_or_skip!();
    let tenant = Tenant::boot("rust");
    for _ in 0..2 {
        let expected = "true a<12>b34 a12b34 60000\nSome(Some(22)) true\n";
        assert_eq!(tenant.get("/regex?a12b34").text(), expected);
    }
    tenant.assert_pristine();
}
