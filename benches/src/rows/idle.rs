//! What servers cost that nobody asks: beside the memory that each was frozen with, which it has to have, and for each connection
//! that says nothing.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::rows::memory::{fields, meminfo};
use crate::rows::servers::{KINDS, start_forks};
use crate::settings::Options;

/// Servers at once.
const SERVERS: usize = 20;
/// Connections to one of them.
const CONNECTIONS: usize = 1000;
/// Until they have given up their forks, and the kernel has freed them.
const SETTLE: Duration = Duration::from_secs(4);

/// Memory in KiB.
#[derive(Debug, Serialize, Deserialize)]
pub struct Idle {
    pub servers: usize,
    /// Of each: what it was frozen with.
    pub master_kib: f64,
    /// Of each: its process, and what the kernel has for it.
    pub beside_kib: f64,
    pub connections: usize,
    /// Of each: what the server's process has for it.
    pub connection_kib: f64,
}

pub fn run(options: &Options) -> Result<Idle> {
    let kind = &KINDS[0];
    let before = meminfo()?;
    let servers = (0..SERVERS)
        .map(|_| start_forks(options, kind, &["--max-fork-idle-time=1"]))
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(SETTLE);
    let after = meminfo()?;
    let added = |name: &str| {
        let of = |info: &BTreeMap<String, u64>| info.get(name).map_or(0.0, |&kib| kib as f64);
        of(&after) - of(&before)
    };
    let processes: Vec<f64> = servers
        .iter()
        .map(|server| own(server.pid()?))
        .collect::<Result<_>>()?;
    let kernel = added("VmallocUsed") + added("PageTables") + added("SecPageTables");
    let beside = kernel + processes.iter().sum::<f64>();
    let (first, silent) = servers
        .first()
        .zip(processes.first())
        .context("no server")?;
    let connections = connect(first.address)?;
    std::thread::sleep(Duration::from_secs(1));
    let connected = own(first.pid()?)?;
    drop(connections);
    Ok(Idle {
        servers: SERVERS,
        master_kib: added("Shmem") / SERVERS as f64,
        beside_kib: beside / SERVERS as f64,
        connections: CONNECTIONS,
        connection_kib: (connected - silent) / CONNECTIONS as f64,
    })
}

fn connect(address: std::net::SocketAddr) -> Result<Vec<TcpStream>> {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
    let connections = (0..CONNECTIONS).map(|_| TcpStream::connect(address));
    let connections = connections.collect::<std::io::Result<Vec<_>>>();
    connections.context("its silent connections (is the limit of descriptors too low?)")
}

/// A process's share of its memory, without what it maps of memory files: those are its master.
pub fn own(pid: u32) -> Result<f64> {
    let fields = fields(&format!("/proc/{pid}/smaps_rollup"))?;
    let get = |name: &str| fields.get(name).map(|&kib| kib as f64);
    let own = get("Pss_Anon").zip(get("Pss_File"));
    let (anonymous, of_files) = own.context("a kernel whose smaps_rollup has no Pss_Anon")?;
    ensure!(anonymous > 0.0, "process {pid} has no memory");
    Ok(anonymous + of_files)
}
