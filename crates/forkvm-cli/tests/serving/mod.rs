//! `forkvm serve` with a server in it, for tests.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// No test waits longer for anything.
pub const ENOUGH: Duration = Duration::from_secs(120);

/// The command, and the program in it. Ended when dropped.
pub struct Serving {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Serving {
    /// With these options, and this program after `--`.
    pub fn start(options: &[&str], program: &[&str]) -> Self {
        Self::begin(
            Command::new(env!("CARGO_BIN_EXE_forkvm"))
                .args(["serve", "--listen=127.0.0.1:0"])
                .args(options)
                .arg("--")
                .args(program),
        )
    }

    /// `forkvm serve`, as it is to be run.
    pub fn begin(command: &mut Command) -> Self {
        let mut child = command
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
            if line.starts_with("forkvm: ready") {
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

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        stream
    }

    /// What comes back for a request, up to the end of the connection.
    pub fn answer(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset has answered nothing more.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn get(&self, path: &str) -> String {
        let answer = self.answer(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes());
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }

    /// All that the command has said so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn has_said(&self, what: &str) {
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
