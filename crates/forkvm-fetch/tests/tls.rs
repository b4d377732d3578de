//! TLS: who is believed, and that a program has no say in it unless its tenant may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use common::upstream::{Upstream, Wrap};
use common::{client, fetch, get, request, settings};
use forkvm::{FetchError, FetchRequest};
use forkvm_fetch::{Client, Settings};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// An authority, whose certificate is in a file.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(test: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of a test");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let name = format!("forkvm-fetch-{}-{test}.pem", std::process::id());
        let file = std::env::temp_dir().join(name);
        fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// An upstream with a certificate for these names, that has expired or not.
    fn upstream(&self, names: &[&str], expired: bool) -> Upstream {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let wrap: Wrap = Arc::new(move |stream| {
            let connection =
                ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
            Ok(Box::new(StreamOwned::new(connection, stream)))
        });
        Upstream::wrapped(wrap)
    }

    /// A client that believes it.
    fn client(&self, upstream: &Upstream, unverified: bool) -> Client {
        client(Settings {
            ca_file: Some(self.file.clone()),
            unverified,
            ..settings(&[&upstream.rule(), "*.local"])
        })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The URL of an upstream by a name.
fn url(upstream: &Upstream, name: &str) -> String {
    format!("https://{name}:{}/body/3", upstream.address.port())
}

fn unverified(url: &str) -> FetchRequest {
    FetchRequest {
        unverified: true,
        ..request(url)
    }
}

fn is_refused(result: Result<common::Fetched, FetchError>, why: &str) {
    match result {
        Err(FetchError::Tls(what)) if what.contains(why) => {}
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn certificates_of_the_name_are_believed() {
    let authority = Authority::new("good");
    let upstream = authority.upstream(&["a.local", "127.0.0.1"], false);
    let client = authority.client(&upstream, false);
    for name in ["a.local", "127.0.0.1"] {
        for _ in 0..5 {
            assert_eq!(get(&client, &url(&upstream, name)).unwrap().body.len(), 3);
        }
    }
    // One for each name.
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn others_are_not() {
    let authority = Authority::new("bad");
    let upstream = authority.upstream(&["a.local"], false);
    let client = authority.client(&upstream, true);
    for name in ["b.local", "127.0.0.1"] {
        is_refused(get(&client, &url(&upstream, name)), "not valid for name");
    }
    let expired = authority.upstream(&["a.local"], true);
    let of_expired = authority.client(&expired, true);
    is_refused(get(&of_expired, &url(&expired, "a.local")), "expired");
    // By an authority that nobody has named.
    let unknown = common::client(settings(&[&upstream.rule(), "*.local"]));
    is_refused(get(&unknown, &url(&upstream, "a.local")), "");
    // No TLS at all, and TLS where there is to be none.
    let plain = Upstream::new();
    let of_plain = authority.client(&plain, true);
    is_refused(get(&of_plain, &url(&plain, "a.local")), "");
    let result = get(&client, &upstream.url("/body/3"));
    assert!(result.is_err(), "{result:?}");

    // A program may do without the name if its tenant may, and without nothing else.
    assert_eq!(
        fetch(&client, unverified(&url(&upstream, "b.local")))
            .unwrap()
            .body
            .len(),
        3
    );
    is_refused(
        fetch(&of_expired, unverified(&url(&expired, "b.local"))),
        "expired",
    );
    // Connections of the one kind are none of the other.
    is_refused(
        get(&client, &url(&upstream, "b.local")),
        "not valid for name",
    );
    let strict = authority.client(&upstream, false);
    let refused = fetch(&strict, unverified(&url(&upstream, "b.local")));
    assert!(
        matches!(refused, Err(FetchError::NotAllowed(_))),
        "{refused:?}"
    );
}

#[test]
fn files_without_certificates_are_refused() {
    let file = std::env::temp_dir().join(format!("forkvm-fetch-{}-none.pem", std::process::id()));
    let with = |file: &PathBuf| {
        let settings = Settings {
            ca_file: Some(file.clone()),
            ..Settings::default()
        };
        Client::new(settings).map(drop)
    };
    assert!(with(&file).is_err());
    for text in [
        "",
        "none",
        "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&file, text).unwrap();
        let result = with(&file);
        fs::remove_file(&file).unwrap();
        assert!(result.is_err(), "{text}");
    }
}
