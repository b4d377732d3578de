//! Clients that ask for much and do not read it: they hold no fork, and nothing of another tenant's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use common::varnishd::Varnishd;
use common::{ENOUGH, eventually};

/// Much more than the host's sockets take.
const LEN: usize = 24_000_000;

/// A client that has asked for a long response, and reads no more than its first line.
fn leave(varnish: &Varnishd) -> TcpStream {
    ask(varnish, &format!("/size/{LEN}"))
}

fn ask(varnish: &Varnishd, url: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", varnish.port)).unwrap();
    stream.set_read_timeout(Some(ENOUGH)).unwrap();
    write!(stream, "GET {url} HTTP/1.1\r\nHost: slow\r\n\r\n").unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 200");
    stream
}

#[test]
fn clients_that_do_not_read_hold_no_fork_and_nothing_of_others() {
    if !common::have_kvm() {
        return;
    }
    // Room for two of these responses, and Varnish's storage for none.
    let varnish = Varnishd::start_with(
        r#"kvm.tenant("slow", "GUESTS/test/echo", concurrency = 1, max_wait = ENOUGH, max_request_time = ENOUGH,
            max_response_size = 24MB, max_response_memory = 50MB);
        kvm.tenant("other", "GUESTS/test/echo", max_wait = ENOUGH, max_request_time = ENOUGH);"#,
        &[
            "-s",
            "Transient=malloc,16m",
            "-p",
            "send_timeout=3600",
            "-p",
            "idle_send_timeout=3600",
        ],
    );
    let url = format!("/size/{LEN}");
    let held = [leave(&varnish), leave(&varnish)];

    // The tenant's only fork is free, and what is short has room.
    assert_eq!(varnish.client().get("slow", "/counter").text(), "1\n");
    let full = varnish.client().get("slow", &url);
    assert_eq!(
        (full.status, full.header("retry-after")),
        (503, Some("1")),
        "{full:?}"
    );
    assert_eq!(varnish.log("max_response_memory").len(), 1);
    assert_eq!(varnish.counter("busy"), 1);
    // A HEAD has no body to make room for.
    let head = varnish
        .client()
        .send("HEAD", "slow", &url, &[], common::client::Body::None);
    assert_eq!(head.status, 200);

    // Another tenant's clients get all of theirs.
    let other = varnish.client().get("other", &url);
    assert_eq!((other.status, other.body.len()), (200, LEN));

    // Too long is no matter of room.
    let long = varnish.client().get("slow", "/size/25165825");
    assert_eq!(long.status, 500);
    assert_eq!(varnish.log("max_response_size").len(), 1);

    // Clients that leave give all back.
    drop(held);
    eventually("there is room again", || {
        varnish.client().get("slow", &url).status == 200
    });
}

/// A response that is being made when its client has ceased to read: the server goes on as far as there is room, and its fork is free
/// then; without room it waits for its client until its deadline.
#[test]
fn servers_are_not_held_by_clients_that_do_not_read() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        r#"kvm.server("slow", "GUESTS/test/linux/script", concurrency = 1, max_wait = ENOUGH,
            max_request_time = 6s, max_response_size = 24MB, max_response_memory = 50MB);"#,
        &[
            "-s",
            "Transient=malloc,16m",
            "-p",
            "send_timeout=3600",
            "-p",
            "idle_send_timeout=3600",
        ],
    );
    let url = format!("/open/say-a/sleep-30/fill-{}", LEN - 1);
    let count = |varnish: &Varnishd| {
        let answer = varnish.client().get("slow", "/open/count");
        assert_eq!(answer.text(), "count 1 bytes 0 sum 0\n");
    };
    let mut first = ask(&varnish, &url);
    count(&varnish);
    let told = || varnish.log("its client did not read the response").len();
    assert_eq!(told(), 0);

    // This one would have more than it leaves for others.
    let mut second = ask(&varnish, &url);
    // Its fork is back at its deadline, and the next request, which waits for it, has one of its own: well after that.
    thread::sleep(Duration::from_secs(3));
    count(&varnish);
    let end = b"\r\n0\r\n\r\n";
    let mut rest = Vec::new();
    // Varnish ends it as it can.
    let _ = second.read_to_end(&mut rest);
    assert!(!rest.ends_with(end), "all of it had room");
    eventually("it is told", || told() > 0);
    assert_eq!(varnish.counter("failures"), 0);
    // Clients that read get all of it, however late.
    rest.clear();
    first.shutdown(std::net::Shutdown::Write).unwrap();
    first.read_to_end(&mut rest).unwrap();
    let body = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
    let body = rest[body..].iter().filter(|&&byte| byte == b'x').count();
    assert_eq!(body, LEN - 1);
    assert!(rest.ends_with(end));
    let answer = varnish.client().get("slow", &url);
    assert_eq!(answer.body.len(), LEN);
}
