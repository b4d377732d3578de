//! `forkvm serve`: an unmodified server, each connection in a fork of its own.

mod address;
mod admission;
mod config;
mod descriptors;
mod doors;
mod ending;
mod forks;
mod generation;
mod inside;
mod ledger;
mod link;
mod observed;
mod operate;
mod output;
mod per_request;
mod queue;
mod request_body;
mod seats;
mod settings;
mod snapshot;
mod stream;
mod turns;
mod upgraded;
mod watched;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use self::config::Effective;
pub use self::settings::Serve;
pub use self::snapshot::TakeSnapshot;

/// Serves with these arguments, those after `serve`, until SIGTERM or SIGINT.
pub fn execute(arguments: Vec<OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            err!("forkvm: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<(), String> {
    let effective = config::effective(arguments.clone())?;
    if effective.settings.print_config {
        let text = effective.as_toml()?;
        let printed = std::io::stdout().write_all(text.as_bytes());
        return printed.map_err(|error| error.to_string());
    }
    let Effective { settings, .. } = effective;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let served = runtime.block_on(operate::operate(arguments, settings));
    // A boot that goes on is nobody's any more.
    runtime.shutdown_background();
    served
}
