//! The page of `kvm.synth_stats()` in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
#[path = "server_runtimes/browser.rs"]
mod browser;
mod common;
#[path = "../crates/forkvm-cli/tests/installed/found.rs"]
mod found;

use std::path::Path;
use std::thread;
use std::time::Duration;

use browser::Browser;
use common::eventually;
use common::varnishd::Varnishd;
use found::is_installed;

#[test]
fn tenants_are_seen_without_a_script_on_any_screen() {
    if !common::have_kvm() || !is_installed("chromium --version && chromedriver --version") {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("hello.example", "GUESTS/hello", max_wait = ENOUGH, max_request_time = ENOUGH);
        kvm.tenant("a-tenant-with-a-name-that-is-longer-than-a-phone-is-wide.example", "/nowhere");"#,
    );
    let mut client = varnish.client();
    let mut asked = 100;
    for _ in 0..asked {
        assert_eq!(client.get("hello.example", "/").status, 200);
    }
    let url = format!("http://127.0.0.1:{}/of-operators", varnish.port);
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    for width in ["wide", "phone"] {
        let browser = match width {
            "wide" => Browser::start("page"),
            _ => Browser::start_phone("page-phone"),
        };
        browser.open(&url);
        let text = || {
            // A page that is asked without a pause has no time to be renewed.
            thread::sleep(Duration::from_millis(500));
            let text = browser.value("document.body.innerText");
            text.as_str().unwrap().to_owned()
        };
        eventually("both are there", || {
            let text = text();
            text.contains("1 of 2 ready") && text.contains("failed")
        });
        // It renews itself.
        assert!(!text().contains(&format!("requests\n{}\n", asked + 1)));
        assert_eq!(varnish.client().get("hello.example", "/").status, 200);
        asked += 1;
        eventually("another request is seen", || {
            text().contains(&format!("requests\n{asked}\n"))
        });
        assert!(text().contains("/nowhere"));
        assert_eq!(browser.value("document.scripts.length"), 0);
        // Nothing is beyond the screen's edge.
        let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert_eq!(browser.value(fits), true, "{width}");
        browser.screenshot(&pictures.join(format!("page-{width}.png")));
    }
}
