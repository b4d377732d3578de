//! Files of the host that a program may change and has mapped by `MAP_SHARED`. One that it may write to by its mapping has a
//! copy in the overlay, which the mapping is of: what differs from it in the program's pages is what the program has
//! written, and only that is written to the host's file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::files::host_files::HostFile;

/// Device and inode.
pub type Identity = (u64, u64);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mirror {
    #[serde(with = "crate::saved::listed")]
    file: Arc<HostFile>,
    identity: Identity,
    node: u64,
}

/// All of a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mirrors {
    all: Vec<Mirror>,
    used: bool,
    changed: Vec<(Identity, Range<u64>)>,
}

impl Mirrors {
    /// Files of the host have other devices and inodes by now than these.
    pub fn rename(&mut self, renamed: &BTreeMap<Identity, Identity>) {
        let known = self.all.iter_mut().map(|mirror| &mut mirror.identity);
        for identity in known.chain(self.changed.iter_mut().map(|(of, _)| of)) {
            *identity = renamed.get(identity).copied().unwrap_or(*identity);
        }
    }

    /// From now on a file that may be changed is mapped.
    pub fn begin(&mut self) {
        self.used = true;
    }

    /// Adds the copy of a file.
    pub fn add(&mut self, file: Arc<HostFile>, identity: Identity, node: u64) {
        self.all.push(Mirror {
            file,
            identity,
            node,
        });
    }

    /// The copy of a file, if it has one.
    pub fn node(&self, identity: Identity) -> Option<u64> {
        let found = self.all.iter().find(|mirror| mirror.identity == identity);
        found.map(|mirror| mirror.node)
    }

    /// What a node is the copy of, if it is one.
    pub fn file(&self, node: u64) -> Option<&Arc<HostFile>> {
        let found = self.all.iter().find(|mirror| mirror.node == node);
        found.map(|mirror| &mirror.file)
    }

    /// Forgets the copies that nothing needs any more, and gives them.
    pub fn take_unused(&mut self, is_used: impl Fn(u64) -> bool) -> Vec<u64> {
        let unused = self.all.iter().map(|mirror| mirror.node);
        let unused = unused.filter(|node| !is_used(*node)).collect();
        self.all.retain(|mirror| is_used(mirror.node));
        unused
    }

    /// Has what was written be on the disk.
    pub fn sync(&self) -> Result<(), Errno> {
        let mut files = self.all.iter();
        files.try_for_each(|mirror| rustix::fs::fdatasync(&*mirror.file))
    }

    /// Whether it matters what is written.
    pub fn are_used(&self) -> bool {
        self.used
    }

    /// This part of a file was written.
    pub fn note(&mut self, identity: Identity, range: Range<u64>) {
        match self.changed.iter_mut().find(|(of, _)| *of == identity) {
            Some((_, known)) => {
                *known = known.start.min(range.start)..known.end.max(range.end);
            }
            None => self.changed.push((identity, range)),
        }
    }

    /// What was written since the last time.
    pub fn take_changed(&mut self) -> Vec<(Identity, Range<u64>)> {
        std::mem::take(&mut self.changed)
    }

    /// Whether that is something.
    pub fn have_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}
