//! A server on loopback. What it does with a request, the first part of its path says:
//!
//! /echo: the request, as it came; /body/N: N bytes; /chunked/N: the same without their length; /until-close/N: the same,
//! ended by the connection's end; /status/N; /to/N?URL: a redirect with that status; /loop: one to itself;
//! /hangs: nothing; /hangs-after/N: no more than N bytes of 1000; /hanging-redirect?URL; /endless: bytes without end; /bad-chunk;
//! /cut/N: N bytes of 1000, and the end; /closes: no answer; /leaves: an answer, and the end, without saying so; /junk: no HTTP;
//! /long-head: a head without end; /many-headers; /twice: 100 before the answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::RangeBounds;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ENOUGH;

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections that were made.
    pub connections: AtomicUsize,
    /// Those that are there.
    pub open: AtomicUsize,
    /// Requests whose heads came.
    pub requests: AtomicUsize,
    over: AtomicBool,
}

/// One. It ends with this.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

/// A stream of bytes to a client.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// What is made of an accepted connection.
pub type Wrap = Arc<dyn Fn(TcpStream) -> io::Result<Box<dyn Stream>> + Send + Sync>;

impl Upstream {
    /// One without TLS.
    pub fn new() -> Self {
        Self::wrapped(Arc::new(|stream| Ok(Box::new(stream))))
    }

    /// One whose connections are made so.
    pub fn wrapped(wrap: Wrap) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let all = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if all.over.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, wrap) = (all.clone(), wrap.clone());
                thread::spawn(move || {
                    // What never comes must not hold a thread for ever.
                    let _ = stream.set_read_timeout(Some(ENOUGH));
                    let _ = stream.set_write_timeout(Some(ENOUGH));
                    if let Ok(stream) = wrap(stream) {
                        serve(&seen, stream);
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// One at a socket of Unix's, for as long as the process runs.
    pub fn unix(path: &Path) -> Arc<Seen> {
        let listener = UnixListener::bind(path).unwrap();
        let seen = Arc::new(Seen::default());
        let all = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = all.clone();
                thread::spawn(move || serve(&seen, Box::new(stream)));
            }
        });
        seen
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The rule that allows it.
    pub fn rule(&self) -> String {
        self.address.to_string()
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many connections are open.
    pub fn wait_for_open(&self, open: impl RangeBounds<usize> + std::fmt::Debug) {
        let end = Instant::now() + ENOUGH;
        while !open.contains(&self.seen.open.load(Ordering::SeqCst)) {
            assert!(Instant::now() < end, "{:?}, not {open:?} open", self.seen);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(seen: &Seen, stream: Box<dyn Stream>) {
    seen.connections.fetch_add(1, Ordering::SeqCst);
    seen.open.fetch_add(1, Ordering::SeqCst);
    let mut stream = BufReader::new(stream);
    while let Ok(true) = answer(seen, &mut stream) {}
    drop(stream);
    seen.open.fetch_sub(1, Ordering::SeqCst);
}

/// Reads a request and answers it. False if that was the last one.
fn answer(seen: &Seen, stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<bool> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(false);
        }
    }
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let url = head.split(' ').nth(1).unwrap().to_owned();
    let out = stream.get_mut();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    let mut parts = path.trim_start_matches('/').split('/');
    let what = parts.next().unwrap();
    let number: usize = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    match what {
        "echo" => {
            let echo = [head.as_bytes(), &body].concat();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/echo\r\nX-Twice: 1\r\nX-Twice: 2\r\nContent-Length: {}\r\n\r\n",
                echo.len()
            );
            out.write_all(&[head.as_bytes(), &echo].concat())?;
        }
        "body" => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {number}\r\n\r\n");
            out.write_all(head.as_bytes())?;
            out.write_all(&pattern(number))?;
        }
        "chunked" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for chunk in pattern(number).chunks(7777) {
                let frame = format!("{:x}\r\n", chunk.len());
                out.write_all(&[frame.as_bytes(), chunk, b"\r\n"].concat())?;
            }
            out.write_all(b"0\r\nX-Trailer: x\r\n\r\n")?;
        }
        "until-close" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            out.write_all(&pattern(number))?;
            return Ok(false);
        }
        "status" => {
            let head = format!("HTTP/1.1 {number} Some\r\nContent-Length: 0\r\n\r\n");
            out.write_all(head.as_bytes())?;
        }
        "to" => {
            let head = format!(
                "HTTP/1.1 {number} Elsewhere\r\nLocation: {query}\r\nContent-Length: 4\r\n\r\nmove"
            );
            out.write_all(head.as_bytes())?;
        }
        "hanging-redirect" => {
            let head =
                format!("HTTP/1.1 302 Found\r\nLocation: {query}\r\nContent-Length: 4\r\n\r\n");
            out.write_all(head.as_bytes())?;
            return wait_for_end(stream);
        }
        "loop" => {
            out.write_all(b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n")?
        }
        "hangs" => return wait_for_end(stream),
        "hangs-after" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            out.write_all(&pattern(number))?;
            return wait_for_end(stream);
        }
        "endless" => {
            out.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            let piece = pattern(10_000);
            while out.write_all(&piece).is_ok() {}
            return Ok(false);
        }
        "bad-chunk" => {
            out.write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
            )?;
            return wait_for_end(stream);
        }
        "cut" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            out.write_all(&pattern(number))?;
            return Ok(false);
        }
        "closes" => return Ok(false),
        "leaves" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            return Ok(false);
        }
        "junk" => {
            out.write_all(b"220 mail.example ESMTP\r\n")?;
            return wait_for_end(stream);
        }
        "long-head" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nX-Long: ")?;
            let piece = [b'x'; 10_000];
            while out.write_all(&piece).is_ok() {}
            return Ok(false);
        }
        "many-headers" => {
            let lines: String = (0..1000).map(|i| format!("X-{i}: y\r\n")).collect();
            let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
            out.write_all(head.as_bytes())?;
        }
        "twice" => out.write_all(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )?,
        other => panic!("{other}"),
    }
    stream.get_mut().flush()?;
    Ok(true)
}

/// Waits until the client has gone.
fn wait_for_end(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<bool> {
    stream.get_mut().flush()?;
    while stream.read(&mut [0; 1000])? > 0 {}
    Ok(false)
}

/// Bytes that differ.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
