//! How a rule of the network names something: an address, everything, or in words of its own, each at one port or at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is named.
#[derive(Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// An address. One of IPv4 in IPv6's clothes is IPv4's.
    Address(IpAddr),
    /// `*`.
    All,
    /// Something else, such as a host's name.
    Other(&'a str),
}

/// Reads `ADDRESS`, `*` or anything else, each with `:PORT` behind it or without; `[ADDRESS]:PORT`. `None` if what should be a port
/// or an address is none.
pub fn parse(text: &str) -> Option<(Named<'_>, Option<u16>)> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((Named::Address(ip.to_canonical()), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let named = match bracketed {
        Some(ip) => Named::Address(ip.parse::<Ipv6Addr>().ok()?.to_canonical()),
        None if host == "*" => Named::All,
        None => match host.parse::<Ipv4Addr>() {
            Ok(ip) => Named::Address(ip.into()),
            Err(_) => Named::Other(host),
        },
    };
    Some((named, port))
}
