//! The request, as a view of what the host wrote.

use std::borrow::Cow;
use std::marker::PhantomData;

use crate::raw;

/// A request. All texts are as the client sent them: the `Cow`s replace what is not UTF-8.
pub struct Request<'a> {
    raw: *const raw::Request,
    lives: PhantomData<&'a raw::Request>,
}

/// A header field of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name, in the client's spelling.
    pub name: &'a [u8],
    /// The value, without the blanks around it.
    pub value: &'a [u8],
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
        Request {
            raw,
            lives: PhantomData,
        }
    }

    fn raw(&self) -> &'a raw::Request {
        // SAFETY: the promise made to `from_raw`.
        unsafe { &*self.raw }
    }

    /// `"GET"` and the like.
    pub fn method(&self) -> Cow<'a, str> {
        let raw = self.raw();
        // SAFETY: the promise made to `from_raw`.
        String::from_utf8_lossy(unsafe { bytes(raw.method, raw.method_len.into()) })
    }

    /// Path and query string.
    pub fn url(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.url_bytes())
    }

    /// Path and query string, as they are.
    pub fn url_bytes(&self) -> &'a [u8] {
        let raw = self.raw();
        // SAFETY: the promise made to `from_raw`.
        unsafe { bytes(raw.url, raw.url_len.into()) }
    }

    /// The text that VCL passes along.
    pub fn arg(&self) -> Cow<'a, str> {
        let raw = self.raw();
        // SAFETY: the promise made to `from_raw`.
        String::from_utf8_lossy(unsafe { bytes(raw.arg, raw.arg_len.into()) })
    }

    /// The type of the body; empty when there is none.
    pub fn content_type(&self) -> Cow<'a, str> {
        let raw = self.raw();
        // SAFETY: the promise made to `from_raw`.
        String::from_utf8_lossy(unsafe { bytes(raw.content_type, raw.content_type_len.into()) })
    }

    /// The body.
    pub fn body(&self) -> &'a [u8] {
        let raw = self.raw();
        // SAFETY: the promise made to `from_raw`.
        unsafe { bytes(raw.content, raw.content_len) }
    }

    /// All header fields, in their order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> {
        let raw = self.raw();
        let fields: &'a [raw::Header] = if raw.headers.is_null() {
            &[]
        } else {
            // SAFETY: the promise made to `from_raw`.
            unsafe { std::slice::from_raw_parts(raw.headers, raw.num_headers.into()) }
        };
        fields.iter().map(|header| {
            // SAFETY: the promise made to `from_raw`.
            let line = unsafe { bytes(header.field, header.len as usize) };
            let (name, value) = line.split_at(line.len().min(header.colon as usize));
            Header {
                name,
                value: value.strip_prefix(b":").unwrap_or(value).trim_ascii(),
            }
        })
    }

    /// The value of the first header field of this name, in whatever spelling.
    pub fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        self.headers()
            .find(|header| header.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|header| String::from_utf8_lossy(header.value))
    }

    /// Whether the host is only warming the program up before it freezes it.
    pub fn is_warmup(&self) -> bool {
        self.raw().info_flags & 1 != 0
    }

    /// Random bits, fresh for every request. Forks share the state of all generators in the program.
    pub fn random(&self) -> [u64; 2] {
        self.raw().prng
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
}
