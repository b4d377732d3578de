//! What the tests of live updates share: a tenant, and programs that can be told apart by every byte they answer.

use std::fs;
use std::path::Path;

use super::client::{Body, Client, Response};
use super::guests;
use super::varnishd::Varnishd;

/// The header with the tenant's key.
pub const KEY: (&str, &str) = ("X-LiveUpdate", "a key");

/// A varnishd with a tenant "t" that can be updated, and begins with test/version-a.
pub fn start(state: &Path, settings: &str) -> Varnishd {
    Varnishd::start(&format!(
        r#"kvm.tenant("t", "GUESTS/test/version-a", update_key = "{}", state_dir = "{}", {settings});"#,
        KEY.1,
        state.display()
    ))
}

pub fn guest(name: &str) -> Vec<u8> {
    fs::read(guests().join("test").join(name)).unwrap()
}

pub fn upload(client: &mut Client, elf: &[u8]) -> Response {
    client.send("POST", "t", "/", &[KEY], Body::Length(elf))
}

/// Which program a response is from: all of it must be.
#[track_caller]
pub fn answer(response: &Response) -> u8 {
    assert_eq!(
        response.status,
        200,
        "{}",
        String::from_utf8_lossy(&response.body)
    );
    let letter = response.header("x-answer").unwrap().as_bytes()[0];
    assert!(!response.body.is_empty());
    assert!(
        response.body.iter().all(|&byte| byte == letter),
        "an answer of two programs"
    );
    letter
}
