//! `forkvm upload` against a server of the test's own: what it sends, to whom, and what it does not send.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod peer;
#[path = "peer/upload.rs"]
mod uploading;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use common::guest_path;
use peer::{Peer, STAMP};
use uploading::{Folder, KEY, check, command, hello, sha256, stderr, stdout, upload};

#[test]
fn what_is_sent() {
    let peer = Peer::willing();
    let output = upload(&[format!("{}/some/path?q=1", peer.url())]);
    let version = sha256(&guest_path("hello"));
    check(
        &output,
        0,
        &format!(
            "{}/some/path?q=1: 201 version {}, ready in 34 ms\n",
            peer.url(),
            &version[..12]
        ),
    );
    let sent = peer.only();
    assert_eq!(sent.line, "POST /some/path?q=1 HTTP/1.1");
    assert!(sent.body == common::guest("hello"));
    assert_eq!(sent.header("host"), "x.com");
    let signature = sent.header("x-liveupdate");
    assert!(signature.starts_with("HMAC-SHA256 time="), "{signature}");
    assert!(
        signature.contains(&format!(", node={STAMP}, ")),
        "{signature}"
    );
    assert_eq!(sent.header("x-sha256"), version);
    assert_eq!(sent.header("content-type"), "application/octet-stream");
    assert_eq!(sent.all("transfer-encoding"), [""; 0]);
    assert_eq!(sent.all("expect"), [""; 0]);
}

#[test]
fn a_url_may_be_short() {
    let peer = Peer::willing();
    let url = peer.url();
    let output = upload(&[url["http://".len()..].to_owned()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with(&url), "{}", stdout(&output));
    assert_eq!(peer.only().line, "POST / HTTP/1.1");
}

#[test]
fn a_big_program_arrives_whole() {
    let folder = Folder::new("big");
    let program = folder.big_program(16 << 20);
    let peer = Peer::willing();
    let output = command(&program, &[peer.url()], &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(peer.only().body == std::fs::read(&program).unwrap());
}

#[test]
fn one_node_after_another() {
    let [first, second, third] = [(); 3].map(|()| Peer::willing());
    let output = upload(&[first.url(), second.url(), third.url()]);
    assert_eq!(output.status.code(), Some(0));
    let results: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(results.len(), 3);
    for (peer, result) in [&first, &second, &third].iter().zip(results) {
        assert!(
            result.starts_with(&format!("{}: 201 version ", peer.url())),
            "{result}"
        );
        assert!(peer.only().body == common::guest("hello"));
    }
}

fn upload_with(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["upload", "--tenant", "x.com"])
        .args(arguments)
        .env("EMPTY", "")
        .env("TWO_LINES", "one\ntwo")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_key_from_a_file() {
    let folder = Folder::new("key");
    for text in [KEY.to_owned(), format!("{KEY}\n"), format!(" {KEY}\r\n\n")] {
        let peer = Peer::willing();
        let key = folder.file("key", text.as_bytes());
        let output = upload_with(&[&hello(), "-u", &peer.url(), "--key-file", &key]);
        assert_eq!(output.status.code(), Some(0));
        assert!(
            peer.only()
                .header("x-liveupdate")
                .starts_with("HMAC-SHA256 time=")
        );
        assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    }
    let peer = Peer::willing();
    let key = folder.file("key", KEY.as_bytes());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = upload_with(&[&hello(), "-u", &peer.url(), "--key-file", &key]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("warning") && stderr(&output).contains("chmod 600"));
}

/// A program is long, and a key is wrong more often than it. And an order is signed for a node that says who it is.
#[test]
fn who_does_not_say_who_it_is_gets_no_program() {
    for (status, body, code) in [
        (
            403,
            r#"{"tenant": "x.com", "error": "the key is wrong"}"#,
            22,
        ),
        (
            401,
            r#"{"tenant": "x.com", "error": "no key was sent"}"#,
            22,
        ),
        (
            404,
            r#"{"tenant": "x.com", "error": "there is no such tenant"}"#,
            22,
        ),
        // Not an answer to that question: a program's, say.
        (404, "Not found.", 22),
        (200, "<html>", 56),
        (201, r#"{"version": "VERSION"}"#, 56),
        (200, r#"{"tenant": "x.com", "versions": []}"#, 56),
        (200, r#"{"node": "too short"}"#, 56),
        (200, r#"{"node": "0123456789abcdef\r\nX-Other: abc"}"#, 56),
    ] {
        let refusal = peer::response(status, "application/json", body);
        let done = r#"{"version": "VERSION", "ready_ms": 34}"#;
        let done = peer::response(201, "application/json", done);
        let peer = Peer::with_answer(refusal, peer::Does::Answers(done));
        let output = upload(&[peer.url()]);
        assert!(peer.received().is_empty(), "{status} {body}");
        let asked = peer.asked();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].line, "GET / HTTP/1.1");
        assert_eq!(asked[0].header("host"), "x.com");
        let signature = asked[0].header("x-liveupdate");
        assert!(signature.starts_with("HMAC-SHA256 time="), "{signature}");
        assert!(signature.contains(", node=, "), "{signature}");
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let line = format!("{}: {status} ", peer.url());
        assert!(stdout(&output).starts_with(&line), "{}", stdout(&output));
        assert!(!stderr(&output).contains("sending"), "{}", stderr(&output));
    }
}

/// As the VMOD names tenants, since that is what it takes to be signed: see `nodes/tenant.rs`.
#[test]
fn a_tenants_name_has_no_port() {
    let peer = Peer::willing();
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args([
            "upload",
            &hello(),
            "--tenant",
            "X.Com.:8080",
            "-u",
            &peer.url(),
        ])
        .args(["--key-env", "TEST_KEY"])
        .env("TEST_KEY", KEY)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(peer.only().header("host"), "x.com");
}

#[test]
fn versions_are_listed() {
    let list = format!(
        r#"{{"tenant": "x.com", "running": "{a}", "versions": [
            {{"version": "{a}", "running": true, "bytes": 803584}},
            {{"version": "{b}", "running": false, "bytes": null}}]}}"#,
        a = "a".repeat(64),
        b = "b".repeat(64)
    );
    let answer = peer::response(200, "application/json", &list);
    let peer = Peer::with_answer(answer, peer::Does::Leaves(0));
    let old = Peer::with_answer(
        peer::response(200, "text/html", "<html>"),
        peer::Does::Leaves(0),
    );
    let (url, old) = (peer.url(), old.url());
    let versions = |urls: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["versions", "--tenant", "x.com", "--key-env", "TEST_KEY"])
            .args(urls)
            .env("TEST_KEY", KEY)
            .output()
            .unwrap()
    };
    let lines = format!(
        "{url}: aaaaaaaaaaaa runs, 803584 bytes\n{url}: bbbbbbbbbbbb is kept, from the tenant's path\n"
    );
    check(&versions(&["-u", &url]), 0, &lines);
    let output = versions(&["-u", &old]);
    assert_eq!(output.status.code(), Some(56), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("live updates"),
        "{}",
        stdout(&output)
    );
}

/// Before anything is sent.
#[test]
fn problems_here() {
    let folder = Folder::new("here");
    let peer = Peer::willing();
    let (url, hello) = (peer.url(), hello());
    let empty = folder.file("empty", b"\n");
    let lines = folder.file("lines", b"two\nlines");
    let long = folder.file("long", &[b'k'; 5000]);
    let guest = |name: &str| guest_path(name).to_str().unwrap().to_owned();
    for (arguments, words) in [
        (&["/no/such/program"][..], "No such file"),
        (&["/"], "the whole file system"),
        (&[&guest("bad-text")], "not an ELF"),
        (&[&guest("bad-empty")], "not an ELF"),
        (&[&guest("bad-elf32")], "32-bit"),
        (&[&guest("bad-aarch64")], "another machine"),
        (&[&guest("bad-relocatable")], "-static"),
        (&[&guest("bad-dynamic")], "-static"),
        (&[&guest("bad-truncated-half")], "truncated"),
        (&[&hello], "--key-file"),
        (&[&hello, "--key-file", "/no/such/key"], "/no/such/key"),
        (&[&hello, "--key-file", "/"], "directory"),
        (&[&hello, "--key-file", &empty], "the key is empty"),
        (&[&hello, "--key-file", &lines], "one line"),
        (&[&hello, "--key-file", &long], "4096"),
        (&[&hello, "--key-file", &hello], "4096"),
        (&[&hello, "--key-file", "/dev/zero"], "4096"),
        (&[&hello, "--key-env", "EMPTY"], "the key is empty"),
        (&[&hello, "--key-env", "TWO_LINES"], "one line"),
        (
            &[&hello, "--key-env", "NO_SUCH_VARIABLE"],
            "NO_SUCH_VARIABLE",
        ),
    ] {
        let output = upload_with(&[&["--url", &url], arguments].concat());
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(1), ""),
            "{arguments:?}: {}",
            stderr(&output)
        );
        let text = stderr(&output);
        assert!(
            text.starts_with("forkvm: ") && text.lines().count() == 1 && text.contains(words),
            "{words}: {text}"
        );
        assert!(!text.contains("two") && !text.contains("kkk"), "{text}");
    }
    assert!(peer.received().is_empty() && peer.asked().is_empty());
}

#[test]
fn wrong_arguments() {
    for (arguments, words) in [
        (&["PROG"][..], "--url"),
        (&["--url", "http://a"], "PROGRAM"),
        (&["PROG", "--url", "https://a"], "plain HTTP"),
        (&["PROG", "--url", "ftp://a"], "http://"),
        (&["PROG", "--url", "http://"], "--url"),
        (&["PROG", "--url", ""], "--url"),
        (&["PROG", "--url", "http://a b"], "--url"),
        (&["PROG", "--url", "http://me:secret@a/"], "--key-file"),
        (
            &["PROG", "--url", "http://a", "--tenant", "y.com"],
            "--tenant",
        ),
        (
            &["PROG", "--url", "http://a", "--timeout", "0"],
            "--timeout",
        ),
        (&["PROG", "--url", "http://a", "--key", "k"], "--key"),
        (
            &["PROG", "--url", "a", "--key-file", "k", "--key-env", "K"],
            "--key-env",
        ),
    ] {
        let output = upload_with(arguments);
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    for tenant in ["", "a b", "a/b", "a\nb: c", &"a".repeat(300)] {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["upload", "PROG", "--url", "http://a", "--tenant", tenant])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{tenant:?}");
    }
}

#[test]
fn help_tells_the_exit_status() {
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["upload", "--help"])
        .output()
        .unwrap();
    let help = stdout(&output);
    for words in [
        "Exit status",
        "  7  ",
        "  22 ",
        "  28 ",
        "  56 ",
        "plain HTTP",
        "not the key",
    ] {
        assert!(help.contains(words), "{words}: {help}");
    }
}

#[test]
fn rollback() {
    let rollback = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["rollback", "--tenant", "x.com"])
            .args(arguments)
            .env("TEST_KEY", KEY)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let body = r#"{"version": "00112233445566", "previous": "aabbccddeeff00", "ready_ms": 3}"#;
    let done = Peer::json(201, body);
    // What one node has kept says nothing about the next.
    let nothing = Peer::json(422, r#"{"error": "no earlier version is kept"}"#);
    let urls = [done.url(), nothing.url()];
    let output = rollback(&["-u", &urls[1], "-u", &urls[0], "--key-env", "TEST_KEY"]);
    check(
        &output,
        22,
        &format!(
            "{}: 422 no earlier version is kept\n{}: 201 version 001122334455 (was aabbccddeeff), ready in 3 ms\n",
            urls[1], urls[0]
        ),
    );
    for peer in [done, nothing] {
        let sent = peer.only();
        assert_eq!(sent.line, "POST / HTTP/1.1");
        assert_eq!(sent.header("host"), "x.com");
        assert!(
            sent.header("x-liverollback")
                .starts_with("HMAC-SHA256 time=")
        );
        assert_eq!(sent.header("content-length"), "0");
        assert_eq!(sent.all("x-liveupdate"), [""; 0]);
        assert!(sent.body.is_empty());
    }
    assert_eq!(rollback(&[]).status.code(), Some(2));
    assert_eq!(rollback(&["PROG", "-u", "a"]).status.code(), Some(2));
    let output = rollback(&["-u", "a", "--key-file", "/no/such/key"]);
    check(&output, 1, "");
}

/// Who reads the results may leave; the other nodes get the program all the same.
#[test]
fn nobody_reads_the_results() {
    let [first, second] = [(); 2].map(|()| Peer::willing());
    let mut child = command(&hello(), &[first.url(), second.url()], &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!((first.received().len(), second.received().len()), (1, 1));
}

/// Standard error that is no terminal has lines, a terminal has a bar.
#[test]
fn progress() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let peer = Peer::willing();
    let output = upload(&[peer.url()]);
    assert!(
        stderr(&output).starts_with(&format!("forkvm: {}: sending ", peer.url()))
            && stderr(&output).lines().count() == 1,
        "{}",
        stderr(&output)
    );
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let terminal = openpt(flags).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = std::fs::File::options()
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let output = command(&hello(), &[peer.url()], &[])
        .env("TERM", "xterm")
        .stderr(end)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output).lines().count(), 1, "{}", stdout(&output));
    let mut shown = vec![0; 64 << 10];
    let n = std::fs::File::from(terminal).read(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown[..n]);
    assert!(
        !shown.contains("sending") && !shown.contains(KEY),
        "{shown}"
    );
    assert!(
        shown.contains(&peer.url()) && shown.contains("KiB"),
        "{shown:?}"
    );
}
