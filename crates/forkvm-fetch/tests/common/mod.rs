//! What the tests of fetches share: an upstream on loopback that answers well and badly, and how a client is asked.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../forkvm/tests/common/pace.rs"]
pub mod pace;
pub mod upstream;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{FetchError, FetchHead, FetchRequest, FetchTarget, Fetcher, Header, Reach};
use forkvm_fetch::{Client, Settings};

pub use pace::{ENOUGH, scaled};

/// Settings by which these places may be reached.
pub fn settings(rules: &[&str]) -> Settings {
    Settings {
        reach: Reach::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()),
        ..Settings::default()
    }
}

/// A client that knows some names: those that end in .local are the loopback's, those in .public are of the Internet (and of
/// documentation, so nobody is there), those in .both are both; `hangs` takes its time.
pub fn client(settings: Settings) -> Client {
    Client::with_lookup(settings, Arc::new(look_up)).unwrap()
}

fn look_up(name: &str) -> Vec<IpAddr> {
    let near = IpAddr::from(Ipv4Addr::LOCALHOST);
    let far = "2001:db8::1".parse().unwrap();
    match name.rsplit('.').next().unwrap() {
        "hangs" => {
            std::thread::sleep(scaled(Duration::from_secs(20)));
            vec![near]
        }
        "local" | "localhost" => vec![near],
        "public" => vec![far],
        "both" => vec![far, near],
        _ => Vec::new(),
    }
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    pub head: FetchHead,
    pub body: Vec<u8>,
}

impl Fetched {
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.headers.iter();
        let header = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(str::from_utf8(&header.value).unwrap())
    }
}

/// A GET.
pub fn request(url: &str) -> FetchRequest {
    FetchRequest {
        target: FetchTarget::Url(url.into()),
        method: "GET".into(),
        headers: Vec::new(),
        body: None,
        follow: false,
        unverified: false,
        deadline: Instant::now() + ENOUGH,
    }
}

/// The same with a body.
pub fn post(url: &str, body: &[u8]) -> FetchRequest {
    FetchRequest {
        method: "POST".into(),
        body: Some(body.into()),
        ..request(url)
    }
}

pub fn header(name: &'static str, value: &'static str) -> Header<'static> {
    Header::new(name, value.as_bytes())
}

/// Fetches all of it.
pub fn fetch(client: &dyn Fetcher, request: FetchRequest) -> Result<Fetched, FetchError> {
    let end = Instant::now() + ENOUGH;
    let mut begun = client.begin(request)?;
    let head = begun.head(end)?.expect("a head");
    let (mut body, mut piece) = (Vec::new(), vec![0; 10_000]);
    loop {
        match begun.read(&mut piece, end)?.expect("more") {
            0 => return Ok(Fetched { head, body }),
            n => body.extend_from_slice(&piece[..n]),
        }
    }
}

pub fn get(client: &dyn Fetcher, url: &str) -> Result<Fetched, FetchError> {
    fetch(client, request(url))
}
