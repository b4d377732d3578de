//! `forkvm upload`: a new program for a tenant, on one Varnish or on many.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sha2::{Digest, Sha256};
use ureq::http::HeaderValue;

use crate::nodes::{Body, EXIT_STATUS, Nodes, Outcome, post};

/// Arguments of `forkvm upload`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Upload {
    /// The program: a static Linux executable. It is checked here, but not run.
    program: PathBuf,
    #[command(flatten)]
    nodes: Nodes,
}

/// What there is to send.
struct Parcel {
    program: Vec<u8>,
    version: String,
    headers: Vec<(&'static str, HeaderValue)>,
}

impl Upload {
    /// Uploads it. The exit status is in [`EXIT_STATUS`].
    pub fn execute(&self) -> ExitCode {
        let parcel = match self.parcel() {
            Ok(parcel) => parcel,
            Err(what) => {
                eprintln!("forkvm: {what}");
                return ExitCode::FAILURE;
            }
        };
        self.nodes.each(|url| {
            let mut body = Body::new(url, &parcel.program);
            let answer = post(url, &parcel.headers, &mut body, self.nodes.timeout);
            Outcome::of(answer, Some(&parcel.version), self.nodes.timeout)
        })
    }

    fn parcel(&self) -> Result<Parcel, String> {
        let path = self.program.display();
        let program = std::fs::read(&self.program).map_err(|error| format!("{path}: {error}"))?;
        forkvm::check_elf(&program).map_err(|error| format!("{path}: {error}"))?;
        let version: String = Sha256::digest(&program)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut headers = self.nodes.headers()?;
        for (name, value) in [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", &program.len().to_string()),
            ("X-Sha256", &version),
        ] {
            let value = HeaderValue::from_str(value).map_err(|error| format!("{name}: {error}"))?;
            headers.push((name, value));
        }
        Ok(Parcel {
            program,
            version,
            headers,
        })
    }
}
