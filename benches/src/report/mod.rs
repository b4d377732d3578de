//! What was measured, as JSON for programs, a page for people and a table for the terminal.

mod figures;
mod goals;
mod page;
mod plots;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::rows::RoundTrip;
use crate::rows::call::Call;
use crate::rows::compute::Compute;
use crate::rows::fetch::Fetch;
use crate::rows::idle::Idle;
use crate::rows::memory::Memory;
use crate::rows::reset::Reset;
use crate::rows::servers::ServerRow;
use crate::rows::sites::Site;
use crate::rows::storage::Storage;
use crate::rows::synth::Synth;
use crate::rows::syscalls::Syscalls;
use crate::rows::tail::Tail;
use crate::rows::throughput::Throughput;
use crate::rows::update::Update;
use crate::settings::{Options, Row};
use goals::Goal;
pub use page::number;

/// report.json
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    /// A short run, whose figures say less.
    pub quick: bool,
    /// Some of the rows only.
    #[serde(default)]
    pub partial: bool,
    /// Measured before all rows.
    #[serde(default)]
    pub round_trip: RoundTrip,
    pub seconds: u64,
    /// All figures by name.
    pub figures: BTreeMap<String, f64>,
    pub goals: Vec<Goal>,
    pub call: Option<Call>,
    pub reset: Option<Reset>,
    pub syscalls: Option<Syscalls>,
    pub memory: Option<Memory>,
    #[serde(default)]
    pub fetch: Option<Fetch>,
    #[serde(default)]
    pub servers: Vec<ServerRow>,
    #[serde(default)]
    pub idle: Option<Idle>,
    #[serde(default)]
    pub sites: Vec<Site>,
    pub compute: Vec<Compute>,
    pub throughput: Vec<Throughput>,
    #[serde(default)]
    pub storage: Option<Storage>,
    #[serde(default)]
    pub synth: Vec<Synth>,
    pub tail: Option<Tail>,
    pub update: Option<Update>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(machine: Machine, round_trip: RoundTrip, options: &Options) -> Self {
        Self {
            machine,
            quick: options.quick,
            partial: Row::value_variants().iter().any(|&row| !options.wants(row)),
            round_trip,
            ..Self::default()
        }
    }

    /// A bare `KVM_RUN`: as it was in turns with requests, or else at the start.
    pub fn round_trip_us(&self) -> f64 {
        let in_turns = self.call.as_ref().map(|call| call.roundtrip_us);
        in_turns.unwrap_or(self.round_trip.median_us)
    }

    /// Whether the goals are judged: a short run's figures say too little, and a single row's machine was another.
    pub fn is_full(&self) -> bool {
        !self.quick && !self.partial
    }

    /// Works out figures, and in a full run goals, from the rows.
    pub fn finish(&mut self) {
        self.figures = figures::of(self);
        self.goals = if self.is_full() {
            goals::of(&self.figures)
        } else {
            Vec::new()
        };
    }

    /// A time in round trips, empty for other figures.
    fn in_round_trips(&self, name: &str, value: f64) -> String {
        let round_trip = self.round_trip_us();
        if name.contains("_us") && value >= 0.0 && round_trip > 0.0 {
            number(value / round_trip)
        } else {
            String::new()
        }
    }

    /// The table for the terminal.
    pub fn print(&self) {
        println!(
            "{:<34} {:>15} {:>12}   {}",
            "figure",
            "",
            "round trips",
            if self.is_full() { "goal" } else { "" }
        );
        let goals: BTreeMap<&str, &Goal> = self
            .goals
            .iter()
            .map(|goal| (goal.figure.as_str(), goal))
            .collect();
        for (name, value) in &self.figures {
            let goal = goals
                .get(name.as_str())
                .map_or_else(String::new, |goal| goal.short());
            println!(
                "{name:<34} {:>15} {:>12}   {goal}",
                shown(*value),
                self.in_round_trips(name, *value)
            );
        }
        if !self.is_full() {
            println!("goals are judged in a full run only");
        }
    }
}

/// A figure for readers. None can be negative but by the noise in what it is the difference of.
fn shown(value: f64) -> String {
    if value < 0.0 {
        "below the noise".to_owned()
    } else {
        number(value)
    }
}

/// Writes report.json, report.html, and the plot of each page's requests a second for the documents.
pub fn write(report: &Report, out: &Path) -> Result<()> {
    let json = out.join("report.json");
    std::fs::write(&json, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| json.display().to_string())?;
    let html = out.join("report.html");
    std::fs::write(&html, page::of(report)?).with_context(|| html.display().to_string())?;
    for site in &report.sites {
        let plot = out.join(format!("{}.svg", site.name));
        std::fs::write(&plot, plots::site_throughput(site)?)
            .with_context(|| plot.display().to_string())?;
    }
    println!("report: {} and {}", json.display(), html.display());
    Ok(())
}

/// Writes report.html of a report.json that is there.
pub fn pages(out: &Path) -> Result<()> {
    let json = out.join("report.json");
    let text = std::fs::read_to_string(&json).with_context(|| json.display().to_string())?;
    let mut report: Report =
        serde_json::from_str(&text).with_context(|| json.display().to_string())?;
    report.finish();
    write(&report, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_in_a_full_run_only() {
        for (quick, partial) in [(false, false), (true, false), (false, true)] {
            let mut report = Report {
                quick,
                partial,
                call: Some(Call {
                    roundtrip_us: 20.0,
                    roundtrip_p99_us: 30.0,
                    call_us: 22.0,
                    call_p99_us: 33.0,
                    reset_us: 0.1,
                    call_over_roundtrip: 1.1,
                }),
                ..Report::default()
            };
            report.finish();
            assert_eq!(report.figures["call_over_roundtrip"], 1.1);
            assert_eq!(report.goals.len(), usize::from(!quick && !partial));
            assert_eq!(report.in_round_trips("call_us", 22.0), "1.10");
            assert_eq!(report.in_round_trips("call_over_roundtrip", 1.1), "");
        }
    }
}
