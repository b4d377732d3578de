//! `forkvm serve` under a service manager: reloads, notifications, sockets that are passed.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Folder, kvm_or_skip};
use serving::{ENOUGH, Serving, rest, server};

/// A file that names the program, and what it is to call itself.
fn write_config(file: &Path, name: &str, program: &str) {
    let text = format!("forks = 2\nenv = ['NAME={name}']\nprogram = ['{program}']\n");
    std::fs::write(file, text).unwrap();
}

fn start(file: &Path, options: &[&str]) -> Serving {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["serve", "-l127.0.0.1:0", "--config", file.to_str().unwrap()])
        .args(options);
    Serving::spawn(&mut command)
}

#[test]
fn a_new_program_takes_the_place_of_the_old_one() {
    kvm_or_skip!();
    for options in [&[][..], &["--per-request"]] {
        let folder = Folder::new(&format!("reload-{}", options.len()));
        let file = folder.0.join("forkvm.toml");
        let program = folder.0.join("program");
        std::fs::copy(server(), &program).unwrap();
        write_config(&file, "1", program.to_str().unwrap());
        let serving = start(&file, options);
        assert_eq!(serving.get("/name"), "1\n");
        let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            // No client is turned away, and none sees an older program than it has seen already.
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 1;
                    while !over.load(Ordering::Relaxed) {
                        let name = serving.get("/name");
                        let number: usize = name.trim().parse().unwrap_or_else(|_| {
                            over.store(true, Ordering::Relaxed);
                            panic!("{name:?}: {}", serving.said());
                        });
                        assert!(number >= last, "{number} after {last}");
                        last = number;
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for number in 2..=5 {
                // The file is another one, as a new build's is.
                let new = folder.0.join("new");
                std::fs::copy(server(), &new).unwrap();
                std::fs::rename(&new, &program).unwrap();
                write_config(&file, &number.to_string(), program.to_str().unwrap());
                serving.signal("HUP");
                let expected = format!("{number}\n");
                serving.wait("the new program", || serving.get("/name") == expected);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(asked.into_inner() > 20);
    }
}

#[test]
fn what_was_under_way_stays_with_the_old_program() {
    kvm_or_skip!();
    let folder = Folder::new("reload-under-way");
    let file = folder.0.join("forkvm.toml");
    write_config(&file, "old", &server());
    let serving = start(&file, &[]);
    let mut dripping = serving.ask(b"GET /drip HTTP/1.1\r\n\r\n");
    dripping.read_exact(&mut [0; 50]).unwrap();
    write_config(&file, "new", &server());
    serving.signal("HUP");
    serving.has_said("the new program is in place");
    assert_eq!(serving.get("/name"), "new\n");
    dripping.read_exact(&mut [0; 200]).unwrap();
}

#[test]
fn a_program_that_does_not_boot_changes_nothing() {
    kvm_or_skip!();
    let folder = Folder::new("reload-failed");
    let file = folder.0.join("forkvm.toml");
    write_config(&file, "1", &server());
    let serving = start(&file, &["--max-boot-time=20"]);
    for (text, words) in [
        ("program = ['/bin/true']".to_owned(), "ended with status 0"),
        (
            "program = ['/no/such/program']".to_owned(),
            "/no/such/program",
        ),
        (
            format!("forkz = 1\nprogram = ['{}']", server()),
            "is `forks` meant?",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        serving.signal("HUP");
        serving.has_said(words);
        serving.has_said("the program before goes on");
        assert_eq!(serving.get("/name"), "1\n");
    }
    // What can't change says so.
    std::fs::write(
        &file,
        format!(
            "max-connections = 7\nenv = ['NAME=2']\nprogram = ['{}']",
            server()
        ),
    )
    .unwrap();
    serving.signal("HUP");
    serving.has_said("max-connections stays as it is until the next start");
    serving.wait("the new program", || serving.get("/name") == "2\n");
}

/// What comes to a service manager's socket next.
fn notified(socket: &UnixDatagram) -> String {
    let mut buf = [0; 4096];
    let n = socket.recv(&mut buf).unwrap();
    String::from_utf8(buf[..n].to_vec()).unwrap()
}

#[test]
fn a_service_manager_is_told() {
    kvm_or_skip!();
    let folder = Folder::new("notify");
    let socket = UnixDatagram::bind(folder.0.join("notify")).unwrap();
    socket.set_read_timeout(Some(ENOUGH)).unwrap();
    let mut command = serving::command(&["-t1"], &[&server()]);
    command.env("NOTIFY_SOCKET", folder.0.join("notify"));
    let mut serving = Serving::spawn(&mut command);
    assert_eq!(notified(&socket).trim(), "READY=1");
    serving.signal("HUP");
    let reloading = notified(&socket);
    assert!(reloading.contains("RELOADING=1\n"), "{reloading}");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(notified(&socket).trim(), "READY=1");
    serving.signal("TERM");
    assert_eq!(notified(&socket).trim(), "STOPPING=1");
    assert!(serving.ended().success());
}

/// `forkvm serve` with these sockets, as sd_listen_fds(3) says they are passed.
fn with_sockets(sockets: &[std::os::fd::BorrowedFd<'_>], options: &str) -> Command {
    // A shell puts them at 3 and after, and knows the number of the process that it becomes.
    let mut moves = String::new();
    let mut kept = Vec::new();
    for (number, socket) in sockets.iter().enumerate() {
        let copy = rustix::io::dup(socket).unwrap();
        rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).unwrap();
        let from = std::os::fd::AsRawFd::as_raw_fd(&copy);
        moves += &format!("exec {}<&{from}; ", 3 + number);
        kept.push(copy);
    }
    // They are to be open until the child has them.
    std::mem::forget(kept);
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!(
        "{moves} export LISTEN_PID=$$ LISTEN_FDS={}; exec {} serve {options} -- {}",
        sockets.len(),
        env!("CARGO_BIN_EXE_forkvm"),
        server()
    ));
    command
}

#[test]
fn sockets_are_taken_over() {
    use std::os::fd::AsFd;
    kvm_or_skip!();
    let folder = Folder::new("activation");
    let path = folder.0.join("socket");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let address = tcp.local_addr().unwrap();
    // A client may knock before anybody is there.
    let mut early = TcpStream::connect(address).unwrap();
    early.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut serving = Serving::spawn(&mut with_sockets(&[tcp.as_fd(), unix.as_fd()], "-t1"));
    serving.has_said(&format!("listening on {address}, unix:{}", path.display()));
    assert!(rest(&mut early).ends_with("count 1\n"));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("count 1\n"), "{answer}");
    serving.signal("TERM");
    assert!(serving.ended().success());
    // They are the manager's: still there for the next one.
    assert!(path.exists());
    let mut waiting = TcpStream::connect(address).unwrap();
    waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _next = Serving::spawn(&mut with_sockets(&[tcp.as_fd()], "-t1"));
    assert!(rest(&mut waiting).ends_with("count 1\n"));
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    use std::os::fd::AsFd;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let output = with_sockets(&[socket.as_fd()], "-t1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the service manager's socket 0"), "{text}");
}
