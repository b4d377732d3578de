//! Unmodified servers by `forkvm serve`, a fork for each connection, beside the same ones run natively: over the same kind of socket,
//! with a new connection for each request.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::measure::{median, us};
use crate::settings::Options;
use crate::stand::{Connection, Server, counts, listening};

/// A server of docs/programs.md, by its command there. Each listens at [`PORT`].
pub struct Kind {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    options: &'static [&'static str],
    /// Beside [`WARM_UP`].
    warm_up: &'static [&'static str],
    /// An argument with which it forks natively for each connection: what isolation costs without a virtual machine.
    forking: Option<&'static str>,
}

const PORT: u16 = 8000;
/// The first is the smallest.
pub const KINDS: [Kind; 6] = [
    Kind {
        name: "rust_std",
        program: "std-server",
        arguments: &[],
        options: &[],
        warm_up: &[],
        forking: Some("fork"),
    },
    Kind {
        name: "axum",
        program: "axum-server",
        arguments: &[],
        options: &[],
        warm_up: &[],
        forking: None,
    },
    Kind {
        name: "go",
        program: "go-server",
        arguments: &[],
        options: &[],
        warm_up: &[],
        forking: None,
    },
    Kind {
        name: "node",
        program: "node",
        arguments: &["node.js"],
        options: &["--allow-read=."],
        warm_up: &[],
        forking: None,
    },
    Kind {
        name: "deno",
        program: "deno",
        arguments: &["run", "--allow-net", "deno.js"],
        options: &[
            "--allow-read=.",
            "--env",
            "DENO_DIR=/tmp/deno",
            "--env",
            "DENO_NO_UPDATE_CHECK=1",
        ],
        // Of what it does once, some time after its start.
        warm_up: &["--warmup-time=1"],
        forking: None,
    },
    Kind {
        name: "cpython",
        program: "/usr/bin/python3",
        arguments: &["handler.py"],
        options: &["--allow-read=."],
        warm_up: &[],
        forking: None,
    },
];

/// Requests in a batch, native and in forks in turns.
const BATCH: usize = 20;
/// Requests before the freeze: after five no page-table entry is left to be made by most, but a garbage collection that is due at
/// the freeze is due in every fork.
const WARM_UP: &str = "--warmup=50";

/// One server's figures. Times are medians of requests on new connections.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerRow {
    pub name: String,
    pub exits_per_request: f64,
    pub pages_per_request: f64,
    pub native_us: f64,
    pub fork_us: f64,
    /// The native server forking for each connection, where it can.
    pub native_forking_us: Option<f64>,
    /// Median of the batches' ratios.
    pub fork_over_native: f64,
    /// From its start to its first answer.
    pub native_boot_ms: f64,
    /// The same, without the warm-up.
    pub boot_ms: f64,
    /// The same from a snapshot that was taken after the warm-up: the median of some starts. Older reports have none.
    pub snapshot_load_ms: Option<f64>,
}

impl ServerRow {
    /// What a request would take that costs what it does natively, and a bare round trip for each exit.
    pub fn predicted_us(&self, round_trip_us: f64) -> f64 {
        self.native_us + self.exits_per_request * round_trip_us
    }
}

pub fn run(options: &Options) -> Result<Vec<ServerRow>> {
    let one = |kind| one(options, kind).with_context(|| format!("the server {}", kind.name));
    KINDS.iter().map(one).collect()
}

fn one(options: &Options, kind: &Kind) -> Result<ServerRow> {
    let cold = start_forks(options, kind, &[])?;
    let boot_ms = cold.ready.as_secs_f64() * 1e3;
    drop(cold);
    let snapshot_load_ms = Some(from_snapshot(options, kind)?);
    let forks = start_forks(options, kind, &[&[WARM_UP], kind.warm_up].concat())?;
    // It has no socket of the host's at its own port, which so is free.
    let native = start_native(options, kind, kind.arguments)?;
    let (mut times, mut native_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for batch in 0..options.amount(12, 4) {
        let in_forks = requests(forks.address)?;
        let natively = requests(native.address)?;
        // The first ones warm the forks up.
        if batch > 0 {
            ratios.push(median(&in_forks) / median(&natively));
            times.extend(in_forks);
            native_times.extend(natively);
        }
    }
    let native_boot_ms = native.ready.as_secs_f64() * 1e3;
    drop(native);
    let native_forking_us = kind
        .forking
        .map(|argument| forking(options, kind, argument))
        .transpose()?;
    let log = forks.end()?;
    let counts = counts(&log, BATCH)?;
    Ok(ServerRow {
        name: kind.name.to_owned(),
        exits_per_request: counts.exits,
        pages_per_request: counts.pages,
        native_us: median(&native_times),
        fork_us: median(&times),
        fork_over_native: median(&ratios),
        native_forking_us,
        native_boot_ms,
        boot_ms,
        snapshot_load_ms,
    })
}

/// From the start of `forkvm serve --snapshot` to its first answer.
fn from_snapshot(options: &Options, kind: &Kind) -> Result<f64> {
    let file = options.out.join(format!("{}.snapshot", kind.name));
    let taken = std::process::Command::new(options.lib.join("forkvm"))
        .arg("snapshot")
        .arg("-o")
        .arg(&file)
        .arg(WARM_UP)
        .args(kind.warm_up)
        .args(kind.options)
        .arg("--")
        .arg(kind.program)
        .args(kind.arguments)
        .current_dir(sources())
        .env("PATH", search_path(options))
        .output()
        .context("forkvm snapshot")?;
    let said = String::from_utf8_lossy(&taken.stderr);
    ensure!(taken.status.success(), "forkvm snapshot: {said}");
    let from = format!("--snapshot={}", file.display());
    let mut times = Vec::new();
    for _ in 0..options.amount(7, 3) {
        let forks = start_forks(options, kind, &[&from])?;
        times.push(forks.ready.as_secs_f64() * 1e3);
    }
    std::fs::remove_file(&file)?;
    Ok(median(&times))
}

/// A request's time, natively, with a process for each.
fn forking(options: &Options, kind: &Kind, argument: &str) -> Result<f64> {
    let server = start_native(options, kind, &[argument])?;
    requests(server.address)?;
    let mut times = Vec::new();
    for _ in 0..options.amount(5, 2) {
        times.extend(requests(server.address)?);
    }
    Ok(median(&times))
}

/// A server that answers.
pub struct Running {
    server: Option<Server>,
    pub address: SocketAddr,
    /// From its start to its first answer.
    ready: Duration,
    log: PathBuf,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("it has ended")?.pid())
    }

    /// Ends it. Gives its access log.
    fn end(mut self) -> Result<String> {
        drop(self.server.take());
        std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }
}

/// The folder of the servers' sources, which they are run in.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/servers")
}

/// Where programs are found: those that servers-setup.sh has put aside come first.
pub fn search_path(options: &Options) -> String {
    let before = std::env::var("PATH").unwrap_or_default();
    format!("{}/bin:{before}", options.servers.display())
}

/// Starts `forkvm serve` with one fork, and these options besides.
pub fn start_forks(options: &Options, kind: &Kind, more: &[&str]) -> Result<Running> {
    let log = options.out.join(format!("{}.access.log", kind.name));
    let _ = std::fs::remove_file(&log);
    let start = Instant::now();
    let command = options.lib.join("forkvm");
    let mut server = Server::start("forkvm-serve", &command, &options.out, Stdio::null(), |c| {
        c.args(["serve", "--listen=127.0.0.1:0", "-t1"])
            .arg(format!("--access-log={}", log.display()))
            .args(more)
            .args(kind.options)
            .arg("--")
            .arg(kind.program)
            .args(kind.arguments)
            .current_dir(sources())
            .env("PATH", search_path(options));
    })?;
    let path = options.out.join("forkvm-serve.log");
    let address = listening(&mut server, &path)?;

    answered(address)?;
    Ok(Running {
        server: Some(server),
        address,
        ready: start.elapsed(),
        log,
    })
}

fn start_native(options: &Options, kind: &Kind, arguments: &[&str]) -> Result<Running> {
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    ensure!(
        TcpStream::connect(address).is_err(),
        "something listens at {address} already, where the native server is to"
    );
    let start = Instant::now();
    let program = Path::new(kind.program);
    let mut server = Server::start(kind.name, program, &options.out, Stdio::null(), |c| {
        c.args(arguments)
            .current_dir(sources())
            .env("PATH", search_path(options));
    })?;
    server.wait(|| answered(address).ok())?;
    Ok(Running {
        server: Some(server),
        address,
        ready: start.elapsed(),
        log: PathBuf::new(),
    })
}

/// A batch of requests, each on a connection of its own: from the connect to the end of the answer.
fn requests(address: SocketAddr) -> Result<Vec<f64>> {
    (0..BATCH)
        .map(|_| {
            let start = Instant::now();
            answered(address)?;
            Ok(us(start.elapsed()))
        })
        .collect()
}

fn answered(address: SocketAddr) -> Result<()> {
    Connection::whole(address, "/").map(drop)
}
