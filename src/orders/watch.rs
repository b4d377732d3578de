//! The thread that looks after tenants about once a second: those with `watch`, when the file at their path changes, get it
//! as their program; those whose program failed to boot are tried again (retry.rs); and what is counted of each is shown (published.rs).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::file::{self, Identity};
use crate::orders::outcome::Refused;
use crate::orders::update::{self, Source, Turn};
use crate::tenants::published::Published;
use crate::tenants::registry;
use crate::tenants::retry::Retries;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::logging;

/// How often files are looked at. A change counts when the file was the same twice: it may still be written.
const INTERVAL: Duration = Duration::from_secs(1);

/// When a change that failed is tried again, if it was not the program's fault.
const RETRY: Duration = Duration::from_secs(10);

/// A file that is not what its tenant has.
struct Seen {
    identity: Identity,
    /// Not to be tried before.
    due: Instant,
}

/// Whether there is a thread that watches.
static RUNNING: Mutex<bool> = Mutex::new(false);

/// Begins to watch, unless somebody does. To be called when a tenant has been added.
pub fn start() {
    let mut running = RUNNING.lock();
    if *running {
        return;
    }
    match thread::Builder::new().name("kvm-watch".into()).spawn(watch) {
        Ok(_) => *running = true,
        Err(error) => logging::write(
            LogTag::Error,
            &format!("kvm: nothing is watched or tried again, no thread: {error}"),
        ),
    }
}

fn watch() {
    // What was seen last, by tenant.
    let mut seen: HashMap<usize, Seen> = HashMap::new();
    let mut retries = Retries::default();
    let mut published = Published::default();
    loop {
        thread::sleep(INTERVAL);
        let tenants = registry::all();
        if tenants.is_empty() {
            let mut running = RUNNING.lock();
            // Under the lock: whoever adds a tenant now starts another thread.
            if registry::all().is_empty() {
                *running = false;
                return;
            }
        }
        published.renew(&tenants);
        seen.retain(|&key, _| tenants.iter().any(|tenant| key_of(tenant) == key));
        retries.retain(&tenants);
        for tenant in &tenants {
            match tenant.state() {
                State::Failed(failed) => retries.look(tenant, failed),
                State::Ready(_) if tenant.settings.values.watch => look(tenant, &mut seen),
                _ => {}
            }
        }
    }
}

fn key_of(tenant: &Arc<Tenant>) -> usize {
    Arc::as_ptr(tenant).addr()
}

/// Never waits: one tenant's main() is not to hold up the others.
fn look(tenant: &Arc<Tenant>, seen: &mut HashMap<usize, Seen>) {
    // A file that is gone is no change: the program stays.
    let Ok((_, identity)) = file::open(&tenant.settings.path) else {
        return;
    };
    if tenant.identity() == Some(identity) || tenant.rejected() == Some(identity) {
        return;
    }
    let now = Instant::now();
    let file = match seen.get_mut(&key_of(tenant)) {
        Some(file) if file.identity == identity => file,
        _ => {
            seen.insert(key_of(tenant), Seen { identity, due: now });
            return;
        }
    };
    if now < file.due {
        return;
    }
    let Ok(turn) = Turn::take(tenant) else {
        return;
    };
    file.due = now + RETRY;
    let of = tenant.clone();
    // If the file changes before it is read, the next look finds another one. Why it fails is in the log.
    let _ = update::begin(tenant, Source::Path, turn, move |outcome, _turn| {
        match outcome {
            Ok(_) => of.set_identity(identity),
            // It is not tried again until it changes, or a VCL is loaded.
            Err(Refused::BadProgram { .. }) => of.reject(identity),
            Err(_) => {}
        }
    });
}
