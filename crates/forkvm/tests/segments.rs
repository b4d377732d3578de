//! Bodies that a program takes segment by segment, while they come.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::sums::pattern;
use common::{ENOUGH, Tenant, headers, kvm_or_skip};
use forkvm::{Answer, Exchange, Failure, Quiet, Request, Upload};

fn later() -> Instant {
    Instant::now() + ENOUGH
}

fn begin(tenant: &Tenant, url: &str) -> Result<Exchange, Failure> {
    let headers = headers(&[("Content-Type", "a/b")]);
    let request = Request {
        method: "POST",
        url: url.as_bytes(),
        arg: b"A",
        headers: &headers,
        body: &[],
    };
    tenant.exchange(&request, Upload::Chunked, later(), &mut Quiet)
}

fn body(answer: &mut Answer) -> String {
    let mut piece = vec![0; 2 << 20];
    let n = match answer.take_streaming() {
        Some(mut streaming) => streaming.read(&mut piece, &mut Quiet).unwrap(),
        None => answer.read_body(&mut piece),
    };
    String::from_utf8_lossy(&piece[..n]).into_owned()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
}

fn sum(url: &str, arg: &str, kind: &str, bytes: &[u8]) -> String {
    format!(
        "{url} {arg} {kind} len {} fnv1a {:016x}\n",
        bytes.len(),
        fnv1a(bytes)
    )
}

#[test]
fn a_body_comes_in_order_and_in_segments() {
    kvm_or_skip!();
    let tenant = Tenant::boot("segments");
    let bytes = pattern(1_000_003);
    for size in [1 << 20, 65_537, 65_536, 10_000] {
        let mut exchange = begin(&tenant, "/sum").unwrap();
        for piece in bytes.chunks(size) {
            assert!(exchange.feed(piece, later(), &mut Quiet).unwrap());
        }
        // Nothing is no end.
        assert!(exchange.feed(&[], later(), &mut Quiet).unwrap());
        let mut answer = exchange.answer(later(), None, &mut Quiet).unwrap();
        assert_eq!(answer.headers(), headers(&[("X-First", "1")]));
        assert_eq!(body(&mut answer), sum("/sum", "A", "a/b", &bytes));
    }
    tenant.assert_pristine();
}

#[test]
fn which_handler_takes_which_body() {
    kvm_or_skip!();
    let boot = |how: &str| {
        let how = vec![how.to_owned()];
        Tenant::boot_with("segments", |config| config.main_arguments = how)
    };
    let tenant = boot("");
    assert!(tenant.takes_segments());
    assert_eq!(
        tenant.post("/sum", b"abc").text(),
        sum("/sum", "", "", b"abc")
    );
    let long = pattern(200_000);
    let expected = sum("/segments", "", "", &long) + "4 segments\n";
    assert_eq!(tenant.post("/segments", &long).text(), expected);
    assert_eq!(tenant.get("/sum").text(), "get /sum 0\n");
    assert_eq!(tenant.post("/sum", b"").text(), "get /sum 0\n");
    let tenant = boot("--any-method");
    assert_eq!(
        tenant.post("/sum", b"abc").text(),
        sum("/sum", "", "", b"abc")
    );
    assert_eq!(tenant.get("/sum").text(), "request /sum 0\n");
    // An empty body is over at once.
    let tenant = boot("--alone");
    assert_eq!(tenant.post("/sum", b"").text(), sum("/sum", "", "", b""));
    let failure = tenant.failure("/sum").to_string();
    assert!(failure.contains("a handler for POST only"), "{failure}");
    assert!(!Tenant::boot("echo").takes_segments());
}

#[test]
fn an_answer_before_the_end_is_the_answer() {
    kvm_or_skip!();
    let tenant = Tenant::boot("segments");
    for (url, expected) in [("/early", "early\n"), ("/early-parts", "in parts\n")] {
        let mut exchange = begin(&tenant, url).unwrap();
        assert!(!exchange.feed(b"abc", later(), &mut Quiet).unwrap());
        // What comes after it is nobody's.
        assert!(!exchange.feed(b"def", later(), &mut Quiet).unwrap());
        let mut answer = exchange.answer(later(), None, &mut Quiet).unwrap();
        assert_eq!(body(&mut answer), expected);
        drop(answer);
        assert_eq!(tenant.get("/").text(), "get / 0\n");
    }
    // It needs no fork while the rest of the body comes.
    let mut exchange = begin(&tenant, "/early-long").unwrap();
    assert!(!exchange.feed(b"abc", later(), &mut Quiet).unwrap());
    let mut answer = exchange.answer(later(), None, &mut Quiet).unwrap();
    answer.release();
    assert_eq!(tenant.get("/").text(), "get / 0\n");
    assert_eq!(body(&mut answer), "e".repeat(1 << 20));
    tenant.assert_pristine();
}

#[test]
fn what_is_not_taken_fails_the_request() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("segments", |config| {
        config.limits.max_request_memory = 4 << 20;
    });
    for (url, why) in [
        ("/refuse", "returned 2 for one of 3 bytes"),
        ("/more", "returned 4 for one of 3 bytes"),
        ("/negative", "returned -1 for one of 3 bytes"),
        ("/crash", "page fault writing 0x0"),
        ("/memory", "more memory than 4194304 bytes"),
    ] {
        let failures = tenant.stats().failures;
        let mut exchange = begin(&tenant, url).unwrap();
        let failure = exchange.feed(b"abc", later(), &mut Quiet).unwrap_err();
        assert!(failure.to_string().contains(why), "{url}: {failure}");
        assert_eq!(tenant.stats().failures, failures + 1);
        // There is nothing more to be had of it.
        assert_eq!(exchange.feed(b"abc", later(), &mut Quiet), Ok(false));
        assert!(exchange.answer(later(), None, &mut Quiet).is_err());
        assert_eq!(tenant.get("/").text(), "get / 0\n", "{url}");
    }
    let exchange = begin(&tenant, "/returns").unwrap();
    let failure = exchange.answer(later(), None, &mut Quiet).unwrap_err();
    assert!(
        failure.to_string().contains("returned without a response"),
        "{failure}"
    );
    let mut exchange = begin(&tenant, "/hang").unwrap();
    let soon = Instant::now() + Duration::from_millis(200);
    let failure = exchange.feed(b"abc", soon, &mut Quiet).unwrap_err();
    assert!(failure.is_timeout(), "{failure}");
    tenant.assert_pristine();
}

/// A client that leaves in the middle leaves nothing.
#[test]
fn a_body_that_ends_early_leaves_nothing() {
    kvm_or_skip!();
    let tenant = Tenant::boot("segments");
    for pieces in 0..3 {
        let mut exchange = begin(&tenant, "/sum").unwrap();
        for _ in 0..pieces {
            assert!(exchange.feed(b"abc", later(), &mut Quiet).unwrap());
        }
        drop(exchange);
        assert_eq!(tenant.get("/").text(), "get / 0\n");
    }
    tenant.assert_pristine();
}

#[test]
fn on_error_answers() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("segments", |config| {
        config.main_arguments = vec!["--on-error".into()];
    });
    let mut exchange = begin(&tenant, "/crash-late").unwrap();
    assert!(
        exchange
            .feed(&pattern(100_001), later(), &mut Quiet)
            .unwrap()
    );
    assert!(!exchange.feed(b"abc", later(), &mut Quiet).unwrap());
    let mut answer = exchange.answer(later(), None, &mut Quiet).unwrap();
    assert_eq!(answer.status(), 500);
    assert!(answer.failure().unwrap().to_string().contains("page fault"));
    assert!(body(&mut answer).starts_with("failed: /crash-late: request failed: page fault"));
    drop(answer);
    tenant.assert_pristine();
}

#[test]
fn in_rust() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("rust", |config| {
        config.main_arguments = vec!["--segments".into()];
    });
    let reply = tenant.post("/x", &pattern(70_000));
    assert_eq!(
        reply.text(),
        "\"/x\" [(0, 65536), (65536, 4464), (70000, 0)]\n"
    );
    assert!(tenant.get("/").text().starts_with("GET /\n"));
}
