//! What is fetched for the operator, whose word it is where from: descriptions of tenants, and programs. By HTTP or HTTPS, with the
//! host's certificates.
#![forbid(unsafe_code)]

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Most redirects.
const REDIRECTS: u32 = 5;

/// Why something was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// It is no address that can be asked.
    #[error("is not http://... or https://...")]
    Scheme,
    /// There was no answer, or no good one.
    #[error("{0}")]
    Failed(#[from] Box<ureq::Error>),
    /// The answer is too long.
    #[error("is larger than {0} bytes")]
    TooLarge(u64),
    /// It broke off.
    #[error("broke off: {0}")]
    Broken(#[from] std::io::Error),
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
    let config = Agent::config_builder()
        .timeout_global(Some(patience.all))
        .timeout_connect(Some(patience.first))
        .timeout_recv_response(Some(patience.first))
        .max_redirects(REDIRECTS)
        .proxy(None)
        .tls_config(tls());
    let agent: Agent = config.build().into();
    let response = agent.get(url).call().map_err(Box::new)?;
    let body = response.into_body().into_reader();
    let mut bytes = Vec::new();
    body.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(NotFetched::TooLarge(most)),
        false => Ok(bytes),
    }
}

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
