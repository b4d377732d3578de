//! Fuzz targets of what operators and clients send: JSON of tenants, keys and names. As forkvm's (crates/forkvm/fuzz/strangers.rs).

use bolero::check;

use super::keys::Key;
use super::signature::{Action, Claim};
use super::{document, name};

/// A document is tenants with names and settings that were checked, or an error that can be shown in one log record a line.
#[test]
fn documents() {
    check!().for_each(|json| {
        let mut warnings = document::Warnings::default();
        match document::parse(json, &mut warnings) {
            Ok(tenants) => {
                for tenant in tenants {
                    let name = tenant.settings.config.name;
                    assert_eq!(name::canonical(name.as_bytes()).as_deref(), Some(&*name));
                }
            }
            Err(error) => warnings.lines.push(error.to_string()),
        }
        for text in warnings.lines {
            let is_control = |c: char| c.is_control() && c != '\n';
            assert!(!text.contains(is_control), "{text:?}");
        }
    });
}

/// No key but the right one is one, and what looks like a signature is none.
#[test]
fn keys() {
    let key = Key::given(b"secret");
    check!().for_each(|sent| {
        let claim = Claim {
            tenant: "a.example",
            method: "POST",
            action: Action::Update,
        };
        assert_eq!(
            key.check(sent, &[claim], false).is_ok(),
            sent.trim_ascii() == b"secret"
        );
    });
}

/// A Host header that names a tenant does so in one way.
#[test]
fn hosts() {
    check!().for_each(|host| {
        if let Some(found) = name::of_host(host) {
            assert!(found.len() <= name::MAX_LEN);
            assert_eq!(name::of_host(found.as_bytes()), Some(found.clone()));
            assert_eq!(name::canonical(found.as_bytes()), Some(found.clone()));
        }
    });
}
