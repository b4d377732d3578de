//! TLS: who is believed to be whom.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use forkvm::FetchError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// A client's. Its sessions are its own.
pub struct Tls {
    added: Vec<CertificateDer<'static>>,
    verified: OnceLock<Result<Arc<ClientConfig>, String>>,
    unverified: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    /// With the certificates of a file besides the host's.
    pub fn new(file: Option<&Path>) -> Result<Self, String> {
        Ok(Self {
            added: match file {
                Some(file) => certificates(file)?,
                None => Vec::new(),
            },
            verified: OnceLock::new(),
            unverified: OnceLock::new(),
        })
    }

    /// How connections are made; `unverified`: whatever name a certificate has.
    pub fn config(&self, unverified: bool) -> Result<Arc<ClientConfig>, FetchError> {
        let config = match unverified {
            false => &self.verified,
            true => &self.unverified,
        };
        config
            .get_or_init(|| self.make(unverified))
            .clone()
            .map_err(FetchError::Tls)
    }

    fn make(&self, unverified: bool) -> Result<Arc<ClientConfig>, String> {
        let mut roots = of_host().clone();
        let (_, bad) = roots.add_parsable_certificates(self.added.iter().cloned());
        if bad > 0 {
            return Err(format!("{bad} certificates of fetch_ca_file are none"));
        }
        if roots.is_empty() {
            return Err(
                "the host has no certificates (ca-certificates), and fetch_ca_file names none"
                    .into(),
            );
        }
        let provider = Arc::new(ring::default_provider());
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let roots = Arc::new(roots);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| text(&error))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| text(&error))?;
        let builder = match unverified {
            false => builder.with_webpki_verifier(verifier),
            true => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyName(verifier))),
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let of = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let found = CertificateDer::pem_file_iter(file).map_err(|error| of(&error))?;
    let found: Result<Vec<_>, _> = found.collect();
    match found {
        Ok(found) if found.is_empty() => Err(of(&"no certificate in PEM")),
        Ok(found) => Ok(found),
        Err(error) => Err(of(&error)),
    }
}

/// The host's own, read once.
fn of_host() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // One that can't be read is one that nobody is believed by.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

/// Looks at everything but the name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is the last thing that is looked at.
        match self
            .0
            .verify_server_cert(certificate, intermediates, name, ocsp, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
