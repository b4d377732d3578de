//! `forkvm snapshot`, and `forkvm serve` of what that wrote.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use forkvm::{Command, Server, Snapshot};

use super::config::{self, Effective};
use super::output::Output;
use super::settings::Serve;

/// Most files that are named which have changed.
const MOST_NAMED: usize = 8;

/// Arguments of `forkvm snapshot`.
#[derive(Debug, Args)]
#[command(after_help = "\
What `serve` is told beside, as addresses and limits, may be told here as well, and counts there. The file has all that the program has
in memory, its secrets among it, and is read by the same build of forkvm, on the same kind of processor and KVM.")]
pub struct TakeSnapshot {
    /// The file, which is put in place of what has this name when it is whole.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    serve: Serve,
}

impl TakeSnapshot {
    /// Takes it. These are the arguments after `snapshot`.
    pub fn execute(self, arguments: Vec<OsString>) -> ExitCode {
        match self.take(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(what) => {
                err!("forkvm: {what}");
                ExitCode::FAILURE
            }
        }
    }

    fn take(&self, arguments: Vec<OsString>) -> Result<(), String> {
        if self.serve.snapshot.is_some() {
            return Err("--snapshot is for `forkvm serve`; name the program".into());
        }
        let Effective { settings, .. } = config::effective(arguments)?;
        let output = Output {
            strace: settings.strace,
        };
        let server = boot(&settings, output)?;
        let start = Instant::now();
        let len = server
            .save(&self.output, "")
            .map_err(|error| error.to_string())?;
        err!(
            "forkvm: {} has {:.1} MiB; the boot took {:.1?}, to write it {:.1?}",
            self.output.display(),
            len as f64 / f64::from(1 << 20),
            server.boot_time(),
            start.elapsed()
        );
        Ok(())
    }
}

/// Runs the program until it waits for a connection.
pub fn boot(settings: &Serve, mut output: Output) -> Result<Arc<Server>, String> {
    let command = settings.allow.command(&settings.program)?;
    let sandbox = settings.allow.sandbox(&command)?;
    Server::boot(command, &sandbox, settings.limits(), &mut output)
        .map_err(|error| error.to_string())
}

/// Loads what was frozen then.
pub fn load(path: &Path, settings: &Serve) -> Result<Arc<Server>, String> {
    let named = |what: String| format!("{}: {what}", path.display());
    let snapshot = Snapshot::open(path).map_err(|error| named(error.to_string()))?;
    let command = snapshot.command().clone();
    check_program(&command, &settings.program).map_err(named)?;
    let sandbox = settings.allow.sandbox(&command)?;
    let loaded = snapshot.load(&sandbox, settings.limits());
    let server = loaded.map_err(|error| named(error.to_string()))?;
    match server.changed_files() {
        Some(changed) => {
            for file in changed.iter().take(MOST_NAMED) {
                err!(
                    "forkvm: {} has changed since the program read it, before the snapshot was taken",
                    file.display()
                );
            }
        }
        None => err!(
            "forkvm: the program had read too many files to know whether they have changed since the snapshot was taken"
        ),
    }
    Ok(server)
}

/// Fails where a program is named that is not the snapshot's.
fn check_program(command: &Command, program: &[OsString]) -> Result<(), String> {
    let same = program.len() == command.arguments.len()
        && program
            .iter()
            .zip(&command.arguments)
            .all(|(word, known)| word.as_bytes() == known);
    if program.is_empty() || same {
        return Ok(());
    }
    let known = command.arguments.join(&b' ');
    Err(format!(
        "it is of another program, {}: name that one, or none",
        String::from_utf8_lossy(&known)
    ))
}
