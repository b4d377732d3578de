//! `forkvm doctor` and the command as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;
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
        "KVM_RUN round trip",
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
    let run = || {
        let mut command = Command::new(&command);
        command.arg("doctor").uid(NOBODY).gid(NOBODY).output()
    };
    let mut output = run();
    // A process that another test was starting meanwhile has the copy open for writing, until it is another program.
    while matches!(&output, Err(error) if error.kind() == ErrorKind::ExecutableFileBusy) {
        std::thread::sleep(Duration::from_millis(10));
        output = run();
    }
    fs::remove_dir_all(&folder).unwrap();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let name = name_of(NOBODY);
    let denied = format!("user {name} may not use /dev/kvm");
    assert!(text.contains(&denied), "{text}");
    let advice = match group {
        0 => "chgrp kvm /dev/kvm".to_owned(),
        _ => format!("usermod -aG {} {name}", group_of_device()),
    };
    assert!(text.contains(&advice), "{text}");
    assert!(text.contains("restart Varnish"), "{text}");
}

/// As other programs see it.
fn words(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A user's name, or its number if it has none.
fn name_of(user: u32) -> String {
    match &*words("id", &["-nu", &user.to_string()]) {
        "" => user.to_string(),
        name => name.to_owned(),
    }
}

fn group_of_device() -> String {
    words("stat", &["-c", "%G", "/dev/kvm"])
}

#[test]
fn doctor_for_programs() {
    kvm_or_skip!();
    let output = forkvm(&["doctor", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{found:#}");
    assert_eq!(found["ok"], true, "{found:#}");
    assert_eq!(found["allowed"], true, "{found:#}");
    let owner = words("stat", &["-c", "%U", "/dev/kvm"]);
    assert_eq!(found["device"]["owner"]["name"], owner, "{found:#}");
    assert_eq!(
        found["device"]["group"]["name"],
        group_of_device(),
        "{found:#}"
    );
    assert_eq!(found["user"]["name"], words("id", &["-nu"]), "{found:#}");
    let groups = found["user"]["groups"].as_array().unwrap();
    let mut names: Vec<_> = groups
        .iter()
        .map(|group| group["name"].as_str().unwrap())
        .collect();
    let expected = words("id", &["-nG"]);
    let mut expected: Vec<_> = expected.split_whitespace().collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected, "{found:#}");
    assert_eq!(found["kvm"]["api_version"], 12, "{found:#}");
    assert_eq!(found["problems"].as_array().map(Vec::len), Some(0));
}

/// By the user database, whoever runs the command.
#[test]
fn doctor_about_another_user() {
    kvm_or_skip!();
    let root = forkvm(&["doctor", "--json", "--user", "root"]);
    let found: serde_json::Value = serde_json::from_slice(&root.stdout).unwrap();
    assert_eq!(
        (&found["allowed"], &found["user"]["id"]),
        (&true.into(), &0.into())
    );
    let nobody = forkvm(&["doctor", "--json", "--user", "nobody"]);
    let found: serde_json::Value = serde_json::from_slice(&nobody.stdout).unwrap();
    let mode = fs::metadata("/dev/kvm").unwrap().mode();
    let groups = words("id", &["-nG", "nobody"]);
    let by_group = groups.split_whitespace().any(|g| g == group_of_device());
    let allowed = mode & 0o006 == 0o006 || by_group && mode & 0o060 == 0o060;
    assert_eq!(found["allowed"], allowed, "{found:#}");
    assert_eq!(nobody.status.code(), Some(if allowed { 0 } else { 1 }));
    let missing = forkvm(&["doctor", "--user", "no-such-user-here"]);
    assert_eq!(missing.status.code(), Some(1));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(
        text.contains("no user no-such-user-here") && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn shells_complete_it() {
    for (shell, word) in [
        ("bash", "complete -F _forkvm"),
        ("zsh", "#compdef forkvm"),
        ("fish", "complete -c forkvm"),
    ] {
        let script = forkvm(&["completions", shell]);
        assert!(script.status.success());
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(
            script.contains(word) && script.contains("max-request-time"),
            "{shell}"
        );
    }
    // The language bash itself takes.
    let script = forkvm(&["completions", "bash"]).stdout;
    let checked = Command::new("bash")
        .args(["-n", "-c", str::from_utf8(&script).unwrap()])
        .status();
    assert!(checked.unwrap().success());
}

#[test]
fn there_are_man_pages() {
    let folder = env::temp_dir().join(format!("forkvm-man-{}", std::process::id()));
    assert!(forkvm(&["man", folder.to_str().unwrap()]).status.success());
    let page = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (main, run) = (page("forkvm.1"), page("forkvm-run.1"));
    fs::remove_dir_all(&folder).unwrap();
    assert!(main.contains(".TH forkvm 1"), "{main}");
    assert!(
        main.contains("doctor") && run.contains("max\\-request\\-time"),
        "{run}"
    );
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
