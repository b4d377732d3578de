//! Descriptors: their numbers, what they share, and their limits.

use rustix::io::Errno;

use crate::linux::files::fds::*;
use crate::linux::files::host_files::MAX_HOST_FILES;
use crate::linux::testing::{Machine, SCRATCH, TestFolder};
use syscalls::Sysno;

#[test]
fn texts_have_a_limit_together() {
    const THIRD: usize = MAX_TEXT_BYTES / 3 + 1;
    let mut files = Files::new(b"/", 0, 0);
    let open =
        |files: &mut Files| files.add(OpenFile::new(Kind::Text(vec![0; THIRD].into()), 0), false);
    let first = open(&mut files).unwrap();
    open(&mut files).unwrap();
    // The same text once more.
    files.duplicate(first, 0, false).unwrap();
    assert_eq!(open(&mut files), Err(Errno::NOMEM));
    files
        .add(OpenFile::new(Kind::Text(vec![0; 9].into()), 0), false)
        .unwrap();
    close(&mut files, first).unwrap();
    assert_eq!(open(&mut files), Err(Errno::NOMEM));
    close(&mut files, 5).unwrap();
    open(&mut files).unwrap();
}

#[test]
fn descriptors_are_the_lowest_free_ones() {
    let mut machine = Machine::new(Vec::new());
    assert_eq!(machine.call(Sysno::dup, &[1]), 3);
    assert_eq!(machine.call(Sysno::dup, &[1]), 4);
    assert_eq!(machine.call(Sysno::close, &[3]), 0);
    assert_eq!(machine.call(Sysno::close, &[3]), -9);
    assert_eq!(machine.call(Sysno::dup, &[2]), 3);
    assert_eq!(
        machine.call(Sysno::fcntl, &[1, libc::F_DUPFD_CLOEXEC as u64, 10]),
        10
    );
    assert_eq!(machine.call(Sysno::fcntl, &[10, libc::F_GETFD as u64]), 1);
    assert_eq!(machine.call(Sysno::fcntl, &[3, libc::F_GETFD as u64]), 0);
    assert_eq!(machine.call(Sysno::dup2, &[10, 10]), 10);
    assert_eq!(machine.call(Sysno::dup2, &[77, 77]), -9);
    assert_eq!(machine.call(Sysno::dup3, &[10, 10, 0]), -22);
    assert_eq!(machine.call(Sysno::dup2, &[1, 256]), -9);
    assert_eq!(machine.call(Sysno::dup2, &[1, u64::MAX]), -9);
    assert_eq!(machine.call(Sysno::dup2, &[1, 200]), 200);
    assert_eq!(machine.call(Sysno::close_range, &[3, u64::MAX, 0]), 0);
    assert_eq!(machine.call(Sysno::close, &[200]), -9);
}

#[test]
fn forks_share_the_hosts_descriptors() {
    let folder = TestFolder::new();
    folder.file("a", b"x");
    let mut forks = [(); 2].map(|()| Machine::new(vec![folder.0.clone()]));
    let [first, second] = &mut forks;
    let path = first.put_str(0, &folder.path("a"));
    second.put_str(0, &folder.path("a"));
    // One is the master's, and counts once.
    assert_eq!(first.call(Sysno::open, &[path, 0]), 3);
    let master = first.linux.clone();
    second.linux = master.clone();
    for _ in 1..MAX_HOST_FILES {
        assert!(first.call(Sysno::open, &[path, 0]) > 3);
    }
    assert_eq!(second.call(Sysno::open, &[path, 0]), -24);
    assert_eq!(second.call(Sysno::dup, &[3]), 4);
    assert_eq!(first.call(Sysno::close, &[10]), 0);
    assert_eq!(second.call(Sysno::open, &[path, 0]), 5);
    assert_eq!(second.call(Sysno::open, &[path, 0]), -24);
    first.linux.restore_from(&master);
    for _ in 2..MAX_HOST_FILES {
        assert!(second.call(Sysno::open, &[path, 0]) > 5);
    }
    assert_eq!(second.call(Sysno::open, &[path, 0]), -24);
}

#[test]
fn descriptors_run_out() {
    let mut machine = Machine::new(Vec::new());
    for _ in 3..MAX_DESCRIPTORS {
        assert!(machine.call(Sysno::dup, &[1]) > 0);
    }
    assert_eq!(machine.call(Sysno::dup, &[1]), -24);
    assert_eq!(machine.call(Sysno::pipe, &[SCRATCH]), -24);
}
