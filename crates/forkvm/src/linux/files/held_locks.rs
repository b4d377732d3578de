//! The locks that a program holds of files.

use std::collections::BTreeMap;
use std::ops::Range;

use rustix::fs::fstat;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::files::open_file::{Kind, OpenFile};

/// Most locks of a machine.
const MOST: usize = 1024;

/// A file, however many open files there are of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locked {
    /// One of the overlay.
    Node(u64),
    /// One of the host: device and inode.
    Host(u64, u64),
    /// What only this open file is, such as a pipe's end.
    Alone(usize),
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// The process: `F_SETLK`.
    Process,
    /// An open file: `F_OFD_SETLK`.
    OpenFile(usize),
    /// An open file, as flock(2) has it, which no other kind stands against.
    Flock(usize),
}

impl Locked {
    /// What the locks of an open file at this place are of.
    pub fn of(file: &OpenFile, place: usize) -> Result<Self, Errno> {
        Ok(match &file.kind {
            Kind::Node(id, _) => Self::Node(*id),
            Kind::File(file) | Kind::Folder(Some(file), _) => {
                let found = fstat(file)?;
                Self::Host(found.st_dev, found.st_ino)
            }
            _ => Self::Alone(place),
        })
    }
}

impl Owner {
    /// Whether the locks of two kinds know each other.
    fn meets(self, other: Self) -> bool {
        matches!(self, Self::Flock(_)) == matches!(other, Self::Flock(_))
    }
}

/// A locked part of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lock {
    /// Of what file.
    pub file: Locked,
    /// Who holds it.
    pub owner: Owner,
    /// Nobody else may have one; else nobody else one that is so.
    pub writes: bool,
    /// Which bytes.
    pub range: Range<u64>,
}

/// All locks of a program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Locks(Vec<Lock>);

/// Past the last byte of any file.
pub const END: u64 = i64::MAX as u64 + 1;

impl Locks {
    /// Files of the host have other devices and inodes by now than these.
    pub fn rename(&mut self, renamed: &BTreeMap<(u64, u64), (u64, u64)>) {
        for lock in &mut self.0 {
            if let Locked::Host(device, inode) = lock.file
                && let Some(&(device, inode)) = renamed.get(&(device, inode))
            {
                lock.file = Locked::Host(device, inode);
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one holds locks of this kind.
    pub fn has(&self, owner: Owner, writes: bool) -> bool {
        let fits = |held: &Lock| held.owner == owner && held.writes == writes;
        self.0.iter().any(fits)
    }

    /// The first that stands against one.
    pub fn against(&self, wanted: &Lock) -> Option<&Lock> {
        self.0.iter().find(|held| {
            held.file == wanted.file
                && held.owner != wanted.owner
                && held.owner.meets(wanted.owner)
                && (held.writes || wanted.writes)
                && held.range.start < wanted.range.end
                && wanted.range.start < held.range.end
        })
    }

    /// Takes a range from what an owner has locked of a file.
    pub fn unlock(&mut self, file: Locked, owner: Owner, range: &Range<u64>) -> Result<(), Errno> {
        self.replace(file, owner, range, None)
    }

    /// Takes a lock, in place of what its owner had locked of that range.
    pub fn lock(&mut self, wanted: Lock) -> Result<(), Errno> {
        let range = wanted.range.clone();
        self.replace(wanted.file, wanted.owner, &range, Some(wanted))
    }

    /// Has an owner hold this of a range, in place of what it had. Nothing changes if that would be too many.
    fn replace(
        &mut self,
        file: Locked,
        owner: Owner,
        range: &Range<u64>,
        by: Option<Lock>,
    ) -> Result<(), Errno> {
        let touched = |held: &Lock| {
            held.file == file
                && held.owner == owner
                && held.range.start < range.end
                && range.start < held.range.end
        };
        let rest = |held: &Lock| {
            let parts = [held.range.start..range.start, range.end..held.range.end];
            let parts = parts.into_iter().filter(|part| part.start < part.end);
            let of = held.clone();
            parts.map(move |range| Lock {
                range,
                ..of.clone()
            })
        };
        let new: Vec<Lock> = self
            .0
            .iter()
            .filter(|held| touched(held))
            .flat_map(rest)
            .chain(by)
            .collect();
        let stay = self.0.iter().filter(|held| !touched(held)).count();
        if !new.is_empty() && stay.saturating_add(new.len()) > MOST {
            return Err(Errno::NOLCK);
        }
        self.0.retain(|held| !touched(held));
        self.0.extend(new);
        Ok(())
    }

    /// The process goes on as its own child, which has none of the process's (fcntl(2)).
    pub fn forked(&mut self) {
        self.0.retain(|held| held.owner != Owner::Process);
    }

    /// A descriptor of a file is closed: the process has no lock of that file any more.
    pub fn closed(&mut self, file: Locked) {
        self.0
            .retain(|held| held.owner != Owner::Process || held.file != file);
    }

    /// An open file is gone.
    pub fn ended(&mut self, place: usize) {
        let own = [Owner::OpenFile(place), Owner::Flock(place)];
        self.0.retain(|held| !own.contains(&held.owner));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_unlock_that_would_leave_too_many_changes_nothing() {
        let (file, owner) = (Locked::Node(1), Owner::Process);
        let mut locks = Locks::default();
        let all = Lock {
            file,
            owner,
            writes: true,
            range: 0..END,
        };
        locks.lock(all.clone()).unwrap();
        let unlocked = |at: &u64| locks.unlock(file, owner, &(2 * at + 1..2 * at + 2)).is_ok();
        assert_eq!((0..10_000).filter(unlocked).count(), MOST - 1);
        assert_eq!(locks.0.len(), MOST);
        // It is still held, and room comes by what takes none.
        let other = Lock {
            owner: Owner::OpenFile(1),
            range: 9999..10_000,
            ..all.clone()
        };
        assert!(locks.against(&other).is_some());
        assert_eq!(locks.lock(other), Err(Errno::NOLCK));
        locks.lock(all).unwrap();
        assert_eq!(locks.0.len(), 1);
        locks.forked();
        assert!(locks.is_empty());
    }
}
