//! The host's part in tests, outside of a virtual machine: what is fetched, and by what regular expressions match. It is each thread's own,
//! so that tests may run at the same time.
//!
//! ```
//! use forkvm_guest::{mock, Fetch, Request, Response};
//!
//! fn handle(_: &Request) -> Response {
//!     match Fetch::get("https://api.example/name").begin().and_then(|name| name.text()) {
//!         Ok(name) => Response::text(format!("Hello, {name}!\n")),
//!         Err(error) => Response::text(format!("{error}\n")).status(502),
//!     }
//! }
//!
//! mock::on_fetch(|fetch| match fetch.url() {
//!     "https://api.example/name" => Ok(Response::text("Ann")),
//!     _ => Err(std::io::ErrorKind::PermissionDenied.into()),
//! });
//! assert_eq!(handle(&Request::builder("/").build()).body_text(), "Hello, Ann!\n");
//! ```

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use crate::{Fetch, Response};

/// Linux's number for a call that is not there.
const ENOSYS: i32 = 38;

type Answers = Box<dyn FnMut(&Fetch) -> io::Result<Response>>;
type Compiles = Box<dyn Fn(&str) -> Result<Searches, String>>;

/// Finds a pattern's next match in a subject, from so many bytes on: where its groups are, of which the first is all of it.
pub type Searches = Box<dyn Fn(&[u8], usize) -> Option<Vec<Option<Range<usize>>>> + Send + Sync>;

thread_local! {
    static ANSWERS: RefCell<Option<Answers>> = const { RefCell::new(None) };
    static COMPILES: RefCell<Option<Compiles>> = const { RefCell::new(None) };
}

/// Has a function answer this thread's fetches. An error is what a host gives that can't or may not fetch it.
pub fn on_fetch(answer: impl FnMut(&Fetch) -> io::Result<Response> + 'static) {
    ANSWERS.set(Some(Box::new(answer)));
}

/// Has a function compile this thread's regular expressions, or say what is wrong with one. See [`use_regex`](crate::use_regex).
pub fn on_regex(compile: impl Fn(&str) -> Result<Searches, String> + 'static) {
    COMPILES.set(Some(Box::new(compile)));
}

/// Has this thread's regular expressions compiled by the crate `regex`, which is what the host does. It has to be among the
/// program's `[dev-dependencies]`: `regex = "1"`.
///
/// ```
/// forkvm_guest::use_regex!();
/// let word = forkvm_guest::Regex::new(r"(\w)\w*").expect("a pattern");
/// assert_eq!(word.replace_all("to be", r"\1").expect("a text"), b"t b");
/// ```
#[macro_export]
macro_rules! use_regex {
    () => {
        $crate::mock::on_regex(|pattern| {
            let regex = ::regex::bytes::RegexBuilder::new(pattern)
                .unicode(false)
                .build();
            let regex = regex.map_err(|error| error.to_string())?;
            Ok(Box::new(move |subject, from| {
                let groups = regex.captures_at(subject, from)?;
                Some(groups.iter().map(|group| Some(group?.range())).collect())
            }))
        })
    };
}

/// What is fetched.
pub(crate) fn fetch(fetch: &Fetch) -> io::Result<Response> {
    let nobody = || io::Error::from_raw_os_error(ENOSYS);
    // It may fetch something itself.
    let mut answers = ANSWERS.take().ok_or_else(nobody)?;
    let answer = answers(fetch);
    ANSWERS.with_borrow_mut(|next| {
        next.get_or_insert(answers);
    });
    answer
}

/// The pattern, compiled.
pub(crate) fn compile(pattern: &str) -> io::Result<Searches> {
    let wrong = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    COMPILES.with_borrow(|compile| match compile {
        Some(compile) => compile(pattern).map_err(wrong),
        None => Err(io::Error::from_raw_os_error(ENOSYS)),
    })
}

/// A response as `curl -i` prints it, or the body alone.
pub(crate) fn recorded(bytes: &[u8]) -> Option<Response> {
    if !bytes.starts_with(b"HTTP/") {
        return Some(Response::new("", bytes));
    }
    let ends: [&[u8]; 2] = [b"\r\n\r\n", b"\n\n"];
    let end = |end: &&[u8]| {
        let at = bytes.windows(end.len()).position(|window| window == *end)?;
        Some((at, at + end.len()))
    };
    let (head, body) = ends.iter().filter_map(end).min()?;
    let head = String::from_utf8_lossy(&bytes[..head]);
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let fields: Vec<_> = fields.map(|(name, value)| (name, value.trim())).collect();
    let is_type = |name: &str| name.eq_ignore_ascii_case("content-type");
    let kind = fields.iter().find(|(name, _)| is_type(name));
    let made = Response::new(kind.map_or("", |(_, value)| value), &bytes[body..]).status(status);
    let others = fields.iter().filter(|(name, _)| !is_type(name));
    Some(others.fold(made, |made, (name, value)| made.header(name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read_as_they_were_recorded() {
        let text = b"HTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\nX-A:  c \r\n\r\nbody\n\nof it";
        let response = recorded(text).expect("a response");
        assert_eq!(response.status_code(), 404);
        assert_eq!(response.content_type(), "a/b");
        assert_eq!(response.headers().collect::<Vec<_>>(), [("X-A", "c")]);
        assert_eq!(response.body(), b"body\n\nof it");
        assert_eq!(recorded(b"body").expect("one").body(), b"body");
        assert_eq!(recorded(b"HTTP/1.1 200 OK\n\nx").expect("one").body(), b"x");
        for bad in ["HTTP/1.1 200 OK", "HTTP/1.1 x\r\n\r\n", "HTTP/\n\n"] {
            assert_eq!(recorded(bad.as_bytes()), None, "{bad}");
        }
    }
}
