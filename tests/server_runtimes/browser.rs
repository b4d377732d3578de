//! Headless Chromium, by its WebDriver (W3C WebDriver): Debian's chromium-driver.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::Folder;
use crate::common::client::{Body, Client};

/// What the W3C calls an element's key.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. Dropping it ends it.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: Folder,
}

impl Browser {
    pub fn start(test: &str) -> Self {
        Self::start_with(test, json!({}))
    }

    /// The same with the screen of a phone.
    pub fn start_phone(test: &str) -> Self {
        let screen = json!({ "width": 360, "height": 740, "pixelRatio": 2, "touch": true });
        Self::start_with(
            test,
            json!({ "mobileEmulation": { "deviceMetrics": screen } }),
        )
    }

    fn start_with(test: &str, mut options: Value) -> Self {
        let profile = Folder::new(&format!("{test}-profile"));
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse().ok()
            })
            .unwrap();
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            _profile: profile,
        };
        let profile = browser._profile.path().display();
        let arguments = [
            "--headless=new".into(),
            // The tests may run as root, and in containers with little shared memory.
            "--no-sandbox".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-gpu".into(),
            "--window-size=1200,900".into(),
            format!("--user-data-dir={profile}"),
        ];
        options["args"] = json!(arguments);
        let capabilities = json!({ "alwaysMatch": { "goog:chromeOptions": options } });
        let opened = browser.ask("POST", "", &json!({ "capabilities": capabilities }));
        browser.session = format!("/{}", opened["sessionId"].as_str().unwrap());
        browser
    }

    /// A command; its value.
    #[track_caller]
    fn ask(&self, method: &str, command: &str, body: &Value) -> Value {
        let url = format!("/session{}{command}", self.session);
        let text = body.to_string();
        let body = match method {
            "POST" => Body::Length(text.as_bytes()),
            _ => Body::None,
        };
        let mut client = Client::connect(self.port);
        let answer = client.send(method, "localhost", &url, &[], body);
        assert_eq!(answer.status, 200, "{method} {url}: {}", answer.text());
        let mut answer: Value = serde_json::from_slice(&answer.body).unwrap();
        answer["value"].take()
    }

    /// Loads a page.
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url }));
    }

    /// What an expression of JavaScript's is on the page.
    pub fn value(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        let body = json!({ "script": script, "args": [] });
        self.ask("POST", "/execute/sync", &body)
    }

    /// Clicks on the element that a selector names.
    pub fn click(&self, selector: &str) {
        let by = json!({ "using": "css selector", "value": selector });
        let found = self.ask("POST", "/element", &by);
        let element = found[ELEMENT].as_str().unwrap();
        self.ask("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Puts a picture of the page into a file, a PNG.
    pub fn screenshot(&self, file: &Path) {
        let picture = self.ask("GET", "/screenshot", &json!({}));
        let mut decode = Command::new("base64")
            .arg("-d")
            .stdin(Stdio::piped())
            .stdout(File::create(file).unwrap())
            .spawn()
            .unwrap();
        let mut input = decode.stdin.take().unwrap();
        input
            .write_all(picture.as_str().unwrap().as_bytes())
            .unwrap();
        drop(input);
        assert!(decode.wait().unwrap().success());
        assert!(fs::read(file).unwrap().starts_with(b"\x89PNG"));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            // The browser is the driver's child.
            self.ask("DELETE", "", &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
