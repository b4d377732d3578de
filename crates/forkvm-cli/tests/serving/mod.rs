//! A running `forkvm serve`, as tests talk to it.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::guest_path;

/// No test waits longer for anything.
pub const ENOUGH: Duration = Duration::from_secs(120);

/// The command, and the program in it. Ended when dropped.
pub struct Serving {
    child: Child,
    pub address: SocketAddr,
    said: Arc<Mutex<String>>,
}

/// What the tests' own server is called.
pub fn server() -> String {
    guest_path("linux/server").to_str().unwrap().to_owned()
}

/// The command with these arguments, on a port of its own.
pub fn command(options: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["serve", "--listen=127.0.0.1:0"])
        .args(options)
        .arg("--")
        .args(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

impl Serving {
    /// A program of the host's.
    pub fn start(options: &[&str], program: &[&str]) -> Self {
        Self::spawn(&mut command(options, program))
    }

    /// The tests' own server.
    pub fn simple(options: &[&str]) -> Self {
        Self::start(options, &[&server()])
    }

    /// A command that says where it listens.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        while address.is_none() {
            let Some(Ok(line)) = lines.next() else {
                panic!("it ended: {}", said.lock().unwrap());
            };
            if line.contains("listening on ") {
                let text = line.rsplit(' ').next().unwrap();
                // One that listens at a path only has none.
                address = Some(text.parse().unwrap_or(([0, 0, 0, 0], 0).into()));
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

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        stream
    }

    /// A connection on which this has been sent.
    pub fn ask(&self, request: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream
    }

    /// What comes back for a request, up to the end of the connection.
    pub fn answer(&self, request: &[u8]) -> String {
        rest(&mut self.ask(request))
    }

    /// An answer's body.
    pub fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        let answer = self.answer(request.as_bytes());
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }

    /// What it has said so far on standard error.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it says this.
    #[track_caller]
    pub fn has_said(&self, what: &str) {
        self.wait(what, || self.said().contains(what));
    }

    /// What follows this on its line, which it has said or will say.
    #[track_caller]
    pub fn said_after(&self, what: &str) -> String {
        self.has_said(what);
        let said = self.said();
        let (_, rest) = said.split_once(what).unwrap();
        rest.lines().next().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < ENOUGH, "{what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it a signal, by the shell's own kill: no library is needed for it.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Time that it has spent on processors, in hundredths of a second (proc(5)).
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < ENOUGH, "it goes on: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it goes on.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.runs() {
            let id = self.child.id().to_string();
            let _ = Command::new("kill").arg(&id).status();
            if std::thread::panicking() {
                // It may be what does not end.
                let _ = self.child.kill();
            }
        }
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "{status}: {}", self.said());
        }
    }
}

/// What comes up to the end of a connection.
pub fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is reset has answered nothing more.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// One answer with a length, on a connection that stays open.
pub fn one_answer(stream: &TcpStream) -> String {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        if reader.read_line(&mut answer).unwrap() == 0 {
            return answer;
        }
    }
    let length = answer
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    answer + &String::from_utf8_lossy(&body)
}
