//! The files and folders of the overlay: what is at a path, and what it is like.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::length;
use crate::linux::files::overlay::content::Content;

/// Most files and folders, those of the host that are hidden among them.
const MAX_ENTRIES: usize = 16_384;
/// Most bytes of all their paths.
const MAX_PATH_BYTES: usize = 4 << 20;
/// First inode number; smaller ones have a meaning to some programs.
const FIRST_INODE: u64 = 1000;
/// The device that the overlay's files are on. The host counts such minor numbers from 1 on.
pub const DEVICE: u64 = libc::makedev(0, 0xf_ffff);

/// Seconds and nanoseconds since 1970.
pub type Moment = (i64, u32);

/// What a node is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Nature {
    /// A regular file.
    File(Content),
    /// A folder. One that is opaque hides what the host has beneath it.
    Folder {
        /// It hides it.
        opaque: bool,
    },
    /// A symbolic link and where it leads.
    Link(Arc<[u8]>),
    /// A named pipe (fifo(7)).
    Fifo,
    /// A socket's name (unix(7)).
    Socket,
}

/// A file, folder or link of the overlay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// What it is.
    pub nature: Nature,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Last access, modification, change.
    pub times: [Moment; 3],
    /// Device and inode: the host's for what was the host's.
    pub identity: (u64, u64),
    /// `F_SEAL_*`.
    pub seals: u32,
    links: u64,
    opens: u64,
}

impl Node {
    /// A new one, of now; it gets an inode when it is added.
    pub fn new(nature: Nature, mode: u32, now: Moment) -> Self {
        Self {
            nature,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            times: [now; 3],
            identity: (0, 0),
            seals: 0,
            links: 0,
            opens: 0,
        }
    }

    /// Names that it has.
    pub fn links(&self) -> u64 {
        self.links
    }

    /// Its file type and permissions, as `st_mode` has them.
    pub fn full_mode(&self) -> u32 {
        let kind = match self.nature {
            Nature::File(_) => libc::S_IFREG,
            Nature::Folder { .. } => libc::S_IFDIR,
            Nature::Link(_) => libc::S_IFLNK,
            Nature::Fifo => libc::S_IFIFO,
            Nature::Socket => libc::S_IFSOCK,
        };
        kind | self.mode
    }

    fn is_fifo(&self) -> bool {
        matches!(self.nature, Nature::Fifo)
    }

    /// True for a folder.
    pub fn is_folder(&self) -> bool {
        matches!(self.nature, Nature::Folder { .. })
    }
}

/// A name in a folder.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Entry {
    /// Counted on; it never changes, and so is a position in a listing.
    pub sequence: u64,
    /// The node, or nothing: the host's is hidden.
    pub node: Option<u64>,
}

/// All of them. Paths are absolute and normalised.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tree {
    entries: BTreeMap<Arc<[u8]>, Entry>,
    nodes: BTreeMap<u64, Arc<Node>>,
    path_bytes: usize,
    /// How many of them are named pipes.
    fifos: usize,
    next: u64,
}

/// A folder's path as what is in it begins with.
fn beneath(folder: &[u8]) -> Vec<u8> {
    let mut start = folder.to_vec();
    if !start.ends_with(b"/") {
        start.push(b'/');
    }
    start
}

impl Tree {
    /// Nothing.
    pub fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            nodes: BTreeMap::new(),
            path_bytes: 0,
            fifos: 0,
            next: FIRST_INODE,
        }
    }

    /// Whether what was read from a snapshot can be.
    pub fn is_sound(&self) -> bool {
        self.nodes.values().all(|node| match &node.nature {
            Nature::File(content) => content.is_sound(),
            _ => true,
        })
    }

    /// What is known of a path.
    pub fn get(&self, path: &[u8]) -> Option<Entry> {
        self.entries.get(path).copied()
    }

    /// A node that there is.
    pub fn node(&self, id: u64) -> Result<&Node, Errno> {
        self.nodes.get(&id).map(|node| &**node).ok_or(Errno::STALE)
    }

    /// The same, to change.
    pub fn node_mut(&mut self, id: u64) -> Result<&mut Node, Errno> {
        self.nodes
            .get_mut(&id)
            .map(Arc::make_mut)
            .ok_or(Errno::STALE)
    }

    /// Whether there is a named pipe.
    pub fn has_fifos(&self) -> bool {
        self.fifos > 0
    }

    /// Adds a node that has no name yet.
    pub fn add(&mut self, mut node: Node) -> Result<u64, Errno> {
        if self.nodes.len() >= MAX_ENTRIES {
            return Err(Errno::NOSPC);
        }
        let id = self.next;
        self.next = self.next.saturating_add(1);
        if node.identity == (0, 0) {
            node.identity = (DEVICE, id);
        }
        self.fifos = self.fifos.saturating_add(node.is_fifo().into());
        self.nodes.insert(id, Arc::new(node));
        Ok(id)
    }

    /// Gives a node a name, in place of what had it, which goes if that was its last.
    pub fn name(&mut self, path: &[u8], id: u64) -> Result<(), Errno> {
        self.node(id)?;
        self.put(path, Some(id))?;
        let node = self.node_mut(id)?;
        node.links = node.links.saturating_add(1);
        Ok(())
    }

    /// Takes a name away. What the host has there is hidden, if it has something.
    pub fn remove(&mut self, path: &[u8], hide: bool) -> Result<(), Errno> {
        if hide {
            return self.put(path, None);
        }
        if let Some(old) = self.entries.remove(path) {
            self.path_bytes = self.path_bytes.saturating_sub(path.len());
            self.unlink(old);
        }
        Ok(())
    }

    /// Forgets all that is beneath a folder.
    pub fn remove_beneath(&mut self, folder: &[u8]) {
        let paths: Vec<_> = self
            .beneath(folder)
            .map(|(path, _)| Arc::clone(path))
            .collect();
        for path in paths {
            // Nothing is hidden, so that there is nothing to fail.
            let _ = self.remove(&path, false);
        }
    }

    /// Has two paths change places, with all that is beneath them. Neither is beneath the other.
    pub fn exchange(&mut self, first: &[u8], second: &[u8]) -> Result<(), Errno> {
        let mut moved = Vec::new();
        for (from, to) in [(first, second), (second, first)] {
            let own = self.entries.get_key_value(from);
            for (path, entry) in own.into_iter().chain(self.beneath(from)) {
                let rest = path.get(from.len()..).unwrap_or_default();
                moved.push((Arc::clone(path), [to, rest].concat(), *entry));
            }
        }
        let longest = moved.iter().map(|(_, new, _)| new.len()).max();
        if longest.is_some_and(|longest| longest >= crate::linux::abi::PATH_MAX) {
            return Err(Errno::NAMETOOLONG);
        }
        let lengths = |paths: &mut dyn Iterator<Item = usize>| paths.fold(0, usize::saturating_add);
        let before = lengths(&mut moved.iter().map(|(old, ..)| old.len()));
        let after = lengths(&mut moved.iter().map(|(_, new, _)| new.len()));
        let bytes = self.path_bytes.saturating_sub(before).saturating_add(after);
        if bytes > MAX_PATH_BYTES {
            return Err(Errno::NOSPC);
        }
        self.path_bytes = bytes;
        for (old, ..) in &moved {
            self.entries.remove(old);
        }
        let new = moved.into_iter().map(|(_, new, entry)| (new.into(), entry));
        self.entries.extend(new);
        Ok(())
    }

    /// Moves all that is beneath a folder to another.
    pub fn move_beneath(&mut self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let (from, to) = (beneath(from), beneath(to));
        let moved: Vec<_> = self
            .beneath(&from)
            .map(|(path, entry)| {
                let rest = path.get(from.len()..).unwrap_or_default();
                (Arc::clone(path), [&to[..], rest].concat(), *entry)
            })
            .collect();
        let longest = moved.iter().map(|(_, new, _)| new.len()).max();
        if longest.is_some_and(|longest| longest >= crate::linux::abi::PATH_MAX) {
            return Err(Errno::NAMETOOLONG);
        }
        let more = moved
            .len()
            .saturating_mul(to.len().saturating_sub(from.len()));
        if self.path_bytes.saturating_add(more) > MAX_PATH_BYTES {
            return Err(Errno::NOSPC);
        }
        for (old, new, entry) in moved {
            self.entries.remove(&old);
            self.path_bytes = self
                .path_bytes
                .saturating_sub(old.len())
                .saturating_add(new.len());
            self.entries.insert(new.into(), entry);
        }
        Ok(())
    }

    fn put(&mut self, path: &[u8], node: Option<u64>) -> Result<(), Errno> {
        let sequence = self.next;
        self.next = self.next.saturating_add(1);
        let entry = Entry { sequence, node };
        if let Some(place) = self.entries.get_mut(path) {
            let old = std::mem::replace(place, entry);
            self.unlink(old);
            return Ok(());
        }
        let bytes = self.path_bytes.saturating_add(path.len());
        if self.entries.len() >= MAX_ENTRIES || bytes > MAX_PATH_BYTES {
            return Err(Errno::NOSPC);
        }
        self.path_bytes = bytes;
        self.entries.insert(path.into(), entry);
        Ok(())
    }

    fn unlink(&mut self, entry: Entry) {
        let Some(id) = entry.node else { return };
        if let Ok(node) = self.node_mut(id) {
            node.links = node.links.saturating_sub(1);
        }
        self.drop_unused(id);
    }

    /// An open file more of a node.
    pub fn opened(&mut self, id: u64) -> Result<(), Errno> {
        let node = self.node_mut(id)?;
        node.opens = node.opens.saturating_add(1);
        Ok(())
    }

    /// An open file less. A file without a name goes with its last.
    pub fn closed(&mut self, id: u64) {
        if let Ok(node) = self.node_mut(id) {
            node.opens = node.opens.saturating_sub(1);
        }
        self.drop_unused(id);
    }

    /// A node goes that has no name and is not open.
    pub fn drop_unused(&mut self, id: u64) {
        if self
            .node(id)
            .is_ok_and(|node| node.links == 0 && node.opens == 0)
            && let Some(node) = self.nodes.remove(&id)
        {
            self.fifos = self.fifos.saturating_sub(node.is_fifo().into());
        }
    }

    /// All that is known beneath a folder, by path.
    fn beneath(&self, folder: &[u8]) -> impl Iterator<Item = (&Arc<[u8]>, &Entry)> {
        let start = beneath(folder);
        let after = (Bound::Excluded(&start[..]), Bound::Unbounded);
        self.entries
            .range::<[u8], _>(after)
            .take_while(move |(path, _)| path.starts_with(&start))
    }

    /// What is known of names in a folder.
    pub fn children(&self, folder: &[u8]) -> impl Iterator<Item = (&[u8], Entry)> {
        let start = beneath(folder).len();
        self.beneath(folder).filter_map(move |(path, entry)| {
            let name = path.get(start..)?;
            (!name.contains(&b'/')).then_some((name, *entry))
        })
    }

    /// Files and folders there may be.
    pub fn most(&self) -> u64 {
        length(MAX_ENTRIES)
    }

    /// Files and folders there may still be.
    pub fn room(&self) -> u64 {
        length(MAX_ENTRIES.saturating_sub(self.entries.len().max(self.nodes.len())))
    }
}
