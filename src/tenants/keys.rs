//! The key that allows updates and debugging of a tenant: compared in constant time, and never shown.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::file;

/// Longest key file.
const FILE_LIMIT: u64 = 4096;

/// The key of a tenant.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// There is none, and there are no updates.
    None,
    /// Its SHA-256: of equal length whatever the key's, and of no use to a reader of our memory.
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
    /// The key file can't be read. Clients see [`Denied::Disabled`].
    #[error("update_key_file {0}")]
    Unreadable(String),
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

    /// Whether `sent` is the key.
    pub fn check(&self, sent: &[u8]) -> Result<(), Denied> {
        let sent = sent.trim_ascii();
        if sent.is_empty() {
            return Err(Denied::NoKey);
        }
        let key = match self {
            Self::None => return Err(Denied::Disabled),
            Self::Digest(key) => *key,
            Self::File(path) => match Self::given(&read(path)?) {
                Self::Digest(key) => key,
                _ => return Err(Denied::Disabled),
            },
        };
        if bool::from(digest(sent).ct_eq(&key)) {
            Ok(())
        } else {
            Err(Denied::Wrong)
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

    #[test]
    fn only_the_key_is_the_key() {
        let key = Key::given(b"correct horse");
        assert_eq!(key.check(b"correct horse"), Ok(()));
        assert_eq!(key.check(b" correct horse\n"), Ok(()));
        for wrong in [
            &b"x"[..],
            b"correct hors",
            b"correct horse ?",
            &[b'x'; 10_000],
        ] {
            assert_eq!(key.check(wrong), Err(Denied::Wrong));
        }
        assert_eq!(key.check(b""), Err(Denied::NoKey));
        assert!(!format!("{key:?}").contains("correct"));
    }

    #[test]
    fn an_empty_key_is_none() {
        for none in [&b""[..], b" \n"] {
            let key = Key::given(none);
            assert!(!key.is_set());
            assert_eq!(key.check(b"x"), Err(Denied::Disabled));
            assert_eq!(key.check(b""), Err(Denied::NoKey));
        }
    }

    #[test]
    fn a_key_file_is_read_each_time() {
        let path = std::env::temp_dir().join(format!("kvm-key.{}", std::process::id()));
        let key = Key::File(path.clone());
        assert!(matches!(key.check(b"a"), Err(Denied::Unreadable(_))));
        std::fs::write(&path, "a\n").unwrap();
        assert_eq!(key.check(b"a"), Ok(()));
        std::fs::write(&path, "b").unwrap();
        assert_eq!(
            (key.check(b"a"), key.check(b"b")),
            (Err(Denied::Wrong), Ok(()))
        );
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(key.check(b"b"), Err(Denied::Disabled));
        std::fs::write(&path, [b'a'; 5000]).unwrap();
        assert!(matches!(key.check(b"a"), Err(Denied::Unreadable(_))));
        std::fs::remove_file(&path).unwrap();
    }
}
