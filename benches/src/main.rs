//! The benchmark: what a request costs, beside what it could cost at least and what other ways cost.
//!
//! `make bench` calls it. It runs the rows one after another, each comparing interleaved runs, and writes
//! `report.json` and `report.html`. docs/performance.md explains the figures.

mod machine;
mod measure;
mod report;
mod rows;
mod settings;
mod stand;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use settings::{Arguments, Command};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Run(options) => rows::all(&options),
        Command::Report { out } => report::pages(&out),
        Command::Requests { program, count } => rows::syscalls::requests(&program, count),
        Command::Memory { of, program, count } => rows::memory::hold(of, &program, count),
    }
}
