//! Each tenant's numbers in varnishstat, `KVM.NAME.*`, as they were within the last second: a request is not to wait for a cache line that
//! only an operator reads.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
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
        self.0.retain(|name, _| latest.contains_key(&**name));
        // varnishd's shared memory may be full, of which the crate makes a panic; the next second may be better.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| self.share(&latest)));
    }

    fn share(&mut self, latest: &BTreeMap<&str, &Arc<Tenant>>) {
        for (&name, tenant) in latest {
            if !self.0.contains_key(name) {
                let segment = Vsc::new("KVM", &shown(name));
                self.0.insert(name.to_owned(), segment);
            }
            if let Some(segment) = self.0.get(name) {
                Measured::of(tenant).share(segment);
            }
        }
    }
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
