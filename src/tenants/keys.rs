//! The key that allows updates and debugging of a tenant: compared in constant time, and never shown.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::file;
use crate::tenants::signature::{BadSignature, Claim, Signature};
use crate::tenants::version::Version;

/// Longest key file.
const FILE_LIMIT: u64 = 4096;

/// The key of a tenant.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// There is none, and there are no updates.
    None,
    /// Its SHA-256, which is of equal length whatever the key's. Signatures are made with it.
    Digest([u8; 32]),
    /// In a file, which is read at each update, so that a key can be changed without a VCL reload.
    File(PathBuf),
}

/// Why something is not allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody said who they are.
    #[error("no key was sent")]
    NoKey,
    /// The tenant has no key.
    #[error("updates and debugging are not enabled for this tenant (update_key, update_key_file)")]
    Disabled,
    /// It is another one.
    #[error("the key is wrong")]
    Wrong,
    /// The tenant takes signatures only.
    #[error("a key as it is does not do for this tenant (signed_orders): sign the order with it")]
    Unsigned,
    /// The signature does not allow it.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// The key file can't be read.
    #[error("update_key_file {0}")]
    Unreadable(String),
}

/// What somebody showed for an order. It has to be spent on that.
#[derive(Debug)]
#[must_use]
pub enum Proof<'a> {
    /// The key.
    Key,
    /// A signature, which is good once, and what the body's SHA-256 has to be.
    Signature(Signature<'a>, Version),
}

impl Proof<'_> {
    /// Whether it could be spent now, for what is best known before a body is waited for.
    pub fn check_unused(&self, tenant: &str) -> Result<(), Denied> {
        match self {
            Self::Key => Ok(()),
            Self::Signature(signature, _) => Ok(signature.check_unused(tenant)?),
        }
    }

    /// The order is carried out if its body is the right one, by its SHA-256. Another one uses nothing up: it may be sent by
    /// somebody who has only seen the signature, before the body comes that it was made for.
    pub fn spend(self, tenant: &str, digest: impl FnOnce() -> Version) -> Result<(), Denied> {
        match self {
            Self::Key => Ok(()),
            Self::Signature(_, signed) if signed != digest() => Err(BadSignature::OtherBody.into()),
            Self::Signature(signature, _) => Ok(signature.spend(tenant)?),
        }
    }

    /// For an order that has no body.
    pub fn spend_without_body(self, tenant: &str) -> Result<(), Denied> {
        self.spend(tenant, || Version::of(b""))
    }
}

impl Key {
    /// A key that stands in VCL; an empty one is none.
    pub fn given(key: &[u8]) -> Self {
        match key.trim_ascii() {
            b"" => Self::None,
            key => Self::Digest(digest(key)),
        }
    }

    /// Whether there may be updates at all.
    pub fn is_set(&self) -> bool {
        *self != Self::None
    }

    /// Whether `sent` is the key, or a signature of one of these orders with it. With `signed_only` only the latter will do.
    pub fn check<'a>(
        &self,
        sent: &'a [u8],
        claims: &[Claim<'_>],
        signed_only: bool,
    ) -> Result<Proof<'a>, Denied> {
        let sent = sent.trim_ascii();
        if sent.is_empty() {
            return Err(Denied::NoKey);
        }
        let key = self.digest()?;
        match Signature::parse(sent) {
            Some(signature) => {
                let signature = signature?;
                let mut verified = claims.iter().map(|claim| signature.verify(&key, claim));
                // At most one has been signed, and what is wrong with that is the answer.
                let signed = verified.find(|result| *result != Err(BadSignature::Wrong));
                let digest = signed.unwrap_or(Err(BadSignature::Wrong))?;
                Ok(Proof::Signature(signature, digest))
            }
            None if !bool::from(digest(sent).ct_eq(&key)) => Err(Denied::Wrong),
            None if signed_only => Err(Denied::Unsigned),
            None => Ok(Proof::Key),
        }
    }

    /// The key's SHA-256.
    fn digest(&self) -> Result<[u8; 32], Denied> {
        match self {
            Self::None => Err(Denied::Disabled),
            Self::Digest(key) => Ok(*key),
            Self::File(path) => match Self::given(&read(path)?) {
                Self::Digest(key) => Ok(key),
                _ => Err(Denied::Disabled),
            },
        }
    }

    /// Says what is wrong with it, if it is a file that can't be read or has no key.
    pub fn problem(&self) -> Option<Denied> {
        match (self.digest(), self) {
            (Err(denied @ Denied::Unreadable(_)), _) => Some(denied),
            (Err(_), Self::File(path)) => {
                Some(Denied::Unreadable(format!("{}: is empty", path.display())))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no key",
            Self::Digest(_) => "a key",
            Self::File(_) => "a key file",
        })
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn read(path: &Path) -> Result<Vec<u8>, Denied> {
    let unreadable = |what: String| Denied::Unreadable(format!("{}: {what}", path.display()));
    file::read(path, FILE_LIMIT).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::signature::Action;
    use crate::tenants::signature::tests::signed_now;

    fn plain(key: &Key, sent: &[u8]) -> Result<(), Denied> {
        let claim = Claim {
            tenant: "example.com",
            method: "POST",
            action: Action::Update,
        };
        key.check(sent, &[claim], false).map(drop)
    }

    #[test]
    fn a_key_may_have_to_sign() {
        let key = Key::given(b"correct horse");
        let claim = Claim {
            tenant: "example.com",
            method: "POST",
            action: Action::Update,
        };
        let check = |sent| key.check(sent, &[claim], true).map(drop);
        assert_eq!(check(b"correct horse"), Err(Denied::Unsigned));
        assert_eq!(check(b"wrong"), Err(Denied::Wrong));
        assert_eq!(
            check(b"HMAC-SHA256 nothing"),
            Err(Denied::Signature(BadSignature::Malformed))
        );
    }

    /// What is asked before an order's body comes: it may be a signature of any order that has one.
    #[test]
    fn a_signature_of_one_of_several_orders() {
        let key = Key::given(b"correct horse");
        let claims = Action::ALL.map(|action| Claim {
            tenant: "example.com",
            method: "POST",
            action,
        });
        for claim in &claims {
            let sent = signed_now(&digest(b"correct horse"), claim, b"body");
            let proof = || key.check(sent.as_bytes(), &claims, true).unwrap();
            let spend = |body: &[u8]| proof().spend("keys.example", || Version::of(body));
            // Another body leaves it as good as it was.
            let other = Err(Denied::Signature(BadSignature::OtherBody));
            assert_eq!(spend(b"b"), other);
            assert_eq!(proof().spend_without_body("keys.example"), other);
            assert_eq!(proof().check_unused("keys.example"), Ok(()));
            assert_eq!(spend(b"body"), Ok(()));
            let used = Err(Denied::Signature(BadSignature::Used));
            assert_eq!(spend(b"body"), used);
            assert_eq!(proof().check_unused("keys.example"), used);
            assert_eq!(spend(b"b"), other);
            let get = Claim {
                method: "GET",
                ..*claim
            };
            let sent = signed_now(&digest(b"correct horse"), &get, b"body");
            let refused = key.check(sent.as_bytes(), &claims, true).map(drop);
            assert_eq!(refused, Err(Denied::Signature(BadSignature::Wrong)));
        }
    }

    #[test]
    fn only_the_key_is_the_key() {
        let key = Key::given(b"correct horse");
        assert_eq!(plain(&key, b"correct horse"), Ok(()));
        assert_eq!(plain(&key, b" correct horse\n"), Ok(()));
        for wrong in [
            &b"x"[..],
            b"correct hors",
            b"correct horse ?",
            &[b'x'; 10_000],
        ] {
            assert_eq!(plain(&key, wrong), Err(Denied::Wrong));
        }
        assert_eq!(plain(&key, b""), Err(Denied::NoKey));
        assert!(!format!("{key:?}").contains("correct"));
    }

    #[test]
    fn an_empty_key_is_none() {
        for none in [&b""[..], b" \n"] {
            let key = Key::given(none);
            assert!(!key.is_set());
            assert_eq!(plain(&key, b"x"), Err(Denied::Disabled));
            assert_eq!(plain(&key, b""), Err(Denied::NoKey));
        }
    }

    #[test]
    fn a_key_file_is_read_each_time() {
        let path = std::env::temp_dir().join(format!("kvm-key.{}", std::process::id()));
        let key = Key::File(path.clone());
        assert!(matches!(plain(&key, b"a"), Err(Denied::Unreadable(_))));
        std::fs::write(&path, "a\n").unwrap();
        assert_eq!(plain(&key, b"a"), Ok(()));
        std::fs::write(&path, "b").unwrap();
        assert_eq!(
            (plain(&key, b"a"), plain(&key, b"b")),
            (Err(Denied::Wrong), Ok(()))
        );
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(plain(&key, b"b"), Err(Denied::Disabled));
        assert!(key.problem().unwrap().to_string().ends_with("is empty"));
        std::fs::write(&path, [b'a'; 5000]).unwrap();
        assert!(matches!(plain(&key, b"a"), Err(Denied::Unreadable(_))));
        std::fs::remove_file(&path).unwrap();
    }
}
