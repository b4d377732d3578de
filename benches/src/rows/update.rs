//! Live updates through Varnish: how soon the new program answers, and what the updates cost the requests meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::measure::{median, quantile, us};
use crate::settings::{Options, read};
use crate::stand::{Connection, Load, Measured, Stand, UPDATED, Until};

/// Connections of the load.
const CONNECTIONS: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
pub struct Update {
    /// Updates without other load.
    pub updates: usize,
    /// From the upload's last byte to the end of the first answer of the new program.
    pub to_first_answer_us: f64,
    pub to_first_answer_p90_us: f64,
    /// Requests a second, by the clock: half of what these connections can do.
    pub rate: f64,
    pub connections: usize,
    pub p99_without_us: f64,
    pub p99_during_us: f64,
    /// Median of the rounds' ratios.
    pub p99_during_over_without: f64,
    /// Updates while the load ran, all rounds.
    pub updates_under_load: usize,
}

pub fn run(options: &Options, stand: &Stand) -> Result<Update> {
    let mut uploads = Uploads::new(options, stand)?;
    let mut times = Vec::new();
    for _ in 0..options.amount(50, 10) {
        times.push(us(uploads.watched()?));
    }

    let time = options.time(Duration::from_secs(2), Duration::from_millis(700));
    let load = |rate| Load {
        connections: CONNECTIONS,
        until: Until::Time(time),
        rate,
        keep_alive: true,
    };
    let rate = stand.load_path(UPDATED, load(None))?.requests_per_second / 2.0;
    let mut rounds: Vec<[Measured; 2]> = Vec::new();
    let mut updates_under_load = 0;
    for _ in 0..options.amount(3, 2) {
        let without = stand.load_path(UPDATED, load(Some(rate)))?;
        let over = AtomicBool::new(false);
        let during = thread::scope(|scope| {
            let updater = scope.spawn(|| {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    uploads.plain()?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
            let during = stand.load_path(UPDATED, load(Some(rate)));
            over.store(true, Ordering::Relaxed);
            let updates = updater
                .join()
                .map_err(|_| anyhow!("the updater panicked"))?;
            updates_under_load += updates.context("an update under load")?;
            during
        })?;
        rounds.push([without, during]);
    }
    let p99 =
        |which: usize| -> Vec<f64> { rounds.iter().map(|round| round[which].p99_us).collect() };
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|[without, during]| during.p99_us / without.p99_us)
        .collect();
    Ok(Update {
        updates: times.len(),
        to_first_answer_us: median(&times),
        to_first_answer_p90_us: quantile(&times, 0.9),
        rate,
        connections: CONNECTIONS,
        p99_without_us: median(&p99(0)),
        p99_during_us: median(&p99(1)),
        p99_during_over_without: median(&ratios),
        updates_under_load,
    })
}

/// One update after the other, each of another program: hello, and what follows its end, which does not matter to it.
struct Uploads {
    elf: Vec<u8>,
    count: u64,
    uploader: Connection,
    visitor: Connection,
}

impl Uploads {
    fn new(options: &Options, stand: &Stand) -> Result<Self> {
        Ok(Self {
            elf: read(&options.guest("hello"))?,
            count: 0,
            uploader: stand.connection()?,
            visitor: stand.connection()?,
        })
    }

    fn next(&mut self) -> Vec<u8> {
        self.count += 1;
        [&self.elf[..], &self.count.to_le_bytes()].concat()
    }

    fn plain(&mut self) -> Result<()> {
        let elf = self.next();
        self.uploader.post(UPDATED, &elf)?;
        self.expect_done()
    }

    fn expect_done(&mut self) -> Result<()> {
        let status = self.uploader.response()?.status;
        ensure!(status == 201, "status {status} for update {}", self.count);
        Ok(())
    }

    /// Somebody asks all the time, until the new program answers.
    fn watched(&mut self) -> Result<Duration> {
        let elf = self.next();
        let before = self.version()?;
        let sent = self.uploader.post(UPDATED, &elf)?;
        while self.version()? == before {}
        let time = sent.elapsed();
        self.expect_done()?;
        Ok(time)
    }

    fn version(&mut self) -> Result<String> {
        let head = self.visitor.get(UPDATED)?;
        ensure!(head.status == 200, "status {}", head.status);
        head.version.context("no X-Program-Version")
    }
}
