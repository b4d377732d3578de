//! An address space on its way into a file and back. Page tables are not in there: they are built anew of the VMAs and of which
//! page has which frame, each number checked before it is used. So what a file says leads to no frame but those that programs
//! get, and to no permission that its VMA does not give.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::arch::layout::{PAGE, SpaceLayout};
use crate::arch::paging::{self, Owner, TablePages};
use crate::memory::access::{Protection, USER_END};
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::space::Space;
use crate::memory::space::frames::Frames;
use crate::memory::space::shared::{FilePage, SharedFrames};
use crate::memory::space::vmas::{Backing, MAX_VMAS, PageSource, Vma, Vmas};

/// Names of anonymous memory that /proc/self/maps gives.
const NAMES: [&str; 3] = ["[stack]", "[vdso]", "[heap]"];

/// Why an address space is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpace {
    /// A mapping is not where one may be, or is of nothing.
    #[error("a mapping at {0:#x} that can't be")]
    Vma(u64),
    /// A page is not in a mapping, has no frame of its own, or not the one of its file.
    #[error("a page at {0:#x} that can't be")]
    Page(u64),
    /// More mappings than there may be.
    #[error("too many mappings")]
    TooMany,
    /// The frames that were ever used are not among those there are.
    #[error("frames that are not there")]
    Frames,
    /// The tables are full.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum SavedBacking {
    /// Zeroes, with one of the [`NAMES`] or none.
    Anonymous(Option<u8>),
    /// A file, by its place among the sources, from this offset.
    File(u32, u64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedVma {
    /// Pages.
    start: u64,
    end: u64,
    /// Read, write, execute.
    protection: (bool, bool, bool),
    shared: bool,
    wiped: bool,
    backing: SavedBacking,
}

/// Neighbouring pages that have neighbouring frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Number of the first page, and of its frame.
    page: u64,
    frame: u64,
    count: u64,
}

/// An address space.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSpace {
    vmas: Vec<SavedVma>,
    runs: Vec<Run>,
    /// Number of the first frame that was never given out.
    untouched: u64,
    /// Pages of shared files that the program may have written to: file and offset.
    written: Vec<(u64, u64)>,
}

/// A protection that an entry may stand for, as bits of a page's entry.
fn bits(protection: Protection) -> u64 {
    paging::leaf_bits(Owner::User, protection)
}

impl Space {
    /// It as it is, and the files that it maps. `None` if an entry is not what its VMA says, which would be a bug.
    pub fn save(&self, mapping: &Mapping) -> Option<(SavedSpace, Vec<Arc<dyn PageSource>>)> {
        let mut sources: Vec<Arc<dyn PageSource>> = Vec::new();
        let mut place_of = |file: &Arc<dyn PageSource>| {
            let known = sources.iter().position(|known| Arc::ptr_eq(known, file));
            let place = known.unwrap_or_else(|| {
                sources.push(Arc::clone(file));
                sources.len() - 1
            });
            u32::try_from(place).ok()
        };
        let (mut vmas, mut runs) = (Vec::new(), Vec::<Run>::new());
        for vma in self.vmas.iter() {
            let backing = match &vma.backing {
                Backing::File(file, offset) => SavedBacking::File(place_of(file)?, *offset),
                Backing::Anonymous(None) => SavedBacking::Anonymous(None),
                Backing::Anonymous(Some(name)) => {
                    let place = NAMES.iter().position(|known| known == name)?;
                    SavedBacking::Anonymous(Some(u8::try_from(place).ok()?))
                }
            };
            let of = vma.protection;
            vmas.push(SavedVma {
                start: vma.start / PAGE,
                end: vma.end / PAGE,
                protection: (of.read, of.write, of.execute),
                shared: vma.shared,
                wiped: vma.wiped,
                backing,
            });
            let mut at = vma.start;
            while let Some(page) = paging::next_entry(mapping, at..vma.end) {
                at = page.address + PAGE;
                let frame = paging::frame_of(page.value);
                if page.value != frame | bits(of) {
                    return None;
                }
                let (page, frame) = (page.address / PAGE, frame / PAGE);
                match runs.last_mut() {
                    Some(run) if run.page + run.count == page && run.frame + run.count == frame => {
                        run.count += 1;
                    }
                    _ => runs.push(Run {
                        page,
                        frame,
                        count: 1,
                    }),
                }
            }
        }
        let written = self.shared.written().map(|page| (page.node, page.offset));
        let saved = SavedSpace {
            vmas,
            runs,
            untouched: self.frames.next() / PAGE,
            written: written.collect(),
        };
        Some((saved, sources))
    }
}

/// Frames, by their numbers.
pub struct FrameSet(Vec<bool>);

impl FrameSet {
    /// Takes some out. False if one is not there.
    pub fn take(&mut self, frames: Range<u64>) -> bool {
        let frames = frames.start as usize..frames.end as usize;
        self.0.get_mut(frames).is_some_and(|taken| {
            let all = taken.iter().all(|&there| there);
            taken.fill(false);
            all
        })
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let there = self.0.iter().zip(0..).filter(|(there, _)| **there);
        there.map(|(_, frame)| frame)
    }
}

impl SavedSpace {
    /// The frames that pages have. Those of a file have to be looked at first ([`SavedSpace::check`]).
    pub fn frames(&self) -> FrameSet {
        let mut set = FrameSet(vec![false; self.untouched as usize]);
        for run in &self.runs {
            let frames = run.frame as usize..(run.frame + run.count) as usize;
            if let Some(known) = set.0.get_mut(frames) {
                known.fill(true);
            }
        }
        set
    }

    /// How many pages its runs name at most, which is looked at before they are.
    fn pages(&self) -> u64 {
        self.runs
            .iter()
            .fold(0, |sum, run| sum.saturating_add(run.count))
    }

    /// Fails unless all its frames are among those of a machine, so that there are not more of them than of those.
    pub fn check(&self, layout: &SpaceLayout) -> Result<(), BadSpace> {
        let frames = layout.frames.start / PAGE..self.untouched;
        let fits = |run: &Run| {
            let end = run.frame.checked_add(run.count);
            run.count > 0 && run.frame >= frames.start && end.is_some_and(|end| end <= frames.end)
        };
        // Several pages may have one frame, of a shared file.
        let most = layout.frames.end / PAGE * 4;
        let good = frames.start <= frames.end
            && frames.end <= layout.frames.end / PAGE
            && self.runs.iter().all(fits)
            && self.pages() <= most;
        if good { Ok(()) } else { Err(BadSpace::Frames) }
    }

    /// Builds it in a machine whose memory has the monitor's pages and `tables` with theirs, and the contents of the frames but
    /// for those that are `awaited`.
    pub fn build(
        &self,
        layout: SpaceLayout,
        mut tables: TablePages,
        memory: &Mapping,
        sources: &[Arc<dyn PageSource>],
        awaited: impl Fn(u64) -> bool,
    ) -> Result<Space, BadSpace> {
        self.check(&layout)?;
        let vmas = self.vmas(&layout, sources)?;
        let pages = self.written.iter();
        let written: BTreeSet<FilePage> = pages
            .map(|&(node, offset)| FilePage { node, offset })
            .collect();
        let mut shared = SharedFrames::default();
        let mut used = vec![false; self.untouched as usize];
        let mut of_files = BTreeMap::new();
        for run in &self.runs {
            for n in 0..run.count {
                let page = run.page.checked_add(n).and_then(|n| n.checked_mul(PAGE));
                let address = page.ok_or(BadSpace::Page(run.page))?;
                let bad = BadSpace::Page(address);
                let vma = vmas.find(address).ok_or(bad)?;
                let frame = (run.frame + n) * PAGE;
                let of_file = vma.shared_page(address);
                // A frame is one page's, or those of one page of a file.
                let known = used.get_mut((run.frame + n) as usize).ok_or(bad)?;
                if std::mem::replace(known, true)
                    && (of_file.is_none() || of_files.get(&frame) != of_file.as_ref())
                {
                    return Err(bad);
                }
                if let Some(of_file) = of_file {
                    of_files.insert(frame, of_file);
                    if shared.find(of_file).is_some_and(|known| known != frame) {
                        return Err(bad);
                    }
                    let writable = vma.protection.write || written.contains(&of_file);
                    shared.add(of_file, frame, writable);
                }
                let entry = tables.leaf_entry(memory, address)?;
                if memory.read_u64(entry)? != 0 {
                    return Err(bad);
                }
                let value = frame | bits(vma.protection);
                let now = if awaited(frame) {
                    paging::awaited(value)
                } else {
                    value
                };
                memory.write_u64(entry, now)?;
            }
        }
        let frames = Frames::with(layout.frames.clone(), self.untouched * PAGE, |frame| {
            used.get((frame / PAGE) as usize) == Some(&true)
        });
        Ok(Space {
            vmas,
            frames,
            shared,
            ..Space::new(layout, tables)
        })
    }

    fn vmas(
        &self,
        layout: &SpaceLayout,
        sources: &[Arc<dyn PageSource>],
    ) -> Result<Vmas, BadSpace> {
        if self.vmas.len() > MAX_VMAS {
            return Err(BadSpace::TooMany);
        }
        let (mut vmas, ours, mut last) = (Vmas::default(), layout.monitor(), 0);
        for saved in &self.vmas {
            let bad = BadSpace::Vma(saved.start);
            let bytes = |pages: u64| pages.checked_mul(PAGE).ok_or(bad);
            let (start, end) = (bytes(saved.start)?, bytes(saved.end)?);
            let (read, write, execute) = saved.protection;
            let fits = last <= start
                && start < end
                && end <= USER_END
                && (end <= ours.start || ours.end <= start);
            let backing = match saved.backing {
                SavedBacking::Anonymous(None) => Backing::Anonymous(None),
                SavedBacking::Anonymous(Some(name)) => {
                    Backing::Anonymous(Some(NAMES.get(usize::from(name)).ok_or(bad)?))
                }
                SavedBacking::File(place, offset) => {
                    let source = usize::try_from(place).ok().and_then(|at| sources.get(at));
                    Backing::File(Arc::clone(source.ok_or(bad)?), offset)
                }
            };
            if !fits || !backing.reaches(end - start) {
                return Err(bad);
            }
            last = end;
            let vma = Vma {
                start,
                end,
                protection: Protection {
                    read,
                    write,
                    execute,
                },
                shared: saved.shared,
                wiped: saved.wiped,
                backing,
            };
            vmas.insert(vma).map_err(|_| BadSpace::TooMany)?;
        }
        Ok(vmas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::monitor;
    use proptest::prelude::*;
    use std::fs::File;

    const LAYOUT_BYTES: u64 = 32 << 20;

    fn machine() -> (SpaceLayout, TablePages, Mapping) {
        let layout = SpaceLayout::plan(LAYOUT_BYTES).unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = Arc::new(File::from(file));
        file.set_len(layout.frames.end).unwrap();
        let memory = Mapping::shared(&file, layout.frames.end).unwrap();
        let mut tables = TablePages::new(layout.tables.clone());
        for range in monitor::ranges_with_tables(&layout) {
            tables.map(&memory, &range).unwrap();
        }
        (layout, tables, memory)
    }

    fn run(page: u64, frame: u64, count: u64) -> Run {
        Run { page, frame, count }
    }

    /// Two mappings, of which the second can only be read, with three pages.
    fn good(first: u64) -> SavedSpace {
        let vma = |start, end, write| SavedVma {
            start,
            end,
            protection: (true, write, false),
            shared: false,
            wiped: false,
            backing: SavedBacking::Anonymous(None),
        };
        SavedSpace {
            vmas: vec![vma(0x100, 0x110, true), vma(0x200, 0x201, false)],
            runs: vec![run(0x10e, first + 1, 2), run(0x200, first + 5, 1)],
            untouched: first + 8,
            written: Vec::new(),
        }
    }

    fn build(saved: &SavedSpace) -> Result<(Space, Mapping), BadSpace> {
        let (layout, tables, memory) = machine();
        Ok((
            saved.build(layout, tables, &memory, &[], |_| false)?,
            memory,
        ))
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let first = SpaceLayout::plan(LAYOUT_BYTES).unwrap().frames.start / PAGE;
        let saved = good(first);
        let (mut space, memory) = build(&saved).unwrap();
        let (again, sources) = space.save(&memory).unwrap();
        assert!(sources.is_empty());
        assert_eq!(format!("{again:?}"), format!("{saved:?}"));
        let entry = |page: u64| {
            paging::next_entry(&memory, page * PAGE..(page + 1) * PAGE).map(|page| page.value)
        };
        let rw = Protection {
            read: true,
            write: true,
            execute: false,
        };
        assert_eq!(entry(0x10e), Some(((first + 1) * PAGE) | bits(rw)));
        assert_eq!(entry(0x10d), None);
        // What no page has is free, and nothing else.
        let free: BTreeSet<u64> = (0..5)
            .map(|_| space.frames.take().unwrap().address / PAGE - first)
            .collect();
        assert_eq!(free, [0, 3, 4, 6, 7].into());
        assert_eq!(space.frames.take().unwrap().address / PAGE, first + 8);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let layout = SpaceLayout::plan(LAYOUT_BYTES).unwrap();
        let first = layout.frames.start / PAGE;
        let (last, monitor) = (layout.frames.end / PAGE, layout.monitor());
        let changed = |change: &dyn Fn(&mut SavedSpace)| {
            let mut saved = good(first);
            change(&mut saved);
            build(&saved).err()
        };
        assert_eq!(changed(&|_| {}), None);
        for run in [
            // The tables, beyond the end, never given out, two of one frame, of no mapping, overflowing, of the monitor.
            run(0x100, first - 1, 1),
            run(0x100, last, 1),
            run(0x100, first + 8, 1),
            run(0x100, first + 5, 1),
            run(0x110, first + 6, 1),
            run(0x10f, first + 6, 2),
            run(u64::MAX, first + 6, 1),
            run(u64::MAX / PAGE, first + 6, 2),
            run(0x100, u64::MAX, 2),
            run(0x100, first + 6, u64::MAX),
            run(0x100, first + 6, 0),
            run(monitor.start / PAGE, first + 6, 1),
            // A page that has a frame already.
            run(0x10e, first + 6, 1),
        ] {
            assert!(changed(&|saved| saved.runs.push(run)).is_some(), "{run:?}");
        }
        for untouched in [0, first - 1, first + 3, last + 1, u64::MAX] {
            let error = changed(&|saved| saved.untouched = untouched);
            assert_eq!(error, Some(BadSpace::Frames), "{untouched}");
        }
        for (start, end) in [
            (0x210, 0x210),
            (0x210, 0x20f),
            (0x1ff, 0x210),
            (monitor.start / PAGE, monitor.start / PAGE + 1),
            (monitor.start / PAGE - 1, monitor.end / PAGE + 1),
            (USER_END / PAGE, USER_END / PAGE + 1),
            (u64::MAX, u64::MAX),
            (u64::MAX / PAGE, u64::MAX / PAGE + 2),
        ] {
            let vma = |saved: &SavedSpace| SavedVma {
                start,
                end,
                ..saved.vmas[0].clone()
            };
            let error = changed(&|saved| saved.vmas.push(vma(saved)));
            assert!(error.is_some(), "{start:#x}-{end:#x}");
        }
        let backing =
            |backing: SavedBacking| changed(&|saved| saved.vmas[0].backing = backing.clone());
        assert!(backing(SavedBacking::File(0, 0)).is_some());
        assert!(backing(SavedBacking::Anonymous(Some(3))).is_some());
        assert_eq!(backing(SavedBacking::Anonymous(Some(2))), None);
    }

    proptest! {
        /// Whatever a file says, entries lead to frames of programs, once each, and are no more than their VMA allows.
        #[test]
        fn no_entry_leads_elsewhere(
            vmas in prop::collection::vec((0u64..64, 1u64..16, any::<(bool, bool, bool)>()), 0..4),
            runs in prop::collection::vec((0u64..80, 0u64..40, 0u64..8), 0..8),
            untouched in 0u64..40,
        ) {
            let (layout, tables, memory) = machine();
            let first = layout.frames.start / PAGE - 4;
            let vma = |&(start, len, protection): &(u64, u64, (bool, bool, bool))| SavedVma {
                start,
                end: start + len,
                protection,
                shared: false,
                wiped: false,
                backing: SavedBacking::Anonymous(None),
            };
            let saved = SavedSpace {
                vmas: vmas.iter().map(vma).collect(),
                runs: runs.iter().map(|&(page, frame, count)| run(page, first + frame, count)).collect(),
                untouched: first + untouched,
                written: Vec::new(),
            };
            if let Ok(space) = saved.build(layout.clone(), tables, &memory, &[], |_| false) {
                let mut seen = BTreeSet::new();
                let mut at = 0;
                while let Some(page) = paging::next_entry(&memory, at..layout.monitor().start) {
                    at = page.address + PAGE;
                    let frame = paging::frame_of(page.value);
                    prop_assert!(layout.frames.contains(&frame) && frame < (first + untouched) * PAGE);
                    prop_assert!(seen.insert(frame));
                    let vma = space.vmas.find(page.address).unwrap();
                    prop_assert_eq!(page.value, frame | bits(vma.protection));
                }
            }
        }
    }
}
