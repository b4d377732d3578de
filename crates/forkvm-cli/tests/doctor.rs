//! `forkvm doctor` and the command as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::{env, fs};

use common::kvm_or_skip;

fn forkvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn doctor_says_what_kvm_offers() {
    kvm_or_skip!();
    let output = forkvm(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in [
        "/dev/kvm",
        "syscall arrives in",
        "ring ",
        "dirty ring",
        "vector state",
        "Guests can run here.",
    ] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// As a user who may not open the device, which only root can try.
#[test]
fn doctor_says_what_to_do() {
    const NOBODY: u32 = 65534;
    kvm_or_skip!();
    let device = fs::metadata("/dev/kvm").unwrap();
    let (mode, group) = (device.mode(), device.gid());
    if !rustix::process::geteuid().is_root() || mode & 0o006 == 0o006 || group == NOBODY {
        eprintln!("SKIPPED: every user may use /dev/kvm, or this one can't become another");
        return;
    }
    // In a folder that everybody may enter, as the one of the build may not be.
    let folder = env::temp_dir().join(format!("forkvm-doctor-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let command = folder.join("forkvm");
    fs::copy(env!("CARGO_BIN_EXE_forkvm"), &command).unwrap();
    let output = Command::new(&command)
        .arg("doctor")
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    fs::remove_dir_all(&folder).unwrap();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("user 65534 may not use /dev/kvm"), "{text}");
    let advice = match group != 0 && mode & 0o060 == 0o060 {
        true => "usermod -aG $(stat -c %G /dev/kvm) NAME",
        false => "chgrp kvm /dev/kvm",
    };
    assert!(text.contains(advice), "{text}");
}

#[test]
fn help_and_version() {
    let help = forkvm(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("run") && text.contains("doctor"), "{text}");
    let version = String::from_utf8(forkvm(&["--version"]).stdout).unwrap();
    assert_eq!(version, format!("forkvm {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(forkvm(&[]).status.code(), Some(2));
    assert_eq!(forkvm(&["no-such-command"]).status.code(), Some(2));
}
