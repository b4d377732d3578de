//! Servers that scripts/servers-setup.sh installs and builds. What is not there is skipped; with FORKVM_RUNTIMES=all, as
//! `make test-servers` has it, it is missing.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository, whichever package's test this is.
pub fn repository() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut around = package.ancestors();
    let top = around.find(|folder| folder.join("vmod.vcc").exists());
    top.unwrap().to_owned()
}

/// Where scripts/servers-setup.sh puts what it sets up.
pub fn servers() -> String {
    let of_cargo = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = of_cargo.unwrap_or_else(|| repository().join("target"));
    let target = std::path::absolute(target).unwrap();
    target.join("servers").to_str().unwrap().to_owned()
}

/// Where programs are looked for.
pub fn search_path() -> String {
    let before = std::env::var("PATH").unwrap_or_default();
    format!("{}/bin:{before}:/usr/sbin", servers())
}

pub fn words(text: &str) -> Vec<String> {
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
