//! What `backend.list` shows of the tenants.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::tenants::tenant::{State, Tenant};
use crate::varnish::logging;

/// The columns Probe and Health of `backend.list`: how many tenants are ready, of how many.
pub fn short(tenants: &[Arc<Tenant>]) -> String {
    let ready = ready(tenants);
    // One broken program is not the other tenants' sickness: the director stays in use.
    let health = if ready == tenants.len() {
        "healthy"
    } else {
        "degraded"
    };
    format!("{ready}/{}\t{health}", tenants.len())
}

/// `backend.list -j`: as Varnish's own backends, [good, of, health].
pub fn short_json(tenants: &[Arc<Tenant>]) -> String {
    let ready = ready(tenants);
    json!([
        ready,
        tenants.len(),
        if ready == tenants.len() {
            "healthy"
        } else {
            "degraded"
        }
    ])
    .to_string()
}

/// `backend.list -p`: a line for each tenant.
pub fn details(tenants: &[Arc<Tenant>]) -> String {
    let mut text = String::new();
    for tenant in tenants {
        let requests = tenant.requests.load(Ordering::Relaxed);
        let failures = tenant.failures.load(Ordering::Relaxed);
        let (state, forks, why) = match tenant.state() {
            State::Booting => ("booting", String::new(), String::new()),
            State::Failed(failed) => {
                let since = format!(" since {}", httpdate::fmt_http_date(failed.since));
                ("failed", since, format!(": {}", failed.reason))
            }
            State::Ready(release) => {
                let stats = release.program.stats();
                (
                    "ready",
                    format!(
                        " version={} forks={} idle={}",
                        release.version.short(),
                        stats.forks,
                        stats.idle
                    ),
                    String::new(),
                )
            }
        };
        // Tabs separate varnishadm's columns, line ends its rows; and parts of a reason may be a program's.
        let why = logging::escape(why.replace(['\t', '\n', '\r'], " ").as_bytes());
        // Writing to a String can't fail.
        let _ = write!(
            text,
            "\n  {}: {state}{forks} requests={requests} failures={failures}{why}",
            tenant.name()
        );
    }
    text
}

/// `backend.list -p -j`: an object, by tenant.
pub fn details_json(tenants: &[Arc<Tenant>]) -> String {
    let tenants: serde_json::Map<String, Value> = tenants
        .iter()
        .map(|tenant| {
            let mut figures = json!({
                "requests": tenant.requests.load(Ordering::Relaxed),
                "failures": tenant.failures.load(Ordering::Relaxed),
            });
            match tenant.state() {
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
                }
            }
            (tenant.name().to_owned(), figures)
        })
        .collect();
    // varnishd goes on with the next member, so the comma is ours. (The varnish crate's default lacks it.)
    format!("{},\n", Value::Object(tenants))
}

fn ready(tenants: &[Arc<Tenant>]) -> usize {
    tenants
        .iter()
        .filter(|tenant| matches!(tenant.state(), State::Ready(_)))
        .count()
}
