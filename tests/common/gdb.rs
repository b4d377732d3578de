//! Debian's gdb, as a programmer uses it with a tenant.

use std::path::Path;
use std::time::Duration;

use super::batch_gdb::{gdb_command, what_it_says};
use super::varnishd::Varnishd;
use super::within;

/// What gdb says to these commands, once it is connected.
pub fn gdb(program: &Path, address: &str, commands: &[&str]) -> String {
    // As long as gdb waits without being told.
    let timeout = Duration::from_secs(2);
    what_it_says(gdb_command(program, address, timeout, commands))
}

/// The address that the log names when the `nth` request waits for gdb.
pub fn address(varnish: &Varnishd, nth: usize) -> String {
    let mut lines = Vec::new();
    within(30, "a request waits for gdb", || {
        lines = varnish.log("debugger: waits");
        lines.len() > nth
    });
    let (_, after) = lines[nth].split_once(" for gdb on ").unwrap();
    after.split(',').next().unwrap().to_owned()
}
