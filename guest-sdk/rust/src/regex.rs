//! Regular expressions, which the host compiles and matches.

use std::io;

use crate::mock::{self, Searches};
use crate::{hypercall, native, raw};

/// A regular expression, by the syntax of the [`regex`](https://docs.rs/regex/latest/regex/#syntax) crate, of bytes. Made in
/// `main()` it is there for every request.
///
/// ```no_run
/// use forkvm_guest::{serve, Regex, Response};
///
/// let number = Regex::new(r"^/(\d+)").expect("a pattern");
/// serve(move |request| match number.is_match(request.url_bytes()) {
///     Ok(true) => Response::text("a number\n"),
///     _ => Response::text("no number\n").status(404),
/// });
/// ```
///
/// In tests [`use_regex`](crate::use_regex) has them compiled.
pub struct Regex(By);

enum By {
    /// By the host, which knows it by a number.
    Host(usize),
    Test(Searches),
}

/// The longest result of a substitution.
const LONGEST: usize = 64 << 10;
/// For a result that is longer than the room for it.
const EMSGSIZE: i32 = 90;
const E2BIG: i32 = 7;

impl Regex {
    /// Compiles a pattern. There may be 64 at a time.
    ///
    /// # Errors
    /// It is none, it is too large, or there are too many. The log says more.
    pub fn new(pattern: &str) -> io::Result<Self> {
        if native::is_native() {
            return mock::compile(pattern).map(|searches| Regex(By::Test(searches)));
        }
        let (at, len) = (pattern.as_ptr() as usize, pattern.len());
        // SAFETY: the host reads so many bytes.
        let number = unsafe { hypercall(raw::REGEX_COMPILE, [at, len, 0, 0, 0, 0]) };
        raw::result(number).map(|number| Regex(By::Host(number)))
    }

    /// Whether it matches somewhere.
    ///
    /// # Errors
    /// The subject is longer than 64 KiB, or than so large a pattern allows.
    pub fn is_match(&self, subject: impl AsRef<[u8]>) -> io::Result<bool> {
        let subject = subject.as_ref();
        match &self.0 {
            By::Host(number) => {
                let (at, len) = (subject.as_ptr() as usize, subject.len());
                // SAFETY: the host reads so many bytes.
                let matches = unsafe { hypercall(raw::REGEX_MATCH, [*number, at, len, 0, 0, 0]) };
                raw::result(matches).map(|matches| matches > 0)
            }
            By::Test(searches) => Ok(searches(subject, 0).is_some()),
        }
    }

    /// The subject with `with` in the place of the first match, as VCL's `regsub()` does it: `\0` in it is all of the match, `\1` to
    /// `\9` are its groups, `\\` is a backslash.
    ///
    /// # Errors
    /// The subject is too long, or the result longer than 64 KiB.
    pub fn replace(
        &self,
        subject: impl AsRef<[u8]>,
        with: impl AsRef<[u8]>,
    ) -> io::Result<Vec<u8>> {
        self.substitute(subject.as_ref(), with.as_ref(), false)
    }

    /// The same in the place of each match.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn replace_all(
        &self,
        subject: impl AsRef<[u8]>,
        with: impl AsRef<[u8]>,
    ) -> io::Result<Vec<u8>> {
        self.substitute(subject.as_ref(), with.as_ref(), true)
    }

    fn substitute(&self, subject: &[u8], with: &[u8], all: bool) -> io::Result<Vec<u8>> {
        let number = match &self.0 {
            By::Host(number) => *number,
            By::Test(searches) => return substituted(searches, subject, with, all),
        };
        let mut result = vec![0; (subject.len() + with.len()).min(LONGEST)];
        loop {
            let what = raw::RegexSubst::new(subject, with, &mut result);
            let what = std::ptr::from_ref(&what) as usize;
            // SAFETY: the host reads the structure and what it points to, and writes to the result, which has that room.
            let len = unsafe { hypercall(raw::REGEX_SUBST, [number, what, all.into(), 0, 0, 0]) };
            match raw::result(len) {
                Ok(len) => {
                    result.truncate(len);
                    return Ok(result);
                }
                Err(error) if error.raw_os_error() == Some(EMSGSIZE) && result.len() < LONGEST => {
                    result.resize(LONGEST, 0);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        if let By::Host(number) = self.0 {
            // SAFETY: no memory is touched.
            unsafe { hypercall(raw::REGEX_FREE, [number, 0, 0, 0, 0, 0]) };
        }
    }
}

impl std::fmt::Debug for Regex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            By::Host(number) => write!(out, "Regex({number})"),
            By::Test(_) => write!(out, "Regex(of a test)"),
        }
    }
}

/// What the host does, in tests.
fn substituted(searches: &Searches, subject: &[u8], with: &[u8], all: bool) -> io::Result<Vec<u8>> {
    let mut result = Vec::new();
    let (mut done, mut from, mut last_end) = (0, 0, None);
    while from <= subject.len() {
        let Some(groups) = searches(subject, from) else {
            break;
        };
        let Some(found) = groups.first().cloned().flatten() else {
            break;
        };
        // An empty match right behind the one before is none.
        if found.is_empty() && last_end == Some(found.end) {
            from += 1;
            continue;
        }
        result.extend_from_slice(&subject[done..found.start]);
        let group = |nth: usize| Some(&subject[groups.get(nth)?.clone()?]);
        let mut rest = with.iter();
        while let Some(&byte) = rest.next() {
            let referred = match (byte, rest.as_slice().first()) {
                (b'\\', Some(digit @ b'0'..=b'9')) => group((digit - b'0').into()),
                (b'\\', Some(_)) => rest.as_slice().get(..1),
                _ => {
                    result.push(byte);
                    continue;
                }
            };
            rest.next();
            result.extend_from_slice(referred.unwrap_or_default());
        }
        (done, from, last_end) = (found.end, found.end, Some(found.end));
        if !all {
            break;
        }
    }
    result.extend_from_slice(&subject[done..]);
    if result.len() > LONGEST {
        return Err(io::Error::from_raw_os_error(E2BIG));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nobody_who_compiles_outside_of_a_virtual_machine() {
        let error = Regex::new("a").expect_err("nobody is there");
        assert_eq!(error.raw_os_error(), Some(38));
    }

    #[test]
    fn they_work_in_tests() {
        crate::use_regex!();
        let regex = Regex::new("(b)(x)?|e").expect("a pattern");
        assert!(regex.is_match("abc").expect("yes") && !regex.is_match(b"xyz").expect("no"));
        let replaced = |with: &str, all| {
            let result = regex.substitute(b"to be", with.as_bytes(), all);
            String::from_utf8(result.expect("a result")).expect("a text")
        };
        assert_eq!(replaced(r"[\1\2\0\&\\\x\", false), r"to [bb&\x\e");
        assert_eq!(replaced("<\\0>", true), "to <b><e>");
        assert_eq!(regex.replace("xyz", "-").expect("it"), b"xyz");
        let empty = Regex::new("b*").expect("a pattern");
        assert_eq!(empty.replace_all("abbc", "-").expect("it"), b"-a-c-");
        assert!(regex.replace_all("b".repeat(40_000), "--").is_err());
        let error = Regex::new("a(").expect_err("no pattern");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
