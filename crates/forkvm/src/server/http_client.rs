//! A client of a server that asks for one thing, by HTTP/1.1, and takes the response into memory.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use crate::call::http::{is_connections, is_field_name, is_field_value};
use crate::machine::waiting::wait_until;
use crate::request::Request;
use crate::server::connection::{Awaited, Connection};
use crate::server::response::{BadResponse, Decoder};

/// Why a request can't be put into HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The method is no token.
    #[error("its method is not valid")]
    Method,
    /// The URL has white space or control characters, or is empty.
    #[error("its URL is empty, or has white space or control characters")]
    Url,
    /// A header is not one of HTTP.
    #[error("one of its headers is not valid")]
    Header,
}

/// A request's first line and headers. The connection is for it alone.
pub fn head(request: &Request<'_>) -> Result<Vec<u8>, BadRequest> {
    let method = match request.method {
        "" => "GET",
        method => method,
    };
    if !is_field_name(method.as_bytes()) {
        return Err(BadRequest::Method);
    }
    let visible = |&byte: &u8| byte > b' ' && byte != 0x7f;
    if request.url.is_empty() || !request.url.iter().all(visible) {
        return Err(BadRequest::Url);
    }
    let mut head = [method.as_bytes(), b" ", request.url, b" HTTP/1.1\r\n"].concat();
    let mut has_host = false;
    for header in request.headers {
        // The body is there as a whole, so nobody asks whether it may come.
        if is_connections(&header.name) || header.name.eq_ignore_ascii_case("expect") {
            continue;
        }
        if !is_field_name(header.name.as_bytes()) || !is_field_value(&header.value) {
            return Err(BadRequest::Header);
        }
        has_host |= header.name.eq_ignore_ascii_case("host");
        head.extend([header.name.as_bytes(), b": ", &header.value, b"\r\n"].concat());
    }
    if !has_host {
        head.extend(b"Host: localhost\r\n");
    }
    if !request.body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        head.extend(format!("Content-Length: {}\r\n", request.body.len()).as_bytes());
    }
    head.extend(b"Connection: close\r\n\r\n");
    Ok(head)
}

/// The client.
pub struct HttpClient<'a> {
    head: Vec<u8>,
    sent: usize,
    body: &'a [u8],
    deadline: Instant,
    decoder: Decoder,
    bad: Option<BadResponse>,
}

impl<'a> HttpClient<'a> {
    /// Asks this, until `deadline`, and takes a body of at most so many bytes.
    pub fn new(request: &Request<'a>, deadline: Instant, most: u64) -> Result<Self, BadRequest> {
        Ok(Self {
            head: head(request)?,
            sent: 0,
            body: request.body,
            deadline,
            decoder: Decoder::new(request.method == "HEAD", most),
            bad: None,
        })
    }

    /// Whether all of the response has come.
    pub fn has_all(&self) -> bool {
        self.bad.is_none() && self.decoder.is_whole()
    }

    /// What has come of it, once the connection is closed.
    pub fn into_result(mut self) -> Result<Decoder, BadResponse> {
        match self.bad.take() {
            Some(bad) => Err(bad),
            None => self.decoder.end().map(|()| self.decoder),
        }
    }

    /// Whether all has come, or something that can't be used.
    pub fn is_done(&self) -> bool {
        self.bad.is_some() || self.decoder.is_whole()
    }
}

impl Connection for HttpClient<'_> {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let rest = match self.head.get(self.sent..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => self
                .body
                .get(self.sent - self.head.len()..)
                .unwrap_or_default(),
        };
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.sent += len;
        Ok((len > 0).then_some(len))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.bad.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Err(bad) = self.decoder.take(bytes) {
            let error = io::Error::other(bad.to_string());
            self.bad = Some(bad);
            return Err(error);
        }
        Ok(Some(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        // Where it has ended too early that is found when the connection is closed.
        let _ = self.decoder.end();
        Ok(())
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        // A server that leaves the connection open has said all there is to say.
        if self.is_done() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        wait_until(what.other, until);
        Ok(())
    }

    fn peer(&self) -> Option<SocketAddr> {
        Some((Ipv4Addr::LOCALHOST, 1).into())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.deadline)
    }

    /// What the program does when all is said is of no use to anybody.
    fn is_gone(&mut self) -> bool {
        self.is_done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Header;

    fn text(request: &Request<'_>) -> Result<String, BadRequest> {
        head(request).map(|head| String::from_utf8(head).unwrap())
    }

    #[test]
    fn a_request_has_what_its_connection_needs() {
        let headers = [
            Header::new("Host", &b"a.example"[..]),
            Header::new("X", &b"y z"[..]),
            Header::new("Connection", &b"keep-alive"[..]),
            Header::new("content-length", &b"99"[..]),
            Header::new("Transfer-Encoding", &b"chunked"[..]),
            Header::new("Expect", &b"100-continue"[..]),
        ];
        let mut request = Request {
            method: "GET",
            url: b"/a?b",
            headers: &headers,
            ..Default::default()
        };
        let close = "Connection: close\r\n\r\n";
        let start = "/a?b HTTP/1.1\r\nHost: a.example\r\nX: y z\r\n";
        assert_eq!(text(&request), Ok(format!("GET {start}{close}")));
        request.method = "POST";
        let length = "Content-Length: 0\r\n";
        assert_eq!(text(&request), Ok(format!("POST {start}{length}{close}")));
        request.body = b"abc";
        let length = "Content-Length: 3\r\n";
        assert_eq!(text(&request), Ok(format!("POST {start}{length}{close}")));
        (request.headers, request.method, request.body) = (&[], "", b"");
        let expected = format!("GET /a?b HTTP/1.1\r\nHost: localhost\r\n{close}");
        assert_eq!(text(&request), Ok(expected));
    }

    #[test]
    fn a_request_is_no_two() {
        let with = |method, url: &[u8], headers: &[Header<'_>]| {
            text(&Request {
                method,
                url,
                headers,
                ..Default::default()
            })
            .unwrap_err()
        };
        assert_eq!(with("GET /", b"/", &[]), BadRequest::Method);
        for url in [&b""[..], b"/a b", b"/\r\nA: b", b"/\0"] {
            assert_eq!(with("GET", url, &[]), BadRequest::Url);
        }
        for (name, value) in [("A", "b\r\nC: d"), ("A B", "c"), ("", "c")] {
            let header = Header::new(name, value.as_bytes());
            assert_eq!(with("GET", b"/", &[header]), BadRequest::Header);
        }
    }
}
