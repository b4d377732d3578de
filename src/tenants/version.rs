//! What tells one program from another: the SHA-256 of its file.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How much of a file is read at a time.
const PIECE: usize = 64 << 10;

/// A program's version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version([u8; 32]);

/// A text that is no version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a SHA-256: 64 hexadecimal digits")]
pub struct NotAVersion;

impl Version {
    /// The version of a program's file.
    pub fn of(elf: &[u8]) -> Self {
        Self(Sha256::digest(elf).into())
    }

    /// The version of a program that need not be in memory.
    pub fn of_file(mut file: impl Read) -> io::Result<Self> {
        let mut digest = Sha256::new();
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Self(digest.finalize().into())),
                len => digest.update(&piece[..len]),
            }
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The first eight digits, for who takes numbers only.
    pub fn number(&self) -> u64 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d]).into()
    }

    /// The first digits, for logs.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Self, NotAVersion> {
        text.parse()
    }
}

impl std::str::FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        if text.len() != 64 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(NotAVersion);
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NotAVersion)?;
        }
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_digits() {
        let version = Version::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(version.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(version));
        assert_eq!(version.short(), "ba7816bf8f01");
        assert_eq!(Version::of_file(&b"abc"[..]).unwrap(), version);
        for bad in [
            "",
            "ba78",
            &text[1..],
            &format!("{text}0"),
            &text.replace('a', "g"),
            "é".repeat(32).as_str(),
        ] {
            assert_eq!(bad.parse::<Version>(), Err(NotAVersion), "{bad}");
        }
    }
}
