//! `forkvm dev`: a program served on loopback, without Varnish, and loaded anew when its file changes.

mod load;
mod serve;
mod streamed;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use forkvm::{Config, Queue};
use forkvm_fetch::{Own, OwnSlot};
use tokio::net::TcpListener;

use crate::settings::{Settings, parse_seconds};
use load::Loaded;
use serve::Given;

/// Arguments of `forkvm dev`.
#[derive(Debug, Args)]
#[command(after_help = "\
The client gets the statuses that it would get through Varnish: 500 if the program fails, 503 if it has not started or all
its forks are busy, 413 for a body that is too long, 408 for one that comes too slowly. Why is said here. Nothing is cached. A program that does not start is
told about, and the one before stays.")]
pub struct Dev {
    /// The port on 127.0.0.1; 0 takes any that is free.
    #[arg(short, long, default_value_t = 8000)]
    port: u16,
    /// Most requests at once, each in a fork of its own.
    #[arg(long, value_name = "FORKS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
    /// Most requests that wait for a fork; with 0 none waits [default: 4 for each fork, at least 16].
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u16).range(..=10_000))]
    max_queue: Option<u16>,
    /// Longest time for a request's body to come, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    max_body_time: Duration,
    /// The free argument that VCL's kvm.backend() can give.
    #[arg(long, default_value = "")]
    arg: String,
    #[command(flatten)]
    settings: Settings,
    /// The program: a static Linux executable.
    program: PathBuf,
}

impl Dev {
    /// Serves until it is interrupted. 1 for what it can't begin with.
    pub fn execute(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(serve::MOST_CONNECTIONS + 1)
            .build();
        let served = match runtime {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => Err(error.to_string()),
        };
        match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(what) => {
                err!("forkvm: {what}");
                ExitCode::FAILURE
            }
        }
    }

    async fn serve(self) -> Result<(), String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| {
            format!("cannot listen on {address}: {error}. Take another port: --port 8001")
        })?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        if let Err(error) = std::fs::metadata(&self.program) {
            return Err(self.settings.unreadable(&self.program, &error));
        }
        // A machine that can run nothing should say so before anybody asks for a page.
        forkvm::probe().map_err(|error| error.to_string())?;
        let mut config = self
            .settings
            .config(crate::settings::file_name(&self.program));
        config.concurrency = self.concurrency.into();
        config.queue = Queue::new(match self.max_queue {
            Some(most) => most.into(),
            None => Config::default_queue(config.concurrency),
        });
        let own = OwnSlot::default();
        let asked = Own::new(None, &format!("http://{address}"), config.concurrency);
        own.set(asked.map_err(|bad| bad.to_string())?);
        let client = self.settings.client(own)?;
        let loaded = Arc::new(Loaded::new(self.program, config, client));
        loaded.clone().keep_fresh().await;
        out!("forkvm: http://{address}/");
        let given = Given {
            arg: self.arg.into(),
            max_body_time: self.max_body_time,
        };
        serve::serve(listener, loaded, given).await;
        Ok(())
    }
}
