//! What a call of storage costs a request, and how many requests a second a counter in the storage counts, and one in shared memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forkvm::{Program, Queue, StorageKind};
use serde::{Deserialize, Serialize};

use crate::measure::{median, us};
use crate::rows::{answer, boot, say};
use crate::settings::Options;

/// Calls of a request whose time is compared with one without.
const CALLS: u64 = 100;
/// Threads that ask at a time.
const THREADS: [usize; 2] = [1, 8];

#[derive(Debug, Serialize, Deserialize)]
pub struct Storage {
    /// One call, of a function that counts.
    pub call_us: f64,
    /// Median of the rounds' ratios to a bare round trip.
    pub call_over_roundtrip: f64,
    /// How often the storage's machine comes back from `KVM_RUN` for it.
    pub exits: f64,
    /// Requests a second that count once each, by a call.
    pub rates: Vec<Rate>,
    /// The same in memory that all forks share.
    pub shared_rates: Vec<Rate>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Rate {
    pub threads: usize,
    pub requests_per_second: f64,
}

pub fn run(options: &Options) -> Result<Storage> {
    let program = boot(options, "count", |config| {
        config.storage = StorageKind::Machine;
        config.shared_memory = 1 << 20;
        config.concurrency = THREADS[1];
        config.queue = Queue::new(THREADS[1]);
    })?;
    let (mut calls, mut ratios) = (Vec::new(), Vec::new());
    let (many, none) = (format!("/{CALLS}"), b"/0");
    for round in 0..options.amount(400, 60) {
        let trips: Vec<f64> = program.round_trips(50)?.into_iter().map(us).collect();
        let time = |url: &[u8]| {
            let start = Instant::now();
            answer(&program, url).map(|answer| {
                drop(answer);
                us(start.elapsed())
            })
        };
        let call = (time(many.as_bytes())? - time(none)?) / CALLS as f64;
        // The first ones warm both machines up.
        if round >= 2 {
            calls.push(call);
            ratios.push(call / median(&trips));
        }
    }
    let storage = |program: &Program| program.stats().storage.unwrap_or_default();
    let before = storage(&program);
    answer(&program, many.as_bytes())?;
    let exits = (storage(&program).exits - before.exits) as f64 / CALLS as f64;
    let time = options.time(Duration::from_secs(3), Duration::from_millis(700));
    let rates = |url: &[u8], of: &str| -> Result<Vec<Rate>> {
        let counting = THREADS.into_iter().map(|threads| {
            say(&format!("  counting {of}, {threads} at a time"));
            Ok(Rate {
                threads,
                requests_per_second: rate(&program, url, threads, time)?,
            })
        });
        counting.collect()
    };
    Ok(Storage {
        call_us: median(&calls),
        call_over_roundtrip: median(&ratios),
        exits,
        rates: rates(b"/1", "in the storage")?,
        shared_rates: rates(b"/shared", "in shared memory")?,
    })
}

/// Requests a second that count once each; all of them have to be counted.
fn rate(program: &Arc<Program>, url: &[u8], threads: usize, time: Duration) -> Result<f64> {
    let (over, requests) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = counted(program, url)?;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let asking: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !over.load(Ordering::Relaxed) {
                        answer(program, url)?;
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
        asking.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")))
        })
    })?;
    let took = start.elapsed().as_secs_f64();
    let requests = requests.into_inner();
    let counted = counted(program, url)? - before - 1;
    ensure!(counted == requests, "{counted} counted, {requests} asked");
    Ok(requests as f64 / took)
}

/// What the counter says, counting this.
fn counted(program: &Arc<Program>, url: &[u8]) -> Result<u64> {
    let mut bytes = [0; 8];
    let mut answer = answer(program, url)?;
    ensure!(answer.read_body(&mut bytes) == bytes.len(), "no counter");
    Ok(u64::from_le_bytes(bytes))
}
