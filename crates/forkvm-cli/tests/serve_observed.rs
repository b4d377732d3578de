//! `forkvm serve`: the access log, metrics, the status line.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Folder, kvm_or_skip};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use serving::{ENOUGH, Serving, one_answer, rest, server};

/// The lines of a log, once there are so many.
fn lines(serving: &Serving, path: &Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    serving.wait("lines in the log", || read().lines().count() >= count);
    let text = read();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), count, "{text}");
    lines
}

#[test]
fn a_line_for_each_connection() {
    kvm_or_skip!();
    let folder = Folder::new("access-log");
    let path = folder.0.join("log");
    let option = format!("--access-log={}", path.display());
    let serving = Serving::simple(&["-t1", &option, "--max-request-time=2"]);
    let stream = serving.ask(b"GET / HTTP/1.1\r\n\r\n");
    let peer = stream.local_addr().unwrap().to_string();
    let answer = one_answer(&stream);
    let line = &lines(&serving, &path, 1)[0];
    assert_eq!(line["peer"], *peer);
    assert_eq!(line["bytes"], answer.len());
    assert_eq!(line["end"], "server");
    assert!(line["exits"].as_u64().unwrap() > 2, "{line}");
    assert!(line["pages"].as_u64().unwrap() > 0, "{line}");
    assert!(
        line["duration_us"].as_u64() >= line["wait_us"].as_u64(),
        "{line}"
    );
    let time = line["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert!(line.get("path").is_none());
    for (path_, end, count) in [("/spin", "timed-out", 2), ("/crash", "failed", 3)] {
        assert_eq!(serving.get(path_), "");
        assert_eq!(lines(&serving, &path, count)[count - 1]["end"], end);
    }
    let gone = serving.ask(b"GET /stay HTTP/1.1\r\n\r\n");
    assert!(one_answer(&gone).ends_with("count 1\n"));
    drop(gone);
    lines(&serving, &path, 4);
}

#[test]
fn a_line_for_each_request() {
    kvm_or_skip!();
    let folder = Folder::new("access-log-http");
    let path = folder.0.join("log");
    let option = format!("--access-log={}", path.display());
    let serving = Serving::simple(&["-t1", &option, "--per-request", "--backlog=0"]);
    let stream = serving.connect();
    (&stream)
        .write_all(b"POST /a?b=%22c HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nxx")
        .unwrap();
    let answer = one_answer(&stream);
    let body = "count 1 bytes 2 sum 240\n";
    assert!(answer.ends_with(body), "{answer}");
    let line = &lines(&serving, &path, 1)[0];
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], "/a?b=%22c");
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes"], body.len());
    assert_eq!(line["end"], "server");
    assert!(line["exits"].as_u64().unwrap() > 2, "{line}");
    // One that has no fork, and one whose client leaves.
    let mut dripping = serving.ask(b"GET /drip HTTP/1.1\r\nHost: t\r\n\r\n");
    dripping.read_exact(&mut [0; 20]).unwrap();
    (&stream)
        .write_all(b"GET /none HTTP/1.1\r\nHost: t\r\n\r\n")
        .unwrap();
    assert!(one_answer(&stream).starts_with("HTTP/1.1 503"));
    let line = &lines(&serving, &path, 2)[1];
    assert_eq!(
        (&line["status"], &line["end"]),
        (&503.into(), &"refused".into())
    );
    drop(dripping);
    let line = &lines(&serving, &path, 3)[2];
    assert_eq!(line["path"], "/drip");
    assert_eq!(line["end"], "client");
    // The file may be moved away.
    let moved = folder.0.join("old");
    std::fs::rename(&path, &moved).unwrap();
    serving.signal("HUP");
    serving.has_said("the new program is in place");
    assert_eq!(serving.get("/"), "count 1\n");
    lines(&serving, &path, 1);
    lines(&serving, &moved, 3);
}

#[test]
fn an_upgraded_connection_is_one_line_at_its_end() {
    kvm_or_skip!();
    let folder = Folder::new("access-log-upgrade");
    let path = folder.0.join("log");
    let option = format!("--access-log={}", path.display());
    let options = ["-t1", &option, "--per-request", "--max-upgraded-time=2"];
    let serving = Serving::simple(&options);
    let go_over = || {
        let stream = serving.ask(
            b"GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        );
        let answer = one_answer(&stream).to_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(answer.contains("upgrade: echo\r\n"), "{answer}");
        stream
    };
    let mut stream = go_over();
    for _ in 0..5 {
        stream.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }
    // Who has said all still hears the rest.
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "last");
    let line = &lines(&serving, &path, 1)[0];
    assert_eq!((&line["status"], &line["bytes"]), (&101.into(), &29.into()));
    assert_eq!(line["end"], "server");
    // One that goes on has its time, and so has one that does not listen.
    let mut talks = go_over();
    while talks.write_all(&[b'x'; 1 << 16]).is_ok() {}
    let line = &lines(&serving, &path, 2)[1];
    assert_eq!(line["end"], "timed-out");
    assert_eq!(serving.get("/"), "count 1\n");
}

#[test]
fn a_log_on_standard_output_is_whole_at_the_end() {
    kvm_or_skip!();
    let folder = Folder::new("access-log-stdout");
    let path = folder.0.join("out");
    let mut command = serving::command(&["-t2", "--access-log=-"], &[&server()]);
    let mut serving = Serving::spawn(command.stdout(File::create(&path).unwrap()));
    for _ in 0..200 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
    serving.signal("TERM");
    assert!(serving.ended().success());
    assert_eq!(lines(&serving, &path, 200).len(), 200);
}

/// A Prometheus's question.
fn scrape(address: SocketAddr) -> HashMap<String, f64> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        .unwrap();
    let answer = rest(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn metrics_count_what_happens() {
    kvm_or_skip!();
    let options = ["-t2", "--metrics=127.0.0.1:0", "--max-request-time=2"];
    let serving = Serving::simple(&options);
    let address: SocketAddr = serving.said_after("metrics at ").parse().unwrap();
    let before = scrape(address);
    assert_eq!(before["forkvm_served_total{end=\"server\"}"], 0.0);
    assert_eq!(before["forkvm_forks"], 2.0);
    for _ in 0..20 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
    assert_eq!(serving.get("/spin"), "");
    assert_eq!(serving.get("/crash"), "");
    let stay = serving.ask(b"GET /stay HTTP/1.1\r\n\r\n");
    one_answer(&stay);
    serving.wait("what the last two count", || {
        let now = scrape(address);
        now["forkvm_forks_made_total"] == 4.0 && now["forkvm_resets_total"] == 20.0
    });
    let now = scrape(address);
    assert_eq!(now["forkvm_served_total{end=\"server\"}"], 20.0);
    assert_eq!(now["forkvm_served_total{end=\"timed-out\"}"], 1.0);
    assert_eq!(now["forkvm_served_total{end=\"failed\"}"], 1.0);
    assert_eq!(now["forkvm_forks_dropped_total"], 2.0);
    assert_eq!(now["forkvm_forks"], 2.0);
    assert_eq!(now["forkvm_forks_idle"], 1.0);
    assert_eq!(now["forkvm_connections"], 1.0);
    assert_eq!(now["forkvm_duration_seconds_count"], 22.0);
    assert!(now["forkvm_duration_seconds_sum"] >= 2.0);
    assert!(now["forkvm_exits_total"] >= 60.0);
    assert!(now["forkvm_pages_reset_total"] >= 20.0);
    assert_eq!(now["forkvm_duration_seconds_bucket{le=\"+Inf\"}"], 22.0);
    assert!(now["forkvm_sent_bytes_total"] > 20.0 * 60.0);
    assert!(now["forkvm_boot_seconds"] > 0.0);
}

#[test]
fn metrics_are_answered_whoever_else_asks_for_nothing() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--metrics=127.0.0.1:0"]);
    let address: SocketAddr = serving.said_after("metrics at ").parse().unwrap();
    let ask = |text: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        rest(&mut stream)
    };
    assert!(ask("GET / HTTP/1.1\r\nHost: t\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics HTTP/1.1\r\nHost: t\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(ask("nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    // They have a time, and do not touch what clients get.
    let silent: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    assert_eq!(serving.get("/"), "count 1\n");
    assert_eq!(scrape(address)["forkvm_forks"], 1.0);
    drop(silent);
}

#[test]
fn a_terminal_has_a_status_line() {
    kvm_or_skip!();
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let folder = Folder::new("status");
    let socket = folder.0.join("socket");
    let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["serve", "-t1", "-l"])
        .arg(format!("unix:{}", socket.display()))
        .args(["--", &server()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(terminal)
        .spawn()
        .unwrap();
    let shown = Arc::new(Mutex::new(String::new()));
    let of_thread = shown.clone();
    let reader = std::thread::spawn(move || {
        let (mut ours, mut piece) = (File::from(ours), [0; 4096]);
        // EIO when the other end is closed.
        while let Ok(n @ 1..) = ours.read(&mut piece) {
            let text = String::from_utf8_lossy(&piece[..n]);
            of_thread.lock().unwrap().push_str(&text);
        }
    });
    let shows = |what: &dyn Fn(&str) -> bool| {
        let start = Instant::now();
        while !what(&shown.lock().unwrap()) {
            assert!(start.elapsed() < ENOUGH, "{}", shown.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    shows(&|text| text.contains("listening on "));
    for _ in 0..5 {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("count 1\n"));
    }
    shows(&|text| text.contains("\r\x1b[K5/s") || text.contains("served 5"));
    shows(&|text| text.contains("forks 1 (1 idle)") && text.contains("p99 "));
    let id = child.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    let text = shown.lock().unwrap().clone();
    // It is gone at the end.
    assert!(
        text.trim_end_matches("\r\n").ends_with("\x1b[K") || text.ends_with('\n'),
        "{text:?}"
    );
}

#[test]
fn no_terminal_has_no_status_line() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1"]);
    assert_eq!(serving.get("/"), "count 1\n");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!serving.said().contains("p99"), "{}", serving.said());
}

#[test]
fn a_server_that_nobody_asks_has_no_forks() {
    kvm_or_skip!();
    for (kind, left) in [("-t2", 0.0), ("--no-reset", 1.0)] {
        let options = [kind, "--metrics=127.0.0.1:0", "--max-fork-idle-time=1"];
        let serving = Serving::simple(&options);
        let address: SocketAddr = serving.said_after("metrics at ").parse().unwrap();
        for round in 1..=3 {
            let count = if left > 0.0 { round } else { 1 };
            assert_eq!(serving.get("/"), format!("count {count}\n"), "{kind}");
            assert!(scrape(address)["forkvm_forks"] >= 1.0, "{kind}");
            if left == 0.0 {
                serving.wait("its forks to be given up", || {
                    scrape(address)["forkvm_forks"] == 0.0
                });
            } else {
                std::thread::sleep(Duration::from_millis(1200));
                assert_eq!(scrape(address)["forkvm_forks"], left, "{kind}");
            }
        }
        assert_eq!(scrape(address)["forkvm_forks_dropped_total"], 0.0);
    }
}
