//! Where a debugger may connect: on this machine, and nowhere else.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where gdb finds a stopped request. There is no way to name another machine's address.
///
/// As text: `PORT` or `127.0.0.1:PORT` (0 takes any free port), or the path of a Unix socket or of a folder for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugAddress {
    /// A TCP port of the loopback interface, 0 for any free one. Every user of this machine can connect.
    Loopback(u16),
    /// A Unix socket that only the own user can connect to. If the path is a folder, each stop gets a socket of its own
    /// in it.
    Unix(PathBuf),
}

impl Default for DebugAddress {
    fn default() -> Self {
        Self::Loopback(0)
    }
}

/// A text that is not a [`DebugAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: a debugger's address is a port, 127.0.0.1:PORT, or the absolute path of a Unix socket or of a folder for one"
)]
pub struct BadDebugAddress(String);

impl FromStr for DebugAddress {
    type Err = BadDebugAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = match text.rsplit_once(':') {
            Some(("" | "127.0.0.1" | "localhost", port)) => port,
            Some(_) => return Err(BadDebugAddress(text.into())),
            None => text,
        };
        match port.parse() {
            Ok(port) => Ok(Self::Loopback(port)),
            Err(_) => Err(BadDebugAddress(text.into())),
        }
    }
}

impl fmt::Display for DebugAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(port) => write!(f, "127.0.0.1:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine() {
        for (text, address) in [
            ("0", DebugAddress::Loopback(0)),
            ("1234", DebugAddress::Loopback(1234)),
            (":1234", DebugAddress::Loopback(1234)),
            ("127.0.0.1:1234", DebugAddress::Loopback(1234)),
            ("localhost:1", DebugAddress::Loopback(1)),
            ("/run/gdb", DebugAddress::Unix("/run/gdb".into())),
        ] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        for text in [
            "",
            "0.0.0.0:1",
            "*:1",
            "192.0.2.1:1",
            "[::]:1",
            "70000",
            "gdb.sock",
            "x:1",
        ] {
            assert!(text.parse::<DebugAddress>().is_err(), "{text}");
        }
    }
}
