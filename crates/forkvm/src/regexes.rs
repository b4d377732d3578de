//! Regular expressions that a program has the host compile and match: in linear time, and within these limits of the host's
//! memory, which no request's limit counts.

use std::sync::Arc;

use regex::Error;
use regex::bytes::{Regex, RegexBuilder};

/// The longest pattern, in bytes.
pub const LONGEST_PATTERN: u64 = 4 << 10;
/// The longest subject, in bytes: whatever the pattern, it takes less than a second or so.
pub const LONGEST_SUBJECT: u64 = 64 << 10;
/// Most of them at a time.
const MOST: usize = 64;
/// Memory for a compiled one, and for what a thread remembers of its matches.
const COMPILED: usize = 64 << 10;
const REMEMBERED: usize = 128 << 10;
/// How deep groups and what they have may be. The compiler takes 1.3 KiB of the stack for each, and a thread of varnishd has 80 KiB,
/// of which a third may be in use by then.
const DEEPEST: u32 = 16;

/// Those of a machine.
#[derive(Debug, Clone, Default)]
pub struct Regexes {
    /// By their numbers, less one. Forks share what main() has compiled.
    compiled: Vec<Option<Arc<Regex>>>,
    /// Since the last reset.
    changed: bool,
}

/// Why one can't be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCompiled {
    /// There are too many.
    #[error("{MOST} regular expressions are there already")]
    TooMany,
    /// Its size.
    #[error("the pattern needs more than {COMPILED} bytes when it is compiled")]
    TooBig,
    /// What is wrong with it.
    #[error("{0}")]
    Invalid(String),
}

impl Regexes {
    /// Compiles one. Its number, from 1 on.
    pub fn compile(&mut self, pattern: &[u8]) -> Result<usize, NotCompiled> {
        let free = self.compiled.iter().position(Option::is_none);
        if free.is_none() && self.compiled.len() >= MOST {
            return Err(NotCompiled::TooMany);
        }
        let pattern = str::from_utf8(pattern)
            .map_err(|_| NotCompiled::Invalid("the pattern is not UTF-8".into()))?;
        // Subjects are bytes, of whatever encoding.
        let regex = RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(COMPILED)
            .dfa_size_limit(REMEMBERED)
            .nest_limit(DEEPEST)
            .build()
            .map_err(|error| match error {
                Error::CompiledTooBig(_) => NotCompiled::TooBig,
                // Its other lines show where, in a pattern that may be long.
                other => {
                    let text = other.to_string();
                    let last = text.lines().last().unwrap_or_default();
                    let what = last.strip_prefix("error: ").unwrap_or(last);
                    NotCompiled::Invalid(what.to_owned())
                }
            })?;
        let regex = Some(Arc::new(regex));
        self.changed = true;
        Ok(match free {
            Some(index) => {
                self.compiled[index] = regex;
                index + 1
            }
            None => {
                self.compiled.push(regex);
                self.compiled.len()
            }
        })
    }

    /// Forgets one. False if there is none of this number.
    pub fn free(&mut self, number: u64) -> bool {
        let freed = index(number)
            .and_then(|index| self.compiled.get_mut(index))
            .and_then(Option::take);
        self.changed |= freed.is_some();
        freed.is_some()
    }

    /// Whether the one of this number matches somewhere. `None` if there is none.
    pub fn is_match(&self, number: u64, subject: &[u8]) -> Option<bool> {
        let regex = self.compiled.get(index(number)?)?.as_ref()?;
        Some(regex.is_match(subject))
    }

    /// Makes them the master's again.
    pub fn restore_from(&mut self, master: &Self) {
        if std::mem::take(&mut self.changed) {
            self.compiled.clone_from(&master.compiled);
        }
    }

    /// Those of a machine that is frozen now.
    pub fn to_frozen(&self) -> Self {
        Self {
            compiled: self.compiled.clone(),
            changed: false,
        }
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_match_bytes() {
        let mut regexes = Regexes::default();
        let number = regexes.compile(br"^a\w+\xff$").unwrap() as u64;
        assert_eq!(number, 1);
        assert_eq!(regexes.is_match(1, b"abc\xff"), Some(true));
        assert_eq!(regexes.is_match(1, b"abc"), Some(false));
        for none in [0, 2, 64, 65, 1 << 63, u64::MAX] {
            assert_eq!(regexes.is_match(none, b""), None);
            assert!(!regexes.free(none));
        }
        assert!(regexes.free(1) && !regexes.free(1));
        assert_eq!(regexes.is_match(1, b""), None);
    }

    #[test]
    fn there_are_only_so_many() {
        let mut regexes = Regexes::default();
        for number in 1..=MOST {
            assert_eq!(regexes.compile(b"a"), Ok(number));
        }
        assert_eq!(regexes.compile(b"a"), Err(NotCompiled::TooMany));
        assert!(regexes.free(7));
        assert_eq!(regexes.compile(b"b"), Ok(7));
        assert_eq!(regexes.is_match(7, b"b"), Some(true));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        let mut regexes = Regexes::default();
        for (pattern, why) in [
            (&b"a("[..], "unclosed group"),
            (b"(?=a)", "look-around"),
            (b"(a)\\1", "backreferences"),
            (b"\xff", "not UTF-8"),
            (&[b"(".repeat(100), b")".repeat(100)].concat(), "nest"),
        ] {
            let refused = regexes.compile(pattern).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        for big in ["(a{1,100}){1,100}", "[a-z]{60000}", "((a|b){99}){99}"] {
            let refused = regexes.compile(big.as_bytes());
            assert_eq!(refused, Err(NotCompiled::TooBig), "{big}");
        }
    }

    #[test]
    fn a_reset_undoes_what_a_fork_did() {
        let mut main = Regexes::default();
        main.compile(b"a").unwrap();
        main.compile(b"b").unwrap();
        let master = main.to_frozen();
        let mut fork = master.clone();
        assert!(fork.free(1));
        assert_eq!(fork.compile(b"c"), Ok(1));
        assert_eq!(fork.compile(b"d"), Ok(3));
        fork.restore_from(&master);
        assert_eq!(fork.is_match(1, b"a"), Some(true));
        assert_eq!(fork.is_match(1, b"c"), Some(false));
        assert_eq!(fork.is_match(3, b"d"), None);
    }

    /// Threads of varnishd's have little of a stack.
    #[test]
    fn they_need_little_stack() {
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let done = thread.spawn(|| {
            let mut regexes = Regexes::default();
            let starred = format!("{}a{}", "(".repeat(8), ")*".repeat(8));
            let forked = format!("{}b{}", "(a|".repeat(8), ")".repeat(8));
            for pattern in [
                &*starred,
                &*forked,
                "(?i)(foo|bar|[^x]+)*(baz){20}$",
                ".*(a|b).{500}c",
            ] {
                let number = regexes.compile(pattern.as_bytes()).unwrap() as u64;
                regexes.is_match(number, &[b'a'; LONGEST_SUBJECT as usize]);
            }
        });
        done.unwrap().join().unwrap();
    }
}
