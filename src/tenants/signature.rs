//! Orders that are signed with the tenant's key instead of carrying it, since what clients send is in Varnish's log.
//!
//! The header that would have the key has `HMAC-SHA256 time=T, nonce=N, sha256=D, mac=M` instead. M is the HMAC-SHA256
//! (RFC 2104), keyed with the key's SHA-256, of these lines: `forkvm 1`, the tenant's name, the request's method, what is
//! asked for (`update`, `rollback`, `debug`, `live-debug`), D, T, N. T is Unix time in seconds, N 32 hex digits of no
//! meaning, D the SHA-256 of the request's body in hex.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;

use crate::tenants::version::Version;

/// How far a signature's time may be from ours, in seconds.
const WINDOW: u64 = 300;
/// Most signatures of a tenant that are remembered; with more in one window, further ones are refused.
const MOST_USED: usize = 1024;
/// What a header starts with that has a signature.
const SCHEME: &[u8] = b"HMAC-SHA256 ";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Another program; without a body, which programs there are.
    Update,
    /// The program before.
    Rollback,
    /// A request that is debugged.
    Debug,
    /// A request that is debugged in a program which is sent along.
    LiveDebug,
}

impl Action {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Update, Self::Rollback, Self::Debug, Self::LiveDebug];

    /// Its name in what is signed.
    fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
            Self::Debug => "debug",
            Self::LiveDebug => "live-debug",
        }
    }
}

/// What is asked for, and of whom.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The tenant's name.
    pub tenant: &'a str,
    /// The request's method.
    pub method: &'a str,
    /// What is asked for.
    pub action: Action,
}

/// Why a signature is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Not in the form above.
    #[error("the signature is malformed")]
    Malformed,
    /// Made with another key, or for something else.
    #[error("the signature is wrong")]
    Wrong,
    /// Too old, or of the future.
    #[error(
        "the signature is older than {WINDOW} s or than this Varnish, or the two clocks differ by as much"
    )]
    Stale,
    /// A signature is good for one order.
    #[error("the signature was used before")]
    Used,
    /// More than can be remembered.
    #[error("there were more than {MOST_USED} orders within {WINDOW} s")]
    TooMany,
}

/// A signature as it came.
#[derive(Debug, Clone, Copy)]
pub struct Signature<'a> {
    time: &'a str,
    nonce: &'a str,
    sha256: &'a str,
    mac: [u8; 32],
}

/// The signatures that were used, and their times.
type Used = HashMap<[u8; 32], u64>;

/// By tenant.
static USED: LazyLock<Mutex<HashMap<String, Used>>> = LazyLock::new(Mutex::default);

/// What was signed before can have been used before: nothing is remembered over a restart.
static START: LazyLock<u64> = LazyLock::new(now);

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Begins to accept signatures.
pub fn start() {
    LazyLock::force(&START);
}

impl<'a> Signature<'a> {
    /// Reads a header's value. `None` if it is no signature, but perhaps a key.
    pub fn parse(value: &'a [u8]) -> Option<Result<Self, BadSignature>> {
        let fields = value.strip_prefix(SCHEME)?;
        Some(Self::of_fields(fields).ok_or(BadSignature::Malformed))
    }

    fn of_fields(fields: &'a [u8]) -> Option<Self> {
        let text = str::from_utf8(fields).ok()?;
        let mut parts = text.split(',').map(str::trim);
        let mut field = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=');
        let (time, nonce) = (field("time")?, field("nonce")?);
        let (sha256, mac) = (field("sha256")?, field("mac")?);
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (parts.next().is_none() && nonce.len() == 32 && is_hex(nonce)).then_some(())?;
        Some(Self {
            time,
            nonce,
            sha256,
            mac: mac.parse::<Version>().ok()?.bytes(),
        })
    }

    /// Checks it, without using it up. Gives what the body's SHA-256 has to be.
    pub fn verify(&self, key: &[u8; 32], claim: &Claim<'_>) -> Result<Version, BadSignature> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| BadSignature::Malformed)?;
        let lines = [
            "forkvm 1",
            claim.tenant,
            claim.method,
            claim.action.name(),
            self.sha256,
            self.time,
            self.nonce,
        ];
        mac.update(lines.join("\n").as_bytes());
        mac.verify_slice(&self.mac)
            .map_err(|_| BadSignature::Wrong)?;
        let time: u64 = self.time.parse().map_err(|_| BadSignature::Malformed)?;
        if time < *START || time.abs_diff(now()) > WINDOW {
            return Err(BadSignature::Stale);
        }
        self.sha256.parse().map_err(|_| BadSignature::Malformed)
    }

    /// Uses it up: it is good once.
    pub fn spend(&self, tenant: &str) -> Result<(), BadSignature> {
        let time: u64 = self.time.parse().map_err(|_| BadSignature::Malformed)?;
        let oldest = now().saturating_sub(WINDOW);
        let mut all = USED.lock();
        all.retain(|_, used| {
            used.retain(|_, time| *time >= oldest);
            !used.is_empty()
        });
        let used = all.entry(tenant.to_owned()).or_default();
        if used.contains_key(&self.mac) {
            return Err(BadSignature::Used);
        }
        if used.len() >= MOST_USED {
            return Err(BadSignature::TooMany);
        }
        used.insert(self.mac, time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const CLAIM: Claim<'_> = Claim {
        tenant: "example.com",
        method: "POST",
        action: Action::Update,
    };

    fn signed(time: u64, nonce: u64, claim: &Claim<'_>) -> String {
        let digest = Version::of(b"body");
        let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).unwrap();
        let Claim {
            tenant,
            method,
            action,
        } = claim;
        let action = action.name();
        let text =
            format!("forkvm 1\n{tenant}\n{method}\n{action}\n{digest}\n{time}\n{nonce:032x}");
        mac.update(text.as_bytes());
        let mac: String = mac
            .finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("HMAC-SHA256 time={time}, nonce={nonce:032x}, sha256={digest}, mac={mac}")
    }

    fn check(value: &str, claim: &Claim<'_>) -> Result<Version, BadSignature> {
        Signature::parse(value.as_bytes())
            .unwrap()?
            .verify(&KEY, claim)
    }

    #[test]
    fn a_signature_is_for_one_thing() {
        start();
        let value = signed(now(), 1, &CLAIM);
        assert_eq!(check(&value, &CLAIM), Ok(Version::of(b"body")));
        for claim in [
            Claim {
                tenant: "example.org",
                ..CLAIM
            },
            Claim {
                method: "GET",
                ..CLAIM
            },
            Claim {
                action: Action::Rollback,
                ..CLAIM
            },
        ] {
            assert_eq!(check(&value, &claim), Err(BadSignature::Wrong));
        }
        let other = Signature::parse(value.as_bytes()).unwrap().unwrap();
        assert_eq!(other.verify(&[8; 32], &CLAIM), Err(BadSignature::Wrong));
        let body = value.replace(
            &Version::of(b"body").to_string(),
            &Version::of(b"b").to_string(),
        );
        assert_eq!(check(&body, &CLAIM), Err(BadSignature::Wrong));
    }

    #[test]
    fn a_signature_has_its_time_and_is_used_once() {
        start();
        for time in [*START - 1, now() + WINDOW + 60] {
            assert_eq!(
                check(&signed(time, 2, &CLAIM), &CLAIM),
                Err(BadSignature::Stale)
            );
        }
        let value = signed(now(), 3, &CLAIM);
        let signature = Signature::parse(value.as_bytes()).unwrap().unwrap();
        assert_eq!(signature.spend("once.example"), Ok(()));
        assert_eq!(signature.spend("once.example"), Err(BadSignature::Used));
        assert_eq!(signature.spend("another.example"), Ok(()));
        for nonce in 0..MOST_USED as u64 {
            let value = signed(now(), nonce, &CLAIM);
            Signature::parse(value.as_bytes())
                .unwrap()
                .unwrap()
                .spend("many.example")
                .unwrap();
        }
        let value = signed(now(), MOST_USED as u64, &CLAIM);
        let signature = Signature::parse(value.as_bytes()).unwrap().unwrap();
        assert_eq!(signature.spend("many.example"), Err(BadSignature::TooMany));
    }

    #[test]
    fn what_is_no_signature() {
        assert!(Signature::parse(b"a plain key").is_none());
        let good = signed(now(), 4, &CLAIM);
        for bad in [
            "HMAC-SHA256 ".to_owned(),
            good.replace("time", "tame"),
            good.replace(", mac=", ", mac=0"),
            good.replace("nonce=0", "nonce=x"),
            format!("{good}, more=1"),
        ] {
            assert_eq!(check(&bad, &CLAIM), Err(BadSignature::Malformed), "{bad}");
        }
    }
}
