//! The tenants of this process, so that VCLs that name the same one share it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::orders::watch;
use crate::tenants::queue;
use crate::tenants::settings::Settings;
use crate::tenants::tenant::{State, Tenant};

/// By name and path. More than one only while VCLs with different settings, or of different times, are loaded.
type Tenants = HashMap<(String, PathBuf), Vec<Weak<Tenant>>>;

static TENANTS: LazyLock<Mutex<Tenants>> = LazyLock::new(Mutex::default);

/// What tells whether a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The tenant with these settings: one that another VCL has, or a new one, which is put in the queue to boot.
pub fn share(settings: Settings) -> Arc<Tenant> {
    // Opened now and read when its turn comes: what boots is the file that was there when the VCL was loaded.
    let opened = open(&settings.path);
    let identity = opened.as_ref().ok().map(|(_, identity)| *identity);

    let mut tenants = TENANTS.lock();
    let same_name = tenants
        .entry((settings.config.name.clone(), settings.path.clone()))
        .or_default();
    let mut newest_first = same_name.iter().rev().filter_map(Weak::upgrade);
    let shared = newest_first.find(|tenant| {
        let usable = match tenant.state() {
            // Without a file nothing better could be booted.
            State::Ready(_) => identity.is_none() || tenant.identity() == identity,
            State::Booting => identity.is_some() && tenant.identity() == identity,
            // What failed is tried again: the reason may be gone, such as a lack of memory.
            State::Failed(_) => false,
        };
        usable && tenant.unfit().is_none() && tenant.settings == settings
    });
    if let Some(tenant) = shared {
        return tenant;
    }
    let tenant = Arc::new(Tenant::new(settings, identity));
    same_name.push(Arc::downgrade(&tenant));
    drop(tenants);

    if tenant.settings.watch {
        watch::start();
    }
    queue::enqueue(&tenant, opened.map(|(file, _)| file));
    tenant
}

/// Forgets the tenants that no VCL has any more.
pub fn prune() {
    TENANTS.lock().retain(|_, same_name| {
        same_name.retain(|tenant| tenant.strong_count() > 0);
        !same_name.is_empty()
    });
}

/// The tenants whose files are watched.
pub fn watched() -> Vec<Arc<Tenant>> {
    let tenants = TENANTS.lock();
    let all = tenants.values().flatten().filter_map(Weak::upgrade);
    all.filter(|tenant| tenant.settings.watch).collect()
}

/// The other tenants, those of other VCLs, whose updates are stored in the same place.
pub fn of_same_store(tenant: &Arc<Tenant>) -> Vec<Arc<Tenant>> {
    let tenants = TENANTS.lock();
    let all = tenants.values().flatten().filter_map(Weak::upgrade);
    all.filter(|other| other.store.is(&tenant.store) && !Arc::ptr_eq(other, tenant))
        .collect()
}

/// Reads a regular file of at most so many bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let (file, identity) = open(path)?;
    if identity.size() > most {
        return Err(format!("is larger than {most} bytes"));
    }
    let mut bytes = Vec::new();
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Opens a regular file, and says which one it is.
pub fn open(path: &Path) -> Result<(File, Identity), String> {
    let file = OpenOptions::new()
        .read(true)
        // Opening a FIFO must not block VCL load.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".into());
    }
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok((file, identity))
}
