//! `forkvm snapshot`, and `forkvm serve --snapshot`.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Folder, kvm_or_skip};
use serving::{ENOUGH, Serving, server};

fn file(folder: &Folder) -> String {
    folder.0.join("snapshot").to_str().unwrap().to_owned()
}

fn taking(file: &str, options: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["snapshot", "-o", file])
        .args(options)
        .arg("--")
        .args(program)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn take(file: &str, options: &[&str], program: &[&str]) {
    let Output { status, stderr, .. } = taking(file, options, program).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success() && said.contains(" MiB; "), "{said}");
}

fn serving(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forkvm"));
    command
        .args(["serve", "--listen=127.0.0.1:0"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// What is said by one that does not start.
fn refused(options: &[&str]) -> String {
    let Output { status, stderr, .. } = serving(options).output().unwrap();
    assert!(!status.success());
    String::from_utf8_lossy(&stderr).into_owned()
}

#[test]
fn another_process_serves_as_if_it_had_booted() {
    kvm_or_skip!();
    let folder = Folder::new("snapshot-served");
    let file = file(&folder);
    take(&file, &["--warmup=3"], &[&server()]);
    let from = format!("--snapshot={file}");
    for more in [&["-t2"][..], &["-t2", "--per-request"], &["--no-reset"]] {
        let serving = Serving::spawn(&mut serving(&[&[&*from], more].concat()));
        for n in 1..=30 {
            let count = if more == ["--no-reset"] { n + 3 } else { 4 };
            assert_eq!(serving.get("/"), format!("count {count}\n"), "{more:?}");
        }
        assert_eq!(serving.get("/sleep").split(' ').next(), Some("count"));
    }
    // Where calls are answered is for each of the two to say.
    let other = folder.0.join("other").to_str().unwrap().to_owned();
    take(&other, &["--no-dispatcher"], &[&server()]);
    let other = format!("--snapshot={other}");
    for options in [
        &[&*from, "--no-dispatcher"][..],
        &[&*other],
        &[&*other, "--no-dispatcher"],
    ] {
        let serving = Serving::spawn(&mut serving(options));
        let count = if options[0] == from { 4 } else { 1 };
        for _ in 0..5 {
            assert_eq!(serving.get("/"), format!("count {count}\n"), "{options:?}");
            assert!(serving.get("/sleep").starts_with("count "));
        }
    }
    // The program may be named, and is the one that was taken.
    let same = Serving::spawn(serving(&[&from, "--"]).arg(server()));
    assert_eq!(same.get("/"), "count 4\n");
    assert!(refused(&[&from, "--", "/bin/other"]).contains("it is of another program"));
    // SIGHUP loads what is there by then.
    take(&file, &["--warmup=5"], &[&server()]);
    same.signal("HUP");
    same.has_said("the new program is in place");
    assert_eq!(same.get("/"), "count 6\n");
}

#[test]
fn what_can_not_go_on_is_named() {
    kvm_or_skip!();
    let folder = Folder::new("snapshot-refused");
    let file = file(&folder);
    let from = format!("--snapshot={file}");
    assert!(refused(&[&from]).contains("can't be opened"));
    std::fs::write(&file, "x").unwrap();
    assert!(refused(&[&from]).contains("it is no snapshot of forkvm's"));
    let data = folder.0.join("data");
    std::fs::write(&data, "something").unwrap();
    let read = folder.0.join("read");
    std::fs::write(&read, "once").unwrap();
    let allow = format!("--allow-read={},{}", data.display(), read.display());
    let python = which("/usr/bin/python3");
    let program = format!(
        "import http.server as h\nopen({read:?}).close()\nf = open({data:?})\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(self):\n  \
         body = f.read().encode()\n  self.send_response(200)\n  self.send_header('Content-Length', len(body))\n  \
         self.end_headers()\n  self.wfile.write(body)\nh.HTTPServer(('', 8000), H).serve_forever()"
    );
    let Some(python) = python else {
        return;
    };
    take(&file, &[&allow], &[python, "-c", &program]);
    let serves = || {
        let serving = Serving::spawn(&mut serving(&[&from, &allow]));
        assert_eq!(serving.get("/"), "something");
        assert_eq!(serving.get("/"), "something");
        serving
            .said()
            .contains("read has changed since the program read it")
    };
    assert!(!serves());
    assert!(refused(&[&from]).contains("data was allowed then"));
    // The same bytes, written anew: another file.
    let kept = folder.0.join("kept");
    std::fs::rename(&data, &kept).unwrap();
    assert!(refused(&[&from, &allow]).contains("data: No such file"));
    std::fs::write(&data, "something").unwrap();
    assert!(refused(&[&from, &allow]).contains("data was open when the snapshot was taken"));
    take(&file, &[&allow], &[python, "-c", &program]);
    // What it had read and closed need not be what it was.
    std::fs::write(&read, "again").unwrap();
    assert!(serves());
    let written = std::fs::metadata(&data)
        .and_then(|found| found.modified())
        .unwrap();
    std::fs::write(&data, "something else").unwrap();
    assert!(refused(&[&from, &allow]).contains("its size has changed"));
    std::fs::write(&data, "SOMETHING").unwrap();
    assert!(refused(&[&from, &allow]).contains("it was modified"));
    // Nor does it help to say that it was not.
    File::options()
        .write(true)
        .open(&data)
        .and_then(|file| file.set_modified(written))
        .unwrap();
    assert!(refused(&[&from, &allow]).contains("its name or its mode was changed"));
}

/// What is damaged may be found out when it serves already.
#[test]
fn late_damage_ends_it() {
    kvm_or_skip!();
    let folder = Folder::new("snapshot-late");
    let file = file(&folder);
    take(&file, &[], &[&server()]);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let said = refused(&[&format!("--snapshot={file}")]);
    assert!(
        said.contains("its memory is not what its hash says"),
        "{said}"
    );
    // The one before goes on.
    take(&file, &[], &[&server()]);
    let serving = Serving::spawn(&mut serving(&[&format!("--snapshot={file}")]));
    let bad = format!("{file}.bad");
    std::fs::write(&bad, &bytes).unwrap();
    std::fs::rename(&bad, &file).unwrap();
    serving.signal("HUP");
    serving.has_said("the program before goes on");
    assert_eq!(serving.get("/"), "count 1\n");
}

/// CLOCK_MONOTONIC stands still between freeze and load, by the vDSO as by the system call, and the time of day goes on.
#[test]
fn clocks_go_on_and_random_numbers_are_new() {
    kvm_or_skip!();
    let Some(python) = which("/usr/bin/python3") else {
        return;
    };
    let folder = Folder::new("snapshot-clocks");
    let file = file(&folder);
    let program = "import ctypes, http.server as h, os, time
libc = ctypes.CDLL(None)
def called(clock):
    at = (ctypes.c_long * 2)()
    libc.syscall(228, clock, at)
    return at[0] + at[1] / 1e9
start = [time.monotonic(), called(1), time.clock_gettime(7), called(7)]
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        now = [time.monotonic(), called(1), time.clock_gettime(7), called(7)]
        took = ' '.join(str(b - a) for a, b in zip(start, now))
        body = f'{os.urandom(8).hex()} {time.time()} {took}'.encode()
        self.send_response(200)
        self.send_header('Content-Length', len(body))
        self.end_headers()
        self.wfile.write(body)
h.HTTPServer(('', 8000), H).serve_forever()";
    let since = std::time::Instant::now();
    take(&file, &[], &[python, "-c", program]);
    let slept = Duration::from_secs(3);
    std::thread::sleep(slept);
    let serving = Serving::spawn(&mut serving(&[&format!("--snapshot={file}")]));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let answer = serving.get("/");
        let words: Vec<&str> = answer.split(' ').collect();
        let [random, real, took @ ..] = &words[..] else {
            panic!("{answer}");
        };
        assert!(seen.insert((*random).to_owned()), "{answer}");
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((now - real.parse::<f64>().unwrap()).abs() < ENOUGH.as_secs_f64());
        assert_eq!(took.len(), 4, "{answer}");
        for took in took {
            let took: f64 = took.parse().unwrap();
            // A second of the three is for what is rounded.
            let most = (since.elapsed() - slept).as_secs_f64() + 1.0;
            assert!(took > 0.0 && took < most, "{took} of {most}: {answer}");
        }
    }
}

fn which(path: &str) -> Option<&str> {
    let there = Path::new(path).exists();
    if !there {
        eprintln!("SKIPPED, not installed: {path}");
    }
    there.then_some(path)
}

/// Whenever the writer is killed, what has the name is the old file or the new one, whole.
#[test]
fn two_hundred_kills_leave_the_old_or_the_new() {
    kvm_or_skip!();
    let folder = Folder::new("snapshot-killed");
    let file = file(&folder);
    take(&file, &["--warmup=1"], &[&server()]);
    let (mut old, mut new) = (0, 0);
    let took = {
        let start = std::time::Instant::now();
        take(&file, &["--warmup=1"], &[&server()]);
        start.elapsed()
    };
    // Most of them near the end, where it writes.
    let whole = std::fs::read(&file).unwrap().len();
    for n in 0..200u32 {
        let mut child = taking(&file, &["--warmup=2"], &[&server()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(took.mul_f64(0.6 + 0.5 * f64::from(n) / 200.0));
        let _ = child.kill();
        child.wait().unwrap();
        let len = std::fs::read(&file).unwrap().len();
        assert!(len.abs_diff(whole) < whole / 2, "{len} of {whole}");
        if n % 10 == 9 {
            let serving = Serving::spawn(&mut serving(&[&format!("--snapshot={file}")]));
            match &*serving.get("/") {
                "count 2\n" => old += 1,
                "count 3\n" => {
                    new += 1;
                    drop(serving);
                    take(&file, &["--warmup=1"], &[&server()]);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    println!("{old} times the old one, {new} times the new one, after {took:?}");
    // Nothing but the file is left by one that comes to its end.
    take(&file, &["--warmup=1"], &[&server()]);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1);
    assert!(took < ENOUGH && took > Duration::ZERO);
}
