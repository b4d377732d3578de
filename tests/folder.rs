//! Updates of a server's folder in a real varnishd: under load, back, after restarts and crashes, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::client::{Body, Client, Response};
use common::updates::KEY;
use common::varnishd::Varnishd;
use common::{Folder, Numbers, eventually};

/// The application: it answers with two files of its folder, of which it has read one before it was frozen, and reads the other
/// at each request.
const APP: &str = r#"#!/usr/bin/python3
import os, socket
HERE = os.path.dirname(os.path.abspath(__file__))
read = lambda name: open(os.path.join(HERE, name)).read()
first = read("first")
server = socket.create_server(("127.0.0.1", 8000))
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    body = first + " " + read("sub/second")
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode()))
    connection.close()
"#;

/// A tar of files.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// The application that answers so.
fn app(text: &str) -> Vec<u8> {
    tar(&[("app.py", APP), ("first", text), ("sub/second", text)])
}

/// A varnishd with a tenant t whose server and all it has come by updates. Nothing of it is there before.
fn start(state: &Path, settings: &str) -> Varnishd {
    start_at("/app/app.py", state, settings)
}

fn start_at(path: &str, state: &Path, settings: &str) -> Varnishd {
    Varnishd::start(&format!(
        r#"kvm.server("t", "{path}", folder = "/app", update_key = "{key}", state_dir = "{state}",
            max_boot_time = ENOUGH, max_request_time = ENOUGH, max_wait = ENOUGH, {settings});"#,
        key = KEY.1,
        state = state.display(),
    ))
}

fn upload(client: &mut Client, archive: &[u8]) -> Response {
    client.send("POST", "t", "/", &[KEY], Body::Length(archive))
}

#[track_caller]
fn update(varnish: &Varnishd, archive: &[u8]) {
    let response = upload(&mut varnish.client(), archive);
    assert_eq!(response.status, 201, "{}", response.text());
}

#[track_caller]
fn refused(varnish: &Varnishd, archive: &[u8], status: u16, why: &str) {
    let response = upload(&mut varnish.client(), archive);
    assert_eq!(response.status, status, "{}", response.text());
    assert!(response.text().contains(why), "{}", response.text());
}

#[track_caller]
fn back(varnish: &Varnishd) {
    let key = [("X-LiveRollback", KEY.1)];
    let response = varnish.client().send("POST", "t", "/", &key, Body::None);
    assert_eq!(response.status, 201, "{}", response.text());
}

/// What the application says: both files the same.
#[track_caller]
fn said(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    let (first, second) = response.text().split_once(' ').unwrap();
    assert_eq!(first, second, "an answer of two folders");
    first.to_owned()
}

#[track_caller]
fn says(varnish: &Varnishd, text: &str) {
    assert_eq!(said(&varnish.client().get("t", "/")), text);
}

/// Folders that servers are run from.
fn unpacked(state: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(state.join("t.versions")) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".run"))
        .collect()
}

#[test]
fn nobody_notices_updates_of_a_folder() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-load");
    let varnish = start(state.path(), "concurrency = 4, max_queue = 100");
    update(&varnish, &app("0"));
    const UPDATES: u64 = 12;
    let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = varnish.client();
                    while !stop.load(Ordering::Relaxed) {
                        let oldest = done.load(Ordering::SeqCst);
                        let got: u64 = said(&client.get("t", "/")).parse().unwrap();
                        let newest = begun.load(Ordering::SeqCst);
                        assert!((oldest..=newest).contains(&got), "{oldest} {got} {newest}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for n in 1..=UPDATES {
            begun.store(n, Ordering::SeqCst);
            update(&varnish, &app(&n.to_string()));
            done.store(n, Ordering::SeqCst);
            if clients.iter().any(|client| client.is_finished()) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(served.into_inner() > UPDATES);
    for counter in ["update_failures", "failures", "busy", "refused"] {
        assert_eq!(varnish.counter(counter), 0, "{counter}");
    }
    eventually("what the old ones were run from is gone", || {
        unpacked(state.path()).len() == 1
    });
}

#[test]
fn folders_come_back_by_rollback_and_after_restarts() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-back");
    let mut varnish = start(state.path(), "version_header = true");
    for text in ["one", "two", "three", "four"] {
        update(&varnish, &app(text));
    }
    let again = upload(&mut varnish.client(), &app("four"));
    assert_eq!(again.status, 200, "{}", again.text());
    says(&varnish, "four");
    back(&varnish);
    says(&varnish, "three");
    // A version that was gone back from is not kept.
    varnish.kill_child();
    varnish.start_child();
    says(&varnish, "three");
    // What the killed one was run from has been removed.
    assert_eq!(unpacked(state.path()).len(), 1);
    back(&varnish);
    says(&varnish, "two");
    let list = varnish.client().send("GET", "t", "/", &[KEY], Body::None);
    let version = varnish.client().get("t", "/");
    let version = version.header("x-program-version").unwrap();
    let running = format!(r#""running":"{version}""#);
    assert!(list.text().replace(' ', "").contains(&running));
    // keep_versions is 2: of four, the first was forgotten.
    let key = [("X-LiveRollback", KEY.1)];
    let none = varnish.client().send("POST", "t", "/", &key, Body::None);
    assert_eq!(none.status, 422, "{}", none.text());
    says(&varnish, "two");
}

#[test]
fn a_bad_folder_changes_nothing() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-bad");
    let varnish = start(state.path(), "max_folder_size = 1MB, max_folder_files = 10");
    update(&varnish, &app("good"));
    let escaping = {
        let mut bytes = tar(&[("xx/etc-file", "x")]);
        bytes[..2].copy_from_slice(b"..");
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    refused(&varnish, &escaping, 422, "leads up by ..");
    let large = "x".repeat(1 << 20) + "x";
    refused(&varnish, &tar(&[("a", &large)]), 422, "max_folder_size");
    let names: Vec<_> = (0..11).map(|n| n.to_string()).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    refused(&varnish, &tar(&many), 422, "max_folder_files");
    refused(&varnish, &app("cut")[..2000], 422, "the archive is damaged");
    refused(&varnish, b"\x1f\x8bgarbage", 422, "the archive is damaged");
    refused(
        &varnish,
        b"PK\x03\x04garbage",
        422,
        "the archive is damaged",
    );
    refused(&varnish, &tar(&[("other", "")]), 422, "/app/app.py");
    refused(
        &varnish,
        &tar(&[("app.py", "#!/usr/bin/python3\nimport nothing_of_this_name")]),
        422,
        "nothing_of_this_name",
    );
    says(&varnish, "good");
    eventually("nothing is left of them", || {
        unpacked(state.path()).len() == 1
    });
    back_fails(&varnish);
    says(&varnish, "good");
}

/// What the server may change of its folder is what came, and what it changes is gone after the request.
#[test]
fn a_folder_may_be_changed_in_memory() {
    if !common::have_kvm() {
        return;
    }
    const CHANGES: &str = r#"
def read(name):
    path = os.path.join(HERE, name)
    text = open(path).read()
    for change in path, os.path.join(HERE, "cache", "made"):
        open(change, "x" if "made" in change else "a").write("changed")
    return text
"#;
    let state = Folder::new("folder-changed");
    let varnish = start(state.path(), r#"writable_paths = "/app/sub /app/cache""#);
    let code = APP.replace("server = socket", &format!("{CHANGES}server = socket"));
    for text in ["one", "two"] {
        let files = [("app.py", &*code), ("first", text), ("sub/second", text)];
        update(&varnish, &tar(&files));
        says(&varnish, text);
        says(&varnish, text);
    }
}

/// What old programs hold, memory and disk, is limited, however long their requests last.
#[test]
fn replaced_programs_that_have_requests_are_few() {
    if !common::have_kvm() {
        return;
    }
    const MOST: usize = 8;
    const HOLD: &str = r#"
import time
def hold(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 4096)
        time.sleep(0.05)
"#;
    let state = Folder::new("folder-held");
    let varnish = start(state.path(), "");
    let asked = "connection.recv(65536)";
    let code = APP
        .replace(
            asked,
            &format!("if b\"/hold\" in {asked}: hold(connection)"),
        )
        .replace("server = socket", &format!("{HOLD}server = socket"));
    let app = |n: usize| {
        let text = n.to_string();
        tar(&[("app.py", &code), ("first", &text), ("sub/second", &text)])
    };
    update(&varnish, &app(0));
    let held: Vec<TcpStream> = (1..=MOST)
        .map(|n| {
            let mut client = TcpStream::connect(("127.0.0.1", varnish.port)).unwrap();
            client
                .write_all(b"GET /hold HTTP/1.1\r\nHost: t\r\n\r\n")
                .unwrap();
            // It has begun.
            client.read_exact(&mut [0; 4096]).unwrap();
            update(&varnish, &app(n));
            client
        })
        .collect();
    refused(&varnish, &app(MOST + 1), 503, "the log says what");
    let log = varnish.log("not updated");
    assert!(
        log[0].contains("8 programs before still have requests"),
        "{log:?}"
    );
    says(&varnish, "8");
    assert_eq!(unpacked(state.path()).len(), MOST + 1);
    drop(held);
    eventually("one of them is gone", || {
        upload(&mut varnish.client(), &app(MOST + 1)).status == 201
    });
    says(&varnish, "9");
}

#[track_caller]
fn back_fails(varnish: &Varnishd) {
    let key = [("X-LiveRollback", KEY.1)];
    let response = varnish.client().send("POST", "t", "/", &key, Body::None);
    assert_eq!(response.status, 422, "{}", response.text());
}

/// Whenever the child dies, the next one has the old folder or the new one, whole.
#[test]
fn a_kill_while_a_folder_is_unpacked_leaves_the_old_or_the_new() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-killed");
    let mut varnish = start(state.path(), "");
    let content = "x".repeat(512);
    let names: Vec<_> = (0..5000).map(|n| format!("many/{n}")).collect();
    let large = |text: &str| {
        let mut files: Vec<_> = names.iter().map(|name| (&**name, &*content)).collect();
        files.extend([("app.py", APP), ("first", text), ("sub/second", text)]);
        tar(&files)
    };
    update(&varnish, &large("0"));
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut unfinished = 0;
    let mut runs = "0".to_owned();
    for n in 1..=8 {
        let new = n.to_string();
        let archive = large(&new);
        let port = varnish.port;
        let uploading = thread::spawn(move || {
            let mut client = Client::connect(port);
            client.try_send("POST", "t", "/", &[KEY], Body::Length(&archive))
        });
        thread::sleep(Duration::from_millis(numbers.below(600) as u64));
        varnish.kill_child();
        let done = uploading
            .join()
            .unwrap()
            .is_ok_and(|response| response.status == 201);
        unfinished += u32::from(!done);
        varnish.start_child();
        let says = said(&varnish.client().get("t", "/"));
        assert!(
            says == new || says == runs && !done,
            "{says} after {runs}, {new}"
        );
        runs = says;
        assert_eq!(unpacked(state.path()).len(), 1);
    }
    assert!(unfinished > 0, "no kill came in time");
}

/// A node's two varnishds, or two nodes with one file system, keep away from what the other one runs.
#[test]
fn two_varnishds_share_a_state_dir() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-shared");
    let one = start(state.path(), "");
    update(&one, &app("one"));
    let other = start(state.path(), "");
    says(&other, "one");
    for text in ["two", "three"] {
        update(&other, &app(text));
    }
    says(&other, "three");
    says(&one, "one");
    back(&other);
    says(&other, "two");
    says(&one, "one");
}

/// Where the program is no part of the folder, it may be replaced, and the folder stays.
#[test]
fn a_changed_program_has_the_folder_that_was_sent() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-program");
    let program = state.path().join("run");
    let write = |text: &str| {
        let aside = state.path().join("aside");
        let script = format!("#!/bin/sh\nX={text} exec /usr/bin/python3 /app/app.py\n");
        fs::write(&aside, script).unwrap();
        fs::rename(&aside, &program).unwrap();
    };
    write("one");
    let mut varnish = start_at(program.to_str().unwrap(), state.path(), "watch = true");
    update(&varnish, &app("sent"));
    says(&varnish, "sent");
    write("two");
    eventually("it is noticed", || {
        !varnish.log("has changed, ready").is_empty()
    });
    says(&varnish, "sent");
    varnish.kill_child();
    write("three");
    varnish.start_child();
    says(&varnish, "sent");
    assert_eq!(varnish.counter("update_failures"), 0);
}

/// A small file system of its own. Unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path) -> Option<Self> {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_old_folder() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("folder-full");
    let Some(_mounted) = Mounted::new(state.path()) else {
        eprintln!("SKIPPED: no right to mount");
        return;
    };
    let mut varnish = start(state.path(), "");
    update(&varnish, &app("old"));
    // It is unpacked first: there is room for one, not for two.
    let content = "x".repeat(1 << 20);
    let files = [
        ("app.py", APP),
        ("first", "new"),
        ("sub/second", "new"),
        ("large", &content),
    ];
    let large = tar(&[&files[..], &[("larger", &content)]].concat());
    refused(&varnish, &large, 503, "the log says what");
    let log = varnish.log("not updated");
    assert!(
        log[0].contains(r#""larger" can't be unpacked: No space left on device"#),
        "{log:?}"
    );
    // Room for what is unpacked, not for the archive besides.
    let response = upload(&mut varnish.client(), &tar(&files));
    assert_eq!(response.status, 500, "{}", response.text());
    let log = varnish.log("it can't be stored");
    assert!(log[0].contains("No space left on device"), "{log:?}");
    says(&varnish, "old");
    eventually("nothing is left of them", || {
        unpacked(state.path()).len() == 1
    });
    varnish.kill_child();
    varnish.start_child();
    says(&varnish, "old");
    update(&varnish, &app("small"));
    says(&varnish, "small");
}
