//! `forkvm exec`: programs do in the machine what they do without it, whether each call exits or the dispatcher answers some.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod executing;
mod natively;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Folder, kvm_or_skip};
use executing::{exec, program, text};
use natively::{Said, natively};

/// Runs a program natively and in the machine, where each call exits and where the dispatcher answers some: output and exit status
/// have to be the same.
fn same(name: &str) {
    let program = program(name);
    let arguments = ["one", "", "two words"];
    let mut command = Command::new(&program);
    command.args(arguments).env_clear().env("LINUX_TEST", "x=y");
    let Some(native) = natively(name, &mut command) else {
        return;
    };
    kvm_or_skip!();
    for flags in [
        &["--no-dispatcher", "--env", "LINUX_TEST=x=y"][..],
        &["--env", "LINUX_TEST=x=y"],
    ] {
        let machine = Said::of(&exec(flags, &program, &arguments));
        let mut lines = machine.stdout.lines().zip(native.stdout.lines());
        let first = lines.find(|(machine, native)| machine != native);
        assert!(
            machine == native,
            "{name} in the machine with {flags:?} and natively: the first lines that differ are {first:?};\n{:?}\n{:?}",
            (
                &machine.stderr,
                machine.code,
                machine.signal,
                machine.stdout.len()
            ),
            (
                &native.stderr,
                native.code,
                native.signal,
                native.stdout.len()
            ),
        );
    }
}

#[test]
fn programs_start_alike_however_they_are_linked() {
    for name in [
        "start",
        "start-no-pie",
        "start-static",
        "start-static-pie",
        "start-musl",
    ] {
        same(name);
    }
}

#[test]
fn memory_calls() {
    same("memory");
}

#[test]
fn shared_mappings_of_files() {
    same("shared");
}

#[test]
fn threads_and_futexes() {
    same("threads");
}

#[test]
fn a_program_starts_anew_after_another() {
    same("anew");
}

#[test]
fn calls_leave_the_registers_as_they_do_natively() {
    same("registers");
}

#[test]
fn signals_and_timers() {
    same("signals");
}

/// What a test finds in its folder.
fn furnish(folder: &Path) {
    let given = folder.join("given");
    std::fs::create_dir_all(given.join("sub")).unwrap();
    std::fs::write(given.join("file"), "the host's").unwrap();
    std::fs::write(given.join("other"), "the other").unwrap();
    std::fs::write(given.join("sub/deep"), "deep").unwrap();
    std::fs::write(given.join("big"), "b".repeat(400_000)).unwrap();
    std::os::unix::fs::symlink("file", given.join("link")).unwrap();
}

/// Every file in a folder with its content, and every link.
fn snapshot(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        if found.is_dir() {
            all.extend(snapshot(&path));
        }
        let content = std::fs::read(&path).unwrap_or_default();
        all.push((path, found.mode(), content));
    }
    all.sort();
    all
}

#[test]
fn files_are_changed_as_natively_and_nothing_reaches_the_host() {
    let program = program("files");
    let (native, machine) = (Folder::new("files-native"), Folder::new("files-machine"));
    furnish(&native.0);
    furnish(&machine.0);
    let before = snapshot(&machine.0);
    let mut command = Command::new(&program);
    let Some(natively) = natively("files", command.env("FILES_TEST", &native.0)) else {
        return;
    };
    kvm_or_skip!();
    let folder = machine.0.display();
    let flags = [
        &format!("--allow-write={folder}")[..],
        "--env",
        &format!("FILES_TEST={folder}"),
    ];
    let output = exec(&flags, &program, &[]);
    assert_eq!(text(&output.stdout), natively.stdout);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), natively.code);
    assert!(natively.stdout.ends_with("\n0 failed\n"));
    assert_eq!(snapshot(&machine.0), before);
    assert_ne!(snapshot(&native.0), before);
}

#[test]
fn files_of_a_volume_are_changed_in_the_host_as_natively() {
    let program = program("files");
    let (native, machine) = (Folder::new("volume-native"), Folder::new("volume-machine"));
    furnish(&native.0);
    furnish(&machine.0);
    let mut command = Command::new(&program);
    let Some(natively) = natively("files", command.env("FILES_TEST", &native.0)) else {
        return;
    };
    kvm_or_skip!();
    let volume = format!("--volume={}:/srv/data:rw", machine.0.display());
    let output = exec(&[&volume, "--env=FILES_TEST=/srv/data"], &program, &[]);
    assert_eq!(text(&output.stdout), natively.stdout);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), natively.code);
    let relative = |folder: &Path| {
        let all = snapshot(folder).into_iter();
        all.map(|(path, mode, content)| {
            (path.strip_prefix(folder).unwrap().to_owned(), mode, content)
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(relative(&machine.0), relative(&native.0));
}

#[test]
fn proc_and_devices_are_there() {
    same("proc");
}

/// Natively only root can do the same.
#[test]
fn users_are_who_they_say_they_are() {
    if rustix::process::geteuid().is_root() {
        same("ids");
    } else {
        let output = exec(&[], &program("ids"), &[]);
        assert!(text(&output.stdout).ends_with("\n0 failed\n"));
    }
}

#[test]
fn clocks_tell_the_same_by_all_ways() {
    same("clock");
}

#[test]
fn what_packets_say_beside_their_bytes() {
    same("packets");
}

#[test]
fn network_interfaces_are_the_loopback() {
    same("interfaces");
}

#[test]
fn sockets_of_all_kinds() {
    same("sockets");
}

#[test]
fn waiting_for_descriptors() {
    same("epoll");
}

#[test]
fn counters_timers_and_signals_as_descriptors() {
    same("eventfd");
}

#[test]
fn locks_of_files() {
    same("locks");
}

#[test]
fn writes_wait_for_room_in_pipes() {
    same("pipes");
}

#[test]
fn named_pipes_sockets_and_names_exchanged() {
    same("named");
}

#[test]
fn descriptors_of_the_process_and_waits_for_several_futexes() {
    same("pidfd");
}

#[test]
fn bytes_between_pipes_and_files() {
    same("splice");
}

#[test]
fn descriptors_go_through_sockets() {
    same("rights");
}

#[test]
fn reading_and_writing_in_all_forms() {
    same("rw");
}

#[test]
fn calls_with_paths() {
    same("paths");
}

#[test]
fn calls_with_descriptors() {
    same("fdcalls");
}

#[test]
fn calls_about_signals() {
    same("sigcalls");
}

#[test]
fn what_a_process_is() {
    same("ids");
}

#[test]
fn clocks_and_sleeps() {
    same("times");
}

#[test]
fn mapped_files_end() {
    same("bus");
}

#[test]
fn timers_of_a_process() {
    same("timers");
}

#[test]
fn how_tasks_are_scheduled() {
    same("sched");
}
