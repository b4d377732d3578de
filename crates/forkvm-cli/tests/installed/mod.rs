//! `forkvm serve` with servers that scripts/servers-setup.sh installs and builds.
#![allow(clippy::unwrap_used)]

mod found;

use std::process::{Command, Stdio};

pub use found::is_installed;
use found::{repository, search_path, words};

use crate::serving::Serving;

/// Starts one of them, with `forkvm serve`'s own arguments and what comes after `--`.
pub fn start(options: &str, more: &[&str], program: &str) -> Serving {
    let mut command = command("serve", options, more);
    Serving::spawn(command.arg("--").args(words(program)))
}

#[allow(dead_code)] // random.rs has no snapshots
/// The same without a boot, by a process of its own: of a snapshot that another process has taken.
pub fn start_of_snapshot(options: &str, more: &[&str], program: &str) -> Serving {
    let name = format!("forkvm-installed-{}-{}", std::process::id(), own_number());
    let file = std::env::temp_dir().join(name);
    let path = file.to_str().unwrap();
    let taken = command("snapshot", options, &["-o", path])
        .arg("--")
        .args(words(program))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(taken.status.success(), "{said}");
    let from = format!("--snapshot={path}");
    let more = [more, &[&*from]].concat();
    let serving = Serving::spawn(&mut command("serve", options, &more));
    // What serves has read it.
    std::fs::remove_file(file).unwrap();
    serving
}

/// A number that no other test of this process has.
fn own_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn command(what: &str, options: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .env("PATH", search_path())
        .current_dir(repository().join("tests/servers"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .args([what, "--listen=127.0.0.1:0", "--max-boot-time=120"])
        .arg("--max-request-time=120")
        .args(words(options))
        .args(more);
    command
}
