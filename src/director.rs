//! A VCL's tenants, and how a fetch is answered by one of their programs.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use forkvm::{Answer, Failure, Program, Request};
use parking_lot::RwLock;
use varnish::vcl::{Buffer, Ctx, LogTag, VclBackend, VclError};

use crate::boot;
use crate::caching::Caching;
use crate::counters::count;
use crate::fetch::Fetch;
use crate::logging::{self, Output};
use crate::name;
use crate::registry;
use crate::report;
use crate::request::{self, BadBody, Body};
use crate::response::Response;
use crate::tenant::{Release, State, Tenant};
use crate::update::{self, Source, Turn};
use crate::upload::{self, Order};
use crate::version::Version;

/// The one backend of a VCL.
#[derive(Default)]
pub struct Director {
    /// By name. Written in vcl_init only.
    tenants: RwLock<HashMap<String, Arc<Tenant>>>,
}

impl Director {
    /// Whether there is a tenant of this name already.
    pub fn has(&self, name: &str) -> bool {
        self.tenants.read().contains_key(name)
    }

    /// Adds a tenant.
    pub fn add(&self, tenant: Arc<Tenant>) {
        self.tenants
            .write()
            .insert(tenant.name().to_owned(), tenant);
    }

    /// Whether the tenant's program takes requests.
    pub fn is_ready(&self, name: &[u8]) -> bool {
        self.version(name).is_some()
    }

    /// Which program the tenant runs.
    pub fn version(&self, name: &[u8]) -> Option<Version> {
        match self.named(name)?.state() {
            State::Ready(release) => Some(release.version),
            _ => None,
        }
    }

    /// The tenant of this name.
    fn named(&self, name: &[u8]) -> Option<Arc<Tenant>> {
        let name = name::canonical(name)?;
        self.tenants.read().get(&*name).cloned()
    }

    /// Makes the program in a file the tenant's. The reason is in the log if that fails.
    pub fn live_update_file(&self, name: &[u8], path: &Path) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        let turn = Turn::take(&tenant).map_err(|busy| busy.to_string())?;
        let elf = registry::open(path)
            .and_then(|(file, _)| boot::read_file(&tenant, file))
            .map_err(|reason| format!("{}: {reason}", path.display()))?;
        update::update(&tenant, Source::Given(elf), turn)
            .map(|_| ())
            .map_err(|refused| refused.to_string())
    }

    /// Gives the tenant the program that it had before; with a key, only if that is right.
    pub fn rollback(&self, name: &[u8], key: Option<&[u8]>) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        if let Some(key) = key {
            tenant
                .settings
                .key
                .check(key)
                .map_err(|denied| denied.to_string())?;
        }
        let turn = Turn::take(&tenant).map_err(|busy| busy.to_string())?;
        update::update(&tenant, Source::Rollback, turn)
            .map(|_| ())
            .map_err(|refused| refused.to_string())
    }

    /// Carries out an update or a rollback.
    fn carry_out(
        &self,
        order: &Order,
        name: &[u8],
        fetch: &mut Fetch<'_, '_>,
    ) -> Result<Response, String> {
        // A Host header may have a port.
        let tenant = self
            .named(name)
            .or_else(|| self.named(name::of_host(name)?.as_bytes()));
        let asked = shown(name);
        upload::respond(fetch, tenant, &asked, order)
    }

    /// All tenants, in alphabetical order.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        let mut tenants: Vec<_> = self.tenants.read().values().cloned().collect();
        tenants.sort_by(|a, b| a.name().cmp(b.name()));
        tenants
    }

    /// The tenant that a fetch is for.
    fn tenant(&self, given: Option<&[u8]>, fetch: &Fetch<'_, '_>) -> Result<Arc<Tenant>, String> {
        let asked = given.or_else(|| fetch.header("host")).unwrap_or_default();
        let name = match given {
            Some(name) => name::canonical(name),
            None => name::of_host(asked),
        };
        let tenants = self.tenants.read();
        name.and_then(|name| tenants.get(&*name).cloned())
            .ok_or_else(|| {
                format!(
                    "no tenant \"{}\" among the {} of this VCL",
                    shown(asked),
                    tenants.len()
                )
            })
    }

    /// Answers a fetch. An error is a failed fetch, a failed guest is a response.
    fn respond(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, String> {
        let target = fetch
            .target()
            .ok_or("kvm.backend() was not called in this task, or before a rollback")?;
        if let Some(order) = &target.order {
            return self.carry_out(order, target.tenant.as_deref().unwrap_or_default(), fetch);
        }
        let tenant = self.tenant(target.tenant.as_deref(), fetch)?;
        let name = tenant.name();

        let limits = &tenant.settings.config.limits;
        let Release { program, version } = tenant
            .program(Instant::now() + limits.max_request_time)
            .map_err(|not_ready| format!("tenant {name}: {not_ready}"))?;

        let headers = request::headers(fetch);
        let method = fetch.method();
        let url = target.url.clone().unwrap_or_else(|| fetch.url());
        let body = match Body::read(fetch, &tenant) {
            Ok(body) => body,
            Err(bad) => return refuse_body(fetch, name, &bad),
        };
        let request = Request {
            method: &method,
            url: &url,
            arg: &target.arg,
            headers: &headers,
            body: body.bytes(),
        };

        count(|counters| &counters.requests);
        tenant.requests.fetch_add(1, Ordering::Relaxed);
        let result = {
            // From here: a slow upload is not the guest's, and is limited by Varnish's own timeouts.
            let deadline = Instant::now() + limits.max_request_time;
            let mut output = Output::of_request(name, tenant.settings.stdout, |record| {
                fetch.log(LogTag::VclLog, record)
            });
            let result = Program::answer(&program, &request, deadline, &mut output);
            output.finish();
            result
        };
        drop(body);
        match result {
            Ok(answer) => {
                if let Some(failure) = answer.failure() {
                    log_failure(fetch, &tenant, failure);
                }
                let shown = tenant.settings.version_header.then_some(version);
                hand_over(fetch, answer, &method, shown).or_else(|error| {
                    // Nothing of it was set, so that there is room for an answer of ours.
                    log_failed(
                        fetch,
                        &tenant,
                        &format!("its response can't be sent: {error}"),
                    );
                    plain(fetch, 500, FAILED, None)
                        .map_err(|error| format!("tenant {name}: {error}"))
                })
            }
            Err(failure) => {
                fail(fetch, &tenant, &failure).map_err(|error| format!("tenant {name}: {error}"))
            }
        }
    }
}

impl VclBackend<Response> for Director {
    fn get_response(&self, ctx: &mut Ctx<'_>) -> Result<Option<Response>, VclError> {
        let mut fetch = Fetch::new(ctx)?;
        let response = self.respond(&mut fetch).map_err(|reason| {
            count(|counters| &counters.refused);
            VclError::new(format!("kvm: {reason}"))
        })?;
        Ok(Some(response))
    }

    fn report(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        // A failed write shows as an incomplete list; there is nothing to do about it.
        let _ = vsb.write(&report::short(&self.tenants()));
    }

    fn report_details(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::details(&self.tenants()));
    }

    fn report_json(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::short_json(&self.tenants()));
    }

    fn report_details_json(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::details_json(&self.tenants()));
    }
}

/// A name that somebody sent, for a message.
fn shown(name: &[u8]) -> String {
    name[..name.len().min(100)].escape_ascii().to_string()
}

/// Makes the guest's answer the response.
fn hand_over(
    fetch: &mut Fetch<'_, '_>,
    answer: Answer,
    method: &str,
    version: Option<Version>,
) -> Result<Response, VclError> {
    let status = answer.status();
    let len =
        usize::try_from(answer.body_len()).map_err(|error| VclError::new(error.to_string()))?;
    let caching = Caching::of(answer.headers(), answer.cache());
    let has_body = !matches!(status, 204 | 304);

    let version = version.map(|version| version.to_string());
    // Varnish does not set it for a backend that isn't HTTP. HEAD says what GET would give.
    let length = has_body.then(|| len.to_string());
    let own = [
        ("X-Program-Version", version.as_deref().map(str::as_bytes)),
        (
            "Content-Type",
            Some(answer.content_type()).filter(|value| !value.is_empty()),
        ),
        (
            "Cache-Control",
            caching.cache_control.as_deref().map(str::as_bytes),
        ),
        ("Content-Length", length.as_deref().map(str::as_bytes)),
    ];
    let own = own.iter().filter_map(|&(name, value)| Some((name, value?)));
    // The type that came with the response counts; two would be one too many.
    let typed = !answer.content_type().is_empty();
    let guests = answer
        .headers()
        .iter()
        .filter(|header| !(typed && header.name.eq_ignore_ascii_case("content-type")))
        .map(|header| (header.name.as_str(), header.value.as_slice()));
    fetch.set_status(status)?;
    fetch.add_headers(own.chain(guests))?;

    // Not by a header such as no-store, which would reach the client. And not for 304: Varnish has asked whether what
    // it has in its cache is still good, and takes the answer in that cached object only while it is cacheable.
    if !caching.allowed && status != 304 {
        fetch.set_uncacheable();
    }
    if !has_body || method == "HEAD" || len == 0 {
        return Ok(Response::without_body());
    }
    Ok(Response::guest(answer, len))
}

/// What a client is told about a failure. The log says the rest.
const FAILED: &str = "The service failed.\n";

/// The response for a request that has no answer of the guest.
fn fail(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    failure: &Failure,
) -> Result<Response, VclError> {
    log_failure(fetch, tenant, failure);
    if failure.is_busy() {
        plain(fetch, 503, "The service is busy, try again.\n", Some("1"))
    } else {
        plain(fetch, 500, FAILED, None)
    }
}

fn log_failure(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, failure: &Failure) {
    if failure.is_timeout() {
        count(|counters| &counters.timeouts);
    }
    if failure.is_busy() {
        count(|counters| &counters.busy);
        log_error(fetch, tenant.name(), &failure.to_string());
    } else {
        log_failed(fetch, tenant, &failure.to_string());
    }
}

/// Counts and logs a request that the program failed.
fn log_failed(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, what: &str) {
    count(|counters| &counters.failures);
    tenant.failures.fetch_add(1, Ordering::Relaxed);
    log_error(fetch, tenant.name(), what);
}

fn log_error(fetch: &mut Fetch<'_, '_>, name: &str, text: &str) {
    for record in logging::about(name, text) {
        fetch.log(LogTag::Error, &record);
    }
}

fn refuse_body(fetch: &mut Fetch<'_, '_>, name: &str, bad: &BadBody) -> Result<Response, String> {
    log_error(fetch, name, &bad.to_string());
    let response = match bad {
        BadBody::TooLarge => plain(fetch, 413, "The request body is too large.\n", None),
        BadBody::NoRoom => {
            count(|counters| &counters.busy);
            plain(fetch, 503, "The service is busy, try again.\n", Some("1"))
        }
        BadBody::Unreadable(_) => return Err(format!("tenant {name}: {bad}")),
    };
    response.map_err(|error| format!("tenant {name}: {error}"))
}

/// A response of our own: it tells the client what it can do, and the log the rest.
fn plain(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    text: &'static str,
    retry_after: Option<&str>,
) -> Result<Response, VclError> {
    fetch.set_status(status)?;
    fetch.add_header("Content-Type", b"text/plain; charset=utf-8")?;
    if let Some(seconds) = retry_after {
        fetch.add_header("Retry-After", seconds.as_bytes())?;
    }
    fetch.set_uncacheable();
    fetch.add_header("Content-Length", text.len().to_string().as_bytes())?;
    Ok(if fetch.method() == "HEAD" {
        Response::without_body()
    } else {
        Response::text(text)
    })
}
