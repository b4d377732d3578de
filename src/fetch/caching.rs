//! Whether Varnish may cache a guest's response: only if the guest gave it a lifetime.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use forkvm::{CachePolicy, Header};

/// What a response says about caching.
#[derive(Debug, PartialEq, Eq)]
pub struct Caching {
    /// Whether it has a lifetime, and nothing forbids to cache it.
    pub allowed: bool,
    /// The guest's cache policy as a Cache-Control value, if its headers don't say more. Varnish takes lifetimes from
    /// headers after the backend is done; set on the object they would be overwritten.
    pub cache_control: Option<String>,
}

impl Caching {
    /// Reads a response's headers and the cache policy that came with it.
    pub fn of(headers: &[Header<'_>], policy: Option<CachePolicy>) -> Self {
        let values = |name| {
            headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name))
                .map(|header| &*header.value)
        };
        let directives = || values("cache-control").flat_map(|value| value.split(|&c| c == b','));
        let any_begins = |names: &[&str]| {
            directives().any(|directive| names.iter().any(|name| begins(directive, name)))
        };
        let forbidden = any_begins(&["no-store", "no-cache", "private"]);
        // "Expires: 0" and the like are in the past; Varnish takes what it can't read for no header at all.
        let lifetime = any_begins(&["max-age=", "s-maxage="]) || values("expires").any(in_future);
        let cache_control = policy
            .filter(|_| !forbidden && !lifetime)
            .map(|policy| directives_of(&policy));
        Self {
            allowed: !forbidden && (lifetime || cache_control.is_some()),
            cache_control,
        }
    }
}

fn begins(directive: &[u8], name: &str) -> bool {
    directive
        .trim_ascii_start()
        .get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
}

fn in_future(date: &[u8]) -> bool {
    str::from_utf8(date)
        .ok()
        .and_then(|date| httpdate::parse_http_date(date.trim()).ok())
        .is_some_and(|time| time > SystemTime::now())
}

fn directives_of(policy: &CachePolicy) -> String {
    // Whole seconds, and a short lifetime is not none. (A negative or absurd float saturates.)
    let seconds = |time: f32| {
        if time > 0.0 {
            time.round().max(1.0) as u32
        } else {
            0
        }
    };
    format!(
        "max-age={}, stale-while-revalidate={}",
        seconds(policy.ttl),
        seconds(policy.grace)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caching(headers: &[(&str, &str)], policy: Option<CachePolicy>) -> Caching {
        let headers: Vec<_> = headers
            .iter()
            .map(|&(name, value)| Header::new(name, value.as_bytes()))
            .collect();
        Caching::of(&headers, policy)
    }

    fn policy(ttl: f32, grace: f32) -> Option<CachePolicy> {
        Some(CachePolicy {
            ttl,
            grace,
            keep: 0.0,
        })
    }

    #[test]
    fn a_lifetime_is_needed() {
        for header in [
            ("Cache-Control", "public, Max-Age=60"),
            ("cache-control", "s-maxage=1"),
            ("Expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
        ] {
            assert!(caching(&[header], None).allowed, "{header:?}");
        }
        for header in [
            ("X", ""),
            ("Cache-Control", "public"),
            ("Expires", "0"),
            ("Expires", "-1"),
            ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("Expires", "Thu, 01 Jan 2015 00:00:00 GMT"),
            ("Expires", "soon"),
        ] {
            assert!(!caching(&[header], None).allowed, "{header:?}");
        }
    }

    #[test]
    fn what_forbids_is_final() {
        let lifetime = [
            ("Cache-Control", "max-age=60"),
            ("Expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
        ];
        for but in ["no-store", "private", "public, No-Cache=\"set-cookie\""] {
            for lifetime in lifetime {
                let headers = [lifetime, ("Cache-Control", but)];
                assert!(!caching(&headers, None).allowed, "{headers:?}");
            }
            let forbidden = caching(&[("Cache-Control", but)], policy(1.0, 1.0));
            assert!(!forbidden.allowed && forbidden.cache_control.is_none());
        }
    }

    #[test]
    fn a_policy_counts_unless_a_header_says_more() {
        let with = |value| caching(&[("Cache-Control", value)], policy(9.0, 0.0));
        assert!(with("public").allowed && with("public").cache_control.is_some());
        assert!(with("max-age=5").allowed && with("max-age=5").cache_control.is_none());
    }

    #[test]
    fn a_policy_becomes_whole_seconds() {
        let header = |ttl, grace| caching(&[], policy(ttl, grace)).cache_control.unwrap();
        assert_eq!(header(10.0, 2.5), "max-age=10, stale-while-revalidate=3");
        assert_eq!(header(0.001, 0.0), "max-age=1, stale-while-revalidate=0");
        assert_eq!(
            header(-5.0, f32::NAN),
            "max-age=0, stale-while-revalidate=0"
        );
        assert_eq!(
            header(f32::INFINITY, 0.0),
            format!("max-age={}, stale-while-revalidate=0", u32::MAX)
        );
    }
}
