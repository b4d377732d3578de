//! `forkvm exec`: an unmodified program in a machine of its own, to its exit.

use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use forkvm::{Command, Ended, Host, Sandbox, Stream};

use crate::settings::parse_seconds;

/// Where a dynamic linker and libraries are, and what every C library looks at: readable unless told otherwise.
const SYSTEM: [&str; 15] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/usr/share/locale",
    "/usr/share/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ssl",
    "/etc/host.conf",
];

/// Exit status where the program could not be run at all, as shells have it.
const NOT_RUN: u8 = 126;
/// Added to a signal's number for the exit status, as shells do.
const SIGNALLED: u8 = 128;

/// What a program may have, for every way to run one.
#[derive(Debug, Args)]
pub struct Allow {
    /// Allow everything there is to allow.
    #[arg(short = 'A', long)]
    allow_all: bool,
    /// Files and folders the program may read, comma-separated; without a value all. Libraries are readable anyway.
    #[arg(long, value_name = "PATH,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "/")]
    allow_read: Vec<PathBuf>,
    /// Folders where the program may change files, comma-separated; without a value all. Changes are kept in memory and
    /// forgotten: they never reach the host. In /tmp and /dev/shm it may do so anyway.
    #[arg(long, value_name = "PATH,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "/")]
    allow_write: Vec<PathBuf>,
    /// Most memory for changed files, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_file_memory: u64,
    /// An entry of the program's environment; may be given several times. A name alone takes the value from ours.
    #[arg(long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// The working directory the program sees.
    #[arg(long, value_name = "PATH")]
    cwd: Option<PathBuf>,
    /// Guest memory, in MiB. What is only reserved costs nothing.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    max_memory: u64,
    /// Have the program at the same addresses every time.
    #[arg(long)]
    no_random_addresses: bool,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM [ARGUMENT]…"
    )]
    program: Vec<std::ffi::OsString>,
}

impl Allow {
    /// The program to run, found as a shell finds it.
    fn command(&self) -> Result<Command, String> {
        let name = self.program.first().ok_or("no program is named")?;
        let path = find_program(name)?;
        let mut environment: Vec<Vec<u8>> = vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()];
        for entry in &self.env {
            if entry.contains('=') {
                environment.push(entry.clone().into_bytes());
            } else if let Some(value) = std::env::var_os(entry) {
                environment.push([entry.as_bytes(), b"=", value.as_bytes()].concat());
            }
        }
        Ok(Command {
            path: path.into_os_string().into_vec(),
            arguments: self
                .program
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .collect(),
            environment,
        })
    }

    fn sandbox(&self, command: &Command) -> Result<Sandbox, String> {
        let mut allowed_paths: Vec<PathBuf> = if self.allow_all {
            vec!["/".into()]
        } else {
            self.allow_read.clone()
        };
        let mut writable_paths = Vec::new();
        for path in &self.allow_write {
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            writable_paths.push(path.clone());
            allowed_paths.push(path);
        }
        if self.allow_all {
            writable_paths.push("/".into());
        }
        allowed_paths.push(std::ffi::OsStr::from_bytes(&command.path).into());
        allowed_paths.extend(
            SYSTEM
                .iter()
                .map(PathBuf::from)
                .filter(|path| path.exists()),
        );
        let cwd = match &self.cwd {
            Some(cwd) => cwd.clone(),
            None => std::env::current_dir().map_err(|error| error.to_string())?,
        };
        Ok(Sandbox {
            allowed_paths,
            writable_paths,
            overlay_bytes: self.max_file_memory.saturating_mul(1 << 20),
            current_working_directory: cwd.display().to_string(),
            max_memory: self.max_memory.saturating_mul(1 << 20),
            random_addresses: !self.no_random_addresses,
            ..Default::default()
        })
    }
}

/// A name without a slash is looked for in PATH.
fn find_program(name: &std::ffi::OsStr) -> Result<PathBuf, String> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{}: no such program", name.display()))
}

/// Arguments of `forkvm exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Longest time the program may run, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    max_time: Option<Duration>,
    #[command(flatten)]
    allow: Allow,
}

/// The program's output is ours.
struct Terminal;

impl Host for Terminal {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        // A reader that has left is the program's business, which goes on here.
        let _ = match stream {
            Stream::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            _ => io::stderr().lock().write_all(bytes),
        };
    }
}

impl Exec {
    /// Runs the program. The exit status is its own; 128 and the signal's number if one ended it; 126 if it could not be
    /// run.
    pub fn execute(&self) -> ExitCode {
        match self.run() {
            Ok(Ended::Exited(status)) => ExitCode::from((status & 0xff) as u8),
            Ok(Ended::Signalled(signal)) => ExitCode::from(SIGNALLED.wrapping_add(signal as u8)),
            Err(what) => {
                err!("forkvm: {what}");
                ExitCode::from(NOT_RUN)
            }
        }
    }

    fn run(&self) -> Result<Ended, String> {
        let command = self.allow.command()?;
        let mut sandbox = self.allow.sandbox(&command)?;
        if let Some(time) = self.max_time {
            sandbox.max_time = time;
        }
        forkvm::exec(command, &sandbox, &mut Terminal).map_err(|error| error.to_string())
    }
}
