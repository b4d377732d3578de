//! Which Varnish is built against: the build script and the environment of the scripts, with other Varnishes than ours.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Folder;

/// A prefix with nothing but one pkg-config file.
fn prefix(file: &str, version: &str) -> Folder {
    let folder = Folder::new(&format!("prefix.{file}.{version}"));
    let pkgconfig = folder.path().join("lib/pkgconfig");
    fs::create_dir_all(&pkgconfig).unwrap();
    let prefix = folder.path().display();
    let text = format!(
        "prefix={prefix}\nbindir=${{prefix}}/bin\nsbindir=${{prefix}}/sbin\nlibdir=${{prefix}}/lib\n\
         pkgincludedir=${{prefix}}/include/varnish\nName: API\nDescription: API\nVersion: {version}\n\
         Cflags: -I${{pkgincludedir}}\nLibs: -L${{libdir}} -lvarnishapi\n"
    );
    fs::write(pkgconfig.join(file), text).unwrap();
    folder
}

/// What the build script says where pkg-config finds only what is in a prefix.
fn build_script(prefix: &Folder) -> String {
    let name = prefix.path().file_name().unwrap().to_string_lossy();
    let out = Folder::new(&format!("out.{name}"));
    let output = Command::new(varnish_version::BUILD_SCRIPT)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("OUT_DIR", out.path())
        .env("TARGET", "x86_64-unknown-linux-gnu")
        .env("HOST", "x86_64-unknown-linux-gnu")
        .env("PKG_CONFIG_PATH", "")
        .env("PKG_CONFIG_LIBDIR", prefix.path().join("lib/pkgconfig"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("cargo::error="))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

/// A shell command in the environment of the scripts.
fn in_env(varnish_prefix: &Path, cache: &Path, command: &str) -> Output {
    Command::new("sh")
        .args(["-c", &format!(". scripts/env.sh && {command}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("VARNISH_PREFIX", varnish_prefix)
        .env("XDG_CACHE_HOME", cache)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_old_varnish_is_refused_in_one_sentence() {
    for version in ["7.1.1", "7.7.0"] {
        assert_eq!(
            build_script(&prefix("varnishapi.pc", version)),
            format!(
                "Varnish {version} was found, which is too old: \
                 this module supports Varnish 8.0, Varnish 9.0 and Vinyl Cache 9.0"
            )
        );
    }
}

#[test]
fn without_a_varnish_the_build_says_how_to_get_one() {
    // Vinyl's own file alone: the names that the crate expects are missing.
    let said = build_script(&prefix("vinylapi.pc", "9.0.1"));
    assert!(said.contains("pkg-config finds no varnishapi"), "{said}");
    assert!(said.contains("make build VARNISH_PREFIX="), "{said}");
}

#[test]
fn a_prefix_without_varnish_is_refused() {
    let (empty, cache) = (Folder::new("empty"), Folder::new("cache.empty"));
    let output = in_env(empty.path(), cache.path(), "echo went on");
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("libvarnishapi-dev"), "{errors}");
}

#[test]
fn a_prefix_of_varnish_needs_no_other_names() {
    let (varnish, cache) = (
        prefix("varnishapi.pc", "9.0.2"),
        Folder::new("cache.varnish"),
    );
    let of = |name: &str| varnish.path().join(name).display().to_string();
    let said = text(&in_env(
        varnish.path(),
        cache.path(),
        "scripts/setup.sh && . scripts/env.sh && pkg-config --modversion varnishapi &&
         echo $VARNISHD $VARNISHTEST ${VMODTOOL:-none} ${PATH%%:*} ${LD_LIBRARY_PATH%%:*}",
    ));
    let expected = [
        of("sbin/varnishd"),
        of("bin/varnishtest"),
        "none".to_owned(),
        of("bin"),
        of("lib"),
    ];
    assert_eq!(said, format!("9.0.2\n{}\n", expected.join(" ")));
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_prefix_of_vinyl_gets_the_names_that_the_crate_expects() {
    // The Varnish that the tests run with: by its folder, as if it were any.
    let pkg_config = |variable: &str| {
        let output = Command::new("pkg-config")
            .args([&format!("--variable={variable}"), "varnishapi"])
            .output()
            .unwrap();
        text(&output).trim().to_owned()
    };
    let libraries = PathBuf::from(pkg_config("libdir"));
    if !libraries.join("pkgconfig/vinylapi.pc").exists() {
        eprintln!("SKIPPED: this Varnish is no Vinyl");
        return;
    }
    let cache = Folder::new("cache.vinyl");
    let prefix = pkg_config("prefix");
    let made = || {
        text(&in_env(
            Path::new(&prefix),
            cache.path(),
            "scripts/setup.sh && pkg-config --modversion varnishapi && stat -c %Y.%i \"$VMODTOOL\" &&
             \"$VARNISHD\" -V 2>&1 && ls -L \"$VARNISHTEST\" \"$VMODTOOL\"",
        ))
    };
    let first = made();
    assert!(first.starts_with("8.0.1\n"), "{first}");
    assert!(first.contains("(vinyl-cache-"), "{first}");
    assert!(
        first.contains(&cache.path().display().to_string()),
        "{first}"
    );
    // A second time nothing is made, so that nothing is compiled anew.
    assert_eq!(made(), first);
}
