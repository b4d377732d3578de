//! Shared mappings of the overlay's files (`MAP_SHARED`). A mapping has pages of its own, so a call that may look at the file
//! or change it first takes over what was written to them, and afterwards they are read anew where it wrote. Two
//! mappings of one file agree from one such call to the next.

use std::ops::Range;
use std::sync::Arc;

use crate::linux::abi::{Guest, PAGE};
use crate::linux::files::fds::Files;
use crate::memory::space::vmas::{Backing, PageSource, Vma};

/// A shared mapping of a file of the overlay.
struct Mapped {
    addresses: Range<u64>,
    /// Where in the file it starts.
    offset: u64,
    node: u64,
    path: Arc<[u8]>,
    /// Writes to it are the file's.
    writes: bool,
    writable: bool,
}

fn mapped(vma: &Vma) -> Option<Mapped> {
    let Backing::File(source, offset) = &vma.backing else {
        return None;
    };
    let (node, writes) = source.node().filter(|_| vma.shared)?;
    Some(Mapped {
        addresses: vma.range(),
        offset: *offset,
        node,
        path: source.path().into(),
        writes,
        writable: vma.protection.write,
    })
}

fn all(guest: &mut Guest<'_>) -> Vec<Mapped> {
    let space = guest.memory.space();
    space.map_or_else(Vec::new, |space| {
        space.vmas().iter().filter_map(mapped).collect()
    })
}

/// Takes over what the program wrote to its shared mappings.
pub fn take_over(files: &mut Files, guest: &mut Guest<'_>) {
    let maps = all(guest);
    for map in maps.iter().filter(|map| map.writes && map.writable) {
        let size = files.overlay.size(map.node).unwrap_or(0);
        let end = map.addresses.end.min(
            map.addresses
                .start
                .saturating_add(size.saturating_sub(map.offset)),
        );
        let mut changed: Option<Range<u64>> = None;
        let mut page = map.addresses.start;
        while page < end {
            let present = guest
                .memory
                .space()
                .is_some_and(|space| space.is_present(page));
            let at = map.offset.saturating_add(page - map.addresses.start);
            if present && copy(files, guest, map.node, page, (at, size)) {
                let from = changed.map_or(at, |changed| changed.start);
                changed = Some(from..at.saturating_add(PAGE));
            }
            page = page.saturating_add(PAGE);
        }
        if let Some(range) = changed {
            let alone = maps.iter().filter(|other| other.node == map.node).count() == 1;
            let range = if alone { 0..0 } else { range };
            read_anew(files, guest, map.node, &range);
        }
    }
}

/// Copies a page to a file, if it differs.
fn copy(
    files: &mut Files,
    guest: &Guest<'_>,
    node: u64,
    page: u64,
    (at, size): (u64, u64),
) -> bool {
    let len = usize::try_from(size.saturating_sub(at).min(PAGE)).unwrap_or(0);
    let (mut new, mut old) = ([0; PAGE as usize], [0; PAGE as usize]);
    let (Some(new), Some(old)) = (new.get_mut(..len), old.get_mut(..len)) else {
        return false;
    };
    guest.memory.read(page, new).is_ok()
        && files.overlay.read(node, at, old).is_ok()
        && new != old
        && files.overlay.write(node, at, new).is_ok()
}

/// Lets mappings see what the call wrote.
pub fn show(files: &mut Files, guest: &mut Guest<'_>) {
    for (node, range) in files.overlay.take_written() {
        read_anew(files, guest, node, &range);
    }
}

/// From now on a file's mappings are of what it has now; what is in this range is read anew.
fn read_anew(files: &mut Files, guest: &mut Guest<'_>, node: u64, range: &Range<u64>) {
    // What the taking over wrote is in the mappings already.
    files.overlay.take_written();
    let maps = all(guest);
    let Some(path) = maps
        .iter()
        .find(|map| map.node == node)
        .map(|map| &map.path)
    else {
        return;
    };
    for writes in [false, true] {
        let Ok(snapshot) = files.overlay.snapshot(node, path, writes) else {
            return;
        };
        let source: Arc<dyn PageSource> = Arc::new(snapshot);
        let of_node = |map: &&Mapped| map.node == node && map.writes == writes;
        for map in maps.iter().filter(of_node) {
            let Some(mut space) = guest.memory.space() else {
                return;
            };
            space.set_source(map.addresses.start, &source);
            let place = |at: u64| {
                let by = at.saturating_sub(map.offset);
                map.addresses
                    .start
                    .saturating_add(by)
                    .min(map.addresses.end)
            };
            let start = place(range.start) / PAGE * PAGE;
            let end = place(
                range
                    .end
                    .checked_next_multiple_of(PAGE)
                    .unwrap_or(range.end),
            );
            if start < end {
                // Without room for another VMA pages stay as they are; discarding splits none.
                let _ = space.discard(start..end.next_multiple_of(PAGE));
            }
        }
    }
}
