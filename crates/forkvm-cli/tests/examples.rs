//! The example programs, each of which does what it says, in a virtual machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{guest_path, kvm_or_skip};

/// A folder of a test's.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("forkvm-examples-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Status, header lines and body.
struct Answer(String, String, Vec<u8>);

impl Answer {
    fn text(&self) -> &str {
        str::from_utf8(&self.2).unwrap()
    }
}

fn run(guest: &str, options: &[&str], url: &str) -> Answer {
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args([
            "run",
            "-i",
            "--max-boot-time",
            "600",
            "--max-request-time",
            "600",
        ])
        .args(options)
        .arg(guest_path(guest))
        .arg(url)
        .output()
        .unwrap();
    let out = &output.stdout;
    let Some(end) = out.windows(4).position(|end| end == b"\r\n\r\n") else {
        panic!("{guest} {url}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let head = String::from_utf8_lossy(&out[..end]).into_owned();
    let (status, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
    let status = status.replace("HTTP/1.1 ", "");
    Answer(status, lines.to_owned(), out[end + 4..].to_vec())
}

fn post(guest: &str, body: &Path, url: &str) -> Answer {
    run(guest, &["-d", &format!("@{}", body.display())], url)
}

/// Looks at pictures with libraries of its own.
struct Eye(PathBuf);

impl Eye {
    fn new(folder: &Folder) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures/look.c");
        let program = folder.0.join("look");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-o"])
            .args([&program, &source])
            .args(["-lwebp", "-lpng16", "-lz", "-lm"])
            .status();
        assert!(built.unwrap().success());
        Eye(program)
    }

    /// Width, height and the four corners.
    fn look(&self, picture: &Path) -> (u32, u32, Vec<[i32; 3]>) {
        let output = Command::new(&self.0).arg(picture).output().unwrap();
        assert!(output.status.success(), "{}", picture.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_whitespace();
        let mut side = || words.next().unwrap().parse().unwrap();
        let (width, height) = (side(), side());
        let colour =
            |word: &str| [0, 2, 4].map(|i| i32::from_str_radix(&word[i..i + 2], 16).unwrap());
        (width, height, words.map(colour).collect())
    }
}

fn alike(one: &[[i32; 3]], other: &[[i32; 3]]) -> bool {
    one.iter()
        .flatten()
        .zip(other.iter().flatten())
        .all(|(a, b)| a.abs_diff(*b) < 24)
}

#[test]
fn webp_of_a_posted_picture() {
    kvm_or_skip!();
    let folder = Folder::new("webp");
    let eye = Eye::new(&folder);

    let png = run("mandelbrot", &[], "/?size=200").2;
    let png = folder.file("a.png", &png);
    let answer = post("webp", &png, "/?quality=90");
    assert_eq!(answer.0, "200", "{}", answer.1);
    assert!(
        answer.1.contains("Content-Type: image/webp"),
        "{}",
        answer.1
    );
    assert!(answer.1.contains("X-Picture: 200 x 200, "), "{}", answer.1);
    let webp = folder.file("a.webp", &answer.2);
    let ((.., was), (width, height, is)) = (eye.look(&png), eye.look(&webp));
    assert_eq!((width, height), (200, 200));
    assert!(alike(&was, &is), "{was:?} {is:?}");

    // From WebP, made smaller; and a lower quality needs less.
    let small = folder.file("b.webp", &post("webp", &webp, "/?width=50&quality=90").2);
    assert_eq!(eye.look(&small).0, 50);
    assert_eq!(eye.look(&small).1, 50);
    assert!(post("webp", &png, "/?quality=10").2.len() < answer.2.len());

    let jpeg = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/red.jpg");
    let red = folder.file("red.webp", &post("webp", &jpeg, "/?quality=100").2);
    let (width, height, corners) = eye.look(&red);
    assert_eq!((width, height), (8, 4));
    assert!(alike(&corners, &[[200, 30, 60]; 4]), "{corners:?}");
}

#[test]
fn webp_of_what_is_no_picture() {
    kvm_or_skip!();
    let folder = Folder::new("no-picture");
    let png = run("png", &[], "/").2;
    // Its header says 6,000 by 6,000 pixels: each side less one, in 14 bits.
    let sides = 5999_u32 | 5999 << 14;
    let large = [
        b"RIFF\x11\0\0\0WEBPVP8L\x05\0\0\0\x2f",
        &sides.to_le_bytes()[..],
    ]
    .concat();
    for (name, body, url, status) in [
        ("text", &b"no picture"[..], "/", "415"),
        ("cut", &png[..png.len() / 2], "/", "415"),
        ("cut jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF", "/", "415"),
        (
            "cut webp",
            b"RIFF\x11\0\0\0WEBPVP8L\x05\0\0\0\x2f",
            "/",
            "415",
        ),
        ("large", &large, "/", "413"),
        ("quality", &png, "/?quality=0", "400"),
        ("width", &png, "/?width=-1", "400"),
        ("whole", &png, "/?width=10", "200"),
    ] {
        let answer = post("webp", &folder.file(name, body), url);
        assert_eq!(answer.0, status, "{name}: {}", answer.1);
    }
    assert!(run("webp", &[], "/").text().contains("<!doctype html>"));
}

#[test]
fn json_without_blanks() {
    kvm_or_skip!();
    let folder = Folder::new("minify");
    for (text, url, status, expected) in [
        (
            " { \"a b\" : [ 1 , -2.5e+10, { } , [ ] ],\n\t\"c\\\"\\u00e9\": null } ",
            "/",
            "200",
            "{\"a b\":[1,-2.5e+10,{},[]],\"c\\\"\\u00e9\":null}",
        ),
        ("\"text \"", "/", "200", "\"text \""),
        ("[1, // one\n 2 /* two */]", "/?comments", "200", "[1,2]"),
        (
            "[1, // one\n 2]",
            "/",
            "400",
            "no value in line 1, column 5\n",
        ),
        ("[1,\n 2,]", "/", "400", "no value in line 2, column 4\n"),
        ("{\"a\" 1}", "/", "400", "no : in line 1, column 6\n"),
        ("[01]", "/", "400", "neither , nor ] in line 1, column 3\n"),
        (
            "[1] 2",
            "/",
            "400",
            "something after the end in line 1, column 5\n",
        ),
        (
            "[\"\\x\"]",
            "/",
            "400",
            "an escape that is none in line 1, column 4\n",
        ),
        (
            "\"a",
            "/",
            "400",
            "a string without an end in line 1, column 3\n",
        ),
    ] {
        let answer = post("minify", &folder.file("a.json", text.as_bytes()), url);
        assert_eq!((&*answer.0, answer.text()), (status, expected), "{text}");
    }
    // As deep as it gets: what is open is kept on the heap.
    let deep = ["[".repeat(200_000), "]".repeat(200_000)].concat();
    let answer = post("minify", &folder.file("deep.json", deep.as_bytes()), "/");
    assert!(answer.text() == deep);
    assert_eq!(run("minify", &[], "/").0, "405");
}
