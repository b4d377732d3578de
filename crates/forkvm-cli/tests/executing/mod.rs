//! `forkvm exec`, as tests run it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::guest_path;

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
