//! Tenants whose program failed to boot are tried again: when the file at their path has changed, and from time to time,
//! since the reason may lie elsewhere.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::file::{self, Identity};
use crate::tenants::queue;
use crate::tenants::tenant::{Failed, State, Tenant};

/// The pause after the first failure. Each one after it is twice as long,
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// up to this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known about the tenants that failed. One thread looks at them, about once a second.
#[derive(Default)]
pub struct Retries(HashMap<usize, Retry>);

/// A tenant that failed.
struct Retry {
    /// The failure that was seen last.
    failed: Failed,
    /// Failures since its file changed.
    failures: u32,
    /// When it is tried again. `None`: it is in the queue, until there is another failure.
    due: Option<Instant>,
    /// A file that is not the one that failed. It may still be written, so it counts when it was seen twice.
    changed: Option<Identity>,
}

impl Retries {
    /// Forgets those that are gone or no longer failed.
    pub fn retain(&mut self, tenants: &[Arc<Tenant>]) {
        if !self.0.is_empty() {
            self.0.retain(|&key, _| {
                let tenant = tenants.iter().find(|tenant| key_of(tenant) == key);
                tenant.is_some_and(|tenant| matches!(tenant.state(), State::Failed(_)))
            });
        }
    }

    /// Puts a tenant that failed in the queue, after those that are there, if it is time.
    pub fn look(&mut self, tenant: &Arc<Tenant>, failed: Failed) {
        if tenant.settings.fault.is_some() {
            // No other file would change that.
            return;
        }
        let now = Instant::now();
        let retry = self.0.entry(key_of(tenant)).or_insert_with(|| Retry {
            due: Some(now + pause(1, failed.took)),
            failed: failed.clone(),
            failures: 1,
            changed: None,
        });
        if !Arc::ptr_eq(&retry.failed.reason, &failed.reason) {
            retry.failures = retry.failures.saturating_add(1);
            retry.due = Some(now + pause(retry.failures, failed.took));
            retry.failed = failed;
        }
        let Some(due) = retry.due else { return };

        let opened = file::open(&tenant.settings.path);
        let identity = opened.as_ref().ok().map(|(_, identity)| *identity);
        let other = identity.filter(|&identity| tenant.identity() != Some(identity));
        let changed = other.is_some() && retry.changed == other;
        retry.changed = other;
        if !changed && now < due {
            return;
        }
        if changed {
            retry.failures = 0;
        }
        if let Some(identity) = identity {
            tenant.set_identity(identity);
        }
        retry.due = None;
        queue::enqueue(tenant, opened.map(|(file, _)| file));
    }
}

fn key_of(tenant: &Arc<Tenant>) -> usize {
    Arc::as_ptr(tenant).addr()
}

/// How long to wait after so many failures. A boot that takes long does not take more than half of the time.
fn pause(failures: u32, took: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let growing = FIRST_PAUSE.saturating_mul(1 << doublings);
    growing.min(LONGEST_PAUSE).max(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let seconds = |failures| pause(failures, Duration::ZERO).as_secs();
        let pauses: Vec<_> = (1..=8).map(seconds).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(u32::MAX), 60);
    }

    #[test]
    fn long_boots_have_long_pauses() {
        assert_eq!(pause(1, Duration::from_secs(16)), Duration::from_secs(16));
        assert_eq!(pause(9, Duration::from_secs(16)), Duration::from_secs(60));
        assert_eq!(pause(9, Duration::from_secs(600)), Duration::from_secs(600));
    }
}
