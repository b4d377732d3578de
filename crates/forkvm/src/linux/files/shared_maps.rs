//! Shared mappings of the overlay's files (`MAP_SHARED`). All mappings of a file have the same memory, which is not the
//! overlay's: a call that may look at the file or change it first takes over what was written to it, and afterwards it has
//! what the call wrote.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::linux::abi::{Guest, PAGE};
use crate::linux::files::fds::Files;
use crate::memory::space::shared::FilePage;
use crate::memory::space::vmas::{Backing, PageSource, Vma};

/// A shared mapping of a file of the overlay.
struct Mapped {
    addresses: Range<u64>,
    /// Where in the file it starts.
    offset: u64,
    path: Arc<[u8]>,
    /// It may write to it.
    writes: bool,
}

impl Mapped {
    /// `None` if it is another file's, or none's.
    fn of(vma: &Vma, node: u64) -> Option<Self> {
        let Backing::File(source, offset) = &vma.backing else {
            return None;
        };
        let (_, writes) = source.node().filter(|of| vma.shared && of.0 == node)?;
        Some(Self {
            addresses: vma.range(),
            offset: *offset,
            path: source.path().into(),
            writes,
        })
    }
}

/// Takes over what the program wrote to its shared mappings.
pub fn take_over(files: &mut Files, guest: &mut Guest<'_>) {
    let Some(space) = guest.memory.space() else {
        return;
    };
    let mut changed = BTreeSet::new();
    for page in space.written_pages() {
        if let Some(bytes) = space.read_page(page)
            && take_over_page(files, page, &bytes)
        {
            changed.insert(page.node);
        }
    }
    for node in changed {
        renew(files, guest, node);
    }
    // It is in the mappings already.
    files.overlay.take_written();
}

/// Copies a page to its file, if it differs. What is past the file's end is nobody's.
fn take_over_page(files: &mut Files, page: FilePage, bytes: &[u8; PAGE as usize]) -> bool {
    let size = files.overlay.size(page.node).unwrap_or(0);
    let len = usize::try_from(size.saturating_sub(page.offset).min(PAGE)).unwrap_or(0);
    let mut old = [0; PAGE as usize];
    let (Some(new), Some(old)) = (bytes.get(..len), old.get_mut(..len)) else {
        return false;
    };
    files.overlay.read(page.node, page.offset, old).is_ok()
        && new != old
        && files.overlay.write(page.node, page.offset, new).is_ok()
}

/// Lets mappings see what the call wrote.
pub fn show(files: &mut Files, guest: &mut Guest<'_>) {
    for (node, range) in files.overlay.take_written() {
        renew(files, guest, node);
        let Some(mut space) = guest.memory.space() else {
            return;
        };
        for page in space.shared_pages(node, range) {
            let mut bytes = [0; PAGE as usize];
            // A page that the host has no memory to record stays as it is.
            if files.overlay.read(node, page.offset, &mut bytes).is_ok()
                && space.read_page(page) != Some(bytes)
            {
                let _ = space.write_page(page, &bytes);
            }
        }
    }
}

/// What a file's mappings have not touched yet is from now on as the file is; there is nothing past its end.
fn renew(files: &mut Files, guest: &mut Guest<'_>, node: u64) {
    let Some(mut space) = guest.memory.space() else {
        return;
    };
    let maps: Vec<_> = space
        .vmas()
        .iter()
        .filter_map(|vma| Mapped::of(vma, node))
        .collect();
    let Some(path) = maps.first().map(|map| &map.path) else {
        return;
    };
    let Ok(size) = files.overlay.size(node) else {
        return;
    };
    let end = size.next_multiple_of(PAGE);
    for writes in [false, true] {
        let Ok(snapshot) = files.overlay.snapshot(node, path, writes) else {
            return;
        };
        let source: Arc<dyn PageSource> = Arc::new(snapshot);
        for map in maps.iter().filter(|map| map.writes == writes) {
            let Range { start, end: last } = map.addresses;
            space.set_source(start, &source);
            let past = start.saturating_add(end.saturating_sub(map.offset));
            if past < last {
                // To take pages of files away splits nothing.
                let _ = space.discard(past..last);
            }
        }
    }
}
