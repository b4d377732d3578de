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
