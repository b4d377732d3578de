//! Programs built to run without a virtual machine (-DKVM_API_MOCK): the same answers as in one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{guest_path, kvm_or_skip};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with programs built natively.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("forkvm-native-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Compiles sources, whose paths are relative to the project's folder.
    fn build(&self, compiler: &[&str], sources: &[&str]) -> PathBuf {
        let program = self.0.join("program");
        let output = Command::new(compiler[0])
            .args(&compiler[1..])
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DKVM_API_MOCK"])
            .args(["-I", "guest-sdk/c", "-I", "guest-sdk/cpp"])
            .args(["-I", "tests/guests", "-o"])
            .arg(&program)
            .args(sources)
            .current_dir(root())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        program
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn native(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// The answers of `forkvm run` to the same arguments.
fn in_a_machine(guest: &str, arguments: &[&str]) -> Vec<u8> {
    let (options, urls) = arguments.split_at(arguments.len() - 1);
    let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
        .args(["run", "--max-boot-time", "600"])
        .args(options)
        .arg(guest_path(guest))
        .args(urls)
        .output()
        .unwrap();
    output.stdout
}

const C: &[&str] = &["cc", "-std=gnu99"];
const CXX: &[&str] = &["c++", "-std=c++17"];

#[test]
fn the_same_answers_as_in_a_virtual_machine() {
    kvm_or_skip!();
    for (guest, source, requests) in [
        (
            "hello",
            "guest-sdk/examples/hello.c",
            &[&["-i", "/"][..]][..],
        ),
        (
            "counter",
            "guest-sdk/examples/counter.c",
            &[&["-i", "/"], &["/x"]],
        ),
        (
            "echo",
            "tests/guests/echo.c",
            &[
                &["-i", "-d", "a=b", "/echo"],
                &["-i", "-X", "DELETE", "/method"],
                &["-i", "/status/404"],
                &["-i", "/header?name=X-A&value=b"],
                &["/size/300001"],
                &["-d", "x", "/sum"],
            ],
        ),
        (
            "get_post",
            "tests/guests/get_post.c",
            &[
                &["-i", "--arg", "A", "/get"],
                &["-d", "data", "-H", "Content-Type: a/b", "/post"],
                &["-i", "--arg", "A", "/die"],
            ],
        ),
        (
            "stream",
            "tests/guests/stream.c",
            &[
                &["-i", "/parts?len=3000"],
                &["-i", "/parts?len=200000&part=100000&announced=200000"],
                &["/asked?announced=500"],
            ],
        ),
        (
            "segments",
            "tests/guests/segments.c",
            &[
                &["-i", "-d", "abc", "--arg", "A", "/segments"],
                &["-i", "-d", "@tests/guests/segments.c", "/early"],
                &["-d", "abc", "/early-parts"],
                &["-X", "POST", "/"],
            ],
        ),
        (
            "regex",
            "tests/guests/regex.c",
            &[
                &["/main"],
                &["/match?n=1&s=abbbc"],
                &["/match?n=2&s=xhost:+example.com"],
                &["/match?n=3&s=a"],
                // What each alternative, repetition and class gives, by what is put in its place.
                &["/compile?p=(a|ab)(c|bcd)(d*)&s=abcd"],
                &[
                    "-H",
                    "X-Subject: abcd",
                    "/regsub?p=(a|ab)(c|bcd)(d*)&w=%5c1-%5c2-%5c3",
                ],
                &[
                    "-H",
                    "X-Subject: aXbbb-c9_%20",
                    "/regsub?p=(a(X)%3f)(b%7b2%7d)(b*%3f)(%5b^%5cd-%5d*)&w=<%5c1%5c2%5c3%5c4%5c5>&flags=1",
                ],
                &[
                    "-H",
                    "X-Subject: One, two;three",
                    "/regsub?p=%5cb(%3f:(%5cw)|-)%5cw*%3f(%5cw)%5cb&w=%5c2%5c1%5c0&flags=1",
                ],
                &[
                    "-H",
                    "X-Subject: aAbB",
                    "/regsub?p=(%3fi)%5ba-b%5d%2b%3f(b)&w=%5c0%5c%26%5c1&flags=1",
                ],
                &[
                    "-H",
                    "X-Subject: abcabc",
                    "/regsub?p=(a*)*|(b)%3f&w=<%5c1%5c2>&flags=1",
                ],
                &[
                    "-H",
                    "X-Subject: a.b:80/",
                    "/regsub?p=^(%5b^:%5d%2b):(%5cd%7b1,5%7d)%2f$&w=%5c2+%5c1+%5c9",
                ],
                &[
                    "-H",
                    "X-Subject: aaa bbb",
                    "/regsub?p=(a%7b0,2%7d)(b%7b2,%7d)%3f(a%7b0%7d)&w=<%5c1%5c2%5c3>&flags=1",
                ],
                &[
                    "-H",
                    "X-Subject: xyzxyz",
                    "/regsub?p=(x|y|z|xy)%2b%3f(z|$)&w=%5b%5c1%5c2%5d&flags=1",
                ],
                &["-H", "X-Subject: a-b]c", "/regsub?p=%5b]a-%5d&w=_&flags=1"],
                &["/compile?p=a(&s=a"],
                &["/compile?p=(a{99}){99}&s=a"],
                &["/free"],
                &["/many"],
                &["/overlap"],
                &["/subst?n=1&s=abc&w=12345&room=4"],
                &[
                    "-i",
                    "-H",
                    "X-Name: abbc",
                    "/copyto?n=1&from=x-name&to=X-Copy&w=b+is+%5c1",
                ],
                &[
                    "-i",
                    "-H",
                    "X-Name: other",
                    "/copyto?n=1&from=x-name&to=X-Copy&w=b",
                ],
            ],
        ),
        ("page", "guest-sdk/examples/page.c", &[&["-X", "GET", "/"]]),
        (
            "idioms",
            "tests/guests/idioms.c",
            &[
                &["-i", "/headers"],
                &["/long"],
                &["/embedded"],
                &["/log"],
                &["/cacheable"],
                &["/linux"],
                &["-i", "/stream"],
                &["-i", "-d", "data", "-H", "Content-Type: a/b", "/"],
            ],
        ),
    ] {
        let folder = Folder::new(guest);
        let program = folder.build(C, &[source]);
        for &arguments in requests {
            let output = native(&program, arguments);
            let expected = in_a_machine(guest, arguments);
            let (got, expected) = (lines(&output.stdout), lines(&expected));
            assert_eq!(got, expected, "{guest} {arguments:?}");
        }
    }
}

/// Without what the two can't have in common: headers that `forkvm run` sends of its own accord.
fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes)
        .split('\n')
        .filter(|line| {
            !["Host", "User-Agent", "Accept"]
                .iter()
                .any(|name| line.contains(&format!("<th>{name}<")))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_wrapper_for_cpp() {
    kvm_or_skip!();
    let folder = Folder::new("wrapper");
    // Its main() fails if what it tests is wrong.
    let program = folder.build(CXX, &["tests/guests/wrapper.cc"]);
    for arguments in [
        &["-i", "-H", "X-A: b", "/a?name=Ann+Lee"][..],
        &[
            "-i",
            "-d",
            "body",
            "-H",
            "Content-Type: a/b",
            "--arg",
            "A",
            "/",
        ],
        &["-i", "/send"],
        &["-i", "/throw"],
        &["-i", "/stream"],
        &["/log"],
        &["/regex"],
    ] {
        let output = native(&program, arguments);
        let expected = in_a_machine("wrapper", arguments);
        assert_eq!(lines(&output.stdout), lines(&expected), "{arguments:?}");
        assert!(!expected.is_empty(), "{arguments:?}");
    }
    assert_eq!(native(&program, &["/throw"]).stdout, b"failed: /throw\n");
    let matched = native(&program, &["/regex"]).stdout;
    assert_eq!(matched, b"right <t> be tttttt bbbbbb none none\n");
    let parts = native(&program, &["/stream"]).stdout;
    assert_eq!(parts, b"part 1\npart 2\npart 3\n");
    for (storage, answer) in [
        ("machine", "onetwo does not fit\n"),
        ("fork", "onetwo does not fit\n"),
    ] {
        let got = in_a_machine("wrapper", &[&format!("--storage={storage}"), "/storage"]);
        assert_eq!(String::from_utf8_lossy(&got), answer, "{storage}");
    }
    assert_eq!(
        in_a_machine("wrapper", &["/storage"]),
        b"none does not fit\n"
    );
    assert_eq!(native(&program, &["/shared", "/shared"]).stdout, b"1\n2\n");
    assert_eq!(in_a_machine("wrapper", &["/shared"]), b"none\n");
    let shared = in_a_machine("wrapper", &["--shared-memory=1", "/shared"]);
    assert_eq!(shared, b"1\n");
}

/// As sources for the C++ VMOD are written, in C and in C++.
#[test]
fn the_idioms_of_the_other_vmods_programs() {
    kvm_or_skip!();
    for (guest, compiler) in [("idioms", C), ("idioms-cxx", &["c++", "-x", "c++"])] {
        let folder = Folder::new(guest);
        let program = folder.build(compiler, &["tests/guests/idioms.c"]);
        for (url, answer) in [
            ("/headers", "12 X-Asked: yes, absent, 0, 3, GET\n"),
            ("/long", "1 -2 8192\n"),
            ("/embedded", "The bytes of a file,\nas they are.\n"),
            ("/linux", "0\n"),
            // No tenant may, unless it is said, and in tests what an argument names.
            ("/fetch", "1 1\n"),
        ] {
            let got = native(&program, &[url]).stdout;
            assert_eq!(String::from_utf8_lossy(&got), answer, "{guest} {url}");
            let got = in_a_machine(guest, &[url]);
            assert_eq!(String::from_utf8_lossy(&got), answer, "{guest} {url}");
        }
        assert_eq!(in_a_machine(guest, &["/memory"]), b"1\n");
        assert_eq!(in_a_machine(guest, &["/stream"]), b"abcde");
        let storage = |url| in_a_machine(guest, &["--storage=machine", url]);
        assert_eq!(storage("/storage"), b"stored\n");
        assert_eq!(storage("/tasks"), b"1\n");
        let shared = in_a_machine(guest, &["--shared-memory", "1", "/shared"]);
        assert_eq!(String::from_utf8_lossy(&shared), "1\n");
        let shared = native(&program, &["/shared", "/shared", "/shared"]);
        assert_eq!(String::from_utf8_lossy(&shared.stdout), "1\n2\n3\n");
        // What reads the environment sees that this is no virtual machine.
        let linux = Command::new(guest_path(guest)).output().unwrap();
        assert_eq!(linux.stdout, b"Hello Linux World!\n");
    }
}

#[test]
fn requests_do_not_see_each_other() {
    let folder = Folder::new("forks");
    let program = folder.build(C, &["guest-sdk/examples/counter.c"]);
    let output = native(&program, &["/", "/", "/"]);
    assert_eq!(output.stdout, b"1\n1\n1\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn statics_are_not_destroyed() {
    let folder = Folder::new("cxx");
    let program = folder.build(CXX, &["tests/guests/cxx.cc"]);
    let output = native(&program, &["/"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("entries 1000 destroyed 0 atexit 0\n")
            && text.contains("thread_local set"),
        "{text}"
    );
}

#[test]
fn failures_are_told() {
    let folder = Folder::new("crash");
    let program = folder.build(C, &["guest-sdk/examples/crash.c"]);
    let output = native(&program, &["/null-write", "/ok"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("/null-write: request failed: Segmentation fault"),
        "{errors}"
    );
    // The next request is not affected.
    let ok = native(&program, &["/ok"]);
    assert_eq!(output.stdout, ok.stdout);
    assert!(ok.status.success() && !ok.stdout.is_empty());
    for wrong in [&["-X"][..], &["--what", "/"], &["-H", "no colon"]] {
        assert_eq!(native(&program, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn main_that_fails_and_handlers_that_do_not_answer() {
    let folder = Folder::new("bad");
    for (text, why) in [
        (
            "int main(void) { return 3; }",
            "main() failed: it returned 3",
        ),
        ("int main(void) { return 0; }", "no handler"),
        (
            "KVM_EXPORT void my_backend(const char *url) { (void)url; } int main(void) { return 0; }",
            "returned without a response",
        ),
        (
            "#include <stdlib.h>\nKVM_EXPORT void my_backend(const char *url) { (void)url; exit(0); }\n\
             int main(void) { return 0; }",
            "ended without a response (exit status 0)",
        ),
        (
            "int main(void) { backend_response_str(200, \"\", \"\"); }",
            "without a request",
        ),
    ] {
        let source = folder.0.join("main.c");
        std::fs::write(&source, format!("#include <kvm_api.h>\n{text}\n")).unwrap();
        let program = folder.build(C, &[source.to_str().unwrap()]);
        let output = native(&program, &["/"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]));
        assert!(errors.contains(why), "{why}: {errors}");
    }
}

/// Several sources of one program, and the response without a paused loop's end.
#[test]
fn a_program_of_two_sources_in_a_paused_loop() {
    let folder = Folder::new("two");
    let main = folder.0.join("main.c");
    let other = folder.0.join("other.c");
    std::fs::write(
        &main,
        "#include <kvm_api.h>\nvoid answer(const char *);\nint main(void) {\n\
         struct kvm_request r; int turns = 0;\n\
         for (;;) { wait_for_requests_paused(&r); turns++; answer(turns == 1 ? r.url : \"again\"); } }\n",
    )
    .unwrap();
    std::fs::write(
        &other,
        "#include <kvm_api.h>\nvoid answer(const char *text);\n\
         void answer(const char *text) { backend_response_str(200, \"text/plain\", text); }\n",
    )
    .unwrap();
    let sources = [main.to_str().unwrap(), other.to_str().unwrap()];
    let program = folder.build(C, &sources);
    assert_eq!(native(&program, &["/a", "/b"]).stdout, b"/a/b");
}

/// Names of functions and macros with arguments in a header: what stands before a parenthesis where one is defined.
fn defined(header: &str) -> Vec<String> {
    let macros = header.lines().filter_map(|line| {
        let name = line.strip_prefix("#define ")?.split([' ', '(']).next()?;
        Some(name.to_owned())
    });
    let functions = header.split("\nstatic ").skip(1).filter_map(|text| {
        let (declared, _) = text.split_once("\n{")?;
        let (before, _) = declared.rsplit_once(')')?;
        // Its parameters are all that is between its name and the last parenthesis, but for those of pointers to functions.
        let name = before.split('(').find_map(|part| {
            let word = part.rsplit([' ', '\n', '\t', '*', ')']).next()?;
            let is_name = !word.is_empty() && word.starts_with(|c: char| c.is_ascii_lowercase());
            (is_name && word != "format").then_some(word)
        })?;
        Some(name.to_owned())
    });
    macros.chain(functions).collect()
}

#[test]
fn every_call_is_in_the_documentation() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (api, compat) = (
        read("guest-sdk/c/kvm_api.h"),
        read("guest-sdk/c/kvm_compat.h"),
    );
    let documented = read("docs/guest-api.md");
    let names = [defined(&api), defined(&compat)].concat();
    for known in [
        "http_set",
        "http_appendf",
        "backend_response_extra",
        "EMBED_BINARY",
        "sys_log",
    ] {
        assert!(
            names.iter().any(|name| name == known),
            "{known} in {names:?}"
        );
    }
    let missing: Vec<_> = names
        .iter()
        .filter(|name| {
            !name.starts_with("KVM_") && !name.starts_with("kvm_") && *name != "backend_request"
        })
        .filter(|name| !documented.contains(&format!("`{name}")))
        .collect();
    assert!(missing.is_empty(), "not in docs/guest-api.md: {missing:?}");
}

/// In the process of the request that calls it.
#[test]
fn functions_of_storage_run_natively() {
    let folder = Folder::new("storage");
    let program = folder.build(C, &["tests/guests/storage.c"]);
    for (url, expected) in [
        ("/call/echo?b=one&b=&b=two", "6 onetwo\n"),
        ("/call/echo?b=12345&room=5", "5 12345\n"),
        ("/call/noreturn", "4 gone\n"),
        ("/call/too-long", "-1 \n"),
        ("/call/twice", "5 first\n"),
        ("/call/nested", "2 -1\n"),
        ("/call/allows", "2 -1\n"),
        ("/raw/echo?n=65", "-1\n"),
        ("/many/3", "4\n"),
        ("/task/tick?data=1", "1\n"),
        ("/stop/1", "-1\n"),
        ("/type", "(null) 0\n"),
    ] {
        let output = native(&program, &[url]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{url}");
    }
}

/// What is fetched is in a file.
#[test]
fn fetches_of_files() {
    let folder = Folder::new("fetched");
    let program = folder.build(C, &["tests/guests/fetcher.c"]);
    let file = |name: &str, content: &[u8]| {
        let path = folder.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = format!("http://a/?b=c={}", file("plain", b"the body"));
    let head = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/a\r\nX-B:c\r\n\r\nnone\n";
    let headed = format!("http://b/={}", file("headed", head));
    let get = |url: &str| {
        let output = native(&program, &["--fetch", &plain, "--fetch", &headed, url]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (url, expected) in [
        (
            "/whole?url=http://a/%3fb=c&show=1",
            "OK\nstatus 200\ntype 0 \nlength 8 crc32 967527c2\nterminated yes\nheaders 0\n\nthe body",
        ),
        (
            "/whole?url=http://b/&headers=25&room=5",
            "OK\nstatus 404\ntype 6 text/a\nlength 5 crc32 397349b2\nterminated yes\nheaders 22\ncontent-type: text/a\r\n\n",
        ),
        ("/whole?url=http://b/&room=4", "EMSGSIZE\n"),
        (
            "/whole?url=http://b/&dummy=1",
            "OK\nstatus 404\ntype 6 text/a\nlength 0 crc32 00000000\nterminated no\nheaders 30\n\
             content-type: text/a\r\nx-b: c\r\n\n",
        ),
        ("/whole?url=http://c/", "EACCES\n"),
        (
            "/parts?url=http://b/&second=http://a/%3fb=c",
            "begin OK\nbegin OK\nstatus 404 headers 30 length 5\nread OK 5 crc32 397349b2\n\
             status 200 headers 0 length 8\nread OK 8 crc32 967527c2\nclose OK, again EBADF\n",
        ),
        ("/many?url=http://b/", "8, then EMFILE\nclose OK\nbegin 3\n"),
        ("/stream?url=http://a/%3fb=c", "the body"),
    ] {
        assert_eq!(get(url), expected, "{url}");
    }
}
