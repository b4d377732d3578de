//! Servers that scripts/servers-setup.sh installs and builds. What is not there is skipped; with FORKVM_RUNTIMES=all, as
//! `make test-servers` has it, it is missing.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::serving::Serving;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where scripts/servers-setup.sh puts what it sets up.
fn servers() -> String {
    let of_cargo = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = of_cargo.unwrap_or_else(|| repository().join("target"));
    let target = std::path::absolute(target).unwrap();
    target.join("servers").to_str().unwrap().to_owned()
}

/// Where programs are looked for.
fn search_path() -> String {
    let before = std::env::var("PATH").unwrap_or_default();
    format!("{}/bin:{before}:/usr/sbin", servers())
}

fn words(text: &str) -> Vec<String> {
    let text = text.replace("target/servers", &servers());
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Whether this command of a shell's succeeds, as it does where a server is installed.
pub fn is_installed(needs: &str) -> bool {
    let status = Command::new("sh")
        .args(["-c", &needs.replace("target/servers", &servers())])
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let there = status.unwrap().success();
    assert!(
        there || std::env::var_os("FORKVM_RUNTIMES").is_none(),
        "not installed: {needs}; run scripts/servers-setup.sh"
    );
    if !there {
        eprintln!("SKIPPED, not installed: {needs}");
    }
    there
}

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
