//! The other end of the command's connections: a server that notes what it gets, and answers what the test says.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What it calls itself.
pub const STAMP: &str = "00112233445566778899aabbccddeeff";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Method, target and version.
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    /// The values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The value of a header that is there once.
    pub fn header(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name}: {all:?}");
        all[0]
    }
}

/// What it does with a connection.
#[derive(Debug, Clone)]
pub enum Does {
    /// Reads the request, sends these bytes and closes. VERSION becomes the SHA-256 that the request has.
    Answers(Vec<u8>),
    /// Sends these bytes after the headers, and closes with the body unread.
    AnswersEarly(Vec<u8>),
    /// Reads the request and sends these bytes again and again, with this time between.
    Drips(Vec<u8>, Duration),
    /// Does not read, and stays.
    IgnoresIt,
    /// Reads so many bytes of the request and closes.
    Leaves(usize),
}

/// The server.
pub struct Peer {
    address: SocketAddr,
    noted: Arc<Noted>,
}

/// What came so far.
#[derive(Default)]
struct Noted {
    /// Requests with a body, or without an answer.
    received: Mutex<Vec<Received>>,
    /// The question that comes before an update, and is always answered.
    asked: Mutex<Vec<Received>>,
}

impl Peer {
    pub fn start(does: Does) -> Self {
        let list =
            format!(r#"{{"tenant": "x.com", "node": "{STAMP}", "running": null, "versions": []}}"#);
        Self::with_answer(response(200, "application/json", &list), does)
    }

    /// One that answers GET so.
    pub fn with_answer(answer: Vec<u8>, does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let noted = Arc::new(Noted::default());
        let of_thread = noted.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // The command may leave at any time; then there is nothing to do.
                let _ = serve(stream.unwrap(), &answer, &does, &of_thread);
            }
        });
        Self { address, noted }
    }

    /// One that answers with a status and a JSON body.
    pub fn json(status: u16, body: &str) -> Self {
        Self::start(Does::Answers(response(status, "application/json", body)))
    }

    /// One that takes every program.
    pub fn willing() -> Self {
        Self::json(
            201,
            r#"{"tenant": "x.com", "version": "VERSION", "previous": null, "bytes": 1, "boot_ms": 3, "ready_ms": 34}"#,
        )
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.noted.received.lock().unwrap().clone()
    }

    /// The questions so far.
    pub fn asked(&self) -> Vec<Received> {
        self.noted.asked.lock().unwrap().clone()
    }

    /// The only request.
    pub fn only(&self) -> Received {
        let mut all = self.received();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

/// A response with its length.
pub fn response(status: u16, content_type: &str, body: &str) -> Vec<u8> {
    // VERSION is replaced by 64 digits.
    let len = body.len() + body.matches("VERSION").count() * (64 - "VERSION".len());
    format!(
        "HTTP/1.1 {status} Text\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

fn serve(mut stream: TcpStream, answer: &[u8], does: &Does, noted: &Noted) -> std::io::Result<()> {
    let mut first = [0];
    if !matches!(does, Does::IgnoresIt) && stream.peek(&mut first)? == 1 && first == *b"G" {
        let asked = receive(&stream, false)?;
        noted.asked.lock().unwrap().push(asked);
        return stream.write_all(answer);
    }
    let noted = &noted.received;
    match does {
        Does::Answers(bytes) => {
            let received = receive(&stream, true)?;
            let sha256 = received
                .all("x-sha256")
                .first()
                .copied()
                .unwrap_or_default();
            let bytes = replace(bytes, sha256);
            noted.lock().unwrap().push(received);
            stream.write_all(&bytes)
        }
        Does::AnswersEarly(bytes) => {
            let received = receive(&stream, false)?;
            noted.lock().unwrap().push(received);
            stream.write_all(bytes)
        }
        Does::Drips(bytes, time) => {
            let received = receive(&stream, true)?;
            noted.lock().unwrap().push(received);
            loop {
                stream.write_all(bytes)?;
                thread::sleep(*time);
            }
        }
        Does::IgnoresIt => loop {
            thread::park();
        },
        Does::Leaves(after) => stream.read_exact(&mut vec![0; *after]),
    }
}

fn replace(bytes: &[u8], version: &str) -> Vec<u8> {
    match str::from_utf8(bytes) {
        Ok(text) => text.replace("VERSION", version).into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

fn receive(stream: &TcpStream, with_body: bool) -> std::io::Result<Received> {
    // Without a buffer that would read on into the body.
    let mut reader = BufReader::with_capacity(1, stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        std::io::Result::Ok(line.trim_end_matches("\r\n").to_owned())
    };
    let mut received = Received {
        line: line()?,
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        received.headers.push((name.into(), value.into()));
    }
    if with_body {
        let len = received.header("content-length").parse().unwrap();
        received.body = vec![0; len];
        (&*stream).read_exact(&mut received.body)?;
    }
    Ok(received)
}
