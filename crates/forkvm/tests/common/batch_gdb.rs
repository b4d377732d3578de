//! Debian's gdb in batch mode, for the tests of all packages.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Whether a test that needs gdb can run. Without it is skipped, but in CI that is a failure.
pub fn have_gdb() -> bool {
    let found = Command::new("gdb")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    let Err(error) = found else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "gdb: {error}");
    eprintln!("SKIPPED, gdb: {error}");
    false
}

/// gdb with these commands, once it is connected. It waits so long for each reply.
pub fn gdb_command(program: &Path, address: &str, timeout: Duration, commands: &[&str]) -> Command {
    let timeout = format!("set remotetimeout {}", timeout.as_secs());
    let connect = format!("target remote {address}");
    let before = [
        "set debuginfod enabled off",
        "set width 0",
        &timeout,
        &connect,
    ];
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch"]).arg(program);
    for command in before.iter().chain(commands) {
        gdb.args(["-ex", command]);
    }
    gdb.env("LC_ALL", "C").stdin(Stdio::null());
    gdb
}

/// What gdb says.
pub fn what_it_says(mut gdb: Command) -> String {
    let output = gdb.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Checks that a text has these pieces, in this order.
#[track_caller]
pub fn assert_in_order(text: &str, pieces: &[&str]) {
    let mut rest = text;
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            panic!("no {piece:?} where it should be in:\n{text}");
        };
        rest = &rest[at + piece.len()..];
    }
}
