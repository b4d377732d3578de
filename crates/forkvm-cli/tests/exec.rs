//! `forkvm exec`: programs do in the machine what they do without it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod executing;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, emulated, kvm_or_skip};
use executing::{exec, program, text};

#[test]
fn ports_are_no_way_to_wild_addresses() {
    kvm_or_skip!();
    for at in [
        "7ffffffff001",
        "800000000000",
        "8000000000000000",
        "ffffffff80000000",
    ] {
        let output = exec(&[], &program("ports"), &[at]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + 11), "{at}: {said}");
    }
    let expected = if calls_by_out() { 7 } else { 128 + 11 };
    let output = exec(&[], &program("ports"), &[]);
    assert_eq!(output.status.code(), Some(expected));
}

/// Whether a program's `syscall` arrives in ring 3, and may be an `out` as well.
fn calls_by_out() -> bool {
    !forkvm::probe().unwrap().syscall_enters_ring0
}

#[test]
fn calls_are_rewritten_where_that_is_cheaper() {
    kvm_or_skip!();
    // Those that the dispatcher answers are cheaper as they are.
    for (flags, cheaper) in [(&["--no-dispatcher"][..], calls_by_out()), (&[], false)] {
        let output = exec(flags, &program("registers"), &["bytes"]);
        let expected = if cheaper { "e7 04\n" } else { "0f 05\n" };
        assert_eq!(text(&output.stdout), expected, "{flags:?}");
    }
}

/// As natively; and what happened is told.
#[test]
fn faults_end_programs() {
    kvm_or_skip!();
    let program = program("faults");
    for (fault, signal, said) in [
        ("read", "SIGSEGV", "page fault reading 0x10 (not mapped)"),
        ("write", "SIGSEGV", "page fault writing 0x"),
        ("wild", "SIGSEGV", "general protection fault"),
        ("invalid", "SIGILL", "invalid instruction"),
        ("divide", "SIGFPE", "divide error"),
        ("sse", "SIGFPE", "SIMD error"),
        ("stack", "SIGBUS", "stack fault"),
        ("int3", "SIGTRAP", "breakpoint"),
        ("ignored", "SIGSEGV", "page fault"),
        ("blocked", "SIGSEGV", "page fault"),
        ("in-thread", "SIGSEGV", "page fault"),
        ("abort", "SIGABRT", ""),
    ] {
        // Software emulation has none of the first, and a general protection fault for the second.
        if emulated() && ["sse", "stack"].contains(&fault) {
            continue;
        }
        let native = Command::new(&program).arg(fault).output().unwrap();
        let number = native.status.signal().expect(fault);
        let output = exec(&[], &program, &[fault]);
        let text = text(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + number), "{fault}: {text}");
        if said.is_empty() {
            assert_eq!(text, "", "{fault}");
        } else {
            let begin = format!("forkvm: ended by signal {number} ({signal}): ");
            assert!(text.starts_with(&begin), "{fault}: {text}");
            assert!(text.contains(said), "{fault}: {text}");
        }
    }
}

/// Also of a program whose timer has the watchdog armed again at each call.
#[test]
fn a_program_has_its_time() {
    kvm_or_skip!();
    let program = program("alarms");
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["exec", "--max-time", "1", "--"])
        .arg(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it still runs after {:?}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "begins\n");
    assert_eq!(output.status.code(), Some(126));
    let said = text(&output.stderr);
    assert!(said.contains("max_time"), "{said}");
}

#[test]
fn a_program_knows_the_file_behind_its_links() {
    kvm_or_skip!();
    let folder = Folder::new("links");
    let to = program("itself");
    std::fs::copy(&to, folder.0.join("real")).unwrap();
    std::os::unix::fs::symlink("real", folder.0.join("near")).unwrap();
    std::os::unix::fs::symlink(folder.0.join("near"), folder.0.join("far")).unwrap();
    for name in ["real", "near", "far"] {
        let path = folder.0.join(name);
        let native = Command::new(&path).output().unwrap();
        let machine = exec(&[], &path, &[]);
        assert_eq!(text(&machine.stderr), "", "{name}");
        assert_eq!(text(&machine.stdout), text(&native.stdout), "{name}");
        assert!(text(&native.stdout).ends_with("\n0 failed\n"));
    }
}

#[test]
fn a_program_in_whose_place_a_link_leads_to_itself_is_told_so() {
    kvm_or_skip!();
    let output = exec(&[], &program("itself"), &["circle", "/tmp/forkvm-circle"]);
    assert_eq!(text(&output.stderr), "");
    assert!(text(&output.stdout).ends_with("\n0 failed\n"));
    assert_eq!(text(&output.stdout).matches("ELOOP").count(), 4);
}

/// Natively the working directory is always there; so programs come back to it.
#[test]
fn the_working_directory_is_there_though_nothing_in_it_is_allowed() {
    kvm_or_skip!();
    let folder = Folder::new("start");
    std::fs::write(folder.0.join("secret"), "secret").unwrap();
    std::fs::create_dir_all(folder.0.join("allowed")).unwrap();
    let folder = folder.0.display();
    let here = format!("--cwd={folder}");
    let list = |flags: &[&str], arguments: &[&str]| {
        let output = exec(
            &[&[&here[..]], flags].concat(),
            Path::new("/bin/ls"),
            arguments,
        );
        (text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(list(&[], &[]), (String::new(), String::new()));
    let allowed = format!("--allow-read={folder}/allowed");
    assert_eq!(
        list(&[&allowed], &["."]),
        ("allowed\n".into(), String::new())
    );
    assert!(list(&[], &["secret"]).1.contains("No such file"));
    assert!(list(&[], &["../nothing"]).1.contains("No such file"));
}

#[test]
fn helpers_are_refused_by_the_call_that_starts_them() {
    kvm_or_skip!();
    for (how, call) in [
        ("fork", "fork(2) was refused: other processes"),
        ("vfork", "vfork(2) was refused"),
        (
            "posix_spawn",
            "clone(2) with CLONE_VFORK, as posix_spawn(3)",
        ),
        ("system", "clone(2) with CLONE_VFORK, as posix_spawn(3)"),
    ] {
        let output = exec(&[], &program("helpers"), &[how]);
        assert_eq!(text(&output.stdout), format!("{how}: ENOSYS\n"));
        let said = text(&output.stderr);
        assert!(said.contains(call), "{how}: {said}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn standard_input_is_passed_on() {
    kvm_or_skip!();
    let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["exec", "--", "/bin/cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = "a line\n".repeat(10_000);
    std::io::Write::write_all(&mut stdin, sent.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), sent);
}

#[test]
fn volumes_are_seen_where_they_are_said_to_be() {
    kvm_or_skip!();
    let folder = Folder::new("volume");
    std::fs::write(folder.0.join("a"), "content").unwrap();
    let volume = |how: &str| format!("{}:/srv/data{how}", folder.0.display());
    let cat = Path::new("/bin/cat");
    let output = exec(&["--volume", &volume("")], cat, &["/srv/data/a"]);
    assert_eq!(text(&output.stdout), "content");
    let rm = Path::new("/bin/rm");
    let output = exec(&["--volume", &volume("")], rm, &["/srv/data/a"]);
    assert!(text(&output.stderr).contains("Read-only"));
    let output = exec(
        &["--volume", &volume(":overlay")],
        rm,
        &["-v", "/srv/data/a"],
    );
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        (String::new(), Some(0))
    );
    assert!(folder.0.join("a").exists());
    let output = exec(&["--volume", &volume(":all")], rm, &["/srv/data/a"]);
    assert!(text(&output.stderr).contains("`:overlay` or `:rw` only"));
    assert_eq!(output.status.code(), Some(126));
    let output = exec(&["--volume", &volume(":rw")], rm, &["-v", "/srv/data/a"]);
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        (String::new(), Some(0))
    );
    assert!(!folder.0.join("a").exists());
}

#[test]
fn calls_are_shown_on_request() {
    kvm_or_skip!();
    let output = exec(&["--strace"], Path::new("/bin/cat"), &["/no/where"]);
    let said = text(&output.stderr);
    let line = "[1] openat(AT_FDCWD, \"/no/where\", 0, 00) = -1 ENOENT\n";
    assert!(said.contains(line), "{said}");
}

#[test]
fn the_time_costs_no_call_where_the_counter_tells_it() {
    kvm_or_skip!();
    let output = exec(&["--strace"], &program("clock"), &["1000"]);
    assert!(output.status.success());
    let calls = text(&output.stderr).matches("clock_gettime(").count();
    if forkvm::probe().unwrap().counter_is_a_clock {
        assert!(calls < 100, "{calls}");
    } else {
        assert_eq!(calls, 1000);
    }
}

/// What the C library asks of interfaces before it looks for an address has to be there for programs that may use it.
#[test]
fn the_way_outside_is_an_interface() {
    kvm_or_skip!();
    let program = program("interfaces");
    let all = exec(&["--allow-net"], &program, &["all"]);
    assert_eq!(
        text(&all.stdout),
        "lo -\neth0 -\nlo 127.0.0.1\nlo ::1\neth0 192.0.2.1\neth0 2001:db8::1\n0\n0 failed\n"
    );
    let alone = exec(&[], &program, &["all"]);
    assert_eq!(
        text(&alone.stdout),
        "lo -\nlo 127.0.0.1\nlo ::1\n-2\n0 failed\n"
    );
}

#[test]
fn scripts_name_their_interpreter() {
    kvm_or_skip!();
    let folder = Folder::new("script");
    let script = folder.0.join("script");
    let start = program("start");
    std::fs::write(&script, format!("#!{}  an argument \n", start.display())).unwrap();
    let output = exec(
        &[&format!("--allow-read={}", folder.0.display())],
        &script,
        &["last"],
    );
    let lines = text(&output.stdout);
    let expected = [
        format!("argv[0] {}", start.display()),
        "argv[1] an argument".into(),
        format!("argv[2] {}", script.display()),
        "argv[3] last".into(),
    ];
    assert!(lines.starts_with(&expected.join("\n")), "{lines}");
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn what_cannot_be_run_says_why() {
    kvm_or_skip!();
    let stderr = |output: Output| {
        assert_eq!(output.status.code(), Some(126));
        text(&output.stderr)
    };
    let said = stderr(exec(&[], Path::new("no-such-program-anywhere"), &[]));
    assert_eq!(said, "forkvm: no-such-program-anywhere: no such program\n");
    let said = stderr(exec(&[], Path::new("/etc/hosts"), &[]));
    assert!(said.contains("not an ELF program"), "{said}");
    let said = stderr(exec(&["--max-memory", "2"], &program("start"), &[]));
    assert!(said.contains("max_memory"), "{said}");
}

#[test]
fn nothing_is_read_that_is_not_allowed() {
    kvm_or_skip!();
    let folder = Folder::new("secret");
    let secret = folder.0.join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let secret = secret.to_str().unwrap();
    let output = exec(&[], Path::new("/bin/cat"), &[secret]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("No such file or directory"));
    let allowed = format!("--allow-read={secret}");
    let output = exec(&[&allowed], Path::new("/bin/cat"), &[secret]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "secret");
}

#[test]
fn the_environment_is_what_is_allowed() {
    kvm_or_skip!();
    let environment = |options: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .arg("exec")
            .args(options)
            .args(["--", "/usr/bin/env"])
            .env_clear()
            .envs([("A", "1"), ("B", "2"), ("PATH", "/usr/bin")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let text = text(&output.stdout);
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let path = "PATH=/usr/local/bin:/usr/bin:/bin";
    assert_eq!(environment(&[]), [path]);
    assert_eq!(environment(&["--allow-env=A,C"]), ["A=1", path]);
    assert_eq!(
        environment(&["--env=A", "--env=C", "--env=B=3"]),
        ["A=1", "B=3", path]
    );
    assert_eq!(
        environment(&["--allow-env", "--env=A=x"]),
        ["A=x", "B=2", "PATH=/usr/bin"]
    );
    assert_eq!(
        environment(&["--allow-all"]),
        ["A=1", "B=2", "PATH=/usr/bin"]
    );
}
