//! What the host was told about a program already, so that it is told once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::linux::abi::Guest;

/// Something worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// It wanted a thread.
    Thread,
    /// It wanted another process, by this call.
    Process(&'static str),
    /// It wanted the network.
    Network,
}

/// System call numbers that can be told apart; there are fewer.
const NUMBERS: usize = 512;

/// Most lines about what a program could not reach.
const MAX_LINES: usize = 8;

/// Which lines were written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    topics: [bool; 3],
    calls: [u64; NUMBERS / 64],
    /// What was said about the network outside.
    lines: BTreeSet<String>,
}

impl Told {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            topics: [false; 3],
            calls: [0; NUMBERS / 64],
            lines: BTreeSet::new(),
        }
    }

    /// Tells the host what a program can't have.
    pub fn tell(&mut self, topic: Topic, guest: &mut Guest<'_>) {
        let (index, text) = match topic {
            Topic::Thread => (
                0,
                "threads are not supported yet: the program could not start one",
            ),
            Topic::Process(call) => (
                1,
                &*format!("{call} was refused: other processes are not supported"),
            ),
            Topic::Network => (
                2,
                "the network is denied: the program could not open a socket",
            ),
        };
        let before = self
            .topics
            .get_mut(index)
            .map(|told| std::mem::replace(told, true));
        if before == Some(false) {
            guest.note(text);
        }
    }

    /// Tells the host what the program could not reach outside, each once and not all of too many.
    pub fn tell_lines(&mut self, lines: Vec<String>, guest: &mut Guest<'_>) {
        for line in lines {
            if self.lines.len() < MAX_LINES && !self.lines.contains(&line) {
                guest.note(&line);
                self.lines.insert(line);
            }
        }
    }

    /// Tells the host of a system call that is not there.
    pub fn tell_call(&mut self, name: &str, number: u64, guest: &mut Guest<'_>) {
        let bit = 1 << (number % 64);
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|word| self.calls.get_mut(word));
        if let Some(word) = word
            && *word & bit == 0
        {
            *word |= bit;
            // Unmodified programs try many a call; they are named together at the end.
            if guest.memory.space().is_none() {
                guest.note(&format!(
                    "the system call {name} is not supported: the program got ENOSYS"
                ));
            }
        }
    }

    /// Whether the calls that were told are others than here.
    pub fn differs_from(&self, other: &Self) -> bool {
        self.calls != other.calls
    }

    /// The numbers of the calls that were told, or would be.
    pub fn calls(&self) -> impl Iterator<Item = u64> {
        let words = (0u64..).step_by(64).zip(self.calls);
        words.flat_map(|(first, word)| {
            (0..64)
                .filter(move |bit| word & 1 << bit != 0)
                .map(move |bit| first.saturating_add(bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::Machine;
    use syscalls::Sysno;

    #[test]
    fn a_missing_call_is_told_once() {
        let mut machine = Machine::new(Vec::new());
        for _ in 0..3 {
            assert_eq!(machine.call(Sysno::io_uring_setup, &[]), -38);
            assert_eq!(machine.call(Sysno::rseq, &[]), -38);
        }
        let expected = "the system call io_uring_setup is not supported: the program got ENOSYS\n";
        assert_eq!(String::from_utf8_lossy(&machine.host.stderr), expected);
    }
}
