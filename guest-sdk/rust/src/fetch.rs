//! Fetches by HTTP, which the host makes: from where the tenant's `allow_net` says, within the request's time.

use std::io::{self, Read};

use crate::{hypercall, raw};

/// Something to be fetched, said step by step. In requests only.
///
/// ```no_run
/// use forkvm_guest::{serve, Fetch, Response};
///
/// serve(|_| {
///     // Both are under way at once.
///     let one = Fetch::get("https://api.example/one").begin();
///     let other = Fetch::get("https://api.example/other").header("Accept", "text/plain").begin();
///     match (one.and_then(|one| one.text()), other.and_then(|other| other.text())) {
///         (Ok(one), Ok(other)) => Response::text(one + &other),
///         (Err(error), _) | (_, Err(error)) => Response::text(format!("{error}\n")).status(502),
///     }
/// });
/// ```
#[derive(Debug, Clone, Default)]
pub struct Fetch {
    url: String,
    method: String,
    headers: Vec<String>,
    body: Option<Vec<u8>>,
    follow: bool,
    unverified: bool,
    own: bool,
}

impl Fetch {
    /// A GET of a URL.
    pub fn get(url: impl Into<String>) -> Self {
        Fetch {
            url: url.into(),
            method: "GET".into(),
            ..Fetch::default()
        }
    }

    /// A POST of this body.
    pub fn post(url: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Fetch {
            method: "POST".into(),
            body: Some(body.into()),
            ..Fetch::get(url)
        }
    }

    /// A GET of a path, `/page?query`, of the Varnish that this program runs in, where its VCL allows that.
    pub fn own(path: impl Into<String>) -> Self {
        Fetch {
            own: true,
            ..Fetch::get(path)
        }
    }

    /// Sets the method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    /// Adds a header field; there may be 64.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(format!("{name}: {value}"));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Follows redirects, ten at most.
    pub fn follow_redirects(mut self) -> Self {
        self.follow = true;
        self
    }

    /// Takes a certificate of whatever name, if the tenant may (`fetch_unverified`).
    pub fn any_name(mut self) -> Self {
        self.unverified = true;
        self
    }

    /// Begins it, and does not wait for it. A request may have eight under way.
    ///
    /// # Errors
    /// What is known at once. The log says more.
    pub fn begin(&self) -> io::Result<Fetching> {
        let headers: Vec<raw::ResponseHeader> = self
            .headers
            .iter()
            .map(|line| raw::ResponseHeader {
                field: line.as_ptr(),
                len: line.len(),
            })
            .collect();
        let short = |len: usize| {
            u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let what = raw::Fetch {
            url: self.url.as_ptr(),
            url_len: short(self.url.len())?,
            method_len: short(self.method.len())?,
            method: self.method.as_ptr(),
            headers: headers.as_ptr(),
            num_headers: u16::try_from(headers.len()).unwrap_or(u16::MAX),
            follow: self.follow,
            unverified: self.unverified,
            own: self.own,
            // No pointer at all is no body at all.
            body: self.body.as_ref().map_or(std::ptr::null(), Vec::as_ptr),
            body_len: self.body.as_ref().map_or(0, Vec::len),
            reserved: 0,
        };
        let what = std::ptr::from_ref(&what) as usize;
        // SAFETY: the host reads the structure and what it points to, all of which lives until the call is over.
        let number = result(unsafe { hypercall(raw::FETCH_BEGIN, [what, 0, 0, 0, 0, 0]) })?;
        Ok(Fetching { number })
    }
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchHead {
    /// Its status.
    pub status: u16,
    /// The names of its headers, in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// How long its body is, if that is known.
    pub length: Option<u64>,
}

impl FetchHead {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn of(raw: &raw::FetchHead, lines: &[u8]) -> Self {
        let lines = String::from_utf8_lossy(lines);
        let headers = lines.lines().filter_map(|line| line.split_once(": "));
        FetchHead {
            status: raw.status as u16,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            length: u64::try_from(raw.content_len).ok(),
        }
    }
}

/// A fetch under way. What is read of it is the response's body. It ends when it is dropped.
#[derive(Debug)]
pub struct Fetching {
    number: usize,
}

impl Fetching {
    /// Waits for the response's head. Any status is one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn head(&mut self) -> io::Result<FetchHead> {
        let mut head = raw::FetchHead::default();
        let out = std::ptr::from_mut(&mut head) as usize;
        // SAFETY: the host writes the structure.
        result(unsafe { hypercall(raw::FETCH_HEAD, [self.number, out, 0, 0, 0, 0]) })?;
        let mut lines = vec![0u8; head.headers_len as usize];
        let (at, room) = (lines.as_mut_ptr() as usize, lines.len());
        if room > 0 {
            // SAFETY: the host writes the structure again, and so many bytes.
            result(unsafe { hypercall(raw::FETCH_HEAD, [self.number, out, at, room, 0, 0]) })?;
        }
        Ok(FetchHead::of(&head, &lines))
    }

    /// All of the body, as text.
    ///
    /// # Errors
    /// Why it does not come, or that it is not UTF-8.
    pub fn text(mut self) -> io::Result<String> {
        let mut text = String::new();
        self.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Read for Fetching {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (at, len) = (buf.as_mut_ptr() as usize, buf.len());
        // SAFETY: the host writes at most so many bytes there.
        result(unsafe { hypercall(raw::FETCH_READ, [self.number, at, len, 0, 0, 0]) })
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // SAFETY: no memory is touched.
        unsafe { hypercall(raw::FETCH_CLOSE, [self.number, 0, 0, 0, 0, 0]) };
    }
}

/// What a call gives: a number, or one of Linux's errors.
fn result(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-(result as i32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nobody_who_fetches_outside_of_a_virtual_machine() {
        let error = Fetch::post("http://a/", "b").header("X-A", "b").begin();
        let error = error.expect_err("nobody is there");
        assert_eq!(error.raw_os_error(), Some(38));
    }

    #[test]
    fn heads_are_read() {
        let raw = raw::FetchHead {
            status: 200,
            headers_len: 0,
            content_len: -1,
        };
        let head = FetchHead::of(&raw, b"content-type: text/a\r\nx-twice: 1\r\nx-twice: \r\n");
        assert_eq!((head.status, head.length), (200, None));
        assert_eq!(head.header("Content-Type"), Some("text/a"));
        assert_eq!(head.header("x-twice"), Some("1"));
        assert_eq!(head.headers[2], ("x-twice".into(), String::new()));
    }
}
