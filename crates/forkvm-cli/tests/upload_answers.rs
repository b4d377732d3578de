//! `forkvm upload` against a server of the test's own: what it makes of the answers, and of their absence.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod peer;
#[path = "peer/upload.rs"]
mod uploading;

use std::net::TcpListener;
use std::time::Duration;

use common::guest_path;
use peer::{Does, Peer, response};
use uploading::{Folder, check, command, hello, sha256, stderr, stdout, upload};

#[test]
fn what_an_update_answers() {
    let version = &sha256(&guest_path("hello"))[..12];
    for (status, body, words) in [
        (
            201,
            r#"{"version": "VERSION", "previous": "00112233445566778899", "ready_ms": 5}"#,
            format!("201 version {version} (was 001122334455), ready in 5 ms"),
        ),
        (
            201,
            r#"{"version": "VERSION", "previous": null}"#,
            format!("201 version {version}"),
        ),
        (
            200,
            r#"{"version": "VERSION", "previous": "VERSION", "ready_ms": 0}"#,
            format!("200 version {version}, which it had already"),
        ),
    ] {
        let peer = Peer::json(status, body);
        let output = upload(&[peer.url()]);
        check(&output, 0, &format!("{}: {words}\n", peer.url()));
    }
}

/// Each with the server's reason, and what to do.
#[test]
fn refusals() {
    for (status, advice) in [
        (400, ""),
        (401, "what is between"),
        (403, "update_key_file of x.com"),
        (404, "--tenant"),
        (409, "try again"),
        (413, "max_size"),
        (422, "forkvm run"),
        (500, ""),
        (503, "try again"),
    ] {
        let peer = Peer::json(
            status,
            r#"{"tenant": "x.com", "error": "the reason\nand more"}"#,
        );
        let output = upload(&[peer.url()]);
        check(
            &output,
            22,
            &format!("{}: {status} the reason\n", peer.url()),
        );
        let explanation = stderr(&output).split_once('\n').unwrap().1;
        assert!(explanation.starts_with("  and more\n"), "{explanation}");
        assert!(explanation.contains(advice), "{explanation}");
        assert_eq!(
            explanation.lines().count(),
            1 + usize::from(!advice.is_empty())
        );
    }
}

/// Such as that of another server: what it says of a tenant is no advice.
#[test]
fn a_page_is_no_nodes_refusal() {
    let peer = Peer::with_answer(response(404, "text/html", "<html>"), Does::Leaves(0));
    let output = upload(&[peer.url()]);
    let line = format!(
        "{}: 404 without a reason; does its VCL have live updates (include vcl/kvm.vcl)?\n",
        peer.url()
    );
    check(&output, 22, &line);
    assert!(!stderr(&output).contains("tenant"), "{}", stderr(&output));
}

#[test]
fn what_a_failed_program_wrote_is_shown() {
    let lines: String = (0..50).map(|n| format!("line {n}\\n")).collect();
    let peer = Peer::json(
        422,
        &format!(r#"{{"error": "main() failed: returned 3", "stderr": "{lines}"}}"#),
    );
    let output = upload(&[peer.url()]);
    check(
        &output,
        22,
        &format!("{}: 422 main() failed: returned 3\n", peer.url()),
    );
    let text = stderr(&output);
    assert!(
        text.contains("\n  | line 30\n") && text.contains("\n  | line 49\n"),
        "{text}"
    );
    assert!(!text.contains("line 29\n"), "{text}");
}

#[test]
fn refusals_that_are_not_an_updates() {
    for (content_type, body, words) in [
        (
            "text/html",
            "<!DOCTYPE html><title>503</title>",
            "live updates",
        ),
        ("text/plain", "", "live updates"),
        ("text/plain", "Go away.\n", "503 Go away."),
        ("application/json", "[1, 2]", "503 [1, 2]"),
        ("application/json", r#"{"error": {"x": 1}}"#, "503 {"),
    ] {
        let peer = Peer::start(Does::Answers(response(503, content_type, body)));
        let output = upload(&[peer.url()]);
        assert_eq!(output.status.code(), Some(22), "{body}");
        assert!(stdout(&output).contains(words), "{}", stdout(&output));
    }
}

#[test]
fn text_from_the_network_does_not_reach_the_terminal_as_it_is() {
    let peer = Peer::json(
        422,
        r#"{"error": "a\u001b[31mb\r\u009b", "stderr": "c\u001b]0;d\u0007\ne"}"#,
    );
    let output = upload(&[peer.url()]);
    assert_eq!(output.status.code(), Some(22));
    let text = format!("{}{}", stdout(&output), stderr(&output));
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    // A program that shows its request, where the VCL has no live update.
    let peer = Peer::start(Does::Answers(response(
        500,
        "text/plain",
        "POST / HTTP/1.1\nHost: x.com\n",
    )));
    check(
        &upload(&[peer.url()]),
        22,
        &format!("{}: 500 POST / HTTP/1.1\n", peer.url()),
    );
}

#[test]
fn what_is_no_live_updates_answer() {
    let ok = |body: &str| response(200, "text/plain", body);
    let head = |text: &str| format!("HTTP/1.1 {text}\r\n\r\n").into_bytes();
    let many_headers = format!("200 OK\r\n{}X: y", "A: b\r\n".repeat(10_000));
    let long_header = format!("200 OK\r\nA: {}", "b".repeat(1 << 20));
    for bytes in [
        // A tenant's program, or any other server.
        ok("Hello, World!\n"),
        ok(""),
        ok("{}"),
        ok(r#"{"version": 3}"#),
        // It took something else.
        ok(r#"{"version": "0123456789abcdef"}"#),
        head("204 No Content"),
        head("302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0"),
        head("307 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0"),
        head("200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense"),
        head("200 OK\r\nContent-Length: 1000\r\n\r\n{"),
        // No HTTP at all.
        Vec::new(),
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        b"\x16\x03\x01\x00\x05hello".to_vec(),
        vec![0; 100_000],
        vec![b'a'; 1 << 20],
        head("999999 OK"),
        head("200 OK\r\nContent-Length: -1"),
        head(&many_headers),
        head(&long_header),
        b"HTTP/1.1 201 Created\r\nContent-".to_vec(),
    ] {
        let peer = Peer::start(Does::Answers(bytes.clone()));
        let output = upload(&[peer.url()]);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        assert_eq!(
            output.status.code(),
            Some(56),
            "{shown}: {} {}",
            stdout(&output),
            stderr(&output)
        );
        assert_eq!(stdout(&output).lines().count(), 1, "{}", stdout(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
}

#[test]
fn answers_come_in_many_shapes() {
    let json = r#"{"version": "VERSION"}"#;
    // The version's digits make it 79 bytes.
    for bytes in [
        format!("HTTP/1.1 201 Created\r\n\r\n{json}"),
        format!("HTTP/1.0 201 Created\r\n\r\n{json}"),
        format!(
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n4e\r\n{}\r\n0\r\n\r\n",
            &json[1..]
        ),
        format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 79\r\n\r\n{json}"
        ),
    ] {
        let peer = Peer::start(Does::Answers(bytes.clone().into_bytes()));
        let output = upload(&[peer.url()]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{bytes}: {}",
            stdout(&output)
        );
    }
}

#[test]
fn an_answer_without_an_end_is_not_read_to_its_end() {
    let forever = b"HTTP/1.1 201 Created\r\n\r\n".to_vec();
    let peer = Peer::start(Does::Answers([forever, vec![b' '; 100 << 20]].concat()));
    let output = upload(&[peer.url()]);
    assert_eq!(output.status.code(), Some(56));
}

/// A refusal that comes, and a connection that ends, before everything is sent.
#[test]
fn who_refuses_early_is_heard() {
    let folder = Folder::new("early");
    let program = folder.big_program(16 << 20);
    let body = r#"{"error": "the program is larger than max_size (1048576 bytes)"}"#;
    let peer = Peer::start(Does::AnswersEarly(response(413, "application/json", body)));
    let output = command(&program, &[peer.url()], &[]).output().unwrap();
    check(
        &output,
        22,
        &format!(
            "{}: 413 the program is larger than max_size (1048576 bytes)\n",
            peer.url()
        ),
    );
    let peer = Peer::start(Does::Leaves(100));
    let output = command(&program, &[peer.url()], &[]).output().unwrap();
    check(
        &output,
        56,
        &format!(
            "{}: it closed the connection before it had everything\n",
            peer.url()
        ),
    );
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn nobody_there() {
    let url = nobody();
    let output = upload(std::slice::from_ref(&url));
    assert_eq!(output.status.code(), Some(7));
    assert!(
        stdout(&output).starts_with(&format!("{url}: could not connect: Connection refused")),
        "{}",
        stdout(&output)
    );
    let output = upload(&["http://no-such-host.invalid".into()]);
    assert_eq!(output.status.code(), Some(7), "{}", stdout(&output));
}

#[test]
fn no_answer_in_time() {
    let folder = Folder::new("slow");
    let big = folder.big_program(16 << 20);
    let slow = Duration::from_millis(50);
    let half = b"HTTP/1.1 201 Created\r\nX: ".to_vec();
    for (program, does) in [
        (&hello(), Does::IgnoresIt),
        (&big, Does::IgnoresIt),
        (&hello(), Does::Drips(b"".to_vec(), slow)),
        (&hello(), Does::Drips(half, slow)),
    ] {
        let peer = Peer::start(does.clone());
        let output = command(program, &[peer.url()], &["--timeout", "0.7"])
            .output()
            .unwrap();
        check(
            &output,
            28,
            &format!(
                "{}: no answer within 0.7 s; it may still do it\n",
                peer.url()
            ),
        );
    }
}

/// A node that fails does not keep the others from the program.
#[test]
fn a_fleet_of_which_some_fail() {
    let denied = Peer::json(403, r#"{"error": "the key is wrong"}"#);
    let (good, nobody, last) = (Peer::willing(), nobody(), Peer::willing());
    let output = upload(&[nobody.clone(), good.url(), denied.url(), last.url()]);
    let version = &sha256(&guest_path("hello"))[..12];
    let done = format!("201 version {version}, ready in 34 ms");
    check(
        &output,
        22,
        &format!(
            "{nobody}: could not connect: Connection refused (os error 111)\n{}: {done}\n{}: 403 the key is wrong\n{}: {done}\n",
            good.url(),
            denied.url(),
            last.url()
        ),
    );
    assert!(
        stderr(&output).contains("done on 2 of 4 nodes"),
        "{}",
        stderr(&output)
    );
    // Nobody refused: the first failure counts.
    let strange = Peer::start(Does::Answers(b"nonsense".to_vec()));
    let output = upload(&[good.url(), nobody.clone(), strange.url()]);
    assert_eq!(output.status.code(), Some(7));
    let output = upload(&[strange.url(), nobody, good.url()]);
    assert_eq!(output.status.code(), Some(56));
}

/// Who reads the messages may leave ("| head -1"): every node is updated all the same.
#[test]
fn nobody_reads_the_messages() {
    let (first, second) = (Peer::willing(), Peer::willing());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command(&hello(), &[first.url(), second.url()], &[])
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!((first.received().len(), second.received().len()), (1, 1));
}

/// What does not start on the first node is not tried on all of them.
#[test]
fn a_bad_program_stops_at_the_first_node() {
    let (good, never) = (Peer::willing(), Peer::willing());
    let bad = Peer::json(422, r#"{"error": "main() failed: returned 3"}"#);
    let output = upload(&[good.url(), bad.url(), never.url()]);
    assert_eq!(output.status.code(), Some(22));
    assert!(
        stdout(&output).ends_with(&format!(
            "{}: 422 main() failed: returned 3\n{}: not tried\n",
            bad.url(),
            never.url()
        )),
        "{}",
        stdout(&output)
    );
    assert!(never.received().is_empty());
}
