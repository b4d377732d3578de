//! The example programs, each of which does what it says, in a virtual machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;

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
        Self::of(folder, "look", &["-lwebp", "-lpng16", "-lz", "-lm"])
    }

    fn of(folder: &Folder, name: &str, libraries: &[&str]) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
        let program = folder.0.join(name);
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-o"])
            .args([&program, &sources.join(name).with_extension("c")])
            .args(libraries)
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

/// Handlers over the types of Rust's http crate, with `async fn`.
#[test]
fn greetings_by_the_http_crate() {
    kvm_or_skip!();
    let answer = run("greet", &["--arg", " And welcome."], "/?name=Ann+Lee");
    assert_eq!(answer.text(), "Hello, Ann Lee! And welcome.\n");
    let plain = "Content-Type: text/plain; charset=utf-8";
    assert!(answer.1.contains(plain), "{}", answer.1);
    let answer = run("greet", &["-d", "yes"], "/");
    assert_eq!((&*answer.0, answer.text()), ("200", "You said: yes"));
    assert_eq!(run("greet", &[], "/").0, "400");
}

#[test]
fn a_log_in_lines() {
    kvm_or_skip!();
    let answer = run("log", &[], "/?lines=3&every=0");
    let lines: Vec<_> = answer.text().lines().collect();
    assert!(
        answer.1.contains("Content-Type: text/plain"),
        "{}",
        answer.1
    );
    for (i, line) in lines.iter().enumerate() {
        assert!(line.ends_with(&format!(" line {} of 3", i + 1)), "{line}");
    }
    assert_eq!(lines.len(), 3);
    let events = run("log", &[], "/events?lines=2&every=1");
    assert!(events.1.contains("text/event-stream"), "{}", events.1);
    assert_eq!(events.text().matches("data: ").count(), 2);
    assert!(events.text().ends_with(" line 2 of 2\n\n"));
    for bad in ["/?lines=0", "/?every=a"] {
        assert_eq!(run("log", &[], bad).0, "400", "{bad}");
    }
}

/// Answers one request with a body, when all others have been asked as well.
fn api(asked: &Arc<Barrier>, response: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = asked.clone();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        asked.wait();
        stream.write_all(response.as_bytes()).unwrap();
    });
    port
}

/// In C by calls, and in Rust as an `async fn`.
#[test]
fn apis_are_asked_at_once_and_merged() {
    kvm_or_skip!();
    for guest in ["merge", "merged"] {
        let asked = Arc::new(Barrier::new(3));
        let [one, two, broken] = [
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[2,3]",
            "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
        ]
        .map(|response| api(&asked, response));
        let url =
            |name: &str, port: u16| format!("--main-argument={name}=http://127.0.0.1:{port}/");
        let apis = [
            url("one", one),
            url("two", two),
            url("broken", broken),
            "--main-argument=forbidden=http://192.0.2.1/".to_owned(),
        ];
        let rules = [one, two, broken].map(|port| format!("--allow-net=127.0.0.1:{port}"));
        let options: Vec<_> = apis.iter().chain(&rules).map(String::as_str).collect();
        let answer = run(guest, &options, "/");
        assert_eq!(
            answer.text(),
            "{\"one\":{\"a\":1},\"two\":[2,3],\"broken\":null,\"forbidden\":null}\n",
            "{guest}"
        );
        assert!(answer.1.contains("application/json"), "{}", answer.1);
    }
}

/// Whether `make examples-more` has built this one, which says that it has to be there.
fn is_built(guest: &str) -> bool {
    let folder = guest_path("hello").parent().unwrap().join(guest);
    let there = folder.exists();
    assert!(
        there || std::env::var_os("FORKVM_EXAMPLES").is_none(),
        "not built: {guest}; run make examples-more"
    );
    if !there {
        eprintln!("SKIPPED, not built: {guest} (make examples-more)");
    }
    there
}

#[test]
fn avif_of_a_posted_picture() {
    kvm_or_skip!();
    if !is_built("avif") {
        return;
    }
    let folder = Folder::new("avif");
    let (eye, other) = (
        Eye::new(&folder),
        Eye::of(&folder, "look_avif", &["-lavif"]),
    );
    // An odd number of pixels, whose last row and column have colours of their own.
    let png = folder.file("a.png", &run("mandelbrot", &[], "/?size=201").2);
    let answer = post("avif", &png, "/?quality=90");
    assert_eq!(answer.0, "200", "{}", answer.1);
    assert!(
        answer.1.contains("Content-Type: image/avif"),
        "{}",
        answer.1
    );
    let avif = folder.file("a.avif", &answer.2);
    let ((.., was), (width, height, is)) = (eye.look(&png), other.look(&avif));
    assert_eq!((width, height), (201, 201));
    assert!(alike(&was, &is), "{was:?} {is:?}");
    assert!(post("avif", &png, "/?quality=10").2.len() < answer.2.len());
    let jpeg = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/red.jpg");
    let red = folder.file("red.avif", &post("avif", &jpeg, "/?quality=100").2);
    let (width, height, corners) = other.look(&red);
    assert_eq!((width, height), (8, 4));
    assert!(alike(&corners, &[[200, 30, 60]; 4]), "{corners:?}");
    // What is no picture, or a broken one; a parameter out of bounds; too many pixels.
    let bytes = std::fs::read(&png).unwrap();
    let broken = folder.file("broken.png", &bytes[..bytes.len() / 2]);
    assert_eq!(post("avif", &broken, "/").0, "415");
    assert_eq!(post("avif", &folder.file("text", b"text"), "/").0, "415");
    assert_eq!(post("avif", &png, "/?quality=101").0, "400");
    let large = folder.file("large.png", &run("mandelbrot", &[], "/?size=1024").2);
    assert_eq!(post("avif", &large, "/").0, "413");
}

#[test]
fn javascript_answers() {
    kvm_or_skip!();
    if !is_built("script") {
        return;
    }
    let answer = run("script", &["-H", "X-A: b", "-d", "data"], "/json?c=d");
    let made: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    assert_eq!(made["method"], "POST");
    assert_eq!(made["url"], "/json?c=d");
    assert_eq!(made["headers"]["x-a"], "b");
    assert_eq!(made["body"], "data");
    assert!(answer.1.contains("X-Made-By: QuickJS"), "{}", answer.1);
    // The first call was main()'s; each request is the second.
    assert_eq!(run("script", &[], "/count").text(), "2\n");

    let calculated = "[1, 2, 3].map(n => n ** 2).join()";
    assert_eq!(run("script", &["-d", calculated], "/run").text(), "1,4,9\n");
    let answer = run("script", &["-d", "nobody.knows"], "/run");
    assert_eq!(answer.0, "500");
    assert!(answer.text().contains("nobody is not defined"));
    let endless = run("script", &["-d", "f = n => f(n + 1) + 1; f(0)"], "/run");
    assert!(endless.text().contains("call stack"), "{}", endless.text());

    // A script of the tenant's own, and one that can't be one.
    let folder = Folder::new("script");
    let script = folder.file(
        "own.js",
        b"function handle(request) { return 'own ' + request.url }",
    );
    let own = ["--main-argument", script.to_str().unwrap(), "--allow"];
    let own = [&own[..], &[script.to_str().unwrap()]].concat();
    assert_eq!(run("script", &own, "/x").text(), "own /x");
    folder.file("own.js", b"function handle(");
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .arg("run")
        .args(own)
        .arg(guest_path("script"))
        .arg("/")
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && why.contains("main() failed"),
        "{why}"
    );
}

#[test]
fn words_are_counted_in_nim() {
    kvm_or_skip!();
    if !is_built("words") {
        return;
    }
    let text = "The cat, the dog: and the CAT.";
    let answer = run("words", &["-d", text], "/");
    assert_eq!(answer.text(), "3 the\n2 cat\n1 and\n1 dog\n");
    assert_eq!(run("words", &["-d", "..."], "/").text(), "");
    assert_eq!(
        run("words", &[], "/?name=Ann+L%C3%A9e").text(),
        "Hello, Ann Lée!\n"
    );
    assert_eq!(run("words", &[], "/").0, "404");
}

#[test]
fn the_game_of_life_in_zig() {
    kvm_or_skip!();
    if !is_built("life") {
        return;
    }
    // The R-pentomino's first steps are known.
    for (generation, population) in [5, 6, 7, 9, 8, 9, 12, 11, 18, 11, 11].iter().enumerate() {
        let picture = run("life", &[], &format!("/{generation}"));
        assert!(picture.1.contains("Content-Type: image/svg+xml"));
        let picture = picture.text();
        let title = format!("<title>Generation {generation}, population {population}</title>");
        assert!(picture.contains(&title), "{picture}");
        assert_eq!(picture.matches("h.9v.9h-.9z").count(), *population);
        assert!(picture.ends_with("</svg>\n"));
    }
    assert_eq!(run("life", &[], "/5000").0, "200");
    for url in ["/5001", "/-1", "/x"] {
        assert_eq!(run("life", &[], url).0, "400", "{url}");
    }
}

#[test]
fn speech_is_heard() {
    kvm_or_skip!();
    if !is_built("speech") {
        return;
    }
    let data = ["--allow", "/usr/lib/x86_64-linux-gnu/espeak-ng-data"];
    let say = |url: &str| {
        let wav = run("speech", &data, url).2;
        assert_eq!((&wav[..4], &wav[8..16]), (&b"RIFF"[..], &b"WAVEfmt "[..]));
        let number = |at: usize| u32::from_le_bytes(wav[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((number(24), number(40) + 44), (22_050, wav.len()), "{url}");
        wav[44..].to_vec()
    };
    let hello = say("/?text=Hello");
    let loudest = hello
        .chunks_exact(2)
        .map(|two| i16::from_le_bytes([two[0], two[1]]));
    assert!(loudest.map(i16::unsigned_abs).max().unwrap() > 3000);
    // A quarter of a second at least, twice as much for three times the text, and the same for the same.
    assert!(hello.len() > 22_050 / 2, "{}", hello.len());
    assert!(say("/?text=Hello+hello+hello").len() > 2 * hello.len());
    assert!(say("/?text=Hello") == hello);
    assert!(say("/?text=Hello&voice=de") != hello);
    for bad in ["/?voice=de", "/?text=a&voice=nobody"] {
        assert_eq!(run("speech", &data, bad).0, "400", "{bad}");
    }
    assert!(run("speech", &data, "/").text().contains("<audio"));
}
