//! A small HTTP/1.1 client: one connection, and the bytes as they come.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::ENOUGH;

/// A request body.
pub enum Body<'a> {
    None,
    /// With Content-Length.
    Length(&'a [u8]),
    /// Chunked, in pieces of so many bytes.
    Chunked(&'a [u8], usize),
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

/// A connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        Self {
            stream: BufReader::with_capacity(64 << 10, stream),
        }
    }

    pub fn get(&mut self, host: &str, url: &str) -> Response {
        self.send("GET", host, url, &[], Body::None)
    }

    pub fn send(
        &mut self,
        method: &str,
        host: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> Response {
        self.try_send(method, host, url, headers, body).unwrap()
    }

    /// The same, where the connection may be lost.
    pub fn try_send(
        &mut self,
        method: &str,
        host: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> io::Result<Response> {
        self.begin(method, host, url, headers, body)?;
        self.response(method)
    }

    /// Sends a request, and leaves the response for `response()`.
    pub fn begin(
        &mut self,
        method: &str,
        host: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> io::Result<()> {
        let mut head = format!("{method} {url} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        match body {
            Body::None => {}
            Body::Length(bytes) => head += &format!("Content-Length: {}\r\n", bytes.len()),
            Body::Chunked(..) => head += "Transfer-Encoding: chunked\r\n",
        }
        head += "\r\n";
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        // What refuses a body may answer, and close, before all of it is sent.
        let _ = match body {
            Body::None => Ok(()),
            Body::Length(bytes) => stream.write_all(bytes),
            Body::Chunked(bytes, piece) => bytes
                .chunks(piece)
                .try_for_each(|chunk| {
                    write!(stream, "{:x}\r\n", chunk.len())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")
                })
                .and_then(|()| stream.write_all(b"0\r\n\r\n")),
        };
        Ok(())
    }

    /// Sends a piece of a body whose length was announced by a header.
    pub fn send_piece(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Reads the response to a request with this method.
    pub fn response(&mut self, method: &str) -> io::Result<Response> {
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .unwrap_or_else(|| panic!("no status: {status_line:?}"));
        let mut response = Response {
            status: status.parse().unwrap(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            response
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
        if method == "HEAD" || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        if let Some(len) = response.header("content-length") {
            response.body = vec![0; len.parse().unwrap()];
            self.stream.read_exact(&mut response.body)?;
        } else if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let len = usize::from_str_radix(&self.line()?, 16).unwrap();
                let at = response.body.len();
                response.body.resize(at + len, 0);
                self.stream.read_exact(&mut response.body[at..])?;
                assert_eq!(self.line()?, "");
                if len == 0 {
                    break;
                }
            }
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if !line.ends_with("\r\n") {
            let what = format!("connection closed after {line:?}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }
}
