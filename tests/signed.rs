//! Signed orders as somebody who reads a node's log could send them again: to another node, or with another body.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::client::{Body, Response};
use common::varnishd::Varnishd;
use common::{Folder, guests};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

const KEY: &str = "correct-horse-battery-staple";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// As docs/live-update.md has it.
fn sign(method: &str, action: &str, node: &str, body: &[u8]) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (time, nonce) = (time.as_secs(), format!("{:032x}", time.as_nanos()));
    let sha256 = hex(&Sha256::digest(body));
    let mut mac = Hmac::<Sha256>::new_from_slice(&Sha256::digest(KEY)).unwrap();
    let text = format!("forkvm 1\nx.com\n{method}\n{action}\n{sha256}\n{time}\n{nonce}\n{node}");
    mac.update(text.as_bytes());
    let mac = hex(&mac.finalize().into_bytes());
    format!("HMAC-SHA256 time={time}, nonce={nonce}, node={node}, sha256={sha256}, mac={mac}")
}

fn node(folder: &Folder, name: &str) -> Varnishd {
    let state = folder.path().join(name);
    fs::create_dir(&state).unwrap();
    Varnishd::start(&format!(
        "kvm.tenant(\"x.com\", \"GUESTS/hello\", update_key = \"{KEY}\", signed_orders = true, allow_debug = true,
             debug_timeout = 300ms, state_dir = \"{}\");",
        state.display()
    ))
}

fn order(node: &Varnishd, method: &str, header: &str, signature: &str, body: &[u8]) -> Response {
    let body = match method {
        "GET" => Body::None,
        _ => Body::Length(body),
    };
    let headers = [(header, signature)];
    node.client().send(method, "x.com", "/", &headers, body)
}

/// What a node calls itself.
fn stamp(node: &Varnishd) -> String {
    let asked = order(
        node,
        "GET",
        "X-LiveUpdate",
        &sign("GET", "update", "", b""),
        b"",
    );
    assert_eq!(asked.status, 200, "{}", asked.text());
    let list: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
    list["node"].as_str().unwrap().to_owned()
}

#[track_caller]
fn refused(response: &Response, words: &str) {
    assert_eq!(response.status, 403, "{}", response.text());
    assert!(response.text().contains(words), "{}", response.text());
}

#[test]
fn an_order_is_for_one_node() {
    if !common::have_kvm() {
        return;
    }
    let folder = Folder::new("signed");
    let [one, other] = ["one", "other"].map(|name| node(&folder, name));
    let [stamp_of_one, stamp_of_other] = [&one, &other].map(stamp);
    assert_ne!(stamp_of_one, stamp_of_other);
    let program = fs::read(guests().join("counter")).unwrap();
    for (node, stamp) in [(&one, &stamp_of_one), (&other, &stamp_of_other)] {
        let signature = sign("POST", "update", stamp, &program);
        let done = order(node, "POST", "X-LiveUpdate", &signature, &program);
        assert_eq!(done.status, 201, "{}", done.text());
    }

    // Both run the same program now; it is taken back from one.
    let signature = sign("POST", "rollback", &stamp_of_one, b"");
    let rollback = |node, signature: &str| order(node, "POST", "X-LiveRollback", signature, b"");
    refused(&rollback(&other, &signature), "not for this node");
    let done = rollback(&one, &signature);
    assert_eq!(done.status, 201, "{}", done.text());
    refused(&rollback(&one, &signature), "used before");
    refused(&rollback(&other, &signature), "not for this node");
    let for_none = sign("POST", "rollback", "", b"");
    refused(&rollback(&other, &for_none), "not for this node");
}

#[test]
fn an_order_is_for_one_body() {
    if !common::have_kvm() {
        return;
    }
    let folder = Folder::new("signed-body");
    let node = node(&folder, "one");
    let stamp = stamp(&node);
    let sent = |header: &str, action: &str, signed: &[u8], body: &[u8]| {
        let signature = sign("POST", action, &stamp, signed);
        order(&node, "POST", header, &signature, body)
    };
    for (header, action) in [
        ("X-LiveUpdate", "update"),
        ("X-LiveDebug", "live-debug"),
        ("X-DebugKey", "debug"),
        ("X-LiveRollback", "rollback"),
    ] {
        refused(
            &sent(header, action, b"signed", b"other"),
            "not for this body",
        );
    }
    // A rollback has none, whatever comes.
    refused(
        &sent("X-LiveRollback", "rollback", b"other", b"other"),
        "not for this body",
    );
    let failed = sent("X-DebugKey", "debug", b"other", b"other");
    assert_eq!(failed.status, 500, "{}", failed.text());
    assert!(failed.text().contains("debug_timeout"), "{}", failed.text());
    let signature = sign("GET", "debug", &stamp, b"");
    let failed = order(&node, "GET", "X-DebugKey", &signature, b"");
    assert_eq!(failed.status, 500, "{}", failed.text());
}

/// Whoever sees an order's header in the log while its body still comes can't spoil it.
#[test]
fn another_body_uses_nothing_up() {
    if !common::have_kvm() {
        return;
    }
    let folder = Folder::new("signed-spoilt");
    let node = node(&folder, "one");
    let stamp = stamp(&node);
    let program = fs::read(guests().join("counter")).unwrap();
    let signature = sign("POST", "update", &stamp, &program);
    let sent = |body: &[u8]| order(&node, "POST", "X-LiveUpdate", &signature, body);
    for other in [&b"other"[..], b"", &program[1..]] {
        refused(&sent(other), "not for this body");
    }
    // Nor does a body that breaks off.
    let length = program.len().to_string();
    let headers = [
        ("X-LiveUpdate", &*signature),
        ("Content-Length", &length),
        ("Connection", "close"),
    ];
    let mut client = node.client();
    client
        .begin("POST", "x.com", "/", &headers, Body::None)
        .unwrap();
    client.send_piece(&program[..program.len() / 2]);
    drop(client);

    // It is good once, however often it comes at the same time; one that comes during another is turned away.
    let statuses: Vec<u16> = thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let response = sent(&program);
                        if response.status != 409 {
                            return response.status;
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let of = |status| statuses.iter().filter(|&&got| got == status).count();
    assert_eq!((of(201), of(403)), (1, 3), "{statuses:?}");
    refused(&sent(&program), "used before");

    let signature = sign("POST", "debug", &stamp, b"body");
    let sent = |body: &[u8]| order(&node, "POST", "X-DebugKey", &signature, body);
    refused(&sent(b"other"), "not for this body");
    let failed = sent(b"body");
    assert_eq!(failed.status, 500, "{}", failed.text());
    refused(&sent(b"body"), "used before");
}

/// What VCL asks before a body comes: by the request's own method.
#[test]
fn vcl_takes_signatures_of_any_method() {
    if !common::have_kvm() {
        return;
    }
    let node = Varnishd::start(&format!(
        "kvm.tenant(\"x.com\", \"GUESTS/hello\", update_key = \"{KEY}\", signed_orders = true);
        }}
        sub vcl_recv {{
            if (!kvm.check_key(req.http.Host, req.http.X-Key)) {{ return (synth(403, \"Wrong key\")); }}
            return (synth(200));"
    ));
    let sent = |method: &str, signature: &str| {
        let headers = [("X-Key", signature)];
        let body = Body::Length(b"body");
        let mut client = node.client();
        client.send(method, "x.com", "/", &headers, body).status
    };
    for method in ["GET", "POST", "PUT", "DELETE", "PROPFIND"] {
        let signature = sign(method, "debug", "", b"body");
        assert_eq!(sent(method, &signature), 200, "{method}");
        assert_eq!(sent("PATCH", &signature), 403, "{method}");
    }
}
