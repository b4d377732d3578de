//! The rows: each measures one thing and gives its figures.

pub mod call;
pub mod compute;
pub mod fetch;
pub mod idle;
pub mod memory;
pub mod reset;
pub mod servers;
pub mod sites;
pub mod storage;
pub mod synth;
pub mod syscalls;
pub mod tail;
pub mod throughput;
pub mod update;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forkvm::{Answer, Config, Program, Quiet, Request};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measure::{median, quantile, us};
use crate::report::{self, Report, number};
use crate::settings::{Options, Row, read};
use crate::stand::{Stand, Way};

/// Runs the wanted rows and writes the report.
pub fn all(options: &Options) -> Result<()> {
    let start = Instant::now();
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let mut report = Report::new(Machine::describe()?, round_trip(options)?, options);
    say(&format!(
        "KVM_RUN and back takes {} µs here (p99 {}): read the figures in it",
        number(report.round_trip.median_us),
        number(report.round_trip.p99_us)
    ));
    if options.wants(Row::Call) {
        say("a bare round trip, and a request through the engine");
        report.call = Some(call::run(options)?);
    }
    if options.wants(Row::Reset) {
        say("the reset, over the pages a request dirtied");
        report.reset = Some(reset::run(options)?);
    }
    if options.wants(Row::Storage) {
        say("calls of storage");
        report.storage = Some(storage::run(options)?);
    }
    if options.wants(Row::Syscalls) {
        say("system calls a request, counted from outside");
        report.syscalls = syscalls::run(options)?;
    }
    if options.wants(Row::Memory) {
        say("memory of idle forks, and of bare VMs");
        report.memory = Some(memory::run(options)?);
    }
    if options.wants(Row::Fetch) {
        say("fetches, over warm and cold connections");
        report.fetch = Some(fetch::run(options)?);
    }
    if options.wants(Row::Servers) {
        say("unmodified servers, natively and a fork for each connection");
        report.servers = servers::run(options)?;
        report.idle = Some(idle::run(options)?);
        say("pages, by all ways to answer for them");
        report.sites = sites::run(options)?;
    }
    if options.wants(Row::Compute) {
        say("computing: natively, in a VM, as WebAssembly");
        report.compute = compute::run(options)?;
    }
    if [Row::Throughput, Row::Synth, Row::Tail, Row::Update]
        .iter()
        .any(|&row| options.wants(row))
    {
        let stand = Stand::start(options, report.round_trip_us(), ways(options))?;
        if options.wants(Row::Throughput) {
            say("requests through Varnish");
            report.throughput = throughput::run(options, &stand)?;
        }
        if options.wants(Row::Synth) {
            say("answers in vcl_synth");
            report.synth = synth::run(options, &stand)?;
        }
        if options.wants(Row::Tail) {
            say("latency at half load");
            report.tail = Some(tail::run(options, &stand, &report.throughput)?);
        }
        if options.wants(Row::Update) {
            say("live updates");
            report.update = Some(update::run(options, &stand)?);
        }
    }
    report.seconds = start.elapsed().as_secs();
    report.finish();
    report::write(&report, &options.out)?;
    report.print();
    Ok(())
}

/// The ways that the wanted rows go.
fn ways(options: &Options) -> Vec<Way> {
    let mut ways = vec![];
    if options.wants(Row::Throughput) {
        ways.extend(throughput::ways());
    }
    if options.wants(Row::Synth) {
        ways.push(Way::Kvm);
    }
    if options.wants(Row::Tail) {
        ways.extend(tail::WAYS);
    }
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// What this machine takes for a bare `KVM_RUN`, guest in ring 3: the least a request can cost.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct RoundTrip {
    pub median_us: f64,
    pub p99_us: f64,
}

fn round_trip(options: &Options) -> Result<RoundTrip> {
    let program = boot(options, "hello", |_| {})?;
    // The first ones make pages.
    program.round_trips(100)?;
    let times: Vec<f64> = program.round_trips(2000)?.into_iter().map(us).collect();
    Ok(RoundTrip {
        median_us: median(&times),
        p99_us: quantile(&times, 0.99),
    })
}

/// One line of progress.
pub fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// Boots one of the benchmark's programs.
pub fn boot(
    options: &Options,
    name: &str,
    change: impl FnOnce(&mut Config),
) -> Result<Arc<Program>> {
    boot_file(&options.guest(name), change)
}

/// Boots a program.
pub fn boot_file(path: &std::path::Path, change: impl FnOnce(&mut Config)) -> Result<Arc<Program>> {
    let mut config = Config::new("bench");
    config.concurrency = 1;
    config.limits.max_memory = 32 << 20;
    change(&mut config);
    Program::boot(&read(path)?, config, &mut Quiet)
        .with_context(|| format!("booting {}", path.display()))
}

/// A request. The answer holds the fork.
pub fn answer(program: &Arc<Program>, url: &[u8]) -> Result<Answer> {
    let request = Request {
        url,
        ..Default::default()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer = program.answer(&request, deadline, &mut Quiet)?;
    ensure!(answer.status() == 200, "status {}", answer.status());
    Ok(answer)
}
