//! Folders of the host that programs may change: what they do stays within them.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod executing;
mod serving;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Folder, guest_path, kvm_or_skip};
use executing::{exec, text};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use serving::Serving;

/// A folder that a program may change, and one beside it that it may not.
struct Host {
    folder: Folder,
}

impl Host {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        for name in ["data", "other", "outside"] {
            std::fs::create_dir_all(folder.0.join(name)).unwrap();
        }
        std::fs::write(folder.0.join("outside/secret"), "secret").unwrap();
        std::fs::write(folder.0.join("other/there"), "there").unwrap();
        std::fs::write(folder.0.join("alone"), "alone").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    fn flags(&self) -> Vec<String> {
        ["data", "other", "alone"]
            .iter()
            .map(|name| format!("--volume={}:/srv/{name}:rw", self.path(name).display()))
            .collect()
    }

    /// Runs the program in the background, until it says that it is ready.
    fn begins(&self, how: &str) -> Child {
        let program = guest_path("linux/volume");
        let mut child = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .arg("exec")
            .args(self.flags())
            .arg("--")
            .args([program.to_str().unwrap(), how])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        let mut line = Vec::new();
        while !line.ends_with(b"ready\n") {
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut byte)
                .unwrap();
            line.push(byte[0]);
        }
        child
    }

    fn outside(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let all = std::fs::read_dir(self.path("outside")).unwrap();
        all.map(|entry| {
            let path = entry.unwrap().path();
            let mode = path.symlink_metadata().unwrap().permissions().mode();
            let content = std::fs::read(&path).unwrap_or_default();
            (path, mode, content)
        })
        .collect()
    }
}

fn ends(child: Child) -> (String, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    (text(&output.stdout), output.status.code())
}

#[test]
fn nothing_leads_out() {
    kvm_or_skip!();
    let host = Host::new("escape");
    let data = |name: &str| host.path("data").join(name);
    symlink("../outside", data("planted")).unwrap();
    symlink(host.path("outside"), data("planted-absolute")).unwrap();
    symlink("../outside/secret", data("planted-file")).unwrap();
    symlink("../outside/new", data("planted-new")).unwrap();
    let fifo = Mode::from_raw_mode(0o666);
    mknodat(CWD, data("fifo"), FileType::Fifo, fifo, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(data("socket")).unwrap();
    let before = host.outside();
    let flags = host.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = exec(&flags, &guest_path("linux/volume"), &["escape"]);
    let said = text(&output.stdout);
    assert_eq!(text(&output.stderr), "");
    assert!(said.ends_with("\n0 failed\n"), "{said}");
    assert_eq!(host.outside(), before);
    // Every way to what is outside fails.
    let (ways, _) = said.split_once("links at the end:").unwrap();
    for way in ways.split("by ").skip(1) {
        let is_link =
            |line: &&str| line.starts_with("symlink(\"/") || line.starts_with("symlink(\"..");
        let calls: Vec<_> = way.lines().skip(1).filter(|line| !is_link(line)).collect();
        assert_eq!(calls.len(), 21, "{way}");
        assert!(calls.iter().all(|call| call.contains(": -1 E")), "{way}");
    }
    let expected = [
        "open(\"planted-file\", O_WRONLY): -1 ENOENT",
        "open(\"planted-new\", O_WRONLY | O_CREAT, 0666): -1 EACCES",
        "open(\"fifo\", O_RDONLY): -1 EACCES",
        "open(\"fifo\", O_WRONLY): -1 EACCES",
        "open(\"fifo\", O_RDWR | O_CREAT | O_TRUNC, 0666): -1 EACCES",
        "open(\"socket\", O_RDWR): -1 EACCES",
        "mkfifo(\"mine-fifo\", 0666): -1 EPERM",
        "mknod(\"mine-null\", S_IFCHR | 0666, makedev(1, 3)): -1 EPERM",
        "mknod(\"mine-disk\", S_IFBLK | 0666, makedev(8, 0)): -1 EPERM",
        "fchmod(fd, 06755): 0",
        "fchown(fd, s.st_uid, s.st_gid): 0",
        "fchown(fd, s.st_uid + 1, -1): -1 EPERM",
        "chown(\"suid\", -1, s.st_gid + 1): -1 EPERM",
        "rename(\"/tmp/x\", \"x\"): -1 EXDEV",
        "rename(\"file\", \"/tmp/y\"): -1 EXDEV",
        "rename(\"file\", \"/srv/other/file\"): -1 EXDEV",
        "rename(\"missing\", \"/srv/other/file\"): -1 ENOENT",
        "link(\"/tmp/x\", \"x\"): -1 EXDEV",
        "link(\"file\", \"/tmp/y\"): -1 EXDEV",
        "link(\"file\", \"/srv/other/file\"): -1 EXDEV",
        "link(\"/etc/hosts\", \"hosts\"): -1 EXDEV",
        "rmdir(\"/srv/data\"): -1 EBUSY",
        "rename(\"/srv/data\", \"/srv/data2\"): -1 EXDEV",
        "rename(\"/srv/other\", \"inside\"): -1 EXDEV",
        "unlink(\"/srv/alone\"): -1 EBUSY",
        "mkdir(\"/srv/new\", 0777): -1 EACCES",
        "pwrite(fd, \"x\", 1, -1): -1 EINVAL",
        "write(fd, BAD, 10): -1 EFAULT",
    ];
    for line in expected {
        assert!(said.contains(&format!("{line}\n")), "{line}: {said}");
    }
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(data("made")), "by a link in memory");
    assert_eq!(read(host.path("other/made")), "by a link across");
    assert_eq!(read(host.path("alone")), "changed");
    assert_eq!(read(data("first")), "of the second");
    assert_eq!(read(data("second")), "of the first");
    let mode = |name: &str| data(name).metadata().unwrap().permissions().mode();
    assert_eq!((mode("suid") & 0o7777, mode("sgid") & 0o6000), (0o755, 0));
}

/// The process's own limit of a file's size, and what is left of a disk, are errors for the program.
#[test]
fn a_limit_of_the_host_ends_nobody() {
    kvm_or_skip!();
    let host = Host::new("limits");
    let child = host.begins("wait");
    let pid = rustix::process::Pid::from_child(&child);
    let limit = rustix::process::Rlimit {
        current: Some(100_000),
        maximum: Some(100_000),
    };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    std::fs::write(host.path("data/go"), "").unwrap();
    let (said, status) = ends(child);
    let expected = [
        "write(fd, block, sizeof block): 65536",
        "write(fd, block, sizeof block): 34464",
        "ftruncate(fd, 1 << 20): -1 EFBIG",
        "fallocate(fd, 0, 0, 1 << 20): -1 EFBIG",
        "pwrite(fd, \"x\", 1, 1 << 20): -1 EFBIG",
        "0 failed\n",
    ];
    assert_eq!((said, status), (expected.join("\n"), Some(0)));
}

#[test]
fn no_race_leads_out() {
    kvm_or_skip!();
    let host = Host::new("race");
    let (real, link) = (host.path("data/flips"), host.path("data/.link"));
    std::fs::create_dir(&real).unwrap();
    symlink("../outside", &link).unwrap();
    let before = host.outside();
    let child = host.begins("race");
    let start = std::time::Instant::now();
    let mut flips = 0;
    while start.elapsed().as_millis() < 1500 {
        renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE).unwrap();
        flips += 1;
    }
    std::fs::write(host.path("data/stop"), "").unwrap();
    let (said, status) = ends(child);
    assert_eq!((said.as_str(), status), ("0 failed\n", Some(0)), "{flips}");
    assert_eq!(host.outside(), before);
}

#[test]
fn a_machine_writes_so_much_and_no_more() {
    kvm_or_skip!();
    let host = Host::new("fill");
    let mut flags = host.flags();
    flags.push("--max-volume-writes=1".into());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = exec(&flags, &guest_path("linux/volume"), &["fill"]);
    let said = text(&output.stdout);
    // A name is 4096 bytes, and what is left is less than a block.
    assert!(said.starts_with("983040 bytes, then EDQUOT\n"), "{said}");
    assert!(said.contains("\n15 names, then EDQUOT\n"), "{said}");
    for call in ["symlink(", "link(", "open(", "fallocate("] {
        let line = said.lines().find(|line| line.starts_with(call)).unwrap();
        assert!(line.ends_with("-1 EDQUOT"), "{line}");
    }
    assert!(said.contains("unlink(\"much\"): 0\n"), "{said}");
    let lines = text(&output.stderr);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("--max-volume-writes"), "{lines}");
    assert_eq!(output.status.code(), Some(0));
}

/// A small file system of its own. Unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf) -> Option<Self> {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(&at)
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success())
            .then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A disk that is full gives the program the host's error.
#[test]
fn a_full_disk_is_the_programs_to_know() {
    kvm_or_skip!();
    let host = Host::new("full");
    let Some(_mounted) = Mounted::new(host.path("data")) else {
        eprintln!("skipped: file systems can't be mounted here");
        return;
    };
    let flags = host.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = exec(&flags, &guest_path("linux/volume"), &["fill"]);
    let said = text(&output.stdout);
    assert!(said.starts_with("262144 bytes, then ENOSPC\n"), "{said}");
    assert_eq!(text(&output.stderr), "");
}

/// What is mounted beneath a folder is not that folder's, and interfaces of the kernel are no files.
#[test]
fn kernel_interfaces_are_not_to_be_changed() {
    kvm_or_skip!();
    for path in ["/proc", "/sys", "/proc/sys"] {
        let volume = format!("--volume={path}:/srv/data:rw");
        let output = exec(&[&volume], Path::new("/bin/true"), &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{said}");
        assert!(said.contains("Read-only file system"), "{said}");
    }
    let tee = Path::new("/usr/bin/tee");
    for path in [
        "/srv/all/proc/sys/kernel/hostname",
        "/srv/all/dev/null",
        "/srv/all/dev/shm/x",
    ] {
        let output = exec(&["--volume=/:/srv/all:rw"], tee, &[path]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{path}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_mapping_writes_what_it_has_changed() {
    kvm_or_skip!();
    let host = Host::new("mapped");
    let child = host.begins("map");
    // Somebody else's, on the same page.
    let path = host.path("data/mapped");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"theirs", 200).unwrap();
    std::fs::write(host.path("data/go"), "").unwrap();
    let (said, status) = ends(child);
    assert_eq!((said.as_str(), status), ("0 failed\n", Some(0)));
    let content = std::fs::read(&path).unwrap();
    let at = |place: usize, what: &[u8]| assert_eq!(&content[place..place + what.len()], what);
    assert_eq!(content.len(), 20_000);
    at(0, b"p");
    at(100, b"by the mapping");
    at(200, b"theirs");
    at(5000, b"by a call");
    at(9999, b"!");
    at(19_900, b"exit");
    at(19_997, b"end");
}

/// One machine serves all, and each connection may write as much as the one before.
#[test]
fn a_machine_that_is_not_reset_counts_anew_for_each_connection() {
    kvm_or_skip!();
    let host = Host::new("counted");
    let volume = format!("--volume={}:/srv/data:rw", host.path("data").display());
    let serving = Serving::simple(&[&volume, "--max-volume-writes=1", "--no-reset"]);
    for count in 1..=4 {
        assert_eq!(serving.get("/large"), format!("count {count}\n"));
    }
}

/// What a connection writes stays, though its fork is reset; and each may write as much as the one before.
#[test]
fn what_a_server_writes_stays() {
    kvm_or_skip!();
    let host = Host::new("served");
    let volume = format!("{}:/srv/data:rw", host.path("data").display());
    let config = host.path("forkvm.toml");
    let text = format!(
        "volume = [\"{volume}\"]\nforks = 4\nmax-volume-writes = 1\nallow-listen = [\"127.0.0.1:8000\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    let config = format!("--config={}", config.display());
    let serving = Serving::simple(&[&config]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(serving.get("/log"), "count 1\n");
                }
            });
        }
    });
    let log = std::fs::File::open(host.path("data/log")).unwrap();
    let lines: Vec<String> = BufReader::new(log).lines().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 200);
    assert!(lines.iter().all(|line| *line == "a line of count 1"));
    // Each writes 600 KiB of the 1 MiB that it may.
    for _ in 0..4 {
        assert_eq!(serving.get("/large"), "count 1\n");
    }
    assert_eq!(
        host.path("data/large").metadata().unwrap().len(),
        4 * (600 << 10)
    );
    assert!(
        !serving.said().contains("max-volume-writes"),
        "{}",
        serving.said()
    );
}
