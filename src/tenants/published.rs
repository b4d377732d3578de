//! Each tenant's numbers in varnishstat, `KVM.NAME.*`, as they were within the last second: a request is not to wait for a cache line that
//! only an operator reads.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use varnish::Vsc;

use crate::tenants::measured::{Measured, Shared};
use crate::tenants::tenant::Tenant;

/// What is there in varnishd's shared memory, by tenants' names.
#[derive(Default)]
pub struct Published(HashMap<String, Vsc<Shared>>);

impl Published {
    /// Brings all up to date. Of several tenants of a name, which VCLs of different times have, the latest counts. Those that are gone
    /// go from there too.
    pub fn renew(&mut self, tenants: &[Arc<Tenant>]) {
        let mut latest: BTreeMap<&str, &Arc<Tenant>> = BTreeMap::new();
        for tenant in tenants {
            tenant.figures.tick();
            let of_name = latest.entry(tenant.name()).or_insert(tenant);
            if of_name.number < tenant.number {
                *of_name = tenant;
            }
        }
        let is_same =
            latest.len() == self.0.len() && latest.keys().all(|&name| self.0.contains_key(name));
        if !is_same && has_descriptors() {
            self.0.retain(|name, _| latest.contains_key(&**name));
            for &name in latest.keys() {
                let new = || Vsc::new("KVM", &shown(name));
                self.0.entry(name.to_owned()).or_insert_with(new);
            }
        }
        for (&name, tenant) in &latest {
            if let Some(segment) = self.0.get(name) {
                // One tenant's numbers are not to cost the others theirs.
                let _ =
                    panic::catch_unwind(AssertUnwindSafe(|| Measured::of(tenant).share(segment)));
            }
        }
    }
}

/// Whether there are some descriptors left: varnishd opens files to make or remove a segment, and asserts that it could. The next second
/// may be better.
fn has_descriptors() -> bool {
    const WANTED: usize = 16;
    let spare = (0..WANTED).map(|_| File::open("/dev/null"));
    spare.collect::<Result<Vec<_>, _>>().is_ok()
}

/// A tenant's name, as it stands between dots. It is in lower case, so that no two are shown alike.
fn shown(name: &str) -> String {
    name.replace('_', "_U").replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn names_have_no_dots_and_stay_different() {
        assert_eq!(shown("xpizza.com"), "xpizza_com");
        assert_eq!(shown("x_y.com"), "x_Uy_com");
        assert_ne!(shown("a._b"), shown("a_.b"));
    }
}
