//! report.html: one file, nothing loaded.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Report, plots, shown};
use crate::rows::servers::ServerRow;
use crate::rows::sites::Site;
use crate::rows::storage::Rate;
use crate::stand::Measured;

const STYLE: &str = "
:root{color-scheme:light}
body{font:16px/1.55 system-ui,sans-serif;color:#222831;background:#fff;max-width:920px;margin:0 auto;padding:24px}
h1{font-size:1.7em;margin:.2em 0}h2{font-size:1.2em;margin:2em 0 .3em}
p.about{color:#586069;margin:.2em 0 1em}
table{border-collapse:collapse;width:100%;font-size:.94em}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid #dee2e6}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.yes{color:#2b7a3d;font-weight:600}.no{color:#b3261e;font-weight:600}
.quick{background:#fff3cd;padding:8px 12px;border-radius:4px}
svg{display:block;margin:.5em 0}
";

/// The page.
pub fn of(report: &Report) -> Result<String> {
    let machine = &report.machine;
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>vmod_kvm benchmark</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>What a request in a fork costs</h1>\n\
         <p class=\"about\">{}, commit {}. {}, {} cores{}, {} MiB, Linux {}, KVM: {} (a guest's <code>syscall</code> \
         enters {}). {}. Client, Varnish and backends share the cores; medians of interleaved rounds, {} s in all. Absolute \
         times belong to this machine, ratios travel better.</p>\n",
        escape(&machine.date),
        escape(&machine.commit),
        escape(&machine.cpu),
        machine.cores,
        if machine.virtual_machine {
            " of a virtual machine"
        } else {
            ""
        },
        machine.memory_mib,
        escape(&machine.kernel),
        escape(&machine.kvm),
        escape(&machine.syscall_enters),
        escape(&machine.varnish),
        report.seconds,
    );
    writeln!(
        html,
        "<p class=\"about\">A bare <code>KVM_RUN</code> and back took {} µs on this machine at the start (p99 {}): the figures \
         are to be read in it.</p>",
        number(report.round_trip.median_us),
        number(report.round_trip.p99_us)
    )?;
    if report.quick {
        html += "<p class=\"quick\">A quick run: few and short rounds. These figures show that the benchmark works, not \
                 what a request costs.</p>\n";
    }
    goals(&mut html, report)?;
    if let Some(call) = &report.call {
        section(
            &mut html,
            "A request in the engine",
            &format!(
                "A bare <code>KVM_RUN</code> round trip, guest in ring 3, takes {} µs (p99 {}): no request can take less. A \
             request that writes nothing, with its complete reset, takes {} µs (p99 {}), {} times as much (median of the \
             batches' ratios).",
                number(call.roundtrip_us),
                number(call.roundtrip_p99_us),
                number(call.call_us),
                number(call.call_p99_us),
                number(call.call_over_roundtrip)
            ),
            "",
        )?;
    }
    if let Some(reset) = &report.reset {
        section(
            &mut html,
            "Reset, over dirty pages",
            "What the host does after a request: it copies each page back that the request wrote to.",
            &plots::reset(reset)?,
        )?;
    }
    if !report.throughput.is_empty() {
        section(
            &mut html,
            "Requests a second, through Varnish",
            "The same 14 bytes each way. Each connection sends its next request when it has its answer.",
            &plots::throughput(&report.throughput)?,
        )?;
        section(
            &mut html,
            "Latency, through Varnish",
            "Of the same runs, at full load: p50 (big dot), p99 and p99.9 (small dot).",
            &plots::latency(&report.throughput)?,
        )?;
    }
    if let Some(fetch) = &report.fetch {
        section(
            &mut html,
            "Fetches",
            &format!(
                "A request that fetches 1 KiB from loopback: {} µs over a warm connection (p99 {}), {} µs over a new one (p99 {}), {} times \
                 as much (median of the batches' ratios); one that fetches nothing: {} µs. The same exchanges by a socket, without a \
                 guest: {} µs and {} µs.",
                number(fetch.warm_us),
                number(fetch.warm_p99_us),
                number(fetch.cold_us),
                number(fetch.cold_p99_us),
                number(fetch.cold_over_warm),
                number(fetch.call_us),
                number(fetch.socket_warm_us),
                number(fetch.socket_cold_us)
            ),
            "",
        )?;
    }
    if let Some(storage) = &report.storage {
        let rates = |rates: &[Rate]| {
            let rates = rates.iter().map(|rate| {
                let requests = number(rate.requests_per_second.round());
                format!("{requests} a second, {} at a time", rate.threads)
            });
            rates.collect::<Vec<_>>().join("; ")
        };
        section(
            &mut html,
            "Calls of storage",
            &format!(
                "A request's call of its program's storage takes {} µs, {} times a bare round trip (median of the rounds' ratios), and {}                  <code>KVM_RUN</code>s of the storage's machine. Requests that count once each, in the engine: {}. In \
                 shared memory: {}.",
                number(storage.call_us),
                number(storage.call_over_roundtrip),
                number(storage.exits),
                rates(&storage.rates),
                rates(&storage.shared_rates)
            ),
            "",
        )?;
    }
    for row in &report.synth {
        section(
            &mut html,
            &format!("Answers in vcl_synth, {} connections", row.connections),
            &format!(
                "The same program by <code>kvm.synth()</code>, on the client's thread: {} requests/s (p50 {} µs); by a \
                 fetch: {} ({} µs). Varnish's own body of that length: {} ({} µs). kvm.synth() over the fetch: {} (median \
                 of the rounds' ratios).",
                number(row.synth.round()),
                number(row.synth_p50_us),
                number(row.fetch.round()),
                number(row.fetch_p50_us),
                number(row.synthetic.round()),
                number(row.synthetic_p50_us),
                number(row.over_fetch)
            ),
            "",
        )?;
    }
    tail(&mut html, report)?;
    if let Some(update) = &report.update {
        section(
            &mut html,
            "Live updates",
            &format!(
                "From the end of an upload to the first answer of the new program: {} µs, median of {} (p90 {}), while \
                 nothing else is asked. With {} requests/s by the clock over {} connections, half of what they can do, p99 \
                 is {} µs without updates and {} µs during {} updates, one after the other without a pause: {} times as much \
                 (median of the rounds' ratios). No request was lost.",
                number(update.to_first_answer_us),
                update.updates,
                number(update.to_first_answer_p90_us),
                number(update.rate.round()),
                update.connections,
                number(update.p99_without_us),
                number(update.p99_during_us),
                update.updates_under_load,
                number(update.p99_during_over_without)
            ),
            "",
        )?;
    }
    if !report.compute.is_empty() {
        section(
            &mut html,
            "Computing, over native",
            "The same C source, compiled by the same compiler: time over that of a native process, which is 1.",
            &plots::compute(&report.compute)?,
        )?;
    }
    if let Some(memory) = &report.memory {
        section(
            &mut html,
            "Memory of an idle fork",
            &format!(
                "KiB each, of {} forks of hello with {} MiB of guest memory that have answered a request, all in: the process \
             and the kernel. Together {} MiB. A fork is made in {} µs and has its first response out in {} µs.",
                memory.machines,
                memory.guest_mib,
                number(memory.forks_mib),
                number(memory.fork_us),
                number(memory.first_response_us)
            ),
            &plots::memory(memory)?,
        )?;
    }
    servers(&mut html, report)?;
    for site in &report.sites {
        one_site(&mut html, site)?;
    }
    figures(&mut html, report)?;
    html += "</body></html>\n";
    Ok(html)
}

fn section(html: &mut String, title: &str, about: &str, content: &str) -> Result<()> {
    Ok(writeln!(
        html,
        "<h2>{title}</h2>\n<p class=\"about\">{about}</p>\n{content}"
    )?)
}

fn goals(html: &mut String, report: &Report) -> Result<()> {
    if report.goals.is_empty() {
        html.push_str("<p class=\"about\">Goals are judged in a full run only.</p>\n");
        return Ok(());
    }
    html.push_str("<h2>Goals</h2>\n<table><tr><th>goal</th><th class=\"n\">bound</th><th class=\"n\">reached</th><th></th></tr>\n");
    for goal in &report.goals {
        let (class, word) = if goal.met {
            ("yes", "met")
        } else {
            ("no", "not met")
        };
        writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&goal.what),
            goal.bound,
            shown(goal.reached)
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

fn servers(html: &mut String, report: &Report) -> Result<()> {
    if report.servers.is_empty() {
        return Ok(());
    }
    let mut table = "<table><tr><th></th><th class=\"n\">exits</th><th class=\"n\">pages</th><th class=\"n\">native \
                     µs</th><th class=\"n\">fork µs</th><th class=\"n\">native + exits × round trip</th></tr>\n"
        .to_owned();
    for row in &report.servers {
        writeln!(
            table,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            row.name,
            number(row.exits_per_request),
            number(row.pages_per_request),
            number(row.native_us),
            number(row.fork_us),
            number(row.predicted_us(report.round_trip_us()))
        )?;
    }
    table += "</table>";
    let mut about = "A new connection for each request, to the server itself and to one that forkvm serve runs, with a fork for \
                     each, in turns; medians."
        .to_owned();
    let forking = |row: &ServerRow| row.native_forking_us;
    if let Some(us) = report.servers.iter().find_map(forking) {
        write!(
            about,
            " {} that forks natively for each connection takes {} µs.",
            report.servers[0].name,
            number(us)
        )?;
    }
    section(html, "Unmodified servers", &about, &table)
}

/// A page by all ways: plots, and the table of what was measured.
fn one_site(html: &mut String, site: &Site) -> Result<()> {
    let mut table = "<table><tr><th></th><th class=\"n\">connections</th><th class=\"n\">requests/s</th><th \
                     class=\"n\">average µs</th><th class=\"n\">p50</th><th class=\"n\">p90</th><th \
                     class=\"n\">p99</th></tr>\n"
        .to_owned();
    let mut line = |title: &str, connections: &str, measured: &Measured| -> Result<()> {
        write!(
            table,
            "<tr><td>{title}</td><td class=\"n\">{connections}</td>"
        )?;
        for value in [
            measured.requests_per_second,
            measured.average_us,
            measured.p50_us,
            measured.p90_us,
            measured.p99_us,
        ] {
            write!(table, "<td class=\"n\">{}</td>", number(value.round()))?;
        }
        Ok(writeln!(table, "</tr>")?)
    };
    for load in &site.loads {
        line(
            load.way.title(),
            &load.connections.to_string(),
            &load.measured,
        )?;
    }
    for row in &site.by_clock {
        line(row.way.title(), "by the clock", &row.measured)?;
    }
    table += "</table>";
    let about = format!(
        "A request makes {} exits, and its reset copies {} pages back. The first request of a fork that is made for it takes {} µs; a \
         fork that is in use has {} KiB in the process. Orange: isolated by forks; blue: not isolated; green and grey: isolated by \
         other means. With Varnish, --per-request, CGI and \"connections kept\" clients keep their connections, else each request has \
         its own. By the clock: {} requests/s over 64 connections, half of what this VMOD does with 8, and times from when a request \
         was due.",
        number(site.exits),
        number(site.pages),
        number(site.first_request_us.round()),
        number(site.fork_kib.round()),
        number(site.rate.round()),
    );
    let content = format!(
        "{}\n<p class=\"about\">p50 (big dot), p90 and p99 (small dot):</p>\n{}\n<details><summary>The figures</summary>{table}</details>",
        plots::site_throughput(site)?,
        plots::site_latency(site)?
    );
    section(html, &escape(&site.title), &about, &content)
}

fn tail(html: &mut String, report: &Report) -> Result<()> {
    let Some(tail) = &report.tail else {
        return Ok(());
    };
    let mut table = "<table><tr><th></th><th class=\"n\">requests/s</th><th class=\"n\">p50 µs</th><th class=\"n\">p99 \
                     µs</th><th class=\"n\">p99.9 µs</th></tr>\n"
        .to_owned();
    for latency in &tail.ways {
        writeln!(
            table,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            latency.way.title(),
            number(latency.reached_rate.round()),
            number(latency.p50_us),
            number(latency.p99_us),
            number(latency.p999_us)
        )?;
    }
    table += "</table>";
    let about = format!(
        "{} requests/s, half of what this VMOD can do, sent by the clock over {} connections; latency from the time a \
         request was due. p99.9 is {} times the native backend's (median of the rounds' ratios).",
        number(tail.rate.round()),
        tail.connections,
        number(tail.p999_over_native)
    );
    section(html, "Latency at half load, open loop", &about, &table)
}

fn figures(html: &mut String, report: &Report) -> Result<()> {
    html.push_str("<h2>All figures</h2>\n<table><tr><th></th><th></th><th class=\"n\">round trips</th></tr>\n");
    for (name, value) in &report.figures {
        writeln!(
            html,
            "<tr><td><code>{name}</code></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            shown(*value),
            report.in_round_trips(name, *value)
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

/// A number with three digits that count, or all before the point, in groups.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0
            && (whole.len() - index) % 3 == 0
            && digit.is_ascii_digit()
            && !grouped.ends_with('-')
        {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::number;
    use crate::report::shown;

    #[test]
    fn a_negative_figure_is_noise() {
        assert_eq!(shown(-0.02), "below the noise");
        assert_eq!([0.0, 0.02].map(shown), ["0", "0.020"]);
    }

    #[test]
    fn numbers_are_readable() {
        let shown = [1234567.8, 123.4, 12.34, 1.234, 0.1234, 1.0, 45000.0, -0.5].map(number);
        assert_eq!(
            shown,
            [
                "1,234,568",
                "123",
                "12.3",
                "1.23",
                "0.123",
                "1",
                "45,000",
                "-0.500"
            ]
        );
    }
}
