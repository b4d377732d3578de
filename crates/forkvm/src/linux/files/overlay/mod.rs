//! What a program changes of its files: kept in memory, over what the host has, and forgotten by a reset. Nothing of it
//! ever reaches the host.

pub mod content;
pub mod tree;

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::content::{Budget, Content, Snapshot};
use self::tree::{Nature, Node, Tree};
use crate::memory::space::vmas::MAX_OFFSET;

/// `F_SEAL_*` of fcntl(2).
const F_SEAL_SHRINK: u32 = 2;
const F_SEAL_GROW: u32 = 4;
const F_SEAL_WRITE: u32 = 8;
const F_SEAL_FUTURE_WRITE: u32 = 16;

/// One machine's overlay. A clone shares all of it until it changes something, and has a budget of its own.
#[derive(Debug, Serialize, Deserialize)]
pub struct Overlay {
    tree: Arc<Tree>,
    /// User and group of what is made from now on.
    pub owner: (u32, u32),
    #[serde(skip, default = "no_budget")]
    budget: Arc<Budget>,
    /// A file was mapped with `MAP_SHARED`.
    shared: bool,
    /// If so, what was written since, one range for each file.
    written: Vec<(u64, Range<u64>)>,
}

fn no_budget() -> Arc<Budget> {
    Budget::new(0)
}

impl Clone for Overlay {
    fn clone(&self) -> Self {
        Self {
            tree: Arc::clone(&self.tree),
            owner: self.owner,
            budget: Budget::new(self.budget.limit()),
            shared: self.shared,
            written: self.written.clone(),
        }
    }

    fn clone_from(&mut self, source: &Self) {
        // What was new is given back to the budget, which stays.
        self.tree = Arc::clone(&source.tree);
        self.owner = source.owner;
        self.shared = source.shared;
        self.written.clone_from(&source.written);
    }
}

impl Overlay {
    /// An empty one of at most so many bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            tree: Arc::new(Tree::new()),
            owner: (0, 0),
            budget: Budget::new(limit),
            shared: false,
            written: Vec::new(),
        }
    }

    /// It may from now on have as much as this one.
    pub fn be_limited_as(&mut self, other: &Self) {
        self.set_limit(other.budget.limit());
    }

    /// So many bytes may be new in it from now on. What is new already does not count.
    pub fn set_limit(&mut self, limit: u64) {
        self.budget = Budget::new(limit);
    }

    /// What there is.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The same, to change.
    pub fn tree_mut(&mut self) -> &mut Tree {
        Arc::make_mut(&mut self.tree)
    }

    /// The node that has this path, if one has.
    pub fn known(&self, path: &[u8]) -> Option<u64> {
        self.tree.get(path)?.node
    }

    /// How many bytes it may have, for statfs(2): all and free.
    pub fn bytes(&self) -> (u64, u64) {
        (self.budget.limit(), self.budget.left())
    }

    fn content(&self, id: u64) -> Result<&Content, Errno> {
        match &self.tree.node(id)?.nature {
            Nature::File(content) => Ok(content),
            Nature::Folder { .. } => Err(Errno::ISDIR),
            Nature::Link(_) | Nature::Fifo | Nature::Socket => Err(Errno::INVAL),
        }
    }

    /// From now on a file is mapped with `MAP_SHARED`.
    pub fn share(&mut self) {
        self.shared = true;
    }

    /// Whether one is, or was.
    pub fn has_shared(&self) -> bool {
        self.shared
    }

    /// What was written since the last time.
    pub fn take_written(&mut self) -> Vec<(u64, Range<u64>)> {
        std::mem::take(&mut self.written)
    }

    fn note_written(&mut self, id: u64, range: Range<u64>) {
        if !self.shared {
            return;
        }
        match self.written.iter_mut().find(|(other, _)| *other == id) {
            Some((_, known)) => {
                *known = known.start.min(range.start)..known.end.max(range.end);
            }
            None => self.written.push((id, range)),
        }
    }

    /// The content of a file, to change, with the budget it comes from.
    fn change(&mut self, id: u64) -> Result<(&mut Node, &Arc<Budget>), Errno> {
        let node = Arc::make_mut(&mut self.tree).node_mut(id)?;
        Ok((node, &self.budget))
    }

    /// The size of a file.
    pub fn size(&self, id: u64) -> Result<u64, Errno> {
        Ok(self.content(id)?.size())
    }

    /// Reads from a file.
    pub fn read(&self, id: u64, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.content(id)?.read(offset, buf)
    }

    /// Writes to a file; what a seal forbids is EPERM.
    pub fn write(&mut self, id: u64, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let (node, budget) = self.change(id)?;
        let Nature::File(content) = &mut node.nature else {
            return Err(Errno::BADF);
        };
        let grows = offset.saturating_add(crate::linux::abi::length(bytes.len())) > content.size();
        if node.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0
            || node.seals & F_SEAL_GROW != 0 && grows
        {
            return Err(Errno::PERM);
        }
        let written = content.write(offset, bytes, budget)?;
        touch(node);
        let end = offset.saturating_add(crate::linux::abi::length(written));
        self.note_written(id, offset..end);
        Ok(written)
    }

    /// ftruncate(2)
    pub fn set_size(&mut self, id: u64, size: u64) -> Result<(), Errno> {
        let (node, budget) = self.change(id)?;
        let Nature::File(content) = &mut node.nature else {
            return Err(Errno::INVAL);
        };
        if node.seals & F_SEAL_GROW != 0 && size > content.size()
            || node.seals & F_SEAL_SHRINK != 0 && size < content.size()
        {
            return Err(Errno::PERM);
        }
        let from = size.min(content.size());
        content.set_size(size, budget)?;
        touch(node);
        self.note_written(id, from..MAX_OFFSET);
        Ok(())
    }

    /// fallocate(2): has memory for a range, which grows the file unless `keep_size`.
    pub fn allocate(
        &mut self,
        id: u64,
        (offset, len): (u64, u64),
        keep_size: bool,
    ) -> Result<(), Errno> {
        let (node, budget) = self.change(id)?;
        let Nature::File(content) = &mut node.nature else {
            return Err(Errno::NODEV);
        };
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        if node.seals & F_SEAL_WRITE != 0 || node.seals & F_SEAL_GROW != 0 && end > content.size() {
            return Err(Errno::PERM);
        }
        content.allocate(offset, len, budget)?;
        if !keep_size && end > content.size() {
            content.set_size(end, budget)?;
        }
        touch(node);
        self.note_written(id, offset..MAX_OFFSET);
        Ok(())
    }

    /// fallocate(2) with `FALLOC_FL_PUNCH_HOLE` or `FALLOC_FL_ZERO_RANGE`.
    pub fn clear(&mut self, id: u64, offset: u64, len: u64) -> Result<(), Errno> {
        let (node, budget) = self.change(id)?;
        let Nature::File(content) = &mut node.nature else {
            return Err(Errno::NODEV);
        };
        if node.seals & F_SEAL_WRITE != 0 {
            return Err(Errno::PERM);
        }
        content.clear(offset, len, budget)?;
        touch(node);
        self.note_written(id, offset..offset.saturating_add(len));
        Ok(())
    }

    /// A file as it is now, to be mapped; shared mappings may write to it if `writes`.
    pub fn snapshot(&self, id: u64, path: &Arc<[u8]>, writes: bool) -> Result<Snapshot, Errno> {
        let identity = self.tree.node(id)?.identity;
        let node = (id, writes);
        Snapshot::new(
            self.content(id)?,
            Arc::clone(path),
            identity,
            node,
            &self.budget,
        )
    }

    /// The content of a new file with these bytes.
    pub fn content_of(&self, bytes: &[u8]) -> Result<Content, Errno> {
        let mut content = Content::default();
        if content.write(0, bytes, &self.budget)? < bytes.len() {
            return Err(Errno::NOSPC);
        }
        Ok(content)
    }
}

/// The host's clock, which is the program's.
pub fn now() -> tree::Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// It was written to just now.
fn touch(node: &mut Node) {
    let now = now();
    node.times = [node.times[0], now, now];
}
