//! `forkvm run --gdb`, with gdb at the other end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use common::gdb::{address_in, assert_in_order, gdb, gdb_or_skip};
use common::guest_path;

fn start(arguments: &[&str]) -> (Child, BufReader<ChildStderr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["run", "--max-boot-time", "600"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    (child, stderr)
}

fn line(stderr: &mut impl BufRead) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    line
}

/// What it printed, and its exit status.
fn finish(child: Child, mut stderr: impl Read) -> (String, String, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    let mut errors = String::new();
    stderr.read_to_string(&mut errors).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, errors, output.status.code())
}

#[test]
fn each_url_stops_for_gdb_and_is_answered() {
    gdb_or_skip!();
    let program = guest_path("debuggee");
    let path = program.to_str().unwrap();
    let (child, mut stderr) = start(&["--gdb", path, "/number/3", "/number/4"]);
    for value in ["= 9", "= 12"] {
        let note = line(&mut stderr);
        assert_in_order(
            &note,
            &[
                "forkvm: ",
                "debuggee: debugger: waits at its handler's entry",
                path,
            ],
        );
        let address = address_in(&note);
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        let said = gdb(
            &program,
            &address,
            &["break triple", "continue", "finish", "continue"],
        );
        assert_in_order(&said, &["Breakpoint 1, triple (", value, "exited normally"]);
    }
    let (text, errors, status) = finish(child, stderr);
    assert_eq!((errors.as_str(), status), ("", Some(0)));
    assert_in_order(&text, &["triple 9 ", "triple 12 "]);
}

#[test]
fn a_socket_may_be_named_and_failures_are_told() {
    gdb_or_skip!();
    let program = guest_path("debuggee");
    let socket = std::env::temp_dir().join(format!("forkvm-cli-{}.gdb", std::process::id()));
    let option = format!("--gdb={}", socket.display());
    let path = program.to_str().unwrap();
    let (child, mut stderr) = start(&[&option, path, "/crash"]);
    let address = address_in(&line(&mut stderr));
    assert_eq!(address, socket.to_str().unwrap());
    let said = gdb(&program, &address, &["continue", "backtrace", "continue"]);
    assert_in_order(
        &said,
        &[
            "SIGSEGV",
            "crash (where=0x0)",
            "terminated with signal SIGSEGV",
        ],
    );
    let (_, errors, status) = finish(child, stderr);
    assert_in_order(&errors, &["page fault writing 0x0"]);
    assert_eq!(status, Some(1));
    assert!(!socket.exists());

    let (child, stderr) = start(&["--gdb", "--gdb-timeout", "0.3", path, "/"]);
    let (_, errors, status) = finish(child, stderr);
    assert_in_order(&errors, &["waits", "debug_timeout"]);
    assert_eq!(status, Some(1));
    let (child, stderr) = start(&["--gdb=192.0.2.1:1", path, "/"]);
    let (_, errors, status) = finish(child, stderr);
    assert_in_order(&errors, &["192.0.2.1:1", "a debugger's address is"]);
    assert_eq!(status, Some(2));
}
