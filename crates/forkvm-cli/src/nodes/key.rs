//! The key that allows updates. It is sent nowhere: what is sent in one header of the request is a signature with it,
//! since that header is in the log of every Varnish (`src/tenants/signature.rs` in the VMOD says what is signed).

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Longest key, and file with a key, as in the VMOD.
const LONGEST: usize = 4096;

/// A key, which no debug output shows.
#[derive(Clone)]
pub struct Key(Vec<u8>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
}

/// An order to be signed.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The tenant, as the VMOD writes its name.
    pub tenant: &'a str,
    /// The request's method.
    pub method: &'a str,
    /// What is asked for: `update` or `rollback`.
    pub action: &'a str,
    /// The SHA-256 of the request's body in hex.
    pub sha256: &'a str,
    /// What the node calls itself, which it is asked first. Empty in that question.
    pub node: &'a str,
}

impl Key {
    /// The key in a file. The second value is a warning.
    pub fn from_file(path: &Path) -> Result<(Self, Option<String>), String> {
        let source = format!("--key-file {}", path.display());
        let read = || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            let mut bytes = Vec::new();
            // A byte more than a key file may have: then it is none.
            file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
            std::io::Result::Ok((bytes, metadata))
        };
        let (bytes, metadata) = read().map_err(|error| format!("{source}: {error}"))?;
        let everyone = metadata.is_file() && metadata.permissions().mode() & 0o004 != 0;
        let warning = everyone.then(|| {
            format!(
                "{source}: every user of this machine can read the key; run: chmod 600 {}",
                path.display()
            )
        });
        Ok((Self::new(&bytes, &source)?, warning))
    }

    /// The key in a variable of the environment.
    pub fn from_environment(name: &str) -> Result<Self, String> {
        let source = format!("--key-env {name}");
        let value = std::env::var_os(name)
            .ok_or_else(|| format!("{source}: there is no such variable in the environment"))?;
        Self::new(&value.into_vec(), &source)
    }

    /// The key that somebody types. Without a terminal there is nobody who could.
    pub fn from_terminal(tenant: &str) -> Result<Self, String> {
        if !io::stdin().is_terminal() {
            return Err(format!(
                "a key is needed: give the file with the update key of {tenant} (--key-file), or a variable of the \
                 environment (--key-env)"
            ));
        }
        let typed = rpassword::prompt_password(format!("Update key of {tenant}: "))
            .map_err(|error| format!("the key: {error}"))?;
        Self::new(typed.as_bytes(), "the key that was typed")
    }

    fn new(bytes: &[u8], source: &str) -> Result<Self, String> {
        if bytes.len() > LONGEST {
            return Err(format!(
                "{source}: more than {LONGEST} bytes; that is no key"
            ));
        }
        // A line end in the file, above all; neither HTTP nor the VMOD keeps any.
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() {
            return Err(format!("{source}: the key is empty"));
        }
        // What can't be sent in a header is no key of the VMOD's either.
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(format!(
                "{source}: a key is one line of text; this has a line break or a control character in it"
            ));
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The header's value for an order that is made now.
    pub fn sign(&self, claim: &Claim<'_>) -> io::Result<String> {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(io::Error::other)?
            .as_secs();
        let mut nonce = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        let nonce = hex(&nonce);
        let Claim {
            tenant,
            method,
            action,
            sha256,
            node,
        } = claim;
        let text =
            format!("forkvm 1\n{tenant}\n{method}\n{action}\n{sha256}\n{time}\n{nonce}\n{node}");
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&Sha256::digest(&self.0)).map_err(io::Error::other)?;
        mac.update(text.as_bytes());
        let mac = hex(&mac.finalize().into_bytes());
        Ok(format!(
            "HMAC-SHA256 time={time}, nonce={nonce}, node={node}, sha256={sha256}, mac={mac}"
        ))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Result<Vec<u8>, String> {
        Key::new(bytes, "here").map(|key| key.0)
    }

    #[test]
    fn white_space_around_it_is_not_the_keys() {
        for (bytes, expected) in [
            (&b"secret"[..], &b"secret"[..]),
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b" two words \n\n", b"two words"),
            (b"\xc3\xa4\n", b"\xc3\xa4"),
            (&[b'k'; LONGEST], &[b'k'; LONGEST]),
        ] {
            assert_eq!(key(bytes).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_key() {
        for (bytes, why) in [
            (&b""[..], "empty"),
            (b"\n", "empty"),
            (b"\r\n", "empty"),
            (b"secret\nX: y", "line break"),
            (b"sec\0ret", "control"),
            (b"sec\tret", "control"),
            (b"sec\x7fret", "control"),
            (&[b'k'; LONGEST + 1], "more than"),
        ] {
            let error = key(bytes).expect_err("a key");
            assert!(
                error.starts_with("here: ") && error.contains(why),
                "{error}"
            );
            assert!(!error.contains("ret"), "{error}");
        }
    }

    #[test]
    fn debug_output_does_not_show_it() {
        let key = Key::new(b"secret", "here").expect("a key");
        assert!(!format!("{key:?}").contains("secret"));
    }
}
