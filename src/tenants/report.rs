//! What `backend.list` shows of the tenants.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use forkvm::StorageStats;
use forkvm_fetch::Stats;
use serde_json::{Value, json};

use crate::tenants::figures::get;
use crate::tenants::measured::Measured;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::logging;

/// Of all tenants of a VCL, the columns Probe and Health: how many are ready, of how many.
pub fn summary(ready: usize, of: usize) -> String {
    format!("{ready}/{of}\t{}", overall(ready, of))
}

/// The same in JSON: as Varnish's own backends, [good, of, health].
pub fn summary_json(ready: usize, of: usize) -> String {
    json!([ready, of, overall(ready, of)]).to_string()
}

/// One broken program is not the other tenants' sickness: the director stays in use.
fn overall(ready: usize, of: usize) -> &'static str {
    if ready == of { "healthy" } else { "degraded" }
}

/// Of one tenant, the same columns.
pub fn short(tenant: &Tenant) -> String {
    let (ready, health) = health(tenant);
    format!("{ready}/1\t{health}")
}

/// The same in JSON.
pub fn short_json(tenant: &Tenant) -> String {
    let (ready, health) = health(tenant);
    json!([ready, 1, health]).to_string()
}

fn health(tenant: &Tenant) -> (usize, &'static str) {
    match tenant.state() {
        State::Ready(_) => (1, "healthy"),
        State::Booting if tenant.is_asleep() => (0, "asleep"),
        State::Booting => (0, "booting"),
        State::Failed(_) => (0, "sick"),
    }
}

/// What `-p` shows of a tenant: a line.
pub fn details(tenant: &Tenant) -> String {
    let requests = get(&tenant.figures.requests);
    let failures = get(&tenant.figures.failures);
    let (state, more, why) = match tenant.state() {
        State::Booting if tenant.is_asleep() => ("asleep", String::new(), String::new()),
        State::Booting => ("booting", String::new(), String::new()),
        State::Failed(failed) => {
            let since = format!(" since {}", httpdate::fmt_http_date(failed.since));
            ("failed", since, format!(": {}", failed.reason))
        }
        State::Ready(release) => {
            let stats = release.program.stats();
            let mut figures = format!(
                " version={} forks={} idle={}",
                release.version.short(),
                stats.forks,
                stats.idle
            );
            if release.program.keeps_state() {
                figures += " ephemeral=false";
            }
            if let Some(storage) = stats.storage {
                let StorageStats {
                    calls,
                    failures,
                    restarts,
                    tasks,
                    task_failures,
                    ..
                } = storage;
                figures += &format!(
                    " storage_calls={calls} storage_failures={failures} storage_restarts={restarts} tasks={tasks} task_failures={task_failures}"
                );
            }
            ("ready", figures, String::new())
        }
    };
    // Tabs separate varnishadm's columns, line ends its rows; and parts of a reason may be a program's.
    let why = logging::escape(why.replace(['\t', '\n', '\r'], " ").as_bytes());
    let fetches = match fetched(tenant) {
        Some(stats) => format!(
            " fetches={} fetch_failures={}",
            stats.fetches, stats.failures
        ),
        None => String::new(),
    };
    format!(
        "\n  {}: {state}{more} requests={requests} failures={failures}{fetches}{why}",
        tenant.name()
    )
}

/// What its programs have had fetched, if they may or have tried.
fn fetched(tenant: &Tenant) -> Option<Stats> {
    let stats = tenant.fetches.as_ref()?.stats();
    let may = !tenant.settings.values.allow_net.is_empty();
    (may || stats.fetches > 0).then_some(stats)
}

/// The same in JSON: an object.
pub fn details_json(tenant: &Tenant) -> String {
    let mut figures = figures(tenant);
    figures["tenant"] = tenant.name().into();
    figures.to_string()
}

/// What is counted of a tenant, and how its program is, as an object.
pub fn figures(tenant: &Tenant) -> Value {
    let mut figures = json!({
        "requests": get(&tenant.figures.requests),
        "failures": get(&tenant.figures.failures),
    });
    figures["numbers"] = json!(Measured::of(tenant));
    if let Some(stats) = fetched(tenant) {
        figures["fetches"] = stats.fetches.into();
        figures["fetch_failures"] = stats.failures.into();
    }
    match tenant.state() {
        State::Booting if tenant.is_asleep() => figures["state"] = "asleep".into(),
        State::Booting => figures["state"] = "booting".into(),
        State::Failed(failed) => {
            figures["state"] = "failed".into();
            figures["reason"] = (*failed.reason).into();
            let since = failed.since.duration_since(SystemTime::UNIX_EPOCH);
            figures["since"] = since.map_or(0, |since| since.as_secs()).into();
        }
        State::Ready(release) => {
            let stats = release.program.stats();
            figures["state"] = "ready".into();
            figures["version"] = release.version.to_string().into();
            figures["forks"] = stats.forks.into();
            figures["idle"] = stats.idle.into();
            if let Some(storage) = stats.storage {
                figures["storage"] = json!({
                    "calls": storage.calls,
                    "failures": storage.failures,
                    "restarts": storage.restarts,
                    "tasks": storage.tasks,
                    "task_failures": storage.task_failures,
                });
            }
            // Since this program is there.
            figures["program"] = json!({
                "requests": stats.requests,
                "failures": stats.failures,
                "timeouts": stats.timeouts,
                "busy": stats.busy,
                "forks_made": stats.created,
            });
            figures["ephemeral"] = (!release.program.keeps_state()).into();
            figures["replaced"] = tenant.replaced().into();
        }
    }
    figures
}
