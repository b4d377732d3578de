//! The request: a view of what the host wrote, or made for a test.

use std::borrow::Cow;

use crate::raw;

/// A request. All texts are as the client sent them: the `Cow`s replace what is not UTF-8.
///
/// Tests make their own:
///
/// ```
/// use forkvm_guest::{Request, Response};
///
/// fn greet(request: &Request) -> Response {
///     Response::text(format!("Hello, {}!\n", request.header("X-Name").unwrap_or_default()))
/// }
///
/// let request = Request::builder("/greeting").header("X-Name", "Ann").build();
/// assert_eq!(greet(&request).body(), b"Hello, Ann!\n");
/// ```
#[derive(Debug, Clone)]
pub struct Request<'a> {
    method: Cow<'a, [u8]>,
    url: Cow<'a, [u8]>,
    arg: Cow<'a, [u8]>,
    content_type: Cow<'a, [u8]>,
    body: Cow<'a, [u8]>,
    headers: Lines<'a>,
    is_warmup: bool,
    random: [u64; 2],
}

/// Header lines, such as `Host: example.com`.
#[derive(Debug, Clone)]
enum Lines<'a> {
    Host(&'a [raw::Header]),
    Made(Vec<Vec<u8>>),
}

/// A header field of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name, in the client's spelling.
    pub name: &'a [u8],
    /// The value, without the blanks around it.
    pub value: &'a [u8],
}

impl<'a> Header<'a> {
    fn of(line: &'a [u8], colon: usize) -> Self {
        let (name, value) = line.split_at(line.len().min(colon));
        Header {
            name,
            value: value.strip_prefix(b":").unwrap_or(value).trim_ascii(),
        }
    }
}

/// # Safety
///
/// `data` is NULL, or there are `len` bytes that do not change for `'a`.
unsafe fn bytes<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, len) }
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// `raw` and all it points to are valid and do not change for `'a`.
    pub(crate) unsafe fn from_raw(raw: *const raw::Request) -> Self {
        // SAFETY: the caller's promise, for this and all that it points to.
        unsafe {
            let raw: &'a raw::Request = &*raw;
            Request {
                method: bytes(raw.method, raw.method_len.into()).into(),
                url: bytes(raw.url, raw.url_len.into()).into(),
                arg: bytes(raw.arg, raw.arg_len.into()).into(),
                content_type: bytes(raw.content_type, raw.content_type_len.into()).into(),
                body: bytes(raw.content, raw.content_len).into(),
                headers: Lines::Host(if raw.headers.is_null() {
                    &[]
                } else {
                    std::slice::from_raw_parts(raw.headers, raw.num_headers.into())
                }),
                is_warmup: raw.info_flags & 1 != 0,
                random: raw.prng,
            }
        }
    }

    /// A GET of this URL, to be changed step by step. For tests.
    pub fn builder(url: impl Into<Vec<u8>>) -> RequestBuilder {
        RequestBuilder {
            request: Request {
                method: b"GET".into(),
                url: url.into().into(),
                arg: b"".into(),
                content_type: b"".into(),
                body: b"".into(),
                headers: Lines::Made(Vec::new()),
                is_warmup: false,
                random: [0; 2],
            },
        }
    }

    /// `"GET"` and the like.
    pub fn method(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.method)
    }

    /// Path and query string.
    pub fn url(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.url)
    }

    /// Path and query string, as they are.
    pub fn url_bytes(&self) -> &[u8] {
        &self.url
    }

    /// The text that VCL passes along.
    pub fn arg(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.arg)
    }

    /// The body's content type.
    pub fn content_type(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.content_type)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// All header fields, in their order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'_>> {
        let (host, made): (&[raw::Header], &[Vec<u8>]) = match &self.headers {
            Lines::Host(headers) => (headers, &[]),
            Lines::Made(lines) => (&[], lines),
        };
        let host = host.iter().map(|header| {
            // SAFETY: the promise made to `from_raw`.
            let line = unsafe { bytes(header.field, header.len as usize) };
            Header::of(line, header.colon as usize)
        });
        host.chain(made.iter().map(|line| {
            let colon = line.iter().position(|&c| c == b':');
            Header::of(line, colon.unwrap_or(line.len()))
        }))
    }

    /// The value of the first header field of this name, in whatever spelling.
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers()
            .find(|header| header.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|header| String::from_utf8_lossy(header.value))
    }

    /// Whether the host is only warming the program up before it freezes it.
    pub fn is_warmup(&self) -> bool {
        self.is_warmup
    }

    /// Random bits, fresh for every request. Forks share the state of all generators in the program.
    pub fn random(&self) -> [u64; 2] {
        self.random
    }
}

/// A request in the making, by [`Request::builder`].
#[derive(Debug, Clone)]
pub struct RequestBuilder {
    request: Request<'static>,
}

impl RequestBuilder {
    /// Sets the method, which is GET otherwise.
    pub fn method(mut self, method: &str) -> Self {
        self.request.method = method.as_bytes().to_vec().into();
        self
    }

    /// Adds a header field. `Content-Type` is what [`Request::content_type`] gives as well.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if name.eq_ignore_ascii_case("content-type") {
            self.request.content_type = value.as_bytes().to_vec().into();
        }
        if let Lines::Made(lines) = &mut self.request.headers {
            lines.push(format!("{name}: {value}").into_bytes());
        }
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.request.body = body.into().into();
        self
    }

    /// Sets the text that VCL would pass along.
    pub fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.request.arg = arg.into().into();
        self
    }

    /// Sets the random bits, which are 0 otherwise: a test can be repeated.
    pub fn random(mut self, random: [u64; 2]) -> Self {
        self.request.random = random;
        self
    }

    /// Makes it a warm-up request.
    pub fn warmup(mut self) -> Self {
        self.request.is_warmup = true;
        self
    }

    /// The request.
    pub fn build(self) -> Request<'static> {
        self.request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_what_the_host_wrote() {
        let line = b"Host:  example.com \0";
        let headers = [raw::Header {
            field: line.as_ptr(),
            colon: 4,
            len: 19,
        }];
        let raw = raw::Request {
            method: c"GET".as_ptr().cast(),
            url: c"/\xffx".as_ptr().cast(),
            arg: std::ptr::null(),
            content_type: c"".as_ptr().cast(),
            method_len: 3,
            url_len: 3,
            arg_len: 0,
            content_type_len: 0,
            content: std::ptr::null(),
            content_len: 0,
            headers: headers.as_ptr(),
            num_headers: 1,
            info_flags: 1,
            reserved0: 0,
            prng: [1, 2],
            reserved1: [0; 2],
        };
        // SAFETY: all of it lives longer than the view.
        let request = unsafe { Request::from_raw(&raw) };
        assert_eq!(request.method(), "GET");
        assert_eq!(request.url(), "/\u{fffd}x");
        assert_eq!(request.url_bytes(), b"/\xffx");
        assert_eq!(request.arg(), "");
        assert_eq!(request.body(), b"");
        assert_eq!(request.header("HOST").as_deref(), Some("example.com"));
        assert_eq!(request.header("Accept"), None);
        assert!(request.is_warmup());
        assert_eq!(request.random(), [1, 2]);
    }

    #[test]
    fn a_test_makes_its_own() {
        let request = Request::builder("/a?b=c")
            .method("POST")
            .header("Content-Type", "a/b")
            .header("X-A", "  one  ")
            .header("x-a", "two")
            .body("data")
            .arg("an argument")
            .random([3, 4])
            .build();
        assert_eq!((&*request.method(), &*request.url()), ("POST", "/a?b=c"));
        assert_eq!(request.content_type(), "a/b");
        assert_eq!(request.header("x-A").as_deref(), Some("one"));
        assert_eq!(request.headers().count(), 3);
        assert_eq!(
            (request.body(), &*request.arg()),
            (&b"data"[..], "an argument")
        );
        assert_eq!((request.random(), request.is_warmup()), ([3, 4], false));
        assert!(Request::builder("/").warmup().build().is_warmup());
    }
}
