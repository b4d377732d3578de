//! `forkvm serve`: unmodified servers, each connection in a fork of its own.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{Folder, guest_path, kvm_or_skip};

/// No test waits longer for anything.
const ENOUGH: Duration = Duration::from_secs(120);

/// The command, and the program in it. Ended when dropped.
struct Serving {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Serving {
    fn start(options: &[&str], program: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["serve", "--listen=127.0.0.1:0"])
            .args(options)
            .arg("--")
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        while address.is_none() {
            let Some(Ok(line)) = lines.next() else {
                panic!("it ended: {}", said.lock().unwrap());
            };
            if line.contains("listening on ") {
                let text = line.rsplit(' ').next().unwrap();
                address = Some(text.parse().unwrap());
            }
            said.lock().unwrap().push_str(&format!("{line}\n"));
        }
        let rest = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                rest.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self {
            child,
            address: address.unwrap(),
            said,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        stream
    }

    /// What comes back for a request, up to the end of the connection.
    fn answer(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset has answered nothing more.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        let answer = self.answer(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes());
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }

    #[track_caller]
    fn has_said(&self, what: &str) {
        let start = Instant::now();
        while !self.said.lock().unwrap().contains(what) {
            assert!(start.elapsed() < ENOUGH, "{}", self.said.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // SIGTERM by the shell's own kill: no library is needed for it.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").arg(id).status();
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "{status}: {}", self.said.lock().unwrap());
        }
    }
}

fn server() -> PathBuf {
    guest_path("linux/server")
}

fn simple(options: &[&str]) -> Serving {
    Serving::start(options, &[server().to_str().unwrap()])
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
        let serving = Serving::start(&["-t2"], &[server.to_str().unwrap(), "8000", how]);
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
        let mut answer = String::new();
        let mut reader = BufReader::new(&mut stream);
        while !answer.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut answer).unwrap() > 0, "{answer}");
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let mut text = String::new();
        reader.read_line(&mut text).unwrap();
        let expected = if n == 0 {
            "count 1\n".into()
        } else {
            format!("count 1 bytes {} sum {}\n", body.len(), body.len() * 120)
        };
        assert_eq!(text, expected);
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
    let server = server.to_str().unwrap();
    for (program, words) in [
        (&["/bin/true"][..], "ended with status 0"),
        (&["/bin/sleep", "100"], "max_boot_time"),
        (&["/no/such/program"], "/no/such/program"),
        (&[server, "8000", "helper"], "went on as its child"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["serve", "--max-boot-time=1", "--"])
            .args(program)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words), "{program:?}: {text}");
    }
}

#[test]
fn python_serves_a_folder() {
    kvm_or_skip!();
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        eprintln!("skipped: there is no {}", python.display());
        return;
    }
    let program = ["/usr/bin/python3", "-m", "http.server", "8000"];
    let folder = Folder::new("python");
    std::fs::write(folder.0.join("file"), "content").unwrap();
    let folder = folder.0.to_str().unwrap();
    let options = [
        "-t2",
        &format!("--cwd={folder}"),
        &format!("--allow-read={folder}"),
    ];
    let serving = Serving::start(&options, &program);
    for _ in 0..10 {
        assert_eq!(serving.get("/file"), "content");
    }
    assert!(serving.get("/none").contains("404"));
}
