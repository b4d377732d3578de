//! A tenant as a backend of a VCL: how a fetch is answered by its program.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::SystemTime;

use forkvm::Failure;
use varnish::vcl::{LogTag, VclError};

use crate::fetch::body::BadBody;
use crate::fetch::chain::{self, End, Ended};
use crate::fetch::pipe::Client;
use crate::fetch::request::Input;
use crate::fetch::response::{Late, Response};
use crate::fetch::serve::Extent;
use crate::fetch::unanswered::Unanswered;
use crate::fetch::{answer, pipe, plain};
use crate::order::Target;
use crate::tenants::report;
use crate::tenants::tenant::{NotReady, State, Tenant};
use crate::varnish::counters::count;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;
use crate::vdi::{self, Answer, Methods, SICK, Vdi};

/// The backend `kvm.NAME`.
pub struct Backend(Arc<Tenant>);

impl Backend {
    /// The tenant's.
    pub fn of(tenant: Arc<Tenant>) -> Self {
        Self(tenant)
    }

    /// The tenant.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.0
    }

    /// Why it is not healthy.
    pub fn unusable(&self) -> String {
        let name = self.0.name();
        match self.0.state() {
            State::Failed(failed) => {
                format!("tenant {name}: {}", NotReady::Failed(failed.reason))
            }
            _ => format!("tenant {name}: {SICK}"),
        }
    }

    /// Answers a fetch. An error is a failed fetch, a failed guest is a response.
    fn respond(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, String> {
        let tenant = &self.0;
        let target = Target::of(fetch).ok_or(NO_TARGET)?;

        let head = fetch.method() == "HEAD";
        let end = End {
            tenant,
            url: target.url.clone().unwrap_or_else(|| fetch.url()),
            arg: target.arg.clone(),
            whole: false,
            extent: Extent::Begun,
        };
        let Ended { tenant, result } = chain::run(fetch, &target.chain, end, Input::Request)?;
        let tenant = &*tenant;
        let response = match result {
            Ok(answered) => answer::hand_over(fetch, tenant, answered, head),
            Err(Unanswered::TurnedAway(why)) => answer::turn_away(fetch, tenant, &why),
            Err(Unanswered::NotReady(why)) => Err(why.into()),
            Err(Unanswered::BadBody(bad)) => refuse_body(fetch, tenant, &bad),
            Err(Unanswered::Failed(failure)) if failure.is_busy() => plain::busy(fetch),
            Err(Unanswered::Failed(Failure::BadRequest(_))) => plain::bad_request(fetch),
            Err(Unanswered::Failed(_)) => plain::failed(fetch),
        };
        response.map_err(|error| format!("tenant {}: {error}", tenant.name()))
    }
}

impl Vdi for Backend {
    const METHODS: &'static Methods = &vdi::answering::<Self>();

    fn report(&self, details: bool, json: bool) -> String {
        match (details, json) {
            (false, false) => report::short(&self.0),
            (false, true) => report::short_json(&self.0),
            (true, false) => report::details(&self.0),
            (true, true) => report::details_json(&self.0),
        }
    }
}

impl Answer for Backend {
    /// Requests wait for a program that boots.
    fn is_healthy(&self) -> bool {
        !self.0.is_failed()
    }

    fn changed(&self) -> Option<SystemTime> {
        Some(self.0.changed())
    }

    fn answer(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
        self.respond(fetch).map_err(refused)
    }

    fn pipe(&self, fetch: &mut Fetch<'_, '_>, client: Client<'_>) -> Result<(), VclError> {
        pipe::serve(fetch, &self.0, client).map_err(refused)
    }

    fn has_failed_late(&self, fetch: &mut Fetch<'_, '_>, why: &Late) {
        match why {
            Late::NoGzip => answer::log_failed(fetch, &self.0, answer::NO_GZIP),
            Late::Failed(failure) => answer::log_failure(fetch, &self.0, failure),
        }
    }

    fn complaint(&self) -> VclError {
        refused(self.unusable())
    }
}

/// Why a fetch fails that has no target.
pub const NO_TARGET: &str = "kvm.backend() was not called in this task, or before a rollback";

/// What is said of a tenant that is not there, among so many.
pub fn unknown(asked: &[u8], tenants: usize) -> String {
    format!(
        "no tenant \"{}\" among the {tenants} of this VCL",
        shown(asked)
    )
}

/// A name that somebody sent, for a message.
pub fn shown(name: &[u8]) -> String {
    name[..name.len().min(100)].escape_ascii().to_string()
}

/// Counts a request that failed before a program was asked.
pub fn count_refused() {
    count(|counters| &counters.refused);
}

/// Counts a fetch that failed so, and says why.
pub fn refused(reason: String) -> VclError {
    count_refused();
    VclError::new(format!("kvm: {reason}"))
}

fn refuse_body(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    bad: &BadBody,
) -> Result<Response, VclError> {
    match bad {
        BadBody::Slow(_) => {
            logging::log_in(fetch, LogTag::Error, tenant.name(), &bad.to_string());
            plain::too_slow(fetch)
        }
        BadBody::TooLarge(_) => {
            logging::log_in(fetch, LogTag::Error, tenant.name(), &bad.to_string());
            plain::too_large(fetch)
        }
        BadBody::NoRoom => answer::turn_away(fetch, tenant, &bad.to_string()),
        BadBody::Unreadable(_) => Err(bad.to_string().into()),
    }
}
