//! Who has which page of the heap: the break from below, mappings from above, in one set of pages.
//!
//! Pages are numbered from the start of the windows (see [`HeapLayout`]). The page tables of both windows are
//! final at the freeze, so a page whose permissions the program changed in `main()` can be given to somebody
//! else only before that; afterwards it is retired.

use std::collections::TryReserveError;

use crate::linux::abi::{PAGE, USER_END};
use crate::linux::memory::ranges::{Pages, Ranges};
use crate::linux::setup::HeapLayout;
use crate::memory::user::{BadAddress, Protection, UserMemory};

/// Most mappings at a time. Linux has 65,530 (`vm.max_map_count`); each costs host memory in every fork.
pub const MAX_MAPPINGS: usize = 16 << 10;

/// More entries than one call adds to any of the heap's maps: it changes two ranges at most, each by a step or two that
/// add two.
const ROOM: usize = 8;

/// Most ranges of pages known to be used; beyond it the gaps between them count as used too.
const MAX_USED: usize = 4 << 10;

/// What every page of both windows allows from the start, unless the heap may be executed.
pub const READ_WRITE: Protection = Protection {
    read: true,
    write: true,
    execute: false,
};

/// What a program asked for when it made a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The permissions last asked for. The page tables may allow more.
    pub protection: Protection,
    /// Holds a copy of a file's contents.
    pub file: bool,
}

/// One of the two ways to see the heap's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Where the break grows.
    Brk,
    /// Where mappings are.
    Mmap,
}

/// Why pages can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the heap is full, or the host has no memory for the record of its pages")]
pub struct Full;

impl From<TryReserveError> for Full {
    fn from(_: TryReserveError) -> Self {
        Full
    }
}

impl From<BadAddress> for Full {
    fn from(_: BadAddress) -> Self {
        Full
    }
}

/// The heap of one machine.
#[derive(Debug)]
pub struct Heap {
    layout: HeapLayout,
    pages: u64,
    brk: u64,
    mappings: Ranges<Mapping>,
    // Pages that the program ever had. All others are still zero.
    used: Ranges<()>,
    // Permissions in the page tables that are not those of the start, for each window.
    brk_tables: Ranges<Protection>,
    mmap_tables: Ranges<Protection>,
}

impl Clone for Heap {
    fn clone(&self) -> Self {
        Self {
            layout: self.layout,
            pages: self.pages,
            brk: self.brk,
            mappings: self.mappings.clone(),
            used: self.used.clone(),
            brk_tables: self.brk_tables.clone(),
            mmap_tables: self.mmap_tables.clone(),
        }
    }

    fn clone_from(&mut self, source: &Self) {
        let Self {
            layout,
            pages,
            brk,
            mappings,
            used,
            brk_tables,
            mmap_tables,
        } = self;
        *layout = source.layout;
        *pages = source.pages;
        *brk = source.brk;
        mappings.clone_from(&source.mappings);
        used.clone_from(&source.used);
        brk_tables.clone_from(&source.brk_tables);
        mmap_tables.clone_from(&source.mmap_tables);
    }
}

impl Heap {
    /// An empty heap.
    pub fn new(layout: HeapLayout) -> Self {
        let below = |window: u64| USER_END.saturating_sub(window);
        let len = layout
            .len
            .min(below(layout.brk_window))
            .min(below(layout.mmap_window));
        Self {
            layout,
            pages: len / PAGE,
            brk: 0,
            mappings: Ranges::default(),
            used: Ranges::default(),
            brk_tables: Ranges::default(),
            mmap_tables: Ranges::default(),
        }
    }

    /// Has memory for what one call changes. To be called before each that changes anything: how many ranges there are
    /// is the program's choice, and must not be what ends the host's process when memory is short.
    pub fn make_room(&mut self) -> Result<(), Full> {
        self.mappings.make_room(ROOM)?;
        self.used.make_room(ROOM)?;
        self.brk_tables.make_room(ROOM)?;
        Ok(self.mmap_tables.make_room(ROOM)?)
    }

    /// Number of pages, used or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that neither the break nor a mapping has.
    pub fn free_pages(&self) -> u64 {
        let mapped: u64 = self
            .mappings
            .iter()
            .map(|(pages, _)| pages.end - pages.start)
            .sum();
        self.pages
            .saturating_sub(mapped)
            .saturating_sub(self.brk_pages())
    }

    /// Number of pages below the break.
    pub fn brk_pages(&self) -> u64 {
        self.brk.div_ceil(PAGE)
    }

    /// The current break as an address.
    pub fn brk(&self) -> u64 {
        self.layout.brk_window.saturating_add(self.brk)
    }

    /// The address of a page.
    pub fn address(&self, window: Window, page: u64) -> u64 {
        self.base(window).saturating_add(page.saturating_mul(PAGE))
    }

    /// The window and pages of a range of addresses that lies wholly in one window.
    pub fn locate(&self, addresses: std::ops::Range<u64>) -> Option<(Window, Pages)> {
        [Window::Brk, Window::Mmap].into_iter().find_map(|window| {
            let start = addresses.start.checked_sub(self.base(window))? / PAGE;
            let end = addresses.end.checked_sub(self.base(window))?.div_ceil(PAGE);
            (start < end && end <= self.pages).then_some((window, start..end))
        })
    }

    /// The pages of the mmap window that a range of addresses touches, if any.
    pub fn cut_to_mmap_window(&self, addresses: std::ops::Range<u64>) -> Pages {
        let page = |address: u64| address.saturating_sub(self.layout.mmap_window);
        page(addresses.start) / PAGE..page(addresses.end).div_ceil(PAGE).min(self.pages)
    }

    /// True if a range of addresses touches either window.
    pub fn touches_windows(&self, addresses: std::ops::Range<u64>) -> bool {
        [Window::Brk, Window::Mmap].into_iter().any(|window| {
            let base = self.base(window);
            addresses.start < base.saturating_add(self.layout.len) && base < addresses.end
        })
    }

    /// All mappings, lowest first.
    pub fn mappings(&self) -> &Ranges<Mapping> {
        &self.mappings
    }

    /// True if a change that splits mappings would make too many of them.
    pub fn is_crowded(&self) -> bool {
        self.mappings.len().saturating_add(2) > MAX_MAPPINGS
    }

    /// True if taking these pages away would leave a mapping on both sides of them.
    pub fn would_split(&self, pages: &Pages) -> bool {
        let last = self.mappings.last_overlapping(pages.clone());
        last.is_some_and(|last| last.start < pages.start && last.end > pages.end)
    }

    /// The one mapping that all these pages belong to.
    pub fn mapping_of(&self, pages: &Pages) -> Option<Mapping> {
        self.mappings
            .overlapping(pages.clone())
            .next()
            .filter(|(found, _)| found == pages)
            .map(|(_, mapping)| mapping)
    }

    /// Makes pages below the break as good as new.
    pub fn reopen_brk(&mut self, pages: Pages, memory: &mut dyn UserMemory) -> Result<(), Full> {
        self.open(Window::Brk, pages.clone(), memory)?;
        Ok(self.zero(pages, memory)?)
    }

    /// Moves the break to `wanted` bytes into its window, if the pages are free.
    pub fn set_brk(&mut self, wanted: u64, memory: &mut dyn UserMemory) -> Result<(), Full> {
        let old = self.brk_pages();
        let new = wanted.div_ceil(PAGE);
        if new > self.pages || !self.mappings.is_free(old..new.max(old)) {
            return Err(Full);
        }
        if new > old {
            self.open(Window::Brk, old..new, memory)?;
            self.zero(old..new, memory)?;
            self.mark_used(old..new);
        } else {
            // Refused only after the freeze, and then growing again finds the pages retired.
            let _ = self.open(Window::Brk, new..old, memory);
        }
        self.brk = wanted;
        Ok(())
    }

    /// Finds `count` free pages as high as possible and maps them.
    pub fn map(
        &mut self,
        count: u64,
        mapping: Mapping,
        memory: &mut dyn UserMemory,
    ) -> Result<Pages, Full> {
        let pages = self.find(count, memory.can_protect()).ok_or(Full)?;
        self.map_at(pages.clone(), mapping, memory)?;
        Ok(pages)
    }

    /// Maps these pages, which read as zero afterwards; what was mapped there is gone.
    pub fn map_at(
        &mut self,
        pages: Pages,
        mapping: Mapping,
        memory: &mut dyn UserMemory,
    ) -> Result<(), Full> {
        if self.is_crowded() || pages.start < self.brk_pages() || pages.end > self.pages {
            return Err(Full);
        }
        self.open(Window::Mmap, pages.clone(), memory)?;
        self.mappings.remove(pages.clone());
        self.zero(pages.clone(), memory)?;
        self.mark_used(pages.clone());
        self.mappings.insert(pages, mapping);
        Ok(())
    }

    /// Takes mappings away. The pages are cleared when somebody gets them again.
    pub fn unmap(&mut self, pages: Pages, memory: &mut dyn UserMemory) {
        // Refused only after the freeze, and then the pages stay retired.
        let _ = self.open(Window::Mmap, pages.clone(), memory);
        self.mappings.remove(pages);
    }

    /// Notes what a program wants of its mappings now, whatever the page tables allow.
    pub fn set_wanted(&mut self, mut pages: Pages, protection: Protection) {
        while let Some((piece, mapping)) = self.first_mapping(&pages) {
            pages.start = piece.end;
            let changed = Mapping {
                protection,
                ..mapping
            };
            self.mappings.insert(piece, changed);
        }
    }

    fn first_mapping(&self, pages: &Pages) -> Option<(Pages, Mapping)> {
        self.mappings.overlapping(pages.clone()).next()
    }

    /// Sets the permissions of pages in the page tables. Before the freeze only.
    pub fn protect(
        &mut self,
        window: Window,
        pages: Pages,
        protection: Protection,
        memory: &mut dyn UserMemory,
    ) -> Result<(), Full> {
        let len = (pages.end - pages.start).saturating_mul(PAGE);
        if self.tables(window).len().saturating_add(2) > MAX_MAPPINGS {
            return Err(Full);
        }
        let usual = self.usual();
        // What may be executed stays so, as it was asked for by a setting.
        let protection = Protection {
            execute: protection.execute || protection.read && usual.execute,
            ..protection
        };
        memory.protect(self.address(window, pages.start), len, protection)?;
        let tables = self.tables_mut(window);
        if protection == usual {
            tables.remove(pages);
        } else {
            tables.insert(pages, protection);
        }
        Ok(())
    }

    /// True if the page tables allow at least `wanted` on all these pages.
    pub fn allows(&self, window: Window, pages: Pages, wanted: Protection) -> bool {
        let within = |allowed: Protection| {
            allowed.read >= wanted.read
                && allowed.write >= wanted.write
                && allowed.execute >= wanted.execute
        };
        let tables = self.tables(window);
        let exceptions_allow = tables
            .overlapping(pages.clone())
            .all(|(_, allowed)| within(allowed));
        exceptions_allow && (within(self.usual()) || tables.covers(pages))
    }

    /// What pages allow unless the program has asked for something else.
    fn usual(&self) -> Protection {
        Protection {
            execute: self.layout.executable,
            ..READ_WRITE
        }
    }

    /// Fills pages with zeros, as far as they were ever used.
    pub fn zero(&self, pages: Pages, memory: &mut dyn UserMemory) -> Result<(), BadAddress> {
        self.used.overlapping(pages).try_for_each(|(used, ())| {
            memory.clear(
                self.address(Window::Mmap, used.start),
                (used.end - used.start).saturating_mul(PAGE),
            )
        })
    }

    /// Clears all free pages that were ever used, so that no fork has to do it. For the freeze.
    pub fn clear_free_pages(&mut self, memory: &mut dyn UserMemory) -> Result<(), Full> {
        let mut at = self.brk_pages();
        while at < self.pages {
            let next = self.first_mapping(&(at..self.pages));
            let (end, after) = next.map_or((self.pages, self.pages), |(mapped, _)| {
                (mapped.start, mapped.end)
            });
            self.zero(at..end, memory)?;
            self.used.make_room(ROOM)?;
            self.used.remove(at..end);
            at = after;
        }
        Ok(())
    }

    fn base(&self, window: Window) -> u64 {
        match window {
            Window::Brk => self.layout.brk_window,
            Window::Mmap => self.layout.mmap_window,
        }
    }

    fn tables(&self, window: Window) -> &Ranges<Protection> {
        match window {
            Window::Brk => &self.brk_tables,
            Window::Mmap => &self.mmap_tables,
        }
    }

    fn tables_mut(&mut self, window: Window) -> &mut Ranges<Protection> {
        match window {
            Window::Brk => &mut self.brk_tables,
            Window::Mmap => &mut self.mmap_tables,
        }
    }

    /// The highest free range of `count` pages. Pages with unusual permissions will do if those can be changed.
    fn find(&self, count: u64, can_protect: bool) -> Option<Pages> {
        let mut end = self.pages;
        loop {
            let start = end
                .checked_sub(count)
                .filter(|start| *start >= self.brk_pages())?;
            let retired = if can_protect {
                None
            } else {
                self.mmap_tables.last_overlapping(start..end)
            };
            match self.mappings.last_overlapping(start..end).or(retired) {
                Some(taken) => end = taken.start,
                None => return Some(start..end),
            }
        }
    }

    /// Gives pages their usual permissions back. Fails, changing nothing, where it is too late for that.
    fn open(
        &mut self,
        window: Window,
        mut pages: Pages,
        memory: &mut dyn UserMemory,
    ) -> Result<(), Full> {
        loop {
            let first = self.tables(window).overlapping(pages.clone()).next();
            let Some((unusual, _)) = first else {
                return Ok(());
            };
            pages.start = unusual.end;
            self.protect(window, unusual, READ_WRITE, memory)?;
        }
    }

    fn mark_used(&mut self, pages: Pages) {
        self.used.insert(pages, ());
        if self.used.len() > MAX_USED {
            self.used.flatten(());
        }
    }
}
