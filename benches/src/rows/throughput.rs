//! Requests a second and latencies through Varnish, the ways in turns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::measure::median;
use crate::rows::say;
use crate::settings::Options;
use crate::stand::{Load, Measured, Stand, Until, Way};

pub const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// The ways that are compared: all, of those that were built.
pub fn ways() -> impl Iterator<Item = Way> {
    Way::ALL
        .into_iter()
        .filter(|&way| way != Way::Wasm || cfg!(feature = "wasm"))
}

/// One way at one number of connections: medians of the rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Throughput {
    pub way: Way,
    pub connections: usize,
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub rounds: Vec<f64>,
}

pub fn run(options: &Options, stand: &Stand) -> Result<Vec<Throughput>> {
    let time = options.time(Duration::from_millis(2500), Duration::from_millis(700));
    let mut measured: BTreeMap<(usize, Way), Vec<Measured>> = BTreeMap::new();
    // Without a measurement first: caches, connections, forks.
    for &way in stand.ways() {
        stand.load(
            way,
            Load {
                connections: 64,
                until: Until::Time(Duration::from_millis(300)),
                rate: None,
                keep_alive: true,
            },
        )?;
    }
    let rounds = options.amount(5, 2);
    for round in 1..=rounds {
        say(&format!("  round {round} of {rounds}"));
        for connections in CONNECTIONS {
            for &way in stand.ways() {
                let result = stand.load(
                    way,
                    Load {
                        connections,
                        until: Until::Time(time),
                        rate: None,
                        keep_alive: true,
                    },
                )?;
                measured.entry((connections, way)).or_default().push(result);
            }
        }
    }
    Ok(measured
        .into_iter()
        .map(|((connections, way), rounds)| summary(way, connections, &rounds))
        .collect())
}

fn summary(way: Way, connections: usize, rounds: &[Measured]) -> Throughput {
    let of = |get: fn(&Measured) -> f64| median(&rounds.iter().map(get).collect::<Vec<_>>());
    Throughput {
        way,
        connections,
        requests_per_second: of(|m| m.requests_per_second),
        p50_us: of(|m| m.p50_us),
        p99_us: of(|m| m.p99_us),
        p999_us: of(|m| m.p999_us),
        rounds: rounds.iter().map(|m| m.requests_per_second).collect(),
    }
}

/// The row of a way.
pub fn find(rows: &[Throughput], way: Way, connections: usize) -> Option<&Throughput> {
    rows.iter()
        .find(|row| row.way == way && row.connections == connections)
}
