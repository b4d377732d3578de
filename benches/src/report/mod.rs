//! What was measured, as JSON for programs, a page for people and a table for the terminal.

mod figures;
mod goals;
mod page;
mod plots;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::rows::call::Call;
use crate::rows::compute::Compute;
use crate::rows::memory::Memory;
use crate::rows::reset::Reset;
use crate::rows::syscalls::Syscalls;
use crate::rows::tail::Tail;
use crate::rows::throughput::Throughput;
use crate::rows::update::Update;
use goals::Goal;

/// report.json
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    /// A short run, whose figures say less.
    pub quick: bool,
    pub seconds: u64,
    /// All figures by name.
    pub figures: BTreeMap<String, f64>,
    pub goals: Vec<Goal>,
    pub call: Option<Call>,
    pub reset: Option<Reset>,
    pub syscalls: Option<Syscalls>,
    pub memory: Option<Memory>,
    pub compute: Vec<Compute>,
    pub throughput: Vec<Throughput>,
    pub tail: Option<Tail>,
    pub update: Option<Update>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(machine: Machine, quick: bool) -> Self {
        Self {
            machine,
            quick,
            seconds: 0,
            figures: BTreeMap::new(),
            goals: Vec::new(),
            call: None,
            reset: None,
            syscalls: None,
            memory: None,
            compute: Vec::new(),
            throughput: Vec::new(),
            tail: None,
            update: None,
        }
    }

    /// Works out figures and goals from the rows.
    pub fn finish(&mut self) {
        self.figures = figures::of(self);
        self.goals = goals::of(&self.figures);
    }

    /// The table for the terminal.
    pub fn print(&self) {
        println!("{:<34} {:>12}   goal", "figure", "");
        let goals: BTreeMap<&str, &Goal> = self
            .goals
            .iter()
            .map(|goal| (goal.figure.as_str(), goal))
            .collect();
        for (name, value) in &self.figures {
            let goal = goals
                .get(name.as_str())
                .map_or_else(String::new, |goal| goal.short());
            println!("{name:<34} {:>12}   {goal}", page::number(*value));
        }
    }
}

/// Writes report.json and report.html.
pub fn write(report: &Report, out: &Path) -> Result<()> {
    let json = out.join("report.json");
    std::fs::write(&json, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| json.display().to_string())?;
    let html = out.join("report.html");
    std::fs::write(&html, page::of(report)?).with_context(|| html.display().to_string())?;
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
