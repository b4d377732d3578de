//! The tenants of this process, so that VCLs that name the same one share it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use crate::file;
use crate::tenants::settings::Settings;
use crate::tenants::tenant::{State, Tenant};

/// By name and path. More than one only while VCLs with different settings, or of different times, are loaded.
type Tenants = HashMap<(String, PathBuf), Vec<Weak<Tenant>>>;

static TENANTS: LazyLock<Mutex<Tenants>> = LazyLock::new(Mutex::default);

/// A tenant for a VCL.
pub enum Shared {
    /// One that another VCL has.
    Known(Arc<Tenant>),
    /// A new one, and the file that it is to boot.
    New(Arc<Tenant>, Result<File, String>),
}

/// The tenant with these settings.
pub fn share(settings: Settings) -> Shared {
    // Opened now and read when its turn comes: what boots is the file that was there when the VCL was loaded.
    let opened = file::open(&settings.path);
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
            // What failed is tried at once: the reason may be gone, such as a lack of memory.
            State::Failed(_) => false,
        };
        usable && tenant.unfit().is_none() && tenant.settings == settings
    });
    if let Some(tenant) = shared {
        return Shared::Known(tenant);
    }
    let tenant = Arc::new(Tenant::new(settings, identity));
    same_name.push(Arc::downgrade(&tenant));
    Shared::New(tenant, opened.map(|(file, _)| file))
}

/// Forgets the tenants that no VCL has any more.
pub fn prune() {
    TENANTS.lock().retain(|_, same_name| {
        same_name.retain(|tenant| tenant.strong_count() > 0);
        !same_name.is_empty()
    });
}

/// All tenants that a VCL has.
pub fn all() -> Vec<Arc<Tenant>> {
    let tenants = TENANTS.lock();
    let all = tenants.values().flatten().filter_map(Weak::upgrade);
    all.collect()
}

/// The other tenants, those of other VCLs, whose updates are stored in the same place.
pub fn of_same_store(tenant: &Arc<Tenant>) -> Vec<Arc<Tenant>> {
    let tenants = TENANTS.lock();
    let all = tenants.values().flatten().filter_map(Weak::upgrade);
    all.filter(|other| other.store.is(&tenant.store) && !Arc::ptr_eq(other, tenant))
        .collect()
}
