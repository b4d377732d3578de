//! Streaming responses: made part by part while they are read, and never taken for whole when they are not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::sums::pattern;
use common::{Tenant, emulated, headers, kvm_or_skip};
use forkvm::{Answer, Failure, Quiet, Request, Streaming};

fn ask(tenant: &Tenant, url: &str, time: Duration) -> Result<Answer, Failure> {
    let headers = headers(&[("X-Here", "here")]);
    let request = Request {
        method: "GET",
        url: url.as_bytes(),
        headers: &headers,
        ..Default::default()
    };
    tenant.answer(&request, Instant::now() + time, &mut Quiet)
}

fn begin(tenant: &Tenant, url: &str) -> (Answer, Box<Streaming>) {
    let mut answer = ask(tenant, url, common::ENOUGH).unwrap();
    assert_eq!(answer.body_len(), 0);
    let streaming = answer.take_streaming().expect("a streaming response");
    (answer, streaming)
}

/// All of it, in reads of this size, and how it ended.
fn read(streaming: &mut Streaming, size: usize) -> (Vec<u8>, Result<(), Failure>) {
    let (mut body, mut piece) = (Vec::new(), vec![0; size]);
    loop {
        match streaming.read(&mut piece, &mut Quiet) {
            Ok(0) => return (body, Ok(())),
            Ok(n) => body.extend_from_slice(&piece[..n]),
            Err(failure) => return (body, Err(failure)),
        }
    }
}

fn body(tenant: &Tenant, url: &str) -> (Vec<u8>, Result<(), Failure>) {
    read(&mut begin(tenant, url).1, 16 << 10)
}

fn boot() -> Tenant {
    Tenant::boot("stream")
}

#[test]
fn of_known_and_of_unknown_length() {
    kvm_or_skip!();
    let tenant = boot();
    for (len, part) in [(1, 1), (10_000, 1), (10_000, 999), (1 << 20, 65_536)] {
        for announced in [0, len] {
            let url = format!("/parts?len={len}&part={part}&announced={announced}");
            let (answer, mut streaming) = begin(&tenant, &url);
            let expected = (announced > 0).then_some(len as u64);
            assert_eq!(answer.announced_len(), expected);
            assert_eq!(streaming.announced_len(), expected);
            let (body, end) = read(&mut streaming, 1000);
            assert_eq!((body.len(), end), (len, Ok(())), "{url}");
            assert_eq!(body, pattern(len), "{url}");
            // Also when it is asked again.
            assert_eq!(streaming.read(&mut [0; 10], &mut Quiet), Ok(0));
        }
    }
    let (body, end) = body(&tenant, "/parts?len=0");
    assert_eq!((body.len(), end), (0, Ok(())));
    tenant.assert_pristine();
}

/// The callback learns what there is, as the interface says, and is never asked for more than is announced.
#[test]
fn what_a_callback_is_asked_for() {
    kvm_or_skip!();
    let tenant = boot();
    let (_answer, mut streaming) = begin(&tenant, "/asked");
    let mut piece = [0; 100];
    let n = streaming.read(&mut piece, &mut Quiet).unwrap();
    assert_eq!(&piece[..n], b"max 65536 written 0 total 0\n");
    let n = streaming.read(&mut piece, &mut Quiet).unwrap();
    assert_eq!(&piece[..n], b"max 65536 written 28 total 0\n");
    drop(streaming);
    let (body, end) = body(&tenant, "/asked?announced=70");
    assert_eq!(end, Ok(()));
    let expected = "max 70 written 0 total 70\nmax 44 written 26 total 70\nmax 17 written 53";
    assert_eq!(String::from_utf8_lossy(&body), expected);
    tenant.assert_pristine();
}

#[test]
fn callbacks_make_calls() {
    kvm_or_skip!();
    let tenant = boot();
    let (answer, mut streaming) = begin(&tenant, "/calls?ttl=5&header=X-Early:+1");
    assert_eq!(answer.headers(), headers(&[("X-Early", "1")]));
    assert_eq!(answer.cache().unwrap().ttl, 5.0);
    // The head is on its way: what would change it is refused.
    let (body, end) = read(&mut streaming, 1000);
    assert_eq!(end, Ok(()));
    let text = "X-Here: here\n3\n-1 -1\n2\n8\n-1\n";
    assert!(String::from_utf8_lossy(&body).ends_with(text), "{body:?}");
    drop(streaming);
    tenant.assert_pristine();
}

#[test]
fn what_goes_wrong_is_no_whole_response() {
    kvm_or_skip!();
    let tenant = boot();
    for (url, why) in [
        ("/crash", "page fault writing 0x0"),
        ("/exit", "exit(3)"),
        ("/respond", "backend_response() again, in the callback"),
        (
            "/again",
            "begin_streaming_response() again, in the callback",
        ),
        ("/wait", "wait_for_requests() again"),
        (
            "/wild",
            "its callback gave 10 bytes at bad guest address 0x10",
        ),
        ("/kernel", "its callback gave 10 bytes at bad guest address"),
        ("/wraps", "its callback gave 16 bytes at bad guest address"),
        ("/edge", "its callback gave 16 bytes at bad guest address"),
        (
            "/huge",
            "its callback gave 9223372036854775808 bytes, and was asked for 65536",
        ),
        (
            "/more",
            "its callback gave 65537 bytes, and was asked for 65536",
        ),
        ("/memory", "more memory than"),
        (
            "/parts?announced=10001",
            "its callback ended it after 10000 bytes of 10001",
        ),
    ] {
        let before = tenant.stats().failures;
        let (_answer, mut streaming) = begin(&tenant, url);
        let (body, end) = read(&mut streaming, 1000);
        assert!(body.len() >= 1000 && body == pattern(body.len()), "{url}");
        let failure = end.unwrap_err();
        assert!(failure.to_string().contains(why), "{url}: {failure}");
        // It stays so.
        assert_eq!(streaming.read(&mut [0; 10], &mut Quiet), Err(failure));
        assert_eq!(tenant.stats().failures, before + 1, "{url}");
        drop(streaming);
        assert_eq!(tenant.get("/kept").text(), "0\n", "{url}");
    }
    tenant.assert_pristine();
}

#[test]
fn what_is_no_callback() {
    kvm_or_skip!();
    let tenant = boot();
    for (address, why) in [
        ("0", "page fault executing 0x0"),
        ("0x7e0000001000", "page fault executing"),
        ("0x7ffffffff000", "its callback is at 0x7ffffffff000"),
        ("0x800000000000", "its callback is at 0x800000000000"),
        (
            "0xffffffffffffffff",
            "its callback is at 0xffffffffffffffff",
        ),
    ] {
        let (read, end) = body(&tenant, &format!("/parts?callback={address}"));
        let failure = end.unwrap_err().to_string();
        assert!(
            read.is_empty() && failure.contains(why),
            "{address}: {failure}"
        );
    }
    let (_, end) = body(&tenant, "/no-stack");
    let failure = end.unwrap_err().to_string();
    assert!(failure.contains("its callback has no stack"), "{failure}");
    for status in [99, 600, -1] {
        let failure = tenant.failure(&format!("/parts?status={status}"));
        let why = failure.to_string();
        assert!(why.contains("is not between 200 and 599"), "{why}");
    }
    assert_eq!(tenant.get("/kept").text(), "0\n");
    tenant.assert_pristine();
}

#[test]
fn it_is_no_longer_than_allowed() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("stream", |config| config.limits.max_response_size = 100_000);
    for announced in [0, 100_000] {
        let url = format!("/parts?len=100000&part=9999&announced={announced}");
        let (read, end) = body(&tenant, &url);
        assert_eq!((read.len(), end), (100_000, Ok(())));
    }
    let (read, end) = body(&tenant, "/endless?part=60000");
    let failure = end.unwrap_err().to_string();
    assert!(
        read.len() <= 100_000 && failure.contains("max_response_size"),
        "{failure}"
    );
    // Where it is announced, before it begins.
    let failure = tenant.failure("/parts?announced=100001").to_string();
    assert!(failure.contains("max_response_size"), "{failure}");
    tenant.assert_pristine();
}

#[test]
fn it_has_the_requests_time() {
    kvm_or_skip!();
    let tenant = boot();
    for url in ["/hang", "/sleep", "/slow?len=1000000&part=10"] {
        let time = Duration::from_millis(if emulated() { 5000 } else { 500 });
        let mut answer = ask(&tenant, url, time).unwrap();
        let mut streaming = answer.take_streaming().unwrap();
        let (body, end) = read(&mut streaming, 1000);
        let failure = end.unwrap_err();
        // Between two parts it is looked at as well, which is whose turn it was.
        let in_time = failure.is_timeout() || url.starts_with("/slow");
        assert!(!body.is_empty() && in_time, "{url}: {failure}");
    }
    // Who reads too slowly is told so, and it is no failure of the program's.
    let failures = tenant.stats().failures;
    let mut answer = ask(&tenant, "/endless", Duration::from_secs(1)).unwrap();
    let mut streaming = answer.take_streaming().unwrap();
    let mut piece = [0; 1000];
    assert_eq!(streaming.read(&mut piece, &mut Quiet), Ok(1000));
    std::thread::sleep(Duration::from_millis(1100));
    let end = streaming.read(&mut piece, &mut Quiet);
    assert_eq!(end, Err(Failure::ReadSlowly));
    assert_eq!(tenant.stats().failures, failures);
    drop(streaming);
    tenant.assert_pristine();
}

/// Nobody who leaves is waited for, and HEAD makes nothing.
#[test]
fn it_is_made_only_as_it_is_read() {
    kvm_or_skip!();
    let tenant = boot();
    for reads in [0, 1, 3] {
        let (_answer, mut streaming) = begin(&tenant, "/endless");
        for _ in 0..reads {
            assert!(streaming.read(&mut [0; 100], &mut Quiet).unwrap() > 0);
        }
        drop(streaming);
        assert_eq!(tenant.get("/kept").text(), "0\n");
    }
    assert_eq!(tenant.stats().failures, 0);
    tenant.assert_pristine();
}

/// A warm-up makes the first part, also of what never ends, and what it leaves is in the frozen state.
#[test]
fn warm_ups_make_a_part() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("stream", |config| {
        config.warm_up = Some(forkvm::WarmUp {
            num_requests: 3,
            url: "/endless".into(),
            ..Default::default()
        });
    });
    assert_eq!(tenant.get("/kept").text(), "3\n");
    tenant.assert_pristine();
}
