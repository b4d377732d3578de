//! A connection to Varnish that stays, and tells which version of a program has answered.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

pub struct Connection(BufReader<TcpStream>);

/// A response.
pub struct Response {
    pub status: u16,
    /// X-Program-Version
    pub version: Option<String>,
    pub body: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The whole answer, head and body, on a connection that ends with it.
    pub fn whole(address: SocketAddr, url: &str) -> Result<Vec<u8>> {
        let mut connection = Self::open(address)?;
        connection.begin(
            &format!("GET {url} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"),
            &[],
        )?;
        let mut answer = Vec::new();
        connection.0.read_to_end(&mut answer)?;
        ensure!(
            answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.0 200"),
            "it answers {:?}",
            String::from_utf8_lossy(answer.get(..1000).unwrap_or(&answer))
        );
        Ok(answer)
    }

    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.begin(&format!("GET /{path} HTTP/1.1\r\nHost: bench\r\n\r\n"), &[])?;
        self.response()
    }

    /// Sends a body, and returns when its last byte went out.
    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<Instant> {
        let len = body.len();
        let head = format!("POST /{path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len}\r\n\r\n");
        self.begin(&head, body)?;
        Ok(Instant::now())
    }

    fn begin(&mut self, head: &str, body: &[u8]) -> Result<()> {
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        Ok(())
    }

    /// Reads a response.
    pub fn response(&mut self) -> Result<Response> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut response = Response {
            status: status.context("no status")?,
            version: None,
            body: Vec::new(),
        };
        let mut len = 0;
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => len = value.trim().parse()?,
                "x-program-version" => response.version = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        response.body = vec![0; len];
        self.0.read_exact(&mut response.body)?;
        Ok(response)
    }

    /// A line without its end; empty after the last header.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(line.ends_with("\r\n"), "the connection was closed");
        line.truncate(line.len() - 2);
        Ok(line)
    }
}
