//! What is made of the command's own description: man pages, and what shells complete by.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of `forkvm completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
For the present shell:  source <(forkvm completions bash)
`make install` puts those of bash, zsh and fish where they are found.")]
pub struct Completions {
    /// Whose language.
    shell: Shell,
}

/// Arguments of `forkvm man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The folder to write them to: forkvm.1, and a page for each subcommand.
    folder: PathBuf,
}

impl Completions {
    /// Prints the script.
    pub fn execute(&self, mut command: Command) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "forkvm", &mut script);
        // Whoever reads it may have left.
        let _ = std::io::stdout().write_all(&script);
        ExitCode::SUCCESS
    }
}

impl Man {
    /// Writes the pages.
    pub fn execute(&self, command: Command) -> ExitCode {
        let written = std::fs::create_dir_all(&self.folder)
            .and_then(|()| clap_mangen::generate_to(command, &self.folder));
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                err!("forkvm: {}: {error}", self.folder.display());
                ExitCode::FAILURE
            }
        }
    }
}
