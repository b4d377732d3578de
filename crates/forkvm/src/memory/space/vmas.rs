//! The VMAs of an address space: which virtual addresses a program may use, for what, and where their bytes come from.
//! Nothing here costs memory for what is only reserved: one VMA of 48 GiB is one entry.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::arch::layout::PAGE;
use crate::memory::access::Protection;
use crate::memory::space::shared::FilePage;

/// Most VMAs of a program (Linux: `vm.max_map_count`, Documentation/admin-guide/sysctl/vm.rst).
pub const MAX_VMAS: usize = 65_530;

/// Largest offset of a file's end (`loff_t` is signed). No VMA reaches beyond, so that offsets can be added to.
pub const MAX_OFFSET: u64 = i64::MAX as u64;

/// A file that is mapped: its bytes are copied into guest memory when a page is first touched. It is never mapped from
/// the host's file, where a truncation would be SIGBUS in this process.
pub trait PageSource: Debug + Send + Sync + Any {
    /// Reads at an offset, as pread(2): fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize>;

    /// The file's path, as the program sees it, for /proc/self/maps.
    fn path(&self) -> &[u8];

    /// Device and inode, for /proc/self/maps.
    fn identity(&self) -> (u64, u64);

    /// The number of a file of the program's own, and whether a shared mapping may write to it.
    fn node(&self) -> Option<(u64, bool)> {
        None
    }
}

/// Where the bytes of a VMA come from.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Zeroes, until written. The name is what /proc/self/maps gives, such as `[stack]`.
    Anonymous(Option<&'static str>),
    /// A file, from this offset at the VMA's start.
    File(Arc<dyn PageSource>, u64),
}

impl Backing {
    /// True if it has so many bytes.
    pub fn reaches(&self, len: u64) -> bool {
        match self {
            Self::Anonymous(_) => true,
            Self::File(_, offset) => offset.checked_add(len).is_some_and(|end| end <= MAX_OFFSET),
        }
    }

    /// The backing of what lies `by` bytes further on.
    fn at(&self, by: u64) -> Self {
        match self {
            Self::Anonymous(name) => Self::Anonymous(*name),
            Self::File(file, offset) => Self::File(file.clone(), offset + by),
        }
    }

    /// True if `next` continues this backing after `len` bytes.
    fn is_continued_by(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Anonymous(name), Self::Anonymous(other)) => name == other,
            (Self::File(file, offset), Self::File(other, further)) => {
                Arc::ptr_eq(file, other) && offset + len == *further
            }
            _ => false,
        }
    }
}

/// One run of addresses with the same permissions and backing.
#[derive(Debug, Clone)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// What the program may do.
    pub protection: Protection,
    /// `MAP_SHARED`, which /proc/self/maps tells. There is no other process to share with.
    pub shared: bool,
    /// A child finds it zero (`MADV_WIPEONFORK`).
    pub wiped: bool,
    /// Where the bytes come from.
    pub backing: Backing,
}

impl Vma {
    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// The page of a shared file that is to be at an address of its.
    pub fn shared_page(&self, address: u64) -> Option<FilePage> {
        match &self.backing {
            Backing::File(file, offset) if self.shared => Some(FilePage {
                node: file.node()?.0,
                offset: (offset + (address - self.start)) / PAGE * PAGE,
            }),
            _ => None,
        }
    }

    fn merges_with(&self, next: &Self) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.shared == next.shared
            && self.wiped == next.wiped
            && self
                .backing
                .is_continued_by(self.end - self.start, &next.backing)
    }

    /// Cuts it to what lies in `range`.
    fn cut(&self, range: &Range<u64>) -> Self {
        let start = self.start.max(range.start);
        Self {
            start,
            end: self.end.min(range.end),
            backing: self.backing.at(start - self.start),
            ..self.clone()
        }
    }
}

/// There are as many VMAs as a program may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the program has {MAX_VMAS} mappings, as many as it may")]
pub struct TooManyVmas;

/// A program's VMAs in order of address; none overlap, and those that could be one are one.
#[derive(Debug, Default)]
pub struct Vmas {
    sorted: Vec<Vma>,
}

impl Clone for Vmas {
    fn clone(&self) -> Self {
        Self {
            sorted: self.sorted.clone(),
        }
    }

    fn clone_from(&mut self, source: &Self) {
        self.sorted.clone_from(&source.sorted);
    }
}

impl Vmas {
    /// Where the first VMA is that ends after `address`.
    fn position(&self, address: u64) -> usize {
        self.sorted.partition_point(|vma| vma.end <= address)
    }

    /// The VMA that an address lies in.
    pub fn find(&self, address: u64) -> Option<&Vma> {
        self.sorted
            .get(self.position(address))
            .filter(|vma| vma.start <= address)
    }

    /// All that overlap a range, in order.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        self.sorted[self.position(range.start)..]
            .iter()
            .take_while(move |vma| vma.start < range.end)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.sorted.iter()
    }

    /// True if every address of a range is in some VMA.
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for vma in self.overlapping(range.clone()) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= range.end
    }

    /// Adds a VMA in place of whatever was at its addresses.
    pub fn insert(&mut self, vma: Vma) -> Result<(), TooManyVmas> {
        self.remove(vma.range())?;
        if self.sorted.len() >= MAX_VMAS {
            return Err(TooManyVmas);
        }
        let at = self.position(vma.start);
        self.sorted.insert(at, vma);
        self.merge_around(at..at + 1);
        Ok(())
    }

    /// Has the VMA that starts there get its bytes from another file, at the same offset. Its pages stay.
    pub fn set_source(&mut self, start: u64, source: &Arc<dyn PageSource>) {
        let place = self.position(start);
        if let Some(vma) = self.sorted.get_mut(place)
            && vma.start == start
            && let Backing::File(file, _) = &mut vma.backing
        {
            *file = Arc::clone(source);
        }
    }

    /// Takes a range away. Fails, and changes nothing, if a VMA would have to be split and there is no room for another.
    pub fn remove(&mut self, range: Range<u64>) -> Result<(), TooManyVmas> {
        let going = self.overlapping(range.clone()).count();
        let places = self.split(&range, going)?;
        self.sorted.drain(places);
        Ok(())
    }

    /// Changes what the program may do in a range, of which every VMA there is changed.
    pub fn protect(
        &mut self,
        range: Range<u64>,
        protection: Protection,
    ) -> Result<(), TooManyVmas> {
        self.change(range, |vma| vma.protection = protection)
    }

    /// Has a child find a range zero, or not.
    pub fn set_wiped(&mut self, range: Range<u64>, wiped: bool) -> Result<(), TooManyVmas> {
        self.change(range, |vma| vma.wiped = wiped)
    }

    fn change(&mut self, range: Range<u64>, each: impl Fn(&mut Vma)) -> Result<(), TooManyVmas> {
        let places = self.split(&range, 0)?;
        self.sorted[places.clone()].iter_mut().for_each(each);
        self.merge_around(places);
        Ok(())
    }

    /// Splits VMAs so that `range` begins and ends where some do, and gives the places of those inside. So many are about
    /// to be taken away, and make room.
    fn split(&mut self, range: &Range<u64>, going: usize) -> Result<Range<usize>, TooManyVmas> {
        if range.is_empty() {
            return Ok(0..0);
        }
        let cuts = |vmas: &Self, at: u64| vmas.find(at).is_some_and(|vma| vma.start < at);
        let needed = usize::from(cuts(self, range.start)) + usize::from(cuts(self, range.end));
        if self.sorted.len() + needed > MAX_VMAS + going {
            return Err(TooManyVmas);
        }
        for at in [range.start, range.end] {
            if cuts(self, at) {
                let place = self.position(at);
                let vma = &self.sorted[place];
                let second = vma.cut(&(at..vma.end));
                self.sorted[place].end = at;
                self.sorted.insert(place + 1, second);
            }
        }
        let first = self.position(range.start);
        let count = self.overlapping(range.clone()).count();
        Ok(first..first + count)
    }

    /// Makes one of neighbours that can be, from the one before `places` to the one after.
    fn merge_around(&mut self, places: Range<usize>) {
        let first = places.start.saturating_sub(1);
        let mut kept = first;
        let last = (places.end + 1).min(self.sorted.len());
        for place in first + 1..last {
            if self.sorted[kept].merges_with(&self.sorted[place]) {
                self.sorted[kept].end = self.sorted[place].end;
            } else {
                kept += 1;
                self.sorted.swap(kept, place);
            }
        }
        if first < last {
            self.sorted.drain(kept + 1..last);
        }
    }

    /// The highest free range of `len` bytes inside `within`, as mmap(2) looks for one from the top.
    pub fn gap_below(&self, len: u64, within: Range<u64>) -> Option<u64> {
        let mut top = within.end;
        let after = self.sorted.partition_point(|vma| vma.start < within.end);
        for vma in self.sorted[..after].iter().rev() {
            if vma.end <= top && top - vma.end >= len {
                break;
            }
            top = top.min(vma.start);
        }
        let start = top.checked_sub(len)?;
        (start >= within.start).then_some(start)
    }

    /// True if nothing lies in a range.
    pub fn is_free(&self, range: Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
    }

    /// The VMAs inside a range, cut to it.
    pub fn cut_out(&self, range: Range<u64>) -> Vec<Vma> {
        self.overlapping(range.clone())
            .map(|vma| vma.cut(&range))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RW: Protection = Protection {
        read: true,
        write: true,
        execute: false,
    };
    const R: Protection = Protection {
        read: true,
        write: false,
        execute: false,
    };

    fn anonymous(pages: Range<u64>, protection: Protection) -> Vma {
        Vma {
            start: pages.start * PAGE,
            end: pages.end * PAGE,
            protection,
            shared: false,
            wiped: false,
            backing: Backing::Anonymous(None),
        }
    }

    #[derive(Debug)]
    struct Nothing;

    impl PageSource for Nothing {
        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
            Ok(0)
        }

        fn path(&self) -> &[u8] {
            b"/nothing"
        }

        fn identity(&self) -> (u64, u64) {
            (0, 1)
        }
    }

    #[test]
    fn files_stay_in_step_when_split() {
        let mut vmas = Vmas::default();
        let file: Arc<dyn PageSource> = Arc::new(Nothing);
        vmas.insert(Vma {
            backing: Backing::File(file, 7 * PAGE),
            ..anonymous(10..20, R)
        })
        .unwrap();
        vmas.protect(13 * PAGE..14 * PAGE, RW).unwrap();
        let offsets: Vec<_> = vmas
            .iter()
            .map(|vma| match vma.backing {
                Backing::File(_, offset) => (vma.start / PAGE, offset / PAGE),
                Backing::Anonymous(_) => panic!(),
            })
            .collect();
        assert_eq!(offsets, [(10, 7), (13, 10), (14, 11)]);
        vmas.protect(13 * PAGE..14 * PAGE, R).unwrap();
        assert_eq!(vmas.iter().count(), 1);
    }

    #[test]
    fn a_reservation_is_one_entry() {
        let mut vmas = Vmas::default();
        vmas.insert(anonymous(0x1000..0x1000 + (48 << 18), R))
            .unwrap();
        vmas.protect(0x2000 * PAGE..0x2010 * PAGE, RW).unwrap();
        assert_eq!(vmas.iter().count(), 3);
    }

    #[test]
    fn too_many_are_refused_and_nothing_changes() {
        let mut vmas = Vmas::default();
        for page in 0..MAX_VMAS as u64 {
            vmas.insert(anonymous(page * 4..page * 4 + 3, RW)).unwrap();
        }
        assert_eq!(vmas.insert(anonymous(3..4, R)), Err(TooManyVmas));
        assert_eq!(vmas.remove(PAGE..2 * PAGE), Err(TooManyVmas));
        assert_eq!(vmas.protect(PAGE..2 * PAGE, R), Err(TooManyVmas));
        assert!(vmas.covers(0..3 * PAGE));
        vmas.remove(0..PAGE).unwrap();
        vmas.remove(PAGE..3 * PAGE).unwrap();
        assert_eq!(vmas.insert(anonymous(3..4, RW)), Ok(()));
    }

    /// What a page has, by number.
    type Model = std::collections::BTreeMap<u64, Protection>;

    proptest! {
        #[test]
        fn vmas_are_what_a_map_of_pages_says(
            steps in prop::collection::vec((0u8..3, 0u64..40, 1u64..12, any::<bool>()), 1..60),
        ) {
            let (mut vmas, mut model) = (Vmas::default(), Model::new());
            for (what, start, len, write) in steps {
                let pages = start..start + len;
                let range = start * PAGE..(start + len) * PAGE;
                let protection = if write { RW } else { R };
                match what {
                    0 => {
                        vmas.insert(anonymous(pages.clone(), protection)).unwrap();
                        model.extend(pages.clone().map(|page| (page, protection)));
                    }
                    1 => {
                        vmas.remove(range.clone()).unwrap();
                        model.retain(|page, _| !pages.contains(page));
                    }
                    _ => {
                        vmas.protect(range.clone(), protection).unwrap();
                        for (_, page) in model.range_mut(pages.clone()) {
                            *page = protection;
                        }
                    }
                }
                prop_assert_eq!(
                    vmas.covers(range.clone()),
                    pages.clone().all(|page| model.contains_key(&page))
                );
                for page in 0..60 {
                    let found = vmas.find(page * PAGE).map(|vma| vma.protection);
                    prop_assert_eq!(found, model.get(&page).copied());
                }
                for pair in vmas.sorted.windows(2) {
                    prop_assert!(pair[0].end <= pair[1].start && !pair[0].merges_with(&pair[1]));
                }
                let gap = vmas.gap_below(len * PAGE, 0..60 * PAGE).map(|start| start / PAGE);
                let free = |start: &u64| (*start..start + len).all(|page| !model.contains_key(&page));
                prop_assert_eq!(gap, (0..=60 - len).rev().find(free));
            }
        }
    }
}
