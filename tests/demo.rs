//! `make demo` and `make install`, as a user meets them.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Folder;

/// target/PROFILE
fn profile() -> PathBuf {
    common::vmod().parent().unwrap().to_owned()
}

fn demo(arguments: &[&str], port: Option<u16>) -> Output {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo.sh"));
    command
        .args(arguments)
        .env("LIB", profile())
        .env("GUESTS_DIR", common::guests());
    if let Some(port) = port {
        command.env("PORT", port.to_string());
    }
    command.output().unwrap()
}

#[test]
fn the_tenants_answer() {
    if !common::have_kvm() {
        return;
    }
    let _slot = common::Slot::take();
    let output = demo(&["--check"], None);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains(" passed, 0 failed"), "{text}{errors}");
    let python = Path::new("/usr/bin/python3").exists();
    assert_eq!(text.contains("Request 1 of Python"), python, "{text}");
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    if !common::have_kvm() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = demo(&[], Some(port));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let expected = format!("cannot listen on 127.0.0.1:{port} (Address already in use)");
    assert!(errors.contains(&expected), "{errors}");
}

#[test]
fn what_was_built_is_installed() {
    let folder = Folder::new("install");
    let output = Command::new("make")
        .arg("install")
        .args(["VMODDIR=/vmods", "VCLDIR=/vcl", "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", folder.path().display()))
        .arg(format!("PROFILE={}", profile().file_name().unwrap().display()))
        .env("CARGO_TARGET_DIR", profile().parent().unwrap())
        // A `make test` around this one has flags of its own.
        .env_remove("MAKEFLAGS")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    for (file, mode) in [
        ("vmods/libvmod_kvm.so", 0o644),
        ("vcl/kvm.vcl", 0o644),
        ("vcl/kvm_subs.vcl", 0o644),
        ("usr/bin/forkvm", 0o755),
        ("usr/share/man/man3/vmod_kvm.3", 0o644),
        ("usr/share/man/man1/forkvm.1", 0o644),
        ("usr/share/man/man1/forkvm-upload.1", 0o644),
        ("usr/share/bash-completion/completions/forkvm", 0o644),
        ("usr/share/zsh/site-functions/_forkvm", 0o644),
        ("usr/share/fish/vendor_completions.d/forkvm.fish", 0o644),
    ] {
        let installed = folder.path().join(file).metadata();
        let installed = installed.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(installed.permissions().mode() & 0o777, mode, "{file}");
        assert!(installed.len() > 1000, "{file}: {} bytes", installed.len());
    }
}
