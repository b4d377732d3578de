//! The example "chat" behind a real varnishd: what one visitor says, all see, and an update keeps it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

// Another test takes pictures with it.
#[allow(dead_code)]
#[path = "server_runtimes/browser.rs"]
mod browser;
mod common;
#[path = "../crates/forkvm-cli/tests/installed/found.rs"]
mod found;

use std::fs;
use std::thread;

use browser::Browser;
use common::client::{Body, Client};
use common::updates::{self, KEY};
use common::varnishd::Varnishd;
use common::{Folder, eventually, guests};
use found::is_installed;

fn start(state: &Folder, host: &str) -> Varnishd {
    Varnishd::start(&format!(
        r#"kvm.tenant("{host}", "GUESTS/chat", storage = true, concurrency = 4, update_key = "{key}", state_dir = "{state}",
            max_boot_time = ENOUGH, max_request_time = ENOUGH, max_wait = ENOUGH, max_storage_time = ENOUGH);"#,
        key = KEY.1,
        state = state.path().display(),
    ))
}

fn say(client: &mut Client, who: &str, text: &str) -> u16 {
    let form = format!("who={who}&text={text}");
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    let said = client.send("POST", "t", "/say", &kind, Body::Length(form.as_bytes()));
    said.status
}

#[track_caller]
fn lines(client: &mut Client, after: usize) -> Vec<String> {
    let response = client.get("t", &format!("/lines?after={after}"));
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().lines().map(str::to_owned).collect()
}

#[test]
fn what_one_says_all_see() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("chat");
    let varnish = start(&state, "t");
    let mut client = varnish.client();
    assert!(lines(&mut client, 0).is_empty());
    assert_eq!(say(&mut client, "Ann", "one+%3Cb%3E%0A%09two"), 204);
    assert_eq!(say(&mut client, "Bob", ""), 400);
    assert_eq!(lines(&mut varnish.client(), 0), ["1\tAnn\tone <b>  two"]);

    // Many at once: each line is there once, and in one order for all.
    thread::scope(|scope| {
        for n in 0..8 {
            let varnish = &varnish;
            scope.spawn(move || {
                let mut client = varnish.client();
                for i in 0..10 {
                    assert_eq!(say(&mut client, &format!("v{n}"), &format!("{i}")), 204);
                }
            });
        }
    });
    let all = lines(&mut client, 1);
    assert_eq!(all.len(), 80);
    for (number, line) in all.iter().enumerate() {
        assert!(line.starts_with(&format!("{}\t", number + 2)), "{line}");
    }
    for n in 0..8 {
        let of_one = all
            .iter()
            .filter(|line| line.contains(&format!("\tv{n}\t")));
        let said: Vec<_> = of_one
            .map(|line| line.rsplit_once('\t').unwrap().1)
            .collect();
        assert_eq!(said, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    }
    assert_eq!(lines(&mut client, 81), Vec::<String>::new());

    // Another program with the same handlers takes over what was said.
    let mut elf = fs::read(guests().join("chat")).unwrap();
    elf.push(0);
    let updated = updates::upload(&mut client, &elf);
    assert_eq!(updated.status, 201, "{}", updated.text());
    assert_eq!(lines(&mut client, 1), all);
    assert_eq!(say(&mut client, "Ann", "later"), 204);
    assert_eq!(lines(&mut client, 81), ["82\tAnn\tlater"]);
    assert_eq!(varnish.counter("failures"), 0);
}

#[test]
fn two_browsers_see_each_others_lines() {
    if !common::have_kvm() || !is_installed("chromium --version && chromedriver --version") {
        return;
    }
    let state = Folder::new("chat-browsers");
    let varnish = start(&state, "127.0.0.1");
    let url = format!("http://127.0.0.1:{}/", varnish.port);
    let visitors = ["Ann", "Bob"].map(|who| {
        let browser = Browser::start(&format!("chat-{who}"));
        browser.open(&url);
        browser.value(&format!("document.getElementById('who').value = {who:?}"));
        browser
    });
    let text = |browser: &Browser| {
        let text = browser.value("document.getElementById('lines').innerText");
        text.as_str().unwrap().to_owned()
    };
    for (browser, line) in visitors.iter().zip(["hello <b>", "hello Ann"]) {
        browser.value(&format!("document.getElementById('text').value = {line:?}"));
        browser.click("#say");
        for other in &visitors {
            eventually("the line is there", || text(other).contains(line));
        }
    }
    for browser in &visitors {
        let shown: Vec<_> = text(browser)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(shown.join(" "), "Ann: hello <b> Bob: hello Ann");
        // What was said is text, whatever it looks like.
        assert_eq!(
            browser.value("document.querySelectorAll('#lines b').length"),
            2
        );
    }
}
