//! `forkvm serve`: the limits of connections, and the end.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::kvm_or_skip;
use serving::{ENOUGH, Serving, command, one_answer, rest, server};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n";

/// Whether the other end has closed.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
    }
}

#[test]
fn what_is_under_way_comes_to_its_end() {
    kvm_or_skip!();
    for options in [&["-t2"][..], &["-t2", "--per-request"]] {
        let mut serving = Serving::simple(options);
        let slow = b"GET /drip HTTP/1.1\r\nHost: t\r\n\r\n";
        let mut under_way = serving.ask(slow);
        let mut first = [0; 17];
        under_way.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK\r\n");
        // This one has been answered, and says nothing more.
        let mut silent = serving.ask(b"GET /stay HTTP/1.1\r\nHost: t\r\n\r\n");
        assert!(one_answer(&silent).ends_with("count 1\n"));
        // These have sent nothing.
        let idle: Vec<_> = (0..20).map(|_| serving.connect()).collect();
        serving.signal("TERM");
        serving.wait("no new connections", || {
            TcpStream::connect(serving.address).is_err()
        });
        // Both but the one under way are let go.
        assert_eq!(rest(&mut silent), "");
        for mut stream in idle {
            assert_eq!(rest(&mut stream), "");
        }
        let mut piece = [0; 50];
        under_way.read_exact(&mut piece).unwrap();
        assert!(serving.runs());
        drop(under_way);
        let status = serving.ended();
        assert!(status.success(), "{status}: {}", serving.said());
        assert!(!serving.said().contains("are cut"), "{}", serving.said());
    }
}

#[test]
fn what_does_not_end_is_cut() {
    kvm_or_skip!();
    let mut serving = Serving::simple(&["--max-stop-time=1"]);
    let mut hanging = serving.ask(b"GET /hang HTTP/1.1\r\n\r\n");
    // Another one is served, so that one has its fork.
    assert_eq!(serving.get("/"), "count 1\n");
    serving.signal("INT");
    assert!(serving.ended().success());
    serving.has_said("1 connections are cut: they took longer than 1s (max_stop_time)");
    assert_eq!(rest(&mut hanging), "");

    let mut serving = Serving::simple(&["--max-stop-time=3600"]);
    let _hanging = serving.ask(b"GET /hang HTTP/1.1\r\n\r\n");
    assert_eq!(serving.get("/"), "count 1\n");
    serving.signal("TERM");
    serving.wait("no new connections", || {
        TcpStream::connect(serving.address).is_err()
    });
    assert!(serving.runs());
    serving.signal("TERM");
    assert!(serving.ended().success());
    serving.has_said("a second signal");
}

#[test]
fn the_end_comes_also_while_it_boots() {
    kvm_or_skip!();
    let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["serve", "--", "/bin/sleep", "1000"])
        .spawn()
        .unwrap();
    // Before its handlers are there the signal ends it as well, by itself.
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn calls_that_are_missing_are_named_at_the_end() {
    kvm_or_skip!();
    let mut serving = Serving::simple(&["-t1"]);
    assert_eq!(serving.get("/missing"), "count 1\n");
    assert!(!serving.said().contains("io_uring_setup"));
    serving.signal("TERM");
    assert!(serving.ended().success());
    let names =
        serving.said_after("system calls that are not supported (the program got ENOSYS): ");
    assert!(names.contains("io_uring_setup"), "{names}");
}

#[test]
fn a_connection_has_a_time_as_a_whole() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--max-time=1"]);
    let mut dripping = serving.ask(b"GET /drip HTTP/1.1\r\n\r\n");
    let answer = rest(&mut dripping);
    assert!(answer.contains("drop\ndrop\n"), "{answer}");
    assert_eq!(serving.get("/"), "count 1\n");
    // One that computes, and one that trickles in.
    assert_eq!(rest(&mut serving.ask(b"GET /spin HTTP/1.1\r\n\r\n")), "");
    let mut trickling = serving.connect();
    while trickling.write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(serving.get("/"), "count 1\n");

    let serving = Serving::simple(&["-t1", "--max-time=1", "--per-request"]);
    let dripping = b"GET /drip HTTP/1.1\r\nHost: t\r\n\r\n";
    let answer = serving.answer(dripping);
    assert!(answer.contains("drop\n"), "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    let answer = serving.answer(b"GET /spin HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert_eq!(serving.get("/"), "count 1\n");
}

#[test]
fn an_answer_that_nobody_takes_has_its_time() {
    kvm_or_skip!();
    for options in [
        &["-t1", "--max-time=1"][..],
        &["-t1", "--max-time=1", "--per-request"],
    ] {
        let serving = Serving::simple(options);
        let mut deaf = serving.ask(b"GET /big HTTP/1.1\r\nHost: t\r\n\r\n");
        serving.wait("its fork", || serving.get("/") == "count 1\n");
        // What the kernel has of it still comes, and then its end.
        let answer = rest(&mut deaf);
        assert!(answer.len() < 16 << 20, "{}", answer.len());
    }
}

#[test]
fn who_finds_no_place_is_turned_away() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--backlog=0", "--max-request-time=60"]);
    let hanging = serving.ask(b"GET /stay HTTP/1.1\r\n\r\n");
    assert!(one_answer(&hanging).ends_with("count 1\n"));
    assert_eq!(serving.answer(GET), "");
    drop(hanging);
    serving.wait("a fork", || serving.get("/") == "count 1\n");

    let serving = Serving::simple(&["-t1", "--backlog=0", "--per-request"]);
    let mut dripping = serving.ask(b"GET /drip HTTP/1.1\r\nHost: t\r\n\r\n");
    dripping.read_exact(&mut [0; 20]).unwrap();
    let busy = serving.connect();
    for _ in 0..3 {
        (&busy).write_all(GET).unwrap();
        let answer = one_answer(&busy);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.to_lowercase().contains("\r\nretry-after: 1\r\n"),
            "{answer}"
        );
    }
    drop(dripping);
    // The same connection is served when there is a fork.
    serving.wait("a fork", || {
        (&busy).write_all(GET).unwrap();
        one_answer(&busy).ends_with("count 1\n")
    });
}

#[test]
fn who_waits_for_too_long_is_turned_away() {
    kvm_or_skip!();
    let serving = Serving::simple(&[
        "-t1",
        "--max-request-time=1",
        "--max-idle-time=60",
        "--per-request",
    ]);
    let mut dripping = serving.ask(b"GET /drip HTTP/1.1\r\nHost: t\r\n\r\n");
    dripping.read_exact(&mut [0; 20]).unwrap();
    let waiting = serving.ask(GET);
    std::thread::sleep(Duration::from_millis(1200));
    drop(dripping);
    let answer = one_answer(&waiting);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[test]
fn a_body_that_is_slow_to_begin_holds_no_fork() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--per-request", "--max-time=5"]);
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    let mut slow = serving.ask(&post(4));
    slow.write_all(b"xx").unwrap();
    let never = serving.ask(&post(4));
    let start = Instant::now();
    assert_eq!(serving.get("/"), "count 1\n");
    if start.elapsed() < Duration::from_secs(4) {
        slow.write_all(b"xx").unwrap();
        assert!(one_answer(&slow).ends_with("count 1 bytes 4 sum 480\n"));
    }
    // One that does not come at all is told so.
    let answer = one_answer(&never);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // Long ones are whole, in pieces and in one; and so are those whose length is not told before.
    let mut long = serving.ask(&post(1 << 20));
    for _ in 0..64 {
        long.write_all(&[b'x'; 1 << 14]).unwrap();
    }
    let expected = format!("count 1 bytes {} sum {}\n", 1 << 20, 120 << 20);
    let answer = one_answer(&long);
    assert!(answer.ends_with(&expected), "{answer}");
    let chunked = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n1\r\nx\r\n0\r\n\r\n";
    let answer = one_answer(&serving.ask(chunked));
    assert!(answer.ends_with("count 1 bytes 3 sum 360\n"), "{answer}");
    // Who expects to be told to go on is told.
    let careful = serving
        .ask(b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert!(one_answer(&careful).starts_with("HTTP/1.1 100 "));
    (&careful).write_all(b"xx").unwrap();
    assert!(one_answer(&careful).ends_with("count 1 bytes 2 sum 240\n"));
}

#[test]
fn a_thousand_idle_connections_hold_no_fork() {
    kvm_or_skip!();
    for options in [&["-t1"][..], &["-t1", "--per-request"]] {
        let mut command = command(options, &[&server()]);
        let serving = Serving::spawn(&mut command);
        let idle: Vec<_> = (0..1000).map(|_| serving.connect()).collect();
        for _ in 0..20 {
            assert_eq!(serving.get("/"), "count 1\n");
        }
        // All are still there, and served if they ask.
        for stream in idle.iter().step_by(100) {
            let mut stream = stream;
            stream.write_all(GET).unwrap();
            assert!(one_answer(stream).ends_with("count 1\n"));
        }
    }
}

#[test]
fn a_new_connection_takes_the_place_of_the_one_that_is_silent_for_longest() {
    kvm_or_skip!();
    for options in [
        &["-t1", "--max-connections=50"][..],
        &["-t1", "--max-connections=50", "--per-request"],
    ] {
        let serving = Serving::simple(options);
        let mut idle: Vec<_> = (0..50).map(|_| serving.connect()).collect();
        // Heads that do not end are no better, nor are bodies.
        if options.len() > 2 {
            for stream in &mut idle[..10] {
                stream.write_all(b"GET / HT").unwrap();
            }
            for stream in &mut idle[10..45] {
                let post = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nx";
                stream.write_all(post).unwrap();
            }
        }
        let others: Vec<_> = (0..30).map(|_| serving.connect()).collect();
        for _ in 0..30 {
            assert_eq!(serving.get("/"), "count 1\n");
        }
        drop(others);
        serving.wait("the oldest to be closed", || is_closed(&mut idle[0]));
        assert!(!is_closed(&mut idle[49]), "{options:?}");
    }
}

#[test]
fn few_descriptors_are_few_connections() {
    kvm_or_skip!();
    // Soft limits are raised; hard ones are not ours to raise.
    let with_limit = |limit: &str, options: &str| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "ulimit -Sn 64; ulimit -Hn {limit}; exec {} serve -l 127.0.0.1:0 {options} -- {}",
            env!("CARGO_BIN_EXE_forkvm"),
            server()
        ));
        command
    };
    let serving = Serving::spawn(&mut with_limit("400", "-t1"));
    serving.has_said(
        "connections at once, not 16384, since the process may have 400 file descriptors",
    );
    let idle: Vec<_> = (0..300)
        .filter_map(|_| TcpStream::connect(serving.address).ok())
        .collect();
    for _ in 0..10 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
    drop(idle);
    assert!(!serving.said().contains("accepting"), "{}", serving.said());
    let refused = with_limit("200", "-t1").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("200 file descriptors are too few"), "{text}");
}

#[test]
fn clients_of_http_may_be_clumsy_or_hostile() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t1", "--per-request", "--max-idle-time=3"]);
    // A request by bytes, another that never ends, and one with no end of headers.
    let slow = serving.connect();
    let start = Instant::now();
    let (mut refused, mut answered) = (0, 0);
    let mut flood = serving.connect();
    flood.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n").unwrap();
    for n in 0..100_000 {
        if flood.write_all(format!("h{n}: v\r\n").as_bytes()).is_err() {
            break;
        }
        refused += 1;
    }
    assert!(refused < 100_000);
    let answer =
        serving.answer(&[b"GET /".as_slice(), &[b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat());
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    // Pipelined requests are answered in their order, each in a fork of its own.
    let mut pipelined = Vec::new();
    for n in 0..50 {
        let end = if n == 49 { "Connection: close\r\n" } else { "" };
        pipelined.extend(
            format!(
                "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {n}\r\n{end}\r\n{}",
                "x".repeat(n)
            )
            .into_bytes(),
        );
    }
    let answers = serving.answer(&pipelined);
    for n in 1..50 {
        let text = format!("count 1 bytes {n} sum {}\n", 120 * n);
        answered += usize::from(answers.contains(&text));
    }
    assert_eq!(answered, 49, "{answers}");
    // Who has said all may close that half.
    let mut half = serving.ask(GET);
    half.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut half).ends_with("count 1\n"));
    // A body whose length is told twice is none.
    let two = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /exit HTTP/1.1\r\n\r\n";
    let answer = serving.answer(two);
    assert!(!answer.contains("502"), "{answer}");
    // The one that drips is closed in time.
    let mut slow = slow;
    while start.elapsed() < ENOUGH && slow.write_all(b"G").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() < ENOUGH);
    assert_eq!(serving.get("/"), "count 1\n");
}
