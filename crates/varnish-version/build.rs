//! Looks which Varnish pkg-config finds, or says in one sentence why there is none to build against.

use std::env;

/// What the crate `varnish` is made for; below, Varnish's structures have other fields.
const OLDEST: u32 = 8;
const SUPPORTED: &str = "this module supports Varnish 8.0, Varnish 9.0 and Vinyl Cache 9.0";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-env=BUILD_SCRIPT={}",
        env::current_exe()?.display()
    );
    // The library is not linked here.
    let found = pkg_config::Config::new()
        .cargo_metadata(false)
        .probe("varnishapi");
    let Ok(varnish) = found else {
        println!(
            "cargo::error=pkg-config finds no varnishapi: {SUPPORTED}; \"make build\" sets the last one up, and \"make \
             build VARNISH_PREFIX=/usr\" takes one that is installed with its development files"
        );
        return Ok(());
    };
    let major = varnish.version.split('.').next().unwrap_or_default();
    // "trunk" is newer than all.
    if major.parse().is_ok_and(|major: u32| major < OLDEST) {
        let version = varnish.version;
        println!("cargo::error=Varnish {version} was found, which is too old: {SUPPORTED}");
    }
    Ok(())
}
