//! Tenants with `watch`: when the file at their path changes, it becomes their program.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::registry::{self, Identity};
use crate::tenant::Tenant;
use crate::update::{self, Source, Turn};
use crate::{boot, logging};

/// How often files are looked at. A change counts when the file was the same twice: it may still be written.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether there is a thread that watches.
static RUNNING: Mutex<bool> = Mutex::new(false);

/// Begins to watch, unless somebody does. To be called when a tenant with `watch` has been added.
pub fn start() {
    let mut running = RUNNING.lock();
    if *running {
        return;
    }
    match thread::Builder::new().name("kvm-watch".into()).spawn(watch) {
        Ok(_) => *running = true,
        Err(error) => logging::write(
            LogTag::Error,
            &format!("kvm: files are not watched, no thread: {error}"),
        ),
    }
}

fn watch() {
    // What was seen last, by tenant; only for files that are not what the tenant has.
    let mut seen: HashMap<usize, Identity> = HashMap::new();
    loop {
        thread::sleep(INTERVAL);
        let tenants = registry::watched();
        if tenants.is_empty() {
            let mut running = RUNNING.lock();
            // Under the lock: whoever adds a tenant now starts another thread.
            if registry::watched().is_empty() {
                *running = false;
                return;
            }
        }
        seen.retain(|&key, _| tenants.iter().any(|tenant| key_of(tenant) == key));
        for tenant in &tenants {
            look(tenant, &mut seen);
        }
    }
}

fn key_of(tenant: &Arc<Tenant>) -> usize {
    Arc::as_ptr(tenant).addr()
}

fn look(tenant: &Arc<Tenant>, seen: &mut HashMap<usize, Identity>) {
    // A file that is gone is no change: the program stays.
    let Ok((_, identity)) = registry::open(&tenant.settings.path) else {
        return;
    };
    if tenant.identity() == Some(identity) || tenant.rejected() == Some(identity) {
        return;
    }
    if seen.insert(key_of(tenant), identity) != Some(identity) {
        return;
    }
    let Ok(turn) = Turn::take(tenant) else {
        return;
    };
    // If the file changes while it is read, the next look finds another one.
    let updated = boot::read_path(tenant)
        .map_err(|reason| logging::log(LogTag::Error, tenant.name(), &reason))
        .and_then(|elf| update::update(tenant, Source::Path(elf), turn).map_err(|_| ()));
    match updated {
        Ok(_) => tenant.set_identity(identity),
        // The reason is in the log. It is not tried again until it changes, or a VCL is loaded.
        Err(()) => tenant.reject(identity),
    }
}
