//! Servers of many languages, as their distributions ship them: those of docs/programs.md, by the lines that stand there.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod installed;
mod serving;

use std::io::Write;

use common::kvm_or_skip;
use installed::{is_installed, start, start_of_snapshot};
use serving::Serving;

const CONNECTIONS: usize = 200;
const CLIENTS: usize = 20;
const BODY: usize = 1 << 20;
const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

/// What a server that counts answers, as it does in a fork that nobody has used.
const COUNTS: &str = "count 1 bytes 0\n";
const COUNTED: &str = "count 1 bytes 1048576\n";
/// The file that the others serve.
const FILE: &str = "the same to all\n";

/// A server, and what it does.
struct Runtime {
    /// A shell's command that succeeds where it is installed.
    needs: &'static str,
    /// `forkvm serve`'s own arguments and what comes after `--`, as docs/programs.md has them.
    options: &'static str,
    program: &'static str,
    /// The body of its answer.
    answer: &'static str,
    /// Method and path of a request with a body, and what the answer to it contains.
    upload: Option<[&'static str; 2]>,
}

const POST: Option<[&str; 2]> = Some(["POST /", COUNTED]);

impl Runtime {
    #[track_caller]
    fn answers(&self, serving: &Serving, what: &str) {
        let answer = serving.answer(GET.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(
            head.contains(" 200 ") && body == self.answer,
            "{what}: {answer:?}; {}",
            serving.said()
        );
    }

    #[track_caller]
    fn takes_a_body(&self, serving: &Serving, what: &str) {
        let Some([request, expected]) = self.upload else {
            return;
        };
        let head = upload_head(request);
        let answer = serving.answer(&[head.as_bytes(), &vec![b'x'; BODY]].concat());
        assert!(
            answer.contains(expected),
            "{what}: {answer:?}; {}",
            serving.said()
        );
    }

    /// Clients that go in the middle of a request.
    fn is_left(&self, serving: &Serving) {
        let mut client = serving.connect();
        client.write_all(&GET.as_bytes()[..20]).unwrap();
        drop(client);
        let mut client = serving.connect();
        client.write_all(GET.as_bytes()).unwrap();
        drop(client);
        let mut client = serving.connect();
        let [request, _] = self.upload.unwrap_or(["POST /", ""]);
        // A server that takes no body may have answered and gone by now.
        let _ = client.write_all(upload_head(request).as_bytes());
        let _ = client.write_all(&[b'x'; 10_000]);
        // As a client that is killed with something unread: what it has sent last may not come.
        rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
    }

    fn is_served(&self) {
        kvm_or_skip!();
        if !is_installed(self.needs) {
            return;
        }
        let documented = include_str!("../../../docs/programs.md");
        for line in [self.options, self.program] {
            assert!(documented.contains(line), "docs/programs.md lacks: {line}");
        }
        let serving = start(self.options, &["-t2"], self.program);
        for n in 0..CONNECTIONS {
            self.answers(&serving, &format!("connection {n}"));
        }
        self.takes_a_body(&serving, "a body");
        std::thread::scope(|scope| {
            for n in 0..CLIENTS {
                let serving = &serving;
                scope.spawn(move || {
                    self.answers(serving, &format!("client {n}"));
                    self.takes_a_body(serving, &format!("body of client {n}"));
                });
            }
        });
        for _ in 0..3 {
            self.is_left(&serving);
            self.answers(&serving, "after a client that left");
        }
        self.takes_a_body(&serving, "a last body");
        drop(serving);
        let serving = start_of_snapshot(self.options, &["-t2"], self.program);
        for n in 0..20 {
            self.answers(&serving, &format!("connection {n} of the snapshot"));
            self.takes_a_body(&serving, &format!("body {n} of the snapshot"));
        }
    }
}

fn upload_head(request: &str) -> String {
    format!(
        "{request} HTTP/1.1\r\nHost: test\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n"
    )
}

#[test]
fn cpython_http_server() {
    Runtime {
        needs: "/usr/bin/python3 -c 'import http.server'",
        options: "--allow-read=.",
        program: "/usr/bin/python3 -m http.server 8000 -d www",
        answer: FILE,
        upload: None,
    }
    .is_served();
}

#[test]
fn cpython_handler() {
    Runtime {
        needs: "/usr/bin/python3 -c 'import http.server'",
        options: "--allow-read=.",
        program: "/usr/bin/python3 handler.py",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn gunicorn() {
    Runtime {
        needs: "command -v gunicorn",
        options: "--allow-read=.",
        program: "gunicorn -w 1 -b 127.0.0.1:8000 wsgi:app",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn waitress() {
    Runtime {
        needs: "command -v waitress-serve",
        options: "--allow-read=.",
        program: "waitress-serve --listen=127.0.0.1:8000 wsgi:app",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn uvicorn() {
    Runtime {
        needs: "/usr/bin/python3 -c 'import uvicorn'",
        options: "--allow-read=.",
        program: "/usr/bin/python3 -m uvicorn --loop asyncio --port 8000 asgi:app",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn node() {
    Runtime {
        needs: "command -v node",
        options: "--allow-read=.",
        program: "node node.js",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn deno() {
    Runtime {
        needs: "command -v deno",
        options: "--allow-read=. --env DENO_DIR=/tmp/deno --env DENO_NO_UPDATE_CHECK=1 --warmup-time=1",
        program: "deno run --allow-net deno.js",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn go_net_http() {
    Runtime {
        needs: "command -v go-server",
        options: "",
        program: "go-server",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn axum() {
    Runtime {
        needs: "command -v axum-server",
        options: "",
        program: "axum-server",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn rust_std() {
    Runtime {
        needs: "command -v std-server",
        options: "",
        program: "std-server",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

/// Of a body it makes a file, which the next connection does not find: else the answer would be 204.
#[test]
fn nginx() {
    Runtime {
        needs: "command -v nginx",
        options: "--allow-read=.",
        program: "nginx -p . -c nginx.conf",
        answer: FILE,
        upload: Some(["PUT /files/new", " 201 "]),
    }
    .is_served();
}

#[test]
fn lighttpd() {
    Runtime {
        needs: "command -v lighttpd",
        options: "--allow-read=.",
        program: "lighttpd -D -f lighttpd.conf",
        answer: FILE,
        upload: Some(["POST /", FILE]),
    }
    .is_served();
}

#[test]
fn busybox_httpd() {
    Runtime {
        needs: "busybox httpd --help",
        options: "--allow-read=.",
        program: "busybox httpd -f -p 8000 -h www",
        answer: FILE,
        upload: None,
    }
    .is_served();
}

#[test]
fn php() {
    Runtime {
        needs: "command -v php",
        options: "--allow-read=.,/etc/php",
        program: "php -S 127.0.0.1:8000 index.php",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn ruby_webrick() {
    Runtime {
        needs: "ruby -r webrick -e 1",
        options: "--allow-read=.,/usr/share",
        program: "ruby webrick.rb",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}

#[test]
fn openjdk() {
    Runtime {
        needs: "test -e target/servers/java/Server.class -a -x /usr/bin/java -a -d /etc/java-17-openjdk",
        options: "--allow-read=target/servers/java,/etc/java-17-openjdk --max-memory=4096",
        program: "/usr/bin/java -cp target/servers/java Server",
        answer: COUNTS,
        upload: POST,
    }
    .is_served();
}
