//! Where a program makes its calls, counted during its boot: those that the dispatcher may answer in forks are to arrive there.

use std::collections::BTreeMap;

/// Where a program makes calls: how many, and how many of them by numbers that may be answered.
#[derive(Debug, Default)]
pub struct Sites {
    calls: BTreeMap<u64, Calls>,
    /// It serves by now.
    serves: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Calls {
    all: u32,
    answered: u32,
}

impl Sites {
    /// Most places that are kept. A C library has some hundred.
    const MOST: usize = 4096;
    /// A place's calls are to be answered if one of so many may be: to try costs a third of an exit, an answer spares a whole one.
    const SHARE: u32 = 4;

    /// Notes a call there, and whether its number is one that may be answered.
    pub fn note(&mut self, address: u64, answered: bool) {
        if self.calls.len() < Self::MOST || self.calls.contains_key(&address) {
            let calls = self.calls.entry(address).or_default();
            calls.all = calls.all.saturating_add(1);
            calls.answered = calls.answered.saturating_add(answered.into());
        }
    }

    /// The first connection begins: what is counted for a place before counts for nothing where there is more.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.serves, true) {
            for calls in self.calls.values_mut() {
                *calls = Calls {
                    all: calls.all.min(1),
                    answered: calls.answered.min(1),
                };
            }
        }
    }

    /// Where they are that are to arrive at the dispatcher.
    pub fn to_be_answered(&self) -> impl Iterator<Item = u64> {
        let worth = |calls: &Calls| calls.answered.saturating_mul(Self::SHARE) >= calls.all;
        let of = self.calls.iter().filter(move |(_, calls)| worth(calls));
        of.map(|(&address, _)| address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_calls_that_are_mostly_answered_are_given_back() {
        let mut sites = Sites::default();
        let note = |sites: &mut Sites, address, of: [u32; 2]| {
            (0..of[0]).for_each(|_| sites.note(address, false));
            (0..of[1]).for_each(|_| sites.note(address, true));
        };
        for (address, of) in [(1, [0, 1]), (2, [3, 1]), (3, [4, 1]), (4, [1, 0])] {
            note(&mut sites, address, of);
        }
        assert_eq!(sites.to_be_answered().collect::<Vec<_>>(), [1, 2]);
        // What is done once the program serves counts for more than its start, where it does anything there.
        note(&mut sites, 5, [900, 100]);
        sites.begin();
        note(&mut sites, 5, [1, 2]);
        note(&mut sites, 2, [9, 0]);
        sites.begin();
        assert_eq!(sites.to_be_answered().collect::<Vec<_>>(), [1, 3, 5]);
        (0..2 * Sites::MOST as u64).for_each(|address| sites.note(address, true));
        assert_eq!(sites.calls.len(), Sites::MOST);
    }
}
