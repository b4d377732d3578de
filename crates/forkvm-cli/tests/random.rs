//! Random numbers of servers: which are new in each connection, and which are the same in several, as docs/security.md has them.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod installed;
mod serving;

use std::collections::{BTreeMap, BTreeSet};

use common::kvm_or_skip;
use installed::{is_installed, start};
use serving::Serving;

const CONNECTIONS: usize = 8;

/// A server that answers lines: names of what is random, and values.
struct Runtime {
    name: &'static str,
    /// A shell's command that succeeds where it is installed.
    needs: &'static str,
    options: &'static str,
    program: &'static str,
    path: &'static str,
    /// What is new in each connection; what is so unless it was used before the freeze; and what is not.
    new: &'static [&'static str],
    lazy: &'static [&'static str],
    same: &'static [&'static str],
}

impl Runtime {
    fn is_as_documented(&self) {
        kvm_or_skip!();
        let code = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        let columns = [self.new, self.lazy, self.same].map(code);
        let row = format!("| {} | {} |", self.name, columns.join(" | "));
        let documented = include_str!("../../../docs/security.md");
        if !is_installed(self.needs) {
            return;
        }
        let path = format!("--warmup-url={}", self.path);
        let warm = ["--warmup=3", &path];
        let new_if_cold = [self.new, self.lazy].concat();
        for (more, new) in [
            (&[][..], &new_if_cold[..]),
            (&warm, self.new),
            (&[&warm[..], &["--per-request"]].concat(), self.new),
        ] {
            let serving = start(self.options, &[&["-t2"], more].concat(), self.program);
            assert_eq!(self.new_in(&serving), new, "{more:?}");
        }
        assert!(documented.contains(&row), "docs/security.md lacks: {row}");
    }

    /// What is new in each of some connections.
    fn new_in(&self, serving: &Serving) -> Vec<&'static str> {
        let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for _ in 0..CONNECTIONS {
            // In HTTP/1.0 a body comes in one piece.
            let answer =
                serving.answer(format!("GET {} HTTP/1.0\r\nHost: t\r\n\r\n", self.path).as_bytes());
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            for line in body.lines() {
                let (name, value) = line.split_once('\t').unwrap();
                values.entry(name.into()).or_default().insert(value.into());
            }
        }
        let all = [self.new, self.lazy, self.same].concat();
        assert_eq!(values.len(), all.len(), "{values:?} {}", serving.said());
        let is_new = |name: &&str| values[*name].len() == CONNECTIONS;
        all.into_iter().filter(is_new).collect()
    }
}

#[test]
fn cpython() {
    Runtime {
        name: "CPython 3.11",
        needs: "/usr/bin/python3 -c 'import http.server'",
        options: "--allow-read=.",
        program: "/usr/bin/python3 entropy.py",
        path: "/",
        new: &[
            "os.urandom",
            "secrets",
            "random.SystemRandom",
            "uuid.uuid4",
            "ssl.RAND_bytes",
            "sqlite3's randomblob",
            "random.Random()",
        ],
        lazy: &[],
        same: &["random.random", "hash"],
    }
    .is_as_documented();
}

#[test]
fn node() {
    Runtime {
        name: "Node 20",
        needs: "command -v node",
        options: "--allow-read=.",
        program: "node entropy.js",
        path: "/",
        new: &[
            "crypto.randomBytes",
            "crypto.getRandomValues",
            "crypto.randomUUID({disableEntropyCache: true})",
        ],
        lazy: &["crypto.randomUUID()", "crypto.randomInt"],
        same: &["Math.random"],
    }
    .is_as_documented();
}

#[test]
fn deno() {
    Runtime {
        name: "Deno 2.9",
        needs: "command -v deno",
        options: "--allow-read=. --env DENO_DIR=/tmp/deno --env DENO_NO_UPDATE_CHECK=1 --warmup-time=1",
        program: "deno run --allow-net --allow-read entropy.deno.js",
        path: "/",
        new: &["/dev/urandom"],
        lazy: &["crypto.getRandomValues", "crypto.randomUUID", "node:crypto's randomBytes"],
        same: &["Math.random"],
    }
    .is_as_documented();
}

#[test]
fn go() {
    Runtime {
        name: "Go 1.19",
        needs: "command -v go-entropy",
        options: "",
        program: "go-entropy",
        path: "/",
        new: &["crypto/rand"],
        lazy: &[],
        same: &["math/rand", "hash/maphash", "the order of maps"],
    }
    .is_as_documented();
}

#[test]
fn rust() {
    Runtime {
        name: "Rust, rand 0.10",
        needs: "command -v axum-server",
        options: "",
        program: "axum-server",
        path: "/random",
        new: &["rand::rngs::SysRng"],
        lazy: &["rand::rng()"],
        same: &["RandomState"],
    }
    .is_as_documented();
}

#[test]
fn nginx() {
    Runtime {
        name: "nginx 1.22",
        needs: "command -v nginx",
        options: "--allow-read=.",
        program: "nginx -p . -c nginx.conf",
        path: "/random",
        new: &["request_id"],
        lazy: &[],
        same: &[],
    }
    .is_as_documented();
}

#[test]
fn php() {
    Runtime {
        name: "PHP 8.2",
        needs: "command -v php",
        options: "--allow-read=.,/etc/php",
        program: "php -S 127.0.0.1:8000 entropy.php",
        path: "/",
        new: &[
            "random_int",
            "random_bytes",
            "openssl_random_pseudo_bytes",
            "mt_rand",
            "lcg_value",
        ],
        lazy: &[],
        same: &[],
    }
    .is_as_documented();
}

#[test]
fn ruby() {
    Runtime {
        name: "Ruby 3.1",
        needs: "ruby -r webrick -e 1",
        options: "--allow-read=.,/usr/share",
        program: "ruby entropy.rb",
        path: "/",
        new: &["SecureRandom", "Random.new", "OpenSSL::Random"],
        lazy: &["Kernel#rand"],
        same: &["String#hash"],
    }
    .is_as_documented();
}

#[test]
fn java() {
    Runtime {
        name: "OpenJDK 17",
        needs: "test -e target/servers/java/Entropy.class -a -x /usr/bin/java -a -d /etc/java-17-openjdk",
        options: "--allow-read=target/servers/java,/etc/java-17-openjdk --max-memory=4096",
        program: "/usr/bin/java -cp target/servers/java Entropy",
        path: "/",
        new: &["SecureRandom", "UUID.randomUUID", "new Random()"],
        lazy: &["Math.random", "ThreadLocalRandom"],
        same: &["an older Random"],
    }
    .is_as_documented();
}
