//! Addresses to listen on, as people write them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `ADDRESS:PORT`
    Tcp(String),
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.parse::<u16>().is_ok() {
            return Ok(Self::Tcp(format!("127.0.0.1:{text}")));
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Self::Tcp(text.into())),
            _ => Err("neither ADDRESS:PORT nor PORT nor unix:PATH".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("8000"), Ok(Address::Tcp("127.0.0.1:8000".into())));
        assert_eq!(parse("[::1]:80"), Ok(Address::Tcp("[::1]:80".into())));
        assert_eq!(parse("unix:/x y"), Ok(Address::Unix("/x y".into())));
        for bad in ["", "localhost", "localhost:", "1.2.3.4:99999", "99999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
