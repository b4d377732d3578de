//! Where something is fetched from: a URL, read and looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forkvm::{FetchError, host_name};
use hyper::Uri;
use iri_string::types::{UriAbsoluteString, UriReferenceStr};

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// An address.
    Address(IpAddr),
    /// A name, in lower case.
    Name(String),
}

/// Whom to ask: whose connections are as good as each other's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether by TLS.
    pub tls: bool,
    /// Where.
    pub place: Place,
    /// At which port.
    pub port: u16,
}

/// Whom to ask for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whom.
    pub origin: Origin,
    /// Path and query.
    pub path: String,
}

fn bad(what: impl Into<String>) -> FetchError {
    FetchError::Bad(what.into())
}

impl Target {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, FetchError> {
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad(
                "a URL with blanks, control characters or what is not ASCII",
            ));
        }
        let uri: Uri = url
            .parse()
            .map_err(|error| bad(format!("a URL: {error}")))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(bad(format!("a URL of {other}, neither http nor https"))),
            None => return Err(bad("a URL without http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("a URL without a host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("a URL with the name of a user"));
        }
        let host = authority.host();
        let port = match authority.as_str().get(host.len()..) {
            Some("") => match tls {
                true => 443,
                false => 80,
            },
            Some(port) => port_of(port).ok_or_else(|| bad("a URL with a bad port"))?,
            None => return Err(bad("a URL without a host")),
        };
        let place = place(host).ok_or_else(|| bad("a URL with a bad host"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            origin: Origin { tls, place, port },
            path: match path.starts_with('/') {
                true => path.into(),
                false => format!("/{path}"),
            },
        })
    }

    /// Where a redirect leads to.
    pub fn redirected(&self, location: &[u8]) -> Result<Self, FetchError> {
        let no_url = || FetchError::Protocol("a redirect to what is no URL".into());
        let location = str::from_utf8(location).map_err(|_| no_url())?;
        let location = UriReferenceStr::new(location).map_err(|_| no_url())?;
        let own = UriAbsoluteString::try_from(self.url()).map_err(|_| no_url())?;
        Self::parse(&location.resolve_against(&own).to_string())
    }

    fn url(&self) -> String {
        let Self { origin, path } = self;
        format!("{origin}{path}")
    }
}

impl Origin {
    /// The header `Host`.
    pub fn host(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        match self.port {
            port if port == usual => self.place.to_string(),
            port => format!("{}:{port}", self.place),
        }
    }
}

/// What is shown of it: nothing that may be secret.
impl std::fmt::Display for Origin {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(out, "{scheme}://{}", self.host())
    }
}

/// As in a URL.
impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(IpAddr::V4(ip)) => write!(out, "{ip}"),
            Self::Address(IpAddr::V6(ip)) => write!(out, "[{ip}]"),
            Self::Name(name) => out.write_str(name),
        }
    }
}

/// `:PORT`, which is no sign and no 0.
fn port_of(text: &str) -> Option<u16> {
    let digits = text.strip_prefix(':')?;
    let good = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|_| good)?;
    (port != 0).then_some(port)
}

fn place(host: &str) -> Option<Place> {
    if let Some(rest) = host.strip_prefix('[') {
        let ip: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
        return Some(Place::Address(IpAddr::from(ip).to_canonical()));
    }
    match host.parse::<Ipv4Addr>() {
        Ok(ip) => Some(Place::Address(ip.into())),
        Err(_) => host_name(host).map(Place::Name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (String, String) {
        let target = Target::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        (target.origin.to_string(), target.path)
    }

    #[test]
    fn urls_are_read() {
        for (url, origin, path) in [
            ("http://a.example", "http://a.example", "/"),
            ("HTTP://A.Example.:80/b?c=d#e", "http://a.example", "/b?c=d"),
            ("https://a:8443?x", "https://a:8443", "/?x"),
            ("http://127.0.0.1:443/", "http://127.0.0.1:443", "/"),
            ("https://[fd00::1]:443/", "https://[fd00::1]", "/"),
            ("http://[::ffff:10.0.0.1]/", "http://10.0.0.1", "/"),
        ] {
            assert_eq!(parsed(url), (origin.into(), path.into()), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_or_may_mislead_is_refused() {
        for url in [
            "",
            "/",
            "a.example",
            "a.example:80",
            "ftp://a/",
            "file:///etc/passwd",
            "http://",
            "http:///a",
            "http://user@a/",
            "http://a:b@c/",
            "http://a:0/",
            "http://a:/",
            "http://a:65536/",
            "http://a:+80/",
            "http://a:80:80/",
            "http://a b/",
            "http://a/b c",
            "http://a/\r\nX: y",
            "http://a/\0",
            "http://a/\u{e9}",
            "http://127.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://[::1/",
            "http://[127.0.0.1]/",
            "http://[fe80::1%25eth0]/",
            "http://a..b/",
            "http://a\\@b/",
        ] {
            if let Ok(target) = Target::parse(url) {
                panic!("{url:?}: {target:?}");
            }
        }
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let from = Target::parse("https://a.example/b/c?d").unwrap();
        for (location, url) in [
            ("/x", "https://a.example/x"),
            ("x?y#z", "https://a.example/b/x?y"),
            ("../x", "https://a.example/x"),
            ("?e", "https://a.example/b/c?e"),
            ("//b.example/x", "https://b.example/x"),
            ("http://b.example:81", "http://b.example:81/"),
        ] {
            let to = from.redirected(location.as_bytes()).unwrap();
            assert_eq!(to.url(), url, "{location}");
        }
        for location in ["http://[", "ftp://a/", "http://user@a/", "a b", "\u{e9}"] {
            assert!(from.redirected(location.as_bytes()).is_err(), "{location}");
        }
        assert!(from.redirected(b"\xff").is_err());
    }
}
