//! A page that shows tenants to people. It is whole without a script: the browser asks for it anew.
#![forbid(unsafe_code)]

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::tenants::figures::{BUCKETS, SECONDS, upper};
use crate::tenants::measured::Measured;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::logging;

/// The page's media type.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";
/// How often a browser asks for it, in seconds.
const REFRESH: u32 = 2;
/// Most tenants on one page: those with the most requests in the last minute.
const MOST: usize = 200;
/// A chart's size, in its own units.
const CHART: (usize, usize) = (240, 44);

const STYLE: &str = include_str!("page.css");

/// A tenant, as it is now.
struct Seen<'t> {
    tenant: &'t Tenant,
    measured: Measured,
    /// Requests in each of the last seconds.
    recent: Vec<u64>,
}

/// The page of these tenants.
pub fn text<'t>(tenants: impl Iterator<Item = &'t Tenant>) -> String {
    let mut seen: Vec<_> = tenants
        .map(|tenant| Seen {
            tenant,
            measured: Measured::of(tenant),
            recent: tenant.figures.recent(),
        })
        .collect();
    let all = seen.len();
    let ready = seen.iter().filter(|seen| seen.measured.ready == 1).count();
    let sum = |of: fn(&Measured) -> u64| seen.iter().map(|seen| of(&seen.measured)).sum::<u64>();
    let rate: u64 = seen.iter().filter_map(|seen| seen.recent.last()).sum();
    let figures = [
        ("tenants", format!("{ready} of {all} ready")),
        ("requests/s", rate.to_string()),
        (
            "forks",
            format!(
                "{} of {} busy",
                sum(|of| of.forks).saturating_sub(sum(|of| of.forks_idle)),
                sum(|of| of.forks)
            ),
        ),
        ("waiting", sum(|of| of.waiting).to_string()),
        ("failures", sum(|of| of.failures).to_string()),
        ("turned away", sum(|of| of.busy).to_string()),
    ];
    seen.sort_by_cached_key(|seen| {
        let recent: u64 = seen.recent.iter().sum();
        (std::cmp::Reverse(recent), seen.tenant.name().to_owned())
    });
    seen.truncate(MOST);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH);
                title { "kvm: " (ready) " of " (all) " ready" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "kvm" }
                    dl.sum { @for (name, value) in &figures { (figure(name, value)) } }
                }
                main { @for seen in &seen { (card(seen)) } }
                @if all > MOST {
                    p.more { "The " (MOST) " busiest of " (all) " tenants." }
                }
            }
        }
    };
    page.into_string()
}

fn figure(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn card(
    Seen {
        tenant,
        measured,
        recent,
    }: &Seen<'_>,
) -> Markup {
    let (state, note) = match tenant.state() {
        State::Booting if tenant.is_asleep() => ("asleep", None),
        State::Booting => ("booting", None),
        State::Ready(release) => (
            "ready",
            Some(format!("version {}", release.version.short())),
        ),
        State::Failed(failed) => ("failed", Some(logging::escape(failed.reason.as_bytes()))),
    };
    let latencies = tenant.figures.latencies();
    let figures = [
        (
            "requests/s",
            recent.last().copied().unwrap_or(0).to_string(),
        ),
        ("p50", quantile(&latencies, 50)),
        ("p99", quantile(&latencies, 99)),
        ("requests", measured.requests.to_string()),
        ("failures", measured.failures.to_string()),
        ("turned away", measured.busy.to_string()),
        (
            "forks",
            format!("{} ({} idle)", measured.forks, measured.forks_idle),
        ),
        ("waiting", measured.waiting.to_string()),
        (
            "exits a request",
            per_request(measured.exits, measured.requests),
        ),
    ];
    html! {
        article {
            h2 { (tenant.name()) " " span class=(state) { (state) } }
            @if let Some(note) = note { p.note { (note) } }
            dl { @for (name, value) in &figures { (figure(name, value)) } }
            figure {
                (line(recent))
                figcaption { "requests/s, the last minute" }
            }
            figure {
                (bars(&latencies))
                figcaption { "answers by their time, 64 µs to 16 s" }
            }
        }
    }
}

fn per_request(sum: u64, requests: u64) -> String {
    match requests {
        0 => "–".into(),
        _ => format!("{:.1}", sum as f64 / requests as f64),
    }
}

/// The time that so many of a hundred answers did not exceed, as far as the buckets tell.
fn quantile(latencies: &[u64; BUCKETS], percent: u64) -> String {
    let all: u64 = latencies.iter().sum();
    let wanted = (all.saturating_mul(percent)).div_ceil(100);
    let mut sum = 0;
    for (at, count) in latencies.iter().enumerate() {
        sum += count;
        if all > 0 && sum >= wanted {
            return match upper(at) {
                Some(micros) => format!("≤ {}", short(Duration::from_micros(micros))),
                None => "> 16 s".into(),
            };
        }
    }
    "–".into()
}

/// A time in few characters.
fn short(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.0} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.0} s", time.as_secs_f64()),
    }
}

/// How high something is in a chart whose highest is this.
fn height(value: u64, highest: u64) -> usize {
    let (_, height) = CHART;
    let scaled = u128::from(value) * height as u128 / u128::from(highest.max(1));
    usize::try_from(scaled).unwrap_or(height).min(height)
}

fn svg(what: &str, content: Markup) -> Markup {
    let (width, height) = CHART;
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } preserveAspectRatio="none" role="img" aria-label=(what) { (content) }
    }
}

/// The last seconds, the latest at the right.
fn line(recent: &[u64]) -> Markup {
    let (width, bottom) = CHART;
    let highest = recent.iter().copied().max().unwrap_or(0);
    let step = width / (SECONDS - 1);
    let first = SECONDS.saturating_sub(recent.len());
    let points: String = recent
        .iter()
        .enumerate()
        .map(|(at, &value)| {
            format!(
                "{},{} ",
                (first + at) * step,
                bottom - height(value, highest)
            )
        })
        .collect();
    let what = format!("requests a second, at most {highest}");
    svg(&what, html! { polyline points=(points) {} })
}

/// The buckets, the shortest time at the left.
fn bars(latencies: &[u64; BUCKETS]) -> Markup {
    let (width, bottom) = CHART;
    let highest = latencies.iter().copied().max().unwrap_or(0);
    let step = width / BUCKETS;
    let bars = latencies
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0);
    let bars = html! {
        @for (at, &count) in bars {
            // A single one is to be seen beside a million.
            @let tall = height(count, highest).max(1);
            rect x=(at * step) y=(bottom - tall) width=(step - 1) height=(tall) {}
        }
    };
    svg("answers by their time", bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_answers() {
        let mut latencies = [0; BUCKETS];
        assert_eq!(quantile(&latencies, 50), "–");
        (latencies[0], latencies[4], latencies[BUCKETS - 1]) = (98, 1, 1);
        assert_eq!(quantile(&latencies, 50), "≤ 64 µs");
        assert_eq!(quantile(&latencies, 99), "≤ 1 ms");
        assert_eq!(quantile(&latencies, 100), "> 16 s");
    }
}
