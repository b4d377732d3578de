//! The address space of an unmodified program: VMAs, and the page tables that follow them page by page as the program
//! touches its memory.
//!
//! The host is the only author of the tables (rules in docs/architecture.md, "Page tables of servers"). An entry that
//! is added, or given more permission for the same frame, needs nothing more: the processor looks again at its fault.
//! One that loses something is written here and queued; the machine has its ring-0 stub rewrite and `invlpg` it before
//! the program runs again. In a fork every change is in a journal, which is the truth for the reset: table pages are
//! never copied.

pub mod address_space;
pub mod arrival;
pub mod frames;
pub mod saved;
pub mod shared;
pub mod vmas;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::arch::layout::{PAGE, SpaceLayout};
use crate::arch::paging::{self, Owner, TablePages};
use crate::memory::access::{Protection, USER_END};
use crate::memory::dirty::NoRecord;
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::space::arrival::{Arrival, Awaited, Lost, Wanted};
use crate::memory::space::frames::Frames;
use crate::memory::space::shared::SharedFrames;
use crate::memory::space::vmas::{Backing, TooManyVmas, Vma, Vmas};

/// Most table entries a fork keeps beyond the master's. With more it is thrown away.
const MOST_KEPT: usize = 64 << 10;

/// A mapping can't be made or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// Some of the addresses are no program's to have.
    #[error("{start:#x}-{end:#x} is not where a program may have memory")]
    NotForPrograms {
        /// First address.
        start: u64,
        /// First address after them.
        end: u64,
    },
    /// More of a file than can be, by its offset and its length.
    #[error("the mapping ends beyond the end of the largest file")]
    BeyondFiles,
    /// Too many VMAs.
    #[error(transparent)]
    TooMany(#[from] TooManyVmas),
    /// The tables are full, or broken by a bug of the engine.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// What it writes could not be recorded.
    #[error(transparent)]
    NoRecord(#[from] NoRecord),
    /// A page's contents did not come.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// With more removals than this the memslot is given to KVM anew, which costs as much as some hundred of them.
pub const MOST_REMOVALS: usize = (PAGE / Removal::LEN) as usize;

/// A table entry that lost something, to be rewritten by the ring-0 stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// The page's virtual address.
    pub address: u64,
    /// Guest-physical address of the entry.
    pub entry: u64,
}

impl Removal {
    /// Its bytes in the page that tells the stub what to do: the entry's address and its page's.
    pub const LEN: u64 = 16;
}

/// The entries to be rewritten before the program runs again.
#[derive(Debug, Default)]
struct Removals(Vec<Removal>);

impl Removals {
    /// Adds one. Beyond [`MOST_REMOVALS`] and one more nobody looks at them.
    fn push(&mut self, removal: Removal) {
        if self.0.len() <= MOST_REMOVALS {
            self.0.push(removal);
        }
    }
}

/// A table entry before it was changed.
#[derive(Debug, Clone, Copy)]
struct Change {
    address: u64,
    entry: u64,
    old: u64,
}

/// What a fork changed in its tables.
#[derive(Debug, Default)]
struct Journal {
    changes: Vec<Change>,
    /// Frames of entries that earlier requests added and that stay.
    kept: BTreeSet<u64>,
}

/// An address space.
#[derive(Debug)]
pub struct Space {
    pub(in crate::memory) vmas: Vmas,
    pub(in crate::memory) frames: Frames,
    pub(in crate::memory) shared: SharedFrames,
    layout: SpaceLayout,
    pub(in crate::memory) tables: TablePages,
    /// In a fork only.
    journal: Option<Journal>,
    removals: Removals,
    /// Frames whose contents are not there yet.
    pub(in crate::memory) awaited: Option<Awaited>,
    /// VMAs or frames are not the master's.
    pub(in crate::memory) changed: bool,
}

impl Space {
    /// An empty address space. `tables` hands out its table pages.
    pub fn new(layout: SpaceLayout, tables: TablePages) -> Self {
        Self {
            vmas: Vmas::default(),
            frames: Frames::new(layout.frames.clone()),
            shared: SharedFrames::default(),
            layout,
            tables,
            journal: None,
            removals: Removals::default(),
            awaited: None,
            changed: false,
        }
    }

    /// A fork's, of a master's, whose memory ends at `end`.
    pub fn fork(&self, end: u64) -> Self {
        Self {
            vmas: self.vmas.clone(),
            frames: self.frames.below(end),
            shared: self.shared.clone(),
            layout: self.layout.clone(),
            tables: self.tables.clone(),
            journal: Some(Journal::default()),
            removals: Removals::default(),
            awaited: self.is_coming().then(|| self.awaited.clone()).flatten(),
            changed: false,
        }
    }

    /// Has the frames be awaited that some of its entries do not lead to yet.
    pub fn await_frames(&mut self, arrival: Arc<Arrival>) {
        self.awaited = Some(Awaited::Coming(arrival));
    }

    /// In a machine that has not run yet: which frames its program, or the host for it, will want to look at, by their numbers, in
    /// order, and some more than once.
    pub fn note_frames(&mut self, memory: &Mapping) -> Result<Wanted, OutOfRange> {
        arrival::lead_nowhere(memory, &self.layout().monitor())?;
        let frames = Wanted::default();
        self.awaited = Some(Awaited::Noted(Arc::clone(&frames)));
        Ok(frames)
    }

    /// Whether some frames may not be there yet, whoever looks at them by whatever way.
    pub fn is_coming(&self) -> bool {
        self.awaited
            .as_ref()
            .is_some_and(|awaited| !awaited.is_over())
    }

    /// Whether frames of it were awaited when it was made, and all have come since: it finds by faults what a new one finds in its
    /// tables.
    pub fn is_outdated(&self) -> bool {
        self.awaited.as_ref().is_some_and(Awaited::is_over)
    }

    /// Whether frames of it will never come.
    pub fn is_lost(&self) -> bool {
        self.awaited.as_ref().is_some_and(Awaited::is_lost)
    }

    /// Waits until a frame's contents are there. To be called before they are looked at or changed but by way of a present entry.
    pub(in crate::memory) fn wait_for(&self, frame: u64) -> Result<(), Lost> {
        self.awaited
            .as_ref()
            .map_or(Ok(()), |awaited| awaited.wait_for(frame))
    }

    /// The VMAs.
    pub fn vmas(&self) -> &Vmas {
        &self.vmas
    }

    /// Bytes of frames in use, and of all that the program is told of.
    pub fn memory(&self) -> (u64, u64) {
        let frames = &self.layout.frames;
        let used = self.frames.count(frames.start);
        (used * PAGE, frames.end - frames.start)
    }

    /// Where the frames begin that no page has ever had.
    pub fn untouched(&self) -> u64 {
        self.frames.next()
    }

    /// Where its parts lie.
    pub fn layout(&self) -> &SpaceLayout {
        &self.layout
    }

    /// Entries to be rewritten before the program runs again, all of them unless there are more than [`MOST_REMOVALS`].
    /// The caller does so.
    pub fn take_removals(&mut self) -> Vec<Removal> {
        std::mem::take(&mut self.removals.0)
    }

    /// True if there are some.
    pub fn has_removals(&self) -> bool {
        !self.removals.0.is_empty()
    }

    pub(in crate::memory) fn set_entry(
        &mut self,
        mapping: &Mapping,
        address: u64,
        entry: u64,
        new: u64,
    ) -> Result<(), SpaceError> {
        let old = mapping.read_u64(entry)?;
        if old == new {
            return Ok(());
        }
        // Whatever becomes of the entry, nothing comes to its frame afterwards.
        for frame in [old, new].map(paging::frame_of) {
            self.wait_for(frame)?;
        }
        if let Some(journal) = &mut self.journal {
            journal.changes.push(Change {
                address,
                entry,
                old,
            });
        }
        mapping.write_u64(entry, new)?;
        if paging::needs_invalidation(old, new) {
            self.removals.push(Removal { address, entry });
        }
        Ok(())
    }

    /// Takes the pages of a range out of the tables, and their frames back unless other pages have them.
    fn drop_pages(&mut self, mapping: &Mapping, range: Range<u64>) -> Result<(), SpaceError> {
        let mut at = range.start;
        while let Some(page) = paging::next_entry(mapping, at..range.end) {
            self.set_entry(mapping, page.address, page.entry, 0)?;
            let frame = paging::frame_of(page.value);
            if self.shared.remove(frame) {
                self.frames.give_back(frame)?;
            }
            at = page.address + PAGE;
        }
        self.changed = true;
        Ok(())
    }

    fn protect_pages(
        &mut self,
        mapping: &Mapping,
        range: Range<u64>,
        protection: Protection,
    ) -> Result<(), SpaceError> {
        self.changed = true;
        let mut at = range.start;
        while let Some(page) = paging::next_entry(mapping, at..range.end) {
            // A page that nobody may use keeps its frame in an entry that is not present.
            let frame = paging::frame_of(page.value);
            if protection.write {
                self.shared.may_be_written(frame);
            }
            let new = frame | paging::leaf_bits(Owner::User, protection);
            self.set_entry(mapping, page.address, page.entry, new)?;
            at = page.address + PAGE;
        }
        Ok(())
    }

    /// Moves the pages of a range to another place, which is empty.
    fn move_pages(
        &mut self,
        mapping: &Mapping,
        from: Range<u64>,
        to: u64,
    ) -> Result<(), SpaceError> {
        let mut at = from.start;
        while let Some(page) = paging::next_entry(mapping, at..from.end) {
            let target = to + (page.address - from.start);
            let entry = self.tables.leaf_entry(mapping, target)?;
            self.set_entry(mapping, target, entry, page.value)?;
            self.set_entry(mapping, page.address, page.entry, 0)?;
            at = page.address + PAGE;
        }
        self.changed = true;
        Ok(())
    }

    /// Goes back to the master's tables, VMAs and frames. Memory has been put back already. False if the fork has grown
    /// so far that it is better thrown away.
    pub(in crate::memory) fn restore_from(
        &mut self,
        mapping: &Mapping,
        master: &Self,
    ) -> Result<bool, OutOfRange> {
        let Some(journal) = &mut self.journal else {
            return Ok(true);
        };
        if !self.changed && journal.changes.is_empty() {
            return Ok(true);
        }
        // The oldest value of an entry is what it had when the request began.
        let mut before = BTreeMap::new();
        for change in journal.changes.drain(..) {
            before
                .entry(change.entry)
                .or_insert((change.address, change.old));
        }
        for (entry, (address, old)) in before {
            let now = mapping.read_u64(entry)?;
            if now == old {
                continue;
            }
            // Its frame has come meanwhile.
            if paging::is_awaited(old) && now == paging::arrived(old) {
                continue;
            }
            // Its frame may be that of an entry that stayed before, which has it again, or of several.
            if old == 0
                && master.would_map(address, now)
                && journal.kept.insert(paging::frame_of(now))
            {
                continue;
            }
            mapping.write_u64(entry, old)?;
            if paging::needs_invalidation(now, old) {
                self.removals.push(Removal { address, entry });
            }
        }
        self.frames.restore_from(&master.frames, &journal.kept);
        self.shared.clone_from(&master.shared);
        self.vmas.clone_from(&master.vmas);
        self.changed = false;
        Ok(journal.kept.len() <= MOST_KEPT && self.tables.has_room(&master.tables))
    }

    /// How many table entries of programs are neither the master's nor such as may stay ([`Space::restore_from`]), or have a frame
    /// that another has, and whether the VMAs are the master's. Reads all tables.
    pub fn differing_entries(&self, mapping: &Mapping, master: (&Self, &Mapping)) -> (usize, bool) {
        let entries = |mapping| {
            let ours = self.layout.monitor();
            [0..ours.start, ours.end..USER_END]
                .into_iter()
                .flat_map(move |range| {
                    let first = paging::next_entry(mapping, range.clone());
                    std::iter::successors(first, move |page| {
                        paging::next_entry(mapping, page.address + PAGE..range.end)
                    })
                })
                .map(|page| (page.address, page.value))
                .collect::<BTreeMap<_, _>>()
        };
        let (master, theirs) = (master.0, entries(master.1));
        let mine = entries(mapping);
        let gone = theirs.keys().filter(|address| !mine.contains_key(address));
        let other = mine.iter().filter(|&(address, value)| {
            theirs.get(address) != Some(value)
                && (theirs.contains_key(address) || !master.would_map(*address, *value))
        });
        let mut frames = BTreeSet::new();
        let twice = mine.values().filter(|&&value| {
            let frame = paging::frame_of(value);
            !frames.insert(frame) && !self.shared.has(frame)
        });
        let same = |(mine, theirs): (&Vma, &Vma)| {
            mine.range() == theirs.range()
                && mine.protection == theirs.protection
                && mine.wiped == theirs.wiped
        };
        let vmas = self.vmas.iter().count() == master.vmas.iter().count()
            && self.vmas.iter().zip(master.vmas.iter()).all(same);
        (gone.count() + other.count() + twice.count(), vmas)
    }

    /// True if this entry is what a fault of the master's own program would make of a page it has not touched yet: zero,
    /// with the permissions of its VMA. It may then stay, for the page reads as the master's.
    fn would_map(&self, address: u64, entry: u64) -> bool {
        let frame = paging::frame_of(entry);
        paging::is_present(entry)
            && self.frames.is_free(frame)
            && self.vmas.find(address).is_some_and(|vma| {
                matches!(vma.backing, Backing::Anonymous(_))
                    && entry == frame | paging::leaf_bits(Owner::User, vma.protection)
            })
    }
}

/// A page of zeroes.
pub(in crate::memory) const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

#[cfg(test)]
mod tests;
