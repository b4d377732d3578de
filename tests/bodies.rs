//! Bodies, long and short, both ways through a real varnishd.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::client::Body;
use common::eventually;
use common::varnishd::Varnishd;

/// The byte at place `i` of what test/echo answers at /size/N.
fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(31) + (i >> 8)) as u8
}

#[test]
fn responses_of_every_length_arrive_byte_for_byte() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo");"#);
    let mut client = varnish.client();
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        16384,
        65537,
        1 << 20,
        20_000_000,
        20 << 20,
    ] {
        let response = client.get("echo", &format!("/size/{len}"));
        assert_eq!((response.status, response.body.len()), (200, len));
        assert!(
            response
                .body
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(i)),
            "{len}"
        );
    }
    // From the frozen memory, not written in the fork.
    let response = client.get("echo", "/frozen/1000000");
    assert!(
        response.body.len() == 1_000_000
            && response
                .body
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(i))
    );
}

#[test]
fn request_bodies_of_every_length_arrive_byte_for_byte() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_time = ENOUGH);"#);
    let mut client = varnish.client();
    let whole: Vec<u8> = (0..20 << 20)
        .map(|i: usize| (i.wrapping_mul(7) ^ (i >> 10)) as u8)
        .collect();
    for len in [0, 1, 4095, 4096, 65536, 65537, 1 << 20, 20 << 20] {
        let body = &whole[..len];
        for (how, sent) in [
            ("length", Body::Length(body)),
            ("chunked", Body::Chunked(body, 100_000)),
        ] {
            let response = client.send("POST", "echo", "/echo", &[], sent);
            assert_eq!(response.status, 200, "{len} {how}");
            assert!(response.body == body, "{len} {how}");
        }
    }
    // One byte at a time.
    let response = client.send(
        "POST",
        "echo",
        "/echo",
        &[],
        Body::Chunked(&whole[..1000], 1),
    );
    assert!(response.body == whole[..1000]);
    assert_eq!(varnish.counter("requests"), 17);
}

#[test]
fn a_body_that_is_too_large_is_refused_and_the_next_one_is_not() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_memory = 1MB);"#);
    let large = vec![b'x'; 20 << 20];
    for body in [Body::Length(&large), Body::Chunked(&large, 65536)] {
        // The connection may be closed before the client has sent all of it, so each has its own.
        let mut client = varnish.client();
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            client.send("POST", "echo", "/sum", &[], body).status
        }));
        // A reset connection can swallow the response; what counts is that nothing was called.
        assert!(refused.map_or(true, |status| status == 413));
    }
    assert_eq!(varnish.counter("requests"), 0);
    let response = varnish
        .client()
        .send("POST", "echo", "/sum", &[], Body::Length(b"abc"));
    assert_eq!(response.status, 200);
    assert!(
        response.text().starts_with("len 3 crc32 352441c2"),
        "{}",
        response.text()
    );
}

#[test]
fn nobody_waits_for_all_of_a_body_that_is_refused() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", update_key = "right");"#);
    let length = ("Content-Length", "20000000000");
    // As much as is read of it, and a byte.
    let piece = vec![b'x'; (64 << 20) + 1];
    for (headers, status) in [
        (&[length][..], 413),
        (&[length, ("X-LiveUpdate", "wrong")], 403),
    ] {
        let mut client = varnish.client();
        client
            .begin("POST", "echo", "/sum", headers, Body::None)
            .unwrap();
        client.send_piece(&piece);
        let response = client.response("POST").unwrap();
        assert_eq!(response.status, status);
        assert_eq!(response.header("connection"), Some("close"));
    }
    assert_eq!(varnish.counter("requests"), 0);
}

#[test]
fn clients_that_go_away_leave_no_fork_behind() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("echo", "GUESTS/test/echo", concurrency = 2, max_queue = 100, max_wait = ENOUGH,
            max_request_time = ENOUGH);"#,
    );
    for _ in 0..20 {
        varnish
            .client()
            .begin("GET", "echo", "/size/20000000", &[], Body::None)
            .unwrap();
        varnish
            .client()
            .begin(
                "POST",
                "echo",
                "/echo",
                &[("Content-Length", "1000")],
                Body::None,
            )
            .unwrap();
    }
    let response = varnish.client().get("echo", "/counter");
    assert_eq!((response.status, response.text()), (200, "1\n"));
    eventually("both forks are idle", || {
        varnish
            .admin(&["backend.list", "-p"])
            .contains("forks=2 idle=2")
    });
}
