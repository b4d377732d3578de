//! Servers of many languages behind a real varnishd, as their distributions ship them (scripts/servers-setup.sh), and a page of
//! React's whose browser's part works.
#![allow(clippy::unwrap_used, clippy::expect_used)]

// Another test has the screen of a phone.
#[allow(dead_code)]
#[path = "server_runtimes/browser.rs"]
mod browser;
mod common;
#[path = "../crates/forkvm-cli/tests/installed/found.rs"]
mod found;

use std::path::Path;
use std::process::Command;
use std::thread;

use browser::Browser;
use common::client::{Body, Client, Response};
use common::updates::KEY;
use common::varnishd::Varnishd;
use common::{Folder, eventually};
use found::{is_installed, repository, servers};

const CLIENTS: usize = 64;
const MIB: usize = 1 << 20;
const LARGE: usize = 20_000_000;

/// A server that counts what it is asked, and the bytes of a body; at /bytes/N it answers so many.
struct Runtime {
    /// A shell's command that succeeds where it is installed.
    needs: &'static str,
    /// The program, and what else kvm.server() gets. SERVERS is where scripts/servers-setup.sh puts things, SOURCES where the
    /// servers' own files are.
    program: &'static str,
    settings: &'static str,
}

impl Runtime {
    fn start(&self) -> Varnishd {
        let sources = repository().join("tests/servers");
        let filled = |text: &str| {
            text.replace("SERVERS", &servers())
                .replace("SOURCES", sources.to_str().unwrap())
        };
        Varnishd::start_with(
            &format!(
                r#"kvm.server("t", "{}", {}, warmup_url = "/bytes/1", max_memory = 4GB, max_request_memory = 512MB, max_boot_time = ENOUGH,
                    max_request_time = ENOUGH, max_wait = ENOUGH, max_body_time = ENOUGH, max_queue = 1000, concurrency = 2,
                    max_response_memory = 4GB);"#,
                filled(self.program),
                filled(self.settings)
            ),
            // Each that waits holds two threads.
            &["-p", "thread_pool_min=50"],
        )
    }

    fn is_served_behind_varnish(&self) {
        if !common::have_kvm() || !is_installed(self.needs) {
            return;
        }
        let mut varnish = self.start();
        let mut client = varnish.client();
        for n in 0..100 {
            counts(&client.get("t", "/"), &format!("request {n}"));
        }
        for len in [MIB, LARGE] {
            takes(&mut client, len);
            gives(&mut client, len);
        }
        thread::scope(|scope| {
            for n in 0..CLIENTS {
                let varnish = &varnish;
                scope.spawn(move || {
                    let mut client = varnish.client();
                    counts(&client.get("t", "/"), &format!("client {n}"));
                    takes(&mut client, MIB);
                    gives(&mut client, MIB);
                    counts(&client.get("t", "/"), &format!("client {n}, later"));
                });
            }
        });
        varnish.kill_child();
        varnish.start_child();
        let mut client = varnish.client();
        counts(&client.get("t", "/"), "after a crash");
        takes(&mut client, LARGE);
        counts(&client.get("t", "/"), "at last");
        assert_eq!(varnish.counter("failures"), 0);
    }
}

/// Nothing is left of any request before.
#[track_caller]
fn counts(response: &Response, what: &str) {
    assert_eq!(response.status, 200, "{what}: {}", response.text());
    assert_eq!(response.text(), "count 1 bytes 0\n", "{what}");
}

#[track_caller]
fn takes(client: &mut Client, len: usize) {
    let body = vec![b'x'; len];
    let response = client.send("POST", "t", "/", &[], Body::Length(&body));
    assert_eq!(response.text(), format!("count 1 bytes {len}\n"));
}

#[track_caller]
fn gives(client: &mut Client, len: usize) {
    let response = client.get("t", &format!("/bytes/{len}"));
    assert_eq!(response.status, 200);
    assert_eq!(response.body.len(), len);
    assert!(response.body.iter().all(|&byte| byte == b'x'));
}

#[test]
fn cpython() {
    Runtime {
        needs: "/usr/bin/python3 -c 'import http.server'",
        program: "/usr/bin/python3",
        settings: r#""SOURCES/handler.py", allowed_paths = "SOURCES", warmup = 5"#,
    }
    .is_served_behind_varnish();
}

#[test]
fn node() {
    Runtime {
        needs: "test -x /usr/bin/node",
        program: "/usr/bin/node",
        settings: r#""SOURCES/node.js", allowed_paths = "SOURCES", warmup = 5"#,
    }
    .is_served_behind_varnish();
}

#[test]
fn deno() {
    Runtime {
        needs: "deno --version",
        program: "SERVERS/bin/deno",
        settings: r#""run --allow-net SOURCES/deno.js", allowed_paths = "SOURCES", warmup = 5, warmup_time = 1s,
            environment = "DENO_DIR=/tmp/deno DENO_NO_UPDATE_CHECK=1""#,
    }
    .is_served_behind_varnish();
}

#[test]
fn go() {
    Runtime {
        needs: "test -x target/servers/bin/go-server",
        program: "SERVERS/bin/go-server",
        settings: "warmup = 5",
    }
    .is_served_behind_varnish();
}

#[test]
fn rust() {
    Runtime {
        needs: "test -x target/servers/bin/axum-server",
        program: "SERVERS/bin/axum-server",
        settings: "warmup = 5",
    }
    .is_served_behind_varnish();
}

/// Rendered by Deno in a fork of its own for each visitor, sent as a folder with all its packages, taken over by a browser.
#[test]
fn a_page_of_reacts_works_in_a_browser() {
    let needs = "deno --version && test -e target/servers/react/deno.lock && chromium --version && chromedriver --version";
    if !common::have_kvm() || !is_installed(needs) {
        return;
    }
    let state = Folder::new("react");
    let varnish = Varnishd::start(&format!(
        r#"kvm.server("127.0.0.1", "{servers}/bin/deno",
            "run --allow-net --allow-read --allow-env --cached-only /app/server.js",
            folder = "/app", current_working_directory = "/app", max_memory = 4GB, warmup = 20, warmup_time = 1s,
            environment = "DENO_DIR=/app/deno-dir DENO_NO_UPDATE_CHECK=1 NODE_ENV=production",
            update_key = "{key}", state_dir = "{state}", max_boot_time = ENOUGH, max_request_time = ENOUGH, max_wait = ENOUGH);"#,
        servers = servers(),
        key = KEY.1,
        state = state.path().display(),
    ));
    let url = format!("http://127.0.0.1:{}/", varnish.port);
    let upload = Command::new(common::built("forkvm"))
        .args([
            "upload",
            "--tenant",
            "127.0.0.1",
            "--key-env",
            "TEST_KEY",
            "--url",
            &url,
        ])
        .arg(Path::new(&servers()).join("react"))
        .env("TEST_KEY", KEY.1)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&upload.stderr);
    assert!(upload.status.success(), "{said}");

    let page = varnish.client().get("127.0.0.1", "/");
    assert!(
        (25_000..40_000).contains(&page.body.len()),
        "{}",
        page.body.len()
    );
    let browser = Browser::start("react");
    for visit in 0..2 {
        browser.open(&url);
        let text = |selector: &str| {
            let text = browser.value(&format!("document.querySelector({selector:?}).textContent"));
            text.as_str().unwrap().to_owned()
        };
        // Each visitor's page comes from a fork that has rendered nothing but the warm-up's.
        assert_eq!(text("#rendered"), "Rendered 21 times", "visit {visit}");
        eventually("the browser takes the page over", || {
            browser.value("document.documentElement.dataset.hydrated") == "true"
        });
        assert_eq!(text("#button"), "Clicked 0 times");
        browser.click("#button");
        browser.click("#button");
        eventually("the button counts", || text("#button") == "Clicked 2 times");
        let errors = browser.value("document.documentElement.dataset.errors || null");
        assert!(errors.is_null(), "{errors}");
    }
    browser.screenshot(&Path::new(&servers()).join("react.png"));
}
