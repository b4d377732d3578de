//! A client of a server that asks for one thing, by HTTP/1.1, and takes the response as it comes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::call::http::{is_connections, is_field_name, is_field_value};
use crate::machine::waiting::wait_until;
use crate::request::Request;
use crate::server::connection::{Awaited, Connection};
use crate::server::response::{BadResponse, Decoder};

/// How long the rest of a response is waited for, once its head is there, before it is taken piece by piece.
const PATIENCE: Duration = Duration::from_millis(10);
/// How much of a body is taken before.
const MOST_AT_ONCE: usize = 256 << 10;

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

/// How a request's body comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// All of it is in [`Request::body`].
    Whole,
    /// In pieces, of so many bytes together.
    Length(u64),
    /// In pieces, nobody knows how many.
    Chunked,
}

/// A request's first line and headers. The connection is for it alone.
pub fn head(request: &Request<'_>, upload: Upload) -> Result<Vec<u8>, BadRequest> {
    // The body comes in any case, so nobody asks whether it may.
    let is_ours = |name: &str| is_connections(name) || name.eq_ignore_ascii_case("expect");
    let mut head = begin(request, is_ours)?;
    let length = match upload {
        Upload::Whole if !request.body.is_empty() => Some(request.body.len() as u64),
        Upload::Whole => matches!(request.method, "POST" | "PUT" | "PATCH").then_some(0),
        Upload::Length(length) => Some(length),
        Upload::Chunked => {
            head.extend(b"Transfer-Encoding: chunked\r\n");
            None
        }
    };
    if let Some(length) = length {
        head.extend(format!("Content-Length: {length}\r\n").as_bytes());
    }
    head.extend(b"Connection: close\r\n\r\n");
    Ok(head)
}

/// The same of a request after which all goes through as it comes. It may ask to go over to another protocol.
pub fn piped_head(request: &Request<'_>, upgrade: Option<&[u8]>) -> Result<Vec<u8>, BadRequest> {
    let frames = |name: &str| {
        let is = |other| name.eq_ignore_ascii_case(other);
        is("content-length") || is("transfer-encoding")
    };
    let mut head = begin(request, |name| is_connections(name) && !frames(name))?;
    match upgrade {
        Some(protocol) if !is_field_value(protocol) => return Err(BadRequest::Header),
        Some(protocol) => {
            head.extend([b"Connection: Upgrade\r\nUpgrade: ", protocol, b"\r\n\r\n"].concat());
        }
        None => head.extend(b"Connection: close\r\n\r\n"),
    }
    Ok(head)
}

/// The first line, and those headers that are not ours to say.
fn begin(request: &Request<'_>, is_ours: impl Fn(&str) -> bool) -> Result<Vec<u8>, BadRequest> {
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
        if is_ours(&header.name) {
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
    Ok(head)
}

/// When a client leaves the program where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Never: it goes on to the response's end.
    Never,
    /// When it waits, and may wait for more of the request's body.
    ForBody,
    /// When the response's head is there, and not all of its body soon.
    AfterHead,
}

/// The client.
#[derive(Debug)]
pub struct HttpClient {
    /// What of the request is still to be sent, from `sent` on.
    request: Vec<u8>,
    sent: usize,
    upload: Upload,
    /// When it is over.
    pub deadline: Instant,
    /// When it leaves the program.
    pub pause: Pause,
    decoder: Decoder,
    /// When the response's head was there.
    head_since: Option<Instant>,
    bad: Option<BadResponse>,
}

impl HttpClient {
    /// Asks this, until `deadline`, and takes a body of at most so many bytes.
    pub fn new(
        request: &Request<'_>,
        upload: Upload,
        deadline: Instant,
        most: u64,
    ) -> Result<Self, BadRequest> {
        let mut text = head(request, upload)?;
        text.extend_from_slice(request.body);
        Ok(Self {
            request: text,
            sent: 0,
            upload,
            deadline,
            pause: Pause::Never,
            decoder: Decoder::new(request.method == "HEAD", most),
            head_since: None,
            bad: None,
        })
    }

    /// Sends a piece of the request's body, which is not empty.
    pub fn push(&mut self, piece: &[u8]) {
        self.request.drain(..self.sent);
        self.sent = 0;
        if self.upload == Upload::Chunked {
            self.request
                .extend(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        self.request.extend_from_slice(piece);
        if self.upload == Upload::Chunked {
            self.request.extend(b"\r\n");
        }
    }

    /// The request's body is over.
    pub fn finish_request(&mut self) {
        if self.upload == Upload::Chunked {
            self.request.extend(b"0\r\n\r\n");
        }
    }

    /// The response, as far as it has come.
    pub fn response(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Whether it is all there, now that the connection is closed.
    pub fn check(&mut self) -> Result<(), BadResponse> {
        match self.bad.clone() {
            Some(bad) => Err(bad),
            None => self.decoder.end(),
        }
    }

    /// Whether all has come, or something that can't be used.
    pub fn is_done(&self) -> bool {
        self.bad.is_some() || self.decoder.is_whole()
    }

    fn keep<T>(&mut self, result: Result<T, BadResponse>) -> io::Result<T> {
        result.map_err(|bad| {
            let error = io::Error::other(bad.to_string());
            self.bad = Some(bad);
            error
        })
    }
}

impl Connection for HttpClient {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let rest = self.request.get(self.sent..).unwrap_or_default();
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.sent += len;
        Ok((len > 0).then_some(len))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.bad.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let taken = self.decoder.take(bytes);
        self.keep(taken)?;
        if self.decoder.head().is_some() && self.head_since.is_none() {
            self.head_since = Some(Instant::now());
        }
        Ok(Some(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        // Where it has ended too early that is found when the connection is closed.
        let _ = self.decoder.end();
        Ok(())
    }

    fn break_off(&mut self) -> io::Result<()> {
        match self.is_done() {
            true => Ok(()),
            // A body that goes on to the connection's end has none so.
            false => self.keep(Err(BadResponse::EndedEarly)),
        }
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        // A server that leaves the connection open has said all there is to say.
        if self.is_done() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        wait_until(what.other, until);
        Ok(())
    }

    fn pauses(&mut self, idle: bool) -> bool {
        // One that is done ends by itself.
        match (self.pause, self.head_since) {
            _ if self.is_done() => false,
            (Pause::Never, _) | (Pause::AfterHead, None) => false,
            (Pause::ForBody, _) => idle && self.sent == self.request.len(),
            (Pause::AfterHead, Some(since)) => {
                idle || self.decoder.body().len() > MOST_AT_ONCE || since.elapsed() > PATIENCE
            }
        }
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
        head(request, Upload::Whole).map(|head| String::from_utf8(head).unwrap())
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
    fn a_body_comes_in_pieces() {
        let request = Request {
            method: "POST",
            url: b"/",
            ..Default::default()
        };
        let sent = |upload| {
            let mut client = HttpClient::new(&request, upload, Instant::now(), 0).unwrap();
            let mut all = Vec::new();
            let mut buf = [0; 7];
            for piece in [&b"0123456789abcdefghi"[..], b"x"] {
                client.push(piece);
                while let Some(n) = client.receive(&mut buf).unwrap() {
                    all.extend_from_slice(&buf[..n]);
                }
            }
            client.finish_request();
            while let Some(n) = client.receive(&mut buf).unwrap() {
                all.extend_from_slice(&buf[..n]);
            }
            String::from_utf8(all).unwrap()
        };
        let start = "POST / HTTP/1.1\r\nHost: localhost\r\n";
        let close = "Connection: close\r\n\r\n";
        assert_eq!(
            sent(Upload::Length(20)),
            format!("{start}Content-Length: 20\r\n{close}0123456789abcdefghix")
        );
        let chunks = "13\r\n0123456789abcdefghi\r\n1\r\nx\r\n0\r\n\r\n";
        assert_eq!(
            sent(Upload::Chunked),
            format!("{start}Transfer-Encoding: chunked\r\n{close}{chunks}")
        );
    }

    #[test]
    fn a_piped_request_keeps_its_framing() {
        let headers = [
            Header::new("Host", &b"a.example"[..]),
            Header::new("Connection", &b"keep-alive, upgrade"[..]),
            Header::new("Upgrade", &b"h2c"[..]),
            Header::new("Transfer-Encoding", &b"chunked"[..]),
        ];
        let request = Request {
            method: "PUT",
            url: b"/",
            headers: &headers,
            ..Default::default()
        };
        let piped =
            |upgrade| piped_head(&request, upgrade).map(|head| String::from_utf8(head).unwrap());
        let start = "PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(piped(None), Ok(format!("{start}Connection: close\r\n\r\n")));
        let switch = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(piped(Some(b"websocket")), Ok(format!("{start}{switch}")));
        assert_eq!(piped(Some(b"a\r\nb")), Err(BadRequest::Header));
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
