//! Substitution by regular expressions, as VCL's `regsub()` and `regsuball()` have it: in what takes the place of a match `\0` is
//! all of it, `\1` to `\9` are its groups, and a backslash before anything else is left out.

use regex_automata::util::iter::Searcher;
use regex_automata::{Input, Match};

use crate::regexes::{Compiled, Groups};

/// The longest result, in bytes.
pub const LONGEST_RESULT: usize = 64 << 10;

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSubstituted {
    /// It would be longer than [`LONGEST_RESULT`].
    TooLong,
    /// There was no time.
    Late,
}

/// Puts `with` in the place of the first match in a subject, or of `all` matches. `None` if there is none.
///
/// A search takes time that grows with the subject, and one follows each match: `is_late` is asked before each.
pub fn substitute(
    regex: &Compiled,
    subject: &[u8],
    with: &[u8],
    all: bool,
    is_late: impl Fn() -> bool,
) -> Result<Option<Vec<u8>>, NotSubstituted> {
    let mut searcher = Searcher::new(Input::new(subject));
    let mut result = Vec::new();
    let (mut groups, mut done, mut matches) = (Groups::default(), 0, 0);
    while all || matches == 0 {
        if is_late() {
            return Err(NotSubstituted::Late);
        }
        let next = searcher.advance(|input| Ok(search(regex, input, &mut groups)));
        let Some(found) = next else {
            break;
        };
        extend(&mut result, &subject[done..found.start()])?;
        expand(&mut result, with, subject, &groups)?;
        done = found.end();
        matches += 1;
    }
    if matches == 0 {
        return Ok(None);
    }
    extend(&mut result, &subject[done..])?;
    Ok(Some(result))
}

/// The next match, with its groups.
fn search(regex: &Compiled, input: &Input<'_>, groups: &mut Groups) -> Option<Match> {
    *groups = regex.search(input)?;
    let (start, end) = span(groups, 0)?;
    Some(Match::must(0, start..end))
}

/// Where a group is, if it is part of the match.
fn span(groups: &Groups, nth: usize) -> Option<(usize, usize)> {
    let (start, end) = (groups.get(2 * nth)?, groups.get(2 * nth + 1)?);
    Some((start.as_ref()?.get(), end.as_ref()?.get()))
}

/// Adds what takes a match's place.
fn expand(
    result: &mut Vec<u8>,
    with: &[u8],
    subject: &[u8],
    groups: &Groups,
) -> Result<(), NotSubstituted> {
    let mut rest = with;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        extend(result, &rest[..at])?;
        let nth = match rest.get(at + 1) {
            // The last byte is only itself.
            None => return extend(result, b"\\"),
            Some(digit @ b'0'..=b'9') => Some(usize::from(digit - b'0')),
            Some(&other) => {
                extend(result, &[other])?;
                None
            }
        };
        if let Some((start, end)) = nth.and_then(|nth| span(groups, nth)) {
            extend(result, &subject[start..end])?;
        }
        rest = &rest[at + 2..];
    }
    extend(result, rest)
}

fn extend(result: &mut Vec<u8>, bytes: &[u8]) -> Result<(), NotSubstituted> {
    if result.len() + bytes.len() > LONGEST_RESULT {
        return Err(NotSubstituted::TooLong);
    }
    result.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use regex::bytes::{Captures, Regex, RegexBuilder};

    use super::*;
    use crate::regexes::Regexes;

    fn compiled(pattern: &str) -> Regexes {
        let mut regexes = Regexes::default();
        assert_eq!(regexes.compile(pattern.as_bytes()), Ok(1), "{pattern}");
        regexes
    }

    fn all(pattern: &str, subject: &[u8], with: &[u8], all: bool) -> Option<Vec<u8>> {
        let regexes = compiled(pattern);
        substitute(regexes.get(1).unwrap(), subject, with, all, || false).unwrap()
    }

    #[test]
    fn groups_are_put_in() {
        let once = |pattern, with| {
            let result = all(pattern, b"to be or not", with, false)?;
            Some(String::from_utf8(result).unwrap())
        };
        for (pattern, with, expected) in [
            ("be", &b"go"[..], "to go or not"),
            ("(b)(e)", b"\\2\\1-\\0-\\&", "to eb-be-& or not"),
            ("b(x)?e", b"[\\1\\9]", "to [] or not"),
            ("be", b"\\\\ \\n \\", "to \\ n \\ or not"),
            ("$", b"!", "to be or not!"),
            ("be", b"", "to  or not"),
        ] {
            assert_eq!(once(pattern, with).as_deref(), Some(expected));
        }
        assert_eq!(once("question", b"x"), None);
    }

    /// As the regex crate replaces, for patterns, subjects and replacements made by a generator.
    #[test]
    fn it_is_what_the_regex_crate_does() {
        let pieces = [
            "a", "b", ".", "(a)", "(b|)", "(a*)", "b+?", "[^b]", "(?:ab)?", "^", "$", r"\b",
            "(c)?", "(?i)B",
        ];
        let mut random = 1u64;
        let mut below = |most: usize| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) as usize % most
        };
        let mut matched = 0;
        for _ in 0..3000 {
            let pattern: String = (0..1 + below(4))
                .map(|_| pieces[below(pieces.len())])
                .collect();
            let subject: Vec<u8> = (0..below(12)).map(|_| b"aabbc\xff\n"[below(7)]).collect();
            let with = [&b"\\0"[..], b"<\\1>", b"\\2\\1", b"x\\9", b"", b"\\\\\\&"][below(6)];
            let reference = RegexBuilder::new(&pattern).unicode(false).build().unwrap();
            let expected = |limit| reference.replacen(&subject, limit, reference_of(with));
            for (is_all, limit) in [(false, 1), (true, 0)] {
                let got = all(&pattern, &subject, with, is_all);
                matched += usize::from(got.is_some());
                assert_eq!(got.is_some(), reference.is_match(&subject));
                let got = got.unwrap_or(subject.clone());
                assert_eq!(
                    got,
                    *expected(limit),
                    "{pattern} {subject:?} {with:?} {is_all}"
                );
            }
        }
        assert!(matched > 2000, "{matched}");
    }

    /// What takes a match's place, another way.
    fn reference_of(with: &[u8]) -> impl FnMut(&Captures<'_>) -> Vec<u8> {
        let token = Regex::new(r"(?s-u)\\(.)").unwrap();
        move |captures| {
            token
                .replace_all(with, |token: &Captures<'_>| match token[1][0] {
                    digit @ b'0'..=b'9' => captures
                        .get((digit - b'0').into())
                        .map_or(Vec::new(), |group| group.as_bytes().to_vec()),
                    other => vec![other],
                })
                .into_owned()
        }
    }

    #[test]
    fn results_are_bounded_and_so_is_the_time() {
        let subject = vec![b'a'; LONGEST_RESULT];
        let regexes = compiled("a");
        let regex = regexes.get(1).unwrap();
        let same = substitute(regex, &subject, b"b", true, || false).unwrap();
        assert_eq!(same, Some(vec![b'b'; LONGEST_RESULT]));
        for with in [&b"\\0\\0"[..], &b"\\0".repeat(1 << 20)] {
            let refused = substitute(regex, &subject, with, true, || false);
            assert_eq!(refused, Err(NotSubstituted::TooLong));
        }
        let calls = std::cell::Cell::new(0);
        let late = substitute(regex, &subject, b"b", true, || {
            calls.replace(calls.get() + 1) == 5
        });
        assert_eq!((late, calls.get()), (Err(NotSubstituted::Late), 6));
    }
}
