//! `guest-sdk/build_and_upload.sh`, with a compiler and a server of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod peer;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use peer::Peer;

const HELLO: &str = r#"
#include <kvm_api.h>
KVM_EXPORT void my_backend(const char *url)
{
    (void)url;
    backend_response_str(200, "text/plain", TEXT);
}
int main(void) { return 0; }
"#;

/// The file with a key that is in each folder.
const KEY_FILE: &str = "key";

/// A folder that the script is called in.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("build-and-upload-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let folder = Self(path);
        folder.file(KEY_FILE, "the secret\n");
        folder
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-sdk/build_and_upload.sh");
        let mut command = Command::new(script);
        command
            .args(arguments)
            .current_dir(&self.0)
            .env("FORKVM", env!("CARGO_BIN_EXE_forkvm"))
            .env("TMPDIR", &self.0)
            .env_remove("URL")
            .env("KEY_FILE", KEY_FILE)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.script(arguments).output().unwrap()
    }

    /// No temporary files but the key and these.
    fn holds(&self, names: &[&str]) {
        let mut found: Vec<_> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != KEY_FILE)
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// The call of the README, from a folder that has no examples.
#[test]
fn an_example_with_a_library() {
    let folder = Folder::new("example");
    let peer = Peer::willing();
    let output = folder.run(&["-u", &peer.url(), "xpizza.com", "examples/png.c"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sent = peer.only();
    assert_eq!(sent.header("host"), "xpizza.com");
    assert!(sent.body.starts_with(b"\x7fELF") && contains(&sent.body, "png_image_write_to_memory"));
    folder.holds(&[]);
}

#[test]
fn several_nodes_and_a_key_from_the_environment() {
    let folder = Folder::new("nodes");
    folder.file("hello.c", HELLO);
    let (first, second) = (Peer::willing(), Peer::willing());
    let output = folder
        .script(&["x.com", "hello.c", "--", "-DTEXT=\"two words\""])
        .env("URL", format!("{} {}", first.url(), second.url()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    for peer in [first, second] {
        let sent = peer.only();
        assert!(sent.header("x-liveupdate").starts_with("HMAC-SHA256 time="));
        assert!(contains(&sent.body, "two words"));
    }
    folder.holds(&["hello.c"]);
}

#[test]
fn several_sources_and_cxx() {
    let folder = Folder::new("sources");
    folder.file(
        "main.c",
        &HELLO
            .replace("TEXT", "text()")
            .replace("KVM_EXPORT", "const char *text(void);\nKVM_EXPORT"),
    );
    folder.file(
        "text.cc",
        "// LDLIBS: -lm\n#include <string>\nextern \"C\" const char *text() { static std::string s = \"from C++\"; return s.c_str(); }",
    );
    let peer = Peer::willing();
    for (arguments, output) in [(&["-static-pie"][..], "pie"), (&["-O3", "-flto"], "lto")] {
        let words = [
            "-u",
            &peer.url(),
            "-o",
            output,
            "x.com",
            "main.c",
            "--",
            "text.cc",
        ];
        let result = folder.run(&[&words[..], arguments].concat());
        assert_eq!(result.status.code(), Some(0), "{}", stderr(&result));
        let sent = peer.received().pop().unwrap();
        assert!(contains(&sent.body, "from C++"));
        assert!(sent.body == std::fs::read(folder.0.join(output)).unwrap());
    }
}

#[test]
fn the_exit_status_is_uploads() {
    let folder = Folder::new("status");
    folder.file("hello.c", &HELLO.replace("TEXT", "\"hello\""));
    let peer = Peer::json(403, r#"{"error": "the key is wrong"}"#);
    let output = folder.run(&["--url", &peer.url(), "x.com", "hello.c"]);
    assert_eq!(output.status.code(), Some(22), "{}", stderr(&output));
    let output = folder.run(&["x.com", "hello.c", "--url", "https://x.com"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    folder.holds(&["hello.c"]);
}

/// Each in words, and nothing is sent.
#[test]
fn problems_here() {
    let folder = Folder::new("here");
    folder.file("hello.c", &HELLO.replace("TEXT", "\"hello\""));
    folder.file("broken.c", "int main(void) { return nothing; }");
    folder.file(
        "missing.c",
        "int other(void); int main(void) { return other(); }",
    );
    folder.file(
        "strange.c",
        "// LDLIBS: -lm --wrap=x\nint main(void) { return 0; }",
    );
    let peer = Peer::willing();
    for (code, arguments, words) in [
        (2, &[][..], "TENANT SOURCE"),
        (2, &["x.com"], "TENANT SOURCE"),
        (2, &["x.com", "hello.c", "more.c"], "TENANT SOURCE"),
        (2, &["hello.c", "x.com"], "TENANT comes first"),
        (
            2,
            &["--no-such-option", "x.com", "hello.c"],
            "--no-such-option",
        ),
        (2, &["x.com", "hello.c", "--key-file"], "needs a value"),
        (2, &["-n", "x.com", "hello.c"], "--output"),
        (1, &["x.com", "none.c"], "there is no none.c"),
        (
            1,
            &["x.com", "hello.c", "--", "none.c"],
            "there is no none.c",
        ),
        (1, &["-k", "no-key", "x.com", "hello.c"], "no-key"),
        (1, &["x.com", "broken.c"], "broken.c does not compile"),
        (1, &["x.com", "missing.c"], "can't be linked"),
        (1, &["x.com", "strange.c"], "--wrap=x"),
        (
            1,
            &["-o", "/no/such/folder/x", "x.com", "hello.c"],
            "can't write",
        ),
    ] {
        let output = folder
            .script(arguments)
            .env("URL", peer.url())
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(words),
            "{words}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    }
    let output = folder
        .script(&["x.com", "hello.c"])
        .env("FORKVM", "/no/such/forkvm")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("build"), "{}", stderr(&output));
    let output = folder
        .script(&["x.com", "hello.c"])
        .env("CC", "no-such-compiler")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no-such-compiler"));
    assert!(peer.received().is_empty());
    folder.holds(&["broken.c", "hello.c", "missing.c", "strange.c"]);
}

#[test]
fn building_alone() {
    let folder = Folder::new("alone");
    folder.file("hello.c", &HELLO.replace("TEXT", "\"hello\""));
    let output = folder
        .script(&["-n", "-o", "program", "x.com", "hello.c"])
        .env("FORKVM", "/no/such/forkvm")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    folder.holds(&["hello.c", "program"]);
    assert!(folder.run(&["--help"]).status.success());
}
