//! Asks a tenant's program, whatever it is: a request's way up to its answer.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{Answer, Program};

use crate::fetch::request::Asked;
use crate::fetch::serve::{self, Extent};
use crate::fetch::unanswered::Unanswered;
use crate::fetch::{answer, body};
use crate::tenants::tenant::{NotReady, Release, Tenant};
use crate::tenants::version::Version;
use crate::varnish::fetch::Fetch;

/// An answer, which nobody has taken yet.
pub struct Answered {
    /// It holds a fork.
    pub answer: Answer,
    /// When that has to be back.
    pub deadline: Instant,
    /// Which program it is of, if its clients are to know.
    pub version: Option<Version>,
}

/// Has the tenant answer the request, whose URL and argument are of VCL's choice. What fails in the program is logged.
pub fn ask(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    (url, arg): (Vec<u8>, Vec<u8>),
    extent: Extent,
) -> Result<Answered, Unanswered> {
    let start = Instant::now();
    let limit = tenant.settings.config.limits.max_request_time;
    let release = tenant.program(start + limit);
    let Release { program, version } = release.map_err(|not_ready| match not_ready {
        NotReady::QueueFull(_) => turned_away(fetch, not_ready.to_string()),
        _ => Unanswered::NotReady(not_ready.to_string()),
    })?;
    // Reading the body does not count: a slow upload is not the guest's, and has max_body_time.
    let time = limit.saturating_sub(start.elapsed());
    // Nobody sends a body only to be turned away after it.
    if fetch.has_body() && !program.has_room() {
        return Err(turned_away(fetch, tenant.queue_full().to_string()));
    }
    let (answer, deadline) = match tenant.settings.server {
        true => serve::ask(fetch, tenant, &program, url, time, extent)?,
        false => ask_program(fetch, tenant, &program, (url, arg), time)?,
    };
    Ok(Answered {
        answer,
        deadline,
        version: tenant.settings.values.version_header.then_some(version),
    })
}

fn turned_away(fetch: &mut Fetch<'_, '_>, why: String) -> Unanswered {
    body::discard(fetch);
    Unanswered::TurnedAway(why)
}

/// Has a program with handlers answer, in this time after the body is there.
fn ask_program(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    program: &Arc<Program>,
    (url, arg): (Vec<u8>, Vec<u8>),
    time: Duration,
) -> Result<(Answer, Instant), Unanswered> {
    let asked = Asked::read(fetch, url, arg, tenant)?;
    let deadline = Instant::now() + time;
    let answer = answer::ask(fetch, tenant, |host| {
        program.answer(&asked.request(), deadline, host)
    })?;
    Ok((answer, deadline))
}
