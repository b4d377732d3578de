//! Where a program may take connections and datagrams, if it may not everywhere. All of it is within the machine.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::linux::net::rule::{self, Named};

/// Somewhere that a program may listen, at one port or at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenRule {
    /// At this address; without one at all, those that stand for any among them.
    pub address: Option<IpAddr>,
    /// At this port; without one at all.
    pub port: Option<u16>,
}

/// A text names no place to listen at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: give a port, an address ([…] around one of IPv6), both as ADDRESS:PORT, or `*`")]
pub struct BadListenRule(String);

impl FromStr for ListenRule {
    type Err = BadListenRule;

    /// `PORT`, `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, `*` or `*:PORT`.
    fn from_str(text: &str) -> Result<Self, BadListenRule> {
        let bad = || BadListenRule(text.to_owned());
        if let Ok(port) = text.parse() {
            return Ok(Self {
                address: None,
                port: Some(port),
            });
        }
        let (named, port) = rule::parse(text).ok_or_else(bad)?;
        let address = match named {
            Named::Address(ip) => Some(ip),
            Named::All => None,
            Named::Other(_) => return Err(bad()),
        };
        Ok(Self { address, port })
    }
}

/// Where a program may listen.
#[derive(Debug, Clone, Default)]
pub struct MayListen {
    /// Without rules everywhere.
    rules: Option<Arc<[ListenRule]>>,
}

impl MayListen {
    /// By these rules, if there are some.
    pub fn new(rules: Option<Vec<ListenRule>>) -> Self {
        Self {
            rules: rules.map(Into::into),
        }
    }

    /// Whether it may at this address, which is never IPv4's in IPv6's clothes.
    pub fn at(&self, at: SocketAddr) -> bool {
        let fits = |rule: &ListenRule| {
            rule.address.is_none_or(|address| address == at.ip())
                && rule.port.is_none_or(|port| port == at.port())
        };
        self.rules
            .as_ref()
            .is_none_or(|rules| rules.iter().any(fits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_ports_and_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let may = |rules: &[&str], where_to: &str| {
            let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            MayListen::new(Some(rules)).at(at(where_to))
        };
        for (rule, yes, no) in [
            ("80", ["0.0.0.0:80", "[::1]:80"], "0.0.0.0:81"),
            ("*:80", ["0.0.0.0:80", "[::]:80"], "127.0.0.1:8080"),
            ("127.0.0.1", ["127.0.0.1:1", "127.0.0.1:2"], "0.0.0.0:1"),
            (
                "127.0.0.1:80",
                ["127.0.0.1:80", "127.0.0.1:80"],
                "127.0.0.1:81",
            ),
            ("[::1]:80", ["[::1]:80", "[::1]:80"], "[::]:80"),
            ("::1", ["[::1]:80", "[::1]:81"], "127.0.0.1:80"),
            (
                "::ffff:127.0.0.1",
                ["127.0.0.1:80", "127.0.0.1:81"],
                "[::1]:80",
            ),
        ] {
            assert!(yes.iter().all(|to| may(&[rule], to)), "{rule}");
            assert!(!may(&[rule], no), "{rule}");
            assert!(may(&["9", rule], yes[0]) && !may(&[], yes[0]));
        }
        assert!(may(&["*"], "[::1]:7"));
        assert!(MayListen::default().at(at("0.0.0.0:80")));
        for text in [
            "",
            "a",
            "80:",
            ":80",
            "65536",
            "localhost:80",
            "[::1",
            "[1.2.3.4]:5",
            "1.2.3:5",
        ] {
            assert!(text.parse::<ListenRule>().is_err(), "{text}");
        }
    }
}
