//! Which program writes a state file that several have: those of an update, before and after, and those of VCLs with different settings.
//! Of the tenants in service it is the latest one's, and of that tenant's programs the latest. The others' content is older.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use crate::tenants::store::{Store, StoreError};

/// Those with one file: the ranks of those in service, as long as they are there. Who has the lock writes.
type Writers = Mutex<Vec<(Rank, Weak<()>)>>;

/// The tenant's number and the program's: later ones have greater.
type Rank = (u64, u64);

/// By folder.
static ALL: LazyLock<Mutex<HashMap<PathBuf, Weak<Writers>>>> = LazyLock::new(Mutex::default);

/// A program that may write its tenant's state file, unless a later one does.
pub struct Writer {
    store: Store,
    others: Arc<Writers>,
    rank: Rank,
    is_there: Arc<()>,
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// Another program's content would be lost.
    #[error(
        "is not saved: the file is that of a later program, or of a later VCL's tenant of this name with other settings"
    )]
    Later,
    /// The file can't be written.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Writer {
    /// The next program of the tenant with this number and store.
    pub fn new(tenant: u64, store: &Store) -> Self {
        static PROGRAMS: AtomicU64 = AtomicU64::new(0);
        let mut all = ALL.lock();
        let known = all.get(store.folder()).and_then(Weak::upgrade);
        let others = known.unwrap_or_else(|| {
            all.retain(|_, writers| writers.strong_count() > 0);
            let writers = Arc::default();
            all.insert(store.folder().to_owned(), Arc::downgrade(&writers));
            writers
        });
        Self {
            store: store.clone(),
            others,
            rank: (tenant, PROGRAMS.fetch_add(1, Ordering::Relaxed)),
            is_there: Arc::default(),
        }
    }

    /// It is in service from now on, as long as it is there.
    pub fn begin(&self) {
        let mut others = self.others.lock();
        others.retain(|(_, writer)| writer.strong_count() > 0);
        others.push((self.rank, Arc::downgrade(&self.is_there)));
    }

    /// Makes this the file's content.
    pub fn write(&self, content: &[u8]) -> Result<(), Unwritten> {
        let others = self.others.lock();
        let mut in_service = others.iter().filter(|(_, one)| one.strong_count() > 0);
        if in_service.any(|(rank, _)| *rank > self.rank) {
            return Err(Unwritten::Later);
        }
        Ok(self.store.write_state(content)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_latest_in_service_writes() {
        let dir = std::env::temp_dir().join(format!("kvm-writers-{}", std::process::id()));
        let store = Store::new(&dir, "t", 0);
        let content = || String::from_utf8(store.read_state(100).unwrap().unwrap()).unwrap();
        let old = Writer::new(1, &store);
        let new = Writer::new(2, &store);
        // One that boots, as long as no later one is in service.
        old.write(b"booting").unwrap();
        old.begin();
        new.write(b"both").unwrap();
        old.write(b"old").unwrap();
        new.begin();
        new.write(b"new").unwrap();
        assert!(matches!(old.write(b"old"), Err(Unwritten::Later)));
        // A later program of an earlier tenant.
        let late = Writer::new(1, &store);
        late.begin();
        assert!(matches!(late.write(b"late"), Err(Unwritten::Later)));
        assert_eq!(content(), "new");
        // Another one's file is nobody's business here.
        Writer::new(0, &Store::new(&dir, "u", 0))
            .write(b"u")
            .unwrap();
        drop(new);
        assert!(matches!(old.write(b"old"), Err(Unwritten::Later)));
        late.write(b"late").unwrap();
        drop(late);
        old.write(b"old").unwrap();
        assert_eq!(content(), "old");
        fs::remove_dir_all(&dir).unwrap();
    }
}
