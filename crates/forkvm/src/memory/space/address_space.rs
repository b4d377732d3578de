//! An address space as the program's calls use it: mappings made, changed and taken away.

use std::ops::Range;
use std::sync::Arc;

use crate::arch::layout::{PAGE, SERVER_MMAP_TOP};
use crate::arch::paging;
use crate::memory::access::{Protection, USER_END};
use crate::memory::dirty::DirtyPages;
use crate::memory::mapping::Mapping;
use crate::memory::space::shared::FilePage;
use crate::memory::space::vmas::{Backing, PageSource, Vma, Vmas};
use crate::memory::space::{Space, SpaceError, ZEROES};

/// An address space as calls use it. What changes it refuses all ranges but those of [`AddressSpace::check`].
pub struct AddressSpace<'a> {
    pub(in crate::memory) mapping: &'a Mapping,
    pub(in crate::memory) dirty: Option<&'a mut DirtyPages>,
    pub(in crate::memory) space: &'a mut Space,
}

impl AddressSpace<'_> {
    /// The VMAs.
    pub fn vmas(&self) -> &Vmas {
        &self.space.vmas
    }

    /// Addresses that are the engine's.
    pub fn monitor(&self) -> Range<u64> {
        self.space.layout.monitor()
    }

    /// Fails unless a range is whole pages that a program may have: below [`USER_END`], and none of the engine's.
    pub fn check(&self, range: &Range<u64>) -> Result<(), SpaceError> {
        let Range { start, end } = *range;
        let ours = self.monitor();
        let fine = start.is_multiple_of(PAGE)
            && end.is_multiple_of(PAGE)
            && start <= end
            && end <= USER_END
            && (end <= ours.start || ours.end <= start);
        if fine {
            Ok(())
        } else {
            Err(SpaceError::NotForPrograms { start, end })
        }
    }

    /// First address after those that mmap(2) chooses from.
    pub fn mmap_top(&self) -> u64 {
        SERVER_MMAP_TOP
    }

    /// True if a page has been touched.
    pub fn is_present(&self, page: u64) -> bool {
        paging::next_entry(self.mapping, page..page + PAGE).is_some()
    }

    /// Bytes of frames in use, and of all.
    pub fn memory(&self) -> (u64, u64) {
        self.space.memory()
    }

    /// See [`Vmas::set_source`].
    pub fn set_source(&mut self, start: u64, source: &Arc<dyn PageSource>) {
        self.space.vmas.set_source(start, source);
        self.space.changed = true;
    }

    /// Pages of shared files that the program may have written to.
    pub fn written_pages(&self) -> Vec<FilePage> {
        self.space.shared.written().collect()
    }

    /// Pages of a shared file that are in memory and have something of a range of it.
    pub fn shared_pages(&self, node: u64, range: Range<u64>) -> Vec<FilePage> {
        self.space.shared.pages(node, range).collect()
    }

    /// What such a page has in memory.
    pub fn read_page(&self, page: FilePage) -> Option<[u8; PAGE as usize]> {
        let mut bytes = ZEROES;
        let frame = self.space.shared.find(page)?;
        self.space.wait_for(frame).ok()?;
        self.mapping.read(frame, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Gives such a page other bytes, in all its mappings.
    pub fn write_page(
        &mut self,
        page: FilePage,
        bytes: &[u8; PAGE as usize],
    ) -> Result<(), SpaceError> {
        let Some(frame) = self.space.shared.find(page) else {
            return Ok(());
        };
        self.space.wait_for(frame)?;
        if let Some(dirty) = &mut self.dirty {
            dirty.add((frame / PAGE) as u32)?;
        }
        Ok(self.mapping.write(frame, bytes)?)
    }

    /// Maps a VMA in place of whatever was there.
    pub fn map(&mut self, vma: Vma) -> Result<(), SpaceError> {
        let range = vma.range();
        self.check(&range)?;
        if !vma.backing.reaches(range.end - range.start) {
            return Err(SpaceError::BeyondFiles);
        }
        self.space.vmas.insert(vma)?;
        self.space.drop_pages(self.mapping, range)
    }

    /// Unmaps a range.
    pub fn unmap(&mut self, range: Range<u64>) -> Result<(), SpaceError> {
        self.check(&range)?;
        self.space.vmas.remove(range.clone())?;
        self.space.drop_pages(self.mapping, range)
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        let ours = self.monitor();
        for range in [0..ours.start, ours.end..USER_END] {
            // To take away all VMAs splits none.
            let _ = self.unmap(range);
        }
    }

    /// Changes permissions; addresses without a VMA are passed over.
    pub fn protect_range(
        &mut self,
        range: Range<u64>,
        protection: Protection,
    ) -> Result<(), SpaceError> {
        self.check(&range)?;
        self.space.vmas.protect(range.clone(), protection)?;
        self.space.protect_pages(self.mapping, range, protection)
    }

    /// Has a child find a range zero, or not ([`AddressSpace::wipe`]); addresses without a VMA are passed over.
    pub fn set_wiped(&mut self, range: Range<u64>, wiped: bool) -> Result<(), SpaceError> {
        self.check(&range)?;
        self.space.vmas.set_wiped(range, wiped)?;
        self.space.changed = true;
        Ok(())
    }

    /// Makes it a child's: what is not for one to have is zero (`MADV_WIPEONFORK`).
    pub fn wipe(&mut self) -> Result<(), SpaceError> {
        let wiped = self.space.vmas.iter().filter(|vma| vma.wiped);
        let ranges: Vec<Range<u64>> = wiped.map(Vma::range).collect();
        ranges.into_iter().try_for_each(|range| self.discard(range))
    }

    /// Moves the VMAs and pages of a range to another place, where whatever was there goes.
    pub fn move_range(&mut self, from: Range<u64>, to: u64) -> Result<(), SpaceError> {
        self.check(&from)?;
        let end = to.saturating_add(from.end - from.start);
        let moved = self.space.vmas.cut_out(from.clone());
        self.unmap(to..end)?;
        for vma in moved {
            let start = to + (vma.start - from.start);
            self.space.vmas.insert(Vma {
                start,
                end: start + (vma.end - vma.start),
                ..vma
            })?;
        }
        self.space.move_pages(self.mapping, from.clone(), to)?;
        self.unmap(from)
    }

    /// Makes a range read as if it had never been touched (`MADV_DONTNEED`).
    pub fn discard(&mut self, range: Range<u64>) -> Result<(), SpaceError> {
        for vma in self.space.vmas.cut_out(range) {
            if let Backing::File(..) = vma.backing {
                self.space.drop_pages(self.mapping, vma.range())?;
                continue;
            }
            // Zeroes in place: to take the page away would cost an entry's removal, and a fault later.
            let mut at = vma.start;
            while let Some(page) = paging::next_entry(self.mapping, at..vma.end) {
                let frame = paging::frame_of(page.value);
                self.space.wait_for(frame)?;
                if let Some(dirty) = &mut self.dirty {
                    dirty.add((frame / PAGE) as u32)?;
                }
                self.mapping.write(frame, &ZEROES)?;
                at = page.address + PAGE;
            }
        }
        Ok(())
    }
}
