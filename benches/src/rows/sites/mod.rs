//! The known comparison: a page by a server of Rust, Deno and Node, natively, in forks, and by what else isolates requests.

mod apps;
mod stand;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::measure::median;
use crate::rows::{idle, say};
use crate::settings::Options;
use crate::stand::{Counts, Load, Measured, Until, counts};
pub use apps::Way;
use apps::{APPS, App};
use stand::{Stand, first_request_us};

/// Clients' connections at once.
pub const CONNECTIONS: [usize; 3] = [1, 8, 64];
/// Connections that find the most the VMOD can do, half of which is the rate of the open loop.
const SATURATING: usize = 8;
/// Ways of the open loop.
const BY_CLOCK: [Way; 2] = [Way::Varnish, Way::Vmod];

/// One page.
#[derive(Debug, Serialize, Deserialize)]
pub struct Site {
    pub name: String,
    pub title: String,
    /// Exits of a request with `forkvm serve`, and pages that its reset copies back.
    pub exits: f64,
    pub pages: f64,
    /// The first request of a new fork, the making of the fork included.
    pub first_request_us: f64,
    /// What a fork that is in use has in the process, beside its master.
    pub fork_kib: f64,
    pub loads: Vec<Loaded>,
    /// Requests a second, sent by the clock.
    pub rate: f64,
    pub by_clock: Vec<ByClock>,
}

/// One way with so many connections: medians of the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Loaded {
    pub way: Way,
    pub connections: usize,
    #[serde(flatten)]
    pub measured: Measured,
}

/// One way by the clock.
#[derive(Debug, Serialize, Deserialize)]
pub struct ByClock {
    pub way: Way,
    #[serde(flatten)]
    pub measured: Measured,
}

impl Site {
    /// What was measured of a way.
    pub fn find(&self, way: Way, connections: usize) -> Option<&Measured> {
        let mut loads = self.loads.iter();
        let found = loads.find(|load| load.way == way && load.connections == connections);
        found.map(|load| &load.measured)
    }
}

/// Time over which the goals let a request have, in round trips for each exit.
const ROUND_TRIPS_AN_EXIT: f64 = 1.5;

impl Site {
    /// A way's median with one connection, over what the goals let it take: that of another way, and one and a half round trips
    /// for each exit.
    pub fn over_allowed(&self, way: Way, other: Way, round_trip_us: f64) -> Option<f64> {
        let of = |way| Some(self.find(way, 1)?.p50_us);
        Some(of(way)? / (of(other)? + ROUND_TRIPS_AN_EXIT * self.exits * round_trip_us))
    }

    /// A way's requests a second over another's, with 8 connections.
    pub fn rate_over(&self, way: Way, other: Way) -> Option<f64> {
        let of = |way| Some(self.find(way, SATURATING)?.requests_per_second);
        Some(of(way)? / of(other)?)
    }
}

pub fn run(options: &Options) -> Result<Vec<Site>> {
    let one = |app: &App| {
        say(&format!("  {}", app.title));
        one(options, app).with_context(|| app.title)
    };
    APPS.iter().map(one).collect()
}

fn one(options: &Options, app: &App) -> Result<Site> {
    let first = first_request_us(options, app, options.amount(5, 1))?;
    let stand = Stand::start(options, app)?;
    let time = options.time(Duration::from_millis(1500), Duration::from_millis(700));
    let load = |way: Way, connections, time, rate| Load {
        connections,
        until: if way.is_slow() {
            Until::Answers(connections * options.amount(3, 1) + 16)
        } else {
            Until::Time(time)
        },
        rate,
        keep_alive: way.keeps(),
    };
    let mut measured: BTreeMap<(usize, Way), Vec<Measured>> = BTreeMap::new();
    // Without a measurement first: caches, connections, forks, compilers.
    for way in app.ways() {
        stand.load(way, load(way, SATURATING, time, None))?;
    }
    for _ in 0..options.amount(3, 1) {
        for connections in CONNECTIONS {
            for way in app.ways() {
                let result = stand.load(way, load(way, connections, time, None))?;
                measured.entry((connections, way)).or_default().push(result);
            }
        }
    }
    let most = measured.get(&(SATURATING, Way::Vmod)).context("no VMOD")?;
    let rate = middle(most).requests_per_second / 2.0;
    let mut by_clock: BTreeMap<Way, Vec<Measured>> = BTreeMap::new();
    let longer = options.time(Duration::from_secs(3), time);
    for _ in 0..options.amount(3, 1) {
        for way in BY_CLOCK {
            let result = stand.load(way, load(way, 64, longer, Some(rate)))?;
            by_clock.entry(way).or_default().push(result);
        }
    }
    let Counts { exits, pages } = counts(&stand.access_log(Way::Reset)?, 0)?;
    let one = idle::own(stand.pid(Way::Reset)?)?;
    let two = idle::own(stand.pid(Way::ResetAfter)?)?;
    let loads = measured.iter().map(|(&(connections, way), rounds)| Loaded {
        way,
        connections,
        measured: middle(rounds),
    });
    let by_clock = by_clock.iter().map(|(&way, rounds)| ByClock {
        way,
        measured: middle(rounds),
    });
    Ok(Site {
        name: app.name.to_owned(),
        title: app.title.to_owned(),
        exits,
        pages,
        first_request_us: median(&first),
        fork_kib: two - one,
        loads: loads.collect(),
        rate,
        by_clock: by_clock.collect(),
    })
}

/// The medians of several measurements.
fn middle(rounds: &[Measured]) -> Measured {
    let of = |get: fn(&Measured) -> f64| median(&rounds.iter().map(get).collect::<Vec<_>>());
    Measured {
        requests_per_second: of(|m| m.requests_per_second),
        average_us: of(|m| m.average_us),
        p50_us: of(|m| m.p50_us),
        p90_us: of(|m| m.p90_us),
        p99_us: of(|m| m.p99_us),
        p999_us: of(|m| m.p999_us),
    }
}
