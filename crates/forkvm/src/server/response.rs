//! A server's response as it comes out of its connection: HTTP/1.1, whose body's length is found as RFC 9112, 6.3 has it. What can be
//! understood in two ways is refused.

use std::mem;

use httparse::{EMPTY_HEADER, Status};

use crate::call::http::{is_field_name, is_field_value};
use crate::request::Header;

/// Most headers of a response, as a guest's.
const MOST_HEADERS: usize = 128;
/// Longest head, and longest line of a chunk's size with its extensions.
const MOST_HEAD: usize = 64 << 10;
const MOST_CHUNK_LINE: usize = 4 << 10;
/// Longest trailer section. It is read, and thrown away.
const MOST_TRAILERS: usize = 64 << 10;
/// Most interim responses (RFC 9110, 15.2) before the response.
const MOST_INTERIM: usize = 16;

/// Why a response can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// No status line, or a header that is none.
    #[error("its head is not HTTP/1: {0}")]
    NotHttp(#[from] httparse::Error),
    /// A header that HTTP has, but Varnish and others would not pass on.
    #[error("its header {0:?} is not valid")]
    BadHeader(String),
    /// It is too long.
    #[error("its {0} is longer than {1} bytes")]
    TooLong(&'static str, usize),
    /// Interim ones without end.
    #[error("it has more than {MOST_INTERIM} interim responses")]
    TooManyInterim,
    /// A switch to another protocol that nobody asked for.
    #[error("it is 101 (Switching Protocols), which nobody asked for")]
    Switches,
    /// The status is none.
    #[error("its status {0} is not one of a response")]
    BadStatus(u16),
    /// What its headers say of its length can be understood in two ways.
    #[error("its length is not clear: {0}")]
    Ambiguous(&'static str),
    /// A chunk whose size is none, or that does not end where it should.
    #[error("a chunk of its body is broken")]
    BadChunk,
    /// The connection was closed too early.
    #[error("the connection ended before it was whole")]
    EndedEarly,
    /// The host has no memory for the body.
    #[error("the host has no memory for its body")]
    NoMemory,
    /// The body is longer than allowed.
    #[error("its body has more than {0} bytes (max_response_size)")]
    LongBody(u64),
}

/// A response's status and headers, those of the connection among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// 200 to 599.
    pub status: u16,
    /// What Content-Length says.
    pub length: Option<u64>,
    /// In order.
    pub headers: Vec<Header<'static>>,
}

/// Takes a response in pieces, as they come.
#[derive(Debug)]
pub struct Decoder {
    to_head: bool,
    most_body: u64,
    state: State,
    interim: usize,
    head: Option<Head>,
    /// What has come of the body and was not taken yet, and how much that is with what was.
    body: Vec<u8>,
    body_len: u64,
    /// What has come and can't be understood yet.
    rest: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes are left.
    Length(u64),
    ChunkSize,
    /// So many bytes are left of the chunk.
    Chunk(u64),
    ChunkEnd,
    /// Of so many bytes so far.
    Trailers(usize),
    UntilClose,
    Done,
}

impl Decoder {
    /// For the response to a request whose method is HEAD, or not, with a body of at most so many bytes.
    pub fn new(to_head: bool, most_body: u64) -> Self {
        Self {
            to_head,
            most_body,
            state: State::Head,
            interim: 0,
            head: None,
            body: Vec::new(),
            body_len: 0,
            rest: Vec::new(),
        }
    }

    /// Takes the next bytes. What comes after the response's end is nobody's, and left.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), BadResponse> {
        if self.is_whole() {
            return Ok(());
        }
        let joined;
        let mut bytes = if self.rest.is_empty() {
            bytes
        } else {
            self.rest.extend_from_slice(bytes);
            joined = mem::take(&mut self.rest);
            &joined
        };
        while let Some(used) = self.step(bytes)? {
            bytes = &bytes[used..];
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// The connection is closed.
    pub fn end(&mut self) -> Result<(), BadResponse> {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        match self.state {
            State::Done => Ok(()),
            _ => Err(BadResponse::EndedEarly),
        }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.state == State::Done
    }

    /// The head, once it is there.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// What has come of the body and was not taken yet.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes that.
    pub fn drain_body(&mut self) -> Vec<u8> {
        mem::take(&mut self.body)
    }

    /// Takes what can be taken from the start of `bytes`, and says how much that was. `None` if more is needed for a step, or
    /// nothing is.
    fn step(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadResponse> {
        match self.state {
            State::Head => self.take_head(bytes),
            State::Length(left) => {
                let used = self.take_body(bytes, left)?;
                if used as u64 == left {
                    self.state = State::Done;
                } else {
                    self.state = State::Length(left - used as u64);
                }
                Ok((used > 0).then_some(used))
            }
            State::ChunkSize => self.take_chunk_size(bytes),
            State::Chunk(left) => {
                let used = self.take_body(bytes, left)?;
                self.state = match left - used as u64 {
                    0 => State::ChunkEnd,
                    left => State::Chunk(left),
                };
                Ok((used > 0).then_some(used))
            }
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(BadResponse::BadChunk),
            },
            State::Trailers(so_far) => self.take_trailer(bytes, so_far),
            State::UntilClose => {
                let used = self.take_body(bytes, u64::MAX)?;
                Ok((used > 0).then_some(used))
            }
            State::Done => Ok(None),
        }
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadResponse> {
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let len = match response.parse(bytes)? {
            Status::Complete(len) if len <= MOST_HEAD => len,
            Status::Partial if bytes.len() <= MOST_HEAD => return Ok(None),
            Status::Complete(_) | Status::Partial => {
                return Err(BadResponse::TooLong("head", MOST_HEAD));
            }
        };
        let status = response.code.unwrap_or(0);
        match status {
            101 => return Err(BadResponse::Switches),
            100..=199 => {
                self.interim += 1;
                return if self.interim > MOST_INTERIM {
                    Err(BadResponse::TooManyInterim)
                } else {
                    Ok(Some(len))
                };
            }
            200..=599 => {}
            _ => return Err(BadResponse::BadStatus(status)),
        }
        let of_1_1 = response.version == Some(1);
        let headers = response
            .headers
            .iter()
            .map(checked)
            .collect::<Result<Vec<_>, _>>()?;
        let (framing, length) = framing(&headers, of_1_1)?;
        let has_body = !self.to_head && !matches!(status, 204 | 304);
        self.state = if has_body { framing } else { State::Done };
        if let State::Length(len) = self.state {
            self.check_body(len)?;
            if len == 0 {
                self.state = State::Done;
            }
        }
        self.head = Some(Head {
            status,
            length,
            headers,
        });
        Ok(Some(len))
    }

    fn take_chunk_size(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadResponse> {
        // A line without any digit would be the last chunk.
        if bytes
            .first()
            .is_some_and(|first| !first.is_ascii_hexdigit())
        {
            return Err(BadResponse::BadChunk);
        }
        match httparse::parse_chunk_size(bytes) {
            Ok(Status::Complete((used, 0))) => {
                self.state = State::Trailers(0);
                Ok(Some(used))
            }
            Ok(Status::Complete((used, size))) => {
                self.check_body(size)?;
                self.state = State::Chunk(size);
                Ok(Some(used))
            }
            Ok(Status::Partial) if bytes.len() <= MOST_CHUNK_LINE => Ok(None),
            Ok(Status::Partial) => Err(BadResponse::TooLong("chunk's size", MOST_CHUNK_LINE)),
            Err(_) => Err(BadResponse::BadChunk),
        }
    }

    fn take_trailer(&mut self, bytes: &[u8], so_far: usize) -> Result<Option<usize>, BadResponse> {
        let line = bytes.windows(2).position(|end| end == b"\r\n");
        let so_far = so_far + line.map_or(bytes.len(), |len| len + 2);
        if so_far > MOST_TRAILERS {
            return Err(BadResponse::TooLong("trailer section", MOST_TRAILERS));
        }
        match line {
            None => Ok(None),
            Some(0) => {
                self.state = State::Done;
                Ok(Some(2))
            }
            Some(len) => {
                self.state = State::Trailers(so_far);
                Ok(Some(len + 2))
            }
        }
    }

    /// Adds to the body what there is of the `left` bytes that belong to it.
    fn take_body(&mut self, bytes: &[u8], left: u64) -> Result<usize, BadResponse> {
        let used = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.check_body(used as u64)?;
        self.body
            .try_reserve(used)
            .map_err(|_| BadResponse::NoMemory)?;
        self.body.extend_from_slice(&bytes[..used]);
        self.body_len += used as u64;
        Ok(used)
    }

    fn check_body(&self, more: u64) -> Result<(), BadResponse> {
        match self.body_len.checked_add(more) {
            Some(len) if len <= self.most_body => Ok(()),
            _ => Err(BadResponse::LongBody(self.most_body)),
        }
    }
}

/// A header that can be passed on.
fn checked(header: &httparse::Header<'_>) -> Result<Header<'static>, BadResponse> {
    let value = header.value.trim_ascii();
    if !is_field_name(header.name.as_bytes()) || !is_field_value(value) {
        return Err(BadResponse::BadHeader(header.name.to_owned()));
    }
    Ok(Header::new(header.name.to_owned(), value.to_vec()))
}

/// Where a body ends (RFC 9112, 6.3), and what Content-Length says.
fn framing(headers: &[Header<'_>], of_1_1: bool) -> Result<(State, Option<u64>), BadResponse> {
    let values = |name: &'static str| {
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| &*header.value)
    };
    let ambiguous = |why| Err(BadResponse::Ambiguous(why));
    let lengths: Vec<_> = values("content-length").collect();
    let codings: Vec<_> = values("transfer-encoding").collect();
    let length = match *lengths {
        [] => None,
        [length] => match digits(length) {
            Some(length) => Some(length),
            None => return ambiguous("Content-Length is no number"),
        },
        _ => return ambiguous("it has several Content-Lengths"),
    };
    match *codings {
        [] => {}
        [coding] if !of_1_1 || !coding.eq_ignore_ascii_case(b"chunked") => {
            return ambiguous("its Transfer-Encoding is not just \"chunked\" of HTTP/1.1");
        }
        [_] if length.is_some() => {
            return ambiguous("it has Content-Length and Transfer-Encoding");
        }
        [_] => {}
        _ => return ambiguous("it has several Transfer-Encodings"),
    }
    let state = match length {
        Some(length) => State::Length(length),
        None if !codings.is_empty() => State::ChunkSize,
        None => State::UntilClose,
    };
    Ok((state, length))
}

/// Digits, and nothing else: a sign would do for Rust.
fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: u64 = 1000;

    /// All of it in pieces of this length, then the end.
    fn decoded_in(text: &[u8], to_head: bool, piece: usize) -> Result<(u16, Vec<u8>), BadResponse> {
        let mut decoder = Decoder::new(to_head, MOST);
        for piece in text.chunks(piece) {
            decoder.take(piece)?;
        }
        decoder.end()?;
        Ok((decoder.head().unwrap().status, decoder.drain_body()))
    }

    fn decoded(text: &str) -> Result<(u16, String), BadResponse> {
        let whole = decoded_in(text.as_bytes(), false, usize::MAX >> 1);
        for piece in [1, 2, 3, 7] {
            assert_eq!(decoded_in(text.as_bytes(), false, piece), whole, "{text:?}");
        }
        whole.map(|(status, body)| (status, String::from_utf8(body).unwrap()))
    }

    #[test]
    fn bodies_end_where_their_head_says() {
        let body = |text| decoded(text).unwrap().1;
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", "abc"),
            ("HTTP/1.1 200\r\ncontent-length:0\r\n\r\nabc", ""),
            ("HTTP/1.0 200 OK\r\n\r\nto the end", "to the end"),
            ("HTTP/1.1 404 No\r\nA: b\r\n\r\n", ""),
            ("HTTP/1.1 204 No\r\n\r\n", ""),
            ("HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\nrest",
                "abc0123456789",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: u\r\nV: w\r\n\r\n",
                "",
            ),
            (
                "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                "x",
            ),
        ] {
            assert_eq!(body(text), expected, "{text:?}");
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 70000000\r\n\r\n";
        assert_eq!(decoded_in(head.as_bytes(), true, 5), Ok((200, Vec::new())));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        use BadResponse::*;
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
                Ambiguous("it has several Content-Lengths"),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
                Ambiguous("Content-Length is no number"),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
                Ambiguous("Content-Length is no number"),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Ambiguous("it has Content-Length and Transfer-Encoding"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                Ambiguous("its Transfer-Encoding is not just \"chunked\" of HTTP/1.1"),
            ),
            (
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Ambiguous("its Transfer-Encoding is not just \"chunked\" of HTTP/1.1"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Ambiguous("it has several Transfer-Encodings"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
                BadChunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n\r\n\r\n",
                BadChunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n\r\n",
                BadChunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
                BadChunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
                BadChunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                LongBody(MOST),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                EndedEarly,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
                LongBody(MOST),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", EndedEarly),
            ("HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", Switches),
            ("HTTP/1.1 600 No\r\n\r\n", BadStatus(600)),
            ("HTTP/1.1 200 OK\r\nA: b", EndedEarly),
            ("", EndedEarly),
        ] {
            assert_eq!(decoded(text), Err(expected), "{text:?}");
        }
        assert!(matches!(decoded("SSH-2.0-OpenSSH\r\n"), Err(NotHttp(_))));
        assert!(matches!(
            decoded("HTTP/1.1 200 OK\r\nA : b\r\n\r\n"),
            Err(NotHttp(_))
        ));
        assert!(matches!(
            decoded("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n"),
            Err(NotHttp(_))
        ));
    }

    #[test]
    fn nothing_is_without_end() {
        let with = |text: String| decoded_in(text.as_bytes(), false, 1 << 20).unwrap_err();
        let interim = "HTTP/1.1 100 Go\r\n\r\n".repeat(MOST_INTERIM + 1);
        assert_eq!(with(interim), BadResponse::TooManyInterim);
        let head = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(MOST_HEAD));
        assert_eq!(with(head), BadResponse::TooLong("head", MOST_HEAD));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let line = format!("{chunked}3;{}", "x".repeat(MOST_CHUNK_LINE + 1));
        assert_eq!(
            with(line),
            BadResponse::TooLong("chunk's size", MOST_CHUNK_LINE)
        );
        let trailers = format!("{chunked}0\r\n{}", "T: u\r\n".repeat(MOST_TRAILERS / 4));
        assert_eq!(
            with(trailers),
            BadResponse::TooLong("trailer section", MOST_TRAILERS)
        );
    }

    proptest! {
        /// Whatever comes, in whatever pieces: no panic, and the pieces make no difference.
        #[test]
        fn pieces_make_no_difference(
            start in prop_oneof![
                Just("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
                Just("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
                Just("HTTP/1.1 100 Go\r\n"),
                Just(""),
            ],
            rest in "[0-9a-f;:HT/ \r\n]{0,60}",
            piece in 1..20usize,
        ) {
            let text = format!("{start}{rest}");
            let whole = decoded_in(text.as_bytes(), false, 1 << 20);
            prop_assert_eq!(decoded_in(text.as_bytes(), false, piece), whole);
        }
    }
}
