//! A program's surroundings and limits on the command line, and where its output goes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use forkvm::{Config, Fetcher, Host, NetRule, Reach, StorageKind, Stream};
use forkvm_fetch::{Client, OwnSlot};

/// The settings of a program, as kvm.tenant() has them.
#[derive(Debug, Args)]
pub struct Settings {
    /// The tenant's name: argv[0] of the program [default: the file's name].
    #[arg(long)]
    pub name: Option<String>,
    /// An argument of main(); may be given several times.
    #[arg(long = "main-argument", value_name = "ARG", allow_hyphen_values = true)]
    pub main_arguments: Vec<String>,
    /// An entry of the program's environment; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// A file or folder that the program may read; may be given several times.
    #[arg(long = "allow", value_name = "PATH")]
    pub allowed_paths: Vec<PathBuf>,
    /// The working directory the program sees.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub cwd: String,
    /// Longest time main() may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "16", value_parser = parse_seconds)]
    pub max_boot_time: Duration,
    /// Longest time a request may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = parse_seconds)]
    pub max_request_time: Duration,
    /// Guest memory, in MiB, at most 64 GiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = |text: &str| parse_mebibytes(text, 1))]
    pub max_memory: u64,
    /// Memory a request may newly dirty, in MiB, at most 64 GiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = |text: &str| parse_mebibytes(text, 1))]
    pub max_request_memory: u64,
    /// Longest body of a response, in MiB, at most 64 GiB. A longer one is the program's failure.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = |text: &str| parse_mebibytes(text, 0))]
    pub max_response_size: u64,
    /// Memory that the program's forks and its storage share, in MiB, at most 1,024.
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1024))]
    pub shared_memory: u64,
    /// Has requests find what earlier ones have left in their fork: they are not isolated from each other.
    #[arg(long)]
    pub no_ephemeral: bool,
    /// Gives the program storage: a second machine of it that keeps its state, or a fork of it that does.
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "machine")]
    pub storage: Option<Storage>,
    /// Longest time of a call of the storage, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub max_storage_time: Duration,
    /// Where the program may have something fetched from, comma-separated: names, `*.NAME` for all beneath one, addresses or ranges of
    /// them (10.0.0.0/8), each with `:PORT` for one port only; without a value all that is public. What is not is reached
    /// only by an address that is named.
    #[arg(long, value_name = "HOST[:PORT],…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "*")]
    pub allow_net: Vec<NetRule>,
    /// Longest body of what it has fetched, and of what it sends for that, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = |text: &str| parse_mebibytes(text, 0))]
    pub max_fetch_size: u64,
    /// A file in PEM with certificates of authorities that are good for its fetches by https besides the host's.
    #[arg(long, value_name = "FILE")]
    pub fetch_ca_file: Option<PathBuf>,
    /// Let it say of a fetch that the name in the certificate does not matter.
    #[arg(long)]
    pub fetch_unverified: bool,
}

/// Kinds of storage.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Storage {
    /// Booted for that.
    Machine,
    /// Of the program as it is frozen.
    Fork,
}

impl Settings {
    /// Who fetches for the program; by way of `own` it asks whoever serves it.
    pub fn client(&self, own: OwnSlot) -> Result<Arc<dyn Fetcher>, String> {
        let client = Client::new(forkvm_fetch::Settings {
            reach: Reach::new(self.allow_net.clone()),
            max_size: self.max_fetch_size.saturating_mul(1 << 20),
            ca_file: self.fetch_ca_file.clone(),
            unverified: self.fetch_unverified,
            own,
            ..forkvm_fetch::Settings::default()
        });
        Ok(Arc::new(
            client.map_err(|what| format!("--fetch-ca-file: {what}"))?,
        ))
    }

    /// What is said of a program that can't be read.
    pub fn unreadable(&self, program: &Path, error: &std::io::Error) -> String {
        let is_absent = error.kind() == std::io::ErrorKind::NotFound;
        let has_value = self.storage.is_some() || !self.allow_net.is_empty();
        // What was meant as one may stand in the program's place.
        let hint = match is_absent && has_value {
            true => {
                ". Values of --allow-net and --storage are written with =, as in --allow-net=HOST"
            }
            false => "",
        };
        format!("{}: {error}{hint}", program.display())
    }

    /// As the engine takes them, for a program that is called so unless `--name` says otherwise.
    pub fn config(&self, name: String) -> Config {
        let mut config = Config::new(self.name.clone().unwrap_or(name));
        config.main_arguments.clone_from(&self.main_arguments);
        config.environment.clone_from(&self.env);
        config.allowed_paths = self.allowed_paths.iter().map(Into::into).collect();
        config.current_working_directory.clone_from(&self.cwd);
        config.limits.max_boot_time = self.max_boot_time;
        config.limits.max_request_time = self.max_request_time;
        config.limits.max_memory = self.max_memory.saturating_mul(1 << 20);
        config.limits.max_request_memory = self.max_request_memory.saturating_mul(1 << 20);
        config.limits.max_storage_time = self.max_storage_time;
        config.shared_memory = self.shared_memory.saturating_mul(1 << 20);
        config.ephemeral = !self.no_ephemeral;
        config.storage = match self.storage {
            None => StorageKind::None,
            Some(Storage::Machine) => StorageKind::Machine,
            Some(Storage::Fork) => StorageKind::Fork,
        };
        config.limits.max_response_size = self.max_response_size.saturating_mul(1 << 20);
        config
    }
}

/// What a program is called after.
pub fn file_name(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A time on the command line.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("a time has to be more than 0 seconds".into()),
    }
}

/// So many MiB on the command line, at most 64 GiB.
pub fn parse_mebibytes(text: &str, least: u64) -> Result<u64, String> {
    const MOST: u64 = 64 << 10;
    match text.parse() {
        Ok(size) if (least..=MOST).contains(&size) => Ok(size),
        Ok(_) => Err(format!("not in {least}..={MOST}")),
        Err(_) => Err("a size is a whole number of MiB, without a unit".into()),
    }
}

/// A guest's output goes to our standard error.
pub struct Terminal<'a> {
    /// The program's file.
    pub program: &'a Path,
    /// The name it goes by.
    pub tenant: &'a str,
    /// Who fetches for it.
    pub fetcher: Arc<dyn Fetcher>,
}

impl Host for Terminal<'_> {
    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        Some(self.fetcher.clone())
    }

    fn note(&mut self, line: &str) {
        // A command to be copied names the file.
        let program = self.program.display().to_string();
        let line = line.replace("PROGRAM", &program);
        err!("forkvm: tenant {}: {line}", self.tenant);
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        let mut stderr = io::stderr().lock();
        // Nobody is left to tell if standard error is gone.
        let _ = stderr.write_all(bytes);
        if stream == Stream::Log && !bytes.ends_with(b"\n") {
            let _ = stderr.write_all(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn the_defaults_are_the_engines() {
        let flags = Flags::parse_from(["forkvm"]);
        assert_eq!(flags.settings.config("a".into()), Config::new("a"));
    }
}
