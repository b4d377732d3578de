//! The programs that a tenant has: the one that runs, and those that are kept for going back. And what an order to change
//! that has to name, if it is signed.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use crate::orders::outcome::Refused;
use crate::tenants::signature;
use crate::tenants::tenant::{State, Tenant};

/// Lists them, the newest first.
pub fn list(tenant: &Tenant) -> Result<Value, Refused> {
    let running = match tenant.state() {
        State::Ready(release) => Some(release.version),
        _ => None,
    };
    let store = &tenant.store;
    let stored: Vec<_> = store
        .manifest()?
        .map_or_else(Vec::new, |manifest| manifest.versions().collect());
    // The first program is the file at `path`, and is stored when another one takes its place.
    let unstored = running.filter(|version| !stored.contains(version));
    let versions: Vec<_> = unstored
        .into_iter()
        .chain(stored)
        .map(|version| {
            json!({
                "version": version,
                "running": Some(version) == running,
                "bytes": store.size(version),
            })
        })
        .collect();
    Ok(json!({
        "tenant": tenant.name(),
        "node": signature::node(),
        "running": running,
        "versions": versions,
    }))
}
