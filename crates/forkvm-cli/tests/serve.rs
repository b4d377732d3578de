//! `forkvm serve`: unmodified servers, each connection in a fork of its own.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use common::kvm_or_skip;
use serving::{Serving, one_answer, server};

fn simple(options: &[&str]) -> Serving {
    Serving::simple(options)
}

#[test]
fn each_connection_has_a_fork_of_its_own() {
    kvm_or_skip!();
    let serving = simple(&["-t2"]);
    for _ in 0..200 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
}

#[test]
fn bodies_come_whole_and_clients_may_be_many() {
    kvm_or_skip!();
    let serving = simple(&["-t3"]);
    let body: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let sum: u64 = body.iter().map(|&byte| u64::from(byte)).sum();
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let request = [head.as_bytes(), &body].concat();
    let expected = format!("count 1 bytes 1000000 sum {sum}\n");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..3 {
                    assert!(serving.answer(&request).ends_with(&expected));
                    assert_eq!(serving.get("/sleep"), "count 1\n");
                }
            });
        }
    });
}

#[test]
fn a_child_takes_the_programs_place() {
    kvm_or_skip!();
    let server = server();
    for how in ["forks", "prefork"] {
        let serving = Serving::start(&["-t2"], &[&server, "8000", how]);
        for _ in 0..10 {
            assert_eq!(serving.get("/"), "count 1\n", "{how}");
        }
    }
}

#[test]
fn a_user_is_forgotten_with_its_connection() {
    kvm_or_skip!();
    let serving = simple(&["-t1"]);
    for _ in 0..5 {
        assert_eq!(serving.get("/user"), "user 33, before 0\n");
        assert_eq!(serving.get("/"), "count 1\n");
    }
}

#[test]
fn clients_that_leave_or_say_nothing_harm_nobody() {
    kvm_or_skip!();
    let serving = simple(&["-t1"]);
    // None of these has a fork.
    let idle: Vec<TcpStream> = (0..100).map(|_| serving.connect()).collect();
    for _ in 0..20 {
        let mut gone = serving.connect();
        gone.write_all(b"GET / HT").unwrap();
        drop(gone);
        let mut half = serving.connect();
        half.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        half.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        half.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("count 1\n"), "{answer}");
    }
    assert_eq!(serving.get("/"), "count 1\n");
    drop(idle);
}

#[test]
fn requests_on_one_connection_have_forks_of_their_own() {
    kvm_or_skip!();
    let serving = simple(&["-t2", "--per-request"]);
    let mut stream = serving.connect();
    for n in 0..50 {
        let body = vec![b'x'; n * 1000];
        let head = format!(
            "POST /{n} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(&[head.as_bytes(), &body].concat())
            .unwrap();
        let answer = one_answer(&stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let expected = if n == 0 {
            "\ncount 1\n".into()
        } else {
            format!("count 1 bytes {} sum {}\n", body.len(), body.len() * 120)
        };
        assert!(answer.ends_with(&expected), "{answer}");
    }
    assert!(
        serving
            .answer(b"GET /exit HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            .contains("502")
    );
}

#[test]
fn a_machine_that_is_not_reset_keeps_its_state() {
    kvm_or_skip!();
    let serving = simple(&["--no-reset"]);
    for n in 1..=20 {
        assert_eq!(serving.get("/"), format!("count {n}\n"));
    }
}

/// A child made for one connection serves no other.
#[test]
fn a_server_that_forks_for_each_connection_needs_no_reset_to_serve() {
    kvm_or_skip!();
    let server = server();
    let serving = Serving::start(&["--no-reset"], &[&server, "8000", "forks"]);
    for _ in 0..5 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
}

/// What a program does some time after its start it has done before the freeze, if it is given the time.
#[test]
fn a_program_may_go_on_before_the_freeze() {
    kvm_or_skip!();
    let server = server();
    let program = [&server[..], "8000", "later"];
    for (options, expected) in [
        (&["-t1"][..], "later 0\n"),
        (&["-t1", "--warmup-time=0.3"], "later 1\n"),
        (&["-t1", "--warmup=3", "--warmup-time=0.3"], "later 1\n"),
    ] {
        let serving = Serving::start(options, &program);
        for _ in 0..3 {
            assert_eq!(serving.get("/later"), expected, "{options:?}");
        }
    }
}

#[test]
fn what_goes_wrong_ends_its_connection_alone() {
    kvm_or_skip!();
    let serving = simple(&["-t1", "--max-request-time=3", "--max-request-memory=4"]);
    for (path, reason) in [
        ("/hang", "max_request_time"),
        ("/spin", "max_request_time"),
        ("/crash", "page fault"),
        ("/fill", "max_request_memory"),
        ("/exit", "exit(3)"),
    ] {
        assert_eq!(serving.get(path), "", "{path}");
        serving.has_said(reason);
        assert_eq!(serving.get("/"), "count 1\n", "after {path}");
    }
}

#[test]
fn what_never_serves_is_told() {
    kvm_or_skip!();
    let server = server();
    for (program, words) in [
        (&["/bin/true"][..], "ended with status 0"),
        (&["/bin/sleep", "100"], "max_boot_time"),
        (&["/no/such/program"], "/no/such/program"),
        (&[&server, "8000", "helper"], "went on as its child"),
        (&[&server, "8000", "forks"], "leave out --warmup"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["serve", "--max-boot-time=1", "--warmup=2", "--"])
            .args(program)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words), "{program:?}: {text}");
    }
}
