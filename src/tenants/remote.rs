//! What is fetched for the operator, whose word it is where from: descriptions of tenants, and programs. By HTTP or HTTPS, with the
//! host's certificates.
#![forbid(unsafe_code)]

use std::io::Read;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Error};

/// Most redirects.
const REDIRECTS: u32 = 5;

/// Why something was not fetched. No text has the address in it, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// It is no address that can be asked.
    #[error("is not http://... or https://...")]
    Scheme,
    /// There was no answer, or no good one.
    #[error("{0}")]
    Failed(String),
    /// The answer is too long.
    #[error("is larger than {0} bytes")]
    TooLarge(u64),
    /// It broke off.
    #[error("broke off: {0}")]
    Broken(#[from] std::io::Error),
}

impl From<Error> for NotFetched {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        Self::Failed(match &error {
            Error::BadUri(_) => "is no address".into(),
            // What follows may be where a redirect leads to.
            Error::Protocol(what) => {
                let what = what.to_string();
                let what = what.split(':').next().unwrap_or_default();
                format!("protocol: {what}")
            }
            _ => text,
        })
    }
}

/// How long somebody waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection, and then for the answer to begin.
    pub first: Duration,
    /// For all of it.
    pub all: Duration,
}

/// Fetches all of it, of at most so many bytes.
pub fn load(url: &str, most: u64, patience: Patience) -> Result<Vec<u8>, NotFetched> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| ["http", "https"].contains(&&*scheme.to_ascii_lowercase())) {
        return Err(NotFetched::Scheme);
    }
    let request = AGENT
        .get(url)
        .config()
        .timeout_global(Some(patience.all))
        .timeout_connect(Some(patience.first))
        .timeout_recv_response(Some(patience.first));
    let body = request.build().call()?.into_body().into_reader();
    let mut bytes = Vec::new();
    body.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(NotFetched::TooLarge(most)),
        false => Ok(bytes),
    }
}

/// Of an address what can be shown: how, host and path. A user's name, a password and what is asked for may be secret.
pub fn shown(url: &str) -> String {
    let start = &url[..url.find(['?', '#']).unwrap_or(url.len())];
    match start.split_once("://") {
        Some(("file", _)) => start.to_owned(),
        Some((scheme, _)) => shown_remote(url).unwrap_or_else(|| format!("{scheme}://...")),
        None if start.contains('@') => "...".to_owned(),
        None => start.to_owned(),
    }
}

fn shown_remote(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, host) = (uri.scheme_str()?, uri.host()?);
    let after = uri.authority()?.as_str().rsplit_once(host)?.1;
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    // Anything else may be a part of a password.
    let is_known = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
    is_known.then(|| format!("{scheme}://{host}{after}{}", uri.path()))
}

/// Who asks. What it knows is read once: which certificates are good. It keeps no connections.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let config = Agent::config_builder()
        .max_redirects(REDIRECTS)
        .max_idle_connections(0)
        .proxy(None)
        .tls_config(tls());
    config.build().into()
});

/// The host's certificates are good. Those that can't be read are not.
fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs().certs;
    let roots = found
        .iter()
        .map(|cert| Certificate::from_der(cert).to_owned());
    let roots: Vec<_> = roots.collect();
    TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const ENOUGH: Patience = Patience {
        first: Duration::from_secs(60),
        all: Duration::from_secs(60),
    };

    #[test]
    fn nothing_secret_is_shown_of_an_address() {
        for (url, seen) in [
            ("https://h/p/q.json", "https://h/p/q.json"),
            (
                "https://name:secret@h:8443/p?key=secret#x",
                "https://h:8443/p",
            ),
            ("http://[::1]:80/p@q", "http://[::1]:80/p@q"),
            ("http://h?secret", "http://h/"),
            ("http://name:sec/ret@h/p", "http://..."),
            ("http://name:sec ret@h/p", "http://..."),
            ("file:///srv/a@b.json", "file:///srv/a@b.json"),
            ("/srv/a.json?x", "/srv/a.json"),
            ("name:secret@h/p", "..."),
            ("", ""),
        ] {
            assert_eq!(shown(url), seen, "{url}");
        }
    }

    #[test]
    fn errors_do_not_show_the_address() {
        for url in [
            "ftp://u:secret@h/",
            "http://",
            "http://u:secret@",
            "http:///secret",
            "http://a b/secret",
        ] {
            let error = load(url, 1, ENOUGH).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{url}: {error}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let leads = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 302 Found\r\nLocation: //[secret\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
        });
        let error = load(&url, 1, ENOUGH).unwrap_err().to_string();
        leads.join().unwrap();
        assert_eq!(error, "protocol: location header is malformed");
    }
}
