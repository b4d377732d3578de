//! What a request costs in the engine, over what a round trip to a guest costs at least.

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::measure::{median, median_us, quantile, us};
use crate::rows::{answer, boot};
use crate::settings::Options;

/// Requests in a batch: few, so that a machine whose speed changes changes it for both alike.
const BATCH: usize = 50;

#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// A bare `KVM_RUN`, guest in ring 3.
    pub roundtrip_us: f64,
    pub roundtrip_p99_us: f64,
    /// A request that writes nothing, from the call to the end of its reset.
    pub call_us: f64,
    pub call_p99_us: f64,
    /// The reset of it, host's part.
    pub reset_us: f64,
    /// Median of the batches' ratios.
    pub call_over_roundtrip: f64,
}

pub fn run(options: &Options) -> Result<Call> {
    let program = boot(options, "hello", |_| {})?;
    let (mut trips, mut calls, mut resets, mut ratios) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for batch in 0..options.amount(400, 60) {
        let round_trips = program.round_trips(BATCH)?;
        let mut times = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let start = Instant::now();
            let answer = answer(&program, b"/")?;
            let answered = start.elapsed();
            drop(answer);
            let done = start.elapsed();
            times.push(done);
            resets.push(us(done - answered));
        }
        // The first ones warm the fork up.
        if batch < 2 {
            continue;
        }
        ratios.push(median_us(&times) / median_us(&round_trips));
        trips.extend(round_trips.into_iter().map(us));
        calls.extend(times.into_iter().map(us));
    }
    Ok(Call {
        roundtrip_us: median(&trips),
        roundtrip_p99_us: quantile(&trips, 0.99),
        call_us: median(&calls),
        call_p99_us: quantile(&calls, 0.99),
        reset_us: median(&resets),
        call_over_roundtrip: median(&ratios),
    })
}
