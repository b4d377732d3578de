//! What a tenant can take of what all share stays within its limits by streaming, storage and fetches too: those who wait, memory for
//! bodies both ways, turns to boot.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use common::client::Body;
use common::upstream::Upstream;
use common::varnishd::Varnishd;
use common::{ENOUGH, eventually};

/// Varnish's own queue is no limit here.
const THREADS: [&str; 8] = [
    "-p",
    "thread_pool_min=60",
    "-p",
    "thread_pool_max=200",
    "-p",
    "send_timeout=3600",
    "-p",
    "idle_send_timeout=3600",
];

const OTHER: &str =
    r#"kvm.tenant("other", "GUESTS/test/echo", max_wait = ENOUGH, max_request_time = ENOUGH);"#;

/// A request that nobody reads the response to.
fn ask(varnish: &Varnishd, url: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", varnish.port)).unwrap();
    stream.set_read_timeout(Some(ENOUGH)).unwrap();
    write!(stream, "GET {url} HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    stream
}

/// What `backend.list` says of the tenant.
fn is_said(varnish: &Varnishd, what: &str) -> bool {
    let list = varnish.admin(&["backend.list", "-p", "*.t"]);
    list.contains(what)
}

/// With all forks of the tenant held by `url`, as many requests wait as may; others are turned away, and another tenant's are answered.
/// When that is over `next` is answered so.
fn those_who_wait_are_limited(varnish: &Varnishd, url: &str, next: (&str, &str)) {
    const FORKS: usize = 2;
    const WAIT: usize = 3;
    const MORE: u64 = 5;
    let ask = |n| -> Vec<_> { (0..n).map(|_| ask(varnish, url)).collect() };
    // Who waits for a fork that is being made has a place among those who wait.
    let mut asked = ask(1);
    eventually("one is taken", || is_said(varnish, "forks=1 idle=0"));
    asked.extend(ask(FORKS - 1));
    eventually("all are taken", || is_said(varnish, "forks=2 idle=0"));
    asked.extend(ask(WAIT + MORE as usize));
    eventually("the others are turned away", || {
        varnish.counter("busy") >= MORE
    });
    assert!(is_said(varnish, "forks=2 idle=0"));
    for _ in 0..10 {
        assert_eq!(varnish.client().get("other", "/counter").text(), "1\n");
    }
    let lines = varnish.log("kvm: tenant t: all forks are busy, ");
    assert!(
        lines.iter().all(|line| line.contains("max_queue")),
        "{lines:?}"
    );
    assert_eq!(lines.len() as u64, MORE);
    drop(asked);
    eventually("no fork is held", || is_said(varnish, "forks=2 idle=2"));
    let (url, text) = next;
    let response = varnish.client().get("t", url);
    assert_eq!(response.status, 200);
    assert!(response.text().starts_with(text), "{}", response.text());
}

#[test]
fn who_waits_for_slow_readers_of_streams() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/stream", concurrency = 2, max_queue = 3, max_wait = 20s, max_request_time = 20s,
                max_response_size = 1GB, max_response_memory = 1GB);{OTHER}"#
        ),
        &THREADS,
    );
    let before = varnish.child().memory();
    let url = "/endless?part=60000";
    those_who_wait_are_limited(&varnish, url, ("/parts?len=4&text=1", "abcd"));
    // A slow reader's body is not made in advance: two of 1 GB each would be.
    let more = varnish.child().memory().saturating_sub(before);
    assert!(more < 200 << 20, "{more} bytes more");
}

#[test]
fn who_waits_for_storage() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/storage", storage = true, concurrency = 2, max_queue = 3, max_wait = 20s,
                max_request_time = 20s, max_storage_time = ENOUGH);{OTHER}"#
        ),
        &THREADS,
    );
    those_who_wait_are_limited(&varnish, "/call/nap?b=15000", ("/call/type", "11 storage"));
    assert_eq!(varnish.counter("storage_restarts"), 0);
}

#[test]
fn who_waits_for_fetches() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/fetcher", concurrency = 2, max_queue = 3, max_wait = 20s, max_request_time = 20s,
                max_fetch_time = 15s, max_fetches = 3, allow_net = "{}");{OTHER}"#,
            upstream.rule()
        ),
        &THREADS,
    );
    let hanging = upstream.url("/hangs");
    let url = format!("/whole?url={hanging}");
    those_who_wait_are_limited(&varnish, &url, ("/main", "OK"));
    // And so are fetches, of all requests together.
    let many = format!("/many?url={hanging}");
    for _ in 0..3 {
        let response = varnish.client().get("t", &many);
        assert_eq!(response.text(), "3, then EAGAIN\nclose OK\nbegin 3\n");
    }
    upstream.wait_for_open(..=0);
}

/// Clients whose bodies a program takes by segments, and who send no more than the first of it.
#[test]
fn first_segments_have_no_more_than_their_room() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/segments", concurrency = 1, max_request_memory = 1MB, max_body_time = ENOUGH,
                max_wait = ENOUGH, max_request_time = ENOUGH);{OTHER}"#
        ),
        &THREADS,
    );
    let length = [("Content-Length", "64000")];
    let mut held = Vec::new();
    // 2 MB of room, and 64 kB for each.
    eventually("there is no room for one more", || {
        let mut client = varnish.client();
        client
            .begin("POST", "t", "/sum", &length, Body::None)
            .unwrap();
        client.send_piece(&[b'x'; 63_000]);
        held.push(client);
        varnish.counter("busy") > 0
    });
    assert!(held.len() > 10, "{}", held.len());
    let line = varnish.log("kvm: tenant t: no room for the request body beside the others");
    assert!(!line.is_empty());
    // What is short has some, no fork is held, and nobody else is concerned.
    let short = varnish
        .client()
        .send("POST", "t", "/sum", &[], Body::Length(b"abc"));
    assert_eq!(short.status, 200);
    let other = varnish
        .client()
        .send("POST", "other", "/sum", &[], Body::Length(&[0; 100_000]));
    assert_eq!(other.status, 200);
    drop(held);
    eventually("there is room again", || {
        let body = Body::Length(&[0; 64_000]);
        let response = varnish.client().send("POST", "t", "/sum", &[], body);
        response.status == 200
    });
}

/// What programs send counts beside what they are sent.
#[test]
fn bodies_of_fetches_have_no_more_than_their_room() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/fetcher", concurrency = 1, max_request_memory = 1MB, max_wait = 20s,
                max_request_time = 20s, max_fetch_time = 3s, allow_net = "{}");{OTHER}"#,
            upstream.rule()
        ),
        &THREADS,
    );
    let hanging = upstream.url("/hangs");
    // 2 MB of room. Each of them is gone with its request.
    for _ in 0..3 {
        let url = format!("/parts?url={hanging}&second={hanging}&zeros=1000000&leave=1");
        let response = varnish.client().get("t", &url);
        assert_eq!(response.text(), "begin OK\nbegin EAGAIN\n");
    }
    let lines = varnish.log("kvm: tenant t: fetch_begin() failed: no room for its body beside");
    assert_eq!(lines.len(), 3);
    upstream.wait_for_open(..=0);

    let holding = ask(&varnish, &format!("/whole?url={hanging}&zeros=1000000"));
    upstream.wait_for_open(1..);
    let long = [0; 900_000];
    let refused = varnish
        .client()
        .send("POST", "t", "/main", &[], Body::Length(&long));
    assert_eq!(refused.status, 503);
    let other = varnish
        .client()
        .send("POST", "other", "/sum", &[], Body::Length(&long));
    assert_eq!(other.status, 200);
    drop(holding);
    eventually("there is room again", || {
        let body = Body::Length(&long);
        let response = varnish.client().send("POST", "t", "/main", &[], body);
        response.status == 200
    });
}

/// An upstream that sends without end, and clients of what is passed on who do not read.
#[test]
fn what_is_fetched_and_not_read_takes_little_memory() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/fetcher", concurrency = 8, max_wait = ENOUGH, max_request_time = ENOUGH,
                max_fetch_size = 2GB, max_response_size = 2GB, max_response_memory = 2GB, allow_net = "{}");{OTHER}"#,
            upstream.rule()
        ),
        &THREADS,
    );
    assert_eq!(varnish.client().get("t", "/main").status, 200);
    let before = varnish.child().memory();
    let url = format!("/stream?url={}", upstream.url("/endless"));
    let mut clients: Vec<_> = (0..8).map(|_| ask(&varnish, &url)).collect();
    for client in &mut clients {
        let mut line = [0; 12];
        client.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"HTTP/1.1 200");
    }
    // What comes on loopback in that time would be gigabytes.
    thread::sleep(std::time::Duration::from_secs(2));
    let more = varnish.child().memory().saturating_sub(before);
    assert!(more < 400 << 20, "{more} bytes more");
    assert_eq!(varnish.client().get("other", "/counter").text(), "1\n");
    drop(clients);
    upstream.wait_for_open(..=0);
    eventually("no fork is held", || !is_said(&varnish, "idle=0"));
}

/// A storage that fails in each call makes no more machines than there are, and nobody else waits for that.
#[test]
fn storage_that_always_fails_takes_nothing_of_others() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/storage", storage = true, concurrency = 4, max_memory = 64MB, max_wait = ENOUGH,
                max_request_time = ENOUGH, max_storage_time = ENOUGH);{OTHER}"#
        ),
        &THREADS,
    );
    assert_eq!(varnish.client().get("other", "/counter").text(), "1\n");
    let machines = || varnish.child().kvm_descriptors();
    let (mut most, crashes) = (machines(), 60);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = varnish.client();
                    for _ in 0..crashes {
                        let response = client.get("t", "/call/crash");
                        assert_eq!((response.status, response.text()), (200, "-1 \n"));
                    }
                })
            })
            .collect();
        let mut other = varnish.client();
        while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
            assert_eq!(other.get("other", "/counter").text(), "1\n");
            most = most.max(machines());
        }
    });
    // Four forks of the one tenant, two of the other, storage, and those that are on their way: three descriptors each.
    assert!(most <= 3 * (4 + 2 + 2 + 4), "{most} descriptors of KVM");
    assert_eq!(varnish.counter("storage_restarts"), 4 * crashes);
    let said = varnish.log("storage begins again").len() as u64;
    assert_eq!(said, 4 * crashes);
    assert_eq!(varnish.client().get("t", "/call/add").text(), "1 1\n");
}

/// A boot's turn is nobody's for long: not main()'s that waits for what it fetches, nor storage's that does not come to an end, nor
/// tasks'.
#[test]
fn nothing_that_does_not_end_holds_up_boots() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let mut vcl = String::new();
    for n in 0..4 {
        vcl += &format!(
            r#"kvm.tenant("fetches{n}", "GUESTS/test/fetcher", main_arguments = "{}", allow_net = "{}", max_boot_time = 1h);
            kvm.tenant("spins{n}", "GUESTS/test/bad-main-never-ends", storage = true, max_boot_time = 1h);
            kvm.tenant("tasks{n}", "GUESTS/test/storage", storage = true, max_request_time = ENOUGH, max_wait = ENOUGH,
                max_storage_time = 1h, max_memory = 32MB);"#,
            upstream.url("/hangs"),
            upstream.rule(),
        );
    }
    let varnish = Varnishd::start_with(&vcl, &THREADS);
    upstream.wait_for_open(4..);
    for n in 0..4 {
        let tasks = format!("tasks{n}");
        let response = varnish.client().get(&tasks, "/task/tick-endless");
        assert_eq!(response.text(), "1\n");
    }
    varnish.reload(&format!("{vcl}{OTHER}"));
    assert_eq!(varnish.client().get("other", "/counter").text(), "1\n");
    // They are still at it.
    assert_eq!(varnish.counter("boots"), 5);
    assert_eq!(varnish.counter("boot_failures"), 0);
    assert_eq!(varnish.counter("storage_task_failures"), 0);
}
