//! `forkvm dev`: a program on loopback, loaded anew when its file changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
#[path = "peer/dev.rs"]
mod serving;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use common::{guest_path, kvm_or_skip};
use serving::{Dev, body, status};

#[test]
fn requests_are_the_programs() {
    kvm_or_skip!();
    let dev = Dev::start("echo", &guest_path("echo"), &["--arg", "A"]);
    let text = dev.request(
        "PUT",
        "/some/url?a=b",
        "Content-Type: a/b\r\nX-Own: c\r\n",
        b"data",
    );
    assert_eq!(status(&text), "200", "{text}");
    for line in [
        "method: PUT",
        "url: /some/url?a=b",
        "arg: A",
        "content-type: a/b",
        "content-length: 4",
        "Host: dev.example",
        "X-Own: c",
    ] {
        assert!(
            body(&text).lines().any(|found| found == line),
            "{line}: {text}"
        );
    }
    let text = dev.request("POST", "/echo", "", b"a body");
    assert!(body(&text) == "a body", "{text}");
    let text = dev.get("/header?name=X-A&value=b");
    assert!(text.contains("X-A: b\r\n"), "{text}");
    assert_eq!(status(&dev.get("/status/404")), "404");
    let bytes =
        dev.send_for_bytes(b"GET /size/300001 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(bytes.ends_with(&[b"\r\n\r\n", &common::sums::pattern(300_001)[..]].concat()));
    // Each request is the first.
    assert_eq!(body(&dev.get("/counter")), "1\n");
    assert_eq!(body(&dev.get("/counter")), "1\n");
    let head = dev.request("HEAD", "/size/1000", "", b"");
    assert!(
        head.contains("Content-Length: 1000\r\n") && body(&head).is_empty(),
        "{head}"
    );
    dev.await_error("GET /status/404 404");
}

/// Also one that has no end, and never one that breaks off as whole.
#[test]
fn responses_come_while_they_are_made() {
    kvm_or_skip!();
    let dev = Dev::start(
        "stream",
        &guest_path("stream"),
        &["--max-request-time", "5"],
    );
    let text = dev.get("/parts?len=5000&announced=5000");
    assert!(text.contains("Content-Length: 5000\r\n"), "{text}");
    let bytes = dev.send_for_bytes(
        b"GET /parts?len=100000&announced=100000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(bytes.ends_with(&[b"\r\n\r\n", &common::sums::pattern(100_000)[..]].concat()));
    let text = dev.get("/parts?len=100000");
    assert!(text.contains("Transfer-Encoding: chunked\r\n"), "{text}");
    assert!(text.ends_with("\r\n0\r\n\r\n"), "{text}");
    let head = dev.request("HEAD", "/crash?announced=1000", "", b"");
    assert!(
        head.contains("Content-Length: 1000\r\n") && body(&head).is_empty(),
        "{head}"
    );
    let text = dev.get("/crash?len=1000000&good=500000");
    assert_eq!(status(&text), "200");
    assert!(!text.ends_with("\r\n0\r\n\r\n"), "{text}");
    dev.await_error("GET /crash?len=1000000&good=500000: request failed: page fault writing 0x0");
    // Whoever leaves it is no failure; who does not read has until its deadline.
    for seconds in [0, 7] {
        let mut client = TcpStream::connect(&dev.address).unwrap();
        client
            .write_all(b"GET /endless?part=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut start = [0; 12];
        client.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        std::thread::sleep(std::time::Duration::from_secs(seconds));
    }
    dev.await_error("had not read the response at the request's deadline");
    assert_eq!(body(&dev.get("/kept")), "0\n");
}

#[test]
fn failures_are_told_here_and_not_to_the_client() {
    kvm_or_skip!();
    let arguments = ["--max-request-time", "2", "--max-request-memory", "4"];
    let dev = Dev::start("crash", &guest_path("crash"), &arguments);
    let text = dev.get("/null-write");
    assert_eq!(
        (status(&text), body(&text)),
        ("500", "The service failed.\n")
    );
    dev.await_error("GET /null-write 500: ");
    dev.await_error("page fault writing 0x0");
    assert_eq!(status(&dev.get("/ok")), "200");
    let text = dev.request("POST", "/ok", "", &vec![0; 5 << 20]);
    assert_eq!(
        (status(&text), body(&text)),
        ("413", "The request body is too large.\n")
    );
    assert_eq!(status(&dev.get("/loop")), "500");
    dev.await_error("max_request_time");
    // What is no HTTP ends its connection and nothing else.
    let _ = dev.send(b"no HTTP at all\r\n\r\n");
    assert_eq!(status(&dev.get("/ok")), "200");
}

#[test]
fn a_slow_body_is_408() {
    kvm_or_skip!();
    let dev = Dev::start("slow", &guest_path("hello"), &["--max-body-time", "0.3"]);
    let text = dev.send(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nda");
    assert_eq!(
        (status(&text), body(&text)),
        ("408", "The request body came too slowly.\n")
    );
    dev.await_error("POST /slow 408: ");
    assert_eq!(body(&dev.get("/")), "Hello, World!\n");
}

#[test]
fn a_busy_program_is_503() {
    kvm_or_skip!();
    let arguments = ["--concurrency", "1", "--max-request-time", "60"];
    let dev = Dev::start("busy", &guest_path("crash"), &arguments);
    let mut looping = TcpStream::connect(&dev.address).unwrap();
    looping
        .write_all(b"GET /loop HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // It is some time until the fork is taken.
    dev.wait("busy", || {
        let text = dev.get("/ok");
        status(&text) == "503" && text.contains("Retry-After: 1\r\n")
    });
    dev.await_error("GET /ok 503: ");
}

#[test]
fn nobody_waits_where_nobody_may() {
    kvm_or_skip!();
    let arguments = ["--concurrency", "1", "--max-queue", "0"];
    let arguments = [&arguments[..], &["--max-request-time", "60"]].concat();
    let dev = Dev::start("queue", &guest_path("crash"), &arguments);
    let mut looping = TcpStream::connect(&dev.address).unwrap();
    looping
        .write_all(b"GET /loop HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    dev.wait("busy", || status(&dev.get("/ok")) == "503");
    dev.await_error("max_queue");
}

#[test]
fn a_changed_file_is_loaded_and_a_bad_one_is_not() {
    kvm_or_skip!();
    let dev = Dev::start("reload", &guest_path("hello"), &[]);
    assert_eq!(body(&dev.get("/")), "Hello, World!\n");
    dev.replace(&common::guest("counter"));
    dev.wait("the counter", || body(&dev.get("/")) == "1\n");

    dev.replace(b"no program");
    dev.await_error("not an ELF program");
    dev.await_error("the one before goes on");
    assert_eq!(body(&dev.get("/")), "1\n");
    // In the middle of a build there is no file.
    std::fs::remove_file(dev.folder.join("program")).unwrap();
    assert_eq!(body(&dev.get("/")), "1\n");
    dev.replace(&common::guest("hello"));
    dev.wait("hello", || body(&dev.get("/")) == "Hello, World!\n");
}

#[test]
fn a_program_that_does_not_start_is_waited_for() {
    kvm_or_skip!();
    let dev = Dev::start("bad", &guest_path("bad-main-returns-3"), &[]);
    dev.await_error("returned 3");
    assert_eq!(status(&dev.get("/")), "503");
    dev.replace(&common::guest("hello"));
    dev.wait("hello", || body(&dev.get("/")) == "Hello, World!\n");
}

#[test]
fn what_it_can_not_begin_with() {
    kvm_or_skip!();
    let failed = |arguments: &[&str], why: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .arg("dev")
            .args(arguments)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.contains(why) && errors.lines().count() == 1,
            "{errors}"
        );
    };
    failed(&["--port", "0", "/no/such/program"], "/no/such/program");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    failed(
        &["--port", &port, guest_path("hello").to_str().unwrap()],
        "Take another port",
    );
}

#[test]
fn a_program_can_ask_itself() {
    kvm_or_skip!();
    let dev = Dev::start("fetcher", &guest_path("fetcher"), &[]);
    let text = dev.get("/whole?url=/main&own=1&show=1");
    assert!(body(&text).starts_with("OK\nstatus 200\n"), "{text}");
    assert!(body(&text).ends_with("OK\n"), "{text}");
}
