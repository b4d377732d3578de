//! Answers in vcl_synth, on the client's thread: a program's (kvm.synth()), the same by a fetch, and Varnish's own.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::measure::median;
use crate::rows::say;
use crate::settings::Options;
use crate::stand::{Load, SYNTH, SYNTHETIC, Stand, Until, Way};

/// At so many connections.
pub const CONNECTIONS: [usize; 2] = [1, 8];

/// Medians of the rounds, in which the three take turns: requests a second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Synth {
    pub connections: usize,
    /// By kvm.synth().
    pub synth: f64,
    /// By a fetch of the same program.
    pub fetch: f64,
    /// Varnish's own body of the same length.
    pub synthetic: f64,
    /// Median of the rounds' ratios of the first two.
    pub over_fetch: f64,
    pub synth_p50_us: f64,
    pub fetch_p50_us: f64,
    pub synthetic_p50_us: f64,
}

pub fn run(options: &Options, stand: &Stand) -> Result<Vec<Synth>> {
    let time = options.time(Duration::from_secs(3), Duration::from_millis(700));
    let paths = [SYNTH, Way::Kvm.name(), SYNTHETIC];
    let load = |path: &str, connections, time| {
        let load = Load {
            connections,
            until: Until::Time(time),
            rate: None,
            keep_alive: true,
        };
        stand.load_path(path, load)
    };
    for path in paths {
        load(path, CONNECTIONS[1], Duration::from_millis(300))?;
    }
    let rounds = options.amount(5, 2);
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let mut measured = Vec::new();
        for round in 1..=rounds {
            say(&format!(
                "  {connections} connections, round {round} of {rounds}"
            ));
            measured.push([
                load(paths[0], connections, time)?,
                load(paths[1], connections, time)?,
                load(paths[2], connections, time)?,
            ]);
        }
        let rates = |which: usize| measured.iter().map(move |m| m[which].requests_per_second);
        let p50 =
            |which: usize| median(&measured.iter().map(|m| m[which].p50_us).collect::<Vec<_>>());
        let ratios: Vec<f64> = rates(0)
            .zip(rates(1))
            .map(|(synth, fetch)| synth / fetch)
            .collect();
        let rate = |which| median(&rates(which).collect::<Vec<_>>());
        rows.push(Synth {
            connections,
            synth: rate(0),
            fetch: rate(1),
            synthetic: rate(2),
            over_fetch: median(&ratios),
            synth_p50_us: p50(0),
            fetch_p50_us: p50(1),
            synthetic_p50_us: p50(2),
        });
    }
    Ok(rows)
}
