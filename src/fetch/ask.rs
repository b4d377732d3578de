//! Asks a tenant's program, whatever it is: a request's way up to its answer.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use forkvm::{Answer, Usage};
use varnish::vcl::LogTag;

use crate::fetch::answer::{self, Answered};
use crate::fetch::body;
use crate::fetch::request::{Asked, Input};
use crate::fetch::serve::{self, Extent};
use crate::fetch::unanswered::Unanswered;
use crate::tenants::figures;
use crate::tenants::room::Taken;
use crate::tenants::tenant::{NotReady, Release, Tenant};
use crate::tenants::version::Version;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// What a program is asked.
pub struct Question {
    /// A URL and an argument of VCL's choice.
    pub url: Vec<u8>,
    pub arg: Vec<u8>,
    /// What comes as the body.
    pub input: Input,
    /// Whether the answer is to be whole, whatever the client asks for.
    pub whole: bool,
    /// How long it may take at most, beside what the tenant's settings say. Waits for the client do not count.
    pub most: Duration,
}

/// Has the tenant answer. What fails in the program is logged.
pub fn ask(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    question: Question,
    extent: Extent,
) -> Result<Answered, Unanswered> {
    let start = Instant::now();
    let limit = tenant.settings.config.limits.max_request_time;
    let limit = limit.min(question.most);
    let is_own = matches!(question.input, Input::Request);
    let release = tenant.program(start + limit);
    let Release { program, version } = release.map_err(|not_ready| match not_ready {
        // The client's body is for who is asked the client's request.
        NotReady::QueueFull(_) if is_own => turned_away(fetch, not_ready.to_string()),
        NotReady::QueueFull(_) => Unanswered::TurnedAway(not_ready.to_string()),
        _ => Unanswered::NotReady(not_ready.to_string()),
    })?;
    // Reading the body does not count: a slow upload is not the guest's, and has max_body_time.
    let time = limit.saturating_sub(start.elapsed());
    // Nobody sends a body only to be turned away after it.
    if is_own && fetch.has_body() && !program.has_room() {
        return Err(turned_away(fetch, tenant.queue_full().to_string()));
    }
    let asked = Asked::new(fetch, (question.url, question.arg), question.input);
    let asked = match question.whole {
        true => asked.whole(),
        false => asked,
    };
    let takes_pieces = tenant.settings.server || program.takes_segments() && fetch.has_body();
    let (mut answer, deadline) = if is_own && takes_pieces {
        serve::ask(fetch, tenant, &program, &asked, time, extent)?
    } else {
        let asked = match is_own {
            true => asked.with_body(fetch, tenant)?,
            false => asked,
        };
        figures::add(&tenant.figures.received, asked.request().body.len() as u64);
        let deadline = Instant::now() + time;
        let answer = answer::ask(fetch, tenant, |host| {
            program.answer(&asked.request(), deadline, host)
        })?;
        (answer, deadline)
    };
    let mut room = Taken::nothing(&tenant.responses);
    if extent == Extent::Whole {
        let mut output = tenant.late_output();
        let made = answer.complete(&mut output, |more| room.take(more));
        if let Err(failure) = made {
            answer::log_failure(fetch, tenant, &failure);
            return Err(failure.into());
        }
    }
    let now = Instant::now();
    tenant.figures.answered(answer.status(), now - start);
    if tenant.settings.values.log_requests {
        log_answered(fetch, tenant, &answer, version, now - start);
    }
    let left = deadline.saturating_duration_since(now);
    Ok(Answered {
        took: limit.saturating_sub(left),
        answer,
        deadline,
        version: tenant.settings.values.version_header.then_some(version),
        room,
    })
}

/// Says what an answer has taken.
fn log_answered(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    answer: &Answer,
    version: Version,
    after: Duration,
) {
    let Usage {
        fork,
        waited,
        spent,
    } = answer.usage();
    let text = format!(
        "answered status={} version={} fork={fork} us={} wait_us={} guest_us={} exits={} pages={}",
        answer.status(),
        version.short(),
        after.as_micros(),
        waited.as_micros(),
        spent.guest.as_micros(),
        spent.exits,
        spent.pages
    );
    logging::log_in(fetch, LogTag::VclLog, tenant.name(), &text);
}

fn turned_away(fetch: &mut Fetch<'_, '_>, why: String) -> Unanswered {
    body::discard(fetch);
    Unanswered::TurnedAway(why)
}
