//! What a snapshot's program was run with, and what of that has to be the same for it to go on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exec::Sandbox;
use crate::image::exec::Command;
use crate::linux::{AllowedPath, ListenRule};

/// What a program was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The program.
    pub command: Command,
    /// Guest memory in bytes.
    pub max_memory: u64,
    /// Its first working directory.
    pub directory: String,
    allowed: Vec<AllowedPath>,
    writable: Vec<PathBuf>,
    listen: Option<Vec<ListenRule>>,
}

impl Terms {
    /// As it is started.
    pub fn new(command: &Command, sandbox: &Sandbox) -> Self {
        Self {
            command: command.clone(),
            max_memory: sandbox.max_memory,
            directory: sandbox.current_working_directory.clone(),
            allowed: allowed(sandbox),
            writable: sandbox.writable_paths.clone(),
            listen: sandbox.allowed_listen.clone(),
        }
    }

    /// How a sandbox differs in what has to be the same, if it does.
    pub fn differs(&self, sandbox: &Sandbox) -> Option<String> {
        let (then, now) = (&self.allowed, &allowed(sandbox));
        if let Some(path) = then.iter().find(|path| !now.contains(path)) {
            return Some(format!(
                "{} was allowed then{}",
                path.seen.display(),
                how(path)
            ));
        }
        if let Some(path) = now.iter().find(|path| !then.contains(path)) {
            return Some(format!(
                "{} was not allowed then{}",
                path.seen.display(),
                how(path)
            ));
        }
        let (then, now) = (&self.writable, &sandbox.writable_paths);
        if let Some(path) = then.iter().find(|path| !now.contains(path)) {
            return Some(format!("{} could be written to then", path.display()));
        }
        if let Some(path) = now.iter().find(|path| !then.contains(path)) {
            return Some(format!("{} could not be written to then", path.display()));
        }
        if self.listen != sandbox.allowed_listen {
            return Some("where it may listen was another choice then".into());
        }
        (self.max_memory != sandbox.max_memory)
            .then(|| format!("it had {} MiB of memory then", self.max_memory >> 20))
    }
}

/// Allowed paths, whatever folder the process is in.
fn allowed(sandbox: &Sandbox) -> Vec<AllowedPath> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let of = |path: &AllowedPath| AllowedPath {
        real: absolute(&path.real),
        seen: absolute(&path.seen),
        ..path.clone()
    };
    sandbox.allowed_paths.iter().map(of).collect()
}

/// What is said of an allowed path beside its name.
fn how(path: &AllowedPath) -> String {
    let real = match path.real == path.seen {
        true => String::new(),
        false => format!(" (as {} of the host)", path.real.display()),
    };
    match path.writes {
        true => format!("{real}, to be changed in the host"),
        false => real,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let command = Command {
            path: b"/x".to_vec(),
            arguments: Vec::new(),
            environment: Vec::new(),
        };
        let sandbox = |paths: &[&str]| Sandbox {
            allowed_paths: paths.iter().copied().map(AllowedPath::from).collect(),
            ..Sandbox::default()
        };
        let terms = Terms::new(&command, &sandbox(&["/a", "/b"]));
        assert_eq!(terms.differs(&sandbox(&["/b", "/a"])), None);
        let differs = |of: &Sandbox| terms.differs(of).unwrap();
        assert_eq!(differs(&sandbox(&["/a"])), "/b was allowed then");
        assert_eq!(
            differs(&sandbox(&["/a", "/b", "/c"])),
            "/c was not allowed then"
        );
        let mut other = sandbox(&["/a", "/b"]);
        other.writable_paths.push("/w".into());
        assert_eq!(differs(&other), "/w could not be written to then");
        let mut other = sandbox(&["/a", "/b"]);
        other.max_memory = 1;
        assert_eq!(differs(&other), "it had 1024 MiB of memory then");
        other.allowed_paths[0].writes = true;
        assert_eq!(differs(&other), "/a was allowed then");
    }
}
