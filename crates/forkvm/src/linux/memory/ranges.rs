//! A sorted map from ranges of page numbers to a value. Neighbours with the same value are one entry.

use std::collections::TryReserveError;
use std::ops::Range;

/// Page numbers, half open.
pub type Pages = Range<u64>;

/// The map. Its length is the caller's to limit, and so is where memory for it comes from ([`Ranges::make_room`]): no
/// operation adds more than two entries.
#[derive(Debug, PartialEq, Eq)]
pub struct Ranges<V> {
    entries: Vec<(Pages, V)>,
}

impl<V> Default for Ranges<V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<V: Clone> Clone for Ranges<V> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
        }
    }

    // Keeps the allocation: this runs at every reset that follows a change.
    fn clone_from(&mut self, source: &Self) {
        self.entries.clone_from(&source.entries);
    }
}

impl<V: Copy + PartialEq> Ranges<V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Has memory for so many more entries, so that what adds them needs none.
    pub fn make_room(&mut self, more: usize) -> Result<(), TryReserveError> {
        self.entries.try_reserve(more)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (Pages, V)> + '_ {
        self.entries
            .iter()
            .map(|(pages, value)| (pages.clone(), *value))
    }

    /// The entries that overlap `within`, cut to it.
    pub fn overlapping(&self, within: Pages) -> impl Iterator<Item = (Pages, V)> + '_ {
        let first = self.first_ending_after(within.start);
        let rest = self.entries.get(first..).unwrap_or_default();
        let (start, end) = (within.start, within.end);
        rest.iter()
            .take_while(move |(pages, _)| pages.start < end)
            .map(move |(pages, value)| (pages.start.max(start)..pages.end.min(end), *value))
            .filter(|(pages, _)| pages.start < pages.end)
    }

    /// The last entry that overlaps `within`, uncut.
    pub fn last_overlapping(&self, within: Pages) -> Option<Pages> {
        let before_end = self
            .entries
            .partition_point(|(pages, _)| pages.start < within.end);
        let (pages, _) = self.entries.get(before_end.checked_sub(1)?)?;
        (pages.end > within.start).then(|| pages.clone())
    }

    /// True if no page of `within` has a value.
    pub fn is_free(&self, within: Pages) -> bool {
        self.last_overlapping(within).is_none()
    }

    /// True if every page of `within` has a value.
    pub fn covers(&self, within: Pages) -> bool {
        let end = within.end;
        let reached = self
            .overlapping(within.clone())
            .try_fold(within.start, |at, (pages, _)| {
                (pages.start == at).then_some(pages.end)
            });
        reached == Some(end)
    }

    /// Sets the value of all pages of a range.
    pub fn insert(&mut self, pages: Pages, value: V) {
        if pages.start >= pages.end {
            return;
        }
        self.remove(pages.clone());
        let mut at = self.first_ending_after(pages.start);
        let mut merged = pages;
        if let Some((previous, previous_value)) =
            at.checked_sub(1).and_then(|i| self.entries.get(i))
            && previous.end == merged.start
            && *previous_value == value
        {
            merged.start = previous.start;
            at -= 1;
            self.entries.remove(at);
        }
        if let Some((next, next_value)) = self.entries.get(at)
            && next.start == merged.end
            && *next_value == value
        {
            merged.end = next.end;
            self.entries.remove(at);
        }
        self.check_room(1);
        self.entries.insert(at, (merged, value));
    }

    /// Takes the values of all pages of a range away, splitting entries at its ends.
    pub fn remove(&mut self, pages: Pages) {
        if pages.start >= pages.end {
            return;
        }
        let first = self.first_ending_after(pages.start);
        let end = self
            .entries
            .partition_point(|(entry, _)| entry.start < pages.end);
        let (Some((first_entry, first_value)), Some((last_entry, last_value))) = (
            self.entries.get(first),
            end.checked_sub(1).and_then(|last| self.entries.get(last)),
        ) else {
            return;
        };
        if first >= end {
            return;
        }
        let before = (first_entry.start < pages.start)
            .then_some((first_entry.start..pages.start, *first_value));
        let after =
            (last_entry.end > pages.end).then_some((pages.end..last_entry.end, *last_value));
        let added = usize::from(before.is_some()) + usize::from(after.is_some());
        self.check_room(added.saturating_sub(end - first));
        self.entries
            .splice(first..end, before.into_iter().chain(after));
    }

    /// One value for everything from the first page to the last: how a map that must not grow is kept small.
    pub fn flatten(&mut self, value: V) {
        if let (Some((first, _)), Some((last, _))) = (self.entries.first(), self.entries.last()) {
            let all = first.start..last.end;
            self.entries.clear();
            self.entries.push((all, value));
        }
    }

    /// All tests of memory calls check that room was made.
    fn check_room(&self, more: usize) {
        let room = self.entries.capacity() - self.entries.len();
        assert!(!cfg!(test) || room >= more, "no room was made");
    }

    fn first_ending_after(&self, page: u64) -> usize {
        self.entries.partition_point(|(pages, _)| pages.end <= page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_merge_and_split() {
        let mut ranges = Ranges::default();
        ranges.make_room(8).unwrap();
        ranges.insert(0..4, 'a');
        ranges.insert(4..8, 'a');
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0..8, 'a')]);
        ranges.insert(2..3, 'b');
        assert_eq!(
            ranges.iter().collect::<Vec<_>>(),
            [(0..2, 'a'), (2..3, 'b'), (3..8, 'a')]
        );
        ranges.remove(1..7);
        assert_eq!(
            ranges.iter().collect::<Vec<_>>(),
            [(0..1, 'a'), (7..8, 'a')]
        );
        ranges.flatten('c');
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0..8, 'c')]);
    }

    proptest! {
        #[test]
        fn behaves_like_an_array(steps in prop::collection::vec((0u64..40, 0u64..40, prop::option::of(0u8..3)), 0..60)) {
            let mut model = [None; 64];
            let mut ranges = Ranges::default();
            for (start, len, value) in steps {
                let pages = start..(start + len).min(64);
                ranges.make_room(2).unwrap();
                match value {
                    Some(value) => ranges.insert(pages.clone(), value),
                    None => ranges.remove(pages.clone()),
                }
                for page in pages {
                    model[page as usize] = value;
                }
            }
            for page in 0..64u64 {
                let found = ranges.overlapping(page..page + 1).next().map(|(_, value)| value);
                prop_assert_eq!(found, model[page as usize]);
            }
            for start in 0..64usize {
                for end in start + 1..64 {
                    let pages = start as u64..end as u64;
                    prop_assert_eq!(ranges.covers(pages.clone()), model[start..end].iter().all(Option::is_some));
                    prop_assert_eq!(ranges.is_free(pages.clone()), model[start..end].iter().all(Option::is_none));
                }
            }
            let entries: Vec<_> = ranges.iter().collect();
            prop_assert!(entries.iter().all(|(pages, _)| pages.start < pages.end));
            for two in entries.windows(2) {
                let (end, start) = (two[0].0.end, two[1].0.start);
                prop_assert!(end < start || end == start && two[0].1 != two[1].1);
            }
        }
    }
}
