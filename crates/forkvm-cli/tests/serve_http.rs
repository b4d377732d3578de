//! `forkvm serve --per-request`: what we pass on of HTTP, and what not, to hostile programs' clients and to programs.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::time::Duration;

use common::kvm_or_skip;
use serving::{Serving, one_answer, rest};

/// What the client gets of a program that says this, and of one that is asked afterwards on the same connection.
fn say(serving: &Serving, answer: &str) -> String {
    let length = answer.len();
    let request = format!(
        "POST /say HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{answer}\
         GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    );
    serving.answer(request.as_bytes()).to_lowercase()
}

#[test]
fn a_program_says_what_its_client_has_asked_for() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--per-request"]);
    // Nobody has asked for another protocol.
    let answer = say(
        &serving,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    assert!(answer.starts_with("http/1.1 502 "), "{answer}");
    assert!(!answer.contains("evil"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ncount 1\n"), "{answer}");
    // The length that counts is the chunks'.
    let answer = say(
        &serving,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
         a\r\n0123456789\r\n0\r\n\r\n",
    );
    assert!(!answer.contains("content-length: 3"), "{answer}");
    assert!(
        answer.contains("0123456789\r\n0\r\n\r\nhttp/1.1 200 "),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\ncount 1\n"), "{answer}");
}

#[test]
fn what_two_servers_could_take_differently_is_refused() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--per-request"]);
    for (request, status) in [
        ("CONNECT elsewhere:80 HTTP/1.1\r\nHost: t\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nHost: t\r\nHost: u\r\n\r\n", "400"),
    ] {
        let answer = one_answer(&serving.ask(request.as_bytes()));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    // HTTP/1.0 has no other protocols.
    let answer = serving.answer(
        b"GET /upgrade HTTP/1.0\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    );
    assert!(answer.contains(" 502 "), "{answer}");
}

#[test]
fn a_wish_for_another_protocol_gives_a_body_no_more_time() {
    kvm_or_skip!();
    let options = ["-t1", "--per-request", "--max-time=1"];
    let serving = Serving::simple(&options);
    let mut slow = serving.ask(
        b"POST / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\nContent-Length: 9\r\n\r\n",
    );
    slow.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let answer = rest(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
