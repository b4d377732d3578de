//! `forkvm serve`: forkvm.toml.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::process::{Command, Output};

use common::{Folder, kvm_or_skip};
use serving::{Serving, server};

fn serve(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .arg("serve")
        .args(arguments)
        .output()
        .unwrap()
}

/// The settings that are printed.
fn printed(arguments: &[&str]) -> String {
    let output = serve(&[&["--print-config"], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_is_printed_says_the_same() {
    let folder = Folder::new("print-config");
    let file = folder.0.join("forkvm.toml");
    let config = format!("--config={}", file.display());
    let arguments = [
        "-l8000",
        "-l",
        "unix:/run/x.sock",
        "-t3",
        "--per-request",
        "--max-time=1.5",
        "--env=A=1",
        "--env",
        "B=x y\"",
        "--allow-read=/a,/b",
        "--allow-write",
        "--volume=/x:/y:overlay",
        "--cwd=/123",
        "--warmup=4",
        "--warmup-header=X: y",
        "--access-log=-",
        "--metrics=9100",
        "--",
        "python3",
        "-m",
        "http.server",
        "--",
        "8000",
    ];
    let first = printed(&arguments);
    for line in [
        "allow-read = [\"/a\", \"/b\"]",
        "allow-write = [\"/\"]",
        "cwd = \"/123\"",
        "forks = 3",
        "listen = [\"8000\", \"unix:/run/x.sock\"]",
        "max-request-time = 30",
        "max-time = 1.5",
        "no-reset = false",
        "per-request = true",
        "program = [\"python3\", \"-m\", \"http.server\", \"--\", \"8000\"]",
        "warmup-url = [\"/\"]",
    ] {
        assert!(first.lines().any(|found| found == line), "{line}: {first}");
    }
    std::fs::write(&file, &first).unwrap();
    assert_eq!(printed(&[&config]), first);
    // Without any flag as well.
    std::fs::write(&file, printed(&["--", "p"])).unwrap();
    assert_eq!(printed(&[&config]), printed(&["--", "p"]));
    // Flags win.
    let other = printed(&[&config, "-t7", "--env=C=3", "--", "q"]);
    for line in ["forks = 7", "env = [\"C=3\"]", "program = [\"q\"]"] {
        assert!(other.lines().any(|found| found == line), "{line}: {other}");
    }
}

#[test]
fn what_is_wrong_in_a_file_is_said() {
    let folder = Folder::new("bad-config");
    let file = folder.0.join("forkvm.toml");
    let path = file.to_str().unwrap();
    for (text, words) in [
        (
            "max-reqest-time = 3",
            "there is no key `max-reqest-time`; is `max-request-time` meant?",
        ),
        (
            "max-time = 'soon'",
            "invalid value 'soon' for '--max-time <SECONDS>'",
        ),
        ("forks = 0", "--forks"),
        ("max-time = -1", "more than 0 seconds"),
        ("forks = 2\nforks = 3", "duplicate key"),
        ("x = = 3", "line 1"),
        ("forks = 2", "no program is named"),
        ("program = 'p'", "a list is needed"),
        (
            "forks = 2\nno-reset = true\nprogram = ['p']",
            "cannot be used with",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = serve(&["--config", path]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}: {errors}");
        assert!(errors.contains(words), "{text}: {errors}");
        assert!(errors.contains("forkvm.toml"), "{text}: {errors}");
    }
    let output = serve(&["--config", "/no/such/file"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/file"));
    let output = serve(&[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_file_is_all_that_is_needed() {
    kvm_or_skip!();
    let folder = Folder::new("config");
    let file = folder.0.join("forkvm.toml");
    let text = format!(
        "listen = ['127.0.0.1:0']\nforks = 1\nenv = ['NAME=from the file']\nprogram = ['{}']\n",
        server()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command.args(["serve", "--config", file.to_str().unwrap()]);
    let serving = Serving::spawn(&mut command);
    assert_eq!(serving.get("/name"), "from the file\n");
    // One that lies there and is not named is not read.
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["serve", "-l127.0.0.1:0", "--", &server()])
        .current_dir(&folder.0);
    let serving = Serving::spawn(&mut command);
    assert_eq!(serving.get("/name"), "\n");
}
