//! A program's answer to a fetch: asked for, and made the response.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use forkvm::{Answer, CachePolicy, Failure, Host, Program, Request};
use varnish::vcl::{LogTag, VclError};

use crate::counters::count;
use crate::fetch::Fetch;
use crate::logging::{self, Output};
use crate::request::Asked;
use crate::response::Response;
use crate::tenant::Tenant;
use crate::version::Version;

/// How the engine runs a request: [`Program::answer`] or [`Program::debug`].
type Run = fn(&Arc<Program>, &Request<'_>, Instant, &mut dyn Host) -> Result<Answer, Failure>;

/// Has a program of the tenant answer. Failures are logged.
pub fn ask(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    program: &Arc<Program>,
    asked: &Asked,
    run: Run,
) -> Result<Answer, Failure> {
    count(|counters| &counters.requests);
    tenant.requests.fetch_add(1, Ordering::Relaxed);
    // From here: a slow upload is not the guest's, and is limited by Varnish's own timeouts.
    let deadline = Instant::now() + tenant.settings.config.limits.max_request_time;
    let mut output = Output::of_request(tenant.name(), tenant.settings.stdout, |record| {
        fetch.log(LogTag::VclLog, record)
    });
    let result = run(program, &asked.request(), deadline, &mut output);
    output.finish();
    let failure = match &result {
        Ok(answer) => answer.failure(),
        Err(failure) => Some(failure),
    };
    if let Some(failure) = failure {
        log_failure(fetch, tenant, failure);
    }
    result
}

fn log_failure(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, failure: &Failure) {
    if failure.is_busy() {
        count(|counters| &counters.busy);
    } else {
        count(|counters| &counters.failures);
        tenant.failures.fetch_add(1, Ordering::Relaxed);
    }
    if failure.is_timeout() {
        count(|counters| &counters.timeouts);
    }
    logging::log_in(fetch, LogTag::Error, tenant.name(), &failure.to_string());
}

/// Makes the guest's answer the response; without its body if that is to `head`.
pub fn hand_over(
    fetch: &mut Fetch<'_, '_>,
    answer: Answer,
    head: bool,
    version: Option<Version>,
) -> Result<Response, VclError> {
    let status = answer.status();
    fetch.set_status(status)?;
    if let Some(version) = version {
        fetch.add_header("X-Program-Version", version.to_string().as_bytes())?;
    }
    let content_type = answer.content_type();
    if !content_type.is_empty() {
        fetch.add_header("Content-Type", content_type)?;
    }
    let mut own_cache_control = false;
    let mut lifetime = false;
    for header in answer.headers() {
        if header.name.eq_ignore_ascii_case("content-type") && !content_type.is_empty() {
            // The type that came with the response counts; two would be one too many.
            continue;
        }
        if header.name.eq_ignore_ascii_case("cache-control") {
            own_cache_control = true;
            lifetime |= gives_lifetime(&header.value);
        }
        lifetime |= header.name.eq_ignore_ascii_case("expires");
        fetch.add_header(&header.name, &header.value)?;
    }
    if let (Some(policy), false) = (answer.cache(), own_cache_control) {
        lifetime = true;
        fetch.add_header("Cache-Control", cache_control(&policy).as_bytes())?;
    }
    // Not by a header such as no-store, which would reach the client. And not for 304: Varnish has asked whether what
    // it has in its cache is still good, and takes the answer in that cached object only while it is cacheable.
    if !lifetime && status != 304 {
        fetch.set_uncacheable();
    }

    let len =
        usize::try_from(answer.body_len()).map_err(|error| VclError::new(error.to_string()))?;
    if matches!(status, 204 | 304) {
        return Ok(Response::without_body());
    }
    // Varnish does not set it for a backend that isn't HTTP. HEAD says what GET would give.
    fetch.add_header("Content-Length", len.to_string().as_bytes())?;
    if head || len == 0 {
        return Ok(Response::without_body());
    }
    Ok(Response::guest(answer, len))
}

/// Whether a Cache-Control value lets a shared cache keep the response for a time it names.
fn gives_lifetime(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let mut directives = value.split(|&c| c == b',').map(<[u8]>::trim_ascii);
    let forbids = |directive: &[u8]| {
        [&b"no-store"[..], b"no-cache", b"private"]
            .iter()
            .any(|name| directive.starts_with(name))
    };
    !directives.clone().any(forbids)
        && directives.any(|directive| {
            directive.starts_with(b"max-age=") || directive.starts_with(b"s-maxage=")
        })
}

/// The guest's cache policy as a header. Varnish takes lifetimes from headers after the backend is done; set on the
/// object they would be overwritten.
fn cache_control(policy: &CachePolicy) -> String {
    // Whole seconds, and a short lifetime is not none. (A negative or absurd float saturates.)
    let seconds = |time: f32| {
        if time > 0.0 {
            time.round().max(1.0) as u32
        } else {
            0
        }
    };
    format!(
        "max-age={}, stale-while-revalidate={}",
        seconds(policy.ttl),
        seconds(policy.grace)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_max_age_without_a_but() {
        assert!(gives_lifetime(b"public, Max-Age=60"));
        assert!(gives_lifetime(b"s-maxage=1"));
        for none in [
            "",
            "public",
            "no-store",
            "private, max-age=60",
            "max-age=60, no-cache=\"set-cookie\"",
        ] {
            assert!(!gives_lifetime(none.as_bytes()), "{none}");
        }
    }

    #[test]
    fn a_policy_becomes_whole_seconds() {
        let header = |ttl, grace| {
            cache_control(&CachePolicy {
                ttl,
                grace,
                keep: 0.0,
            })
        };
        assert_eq!(header(10.0, 2.5), "max-age=10, stale-while-revalidate=3");
        assert_eq!(header(0.001, 0.0), "max-age=1, stale-while-revalidate=0");
        assert_eq!(
            header(-5.0, f32::NAN),
            "max-age=0, stale-while-revalidate=0"
        );
        assert_eq!(
            header(f32::INFINITY, 0.0),
            format!("max-age={}, stale-while-revalidate=0", u32::MAX)
        );
    }
}
