//! Tenants' names, and how a Host header tells one.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// The longest name, almost that of a host (253): a file system must take it with ".versions" after it, within 255.
pub const MAX_LEN: usize = 246;

/// The name as tenants are looked up by it: lower case, without a trailing dot. `None` if it can't be a name.
///
/// The characters are those of host names and IP addresses, and `_ @ + ~`, so that a name can stand in a log
/// line, in JSON and in `argv[0]` as it is. Colons are between brackets only: elsewhere they begin a port, which is not the
/// tenant's ([`of_host`]).
pub fn canonical(name: &[u8]) -> Option<Cow<'_, str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let valid = |c: u8| c.is_ascii_alphanumeric() || b"._-:[]@+~".contains(&c);
    // Of two dots at the end one would be left, and so another name be made of the same one again.
    if name.is_empty()
        || name.ends_with(b".")
        || name.len() > MAX_LEN
        || !name.iter().all(|&c| valid(c))
        || port(name).is_some()
    {
        return None;
    }
    let name = str::from_utf8(name).ok()?;
    Some(if name.bytes().any(|c| c.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

/// The name that a tenant is looked up by, whoever asks for it: as [`canonical`], without the port that a Host header may have.
pub fn of_host(host: &[u8]) -> Option<Cow<'_, str>> {
    canonical(&host[..port(host).unwrap_or(host.len())])
}

/// Where the port begins, with its colon. Those of an IPv6 address are between brackets.
fn port(host: &[u8]) -> Option<usize> {
    let start = host.iter().position(|&c| c == b']').unwrap_or(0);
    let colon = host[start..].iter().position(|&c| c == b':')?;
    Some(start + colon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_trailing_dot_do_not_count() {
        assert_eq!(canonical(b"XPizza.com.").as_deref(), Some("xpizza.com"));
        assert_eq!(
            canonical(b"a_b-c.9@x+y~z").as_deref(),
            Some("a_b-c.9@x+y~z")
        );
        assert!(matches!(canonical(b"plain"), Some(Cow::Borrowed("plain"))));
    }

    #[test]
    fn what_could_confuse_a_log_or_be_a_port_is_no_name() {
        for bad in [
            &b""[..],
            b".",
            b"a..",
            b"a b",
            b"a\nb",
            b"a\0",
            b"a/b",
            b"a\"b",
            b"a%sb",
            b"\xff",
            b"a:80",
            b"::1",
            b"[::1]:80",
            &[b'a'; 247],
        ] {
            assert_eq!(canonical(bad), None, "{bad:?}");
        }
        assert!(canonical(&[b'a'; 246]).is_some());
        assert_eq!(canonical(b"[::1]").as_deref(), Some("[::1]"));
    }

    #[test]
    fn a_host_is_a_name_without_its_port() {
        for (host, name) in [
            ("xpizza.com", Some("xpizza.com")),
            ("xpizza.com:8080", Some("xpizza.com")),
            ("XPIZZA.COM.:80", Some("xpizza.com")),
            ("127.0.0.1:8080", Some("127.0.0.1")),
            ("[::1]:8080", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("::1", None),
            (":80", None),
            ("", None),
        ] {
            assert_eq!(of_host(host.as_bytes()).as_deref(), name, "{host}");
        }
    }
}
