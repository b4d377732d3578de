//! Debian's gdb, as a programmer uses it with a tenant.

use std::path::Path;

use super::batch_gdb::{gdb_command, what_it_says};
use super::varnishd::Varnishd;
use super::{ENOUGH, eventually};

/// What gdb says to these commands, once it is connected.
pub fn gdb(program: &Path, address: &str, commands: &[&str]) -> String {
    what_it_says(gdb_command(program, address, ENOUGH, commands))
}

/// The address that the log names when the `nth` request waits for gdb.
pub fn address(varnish: &Varnishd, nth: usize) -> String {
    let mut lines = Vec::new();
    eventually("a request waits for gdb", || {
        lines = varnish.log("debugger: waits");
        lines.len() > nth
    });
    let (_, after) = lines[nth].split_once(" for gdb on ").unwrap();
    after.split(',').next().unwrap().to_owned()
}
