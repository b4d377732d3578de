//! `forkvm upload`, `forkvm rollback` and `forkvm versions`: a new program for a tenant, the one before, or a list, on one
//! Varnish or on many.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use forkvm::ElfError;
use sha2::{Digest, Sha256};

use crate::nodes::{EXIT_STATUS, Nodes, Order};
use crate::pack;

/// Arguments of `forkvm upload`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Upload {
    /// The program: a static Linux executable, which is checked here, but not run. Of a server any executable, a script, or
    /// its application's folder, or an archive of it (tar, tar.gz, zip): a folder is packed here.
    program: PathBuf,
    /// The tenant is an unmodified server, which may be dynamically linked.
    #[arg(long)]
    server: bool,
    #[command(flatten)]
    nodes: Nodes,
}

/// Arguments of `forkvm rollback`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Rollback {
    #[command(flatten)]
    nodes: Nodes,
}

/// Arguments of `forkvm versions`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Versions {
    #[command(flatten)]
    nodes: Nodes,
}

impl Versions {
    /// Asks for them. The exit status is in [`EXIT_STATUS`].
    pub fn execute(&self) -> ExitCode {
        self.nodes.ask(&Order::Versions)
    }
}

impl Upload {
    /// Uploads it. The exit status is in [`EXIT_STATUS`].
    pub fn execute(&self) -> ExitCode {
        match self.program() {
            Ok(program) => self.nodes.ask(&Order::Update {
                program: &program,
                version: &version(&program),
            }),
            Err(what) => {
                err!("forkvm: {}: {what}", self.program.display());
                ExitCode::FAILURE
            }
        }
    }

    fn program(&self) -> Result<Vec<u8>, String> {
        if self.program.is_dir() {
            return pack::pack(&self.program).map_err(|error| error.to_string());
        }
        let program = std::fs::read(&self.program).map_err(|error| error.to_string())?;
        if pack::is_archive(&program) || program.starts_with(b"#!") {
            return Ok(program);
        }
        match forkvm::check_elf(&program) {
            Ok(()) => Ok(program),
            Err(ElfError::Dynamic | ElfError::DynamicRust) if self.server => Ok(program),
            Err(error @ (ElfError::Dynamic | ElfError::DynamicRust)) => Err(format!(
                "{error}; only a tenant that is a server may be (--server)"
            )),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Rollback {
    /// Rolls back. The exit status is in [`EXIT_STATUS`].
    pub fn execute(&self) -> ExitCode {
        self.nodes.ask(&Order::Rollback)
    }
}

/// What an update's answer calls a program: its SHA-256, in hexadecimal digits.
fn version(program: &[u8]) -> String {
    Sha256::digest(program)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
