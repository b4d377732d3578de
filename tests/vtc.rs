//! Runs every tests/*.vtc with the real varnishtest, one test each.
//!
//! In them `${vmod}` is the VMOD, `${guests}` the folder of the guest programs, and `${root}` that of this package,
//! `${enough}` a time limit that nothing reaches.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn run(name: &str) {
    if !common::have_kvm() {
        return;
    }
    let _slot = common::Slot::take();
    let output = Command::new(common::program("varnishtest", "VARNISHTEST"))
        .arg("-v")
        // A busy machine has a test say more than the 1 MiB that it may, which would be its end.
        .args(["-b", "32M"])
        .args(["-t", &common::ENOUGH.as_secs().to_string()])
        .arg(format!("-Denough={}", common::ENOUGH_VCL))
        .arg(format!("-Dvmod={}", common::vmod().display()))
        .arg(format!("-Dguests={}", common::guests().display()))
        .arg(format!("-Droot={}", env!("CARGO_MANIFEST_DIR")))
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests")
                .join(name)
                .with_extension("vtc"),
        )
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return;
    }
    // What failed, and what it had to do with us; then the end of it all.
    let telling = |line: &&str| line.starts_with("----") || line.contains("kvm: ");
    let summary: Vec<&str> = text.lines().filter(telling).collect();
    let lines: Vec<&str> = text.lines().collect();
    let end = &lines[lines.len().saturating_sub(60)..];
    panic!(
        "{name}.vtc, {}:\n{}\n\n[...]\n{}",
        output.status,
        summary.join("\n"),
        end.join("\n")
    );
}

macro_rules! vtc {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
        const LISTED: &[&str] = &[$(stringify!($name)),*];
    };
}

vtc! {
    backend_health
    backend_list
    bad_pointers
    bad_responses
    body
    boot
    boot_queue
    bounds
    cache
    chain
    connection
    crowd
    deadline
    debug
    debug_vcl
    drop_in
    ephemeral
    examples
    failure
    fetch
    fetch_forbidden
    headers
    held
    import
    library
    limits
    load_waits
    methods
    output
    own_arguments
    pipe
    refused_body
    regex
    reload
    renew
    retry
    segments
    self_request
    server
    server_settings
    server_site
    server_snapshots
    settings
    shared_memory
    shown
    site
    slow_body
    stats
    storage
    storage_limits
    storage_loop
    storage_restart
    storage_update
    stream
    streaming
    synth
    target
    tenants_fetched
    tenants_json
    to_string
    uncacheable
    update
    update_reload
    update_state
    update_vcl
    upload
    uri
    uri_watch
    vcl_ways
    warmup
    writable
}

#[test]
fn every_vtc_is_listed() {
    let there: BTreeSet<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "vtc"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(there, LISTED.iter().map(|&name| name.to_owned()).collect());
}
