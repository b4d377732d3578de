//! `--allow-net`: what programs reach outside, and what not.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod executing;
mod serving;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{guest_path, kvm_or_skip};
use executing::{exec as run, text};
use serving::{ENOUGH, Serving};

fn program() -> String {
    guest_path("linux/outside").to_str().unwrap().to_owned()
}

/// Has each connection served by a thread, and gives the port.
fn tcp(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    port.to_string()
}

/// Sends back what comes.
fn echo() -> String {
    tcp(|mut stream| {
        let mut other = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut other);
    })
}

/// Says nothing. The receiver gets what has come of each connection once it is over.
fn silent() -> (String, Receiver<Result<usize, std::io::ErrorKind>>) {
    let (sender, receiver) = channel();
    let port = tcp(move |mut stream| {
        let mut all = Vec::new();
        let end = stream.read_to_end(&mut all);
        let _ = sender.send(end.map_err(|error| error.kind()));
    });
    (port, receiver)
}

fn udp() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buf = [0; 65536];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..len], from);
        }
    });
    port.to_string()
}

/// Where nobody listens.
fn closed() -> String {
    // Of the ports that are not given out by chance.
    let free = (20_000..30_000).find(|&port| {
        TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
    });
    free.unwrap().to_string()
}

fn exec(flags: &[&str], arguments: &[&str]) -> Output {
    executing::exec(flags, program().as_ref(), arguments)
}

#[test]
fn what_is_named_is_reached_as_it_is_natively() {
    kvm_or_skip!();
    let bye = tcp(|mut stream| stream.write_all(b"bye").unwrap());
    let (silent, _ends) = silent();
    let ports = ["all", &echo(), &bye, &silent, &udp(), &closed()].map(str::to_owned);
    let native = Command::new(program()).args(&ports).output().unwrap();
    assert_eq!(native.status.code(), Some(0), "{}", text(&native.stdout));
    let arguments: Vec<&str> = ports.iter().map(String::as_str).collect();
    for flag in ["--allow-net=127.0.0.1", "--allow-net=localhost"] {
        let machine = exec(&[flag], &arguments);
        assert_eq!(
            text(&machine.stdout),
            text(&native.stdout),
            "{}",
            text(&machine.stderr)
        );
        assert_eq!(
            (text(&machine.stderr).as_str(), machine.status.code()),
            ("", Some(0))
        );
    }
}

#[test]
fn nothing_else_is_reached() {
    kvm_or_skip!();
    let port = echo();
    let four = format!("--allow-net=127.0.0.1:{port}");
    let denied = |flags: &[&str], address: &str, port: &str, shown: &str, errno: &str| {
        let output = exec(flags, &["try", address, port]);
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            said.matches(&format!("-1 {errno}\n")).count(),
            4,
            "{flags:?} {address}: {said}"
        );
        let flag = format!("--allow-net={shown} allows it");
        assert_eq!(
            told.matches(&flag).count(),
            1,
            "{flags:?} {address}: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    };
    for (address, shown) in [
        // The cloud's, and others that are near.
        ("169.254.169.254", "169.254.169.254:80"),
        ("fd00:ec2::254", "[fd00:ec2::254]:80"),
        ("::ffff:169.254.169.254", "169.254.169.254:80"),
        ("168.63.129.16", "168.63.129.16:80"),
        ("10.0.0.1", "10.0.0.1:80"),
        ("192.168.0.1", "192.168.0.1:80"),
        ("fe80::1", "[fe80::1]:80"),
        ("64:ff9b::7f00:1", "[64:ff9b::7f00:1]:80"),
        ("2002:7f00:1::", "[2002:7f00:1::]:80"),
        // All who are near, and what was never given out.
        ("255.255.255.255", "255.255.255.255:80"),
        ("224.0.0.1", "224.0.0.1:80"),
        ("ff02::1", "[ff02::1]:80"),
        ("0.1.2.3", "0.1.2.3:80"),
        ("::10.0.0.1", "[::a00:1]:80"),
    ] {
        denied(&["--allow-net"], address, "80", shown, "EACCES");
        denied(&[&four], address, "80", shown, "EACCES");
        denied(&[], address, "80", shown, "ENETUNREACH");
    }
    denied(
        &["--allow-net=*:443"],
        "1.1.1.1",
        "80",
        "1.1.1.1:80",
        "EACCES",
    );
    denied(&[&four], "1.1.1.1", "80", "1.1.1.1:80", "EACCES");
}

/// The program's own loopback is not the host's unless that is named.
#[test]
fn the_hosts_loopback_has_to_be_named() {
    kvm_or_skip!();
    let port = echo();
    let other = format!("--allow-net=127.0.0.1:{}", closed());
    for address in [
        "127.0.0.1",
        "0.0.0.0",
        "::ffff:0.0.0.0",
        "::ffff:127.0.0.1",
        "::1",
        "::",
    ] {
        for flag in ["--allow-net", "--allow-net=example.com", &other] {
            let output = exec(&[flag], &["try", address, &port]);
            let (said, told) = (text(&output.stdout), text(&output.stderr));
            assert!(
                said.contains("connect(fd, to, len): -1 ECONNREFUSED"),
                "{address} {flag}: {said}"
            );
            let shown = if address == "::1" || address == "::" {
                "[::1]"
            } else {
                "127.0.0.1"
            };
            let line = format!("--allow-net={shown}:{port} allows it");
            assert_eq!(told.matches(&line).count(), 1, "{address} {flag}: {told}");
        }
    }
    let named = format!("--allow-net=127.0.0.1:{port}");
    for address in ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"] {
        let output = exec(&[&named], &["try", address, &port]);
        let said = text(&output.stdout);
        assert!(
            said.starts_with("connect(fd, to, len): 0\n"),
            "{address}: {said}"
        );
        assert_eq!(text(&output.stderr), "");
    }
}

/// An empty file of hosts for the program, in a folder of its own, and the flag that gives it.
fn no_hosts(name: &str) -> (common::Folder, String) {
    let folder = common::Folder::new(name);
    let file = folder.0.join("hosts");
    std::fs::write(&file, "").unwrap();
    let flag = format!("--volume={}:/etc/hosts", file.display());
    (folder, flag)
}

#[test]
fn names_are_found_if_they_may_be() {
    kvm_or_skip!();
    let port = echo();
    // By the host's name service, since the program's file of hosts is empty; and by the file.
    let (_hosts, empty) = no_hosts("outside");
    let localhost = format!("--allow-net=localhost:{port}");
    for flags in [&[localhost.as_str(), &empty][..], &[&localhost]] {
        let output = exec(flags, &["name", "localhost", &port]);
        let said = text(&output.stdout);
        assert!(
            said.ends_with("\nnamed\n"),
            "{said} {}",
            text(&output.stderr)
        );
    }
    let output = exec(&[&localhost, &empty], &["name", "other.example", &port]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("--allow-net=other.example allows it"),
        "{told}"
    );
    // One that is allowed and not there.
    let output = exec(
        &["--allow-net=nowhere.invalid"],
        &["name", "nowhere.invalid", &port],
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "");
}

/// Names do not tell what is in the host's private network, or on the host.
#[test]
fn a_name_has_no_address_that_is_near() {
    kvm_or_skip!();
    let port = echo();
    let (_hosts, empty) = no_hosts("near");
    let output = exec(&["--allow-net", &empty], &["name", "localhost", &port]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let told = text(&output.stderr);
    assert!(
        told.contains("localhost has no public address")
            && told.contains("--allow-net=127.0.0.1 allows it"),
        "{told}"
    );
    let named = format!("--allow-net=*,127.0.0.1:{port}");
    let output = exec(&[&named, &empty], &["name", "localhost", &port]);
    let said = text(&output.stdout);
    assert!(
        said.ends_with("\nnamed\n"),
        "{said} {}",
        text(&output.stderr)
    );
}

#[test]
fn names_beneath_one_may_be_asked_for() {
    kvm_or_skip!();
    let ask = |name| {
        let output = exec(&["--allow-net=*.beneath.invalid"], &["name", name, "80"]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert_eq!(ask("a.b.beneath.invalid"), "");
    for other in ["beneath.invalid", "notbeneath.invalid"] {
        let flag = format!("--allow-net={other} allows it");
        assert!(ask(other).contains(&flag), "{other}");
    }
}

/// Of a peer that sends without end the host holds little, once the program reads no more.
#[test]
fn what_nobody_reads_is_not_taken() {
    const READ: usize = 64 << 20;
    const MOST: usize = 2 << 20;
    kvm_or_skip!();
    let (sender, receiver) = channel();
    let port = tcp(move |mut stream| {
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, 64 << 10).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut sent = 0;
        while let Ok(len @ 1..) = stream.write(&[b'x'; 64 << 10]) {
            sent += len;
        }
        let _ = sender.send(sent);
    });
    let output = exec(&["--allow-net=127.0.0.1", "--max-time=5"], &["deaf", &port]);
    assert_eq!(output.status.code(), Some(126), "{}", text(&output.stdout));
    let sent = receiver.recv_timeout(ENOUGH).unwrap();
    assert!((READ..READ + MOST).contains(&sent), "{sent}");
}

#[test]
fn python_fetches() {
    kvm_or_skip!();
    let port = tcp(|mut stream| {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).unwrap();
        let body = "x".repeat(3_000_000);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let script = format!(
        "import urllib.request as u; print(len(u.urlopen('http://127.0.0.1:{port}/').read()))"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args([
            "exec",
            "--allow-read=/usr",
            &format!("--allow-net=127.0.0.1:{port}"),
        ])
        .args(["--", "/usr/bin/python3", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "3000000\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn what_was_written_at_the_end_goes_out() {
    kvm_or_skip!();
    let (port, ends) = silent();
    let output = exec(&["--allow-net=127.0.0.1"], &["last", &port]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(ends.recv_timeout(ENOUGH), Ok(Ok(4 << 20)));
}

#[test]
fn a_peer_that_says_nothing_holds_nobody_beyond_the_time() {
    kvm_or_skip!();
    let (port, ends) = silent();
    let start = Instant::now();
    let output = exec(&["--allow-net=127.0.0.1", "--max-time=1"], &["hang", &port]);
    assert_eq!(output.status.code(), Some(126), "{}", text(&output.stdout));
    assert!(
        text(&output.stderr).contains("max_time"),
        "{}",
        text(&output.stderr)
    );
    assert!(start.elapsed() < ENOUGH);
    // Its end is the connection's.
    assert_eq!(ends.recv_timeout(ENOUGH), Ok(Ok(0)));
}

#[test]
fn connections_have_a_limit() {
    kvm_or_skip!();
    let output = exec(&["--allow-net=127.0.0.1"], &["many", &echo(), "1000"]);
    assert_eq!(text(&output.stdout), "held 128, refused some\n");
    let told = text(&output.stderr);
    assert_eq!(
        told.matches("too many connections to the outside").count(),
        1,
        "{told}"
    );
}

#[test]
fn forks_have_connections_of_their_own() {
    kvm_or_skip!();
    let (echo, (silent, ends)) = (echo(), silent());
    // Each of these ends, too, when its fork is reset, whose program still holds it.
    let (held, held_ends) = {
        let (sender, receiver) = channel();
        let port = tcp(move |mut stream| {
            let mut byte = [0; 4];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
            let _ = sender.send(stream.read(&mut byte).map_err(|error| error.kind()));
        });
        (port, receiver)
    };
    let flags = ["-t2", "--allow-net=127.0.0.1", "--max-request-time=2"];
    let allowed = format!("--allow-read={}", program());
    let flags = [&flags[..], &[&allowed]].concat();
    let serving = Serving::start(&flags, &[&program(), "serve", &echo, &silent]);
    for _ in 0..20 {
        assert_eq!(serving.get("/echo"), "ping");
    }
    let holding = Serving::start(&flags, &[&program(), "serve", &held, &silent]);
    for _ in 0..5 {
        assert_eq!(holding.get("/hold"), "ping");
        assert_eq!(held_ends.recv_timeout(ENOUGH), Ok(Ok(0)));
    }
    // Nor is anything of the host's left of them.
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", holding.id()))
            .unwrap()
            .count()
    };
    let before = open();
    for _ in 0..30 {
        assert_eq!(holding.get("/hold"), "ping");
    }
    holding.wait("what the forks had is closed", || open() <= before + 2);
    // One that waits for a peer that says nothing is over at its time, and its connection with it.
    assert_eq!(serving.get("/hang"), "");
    assert_eq!(ends.recv_timeout(ENOUGH), Ok(Ok(4)));
    serving.has_said("max_request_time");
    assert_eq!(serving.get("/echo"), "ping");
}

#[test]
fn no_connection_is_frozen() {
    kvm_or_skip!();
    let (echo, (silent, _ends)) = (echo(), silent());
    let arguments = [&program(), "serve", &echo, &silent, "kept"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let allowed = format!("--allow-read={}", program());
    let flags = ["-t1", "--allow-net=127.0.0.1", &allowed];
    let output = serving::command(&flags, &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    let words = format!("the program is connected to 127.0.0.1:{echo} when it waits");
    assert!(
        told.contains(&words) && told.contains("--drop-connections"),
        "{told}"
    );
    let serving = Serving::start(&[&flags[..], &["--drop-connections"]].concat(), &arguments);
    for _ in 0..3 {
        assert_eq!(serving.get("/kept"), "ECONNRESET");
        assert_eq!(serving.get("/echo"), "ping");
    }
}

/// While a request waits for its peer, another one is served.
#[test]
fn waiting_for_a_peer_takes_no_processor() {
    kvm_or_skip!();
    let (echo, (silent, _ends)) = (echo(), silent());
    let allowed = format!("--allow-read={}", program());
    let flags = [
        "-t2",
        "--allow-net=127.0.0.1",
        &allowed,
        "--max-request-time=10",
    ];
    let serving = Serving::start(&flags, &[&program(), "serve", &echo, &silent]);
    let _waits = serving.ask(b"GET /hang HTTP/1.1\r\n\r\n");
    assert_eq!(serving.get("/echo"), "ping");
    let before = serving.ticks();
    std::thread::sleep(Duration::from_secs(1));
    // A hundred would be one processor's.
    assert!(serving.ticks() - before < 50);
}

/// Where a program may listen, which is everywhere unless something is named.
#[test]
fn a_program_listens_where_it_may() {
    kvm_or_skip!();
    let listens = |flags: &[&str]| run(flags, &guest_path("linux/listens"), &[]);
    let everywhere = listens(&[]);
    assert_eq!(text(&everywhere.stderr), "");
    assert!(!text(&everywhere.stdout).contains("EACCES"));
    for all in ["--allow-listen", "--allow-listen=*", "--allow-all"] {
        assert_eq!(text(&listens(&[all]).stdout), text(&everywhere.stdout));
    }
    let output = listens(&["--allow-listen=8000"]);
    let expected = [
        "tcp 127.0.0.1 8000: bound, listens",
        "tcp ::1 8000: bound, listens",
        "tcp 0.0.0.0 8001: EACCES",
        "tcp 127.0.0.1 8001: EACCES",
        "tcp 127.0.0.1 0: bound, EACCES",
        "udp 127.0.0.1 8000: bound",
        "udp 127.0.0.1 8001: EACCES",
        "udp 0.0.0.0 0: bound",
        "listen(unbound, 5): -1 EACCES",
        "bind(local, (void *)&path, sizeof path): 0",
        "listen(local, 5): 0",
        "unlink(\"/tmp/listens\"): 0",
        "0 failed\n",
    ];
    assert_eq!(text(&output.stdout), expected.join("\n"));
    let said = text(&output.stderr);
    let line =
        "the program may not listen at 0.0.0.0:8001: --allow-listen=0.0.0.0:8001 would allow it\n";
    assert!(said.contains(line), "{said}");
    // As it says.
    let output = listens(&["--allow-listen=8000,0.0.0.0:8001"]);
    assert!(text(&output.stdout).contains("tcp 0.0.0.0 8001: bound, listens\n"));
    let output = listens(&["--allow-listen=[::1]:8000"]);
    assert!(
        text(&output.stdout)
            .starts_with("tcp 127.0.0.1 8000: EACCES\ntcp ::1 8000: bound, listens\n")
    );
    let output = listens(&["--allow-listen=localhost:80"]);
    assert!(text(&output.stderr).contains("give a port, an address"));
}
