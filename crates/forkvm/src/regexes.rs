//! Regular expressions that a program has the host compile and match: in linear time, and within these limits of the host's
//! time and memory, which no request's limit counts.

use std::sync::Arc;

use regex_automata::Input;
use regex_automata::meta;
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::NonMaxUsize;
use regex_syntax::ParserBuilder;

use crate::slots::Slots;

/// The longest pattern, in bytes.
pub const LONGEST_PATTERN: u64 = 4 << 10;
/// The longest subject, in bytes.
pub const LONGEST_SUBJECT: usize = 64 << 10;
/// Most of them at a time.
const MOST: usize = 64;
/// Memory for a compiled one: its automaton, and the tables made of that.
const COMPILED: usize = 64 << 10;
/// What a thread remembers of its matches: of states that it has seen, and of groups.
const REMEMBERED: usize = 128 << 10;
const OF_GROUPS: usize = 128 << 10;
/// Steps that a search may take: bytes of the subject by states of the automaton, all of which may be active at each of them.
const MOST_STEPS: usize = 16 << 20;
/// How deep groups and what they have may be. The compiler takes 1.3 KiB of the stack for each, and a thread of varnishd has 80 KiB,
/// of which a third may be in use by then.
const DEEPEST: u32 = 16;

/// Where groups 0 to 9 begin and end.
pub type Groups = [Option<NonMaxUsize>; 20];

/// One of them.
#[derive(Debug)]
pub struct Compiled {
    regex: meta::Regex,
    /// The longest subject that it is matched with, in bytes.
    longest: usize,
    /// How many of [`Groups`] it has. A search that is given room for more than its own runs past its tables.
    groups: usize,
}

impl Compiled {
    fn new(pattern: &[u8]) -> Result<Self, NotCompiled> {
        let pattern = str::from_utf8(pattern)
            .map_err(|_| NotCompiled::Invalid("the pattern is not UTF-8".into()))?;
        // Subjects are bytes, of whatever encoding.
        let hir = ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .nest_limit(DEEPEST)
            .build()
            .parse(pattern)
            .map_err(|error| {
                // Its other lines show where, in a pattern that may be long.
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                let what = last.strip_prefix("error: ").unwrap_or(last);
                NotCompiled::Invalid(what.to_owned())
            })?;
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(COMPILED)),
            )
            .build_from_hir(&hir)
            .map_err(|_| NotCompiled::TooBig)?;
        let states = nfa.states().len();
        // A search keeps the groups of each state twice, now and for the next byte.
        let of_groups = states.saturating_mul(nfa.group_info().slot_len() * 2 * size_of::<usize>());
        if of_groups > OF_GROUPS {
            return Err(NotCompiled::TooManyGroups);
        }
        let regex = meta::Builder::new()
            .configure(
                meta::Config::new()
                    .utf8_empty(false)
                    .nfa_size_limit(Some(COMPILED))
                    .onepass_size_limit(Some(COMPILED))
                    .hybrid_cache_capacity(REMEMBERED)
                    // It remembers 256 KiB more, to be some microseconds faster than what takes its place.
                    .backtrack(false),
            )
            .build_from_hir(&hir)
            .map_err(|_| NotCompiled::TooBig)?;
        Ok(Self {
            regex,
            longest: LONGEST_SUBJECT.min(MOST_STEPS / states.max(1)),
            groups: nfa.group_info().slot_len(),
        })
    }

    /// The longest subject that it is matched with, in bytes: a search then takes no more than some tenths of a second, whatever the
    /// two are.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether it matches somewhere.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.regex.is_match(subject)
    }

    /// Where it matches first, and its groups.
    pub fn search(&self, input: &Input<'_>) -> Option<Groups> {
        let mut groups = Groups::default();
        let own = self.groups.min(groups.len());
        self.regex.search_slots(input, &mut groups[..own])?;
        Some(groups)
    }
}

/// Those of a machine.
#[derive(Debug, Clone, Default)]
pub struct Regexes {
    /// Forks share what main() has compiled.
    compiled: Slots<Arc<Compiled>, MOST>,
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
    /// A search would need too much memory for them.
    #[error(
        "the pattern has too many groups for its size: write (?:...) for those that nothing refers to"
    )]
    TooManyGroups,
    /// What is wrong with it.
    #[error("{0}")]
    Invalid(String),
}

impl Regexes {
    /// Compiles one. Its number, from 1 on.
    pub fn compile(&mut self, pattern: &[u8]) -> Result<usize, NotCompiled> {
        if self.compiled.is_full() {
            return Err(NotCompiled::TooMany);
        }
        let compiled = Arc::new(Compiled::new(pattern)?);
        self.changed = true;
        self.compiled.add(compiled).ok_or(NotCompiled::TooMany)
    }

    /// Forgets one. False if there is none of this number.
    pub fn free(&mut self, number: u64) -> bool {
        let freed = self.compiled.take(number).is_some();
        self.changed |= freed;
        freed
    }

    /// The one of this number.
    pub fn get(&self, number: u64) -> Option<&Arc<Compiled>> {
        self.compiled.get(number)
    }

    /// Makes them the master's again.
    pub fn restore_from(&mut self, master: &Self) {
        if std::mem::take(&mut self.changed) {
            self.compiled = master.compiled.clone();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(regexes: &Regexes, number: u64, subject: &[u8]) -> Option<bool> {
        Some(regexes.get(number)?.is_match(subject))
    }

    #[test]
    fn they_match_bytes() {
        let mut regexes = Regexes::default();
        let number = regexes.compile(br"^a\w+\xff$").unwrap() as u64;
        assert_eq!(number, 1);
        assert_eq!(is_match(&regexes, 1, b"abc\xff"), Some(true));
        assert_eq!(is_match(&regexes, 1, b"abc"), Some(false));
        for none in [0, 2, 64, 65, 1 << 63, u64::MAX] {
            assert_eq!(is_match(&regexes, none, b""), None);
            assert!(!regexes.free(none));
        }
        assert!(regexes.free(1) && !regexes.free(1));
        assert_eq!(is_match(&regexes, 1, b""), None);
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
        assert_eq!(is_match(&regexes, 7, b"b"), Some(true));
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
        assert_eq!(is_match(&fork, 1, b"a"), Some(true));
        assert_eq!(is_match(&fork, 1, b"c"), Some(false));
        assert_eq!(is_match(&fork, 3, b"d"), None);
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
                let compiled = regexes.get(number).unwrap();
                let subject = vec![b'a'; compiled.longest()];
                compiled.is_match(&subject);
                compiled.search(&Input::new(&subject));
            }
        });
        done.unwrap().join().unwrap();
    }
}
