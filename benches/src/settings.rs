//! What the benchmark is called with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures what a request costs.
#[derive(Debug, Parser)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the rows and writes the report
    Run(Options),
    /// Writes the page of an earlier run's report.json anew
    Report {
        /// The folder of report.json
        #[arg(long)]
        out: PathBuf,
    },
    /// Answers requests and does nothing else: for a tracer that counts system calls
    #[command(hide = true)]
    Requests { program: PathBuf, count: usize },
    /// Holds machines and says what memory they cost: each in a process of its own
    #[command(hide = true)]
    Memory {
        of: Held,
        program: PathBuf,
        count: usize,
    },
}

/// What a process of the memory row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Held {
    /// Forks that have answered a request and were reset.
    Forks,
    /// Forks that ran a warm-up request when they were made.
    Warm,
    /// Bare VMs of the same size.
    Empty,
    /// The same, after one instruction.
    Run,
}

#[derive(Debug, Args)]
pub struct Options {
    /// The benchmark's programs
    #[arg(long)]
    pub guests: PathBuf,
    /// The folder of libvmod_kvm.so and libvmod_bench.so
    #[arg(long)]
    pub lib: PathBuf,
    /// Where the report goes
    #[arg(long)]
    pub out: PathBuf,
    /// Folder with the programs oha, nginx and fcgiwrap
    #[arg(long)]
    pub tools: PathBuf,
    /// Where scripts/servers-setup.sh has put its servers
    #[arg(long)]
    pub servers: PathBuf,
    /// Less of everything: figures of about a minute and a half
    #[arg(long)]
    pub quick: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Row>,
}

/// The rows, in the order they run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    Call,
    Reset,
    Storage,
    Syscalls,
    Memory,
    Fetch,
    Servers,
    Compute,
    Throughput,
    Synth,
    Tail,
    Update,
}

impl Options {
    /// Whether a row is wanted.
    pub fn wants(&self, row: Row) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }

    /// One of the benchmark's programs.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name)
    }

    /// One of the tools.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// `full`, or less of it in a quick run.
    pub fn amount(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The same for a time.
    pub fn time(&self, full: Duration, quick: Duration) -> Duration {
        if self.quick { quick } else { full }
    }
}

/// Reads a program with the path in the error.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use anyhow::Context as _;
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
