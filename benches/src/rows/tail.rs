//! The slowest requests at half load: requests sent by the clock at half of what this VMOD can do, and the same rate at
//! the native backend.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::measure::median;
use crate::rows::throughput::{Throughput, find};
use crate::settings::Options;
use crate::stand::{Load, Measured, Stand, Until, Way};

/// Connections that find the most this VMOD can do.
const SATURATING: usize = 8;
/// Connections that carry the rate: more than are needed, so that none is waited for.
const CONNECTIONS: usize = 64;
/// The ways that are compared.
pub const WAYS: [Way; 3] = [Way::Native, Way::Kvm, Way::Fastcgi];

#[derive(Debug, Serialize, Deserialize)]
pub struct Tail {
    pub rate: f64,
    pub connections: usize,
    pub ways: Vec<Latency>,
    /// Median of the rounds' ratios of p99.9, this VMOD over the native backend.
    pub p999_over_native: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Latency {
    pub way: Way,
    pub reached_rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

pub fn run(options: &Options, stand: &Stand, known: &[Throughput]) -> Result<Tail> {
    let most = match find(known, Way::Kvm, SATURATING) {
        Some(row) => row.requests_per_second,
        None => {
            let load = Load {
                connections: SATURATING,
                until: Until::Time(Duration::from_secs(2)),
                rate: None,
                keep_alive: true,
            };
            stand.load(Way::Kvm, load)?.requests_per_second
        }
    };
    let rate = most / 2.0;
    let time = options.time(Duration::from_secs(6), Duration::from_secs(2));
    let mut rounds: Vec<[Measured; 3]> = Vec::new();
    for _ in 0..options.amount(5, 2) {
        let load = Load {
            connections: CONNECTIONS,
            until: Until::Time(time),
            rate: Some(rate),
            keep_alive: true,
        };
        rounds.push([
            stand.load(WAYS[0], load)?,
            stand.load(WAYS[1], load)?,
            stand.load(WAYS[2], load)?,
        ]);
    }
    let of = |way: usize, get: fn(&Measured) -> f64| {
        median(
            &rounds
                .iter()
                .map(|round| get(&round[way]))
                .collect::<Vec<_>>(),
        )
    };
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|[native, kvm, _]| kvm.p999_us / native.p999_us)
        .collect();
    let latency = |(index, &way): (usize, &Way)| Latency {
        way,
        reached_rate: of(index, |m| m.requests_per_second),
        p50_us: of(index, |m| m.p50_us),
        p99_us: of(index, |m| m.p99_us),
        p999_us: of(index, |m| m.p999_us),
    };
    Ok(Tail {
        rate,
        connections: CONNECTIONS,
        ways: WAYS.iter().enumerate().map(latency).collect(),
        p999_over_native: median(&ratios),
    })
}
