//! The command `forkvm`: the engine from the terminal, without Varnish.
#![forbid(unsafe_code)]

/// Prints a line.
macro_rules! out {
    ($($arg:tt)*) => { $crate::terminal::print(std::io::stdout().lock(), format_args!($($arg)*)) };
}

/// The same on standard error.
macro_rules! err {
    ($($arg:tt)*) => { $crate::terminal::print(std::io::stderr().lock(), format_args!($($arg)*)) };
}

mod dev;
mod doctor;
mod exec;
mod manual;
mod new;
mod nodes;
mod pack;
mod run;
mod serve;
mod settings;
mod terminal;
mod upload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Runs programs in KVM guests, each request in a copy-on-write fork of the program as it was after main().
#[derive(Debug, Parser)]
#[command(name = "forkvm", version, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new project: a small program, its tests, and a Makefile that builds, tests, serves and uploads it.
    New(new::New),
    /// Send requests to a program and print its answers.
    Run(Box<run::Run>),
    /// Run an unmodified program in a machine of its own, to its exit.
    Exec(Box<exec::Exec>),
    /// Serve connections with an unmodified server, each in a fork of its own that is reset afterwards.
    Serve(Box<serve::Serve>),
    /// Run an unmodified server until it waits for its first connection, and write it to a file from which `serve --snapshot` serves
    /// at once.
    Snapshot(Box<serve::TakeSnapshot>),
    /// Serve a program on loopback without Varnish, and load it anew when its file changes.
    Dev(Box<dev::Dev>),
    /// Give a tenant a new program, on one running Varnish or on many.
    Upload(upload::Upload),
    /// Give a tenant the program before its present one, on one running Varnish or on many.
    Rollback(upload::Rollback),
    /// List a tenant's programs: the one that runs, and those that are kept, on one running Varnish or on many.
    Versions(upload::Versions),
    /// Say what /dev/kvm offers, whether you may use it, and what to do if not.
    Doctor(doctor::Doctor),
    /// Print what makes a shell complete this command's arguments.
    Completions(manual::Completions),
    /// Write the man pages.
    #[command(hide = true)]
    Man(manual::Man),
}

fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::New(new) => new.execute(),
        Command::Run(run) => run.execute(),
        Command::Exec(exec) => exec.execute(),
        // It reads its arguments again, with a file's among them.
        Command::Serve(_) => serve::execute(std::env::args_os().skip(2).collect()),
        Command::Snapshot(take) => take.execute(std::env::args_os().skip(2).collect()),
        Command::Dev(dev) => dev.execute(),
        Command::Upload(upload) => upload.execute(),
        Command::Rollback(rollback) => rollback.execute(),
        Command::Versions(versions) => versions.execute(),
        Command::Doctor(doctor) => doctor.execute(),
        Command::Completions(completions) => completions.execute(CommandLine::command()),
        Command::Man(man) => man.execute(CommandLine::command()),
    }
}
