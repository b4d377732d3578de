//! What of the network a program may reach, and what of it is public.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::linux::net::rule::{self, Named};

/// A cloud's address for its machines that looks like a public one (Azure's "wire server"). The others' are link-local,
/// private or shared.
const CLOUD: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// The longest name (RFC 1035, 2.3.4, as it is written).
const MOST_NAME: usize = 253;

/// Something that a program may reach, at one port or at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetRule {
    /// Where.
    pub place: Place,
    /// At which port; without one at all.
    pub port: Option<u16>,
}

/// Where a program may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Any public address.
    Public,
    /// This address, public or not.
    Address(IpAddr),
    /// All addresses that begin with so many bits of this one, public or not.
    Range(IpAddr, u8),
    /// The public addresses that a name has, which is in lower case; of `localhost`, the loopback's.
    Name(String),
    /// Those of all names beneath this one.
    Beneath(String),
}

/// A text names nothing of the network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: give a name, `*.NAME`, an address ([…] around one of IPv6), a range of them (ADDRESS/BITS) or `*`, and `:PORT` behind it \
     for one port only"
)]
pub struct BadRule(String);

impl FromStr for NetRule {
    type Err = BadRule;

    /// `HOST`, `*.HOST`, `ADDRESS`, `ADDRESS/BITS` or `*`, each with `:PORT` behind it or without; `[ADDRESS]:PORT`.
    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned());
        if text.contains('/') {
            return range(text).ok_or_else(bad);
        }
        let (named, port) = rule::parse(text).ok_or_else(bad)?;
        let place = match named {
            Named::Address(ip) => Place::Address(ip),
            Named::All => Place::Public,
            Named::Other(host) => match host.strip_prefix("*.") {
                Some(name) => Place::Beneath(host_name(name).ok_or_else(bad)?),
                None => Place::Name(host_name(host).ok_or_else(bad)?),
            },
        };
        Ok(Self { place, port })
    }
}

/// `ADDRESS/BITS` or `ADDRESS/BITS:PORT`. `None` for others, also where the address says more than those bits.
fn range(text: &str) -> Option<NetRule> {
    let (address, rest) = text.split_once('/')?;
    let bracketed = address
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'));
    let ip: IpAddr = bracketed.unwrap_or(address).parse().ok()?;
    let (bits, port) = match rest.split_once(':') {
        Some((bits, port)) => (bits, Some(port.parse().ok()?)),
        None => (rest, None),
    };
    let bits: u8 = bits.parse().ok()?;
    // Those of IPv4 are not named in IPv6's clothes.
    let good = ip == ip.to_canonical() && bits <= width(ip) && after(ip, bits) == 0;
    good.then_some(NetRule {
        place: Place::Range(ip, bits),
        port,
    })
}

/// Bits of an address.
fn width(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// An address as a number of 128 bits, from its first one on.
fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// What an address has after so many bits.
fn after(ip: IpAddr, bits: u8) -> u128 {
    number(ip).checked_shl(bits.into()).unwrap_or(0)
}

/// Whether two addresses of one family have so many bits in common.
fn begin_alike(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differs = number(one) ^ number(other);
    width(one) == width(other) && differs.leading_zeros() >= bits.into()
}

/// A name as names are compared. `None` if it is none of a host.
pub fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let labels = || name.split('.').all(|label| (1..64).contains(&label.len()));
    // What ends like a number is an address that is written badly, and read as one by some.
    let numeric = name.rsplit('.').next().is_some_and(|last| {
        last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x")
    });
    let good = name.len() <= MOST_NAME && name.bytes().all(fits) && labels() && !numeric;
    good.then(|| name.to_ascii_lowercase())
}

impl Place {
    /// Whether it is this address, public or not.
    fn is_address(&self, ip: IpAddr) -> bool {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        match self {
            Self::Address(own) => *own == ip,
            Self::Range(own, bits) => begin_alike(*own, ip, *bits),
            Self::Name(name) => name == "localhost" && loopback.contains(&ip),
            Self::Public | Self::Beneath(_) => false,
        }
    }

    /// Whether it stands for a name's addresses.
    fn is_named(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Beneath(own) => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.ends_with('.')),
            Self::Public | Self::Address(_) | Self::Range(..) => false,
        }
    }
}

impl NetRule {
    fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

/// What a program gets that wants to reach an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may if one of these names has that address.
    IfNamed(Vec<String>),
    /// It may not.
    Denied(Why),
}

/// Why it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is not public, and not named.
    NotPublic,
    /// It is public, and no rule is about it.
    NotNamed,
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NotPublic => ", which is not public and has to be named",
            Self::NotNamed => "",
        })
    }
}

/// All that a program may reach. Nothing, unless there is a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed(Vec<NetRule>);

impl Allowed {
    /// What these rules allow.
    pub fn new(rules: Vec<NetRule>) -> Self {
        Self(rules)
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name may be asked for.
    pub fn has_name(&self, name: &str) -> bool {
        let is_public = |rule: &NetRule| rule.place == Place::Public;
        self.0.iter().any(is_public) || self.is_about(name)
    }

    /// Whether there is a rule about a name.
    pub fn is_about(&self, name: &str) -> bool {
        self.0.iter().any(|rule| rule.place.is_named(name))
    }

    /// Whether an address may be told the program: it is public, or named itself at whatever port.
    pub fn may_be_told(&self, ip: IpAddr, ours: impl FnOnce(IpAddr) -> bool) -> bool {
        self.0.iter().any(|rule| rule.place.is_address(ip)) || is_public(ip) && !ours(ip)
    }

    /// Whether an address is named itself, be it public or not. It is never IPv4's in IPv6's clothes.
    pub fn names(&self, to: SocketAddr) -> bool {
        let mut rules = self.0.iter();
        rules.any(|rule| rule.place.is_address(to.ip()) && rule.has_port(to.port()))
    }

    /// Whether it may be reached. `names_of` are the names that the address is known by, `ours` tells whether it is one of the
    /// host's own.
    pub fn verdict(
        &self,
        to: SocketAddr,
        names_of: &BTreeSet<String>,
        ours: impl FnOnce(IpAddr) -> bool,
    ) -> Verdict {
        if self.names(to) {
            return Verdict::Allowed;
        }
        let mut asked = Vec::new();
        let mut reached = false;
        for rule in self.0.iter().filter(|rule| rule.has_port(to.port())) {
            match &rule.place {
                Place::Public => reached = true,
                place if names_of.iter().any(|name| place.is_named(name)) => reached = true,
                Place::Name(name) => asked.push(name.clone()),
                Place::Address(_) | Place::Range(..) | Place::Beneath(_) => {}
            }
        }
        if !is_public(to.ip()) || (reached || !asked.is_empty()) && ours(to.ip()) {
            return Verdict::Denied(Why::NotPublic);
        }
        match reached {
            true => Verdict::Allowed,
            false if asked.is_empty() => Verdict::Denied(Why::NotNamed),
            false => Verdict::IfNamed(asked),
        }
    }
}

/// Whether an address is one of the public Internet: none of a machine itself, a local network or a cloud, and none that
/// carries another address in it.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// RFC 6890 and the registry it has founded.
fn is_public_v4(ip: Ipv4Addr) -> bool {
    let special = match ip.octets() {
        // This network, shared by carriers, of protocols, for benchmarks.
        [0, ..] | [100, 64..128, ..] | [192, 0, 0, _] | [198, 18..20, ..] => true,
        // Once of relays to IPv6; groups, and what is kept for later, with the broadcast.
        [192, 88, 99, _] | [224..=255, ..] => true,
        _ => ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_documentation(),
    };
    !special && ip != CLOUD
}

/// Of 2000::/3, the only part that is given out, what is not of a special purpose.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    match ip.segments() {
        // Protocols (2001::/23, with Teredo), documentation, 6to4, documentation again.
        [0x2001, ..0x0200, ..] | [0x2001, 0x0db8, ..] | [0x2002, ..] | [0x3fff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Allowed {
        Allowed::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn verdict(allowed: &Allowed, to: &str, names: &[&str]) -> Verdict {
        let to: SocketAddr = to.parse().unwrap();
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let to = (to.ip().to_canonical(), to.port()).into();
        allowed.verdict(to, &names, |ip| ip.to_string() == "8.8.4.4")
    }

    #[test]
    fn rules_are_read() {
        let rule = |place, port| Ok(NetRule { place, port });
        let address = |text: &str| Place::Address(text.parse().unwrap());
        let range = |text: &str, bits| Place::Range(text.parse().unwrap(), bits);
        let name = |text: &str| Place::Name(text.to_owned());
        for (text, expected) in [
            ("*", rule(Place::Public, None)),
            ("*:443", rule(Place::Public, Some(443))),
            ("Example.com.", rule(name("example.com"), None)),
            (
                "*.Example.com:443",
                rule(Place::Beneath("example.com".into()), Some(443)),
            ),
            ("a_b.example:80", rule(name("a_b.example"), Some(80))),
            ("10.0.0.1", rule(address("10.0.0.1"), None)),
            ("10.0.0.1:5432", rule(address("10.0.0.1"), Some(5432))),
            ("::1", rule(address("::1"), None)),
            ("[fd00::2]", rule(address("fd00::2"), None)),
            ("[fd00::2]:53", rule(address("fd00::2"), Some(53))),
            ("::ffff:10.0.0.1", rule(address("10.0.0.1"), None)),
            ("10.0.0.0/8", rule(range("10.0.0.0", 8), None)),
            ("10.1.2.3/32:80", rule(range("10.1.2.3", 32), Some(80))),
            ("0.0.0.0/0", rule(range("0.0.0.0", 0), None)),
            ("fd00::/8", rule(range("fd00::", 8), None)),
            ("[fd00::2]/128:53", rule(range("fd00::2", 128), Some(53))),
        ] {
            assert_eq!(text.parse::<NetRule>(), expected, "{text}");
        }
        for text in [
            "",
            ":80",
            "a:",
            "a:x",
            "a:65536",
            "[::1",
            "[10.0.0.1]:1",
            "a b",
            "http://a/",
            "a..b",
            "10.0.0",
            "0x7f.1",
            "127.1:80",
            "1.2.3.4.5",
            "x.0x10",
            "*.",
            "*.*",
            "a.*.b",
            "*a.example",
            "*.10.0.0.1",
            "*.[::1]",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/8:",
            "::/129",
            "::ffff:10.0.0.0/104",
            "a/8",
            "/8",
        ] {
            assert!(text.parse::<NetRule>().is_err(), "{text}");
        }
        assert!("a".repeat(64).parse::<NetRule>().is_err());
    }

    #[test]
    fn what_is_not_public_is_known_in_all_its_clothes() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.9.9.9",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:a00:1::",
            "3fff::1",
            "4000::1",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert!(!is_public(ip.to_canonical()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "2001:200::1",
            "2606:4700::1111",
            "3ffe::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn without_a_port_all_are_meant_and_public_is_public() {
        let any = rules(&["*"]);
        assert_eq!(verdict(&any, "1.1.1.1:80", &[]), Verdict::Allowed);
        let not_public = Verdict::Denied(Why::NotPublic);
        for to in [
            "169.254.169.254:80",
            "127.0.0.1:1",
            "[::ffff:127.0.0.1]:1",
            "[::1]:1",
            "10.0.0.1:1",
            // One of the host's own.
            "8.8.4.4:1",
        ] {
            assert_eq!(verdict(&any, to, &[]), not_public, "{to}");
        }
        let web = rules(&["*:443"]);
        assert_eq!(verdict(&web, "1.1.1.1:443", &[]), Verdict::Allowed);
        let not_named = Verdict::Denied(Why::NotNamed);
        assert_eq!(verdict(&web, "1.1.1.1:80", &[]), not_named);
        assert_eq!(verdict(&Allowed::default(), "1.1.1.1:80", &[]), not_named);
    }

    #[test]
    fn addresses_are_named_themselves() {
        let some = rules(&["10.0.0.1:5432", "[fd00::2]", "localhost:80", "8.8.4.4"]);
        for to in [
            "10.0.0.1:5432",
            "[::ffff:10.0.0.1]:5432",
            "[fd00::2]:9",
            "127.0.0.1:80",
            "[::1]:80",
            "8.8.4.4:1",
        ] {
            assert_eq!(verdict(&some, to, &[]), Verdict::Allowed, "{to}");
        }
        for to in ["10.0.0.1:80", "127.0.0.2:80", "127.0.0.1:81", "[fd00::3]:9"] {
            assert_eq!(
                verdict(&some, to, &[]),
                Verdict::Denied(Why::NotPublic),
                "{to}"
            );
        }
    }

    #[test]
    fn ranges_are_named_themselves() {
        let some = rules(&["10.0.0.0/9:80", "fd00::/8", "192.0.2.1/32"]);
        for to in [
            "10.127.255.255:80",
            "[::ffff:10.0.0.0]:80",
            "[fdff::1]:9",
            "192.0.2.1:1",
        ] {
            assert_eq!(verdict(&some, to, &[]), Verdict::Allowed, "{to}");
        }
        for to in [
            "10.128.0.0:80",
            "10.0.0.1:81",
            "[fe00::1]:9",
            "192.0.2.0:1",
            "127.0.0.1:80",
        ] {
            let not_public = Verdict::Denied(Why::NotPublic);
            assert_eq!(verdict(&some, to, &[]), not_public, "{to}");
        }
        // Not the other family's.
        let all = rules(&["::/0"]);
        assert_eq!(verdict(&all, "[::1]:1", &[]), Verdict::Allowed);
        let not_public = Verdict::Denied(Why::NotPublic);
        assert_eq!(verdict(&all, "127.0.0.1:1", &[]), not_public);
        assert_eq!(verdict(&all, "[::ffff:127.0.0.1]:1", &[]), not_public);
    }

    #[test]
    fn names_beneath_one_are_allowed_together() {
        let named = rules(&["*.api.example:443"]);
        for name in ["a.api.example", "b.a.api.example"] {
            assert!(named.has_name(name), "{name}");
            assert_eq!(verdict(&named, "1.1.1.1:443", &[name]), Verdict::Allowed);
            let not_public = Verdict::Denied(Why::NotPublic);
            assert_eq!(verdict(&named, "10.0.0.1:443", &[name]), not_public);
        }
        let not_named = Verdict::Denied(Why::NotNamed);
        for name in [
            "api.example",
            "aapi.example",
            "api.example.evil",
            "example",
            "",
        ] {
            assert!(!named.has_name(name), "{name}");
            assert_eq!(verdict(&named, "1.1.1.1:443", &[name]), not_named, "{name}");
        }
        assert_eq!(verdict(&named, "1.1.1.1:80", &["a.api.example"]), not_named);
    }

    #[test]
    fn addresses_that_are_near_are_told_only_if_they_are_named() {
        let told = |allowed: &Allowed, ip: &str| {
            allowed.may_be_told(ip.parse().unwrap(), |ip| ip.to_string() == "8.8.4.4")
        };
        let some = rules(&["*", "10.0.0.5:5432", "localhost:80"]);
        for ip in ["1.1.1.1", "10.0.0.5", "127.0.0.1", "::1"] {
            assert!(told(&some, ip), "{ip}");
        }
        for ip in [
            "10.0.0.6",
            "127.0.0.2",
            "8.8.4.4",
            "169.254.169.254",
            "fd00::1",
        ] {
            assert!(!told(&some, ip), "{ip}");
        }
    }

    /// What answers for a name can't make it stand for what is not public.
    #[test]
    fn names_stand_for_public_addresses_only() {
        let named = rules(&["api.example:443"]);
        let own = ["api.example"];
        assert_eq!(verdict(&named, "1.1.1.1:443", &own), Verdict::Allowed);
        let asks = Verdict::IfNamed(vec!["api.example".into()]);
        assert_eq!(verdict(&named, "1.1.1.1:443", &["other.example"]), asks);
        assert_eq!(
            verdict(&named, "1.1.1.1:80", &own),
            Verdict::Denied(Why::NotNamed)
        );
        for to in [
            "10.0.0.1:443",
            "127.0.0.1:443",
            "169.254.169.254:443",
            "8.8.4.4:443",
        ] {
            assert_eq!(
                verdict(&named, to, &own),
                Verdict::Denied(Why::NotPublic),
                "{to}"
            );
        }
    }
}
