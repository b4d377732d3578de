//! `forkvm upload` and `build_and_upload.sh`, to a real varnishd.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::varnishd::{Varnishd, copy_shipped_vcl};
use common::{ENOUGH_VCL, Folder, guests};

const KEY: &str = "correct-horse-battery-staple";

/// A Varnish with vcl/kvm.vcl, whose tenants run hello until they are updated; theirs is the state in `folder`.
fn node(folder: &Path) -> Varnishd {
    fs::create_dir(folder).unwrap();
    copy_shipped_vcl(folder);
    let vcl = format!(
        r#"
        vcl 4.1;
        include "{folder}/kvm.vcl";
        sub vcl_init {{
            kvm.tenant("x.com", "{guests}/hello", update_key = "{KEY}", state_dir = "{folder}");
            kvm.server("server.com", "/app/run", folder = "/app", update_key = "{KEY}",
                state_dir = "{folder}", max_boot_time = {ENOUGH_VCL});
            kvm.tenant("closed.com", "{guests}/hello", state_dir = "{folder}");
        }}
        sub vcl_recv {{ return (pass); }}
        "#,
        folder = folder.display(),
        guests = guests().display(),
    );
    let file = folder.join("node.vcl");
    fs::write(&file, vcl).unwrap();
    let node = Varnishd::start("");
    node.admin(&["vcl.load", "node", file.to_str().unwrap()]);
    node.admin(&["vcl.use", "node"]);
    node
}

fn url(node: &Varnishd) -> String {
    format!("http://127.0.0.1:{}", node.port)
}

fn upload(node: &Varnishd, key: &str, tenant: &str, program: &Path) -> Output {
    Command::new(common::built("forkvm"))
        .args(["upload", "--tenant", tenant, "--url", &url(node)])
        .args(["--key-env", "TEST_KEY"])
        .arg(program)
        .env("TEST_KEY", key)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, words: &str) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stdout}{stderr}");
    assert!(stdout.contains(words), "{words}: {stdout}{stderr}");
    assert!(!stdout.contains(KEY) && !stderr.contains(KEY));
}

/// What a program is called, as coreutils see it.
struct Version {
    short: String,
    bytes: u64,
}

impl Version {
    fn of(program: &Path) -> Self {
        let output = Command::new("sha256sum").arg(program).output().unwrap();
        Self {
            short: String::from_utf8_lossy(&output.stdout)[..12].to_owned(),
            bytes: program.metadata().unwrap().len(),
        }
    }
}

fn versions(node: &Varnishd, key: &str) -> Output {
    Command::new(common::built("forkvm"))
        .args(["versions", "--tenant", "x.com", "--url", &url(node)])
        .args(["--key-env", "TEST_KEY"])
        .env("TEST_KEY", key)
        .output()
        .unwrap()
}

#[track_caller]
fn check_all(output: &Output, lines: &str) {
    check(output, 0, "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), lines);
}

fn answer(node: &Varnishd) -> String {
    let answer = node.client().get("x.com", "/");
    assert_eq!(answer.status, 200);
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[test]
fn every_outcome() {
    if !common::have_kvm() {
        return;
    }
    let folder = Folder::new("outcomes");
    let node = node(&folder.path().join("node"));
    let counter = guests().join("counter");
    assert_eq!(answer(&node), "Hello, World!\n");

    check(&upload(&node, "wrong", "x.com", &counter), 22, ": 403 ");
    check(&upload(&node, KEY, "closed.com", &counter), 22, ": 403 ");
    check(&upload(&node, KEY, "nobody.com", &counter), 22, ": 404 ");
    let failing = upload(
        &node,
        KEY,
        "x.com",
        &guests().join("test/bad-main-returns-3"),
    );
    check(&failing, 22, ": 422 ");
    let without_key = Command::new(common::built("forkvm"))
        .args(["upload", "-t", "x.com", "-u", &url(&node)])
        .arg(&counter)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    check(&without_key, 1, "");
    // More than max_size: the connection ends before all of it is sent.
    let big = folder.path().join("big");
    let mut elf = fs::read(&counter).unwrap();
    elf.resize(60 << 20, 0);
    fs::write(&big, elf).unwrap();
    check(&upload(&node, KEY, "x.com", &big), 22, ": 413 ");
    assert_eq!(answer(&node), "Hello, World!\n");

    let hello = Version::of(&guests().join("hello"));
    check(&versions(&node, "wrong"), 22, ": 403 ");
    let only = format!(
        "{}: {} runs, from the tenant's path\n",
        url(&node),
        hello.short
    );
    check_all(&versions(&node, KEY), &only);
    check(&upload(&node, KEY, "x.com", &counter), 0, ": 201 version ");
    assert_eq!(answer(&node), "1\n");
    let counter_version = Version::of(&counter);
    let both = format!(
        "{url}: {} runs, {} bytes\n{url}: {} is kept, {} bytes\n",
        counter_version.short,
        counter_version.bytes,
        hello.short,
        hello.bytes,
        url = url(&node)
    );
    check_all(&versions(&node, KEY), &both);
    check(&upload(&node, KEY, "x.com", &counter), 0, "it had already");
    let hello = upload(&node, KEY, "X.com", &guests().join("hello"));
    check(&hello, 0, " (was ");
    assert_eq!(answer(&node), "Hello, World!\n");
    let rollback = |key: &str| {
        Command::new(common::built("forkvm"))
            .args(["rollback", "-t", "x.com", "-u", &url(&node)])
            .args(["--key-env", "TEST_KEY"])
            .env("TEST_KEY", key)
            .output()
            .unwrap()
    };
    check(&rollback("wrong"), 22, ": 403 ");
    check(&rollback(KEY), 0, ": 201 version ");
    assert_eq!(answer(&node), "1\n");
}

/// A source becomes what two nodes answer with.
#[test]
fn a_source_for_a_fleet() {
    if !common::have_kvm() {
        return;
    }
    let folder = Folder::new("fleet");
    let nodes = ["first", "second"].map(|name| node(&folder.path().join(name)));
    let key = folder.path().join("key");
    fs::write(&key, format!("{KEY}\n")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-sdk/build_and_upload.sh");
    let output = Command::new(script)
        .args(["--key-file", &format!("{}/key", folder.path().display())])
        .args(["x.com", "examples/png.c"])
        .current_dir(folder.path())
        .env("FORKVM", common::built("forkvm"))
        .env("URL", nodes.each_ref().map(url).join(" "))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    check(&output, 0, ": 201 version ");
    for node in &nodes {
        let [one, same, other] = ["/a", "/a", "/b"].map(|url| node.client().get("x.com", url));
        assert_eq!(one.header("content-type"), Some("image/png"));
        assert!(one.body.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(one.body == same.body && one.body != other.body);
    }
}

#[test]
fn a_folder_is_packed_and_sent() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("upload-folder");
    let node = node(&state.path().join("node"));
    let app = state.path().join("app");
    fs::create_dir_all(app.join("bin")).unwrap();
    fs::copy(guests().join("test/linux/server"), app.join("bin/server")).unwrap();
    std::os::unix::fs::symlink("bin/server", app.join("run")).unwrap();
    check(&upload(&node, KEY, "server.com", &app), 0, ": 201 version ");
    assert_eq!(node.client().get("server.com", "/").text(), "count 1\n");
    // The same files are the same version.
    check(&upload(&node, KEY, "server.com", &app), 0, ": 200 version ");
    fs::write(app.join("more"), "more").unwrap();
    check(&upload(&node, KEY, "server.com", &app), 0, ": 201 version ");

    let packed = state.path().join("app.tar");
    let tar = Command::new("tar")
        .args(["-cf"])
        .arg(&packed)
        .arg("-C")
        .arg(&app)
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    check(
        &upload(&node, KEY, "server.com", &packed),
        0,
        ": 201 version ",
    );
    // A program that is no server has no folder.
    let output = upload(&node, KEY, "x.com", &app);
    check(&output, 22, ": 422 it is an archive of a folder");
    std::os::unix::net::UnixListener::bind(app.join("socket")).unwrap();
    let output = upload(&node, KEY, "server.com", &app);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("socket: neither a file, a folder nor a link"),
        "{said}"
    );
    fs::remove_file(app.join("socket")).unwrap();

    let python = Path::new("/usr/bin/python3");
    let output = upload(&node, KEY, "server.com", python);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--server"));
    let script = state.path().join("script");
    fs::write(&script, "#!/no/such\n").unwrap();
    check(&upload(&node, KEY, "server.com", &script), 22, ": 422 ");
}
