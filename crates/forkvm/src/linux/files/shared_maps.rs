//! Shared mappings of the overlay's files (`MAP_SHARED`). All mappings of a file have the same memory, which is not the
//! overlay's: a call that may look at the file or change it first takes over what was written to it, and afterwards it has
//! what the call wrote. Those of the host's files that a program may change are of copies, of which what is taken over goes to
//! the host as well (`mirrors`).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use crate::linux::abi::{Guest, PAGE, length};
use crate::linux::files::copies;
use crate::linux::files::fds::Files;
use crate::linux::files::host_files::HostFile;
use crate::linux::files::mirrors::Identity;
use crate::linux::files::volumes;
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

/// What is to be mapped in place of a file of the host that the program may change: its copy, if it has one or the mapping `writes`.
pub fn mirror(
    files: &mut Files,
    file: &Arc<HostFile>,
    writes: bool,
) -> Result<Option<Arc<dyn PageSource>>, Errno> {
    files.overlay.share();
    files.mirrors.begin();
    let identity = file.identity();
    let node = match files.mirrors.node(identity) {
        Some(node) => node,
        None if !writes => return Ok(None),
        None => {
            let node = copies::copy_of(files, file).map_err(|errno| match errno {
                Errno::NOSPC => Errno::NOMEM,
                errno => errno,
            })?;
            files.mirrors.add(Arc::clone(file), identity, node);
            node
        }
    };
    let snapshot = files.overlay.snapshot(node, &file.seen(), writes)?;
    Ok(Some(Arc::new(snapshot)))
}

/// Takes over what the program wrote to its shared mappings.
pub fn take_over(files: &mut Files, guest: &mut Guest<'_>) {
    let Some(space) = guest.memory.space() else {
        return;
    };
    if files.mirrors.are_used() {
        let of = |vma: &Vma| vma.shared_page(vma.start).map(|page| page.node);
        let mapped: BTreeSet<u64> = space.vmas().iter().filter_map(of).collect();
        for node in files.mirrors.take_unused(|node| mapped.contains(&node)) {
            files.overlay.tree_mut().closed(node);
        }
    }
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
    if files.overlay.read(page.node, page.offset, old).is_err() || new == old {
        return false;
    }
    let Some(file) = files.mirrors.file(page.node).cloned() else {
        return files.overlay.write(page.node, page.offset, new).is_ok();
    };
    // What is the same may be another one's by now. The copy is told of what was written.
    let differs = |(_, (new, old)): &(usize, (&u8, &u8))| new != old;
    let pairs = || new.iter().zip(old.iter()).enumerate();
    let first = pairs().find(differs).map_or(0, |(at, _)| at);
    let last = pairs().rfind(differs).map_or(0, |(at, _)| at);
    let bytes = new.get(first..=last).unwrap_or_default();
    let to = (page.offset.saturating_add(length(first)), false);
    volumes::write_at(files, &file, to, bytes).is_ok()
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
    if files.mirrors.have_changed() {
        for (identity, range) in files.mirrors.take_changed() {
            forget(guest, identity, &range);
        }
    }
}

/// Has what mappings of a file of the host show of this range be read anew.
fn forget(guest: &mut Guest<'_>, identity: Identity, range: &Range<u64>) {
    let Some(mut space) = guest.memory.space() else {
        return;
    };
    let is_of_it = |vma: &&Vma| match &vma.backing {
        Backing::File(source, _) => {
            vma.shared && source.node().is_none() && source.identity() == identity
        }
        Backing::Anonymous(_) => false,
    };
    let found: Vec<Vma> = space.vmas().iter().filter(is_of_it).cloned().collect();
    for vma in found {
        let Backing::File(_, offset) = vma.backing else {
            continue;
        };
        let place = |at: u64| {
            let by = at.saturating_sub(offset).min(vma.end - vma.start);
            vma.start.saturating_add(by)
        };
        let start = place(range.start) / PAGE * PAGE;
        let end = place(range.end).next_multiple_of(PAGE);
        if start < end {
            // Without room for another VMA pages stay as they are; discarding splits none.
            let _ = space.discard(start..end);
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
