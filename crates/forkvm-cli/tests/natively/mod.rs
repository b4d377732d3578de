//! What programs do without a machine. That depends on the kernel, and the personality is one kernel's: where the tests run under
//! another one, as in an emulated machine, what was said under this one is what counts.
//!
//! - `FORKVM_NOTE_NATIVES=DIR`: nothing but this is done, and what is said is put there.
//! - `FORKVM_NATIVES=DIR`: what was put there is compared with.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::executing::text;

/// What a program says, and how it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl Said {
    pub fn of(output: &Output) -> Self {
        Self {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            code: output.status.code(),
            signal: output.status.signal(),
        }
    }

    fn note(&self, file: &Path) {
        let ended = format!("{:?} {:?}", self.code, self.signal);
        for (part, content) in [
            ("out", &self.stdout),
            ("err", &self.stderr),
            ("end", &ended),
        ] {
            std::fs::write(file.with_extension(part), content).unwrap();
        }
    }

    fn noted(file: &Path) -> Self {
        let read = |part| std::fs::read_to_string(file.with_extension(part)).unwrap();
        let ended = read("end");
        let (code, signal) = ended.split_once(' ').unwrap();
        let number = |text: &str| {
            let digits = text.strip_prefix("Some(")?.strip_suffix(')')?;
            Some(digits.parse().unwrap())
        };
        Self {
            stdout: read("out"),
            stderr: read("err"),
            code: number(code),
            signal: number(signal),
        }
    }
}

/// What says something of the processor, which no kernel changes.
const OF_THE_PROCESSOR: [&str; 1] = ["anew"];

/// Runs a program. `None` if that was all there is to do.
pub fn natively(name: &str, command: &mut Command) -> Option<Said> {
    let said = Said::of(&command.stdin(Stdio::null()).output().unwrap());
    if let Some(folder) = std::env::var_os("FORKVM_NOTE_NATIVES") {
        said.note(&Path::new(&folder).join(name));
        return None;
    }
    match std::env::var_os("FORKVM_NATIVES") {
        Some(folder) if !OF_THE_PROCESSOR.contains(&name) => {
            Some(Said::noted(&Path::new(&folder).join(name)))
        }
        _ => Some(said),
    }
}
