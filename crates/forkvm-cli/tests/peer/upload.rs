//! `forkvm upload` as a test calls it.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::{self, guest_path};

/// The key that is in the environment.
pub const KEY: &str = "correct-horse-battery-staple";

/// A folder for a test's files.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("forkvm-upload-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A file that only its owner can read.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A program of at least so many bytes, more than connections hold on their way.
    pub fn big_program(&self, len: usize) -> String {
        let mut elf = common::guest("hello");
        elf.resize(len, 0);
        self.file("big", &elf)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

pub fn command(program: &str, urls: &[String], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command.args([
        "upload",
        program,
        "--tenant",
        "x.com",
        "--key-env",
        "TEST_KEY",
    ]);
    for url in urls {
        command.args(["--url", url]);
    }
    command
        .args(arguments)
        .env("TEST_KEY", KEY)
        .stdin(Stdio::null());
    command
}

pub fn hello() -> String {
    guest_path("hello").to_str().unwrap().to_owned()
}

pub fn upload(urls: &[String]) -> Output {
    command(&hello(), urls, &[]).output().unwrap()
}

pub fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

/// Exit status, results, and that the key is nowhere.
#[track_caller]
pub fn check(output: &Output, code: i32, results: &str) {
    assert_eq!(
        (output.status.code(), stdout(output)),
        (Some(code), results),
        "{}",
        stderr(output)
    );
    assert!(!stdout(output).contains(KEY) && !stderr(output).contains(KEY));
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
}

/// As coreutils see it.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}
