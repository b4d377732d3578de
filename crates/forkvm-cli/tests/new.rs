//! `forkvm new`: what it writes builds, tests itself, and answers in a virtual machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
#[path = "peer/dev.rs"]
mod serving;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::kvm_or_skip;
use serving::{Dev, body, status};

/// A folder for a project.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forkvm-new-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn forkvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(arguments)
        .output()
        .unwrap()
}

fn new(folder: &Path, language: &str) -> Output {
    forkvm(&["new", folder.to_str().unwrap(), "--lang", language])
}

/// `make` in a project. What it prints, both streams.
fn make(project: &Path, target: &str) -> (bool, String) {
    let output = Command::new("make")
        .arg(target)
        .current_dir(project)
        // A `make test` and a `cargo test` around this one have settings of their own.
        .env_remove("MAKEFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env("FORKVM", env!("CARGO_BIN_EXE_forkvm"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Makes a project, builds it, runs its tests, and breaks it to see that they can fail.
fn works(language: &str, source: &str) {
    let folder = Folder::new(language);
    let project = folder.path("pizza");
    let output = new(&project, language);
    assert!(output.status.success(), "{output:?}");

    let (done, text) = make(&project, "all");
    assert!(done && !text.contains("warning"), "{text}");
    let program = project.join("pizza");
    for (url, answer) in [("/", "Hello, World!\n"), ("/hello/Ann", "Hello, Ann!\n")] {
        let output = forkvm(&[
            "run",
            "--max-boot-time",
            "600",
            program.to_str().unwrap(),
            url,
        ]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), answer);
    }

    let dev = Dev::start(&format!("new-{language}"), &program, &[]);
    assert_eq!(body(&dev.get("/hello/Ann")), "Hello, Ann!\n");
    assert_eq!(status(&dev.get("/nowhere")), "404");
    drop(dev);

    let (done, text) = make(&project, "test");
    assert!(done, "{text}");
    let source = project.join(source);
    let broken = std::fs::read_to_string(&source)
        .unwrap()
        .replacen("/hello/", "/hullo/", 1);
    std::fs::write(&source, broken).unwrap();
    let (done, text) = make(&project, "test");
    assert!(!done && text.contains("FAILED"), "{text}");

    let (done, text) = make(&project, "upload");
    assert!(!done && text.contains("example.com.key"), "{text}");
    let (done, text) = make(&project, "help");
    assert!(done && text.contains("make upload"), "{text}");
    assert!(make(&project, "clean").0 && !program.exists());
}

#[test]
fn a_project_in_c() {
    kvm_or_skip!();
    works("c", "main.c");
}

#[test]
fn a_project_in_cpp() {
    kvm_or_skip!();
    works("cpp", "main.cc");
}

#[test]
fn a_project_in_rust() {
    kvm_or_skip!();
    works("rust", "src/main.rs");
}

#[test]
fn a_project_in_rust_with_the_http_crate() {
    kvm_or_skip!();
    works("rust-http", "src/main.rs");
}

#[test]
fn a_project_in_zig() {
    kvm_or_skip!();
    if Command::new("zig").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no zig");
        return;
    }
    works("zig", "main.zig");
}

#[test]
fn nothing_is_overwritten() {
    let folder = Folder::new("refused");
    let project = folder.path("pizza");
    assert!(new(&project, "c").status.success());
    let script = project.join("test.sh").metadata().unwrap().permissions();
    assert_ne!(script.mode() & 0o100, 0);
    let main = project.join("main.c");
    std::fs::write(&main, "mine").unwrap();
    let output = new(&project, "rust");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("not empty"), "{errors}");
    assert_eq!(std::fs::read_to_string(&main).unwrap(), "mine");
    assert!(!project.join("Cargo.toml").exists());

    let output = new(&folder.path("no good"), "c");
    assert_eq!(output.status.code(), Some(1));
    assert!(!folder.path("no good").exists());
    assert_eq!(new(&folder.path("x"), "cobol").status.code(), Some(2));
}
