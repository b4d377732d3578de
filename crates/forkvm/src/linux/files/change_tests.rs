//! What is changed, forgotten, bounded, and never reaches the host.

use crate::linux::Linux;
use crate::linux::files::fds::{O_CREAT, O_TRUNC};
use crate::linux::testing::{Machine, SCRATCH, TestFolder, setup};
use syscalls::Sysno;

const MAKE: u64 = (O_CREAT | 2) as u64;

/// A machine that may write to a folder, so many bytes.
fn machine(folder: &TestFolder, overlay_bytes: u64) -> Machine {
    let mut machine = Machine::new(Vec::new());
    machine.linux = Linux::new(crate::linux::Setup {
        writable_paths: vec![folder.0.clone(), "/tmp".into()],
        overlay_bytes,
        ..setup(vec![folder.0.clone().into()])
    });
    machine
}

fn on(machine: &mut Machine, call: Sysno, path: &str, args: [u64; 2]) -> i64 {
    let path = machine.put_str(10, path);
    machine.call(call, &[path, args[0], args[1]])
}

fn write(machine: &mut Machine, path: &str, text: &[u8]) -> i64 {
    let fd = on(
        machine,
        Sysno::open,
        path,
        [MAKE | u64::from(O_TRUNC), 0o600],
    );
    assert!(fd >= 0, "{path}: {fd}");
    let from = machine.put(11, text);
    let written = machine.call(Sysno::write, &[fd as u64, from, text.len() as u64]);
    machine.call(Sysno::close, &[fd as u64]);
    written
}

fn read(machine: &mut Machine, path: &str) -> Result<Vec<u8>, i64> {
    let fd = on(machine, Sysno::open, path, [0, 0]);
    if fd < 0 {
        return Err(fd);
    }
    let len = machine.call(Sysno::read, &[fd as u64, SCRATCH, 4096]);
    machine.call(Sysno::close, &[fd as u64]);
    Ok(machine.get(SCRATCH, len as usize))
}

#[test]
fn changes_are_forgotten_and_never_reach_the_host() {
    let folder = TestFolder::new();
    folder.file("a", b"the host's");
    folder.file("b", b"another");
    let (a, b, c) = (folder.path("a"), folder.path("b"), folder.path("c"));
    let mut machine = machine(&folder, 1 << 20);
    write(&mut machine, &b, b"the master's");
    write(&mut machine, "/tmp/x", b"in /tmp");
    let master = machine.linux.clone();
    for _ in 0..3 {
        assert_eq!(write(&mut machine, &a, b"a fork's"), 8);
        assert_eq!(write(&mut machine, &c, b"new"), 3);
        assert_eq!(on(&mut machine, Sysno::unlink, &b, [0, 0]), 0);
        assert_eq!(on(&mut machine, Sysno::mkdir, "/tmp/d", [0o755, 0]), 0);
        assert_eq!(on(&mut machine, Sysno::truncate, "/tmp/x", [3, 0]), 0);
        assert_eq!(read(&mut machine, &a).unwrap(), b"a fork's");
        assert_eq!(read(&mut machine, &b), Err(-2));
        assert_eq!(read(&mut machine, "/tmp/x").unwrap(), b"in ");
        machine.linux.restore_from(&master);
        assert_eq!(read(&mut machine, &a).unwrap(), b"the host's");
        assert_eq!(read(&mut machine, &b).unwrap(), b"the master's");
        assert_eq!(read(&mut machine, &c), Err(-2));
        assert_eq!(read(&mut machine, "/tmp/x").unwrap(), b"in /tmp");
        assert_eq!(on(&mut machine, Sysno::chdir, "/tmp/d", [0, 0]), -2);
    }
    assert_eq!(std::fs::read(&a).unwrap(), b"the host's");
    assert_eq!(std::fs::read(&b).unwrap(), b"another");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 2);
    assert!(!std::path::Path::new("/tmp/x").exists());
}

#[test]
fn bytes_and_files_run_out() {
    let folder = TestFolder::new();
    let mut machine = machine(&folder, 1 << 20);
    let master = machine.linux.clone();
    for _ in 0..3 {
        let path = folder.path("big");
        let fd = on(&mut machine, Sysno::open, &path, [MAKE, 0o600]) as u64;
        let written = (0..300)
            .map(|_| machine.call(Sysno::write, &[fd, SCRATCH, 4096]))
            .take_while(|&written| written > 0)
            .sum::<i64>();
        assert!((1 << 19..=1 << 20).contains(&written), "{written}");
        assert_eq!(machine.call(Sysno::write, &[fd, SCRATCH, 4096]), -28);
        assert_eq!(machine.call(Sysno::ftruncate, &[fd, 0]), 0);
        assert_eq!(machine.call(Sysno::pwrite64, &[fd, SCRATCH, 4096, 0]), 4096);
        assert_eq!(machine.call(Sysno::fallocate, &[fd, 0, 0, 1 << 40]), -28);
        assert_eq!(machine.call(Sysno::ftruncate, &[fd, 1 << 40]), 0);
        machine.linux.restore_from(&master);
    }
    let made = (0..100_000)
        .map(|i| on(&mut machine, Sysno::mkdir, &format!("/tmp/{i}"), [0, 0]))
        .take_while(|&made| made == 0)
        .count();
    assert!((10_000..20_000).contains(&made));
    assert_eq!(on(&mut machine, Sysno::mkdir, "/tmp/more", [0, 0]), -28);
    assert_eq!(on(&mut machine, Sysno::rmdir, "/tmp/0", [0, 0]), 0);
    assert_eq!(on(&mut machine, Sysno::mkdir, "/tmp/more", [0, 0]), 0);
    machine.linux.restore_from(&master);
    // What comes and goes leaves nothing behind.
    for _ in 0..20_000 {
        assert_eq!(on(&mut machine, Sysno::mkdir, "/tmp/d", [0, 0]), 0);
        assert_eq!(on(&mut machine, Sysno::rmdir, "/tmp/d", [0, 0]), 0);
    }
}

#[test]
fn links_do_not_lead_out() {
    let folder = TestFolder::new();
    let mut machine = machine(&folder, 1 << 20);
    let to = machine.put_str(12, "/etc/passwd");
    let path = machine.put_str(13, "/tmp/out");
    assert_eq!(machine.call(Sysno::symlink, &[to, path]), 0);
    assert_eq!(read(&mut machine, "/tmp/out"), Err(-2));
    let up = machine.put_str(12, &"../".repeat(20));
    let path = machine.put_str(13, "/tmp/up");
    assert_eq!(machine.call(Sysno::symlink, &[up, path]), 0);
    assert_eq!(read(&mut machine, "/tmp/up/etc/passwd"), Err(-2));
    assert_eq!(
        on(&mut machine, Sysno::open, "/tmp/up/new", [MAKE, 0o600]),
        -13
    );
    assert_eq!(on(&mut machine, Sysno::open, "/new", [MAKE, 0o600]), -13);
    assert_eq!(on(&mut machine, Sysno::rmdir, "/tmp", [0, 0]), -16);
}
