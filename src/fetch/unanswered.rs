//! Why a request has no answer.
#![forbid(unsafe_code)]

use forkvm::Failure;
use varnish::vcl::LogTag;

use crate::fetch::answer;
use crate::fetch::body::BadBody;
use crate::tenants::tenant::Tenant;
use crate::varnish::counters::count;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// As many wait already as may.
    #[error("{0}")]
    TurnedAway(String),
    /// There is no program.
    #[error("{0}")]
    NotReady(String),
    /// Its body did not come, or is too long.
    #[error(transparent)]
    BadBody(#[from] BadBody),
    /// There was no fork, or it failed. That is logged.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Unanswered {
    /// Counts and logs it, unless that is done, where there is no fetch that fails for it.
    pub fn log(&self, fetch: &mut Fetch<'_, '_>, tenant: &Tenant) {
        match self {
            Self::TurnedAway(_) | Self::BadBody(BadBody::NoRoom) => {
                answer::log_busy(fetch, tenant, &self.to_string());
            }
            Self::NotReady(_) | Self::BadBody(_) => {
                count(|counters| &counters.refused);
                logging::log_in(fetch, LogTag::Error, tenant.name(), &self.to_string());
            }
            Self::Failed(_) => {}
        }
    }
}
