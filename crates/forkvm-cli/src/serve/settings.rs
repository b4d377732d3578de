//! The settings of `forkvm serve`. Each is a flag, and a key of `forkvm.toml` by the same name.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use forkvm::ServerLimits;

use super::address::Address;
use crate::exec::Allow;
use crate::settings::parse_seconds;

/// Arguments of `forkvm serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Signals: SIGTERM and SIGINT let connections under way come to their end (--max-stop-time); a second one ends at once. SIGHUP reads
the --config again, boots the program anew, and puts it in the old one's place when it is ready; it also opens the access log anew.
Under systemd: readiness, reloads and the end are told ($NOTIFY_SOCKET), and sockets are taken over ($LISTEN_FDS).")]
pub struct Serve {
    /// Where to listen: ADDRESS:PORT, PORT, or unix:PATH; may be given several times. Unless given, where the program does.
    #[arg(short, long, value_name = "ADDRESS")]
    pub listen: Vec<Address>,
    /// How many connections are served at once, each in a fork of its own. Unless given, twice the processors.
    #[arg(short = 't', long, value_name = "N")]
    pub forks: Option<NonZeroUsize>,
    /// Speak HTTP with clients, whose connections stay open, and serve each request in a fork of its own.
    #[arg(long)]
    pub per_request: bool,
    /// When no connection has come for so many seconds, the forks are given up; the next ones have them made anew.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    pub max_fork_idle_time: Duration,
    /// Have one machine serve all connections, one at a time, and keep what they change: for comparison.
    #[arg(long, conflicts_with = "forks")]
    pub no_reset: bool,
    /// How many connections, or with --per-request requests, may wait for a fork, each for at most --max-request-time. More
    /// are closed at once, with --per-request answered 503.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub backlog: usize,
    /// Most connections at once, those among them that have sent nothing yet. Where there are more, the one that is silent for
    /// longest is closed.
    #[arg(long, value_name = "N", default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_connections: u32,
    /// Longest time until the program waits for a connection, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    pub max_boot_time: Duration,
    /// Longest time until the program answers, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub max_request_time: Duration,
    /// Longest silence of a client, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    pub max_idle_time: Duration,
    /// Longest time of a connection, or with --per-request of a request, from its first bytes to its end, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "600")]
    pub max_time: Duration,
    /// The same for a WebSocket, or what else a request goes over to, with --per-request.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "3600")]
    pub max_upgraded_time: Duration,
    /// How long connections under way may go on after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub max_stop_time: Duration,
    /// Memory that a connection may change, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub max_request_memory: u64,
    /// How many requests to make before the freeze, so that no later one is the first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u32,
    /// Their URLs, in turn; may be given several times.
    #[arg(long, value_name = "URL", default_value = "/")]
    pub warmup_url: Vec<String>,
    /// Their method.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub warmup_method: String,
    /// A header of theirs; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    pub warmup_header: Vec<String>,
    /// How many seconds the program goes on before the freeze, after those requests: for what it does some time after its
    /// start, which each connection would see it do otherwise.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub warmup_time: Option<Duration>,
    /// Have connections to the outside that are open when the program waits for its first client found reset in each fork, as
    /// pools of connections can take it, instead of ending with an error.
    #[arg(long)]
    pub drop_connections: bool,
    /// Append a line of JSON for each connection, or with --per-request for each request, to this file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Answer Prometheus's questions at this address: ADDRESS:PORT, PORT, or unix:PATH, path /metrics.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<Address>,
    /// Print every call of the program on standard error, with its result.
    #[arg(long)]
    pub strace: bool,
    /// Read settings from this file, in TOML: keys are the flags' names, and `program` is a list. Flags that are given count instead
    /// of the file's. Without this no file is read.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings that are in force, as --config reads them, and end.
    #[arg(long)]
    pub print_config: bool,
    /// Serve from this file, which `forkvm snapshot` has written with the same flags, without a boot. The program need not be
    /// named then.
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    #[command(flatten)]
    pub allow: Allow,
    /// The program and its arguments.
    #[arg(
        required_unless_present_any = ["config", "snapshot"],
        trailing_var_arg = true,
        value_name = "PROGRAM [ARGUMENT]…"
    )]
    pub program: Vec<OsString>,
}

impl Serve {
    /// What the engine is told.
    pub fn limits(&self) -> ServerLimits {
        ServerLimits {
            max_boot_time: self.max_boot_time,
            max_request_time: self.max_request_time,
            max_idle_time: self.max_idle_time,
            max_request_memory: self.max_request_memory.saturating_mul(1 << 20),
            warm_up: self.warm_up(),
            warm_up_time: self.warmup_time.unwrap_or_default(),
            drop_connections: self.drop_connections,
            ..Default::default()
        }
    }

    /// What clients send before the freeze.
    pub fn warm_up(&self) -> Vec<Vec<u8>> {
        let urls = self.warmup_url.iter().cycle();
        let count = usize::try_from(self.warmup).unwrap_or(usize::MAX);
        urls.take(count)
            .map(|url| {
                let mut text = format!("{} {url} HTTP/1.1\r\n", self.warmup_method);
                for header in &self.warmup_header {
                    text += &format!("{header}\r\n");
                }
                text += "Host: localhost\r\nConnection: close\r\n\r\n";
                text.into_bytes()
            })
            .collect()
    }

    /// How many forks there are to be.
    pub fn fork_count(&self) -> usize {
        match self.forks {
            _ if self.no_reset => 1,
            Some(count) => count.get(),
            None => {
                std::thread::available_parallelism().map_or(2, |processors| 2 * processors.get())
            }
        }
    }
}
