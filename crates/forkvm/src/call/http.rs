//! The HTTP side of a request in the guest's eyes: its method and headers, and the response headers it sets.

use std::borrow::Cow;

use crate::call::fetches::Fetches;
use crate::call::stored::Stored;
use crate::fetch::{LOOP_HEADER, LOOP_NAME};
use crate::request::{CachePolicy, Header, Request};

/// Most headers a guest may have in either message, and bytes of all of them: bounds for the host's memory.
const MOST_HEADERS: usize = 128;
const MOST_HEADER_BYTES: usize = 64 << 10;

/// The response, where a guest says which message it means.
pub const RESPONSE: u64 = 1;

/// Whether it means the request.
pub fn is_request(message: u64) -> bool {
    matches!(message, 0 | 4)
}

/// Headers that belong to the connection or the message's framing, which are the host's (RFC 9110, 7.6.1; RFC 9112, 6).
const NOT_THE_GUESTS: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a header line was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No colon.
    #[error("no colon in it")]
    NoColon,
    /// The name is not a token (RFC 9110, 5.6.2).
    #[error("its name is not a valid field name")]
    BadName,
    /// The value has a line end, NUL or another control character (RFC 9110, 5.5).
    #[error("its value has control characters")]
    BadValue,
    /// Nothing behind the colon.
    #[error("its value is empty")]
    NoValue,
    /// Too many or too long.
    #[error("too many headers")]
    TooMany,
    /// There is no such message.
    #[error("no such message")]
    NoMessage,
}

/// True for a header's name: a token of RFC 9110, 5.6.2.
pub fn is_field_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// True for a header's value: visible characters, space, tab and bytes above ASCII (RFC 9110, 5.5).
pub fn is_field_value(value: &[u8]) -> bool {
    value
        .iter()
        .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// Parses "Name: value".
pub fn parse_header(line: &[u8]) -> Result<Header<'static>, HeaderError> {
    let colon = line
        .iter()
        .position(|&byte| byte == b':')
        .ok_or(HeaderError::NoColon)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if !is_field_name(name) {
        return Err(HeaderError::BadName);
    }
    if !is_field_value(value) {
        return Err(HeaderError::BadValue);
    }
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(Header::new(name, value.to_vec()))
}

/// A header as one line.
fn line(header: &Header<'_>) -> Vec<u8> {
    [header.name.as_bytes(), b": ", &header.value].concat()
}

/// True for the name of a header that belongs to the connection or the message's framing.
pub fn is_connections(name: &str) -> bool {
    NOT_THE_GUESTS
        .iter()
        .any(|one| name.eq_ignore_ascii_case(one))
}

/// Removes what is not the guest's to say.
pub fn strip_connection_headers(headers: &mut Vec<Header<'_>>) {
    headers.retain(|header| !is_connections(&header.name));
}

/// Removes what a header `Connection` names: it is not for who comes after the next (RFC 9110, 7.6.1).
pub fn strip_named_by_connection(headers: &mut Vec<Header<'_>>) {
    let is_connection = |header: &&Header<'_>| header.name.eq_ignore_ascii_case("connection");
    let named: Vec<Vec<u8>> = headers
        .iter()
        .filter(is_connection)
        .flat_map(|header| header.value.split(|&byte| byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect();
    headers.retain(|header| !named.contains(&header.name.to_ascii_lowercase().into_bytes()));
}

/// One request's messages, as far as the guest has changed them.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The request.
    pub request: Request<'a>,
    method: Cow<'a, str>,
    /// Its headers; a copy once the guest changes them.
    request_headers: Cow<'a, [Header<'a>]>,
    /// The response's headers so far.
    pub response_headers: Vec<Header<'static>>,
    /// Set by `set_cacheable` or the response itself.
    pub cache: Option<CachePolicy>,
    /// The response's head is on its way: nothing changes it any more.
    pub is_answered: bool,
    /// The program's storage, if it may call it.
    pub storage: Option<&'a dyn Stored>,
    /// What it has fetched in parts.
    pub fetches: Fetches,
    /// [`Exchange::loops`] of the request that is no longer there.
    loops: usize,
}

impl<'a> Exchange<'a> {
    /// A request that the guest has not seen yet.
    pub fn new(request: &'a Request<'a>) -> Self {
        let method = match request.method {
            "" => "GET",
            method => method,
        };
        Self {
            request: *request,
            method: Cow::Borrowed(method),
            request_headers: Cow::Borrowed(request.headers),
            response_headers: Vec::new(),
            storage: None,
            cache: None,
            fetches: Fetches::default(),
            loops: 0,
            is_answered: false,
        }
    }

    /// What of it the program can still ask for when whoever brought the request may have left: its method and headers.
    /// What it has open goes on there.
    pub fn keep(&mut self) -> Exchange<'static> {
        let own = |header: &Header<'_>| {
            Header::new(header.name.clone().into_owned(), header.value.to_vec())
        };
        Exchange {
            request: Request::default(),
            method: Cow::Owned(self.method.clone().into_owned()),
            request_headers: self.request_headers.iter().map(own).collect(),
            response_headers: self.response_headers.clone(),
            cache: self.cache,
            is_answered: self.is_answered,
            storage: None,
            fetches: std::mem::take(&mut self.fetches),
            loops: self.loops(),
        }
    }

    /// How often in a row its program has asked its own Varnish by now, as far as that has let its header through.
    pub fn loops(&self) -> usize {
        let named = |header: &&Header<'_>| header.name.eq_ignore_ascii_case(LOOP_HEADER);
        let headers = self.request.headers.iter().filter(named);
        let entries = headers.flat_map(|header| header.value.split(|&byte| byte == b','));
        let own = entries.filter(|entry| entry.trim_ascii() == LOOP_NAME.as_bytes());
        self.loops.max(own.count())
    }

    /// The method, never empty.
    pub fn method(&self) -> &str {
        &self.method
    }

    fn headers(&self, message: u64) -> Option<&[Header<'_>]> {
        // 0 is the request and 1 the response; 4 and 5 are the backend's, which are the same here.
        match message {
            0 | 4 => Some(&self.request_headers),
            RESPONSE | 5 => Some(&self.response_headers),
            _ => None,
        }
    }

    /// Finds a header by name, upper or lower case: its whole line.
    pub fn find(&self, message: u64, name: &[u8]) -> Option<Vec<u8>> {
        self.header(message, name).map(line)
    }

    /// The same: its value.
    pub fn value(&self, message: u64, name: &[u8]) -> Option<&[u8]> {
        self.header(message, name).map(|header| &*header.value)
    }

    fn header(&self, message: u64, name: &[u8]) -> Option<&Header<'_>> {
        let name = name.strip_suffix(b":").unwrap_or(name);
        self.headers(message)?
            .iter()
            .find(|header| header.name.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Appends a header, or replaces all of its name; a line without a colon then only removes them. Returns the new
    /// header's place among the message's, from 1 on, 0 if there is none. What is refused changes nothing.
    pub fn change(
        &mut self,
        message: u64,
        text: &[u8],
        append: bool,
    ) -> Result<usize, HeaderError> {
        let new = match parse_header(text) {
            Err(HeaderError::NoColon) if !append && is_field_name(text) => None,
            Ok(header) if header.value.is_empty() => return Err(HeaderError::NoValue),
            other => Some(other?),
        };
        match message {
            0 | 4 => put(self.request_headers.to_mut(), text, new, append),
            RESPONSE | 5 => put(&mut self.response_headers, text, new, append),
            _ => Err(HeaderError::NoMessage),
        }
    }

    /// Adds the headers that come with the response itself, in the place of those that had their names before. What is
    /// refused changes nothing.
    pub fn replace(&mut self, new: Vec<Header<'static>>) -> Result<(), HeaderError> {
        let stays = |header: &Header<'_>| {
            !new.iter()
                .any(|new| new.name.eq_ignore_ascii_case(&header.name))
        };
        let staying = self.response_headers.iter().filter(|header| stays(header));
        check_room(staying.chain(&new))?;
        self.response_headers.retain(stays);
        self.response_headers.extend(new);
        Ok(())
    }
}

/// Puts a new header, or the lack of any called `text`, among others. Returns its place.
fn put<'a>(
    headers: &mut Vec<Header<'a>>,
    text: &[u8],
    new: Option<Header<'a>>,
    append: bool,
) -> Result<usize, HeaderError> {
    let name = new.as_ref().map_or(text, |header| header.name.as_bytes());
    let stays = |header: &Header<'_>| append || !header.name.as_bytes().eq_ignore_ascii_case(name);
    if new.is_some() {
        check_room(headers.iter().filter(|header| stays(header)).chain(&new))?;
    }
    headers.retain(stays);
    let is_new = new.is_some();
    headers.extend(new);
    Ok(if is_new { headers.len() } else { 0 })
}

/// Whether a message may have these headers.
fn check_room<'a>(headers: impl Iterator<Item = &'a Header<'a>>) -> Result<(), HeaderError> {
    let (count, bytes) = headers.fold((0, 0), |(count, bytes), header| {
        (count + 1, bytes + header.name.len() + header.value.len())
    });
    if count > MOST_HEADERS || bytes > MOST_HEADER_BYTES {
        return Err(HeaderError::TooMany);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lines_are_checked() {
        let header = parse_header(b"X-A:  b c ").unwrap();
        assert_eq!((&*header.name, &*header.value), ("X-A", &b"b c"[..]));
        assert_eq!(parse_header(b"nothing"), Err(HeaderError::NoColon));
        assert_eq!(parse_header(b"X A: b"), Err(HeaderError::BadName));
        assert_eq!(parse_header(b": b"), Err(HeaderError::BadName));
        assert_eq!(
            parse_header(b"X: a\r\nSet-Cookie: b"),
            Err(HeaderError::BadValue)
        );
        assert_eq!(parse_header(b"X: a\0b"), Err(HeaderError::BadValue));
    }

    #[test]
    fn setting_replaces_and_unsets() {
        let request = Request::default();
        let mut exchange = Exchange::new(&request);
        assert_eq!(exchange.change(1, b"A: 1", true), Ok(1));
        assert_eq!(exchange.change(1, b"a: 2", true), Ok(2));
        assert_eq!(exchange.response_headers.len(), 2);
        assert_eq!(exchange.change(1, b"A: 3", false), Ok(1));
        assert_eq!(exchange.find(5, b"a"), Some(b"A: 3".to_vec()));
        for append in [true, false] {
            let empty = exchange.change(1, b"A: ", append);
            assert_eq!(empty, Err(HeaderError::NoValue));
        }
        assert_eq!(exchange.change(1, b"A", false), Ok(0));
        assert_eq!(exchange.find(1, b"A"), None);
        assert_eq!(
            exchange.change(2, b"A: 1", true),
            Err(HeaderError::NoMessage)
        );
    }

    #[test]
    fn what_comes_with_the_response_replaces() {
        let request = Request::default();
        let mut exchange = Exchange::new(&request);
        for line in [&b"A: 1"[..], b"a: 2", b"B: 1"] {
            exchange.change(1, line, true).unwrap();
        }
        let new = || {
            vec![
                parse_header(b"a: 3").unwrap(),
                parse_header(b"A: 4").unwrap(),
            ]
        };
        exchange.replace(new()).unwrap();
        let lines = |exchange: &Exchange<'_>| -> Vec<_> {
            exchange.response_headers.iter().map(line).collect()
        };
        assert_eq!(lines(&exchange), [&b"B: 1"[..], b"a: 3", b"A: 4"]);
        let many = (0..=MOST_HEADERS).flat_map(|_| new()).collect();
        assert_eq!(exchange.replace(many), Err(HeaderError::TooMany));
        assert_eq!(lines(&exchange).len(), 3);
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let request = Request::default();
        let mut exchange = Exchange::new(&request);
        exchange.change(1, b"A: 1", true).unwrap();
        let long = [b"A: ", &[b'x'; MOST_HEADER_BYTES][..]].concat();
        assert_eq!(exchange.change(1, &long, false), Err(HeaderError::TooMany));
        assert_eq!(exchange.find(1, b"A"), Some(b"A: 1".to_vec()));
        // What is replaced makes room.
        for _ in 1..MOST_HEADERS {
            exchange.change(1, b"B: 1", true).unwrap();
        }
        assert_eq!(
            exchange.change(1, b"C: 1", false),
            Err(HeaderError::TooMany)
        );
        exchange.change(1, b"B: 2", false).unwrap();
        assert_eq!(exchange.response_headers.len(), 2);
    }

    #[test]
    fn a_guest_cannot_fill_the_host() {
        let request = Request::default();
        let mut exchange = Exchange::new(&request);
        let refused = (0..1000).find(|_| exchange.change(1, b"A: 1", true).is_err());
        assert_eq!(refused, Some(MOST_HEADERS));
    }
}
