//! Tenants' names, by the rules of the VMOD (`src/tenants/name.rs` there): what is signed is the name that it looks up.

/// The longest name.
const LONGEST: usize = 246;

/// The name that a tenant is given by, which may be a Host header: lower case, without a port, without a trailing dot.
pub fn parse(text: &str) -> Result<String, String> {
    // The colons of an IPv6 address are between brackets.
    let start = text.find(']').unwrap_or(0);
    let port = text[start..].find(':').map(|colon| start + colon);
    let name = &text[..port.unwrap_or(text.len())];
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = |c: u8| c.is_ascii_alphanumeric() || b"._-:[]@+~".contains(&c);
    if name.is_empty() || name.len() > LONGEST || !name.bytes().all(valid) {
        return Err("not a tenant's name; that is a host name, such as example.com".into());
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_vmod_has_them() {
        for (text, name) in [
            ("xpizza.com", Some("xpizza.com")),
            ("xpizza.com:8080", Some("xpizza.com")),
            ("XPIZZA.COM.:80", Some("xpizza.com")),
            ("xpizza.com.", Some("xpizza.com")),
            ("xpizza.com..", Some("xpizza.com.")),
            ("127.0.0.1:8080", Some("127.0.0.1")),
            ("[::1]:8080", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("::1", None),
            (":80", None),
            (".", None),
            ("", None),
            ("a b", None),
            ("a/b", None),
            ("ä", None),
        ] {
            assert_eq!(parse(text).ok().as_deref(), name, "{text}");
        }
        assert!(parse(&"a".repeat(246)).is_ok() && parse(&"a".repeat(247)).is_err());
    }
}
