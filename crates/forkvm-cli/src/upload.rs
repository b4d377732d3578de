//! `forkvm upload`: a new program for a tenant, on one Varnish or on many.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sha2::{Digest, Sha256};

use crate::nodes::{Body, EXIT_STATUS, Key, Nodes, Outcome, Post, Question};

/// Arguments of `forkvm upload`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Upload {
    /// The program: a static Linux executable. It is checked here, but not run.
    program: PathBuf,
    #[command(flatten)]
    nodes: Nodes,
}

impl Upload {
    /// Uploads it. The exit status is in [`EXIT_STATUS`].
    pub fn execute(&self) -> ExitCode {
        let read = || Ok((self.program()?, self.nodes.key()?));
        let (program, key) = match read() {
            Ok(read) => read,
            Err::<_, String>(what) => {
                eprintln!("forkvm: {what}");
                return ExitCode::FAILURE;
            }
        };
        let version = version(&program);
        self.nodes
            .each(|url| self.send(url, &program, &version, key.as_ref()))
    }

    fn program(&self) -> Result<Vec<u8>, String> {
        let path = self.program.display();
        let program = std::fs::read(&self.program).map_err(|error| format!("{path}: {error}"))?;
        forkvm::check_elf(&program).map_err(|error| format!("{path}: {error}"))?;
        Ok(program)
    }

    fn send(&self, url: &str, program: &[u8], version: &str, key: Option<&Key>) -> Outcome {
        let post = Post {
            tenant: &self.nodes.tenant,
            key,
            headers: &[
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", &program.len().to_string()),
                ("X-Sha256", version),
            ],
            timeout: self.nodes.timeout,
        };
        let answer = post.send(url, &mut Body::new(url, program));
        let question = Question {
            version: Some(version),
            secret: key.map(|key| key.header().as_bytes()),
            timeout: self.nodes.timeout,
        };
        Outcome::of(answer, &question)
    }
}

/// What an update's answer calls a program.
fn version(program: &[u8]) -> String {
    Sha256::digest(program)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
