//! `forkvm doctor` and the command as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::process::{Command, Output};

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
