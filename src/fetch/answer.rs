//! A program's answer to a fetch: asked for, and made the response.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use forkvm::{Answer, Failure, Host};
use varnish::vcl::{LogTag, VclError};

use crate::fetch::caching::Caching;
use crate::fetch::held::Held;
use crate::fetch::plain;
use crate::fetch::response::Response;
use crate::fetch::streamed::Streamed;
use crate::tenants::figures;
use crate::tenants::room::Taken;
use crate::tenants::tenant::Tenant;
use crate::tenants::version::Version;
use crate::varnish::counters::count;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging::{self, Output, Written};

/// How a body in gzip begins (RFC 1952, 2.3.1): its magic number, and deflate, the only method.
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];

/// What is wrong with a body that is not what its header says, from its start or further on.
pub const NO_GZIP: &str = "its response has Content-Encoding: gzip, but its body is not gzip";

/// An answer, which nobody has taken yet.
pub struct Answered {
    /// It holds a fork.
    pub answer: Answer,
    /// When that has to be back.
    pub deadline: Instant,
    /// What it has taken of its time.
    pub took: Duration,
    /// Which program it is of, if its clients are to know.
    pub version: Option<Version>,
    /// What its body has of the room for responses, if it had to be made whole.
    pub room: Taken,
}

/// Has a program of the tenant answer, as `run` does it. Failures are logged.
pub fn ask(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    run: impl FnOnce(&mut dyn Host) -> Result<Answer, Failure>,
) -> Result<Answer, Failure> {
    count_request(tenant);
    let mut output = Output::of_request(tenant.name(), tenant.settings.values.stdout, |record| {
        fetch.log(LogTag::VclLog, record)
    })
    .with_fetcher(tenant.fetches.clone());
    let result = run(&mut output);
    let written = output.finish();
    let failure = match &result {
        Ok(answer) => answer.failure(),
        Err(failure) => Some(failure),
    };
    conclude(fetch, tenant, &written, failure);
    result
}

/// Counts a request that a program is to answer.
pub fn count_request(tenant: &Tenant) {
    count(|counters| &counters.requests);
    figures::count(&tenant.figures.requests);
}

/// Logs what there is to say about a request that a program has answered, or failed.
pub fn conclude(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    written: &Written,
    failure: Option<&Failure>,
) {
    if written.dropped && tenant.is_first_dropped() {
        logging::log_in(fetch, LogTag::Notice, tenant.name(), logging::DROPPED);
    }
    if let Some(failure) = failure {
        log_failure(fetch, tenant, failure);
        if !written.logged {
            for line in logging::last_lines(&written.stderr) {
                let text = format!("its stderr: {line}");
                logging::log_in(fetch, LogTag::Error, tenant.name(), &text);
            }
        }
    }
}

/// Turns a request away, which may go better later.
pub fn turn_away(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    why: &str,
) -> Result<Response, VclError> {
    log_busy(fetch, tenant, why);
    plain::busy(fetch)
}

/// Counts a request that is turned away.
pub fn count_busy(tenant: &Tenant) {
    count(|counters| &counters.busy);
    figures::count(&tenant.figures.busy);
}

/// Counts and logs a request that is turned away.
pub fn log_busy(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, why: &str) {
    count_busy(tenant);
    logging::log_in(fetch, LogTag::Error, tenant.name(), why);
}

/// Counts and logs why a request was not answered, or its response has broken off.
pub fn log_failure(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, failure: &Failure) {
    if failure.is_timeout() {
        count(|counters| &counters.timeouts);
    }
    if failure.is_busy() {
        log_busy(fetch, tenant, &failure.to_string());
    } else if failure.is_of_client() {
        logging::log_in(fetch, LogTag::Error, tenant.name(), &failure.to_string());
    } else {
        log_failed(fetch, tenant, &failure.to_string());
    }
}

/// Counts and logs a request that the program failed.
pub fn log_failed(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, what: &str) {
    count(|counters| &counters.failures);
    figures::count(&tenant.figures.failures);
    logging::log_in(fetch, LogTag::Error, tenant.name(), what);
}

/// What is wrong with an answer that the engine let pass, but Varnish would not.
pub fn objection(fetch: &Fetch<'_, '_>, answer: &Answer) -> Option<&'static str> {
    if answer.status() == 304 && !fetch.is_conditional() {
        return Some("its response is 304, but the request had no condition");
    }
    // Varnish unpacks it, if only to see whether it can.
    let encoding = answer
        .headers()
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-encoding"));
    if encoding.is_some_and(|header| header.value.eq_ignore_ascii_case(b"gzip")) {
        let mut start = [0; GZIP.len()];
        let len = answer.body_start(&mut start);
        // Whether one begins so that has not come yet is found by what unpacks it.
        let there = len == GZIP.len() || len > 0 && answer.body_len() > 0;
        if there && start != GZIP {
            return Some(NO_GZIP);
        }
    }
    None
}

/// Makes the guest's answer the response; without its body if that is to `head`.
pub fn hand_over(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    answered: Answered,
    head: bool,
) -> Result<Response, VclError> {
    let Answered {
        mut answer,
        deadline,
        version,
        mut room,
        ..
    } = answered;
    if let Some(objection) = objection(fetch, &answer) {
        log_failed(fetch, tenant, objection);
        return plain::failed(fetch);
    }
    let status = answer.status();
    let len =
        usize::try_from(answer.body_len()).map_err(|error| VclError::new(error.to_string()))?;
    let has_body = plain::has_body(status);
    let is_sent = has_body && !head && len > 0;
    if is_sent && !room.take_all(len as u64) {
        let no_room = Failure::NoRoom { len: len as u64 };
        return turn_away(fetch, tenant, &no_room.to_string());
    }

    // Varnish does not set it for a backend that isn't HTTP. HEAD says what GET would give.
    let announced = has_body.then(|| answer.announced_len()).flatten();
    let added = add_headers(fetch, &answer, version, announced);
    let caching = match added {
        Ok(caching) => caching,
        Err(error) => {
            // None of them was set, so that there is room for an answer of ours.
            let text = format!("its response can't be sent: {error}");
            log_failed(fetch, tenant, &text);
            return plain::failed(fetch);
        }
    };
    fetch.set_status(status)?;

    // Not by a header such as no-store, which would reach the client. And not for 304: Varnish has asked whether what
    // it has in its cache is still good, and takes the answer in that cached object only while it is cacheable.
    if !caching.allowed && status != 304 {
        fetch.set_uncacheable();
    }
    let response = if let Some(coming) = answer.take_coming() {
        Response::coming(coming, announced)
    } else if let Some(streaming) = answer.take_streaming().filter(|_| has_body && !head) {
        Response::streamed(Streamed::new(streaming, tenant.late_output()))
    } else if is_sent {
        Response::guest(Held::new(answer, len, deadline), room)
    } else {
        Response::without_body()
    };
    Ok(response.counted_in(&tenant.figures))
}

/// Gives the response the guest's headers, and ours: all of them, or none if that fails. Says what they say about caching.
pub fn add_headers(
    fetch: &mut Fetch<'_, '_>,
    answer: &Answer,
    version: Option<Version>,
    announced: Option<u64>,
) -> Result<Caching, VclError> {
    let caching = Caching::of(answer.headers(), answer.cache());
    let version = version.map(|version| version.to_string());
    let length = announced.map(|len| len.to_string());
    let content_type = Some(answer.content_type()).filter(|value| !value.is_empty());
    let own = [
        ("X-Program-Version", version.as_deref().map(str::as_bytes)),
        ("Content-Type", content_type),
        (
            "Cache-Control",
            caching.cache_control.as_deref().map(str::as_bytes),
        ),
        ("Content-Length", length.as_deref().map(str::as_bytes)),
    ];
    let own = own.iter().filter_map(|&(name, value)| Some((name, value?)));
    // The type that came with the response counts; two would be one too many.
    let guests = answer
        .headers()
        .iter()
        .filter(|header| {
            let is = |name| header.name.eq_ignore_ascii_case(name);
            !(content_type.is_some() && is("content-type")
                || version.is_some() && is("x-program-version"))
        })
        .map(|header| (&*header.name, &*header.value));
    fetch.add_headers(own.chain(guests))?;
    Ok(caching)
}
