//! The response.

use std::borrow::Cow;
use std::time::Duration;

use crate::{native, raw};

/// An answer, made by one of the constructors and changed step by step.
///
/// ```
/// use forkvm_guest::Response;
///
/// let response = Response::html("<h1>Not here</h1>").status(404).header("X-Reason", "lost");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    status: u16,
    content_type: String,
    headers: Vec<String>,
    cache: Option<[Duration; 3]>,
    body: Vec<u8>,
}

impl Response {
    /// A body of any type, with status 200.
    pub fn new(content_type: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Response {
            status: 200,
            content_type: content_type.into(),
            body: body.into(),
            ..Response::default()
        }
    }

    /// A plain text.
    pub fn text(body: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", body.into())
    }

    /// An HTML page.
    pub fn html(body: impl Into<String>) -> Self {
        Self::new("text/html; charset=utf-8", body.into())
    }

    /// JSON, already made.
    pub fn json(body: impl Into<String>) -> Self {
        Self::new("application/json", body.into())
    }

    /// Nothing but a status.
    pub fn empty(status: u16) -> Self {
        Self::new("", Vec::new()).status(status)
    }

    /// Sets the status, 200 to 599.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header field. There may be 64. The host refuses a response with a malformed one.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(format!("{name}: {value}"));
        self
    }

    /// Lets the response be cached for `ttl`, served stale for `grace` while a new one is fetched, and kept for
    /// revalidation for `keep`. Without this it is not cached.
    pub fn cache(mut self, ttl: Duration, grace: Duration, keep: Duration) -> Self {
        self.cache = Some([ttl, grace, keep]);
        self
    }

    /// The status.
    pub fn status_code(&self) -> u16 {
        self.status
    }

    /// The body's type, or "".
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text, with what is not UTF-8 replaced.
    pub fn body_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The header fields that were added, name and value, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .map(|line| line.split_once(": ").unwrap_or((line, "")))
    }

    /// The value of the first header field of this name, in whatever spelling.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        self.headers()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Time to live, grace and keep, if the response may be cached.
    pub fn caching(&self) -> Option<[Duration; 3]> {
        self.cache
    }

    /// Answers the request with a body of these parts, each of which is asked for when the client takes more; `len` is how
    /// long it is in all, if that is known. The response's own body does not count. If that is not what comes, or `parts`
    /// panics, the client sees the connection break off, and nothing is cached.
    ///
    /// ```no_run
    /// use forkvm_guest::{serve, Response};
    ///
    /// serve(|_| {
    ///     let lines = (1..=1000).map(|n| format!("line {n}\n"));
    ///     Response::text("").send_parts(None, lines)
    /// });
    /// ```
    pub fn send_parts<P: AsRef<[u8]>>(
        self,
        len: Option<usize>,
        parts: impl IntoIterator<Item = P>,
    ) -> ! {
        let parts = Parts::new(parts.into_iter());
        if native::is_native() {
            native::answer_in_parts(&self, len, parts);
        }
        self.begin(len, parts)
    }

    fn begin<P: AsRef<[u8]>, I: Iterator<Item = P>>(
        self,
        len: Option<usize>,
        mut parts: Parts<I>,
    ) -> ! {
        const RESPONSE: usize = 1;
        let [ttl, grace, keep] = self
            .cache
            .unwrap_or_default()
            .map(|time| usize::try_from(time.as_millis()).unwrap_or(usize::MAX));
        // SAFETY: the host reads all of it before each call ends. The last does not come back; the callback is called with
        // `parts`, which stays where it is.
        unsafe {
            for field in &self.headers {
                let (field, len) = (field.as_ptr() as usize, field.len());
                raw::hypercall(raw::HTTP_APPEND, [RESPONSE, field, len, 0, 0, 0]);
            }
            let cached = self.cache.is_some().into();
            raw::hypercall(raw::SET_CACHEABLE, [cached, ttl, grace, keep, 0, 0]);
            raw::hypercall(
                raw::BEGIN_STREAMING_RESPONSE,
                [
                    self.status.into(),
                    address(self.content_type.as_bytes()),
                    self.content_type.len(),
                    len.unwrap_or(0),
                    next_part::<P, I> as *const () as usize,
                    &mut parts as *mut Parts<I> as usize,
                ],
            );
        }
        std::process::abort()
    }

    /// Answers the request. Handlers return the response instead; this is for code deep below one.
    pub fn send(self) -> ! {
        if native::is_native() {
            native::answer(&self);
        }
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|field| raw::ResponseHeader {
                field: field.as_ptr(),
                len: field.len(),
            })
            .collect();
        let [ttl, grace, keep] = self
            .cache
            .unwrap_or_default()
            .map(|time| time.as_secs_f32());
        let extra = raw::ResponseExtra {
            headers: if headers.is_empty() {
                std::ptr::null()
            } else {
                headers.as_ptr()
            },
            num_headers: u16::try_from(headers.len()).unwrap_or(u16::MAX),
            cached: self.cache.is_some(),
            ttl,
            grace,
            keep,
            reserved: [0; 4],
        };
        // SAFETY: the host reads all of it before this call ends, and it does not come back.
        unsafe {
            raw::hypercall(
                raw::BACKEND_RESPONSE,
                [
                    self.status.into(),
                    address(self.content_type.as_bytes()),
                    self.content_type.len(),
                    address(&self.body),
                    self.body.len(),
                    &extra as *const raw::ResponseExtra as usize,
                ],
            );
        }
        std::process::abort()
    }
}

/// What is still to come of a body in parts.
pub(crate) struct Parts<I: Iterator> {
    rest: I,
    /// The part that is sent, from here on.
    part: Option<I::Item>,
    from: usize,
}

impl<P: AsRef<[u8]>, I: Iterator<Item = P>> Parts<I> {
    fn new(rest: I) -> Self {
        Parts {
            rest,
            part: None,
            from: 0,
        }
    }

    /// What comes next, at most `max` bytes; nothing at the end.
    pub(crate) fn next<'a>(&'a mut self, max: usize) -> &'a [u8]
    where
        P: 'a,
    {
        while self.left() == 0 {
            self.from = 0;
            self.part = self.rest.next();
            if self.part.is_none() {
                return &[];
            }
        }
        let from = self.from;
        self.from += self.left().min(max);
        match &self.part {
            Some(part) => &part.as_ref()[from..self.from],
            None => &[],
        }
    }

    /// Bytes of the part that are still to be sent.
    fn left(&self) -> usize {
        let len = self.part.as_ref().map_or(0, |part| part.as_ref().len());
        len - self.from.min(len)
    }
}

extern "C" fn next_part<P: AsRef<[u8]>, I: Iterator<Item = P>>(
    parts: *mut Parts<I>,
    max: usize,
    _written: usize,
    _total: usize,
) -> raw::StreamPart {
    // SAFETY: it is what send_parts() has given the host, which calls this while that function waits, one at a time.
    let part = unsafe { (*parts).next(max) };
    raw::StreamPart {
        data: part.as_ptr(),
        len: part.len(),
    }
}

/// Where the bytes are. An empty slice may point to where nothing is, which the host need not put up with.
fn address(bytes: &[u8]) -> usize {
    static NOTHING: u8 = 0;
    if bytes.is_empty() {
        &NOTHING as *const u8 as usize
    } else {
        bytes.as_ptr() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_no_longer_than_asked_for() {
        let mut parts = Parts::new(["abc", "", "defgh"].into_iter());
        assert_eq!(parts.next(10), b"abc");
        assert_eq!(parts.next(4), b"defg");
        assert_eq!(parts.next(4), b"h");
        assert_eq!(parts.next(4), b"");
        assert_eq!(parts.next(4), b"");
    }

    #[test]
    fn a_test_looks_at_it() {
        let seconds = Duration::from_secs;
        let response = Response::json("{}")
            .status(201)
            .header("X-A", "b: c")
            .header("x-a", "d")
            .cache(seconds(1), seconds(2), seconds(3));
        assert_eq!(response.status_code(), 201);
        assert_eq!(response.content_type(), "application/json");
        assert_eq!(
            (response.body(), &*response.body_text()),
            (&b"{}"[..], "{}")
        );
        assert_eq!(response.header_value("X-a"), Some("b: c"));
        assert_eq!(response.header_value("X-B"), None);
        assert_eq!(response.headers().count(), 2);
        assert_eq!(response.caching(), Some([1, 2, 3].map(seconds)));
        assert_eq!(Response::empty(204).caching(), None);
    }
}
