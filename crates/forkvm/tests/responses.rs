//! Responses: statuses, headers, content types, cache times, bodies of all sizes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use common::sums::{pattern, sum_line};
use common::{ENOUGH, Tenant, headers, kvm_or_skip};
use forkvm::{Quiet, Request};

/// Bodies of these lengths end at, before or behind a page's or the request area's end.
const ODD_LENGTHS: [usize; 16] = [
    0, 1, 2, 63, 64, 4095, 4096, 4097, 8191, 8192, 65_535, 65_536, 65_537, 131_072, 262_143,
    1_048_577,
];
const MOST: usize = 20_000_000;

#[test]
fn statuses() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for status in [200, 201, 204, 301, 304, 404, 418, 500, 503, 599] {
        let reply = tenant.get(&format!("/status/{status}"));
        assert_eq!(
            (reply.status, reply.text()),
            (status, &*format!("status {status}\n"))
        );
    }
    // 16 bits of it count: 65736 is 200 again.
    assert_eq!(tenant.get("/status/65736").status, 200);
    for status in [-200, -1, 0, 1, 99, 100, 199, 600, 999, 32767, 65535] {
        let failure = tenant.failure(&format!("/status/{status}"));
        assert!(
            failure.to_string().contains("is not between 200 and 599"),
            "{failure}"
        );
    }
    tenant.assert_pristine();
}

#[test]
fn response_headers() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let reply = tenant.get("/header?name=X-A&value=b&name=x-a&value=%20c%09d%20&name=Set-Cookie&value=a=%3bb&name=X-Empty&value=");
    let found: Vec<_> = reply
        .headers
        .iter()
        .map(|h| (&*h.name, str::from_utf8(&h.value).unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("X-A", "b"),
            ("x-a", "c\td"),
            ("Set-Cookie", "a=;b"),
            ("X-Empty", "")
        ]
    );
    assert_eq!(reply.text(), "4 headers\n");
}

#[test]
fn response_headers_by_calls() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let reply = tenant.get("/http-append?where=1&field=X-A:+b&where=5&field=X-A:+c");
    assert_eq!(reply.text(), "1\n2\n");
    assert_eq!(reply.headers.len(), 2);
    let reply = tenant.get("/http-set?where=1&field=X-A:+b&where=1&field=x-a:+c&where=1&field=X-B:+d&where=1&field=x-b");
    assert_eq!(reply.text(), "1\n1\n2\n0\n");
    assert_eq!((reply.headers.len(), reply.header("X-A")), (1, Some("c")));
    // Of the request there was none.
    let reply = tenant.get("/http-append?where=0&field=X-A:+b&where=4&field=X-A:+c");
    assert_eq!((reply.text(), reply.headers.len()), ("1\n2\n", 0));
    assert_eq!(tenant.get("/status/200").headers, []);
}

/// A header that can't be sent fails the request, in the way that one in the response's `extra` does.
#[test]
fn bad_headers_fail_the_request() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for (field, reason) in [
        (
            "where=1&field=X+A:+b",
            "\"X A: b\": its name is not a valid field name",
        ),
        ("where=1&field=:+b", "its name is not a valid field name"),
        (
            "where=1&field=X-A:+b%0d%0aX-B:+c",
            "its value has control characters",
        ),
        ("where=1&field=X-A:+%00", "its value has control characters"),
        ("where=1&field=X-A:", "\"X-A:\": its value is empty"),
        ("where=0&field=X-A:+", "its value is empty"),
        ("where=7&field=X-A:+b", "no such message"),
    ] {
        for call in ["append", "set"] {
            let failure = tenant.failure(&format!("/http-{call}?{field}")).to_string();
            assert!(failure.contains("it set an invalid header"), "{failure}");
            assert!(failure.contains(reason), "{field}: {failure}");
        }
    }
    let failure = tenant.failure("/http-append?where=1&field=X-A");
    assert!(failure.to_string().contains("no colon"), "{failure}");
    tenant.assert_pristine();
}

#[test]
fn headers_of_the_response_replace_those_set_before() {
    kvm_or_skip!();
    let reply = Tenant::boot("echo").get("/header-and-extra");
    let expected = [("X-B", "2"), ("x-a", "3"), ("X-A", "4")];
    assert_eq!(reply.headers, headers(&expected));
}

#[test]
fn headers_of_the_connection_are_not_the_guests() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for name in [
        "Connection",
        "content-length",
        "KEEP-ALIVE",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ] {
        let reply = tenant.get(&format!("/header?name={name}&value=1&name=X-A&value=b"));
        assert_eq!(reply.headers, headers(&[("X-A", "b")]), "{name}");
        let reply = tenant.get(&format!("/http-append?where=1&field={name}:+1"));
        assert_eq!(reply.headers, [], "{name}");
    }
}

#[test]
fn sixty_four_headers_and_no_more() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let url = |n| format!("/header?{}", "name=X-A&value=b&".repeat(n));
    assert_eq!(tenant.get(&url(64)).headers.len(), 64);
    let failure = tenant.failure(&url(65));
    assert!(failure.to_string().contains("more than 64"), "{failure}");
    for (name, value) in [
        ("X-A", "a%0d%0aX-B:c"),
        ("X-A", "a%00b"),
        ("X%20A", "b"),
        ("", "b"),
        ("X-A", "a%7fb"),
    ] {
        tenant.failure(&format!("/header?name={name}&value={value}"));
        assert_eq!(tenant.get("/counter").text(), "1\n");
    }
}

#[test]
fn content_types() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    assert_eq!(
        tenant
            .get("/type?type=text/html;+charset%3dutf-8")
            .content_type,
        "text/html; charset=utf-8"
    );
    assert_eq!(tenant.get("/type?type=").content_type, "");
    assert_eq!(tenant.get("/empty").content_type, "text/plain");
    assert_eq!(tenant.get("/empty-null").content_type, "");
    for bad in ["a%0d%0ab", "a%00b", "a%1bb"] {
        tenant.failure(&format!("/type?type={bad}"));
    }
}

#[test]
fn cache_times() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    assert_eq!(tenant.get("/status/200").cache, None);
    for url in ["/cache/60", "/set-cacheable/60"] {
        assert_eq!(tenant.get(url).cache.unwrap().ttl, 60.0, "{url}");
    }
    assert_eq!(tenant.get("/cache/0.5").cache.unwrap().ttl, 0.5);
    assert_eq!(tenant.get("/cache/-5").cache.unwrap().ttl, 0.0);
    assert_eq!(tenant.get("/set-cacheable/60").text(), "set_cacheable: 0\n");
    for wild in ["inf", "nan", "-inf"] {
        tenant.failure(&format!("/cache/{wild}"));
    }
    assert_eq!(tenant.get("/status/200").cache, None);
}

#[test]
fn bodies_come_back_byte_for_byte() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for len in ODD_LENGTHS.into_iter().chain([MOST]) {
        let body = pattern(len);
        let reply = tenant.post("/echo", &body);
        assert!(reply.body == body, "{len} bytes did not come back");
        assert_eq!(reply.content_type, "application/octet-stream");
        assert_eq!(tenant.post("/sum", &body).text(), sum_line(&body), "{len}");
        assert!(
            tenant.get(&format!("/size/{len}")).body == body,
            "/size/{len}"
        );
        let frozen = len.min(1 << 20);
        assert!(
            tenant.get(&format!("/frozen/{len}")).body == body[..frozen],
            "/frozen/{len}"
        );
    }
    assert_eq!(tenant.get("/empty").body, b"");
    assert_eq!(tenant.get("/empty-null").body, b"");
}

#[test]
fn the_body_can_be_read_in_any_pieces() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let body = pattern(100_000);
    for piece in [1, 7, 4095, 4096, 4097, 99_999, 100_000, 200_000] {
        let request = Request {
            method: "POST",
            url: b"/echo",
            body: &body,
            ..Default::default()
        };
        let deadline = Instant::now() + ENOUGH;
        let mut answer = tenant.answer(&request, deadline, &mut Quiet).unwrap();
        let mut read = Vec::new();
        let mut buffer = vec![0; piece];
        while let n @ 1.. = answer.read_body(&mut buffer) {
            read.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(answer.read_body(&mut buffer), 0);
        assert!(read == body, "pieces of {piece}");
    }
}

/// The body of an answer stays what it was, whatever other forks do meanwhile; and an answer that nobody reads does
/// no harm.
#[test]
fn answers_keep_their_fork() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| config.concurrency = 2);
    let deadline = || Instant::now() + ENOUGH;
    let request = Request {
        method: "GET",
        url: b"/size/100000",
        ..Default::default()
    };
    let mut kept = tenant.answer(&request, deadline(), &mut Quiet).unwrap();
    let mut buffer = vec![0; 50_000];
    kept.read_body(&mut buffer);
    for _ in 0..10 {
        assert_eq!(tenant.get("/counter").text(), "1\n");
        drop(tenant.answer(&request, deadline(), &mut Quiet).unwrap());
    }
    let mut rest = vec![0; 50_000];
    assert_eq!(kept.read_body(&mut rest), 50_000);
    assert!([buffer, rest].concat() == pattern(100_000));
    drop(kept);
    tenant.assert_pristine();
}
