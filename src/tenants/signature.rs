//! Orders that are signed with the tenant's key instead of carrying it, since what clients send is in Varnish's log.
//!
//! The header that would have the key has `HMAC-SHA256 time=T, nonce=N, node=S, sha256=D, mac=M` instead. M is the
//! HMAC-SHA256 (RFC 2104), keyed with the key's SHA-256, of these lines: `forkvm 1`, the tenant's name, the request's method,
//! what is asked for (`update`, `rollback`, `debug`, `live-debug`), D, T, N, S. T is Unix time in seconds, N 32 hex digits of
//! no meaning, D the SHA-256 of the request's body in hex, S what this varnishd's child calls itself ([`node`]). Who asks
//! which programs there are is told that, and needs none for it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use rustix::rand::GetRandomFlags;
use sha2::Sha256;

use crate::tenants::version::Version;

/// How far a signature's time may be from ours, in seconds.
const WINDOW: u64 = 300;
/// How long a used signature is remembered, in seconds: one whose time is as far ahead as it may be is good for so long.
const REMEMBERED: u64 = 2 * WINDOW;
/// Most signatures of a tenant that are remembered; further ones are refused.
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
    #[error("the signature is wrong: it was made with another key, or for another order")]
    Wrong,
    /// Too old, or of the future.
    #[error("the signature is older than {WINDOW} s, or the two clocks differ by as much")]
    Stale,
    /// Made for another varnishd, or for none.
    #[error("the signature is not for this node, or from before its varnishd (re)started")]
    OtherNode,
    /// The request has another body than the one that was signed.
    #[error("the signature is not for this body")]
    OtherBody,
    /// A signature is good for one order.
    #[error("the signature was used before")]
    Used,
    /// More than can be remembered.
    #[error("there were more than {MOST_USED} orders within {REMEMBERED} s")]
    TooMany,
}

/// A signature as it came.
#[derive(Debug, Clone, Copy)]
pub struct Signature<'a> {
    time: &'a str,
    nonce: &'a str,
    node: &'a str,
    sha256: &'a str,
    mac: [u8; 32],
}

/// A moment, by the clock that signatures are dated by and by one that never jumps.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// Unix time in seconds.
    date: u64,
    instant: Instant,
}

impl Moment {
    fn now() -> Self {
        let date = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            date: date.map_or(0, |time| time.as_secs()),
            instant: Instant::now(),
        }
    }
}

/// The signatures that were used, by tenant, and when.
#[derive(Default)]
struct Used(HashMap<String, HashMap<[u8; 32], Instant>>);

static USED: LazyLock<Mutex<Used>> = LazyLock::new(Mutex::default);

/// Another one in each process: those that were used are not remembered for longer than that, nor by others.
static NODE: LazyLock<String> = LazyLock::new(|| {
    let mut bytes = [0; 16];
    // It can't fail for so few bytes.
    let _ = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
});

/// What this process is called in signatures.
pub fn node() -> &'static str {
    &NODE
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
        let (time, nonce, node) = (field("time")?, field("nonce")?, field("node")?);
        let (sha256, mac) = (field("sha256")?, field("mac")?);
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (parts.next().is_none() && nonce.len() == 32 && is_hex(nonce)).then_some(())?;
        Some(Self {
            time,
            nonce,
            node,
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
            self.node,
        ];
        mac.update(lines.join("\n").as_bytes());
        mac.verify_slice(&self.mac)
            .map_err(|_| BadSignature::Wrong)?;
        self.is_timely(Moment::now())?;
        if !self.node.is_empty() && self.node != node() {
            return Err(BadSignature::OtherNode);
        }
        self.sha256.parse().map_err(|_| BadSignature::Malformed)
    }

    /// Whether it is good for an order to this node, and not used up.
    pub fn check_unused(&self, tenant: &str) -> Result<(), BadSignature> {
        self.is_of_here()?;
        USED.lock().check(self, tenant, Moment::now())
    }

    /// Uses it up: it is good once, for an order to this node.
    pub fn spend(&self, tenant: &str) -> Result<(), BadSignature> {
        self.is_of_here()?;
        USED.lock().spend(self, tenant, Moment::now())
    }

    fn is_of_here(&self) -> Result<(), BadSignature> {
        match self.node == node() {
            true => Ok(()),
            false => Err(BadSignature::OtherNode),
        }
    }

    fn is_timely(&self, now: Moment) -> Result<(), BadSignature> {
        let time: u64 = self.time.parse().map_err(|_| BadSignature::Malformed)?;
        match time.abs_diff(now.date) > WINDOW {
            true => Err(BadSignature::Stale),
            false => Ok(()),
        }
    }
}

impl Used {
    /// Forgets those that are too old by now, and says whether this one may be spent.
    fn check(
        &mut self,
        signature: &Signature<'_>,
        tenant: &str,
        now: Moment,
    ) -> Result<(), BadSignature> {
        // By the same moment as those that are forgotten below: one of them must not be good again.
        signature.is_timely(now)?;
        self.0.retain(|_, used| {
            used.retain(|_, since| {
                now.instant.saturating_duration_since(*since) <= Duration::from_secs(REMEMBERED)
            });
            !used.is_empty()
        });
        match self.0.get(tenant) {
            Some(used) if used.contains_key(&signature.mac) => Err(BadSignature::Used),
            Some(used) if used.len() >= MOST_USED => Err(BadSignature::TooMany),
            _ => Ok(()),
        }
    }

    fn spend(
        &mut self,
        signature: &Signature<'_>,
        tenant: &str,
        now: Moment,
    ) -> Result<(), BadSignature> {
        self.check(signature, tenant, now)?;
        let used = self.0.entry(tenant.to_owned()).or_default();
        used.insert(signature.mac, now.instant);
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const CLAIM: Claim<'_> = Claim {
        tenant: "example.com",
        method: "POST",
        action: Action::Update,
    };

    fn now() -> u64 {
        Moment::now().date
    }

    /// A signature of `body` for this node, made now.
    pub fn signed_now(key: &[u8; 32], claim: &Claim<'_>, body: &[u8]) -> String {
        sign(key, now(), 0, node(), claim, body)
    }

    fn sign(
        key: &[u8; 32],
        time: u64,
        nonce: u64,
        node: &str,
        claim: &Claim<'_>,
        body: &[u8],
    ) -> String {
        let digest = Version::of(body);
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        let Claim {
            tenant,
            method,
            action,
        } = claim;
        let action = action.name();
        let text = format!(
            "forkvm 1\n{tenant}\n{method}\n{action}\n{digest}\n{time}\n{nonce:032x}\n{node}"
        );
        mac.update(text.as_bytes());
        let mac: String = mac
            .finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!(
            "HMAC-SHA256 time={time}, nonce={nonce:032x}, node={node}, sha256={digest}, mac={mac}"
        )
    }

    fn signed(time: u64, nonce: u64, claim: &Claim<'_>) -> String {
        sign(&KEY, time, nonce, node(), claim, b"body")
    }

    fn parsed(value: &str) -> Signature<'_> {
        Signature::parse(value.as_bytes()).unwrap().unwrap()
    }

    fn check(value: &str, claim: &Claim<'_>) -> Result<Version, BadSignature> {
        Signature::parse(value.as_bytes())
            .unwrap()?
            .verify(&KEY, claim)
    }

    #[test]
    fn a_signature_is_for_one_thing() {
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
        let other = parsed(&value);
        assert_eq!(other.verify(&[8; 32], &CLAIM), Err(BadSignature::Wrong));
        for (signed, other) in [
            (
                Version::of(b"body").to_string(),
                Version::of(b"b").to_string(),
            ),
            (node().to_owned(), "0".repeat(32)),
        ] {
            let value = value.replace(&signed, &other);
            assert_eq!(check(&value, &CLAIM), Err(BadSignature::Wrong));
        }
    }

    #[test]
    fn a_signature_is_for_one_node() {
        let other = sign(
            &KEY,
            now(),
            1,
            "0123456789abcdef0123456789abcdef",
            &CLAIM,
            b"",
        );
        assert_eq!(check(&other, &CLAIM), Err(BadSignature::OtherNode));
        assert_eq!(
            parsed(&other).spend("node.example"),
            Err(BadSignature::OtherNode)
        );
        // To look it need not be for one, but for more than that.
        let any = sign(&KEY, now(), 1, "", &CLAIM, b"");
        assert_eq!(check(&any, &CLAIM), Ok(Version::of(b"")));
        assert_eq!(
            parsed(&any).spend("node.example"),
            Err(BadSignature::OtherNode)
        );
        let own = signed(now(), 1, &CLAIM);
        assert_eq!(parsed(&own).spend("node.example"), Ok(()));
        assert_eq!(parsed(&own).spend("node.example"), Err(BadSignature::Used));
    }

    #[test]
    fn a_signature_has_its_time() {
        for time in [now() - WINDOW - 60, now() + WINDOW + 60] {
            assert_eq!(
                check(&signed(time, 2, &CLAIM), &CLAIM),
                Err(BadSignature::Stale)
            );
        }
    }

    /// Whenever it comes again, it is too old or known.
    #[test]
    fn a_signature_is_used_once() {
        const THEN: u64 = 1_000_000_000;
        let start = Instant::now();
        let at = |date: u64, seconds: u64| Moment {
            date,
            instant: start + Duration::from_secs(seconds),
        };
        for ahead in [0, WINDOW] {
            let (value, another) = (signed(THEN + ahead, 3, &CLAIM), signed(THEN, 4, &CLAIM));
            let (signature, another) = (parsed(&value), parsed(&another));
            let mut used = Used::default();
            assert_eq!(used.spend(&signature, "a", at(THEN, 0)), Ok(()));
            for seconds in [
                0,
                1,
                WINDOW,
                WINDOW + 1,
                2 * WINDOW,
                2 * WINDOW + 1,
                9 * WINDOW,
            ] {
                let again = used.spend(&signature, "a", at(THEN + seconds, seconds));
                let old = seconds > ahead + WINDOW;
                let expected = if old {
                    BadSignature::Stale
                } else {
                    BadSignature::Used
                };
                assert_eq!(again, Err(expected), "{ahead} {seconds}");
            }
            // The date jumps, and back: nothing is forgotten for that.
            let mut used = Used::default();
            assert_eq!(used.spend(&signature, "a", at(THEN, 0)), Ok(()));
            let later = signed(THEN + 99 * WINDOW, 5, &CLAIM);
            assert_eq!(
                used.spend(&parsed(&later), "a", at(THEN + 99 * WINDOW, 1)),
                Ok(())
            );
            assert_eq!(
                used.spend(&signature, "a", at(THEN, 2)),
                Err(BadSignature::Used)
            );
            assert_eq!(used.spend(&another, "a", at(THEN, 2)), Ok(()));
            assert_eq!(used.spend(&signature, "b", at(THEN, 2)), Ok(()));
        }
    }

    #[test]
    fn so_many_are_remembered() {
        let mut used = Used::default();
        let now = Moment::now();
        for nonce in 0..=MOST_USED as u64 {
            let value = signed(now.date, nonce, &CLAIM);
            let expected = match nonce < MOST_USED as u64 {
                true => Ok(()),
                false => Err(BadSignature::TooMany),
            };
            assert_eq!(used.spend(&parsed(&value), "many", now), expected);
        }
    }

    #[test]
    fn what_is_no_signature() {
        assert!(Signature::parse(b"a plain key").is_none());
        let good = signed(now(), 4, &CLAIM);
        for bad in [
            "HMAC-SHA256 ".to_owned(),
            good.replace("time", "tame"),
            good.replace("node", "no"),
            good.replace(", mac=", ", mac=0"),
            good.replace("nonce=0", "nonce=x"),
            format!("{good}, more=1"),
        ] {
            assert_eq!(check(&bad, &CLAIM), Err(BadSignature::Malformed), "{bad}");
        }
    }
}
