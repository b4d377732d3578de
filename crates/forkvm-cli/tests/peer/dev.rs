//! A running `forkvm dev`, as tests talk to it.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A running `forkvm dev`, with a program file of its own.
pub struct Dev {
    child: Child,
    pub address: String,
    pub folder: PathBuf,
    errors: Arc<Mutex<String>>,
}

impl Dev {
    pub fn start(test: &str, guest: &Path, arguments: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("forkvm-dev-{}-{test}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let program = folder.join("program");
        std::fs::copy(guest, &program).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["dev", "--port", "0", "--max-boot-time", "600"])
            .args(arguments)
            .arg(&program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = Arc::new(Mutex::new(String::new()));
        let (mut stderr, collected) = (child.stderr.take().unwrap(), errors.clone());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..n]);
                collected.lock().unwrap().push_str(&text);
            }
        });
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().trim_end_matches('/').rsplit('/').next();
        Self {
            address: address.unwrap().to_owned(),
            child,
            folder,
            errors,
        }
    }

    /// Another file in the place of the program's, as a build leaves it.
    pub fn replace(&self, with: &[u8]) {
        let new = self.folder.join("new");
        std::fs::write(&new, with).unwrap();
        std::fs::rename(&new, self.folder.join("program")).unwrap();
    }

    /// A whole response to a request that is sent as it is.
    pub fn send(&self, request: &[u8]) -> String {
        String::from_utf8_lossy(&self.send_for_bytes(request)).into_owned()
    }

    pub fn send_for_bytes(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        // Who refuses a body may close before it has it all.
        let _ = stream.write_all(request);
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        response
    }

    pub fn request(&self, method: &str, url: &str, headers: &str, body: &[u8]) -> String {
        let head = format!(
            "{method} {url} HTTP/1.1\r\nHost: dev.example\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat())
    }

    pub fn get(&self, url: &str) -> String {
        self.request("GET", url, "", b"")
    }

    /// Waits until this is said on the terminal.
    pub fn await_error(&self, text: &str) {
        self.wait(text, || self.errors.lock().unwrap().contains(text));
    }

    pub fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !done() {
            let errors = self.errors.lock().unwrap();
            assert!(Instant::now() < end, "{what}: {errors}");
            drop(errors);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

pub fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}

pub fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
