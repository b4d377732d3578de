//! Frames that several pages of an address space may have: those of files of the program's own that are mapped by
//! `MAP_SHARED`. All mappings of a part of a file have one frame, so that what is written to one is in the others.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::arch::layout::PAGE;

/// A page of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePage {
    /// The file's number ([`PageSource::node`](super::vmas::PageSource::node)).
    pub node: u64,
    /// Where in it the page starts.
    pub offset: u64,
}

/// A frame with a page of a file.
#[derive(Debug, Clone, Copy)]
struct Shared {
    page: FilePage,
    /// How many entries have it.
    entries: u64,
    /// An entry allows, or allowed, to write to it.
    writable: bool,
}

/// The shared frames of an address space.
#[derive(Debug, Clone, Default)]
pub struct SharedFrames {
    by_page: BTreeMap<FilePage, u64>,
    by_frame: BTreeMap<u64, Shared>,
}

impl SharedFrames {
    /// The frame that a page has.
    pub fn find(&self, page: FilePage) -> Option<u64> {
        self.by_page.get(&page).copied()
    }

    /// True for a frame that is shared.
    pub fn has(&self, frame: u64) -> bool {
        self.by_frame.contains_key(&frame)
    }

    /// An entry has this frame for a page.
    pub fn add(&mut self, page: FilePage, frame: u64, writable: bool) {
        self.by_page.insert(page, frame);
        let shared = self.by_frame.entry(frame).or_insert(Shared {
            page,
            entries: 0,
            writable,
        });
        shared.entries += 1;
        shared.writable |= writable;
    }

    /// An entry of a frame, if that is shared, allows to write to it.
    pub fn may_be_written(&mut self, frame: u64) {
        if let Some(shared) = self.by_frame.get_mut(&frame) {
            shared.writable = true;
        }
    }

    /// An entry does not have this frame any more. True if none has.
    pub fn remove(&mut self, frame: u64) -> bool {
        let Some(shared) = self.by_frame.get_mut(&frame) else {
            return true;
        };
        shared.entries -= 1;
        if shared.entries > 0 {
            return false;
        }
        self.by_page.remove(&shared.page);
        self.by_frame.remove(&frame);
        true
    }

    /// The pages that the program may have written to.
    pub fn written(&self) -> impl Iterator<Item = FilePage> {
        let shared = self.by_frame.values().filter(|shared| shared.writable);
        shared.map(|shared| shared.page)
    }

    /// The pages of a file that have something of a range of it.
    pub fn pages(&self, node: u64, range: Range<u64>) -> impl Iterator<Item = FilePage> {
        let at = |offset| FilePage { node, offset };
        let first = at(range.start / PAGE * PAGE);
        // An empty range would have BTreeMap panic.
        let end = at(range.end).max(first);
        self.by_page.range(first..end).map(|(page, _)| *page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_given_up_with_its_last_entry() {
        let page = |offset| FilePage { node: 7, offset };
        let mut shared = SharedFrames::default();
        shared.add(page(0), 100, false);
        shared.add(page(0), 100, true);
        shared.add(page(PAGE), 200, false);
        assert_eq!(shared.find(page(0)), Some(100));
        assert_eq!(shared.written().collect::<Vec<_>>(), [page(0)]);
        assert_eq!(shared.pages(7, 1..PAGE).collect::<Vec<_>>(), [page(0)]);
        assert_eq!(shared.pages(7, 5..5).count(), 1);
        assert!(!shared.remove(100));
        assert!(shared.remove(100));
        assert_eq!(shared.find(page(0)), None);
        assert!(shared.remove(300));
    }
}
