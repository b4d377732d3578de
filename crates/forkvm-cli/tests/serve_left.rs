//! `forkvm serve`: clients that leave before they have their answer, and timers that nobody hears.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Folder, kvm_or_skip};
use rustix::net::sockopt::set_socket_linger;
use serving::{ENOUGH, Serving, rest};

/// One fork, and a time for requests that no test waits for.
const ONE: [&str; 2] = ["-t1", "--max-request-time=6000"];
const WAYS: [&[&str]; 2] = [&[], &["--per-request"]];

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes()
}

/// Leaves as a client that is killed.
fn reset(client: TcpStream) {
    // The program has its request by now, and is at it.
    std::thread::sleep(Duration::from_millis(300));
    set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_request_ends_soon_after_its_client() {
    kvm_or_skip!();
    for way in WAYS {
        let serving = Serving::simple(&[&ONE, way].concat());
        for path in ["/spin", "/threads", "/hang", "/drip"] {
            reset(serving.ask(&request(path)));
            assert_eq!(serving.get("/"), "count 1\n", "{way:?} {path}");
            // Also one that had said that it sends no more.
            let client = serving.ask(&request(path));
            client.shutdown(Shutdown::Write).unwrap();
            reset(client);
            assert_eq!(serving.get("/"), "count 1\n", "{way:?} {path}");
        }
    }
}

#[test]
fn of_a_unix_socket_too() {
    kvm_or_skip!();
    for way in WAYS {
        let folder = Folder::new("left");
        let path = folder.0.join("socket");
        let listen = format!("--listen=unix:{}", path.display());
        let _serving = Serving::simple(&[&ONE, way, &[&*listen]].concat());
        for what in ["/spin", "/hang"] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(&request(what)).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            drop(client);
            let mut next = UnixStream::connect(&path).unwrap();
            next.set_read_timeout(Some(ENOUGH)).unwrap();
            next.write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            next.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("count 1\n"), "{way:?} {what}: {answer}");
        }
    }
}

#[test]
fn a_client_that_only_sends_no_more_has_its_answer() {
    kvm_or_skip!();
    for way in WAYS {
        let serving = Serving::simple(&[&ONE, way].concat());
        let mut client = serving.ask(&request("/compute"));
        client.shutdown(Shutdown::Write).unwrap();
        client.set_read_timeout(Some(ENOUGH)).unwrap();
        assert_eq!(rest(&mut client).matches("drop\n").count(), 150, "{way:?}");
    }
}

/// The engine's work does not grow with how often a timer goes off.
#[test]
fn timers_whose_signals_nobody_hears_take_no_processor() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1"]);
    let before = serving.ticks();
    assert_eq!(serving.get("/ticking"), "10 14 often\n");
    // A hundred would be one processor's.
    assert!(serving.ticks() - before < 50);
}
