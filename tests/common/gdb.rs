//! Debian's gdb in batch mode.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::varnishd::Varnishd;

/// Whether a test that needs gdb can run. Without it is skipped, but in CI that is a failure.
pub fn have_gdb() -> bool {
    let found = Command::new("gdb")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    let Err(error) = found else { return true };
    assert!(env::var_os("CI").is_none(), "gdb: {error}");
    eprintln!("SKIPPED, gdb: {error}");
    false
}

/// What gdb says to these commands, once it is connected.
pub fn gdb(program: &Path, address: &str, commands: &[&str]) -> String {
    let connect = format!("target remote {address}");
    let before = ["set debuginfod enabled off", "set width 0", &connect];
    let commands = before.iter().chain(commands);
    let output = Command::new("gdb")
        .args(["-nx", "-q", "-batch"])
        .arg(program)
        .args(commands.flat_map(|command| ["-ex", command]))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap();
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

/// The address that the log names when the `nth` request waits for gdb.
pub fn address(varnish: &Varnishd, nth: usize) -> String {
    let start = Instant::now();
    loop {
        if let Some(line) = varnish.log("debugger: waits").get(nth) {
            let (_, after) = line.split_once(" for gdb on ").unwrap();
            return after.split(',').next().unwrap().to_owned();
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "no request waits for gdb"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
