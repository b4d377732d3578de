//! The record of pages that a fork has dirtied.

use std::ops::Range;

use crate::arch::layout::PAGE;

/// The host has no memory for the record of what a machine writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host has no memory for the record of what it writes")]
pub struct NoRecord;

/// The pages a fork may differ from the master in, each once.
///
/// Page tables are never among them: nobody changes them after the freeze. KVM on AMD names them all the same, because
/// with nested paging the processor's walk counts as a write (AMD APM Vol. 2, 15.25).
#[derive(Debug)]
pub struct DirtyPages {
    list: Vec<u32>,
    seen: Vec<u64>,
    /// How many there were when the request began: those are mapped and not logged again.
    at_start: usize,
    /// A request may add this many.
    limit: usize,
}

impl DirtyPages {
    /// For a machine of so many pages, whose page tables are in this guest-physical range, and whose requests may add `limit`.
    pub fn new(pages: u64, tables: &Range<u64>, limit: usize) -> Result<Self, NoRecord> {
        let words = usize::try_from(pages.div_ceil(64)).map_err(|_| NoRecord)?;
        let mut seen = Vec::new();
        seen.try_reserve_exact(words).map_err(|_| NoRecord)?;
        seen.resize(words, 0);
        let mut new = Self {
            list: Vec::with_capacity(64),
            seen,
            at_start: 0,
            limit,
        };
        // As if they had been seen already.
        for page in tables.start / PAGE..tables.end / PAGE {
            new.seen[page as usize / 64] |= 1 << (page % 64);
        }
        Ok(new)
    }

    /// Adds a page. A page number outside the machine is ignored. A fork that wrote to a page that could not be added is
    /// not to be used again.
    pub fn add(&mut self, page: u32) -> Result<(), NoRecord> {
        let (word, bit) = (page as usize / 64, 1u64 << (page % 64));
        if let Some(word) = self.seen.get_mut(word)
            && *word & bit == 0
        {
            self.list.try_reserve(1).map_err(|_| NoRecord)?;
            *word |= bit;
            self.list.push(page);
        }
        Ok(())
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// From now on, pages added count for a new request.
    pub fn start_request(&mut self) {
        self.at_start = self.list.len();
    }

    /// How many the request has added.
    pub fn added(&self) -> usize {
        self.list.len() - self.at_start
    }

    /// How many a request may add.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Their numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.list.iter().copied()
    }

    /// Takes one off the list: it will not be put back.
    #[cfg(test)]
    pub fn take(&mut self, nth: usize) -> Option<u32> {
        let page = (nth < self.list.len()).then(|| self.list.remove(nth))?;
        self.seen[page as usize / 64] &= !(1 << (page % 64));
        Some(page)
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        for &page in &self.list {
            self.seen[page as usize / 64] &= !(1 << (page % 64));
        }
        self.list = Vec::with_capacity(64);
        self.at_start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_listed_once_and_tables_never() {
        let mut dirty = DirtyPages::new(256, &(8 * PAGE..10 * PAGE), 3).unwrap();
        for page in [7, 8, 9, 7, 255, 256, u32::MAX] {
            dirty.add(page).unwrap();
        }
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [7, 255]);
        dirty.clear();
        dirty.add(7).unwrap();
        assert_eq!(dirty.len(), 1);
    }

    #[test]
    fn what_the_host_has_no_memory_for_is_an_error() {
        assert_eq!(DirtyPages::new(u64::MAX, &(0..0), 1).err(), Some(NoRecord));
    }
}
