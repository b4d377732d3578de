//! What `forkvm serve` says of itself.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::process::Server;
use crate::measure::median;

/// Waits until one says in its log where it listens.
pub fn listening(server: &mut Server, log: &Path) -> Result<SocketAddr> {
    server.wait(|| {
        let said = std::fs::read_to_string(log).ok()?;
        let line = said.lines().find(|line| line.contains("listening on "))?;
        line.rsplit(' ').next()?.parse().ok()
    })
}

/// What a request cost, by the access log: medians.
pub struct Counts {
    pub exits: f64,
    pub pages: f64,
}

/// A line of the access log.
#[derive(Deserialize)]
struct Line {
    exits: u64,
    pages: u64,
}

/// Counts an access log's requests, but for the first ones.
pub fn counts(log: &str, first: usize) -> Result<Counts> {
    let lines: Vec<Line> = log
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("its access log")?;
    let later = &lines[lines.len().min(first)..];
    ensure!(!later.is_empty(), "its access log has too few lines");
    let of = |get: fn(&Line) -> u64| {
        let values: Vec<f64> = later.iter().map(|line| get(line) as f64).collect();
        median(&values)
    };
    Ok(Counts {
        exits: of(|line| line.exits),
        pages: of(|line| line.pages),
    })
}
