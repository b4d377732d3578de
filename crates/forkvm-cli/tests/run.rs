//! `forkvm run`, as one meets it in a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::sums::{pattern, sum_line};
use common::{guest_path, kvm_or_skip};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["run", "--max-boot-time", "600"])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs `forkvm run` with PROG in the arguments replaced by the guest's path.
fn run(guest: &str, arguments: &[&str]) -> Output {
    let path = guest_path(guest);
    let arguments: Vec<_> = arguments
        .iter()
        .map(|&argument| {
            if argument == "PROG" {
                path.to_str().unwrap()
            } else {
                argument
            }
        })
        .collect();
    command(&arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

/// The body of a successful run without a word on stderr.
fn body(guest: &str, arguments: &[&str]) -> Vec<u8> {
    let output = run(guest, arguments);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), ""),
        "{arguments:?}"
    );
    output.stdout
}

fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("forkvm-cli-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn one_url_gives_the_body_byte_for_byte() {
    kvm_or_skip!();
    assert_eq!(body("hello", &["PROG", "/"]), b"Hello, World!\n");
    assert_eq!(body("echo", &["PROG", "/empty"]), b"");
    assert!(body("echo", &["PROG", "/size/300001"]) == pattern(300_001));
    assert!(body("mandelbrot", &["PROG", "/"]).starts_with(b"\x89PNG\r\n\x1a\n"));
}

#[test]
fn several_urls_have_a_newline_between_their_bodies() {
    kvm_or_skip!();
    assert_eq!(body("counter", &["PROG", "/", "/", "/"]), b"1\n\n1\n\n1\n");
    let expected = [pattern(5), pattern(0), pattern(3)].join(&b'\n');
    assert_eq!(
        body("echo", &["PROG", "/size/5", "/size/0", "/size/3"]),
        expected
    );
}

#[test]
fn include_prints_status_and_headers_first() {
    kvm_or_skip!();
    let expected = "HTTP/1.1 200\r\nContent-Type: text/plain\r\nX-A: b\r\nContent-Length: 10\r\n\r\n1 headers\n";
    assert_eq!(
        body("echo", &["-i", "PROG", "/header?name=X-A&value=b"]),
        expected.as_bytes()
    );
    assert_eq!(
        body("echo", &["--include", "PROG", "/empty-null"]),
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"
    );
    let two = body("echo", &["-i", "PROG", "/status/404", "/status/500"]);
    let two = String::from_utf8(two).unwrap();
    assert!(
        two.starts_with("HTTP/1.1 404\r\n") && two.contains("\nHTTP/1.1 500\r\n"),
        "{two}"
    );
}

#[test]
fn a_status_of_400_and_up_fails_if_asked_for() {
    kvm_or_skip!();
    assert_eq!(body("echo", &["PROG", "/status/404"]), b"status 404\n");
    for (url, code) in [("/status/399", 0), ("/status/400", 22), ("/status/503", 22)] {
        let output = run("echo", &["-f", "PROG", url]);
        assert_eq!(output.status.code(), Some(code), "{url}");
        assert_eq!(output.stdout.is_empty(), code == 22, "{url}");
        assert_eq!(
            stderr(&output).contains(&url[8..]),
            code == 22,
            "{url}: {}",
            stderr(&output)
        );
    }
    let output = run("echo", &["--fail", "PROG", "/status/404", "/counter"]);
    assert_eq!(output.status.code(), Some(22));
    assert!(stdout(&output).ends_with("1\n"), "{}", stdout(&output));
}

#[test]
fn a_guest_that_fails() {
    kvm_or_skip!();
    let output = run("crash", &["PROG", "/null-write"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    let message = stderr(&output);
    assert!(
        message.starts_with("forkvm: tenant crash: request failed: page fault writing 0x0"),
        "{message}"
    );
    assert!(
        message.contains("(null_write+") && message.lines().count() == 1,
        "{message}"
    );
    let output = run("crash", &["--max-request-time", "0.2", "PROG", "/loop"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("max_request_time"),
        "{}",
        stderr(&output)
    );
    let output = run("crash", &["--max-request-memory", "4", "PROG", "/oom"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("max_request_memory"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn memory_that_no_machine_has_is_refused_by_its_option() {
    for option in ["--max-memory", "--max-request-memory"] {
        for size in ["0", "65537", "18446744073709551615"] {
            let output = run("hello", &[option, size, "PROG", "/"]);
            assert_eq!(output.status.code(), Some(2));
            assert!(stderr(&output).contains(option), "{}", stderr(&output));
        }
        let output = run("hello", &[option, "64MB", "PROG", "/"]);
        assert!(
            stderr(&output).contains("without a unit"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_response_that_is_too_long_is_a_failure() {
    kvm_or_skip!();
    let url = format!("/size/{}", (1 << 20) + 1);
    let output = run("echo", &["--max-response-size", "1", "PROG", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("max_response_size"),
        "{}",
        stderr(&output)
    );
    let most = body(
        "echo",
        &["--max-response-size", "1", "PROG", "/size/1048576"],
    );
    assert_eq!(most.len(), 1 << 20);
}

#[test]
fn an_error_handlers_answer_is_an_answer() {
    kvm_or_skip!();
    let output = run("get_post", &["-i", "--arg", "A", "PROG", "/die"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stdout(&output).starts_with("HTTP/1.1 503\r\n"),
        "{}",
        stdout(&output)
    );
    assert!(
        stdout(&output).ends_with("error /die arg A: with a text\n"),
        "{}",
        stdout(&output)
    );
    assert!(stderr(&output).contains("on_error"), "{}", stderr(&output));
}

#[test]
fn data_method_and_headers() {
    kvm_or_skip!();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let file = temporary("data", &bytes);
    let data = format!("@{}", file.display());
    assert_eq!(
        body("echo", &["--data", &data, "PROG", "/sum"]),
        sum_line(&bytes).as_bytes()
    );
    assert_eq!(body("echo", &["-d", "a=b&c", "PROG", "/echo"]), b"a=b&c");
    let text = String::from_utf8(body(
        "echo",
        &[
            "-d",
            "",
            "-H",
            "X-A:  b ",
            "-H",
            "content-type: a/b",
            "PROG",
            "/x",
        ],
    ))
    .unwrap();
    for line in [
        "method: POST",
        "content-type: a/b",
        "X-A: b",
        "Host: localhost",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in {text}"
        );
    }
    assert_eq!(
        body("echo", &["-X", "DELETE", "PROG", "/method"]),
        b"6 DELETE\n"
    );
    assert_eq!(
        body("echo", &["-X", "PUT", "-d", "x", "PROG", "/method"]),
        b"3 PUT\n"
    );
    assert_eq!(body("echo", &["PROG", "/method"]), b"3 GET\n");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn data_from_standard_input() {
    kvm_or_skip!();
    let path = guest_path("echo");
    let mut child = command(&["--data", "@-", path.to_str().unwrap(), "/sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = pattern(200_000);
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(
        child.wait_with_output().unwrap().stdout,
        sum_line(&bytes).as_bytes()
    );
}

#[test]
fn the_programs_surroundings() {
    kvm_or_skip!();
    let arguments = [
        "--name",
        "pizza",
        "--main-argument",
        "-x",
        "--main-argument",
        "two words",
        "PROG",
        "/args",
    ];
    assert_eq!(body("echo", &arguments), b"pizza\n-x\ntwo words\n");
    let environment =
        String::from_utf8(body("echo", &["--env", "COLOUR=blue", "PROG", "/env"])).unwrap();
    assert!(
        environment.contains("COLOUR=blue\n") && environment.contains("KVM_NAME=echo\n"),
        "{environment}"
    );
    let file = temporary("allowed", b"the text");
    let url = format!("/read?path={}", file.display());
    assert!(body("linuxy", &["PROG", &url]).starts_with(b"open E"));
    assert_eq!(
        body("linuxy", &["--allow", file.to_str().unwrap(), "PROG", &url]),
        b"read 8: the text\n"
    );
    std::fs::remove_file(file).unwrap();
    assert_eq!(
        body("linuxy", &["--cwd", "/srv", "PROG", "/cwd"]),
        b"/srv\n"
    );
}

#[test]
fn the_guests_output_goes_to_stderr() {
    kvm_or_skip!();
    let output = run("echo", &["PROG", "/stdout"]);
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(0), "printed\n")
    );
    assert_eq!(stderr(&output), "echo: to stdout\necho: to stderr\n");
    let output = run("echo", &["PROG", "/log?text=a+record"]);
    assert_eq!(
        (stdout(&output), stderr(&output)),
        ("log: 0\n", "a record\n")
    );
}

/// Each with a message of one line that names what is wrong, and no panic.
#[test]
fn what_is_no_program() {
    kvm_or_skip!();
    let failed = |program: &str, words: &[&str]| {
        let output = command(&[program, "/"]).output().unwrap();
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(1), ""),
            "{program}"
        );
        let message = stderr(&output);
        assert!(
            message.starts_with("forkvm: ") && message.lines().count() == 1,
            "{message}"
        );
        for word in words {
            assert!(message.contains(word), "{word} is not in {message}");
        }
    };
    failed("/no/such/program", &["/no/such/program", "No such file"]);
    failed("/", &["/", "directory"]);
    // What was meant as an option's value.
    let output = command(&["--allow-net", "example.com", "hello", "/"]);
    let output = { output }.output().unwrap();
    let message = stderr(&output);
    assert!(message.contains("--allow-net=HOST"), "{message}");
    failed(
        guest_path("bad-text").to_str().unwrap(),
        &["tenant bad-text", "not an ELF program"],
    );
    failed(guest_path("bad-dynamic").to_str().unwrap(), &["-static"]);
    failed(
        guest_path("bad-main-returns-3").to_str().unwrap(),
        &["main() failed", "returned 3"],
    );
    failed(
        guest_path("bad-main-crashes").to_str().unwrap(),
        &["main() failed", "(main+"],
    );
    failed(guest_path("bad-stripped").to_str().unwrap(), &["stripped"]);
    let output = run("hello", &["--data", "@/no/such/file", "PROG", "/"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/no/such/file"),
        "{}",
        stderr(&output)
    );
    let output = run("hello", &["--allow", "/no/such/folder", "PROG", "/"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/no/such/folder"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn wrong_arguments() {
    for arguments in [
        &["PROG"][..],
        &[],
        &["-H", "no colon", "PROG", "/"],
        &["-H", ": no name", "PROG", "/"],
        &["-H", "X: a\r\nY: b", "PROG", "/"],
        &["--max-request-time", "0", "PROG", "/"],
        &["--max-request-time", "-1", "PROG", "/"],
        &["--max-request-time", "nan", "PROG", "/"],
        &["--max-boot-time", "soon", "PROG", "/"],
        &["--max-memory", "lots", "PROG", "/"],
        &["--no-such-option", "PROG", "/"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .arg("run")
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
}

#[test]
fn who_reads_may_leave() {
    kvm_or_skip!();
    let path = guest_path("echo");
    let mut child = command(&[path.to_str().unwrap(), "/size/20000000", "/size/20000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(first[..], pattern(1000));
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
}

/// Runs `forkvm run` with these bytes on standard input.
fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn the_program_may_come_from_standard_input() {
    kvm_or_skip!();
    let output = run_with_input(&["-", "/"], &common::guest("hello"));
    assert_eq!(
        (output.status.code(), stdout(&output), stderr(&output)),
        (Some(0), "Hello, World!\n", "")
    );
    let output = run_with_input(&["--name", "piped", "-", "/"], b"no program");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("piped") && stderr(&output).contains("not an ELF program"),
        "{}",
        stderr(&output)
    );
    let output = run_with_input(&["--data", "@-", "-", "/"], &common::guest("hello"));
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    assert!(stderr(&output).contains("both"), "{}", stderr(&output));
}

#[test]
fn a_program_fetches_from_what_is_named() {
    kvm_or_skip!();
    let url = "/whole?url=http://127.0.0.1:1/";
    let output = run("fetcher", &["PROG", url]);
    assert_eq!(stdout(&output), "EACCES\n");
    let line = "127.0.0.1:1 may not be reached";
    assert!(stderr(&output).contains(line), "{}", stderr(&output));
    // Nobody is there, but it may be asked.
    let output = run("fetcher", &["--allow-net=127.0.0.0/8", "PROG", url]);
    assert_eq!(stdout(&output), "ECONNREFUSED\n", "{}", stderr(&output));
    let output = run("fetcher", &["--fetch-ca-file=/nonexistent", "PROG", url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--fetch-ca-file"),
        "{}",
        stderr(&output)
    );
}
