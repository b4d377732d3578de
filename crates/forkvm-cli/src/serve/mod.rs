//! `forkvm serve`: an unmodified server, each connection in a fork of its own.

mod doors;
mod forks;
mod output;
mod per_request;
mod stream;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use forkvm::{Server, ServerLimits};

use self::doors::{Address, Doors};
use self::forks::Forks;
use self::output::Output;
use self::per_request::Way;
use crate::exec::Allow;
use crate::settings::parse_seconds;

/// Arguments of `forkvm serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen: ADDRESS:PORT, PORT, or unix:PATH; may be given several times. Unless given, where the program does.
    #[arg(short, long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// How many connections are served at once, each in a fork of its own. Unless given, twice the processors.
    #[arg(short = 't', long, value_name = "N")]
    forks: Option<NonZeroUsize>,
    /// Speak HTTP with clients, whose connections stay open, and serve each request in a fork of its own.
    #[arg(long)]
    per_request: bool,
    /// Have one machine serve all connections, one at a time, and keep what they change: for comparison.
    #[arg(long, conflicts_with = "forks")]
    no_reset: bool,
    /// How many connections may wait for a fork. More are closed at once.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    backlog: usize,
    /// Longest time until the program waits for a connection, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    max_boot_time: Duration,
    /// Longest time until the program answers, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    max_request_time: Duration,
    /// Longest silence of a client, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    max_idle_time: Duration,
    /// Memory that a connection may change, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    max_request_memory: u64,
    /// How many requests to make before the freeze, so that no later one is the first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: u32,
    /// Their URLs, in turn; may be given several times.
    #[arg(long, value_name = "URL", default_value = "/")]
    warmup_url: Vec<String>,
    /// Their method.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    warmup_method: String,
    /// A header of theirs; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    warmup_header: Vec<String>,
    /// Print every call of the program on standard error, with its result.
    #[arg(long)]
    strace: bool,
    #[command(flatten)]
    allow: Allow,
}

impl Serve {
    /// Serves until SIGTERM or SIGINT.
    pub fn execute(&self) -> ExitCode {
        match self.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(what) => {
                err!("forkvm: {what}");
                ExitCode::FAILURE
            }
        }
    }

    fn run(&self) -> Result<(), String> {
        let command = self.allow.command()?;
        let sandbox = self.allow.sandbox(&command)?;
        let limits = ServerLimits {
            max_boot_time: self.max_boot_time,
            max_request_time: self.max_request_time,
            max_idle_time: self.max_idle_time,
            max_request_memory: self.max_request_memory.saturating_mul(1 << 20),
            warm_up: self.warm_up(),
            ..Default::default()
        };
        let mut output = Output {
            strace: self.strace,
        };
        let server = Server::boot(command, &sandbox, limits, &mut output)
            .map_err(|error| error.to_string())?;
        let addresses = if self.listen.is_empty() {
            let own = server.address().ok_or(
                "the program listens on no address of the network; say where to: --listen",
            )?;
            vec![Address::Tcp(own.to_string())]
        } else {
            self.listen.clone()
        };
        let doors = Doors::open(&addresses)?;
        let count = match self.forks {
            _ if self.no_reset => 1,
            Some(count) => count.get(),
            None => default_forks(),
        };
        let forks = Forks::start(&server, count, self.backlog, !self.no_reset, output)?;
        err!(
            "forkvm: ready after {:.1?}, {count} forks, listening on {}",
            server.boot_time(),
            doors.names()
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let way = Arc::new(Way {
            forks: forks.clone(),
            max_request_time: self.max_request_time,
            max_idle_time: self.max_idle_time,
        });
        runtime.block_on(doors.admit(&way, self.per_request))?;
        drop(way);
        drop(runtime);
        forks.finish(self.max_request_time);
        Ok(())
    }
}

impl Serve {
    fn warm_up(&self) -> Vec<Vec<u8>> {
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
}

fn default_forks() -> usize {
    std::thread::available_parallelism().map_or(2, |processors| 2 * processors.get())
}
