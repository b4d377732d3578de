//! `forkvm exec`, as tests run it.
// Each test binary uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::guest_path;

/// A program of tests/guests/linux.
pub fn program(name: &str) -> PathBuf {
    guest_path(&format!("linux/{name}"))
}

/// With these flags, and allowed to read the folder of the programs.
pub fn exec(flags: &[&str], program: &Path, arguments: &[&str]) -> Output {
    let folder = guest_path("linux/start");
    Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .arg("exec")
        .arg(format!(
            "--allow-read={}",
            folder.parent().unwrap().display()
        ))
        .args(flags)
        .arg("--")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
