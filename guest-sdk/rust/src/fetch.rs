//! Fetches by HTTP, which the host makes: from where the tenant's `allow_net` says, within the request's time.

use std::cell::Cell;
use std::io::{self, Cursor, Read};

use crate::{hypercall, mock, native, raw, yield_now, Response};

/// Most that are open at a time.
const MOST: usize = 8;
/// Linux's number for one more.
const EMFILE: i32 = 24;

thread_local! {
    /// How many are open, and of how many of these the whole response is waited for.
    static OPEN: Cell<usize> = const { Cell::new(0) };
    static SENT: Cell<usize> = const { Cell::new(0) };
}

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

    /// The URL, or the path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The method.
    pub fn method_name(&self) -> &str {
        &self.method
    }

    /// The value of the first header field of this name, in whatever spelling.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        let mut fields = self.headers.iter().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// What is sent.
    pub fn body_bytes(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    /// Fetches all of it. Those of a [`join`](crate::join) or [`join_all`](crate::join_all) are under way at the same time, eight at most:
    /// others wait until one of these has come.
    ///
    /// ```no_run
    /// use forkvm_guest::{block_on, join, serve, Fetch, Response};
    ///
    /// async fn both() -> std::io::Result<String> {
    ///     let (one, other) = (Fetch::get("https://api.example/one"), Fetch::get("https://api.example/other"));
    ///     let (one, other) = join(one.send(), other.send()).await;
    ///     Ok(format!("{}{}", one?.text(), other?.text()))
    /// }
    ///
    /// serve(|_| match block_on(both()) {
    ///     Ok(text) => Response::text(text),
    ///     Err(error) => Response::text(format!("{error}\n")).status(502),
    /// });
    /// ```
    ///
    /// # Errors
    /// Why it does not come. The log says more.
    pub async fn send(&self) -> io::Result<Fetched> {
        // Where none of those that are open will be closed by waiting, the host says so.
        while OPEN.get() >= MOST && SENT.get() > 0 {
            yield_now().await;
        }
        let mut fetching = self.begin()?;
        let _sent = Sent::new();
        // The others begin before this one is waited for.
        yield_now().await;
        let head = fetching.head()?;
        let mut body = Vec::new();
        fetching.read_to_end(&mut body)?;
        Ok(Fetched { head, body })
    }

    /// Begins it, and does not wait for it. A request may have eight under way.
    ///
    /// # Errors
    /// What is known at once. The log says more.
    pub fn begin(&self) -> io::Result<Fetching> {
        let source = match native::is_native() {
            // As the host counts them.
            true if OPEN.get() >= MOST => return Err(io::Error::from_raw_os_error(EMFILE)),
            true => Source::of(mock::fetch(self)?),
            false => Source::Host(self.begin_by_host()?),
        };
        OPEN.set(OPEN.get() + 1);
        Ok(Fetching { source })
    }

    fn begin_by_host(&self) -> io::Result<usize> {
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
        raw::result(unsafe { hypercall(raw::FETCH_BEGIN, [what, 0, 0, 0, 0, 0]) })
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

/// One whose whole response is waited for.
struct Sent;

impl Sent {
    fn new() -> Self {
        SENT.set(SENT.get() + 1);
        Sent
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        SENT.set(SENT.get() - 1);
    }
}

/// A response that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its status and headers.
    pub head: FetchHead,
    /// Its body, as it was sent.
    pub body: Vec<u8>,
}

impl Fetched {
    /// The body as text, with what is not UTF-8 replaced.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// A fetch under way. What is read of it is the response's body. It ends when it is dropped.
#[derive(Debug)]
pub struct Fetching {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Of the host, which knows it by a number.
    Host(usize),
    /// Of a test.
    Made(FetchHead, Cursor<Vec<u8>>),
}

impl Source {
    fn of(response: Response) -> Self {
        let kind = [("content-type", response.content_type())];
        let kind = kind.into_iter().filter(|(_, value)| !value.is_empty());
        let head = FetchHead {
            status: response.status_code(),
            headers: kind
                .chain(response.headers())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            length: Some(response.body().len() as u64),
        };
        Source::Made(head, Cursor::new(response.body().to_vec()))
    }
}

impl Fetching {
    /// Waits for the response's head. Any status is one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn head(&mut self) -> io::Result<FetchHead> {
        let number = match &self.source {
            Source::Host(number) => *number,
            Source::Made(head, _) => return Ok(head.clone()),
        };
        let mut head = raw::FetchHead::default();
        let out = std::ptr::from_mut(&mut head) as usize;
        // SAFETY: the host writes the structure.
        raw::result(unsafe { hypercall(raw::FETCH_HEAD, [number, out, 0, 0, 0, 0]) })?;
        let mut lines = vec![0u8; head.headers_len as usize];
        let (at, room) = (lines.as_mut_ptr() as usize, lines.len());
        if room > 0 {
            // SAFETY: the host writes the structure again, and so many bytes.
            raw::result(unsafe { hypercall(raw::FETCH_HEAD, [number, out, at, room, 0, 0]) })?;
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
        let number = match &mut self.source {
            Source::Host(number) => *number,
            Source::Made(_, body) => return body.read(buf),
        };
        let (at, len) = (buf.as_mut_ptr() as usize, buf.len());
        // SAFETY: the host writes at most so many bytes there.
        raw::result(unsafe { hypercall(raw::FETCH_READ, [number, at, len, 0, 0, 0]) })
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        OPEN.set(OPEN.get().saturating_sub(1));
        if let Source::Host(number) = self.source {
            // SAFETY: no memory is touched.
            unsafe { hypercall(raw::FETCH_CLOSE, [number, 0, 0, 0, 0, 0]) };
        }
    }
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

    #[test]
    fn a_test_answers_them() {
        mock::on_fetch(|fetch| match (fetch.method_name(), fetch.url()) {
            ("POST", "http://a/") => {
                let said = String::from_utf8_lossy(fetch.body_bytes()).into_owned();
                let text = Response::text(said + fetch.header_value("x-a").unwrap_or("-"));
                Ok(text.status(201).header("X-B", "c"))
            }
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        });
        let mut fetching = Fetch::post("http://a/", "b")
            .header("X-A", "d")
            .begin()
            .expect("one");
        let head = fetching.head().expect("a head");
        assert_eq!((head.status, head.length), (201, Some(2)));
        assert_eq!(head.header("x-b"), Some("c"));
        assert_eq!(
            head.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(fetching.text().expect("a text"), "bd");
        let refused = Fetch::get("http://a/").begin().expect_err("refused");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn those_that_are_joined_begin_before_one_is_waited_for() {
        let begun = std::rc::Rc::new(Cell::new(0));
        let counts = begun.clone();
        mock::on_fetch(move |fetch| {
            counts.set(counts.get() + 1);
            Ok(Response::text(fetch.url()))
        });
        let seen = &begun;
        let get = |url: String| async move {
            let text = Fetch::get(url)
                .send()
                .await
                .expect("a response")
                .text()
                .into_owned();
            (text, seen.get())
        };
        let both = crate::block_on(crate::join(get("a".into()), get("b".into())));
        assert_eq!(both, (("a".into(), 2), ("b".into(), 2)));
        // More than may be open.
        begun.set(0);
        let many = crate::block_on(crate::join_all((0..20).map(|n| get(n.to_string()))));
        assert!(many
            .iter()
            .enumerate()
            .all(|(n, (text, _))| *text == n.to_string()));
        assert_eq!((many[0].1, begun.get()), (8, 20));
        assert_eq!((OPEN.get(), SENT.get()), (0, 0));
        // Those that nobody waits for don't end.
        let open: Vec<_> = (0..8)
            .map(|_| Fetch::get("a").begin().expect("one"))
            .collect();
        let error = crate::block_on(Fetch::get("b").send()).expect_err("one too many");
        assert_eq!(error.raw_os_error(), Some(EMFILE));
        drop(open);
        assert!(crate::block_on(Fetch::get("b").send()).is_ok());
    }
}
