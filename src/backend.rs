//! A tenant as a backend of a VCL: how a fetch is answered by its program.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use forkvm::{self as engine, Failure, Program};
use varnish::vcl::{LogTag, VclError};

use crate::fetch::body::BadBody;
use crate::fetch::pipe::Client;
use crate::fetch::request::Asked;
use crate::fetch::response::{Late, Response};
use crate::fetch::serve::{self, Unanswered};
use crate::fetch::{answer, body, pipe, plain};
use crate::tenants::report;
use crate::tenants::tenant::{NotReady, Release, State, Tenant};
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

    /// Answers a fetch. An error is a failed fetch, a failed guest is a response.
    fn respond(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, String> {
        let tenant = &self.0;
        let failed = |error: VclError| format!("tenant {}: {error}", tenant.name());
        let target = fetch.target().ok_or(NO_TARGET)?;

        let start = Instant::now();
        let limit = tenant.settings.config.limits.max_request_time;
        let Release { program, version } = match tenant.program(start + limit) {
            Ok(release) => release,
            Err(full @ NotReady::QueueFull(_)) => {
                body::discard(fetch);
                return answer::turn_away(fetch, tenant, &full.to_string()).map_err(failed);
            }
            Err(not_ready) => return Err(failed(not_ready.to_string().into())),
        };
        // Reading the body does not count: a slow upload is not the guest's, and has max_body_time.
        let time = limit.saturating_sub(start.elapsed());
        // Nobody sends a body only to be turned away after it.
        if fetch.has_body() && !program.has_room() {
            let full = tenant.queue_full();
            body::discard(fetch);
            return answer::turn_away(fetch, tenant, &full.to_string()).map_err(failed);
        }

        let url = target.url.clone().unwrap_or_else(|| fetch.url());
        let head = fetch.method() == "HEAD";
        let asked = match tenant.settings.server {
            true => serve::ask(fetch, tenant, &program, url, time),
            false => self.ask(fetch, &program, (url, target.arg.clone()), time),
        };
        let response = match asked {
            Ok((answer, deadline)) => {
                let shown = tenant.settings.values.version_header.then_some(version);
                answer::hand_over(fetch, tenant, answer, head, shown, deadline)
            }
            Err(Unanswered::BadBody(bad)) => refuse_body(fetch, tenant, &bad),
            Err(Unanswered::Failed(failure)) if failure.is_busy() => plain::busy(fetch),
            Err(Unanswered::Failed(Failure::BadRequest(_))) => plain::bad_request(fetch),
            Err(Unanswered::Failed(_)) => plain::failed(fetch),
        };
        response.map_err(failed)
    }

    /// Has a program with handlers answer, in this time after the body is there.
    fn ask(
        &self,
        fetch: &mut Fetch<'_, '_>,
        program: &Arc<Program>,
        (url, arg): (Vec<u8>, Vec<u8>),
        time: Duration,
    ) -> Result<(engine::Answer, Instant), Unanswered> {
        let asked = Asked::read(fetch, url, arg, &self.0)?;
        let deadline = Instant::now() + time;
        let answer = answer::ask(fetch, &self.0, |host| {
            program.answer(&asked.request(), deadline, host)
        })?;
        Ok((answer, deadline))
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
        let name = self.0.name();
        refused(match self.0.state() {
            State::Failed(failed) => {
                format!("tenant {name}: {}", NotReady::Failed(failed.reason))
            }
            _ => format!("tenant {name}: {SICK}"),
        })
    }
}

/// Why a fetch fails that has no target.
pub const NO_TARGET: &str = "kvm.backend() was not called in this task, or before a rollback";

/// Counts a fetch that failed before a program was asked, and says why.
pub fn refused(reason: String) -> VclError {
    count(|counters| &counters.refused);
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
