//! What may be opened, and what not.

use crate::linux::files::fds::*;
use crate::linux::testing::{Machine, SCRATCH, TestFolder};
use std::os::unix::fs::symlink;
use syscalls::Sysno;

const HERE: u64 = libc::AT_FDCWD as u64;

fn machine(folder: &TestFolder) -> Machine {
    Machine::new(vec![folder.0.clone()])
}

fn open(machine: &mut Machine, path: &str, how: u32) -> i64 {
    let path = machine.put_str(10, path);
    machine.call(Sysno::openat, &[HERE, path, u64::from(how), 0])
}

fn contents(machine: &mut Machine, fd: i64) -> Vec<u8> {
    let read = machine.call(Sysno::read, &[fd as u64, SCRATCH, 4096]);
    machine.get(SCRATCH, usize::try_from(read).unwrap())
}

#[test]
fn allowed_files_are_read_and_no_others() {
    let folder = TestFolder::new();
    folder.file("a", b"hello, world");
    let mut machine = machine(&folder);
    let fd = open(&mut machine, &folder.path("a"), 0);
    assert_eq!(fd, 3);
    assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 5]), 5);
    assert_eq!(contents(&mut machine, 3), b", world");
    assert_eq!(machine.call(Sysno::pread64, &[3, SCRATCH, 5, 7]), 5);
    assert_eq!(machine.get(SCRATCH, 5), b"world");
    assert_eq!(machine.call(Sysno::lseek, &[3, 2, 0]), 2);
    assert_eq!(machine.call(Sysno::lseek, &[3, -1i64 as u64, 2]), 11);
    assert_eq!(machine.call(Sysno::lseek, &[3, -20i64 as u64, 1]), -22);
    assert_eq!(machine.call(Sysno::write, &[3, SCRATCH, 1]), -9);
    assert_eq!(open(&mut machine, "/etc/passwd", 0), -2);
    assert_eq!(open(&mut machine, &folder.path("../../etc/passwd"), 0), -2);
    assert_eq!(open(&mut machine, &folder.path("missing"), 0), -2);
    assert_eq!(open(&mut machine, &folder.path("a/"), 0), -20);
    assert_eq!(open(&mut machine, "", 0), -2);
    assert_eq!(machine.call(Sysno::openat, &[HERE, 1, 0]), -14);
}

#[test]
fn links_may_not_leave_what_is_allowed() {
    let (folder, outside) = (TestFolder::new(), TestFolder::new());
    folder.file("a", b"inside");
    outside.file("secret", b"outside");
    symlink("a", folder.path("good")).unwrap();
    symlink(outside.path("secret"), folder.path("absolute")).unwrap();
    symlink("../".repeat(20) + "etc/passwd", folder.path("up")).unwrap();
    symlink(&outside.0, folder.path("folder")).unwrap();
    symlink("loop", folder.path("loop")).unwrap();
    let mut machine = machine(&folder);
    let fd = open(&mut machine, &folder.path("good"), 0);
    assert_eq!(contents(&mut machine, fd), b"inside");
    assert_eq!(open(&mut machine, &folder.path("absolute"), 0), -13);
    assert_eq!(open(&mut machine, &folder.path("up"), 0), -13);
    assert_eq!(open(&mut machine, &folder.path("folder/secret"), 0), -13);
    assert_eq!(open(&mut machine, &folder.path("loop"), 0), -40);
    assert_eq!(open(&mut machine, &folder.path("good"), O_NOFOLLOW), -40);
}

#[test]
fn nothing_is_ever_written() {
    let folder = TestFolder::new();
    folder.file("a", b"x");
    let mut machine = machine(&folder);
    assert_eq!(open(&mut machine, &folder.path("a"), 2), -30);
    assert_eq!(open(&mut machine, &folder.path("a"), O_TRUNC), -30);
    assert_eq!(open(&mut machine, &folder.path("new"), O_CREAT | 1), -30);
    assert_eq!(open(&mut machine, &folder.path("a"), O_CREAT | O_EXCL), -17);
    assert_eq!(open(&mut machine, &folder.path(""), 1), -21);
    assert_eq!(open(&mut machine, "/tmp-new", O_CREAT | 1), -13);
    assert_eq!(open(&mut machine, "/etc/passwd", 1), -2);
    let path = machine.put_str(10, &folder.path("a"));
    let missing = machine.put_str(11, &folder.path("missing"));
    assert_eq!(machine.call(Sysno::unlink, &[path]), -30);
    assert_eq!(machine.call(Sysno::unlink, &[missing]), -2);
    assert_eq!(machine.call(Sysno::mkdir, &[path]), -17);
    assert_eq!(machine.call(Sysno::mkdir, &[missing]), -13);
    assert_eq!(std::fs::read(folder.path("a")).unwrap(), b"x");
}

#[test]
fn only_files_and_folders_are_opened() {
    let folder = TestFolder::new();
    let fifo = std::ffi::CString::new(folder.path("fifo")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    let mut machine = Machine::new(vec![folder.0.clone(), "/dev".into(), "/proc".into()]);
    assert_eq!(open(&mut machine, &folder.path("fifo"), 0), -13);
    assert_eq!(open(&mut machine, &folder.path("socket"), 0), -13);
    assert_eq!(open(&mut machine, "/dev/tty", 0), -13);
    assert_eq!(open(&mut machine, "/proc/self/environ", 0), -13);
    assert_eq!(open(&mut machine, "/proc/1/status", 0), -13);
    assert_eq!(open(&mut machine, &folder.path("fifo"), O_PATH), 3);
    assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 1]), -9);
}

#[test]
fn an_allowed_file_does_not_allow_its_neighbours() {
    let folder = TestFolder::new();
    folder.file("a", b"this");
    folder.file("b", b"not this");
    let mut machine = Machine::new(vec![folder.0.join("a")]);
    let fd = open(&mut machine, &folder.path("a"), 0);
    assert_eq!(contents(&mut machine, fd), b"this");
    assert_eq!(open(&mut machine, &folder.path("b"), 0), -2);
    assert_eq!(open(&mut machine, &folder.path("a/x"), 0), -20);
}

#[test]
fn duplicates_share_an_offset_and_forks_do_not() {
    let folder = TestFolder::new();
    folder.file("a", b"0123456789");
    let mut machine = machine(&folder);
    assert_eq!(open(&mut machine, &folder.path("a"), 0), 3);
    assert_eq!(machine.call(Sysno::dup, &[3]), 4);
    assert_eq!(machine.call(Sysno::read, &[3, SCRATCH, 4]), 4);
    let master = machine.linux.clone();
    assert_eq!(contents(&mut machine, 4), b"456789");
    machine.linux.restore_from(&master);
    assert_eq!(contents(&mut machine, 3), b"456789");
    machine.call(Sysno::close, &[3]);
    machine.call(Sysno::close, &[4]);
    machine.linux.restore_from(&master);
    assert_eq!(contents(&mut machine, 4), b"456789");
}

#[test]
fn host_files_are_bounded() {
    let folder = TestFolder::new();
    folder.file("a", b"");
    let mut machine = machine(&folder);
    let opened = (0..1000)
        .take_while(|_| open(&mut machine, &folder.path("a"), 0) > 0)
        .count();
    assert_eq!(opened, 64);
    assert_eq!(open(&mut machine, &folder.path("a"), 0), -24);
}

#[test]
fn devices_and_reports() {
    let mut machine = Machine::new(Vec::new());
    let fd = open(&mut machine, "/dev/null", 2) as u64;
    assert_eq!(machine.call(Sysno::write, &[fd, SCRATCH, 100]), 100);
    assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 100]), 0);
    let fd = open(&mut machine, "/dev/zero", 0) as u64;
    machine.put(0, &[1; 10]);
    assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 10]), 10);
    assert_eq!(machine.get(SCRATCH, 10), [0; 10]);
    let fd = open(&mut machine, "/dev/urandom", 0) as u64;
    assert_eq!(machine.call(Sysno::read, &[fd, SCRATCH, 10]), 10);
    assert_ne!(machine.get(SCRATCH, 10), [0; 10]);
    let fd = open(&mut machine, "/dev/full", 1) as u64;
    assert_eq!(machine.call(Sysno::write, &[fd, SCRATCH, 10]), -28);
    let fd = open(&mut machine, "/sys/devices/system/cpu/online", 0);
    assert_eq!(contents(&mut machine, fd), b"0\n");
    assert_eq!(open(&mut machine, "/proc/self/maps", 1), -13);
    assert_eq!(open(&mut machine, "/proc/self/exe", 0), -13);
    assert!(open(&mut machine, "/", 0) > 0);
}

#[test]
fn files_are_mapped_as_copies() {
    let folder = TestFolder::new();
    folder.file("a", &[7; 5000]);
    let mut machine = machine(&folder);
    let fd = open(&mut machine, &folder.path("a"), 0) as u64;
    let at = machine.call(Sysno::mmap, &[0, 3 * 4096, 1, 2, fd, 0]) as u64;
    assert_eq!(machine.get(at, 5000), [7; 5000]);
    assert_eq!(
        machine.get(at + 5000, 3 * 4096 - 5000),
        [0; 3 * 4096 - 5000]
    );
    let at = machine.call(Sysno::mmap, &[0, 4096, 3, 2, fd, 4096]) as u64;
    assert_eq!(machine.get(at, 905), [[7; 904].as_slice(), &[0]].concat());
    assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 1, fd, 0]), -13);
    assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, fd, 1]), -22);
    assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, 99, 0]), -9);
    assert_eq!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, 1, 0]), -13);
    let zero = open(&mut machine, "/dev/zero", 2) as u64;
    assert!(machine.call(Sysno::mmap, &[0, 4096, 3, 2, zero, 0]) > 0);
}
