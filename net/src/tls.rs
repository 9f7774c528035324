//! TLS: certificates and keys as bytes in, acceptors and connectors out. No files.

use crate::stream::Stream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file does not hold what it should.
    #[error("{what}: {why}")]
    Pem {
        /// Which.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The parts do not fit together.
    #[error("TLS: {0}")]
    Setup(String),
    /// A name that no cipher suite has.
    #[error("unexpected TLS cipher suite \"{0}\"")]
    Suite(String),
    /// A version that there is not.
    #[error("unexpected TLS version \"{0}\", must be one of TLS1.2, TLS1.3")]
    Version(String),
}

/// Who we are and whom we trust, in PEM.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The certificate, and those between it and the authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// Certificates that the others' must be signed by; none: the others are not looked at.
    pub authorities: Option<Vec<u8>>,
    /// Certificates of others that have been revoked.
    pub revoked: Option<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("authorities", &self.authorities.is_some()).finish_non_exhaustive()
    }
}

/// By what a client checks servers' certificates.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Authorities' certificates, in PEM.
    Pem(Vec<u8>),
    /// The same in DER, one each; those that cannot be used are passed over, as there are such in what systems come with.
    Der(Vec<Vec<u8>>),
    /// Not at all.
    Anybody,
}

/// Which versions and suites may be spoken.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// `TLS1.2` or `TLS1.3`; empty: TLS 1.2.
    pub version_min: String,
    /// The same; empty: TLS 1.3.
    pub version_max: String,
    /// By the names that Go gives them; empty: all that are safe. TLS 1.3 has its own, which are always there.
    pub suites: Vec<String>,
}

impl Policy {
    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
        let rank = |text: &str, default: u8| match text {
            "" => Ok(default),
            "TLS1.2" => Ok(2),
            "TLS1.3" => Ok(3),
            other => Err(TlsError::Version(other.into())),
        };
        let (min, max) = (rank(&self.version_min, 2)?, rank(&self.version_max, 3)?);
        if min > max {
            return Err(TlsError::Setup(format!("min version ({}) is greater than max version ({})", self.version_min, self.version_max)));
        }
        let all = [(2, &rustls::version::TLS12), (3, &rustls::version::TLS13)];
        Ok(all.into_iter().filter(|(rank, _)| (min..=max).contains(rank)).map(|(_, version)| version).collect())
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            let mut chosen = Vec::new();
            for name in &self.suites {
                // Go's names are IANA's, without the hash for this one family.
                let full = if name.ends_with("CHACHA20_POLY1305") { format!("{name}_SHA256") } else { name.clone() };
                let found = provider.cipher_suites.iter().find(|s| format!("{:?}", s.suite()).replace("TLS13_", "TLS_") == full);
                chosen.push(*found.ok_or_else(|| TlsError::Suite(name.clone()))?);
            }
            let always = provider.cipher_suites.iter().filter(|s| s.tls13().is_some() && !chosen.contains(s)).copied().collect::<Vec<_>>();
            chosen.extend(always);
            provider.cipher_suites = chosen;
        }
        Ok(Arc::new(provider))
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn setup(e: impl fmt::Display) -> TlsError {
    TlsError::Setup(e.to_string())
}

impl Credentials {
    fn chain(&self) -> Result<Chain, TlsError> {
        chain(&self.certificate, &self.key)
    }

    fn roots(&self) -> Result<Option<RootCertStore>, TlsError> {
        self.authorities.as_deref().map(roots).transpose()
    }

    fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let Some(bytes) = &self.revoked else { return Ok(Vec::new()) };
        if !bytes.starts_with(b"-----") {
            return Ok(vec![CertificateRevocationListDer::from(bytes.clone())]);
        }
        CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|e| TlsError::Pem { what: "revocation list", why: e.to_string() })
    }

    /// What takes connections in. Where there are authorities, clients must show a certificate.
    ///
    /// # Errors
    /// When certificate, key, authorities or policy cannot be used.
    pub fn acceptor(&self, policy: &Policy) -> Result<Acceptor, TlsError> {
        let provider = policy.provider()?;
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&policy.versions()?).map_err(setup)?;
        let builder = match self.roots()? {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .with_crls(self.revocations()?)
                    // As etcd: a certificate that the list does not name is good.
                    .allow_unknown_revocation_status()
                    .build()
                    .map_err(setup)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, key) = self.chain()?;
        let mut config = builder.with_single_cert(chain, key).map_err(setup)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
    }

    /// What connects to others, showing our certificate. Without authorities any certificate of theirs will do.
    ///
    /// # Errors
    /// When certificate, key, authorities or policy cannot be used.
    pub fn connector(&self, policy: &Policy) -> Result<Connector, TlsError> {
        let config = client_config(policy, self.roots()?, Some(self.chain()?))?;
        Ok(Connector(TlsConnector::from(Arc::new(config))))
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("trusted CA file", pem)? {
        roots.add(certificate).map_err(|e| TlsError::Pem { what: "trusted CA file", why: e.to_string() })?;
    }
    Ok(roots)
}

fn chain(certificate: &[u8], key: &[u8]) -> Result<Chain, TlsError> {
    let chain = certificates("certificate file", certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| TlsError::Pem { what: "key file", why: e.to_string() })?;
    Ok((chain, key))
}

/// Without roots any certificate will do.
fn client_config(policy: &Policy, roots: Option<RootCertStore>, shown: Option<Chain>) -> Result<ClientConfig, TlsError> {
    let provider = policy.provider()?;
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&policy.versions()?).map_err(setup)?;
    let builder = match roots {
        Some(roots) => builder.with_root_certificates(roots),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(setup),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| TlsError::Pem { what, why: e.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Pem { what, why: "it holds no certificate in PEM".into() });
    }
    Ok(found)
}

/// The accepting side.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// Shakes hands with a client that has just connected.
    ///
    /// # Errors
    /// What the client says is no TLS, or it has no certificate that will do; `TimedOut`.
    pub async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let hands = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.0.accept(Box::new(stream)));
        let stream = hands.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

/// The connecting side.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// What a client of the client port connects with. `shown` is its certificate and key, in PEM.
    ///
    /// # Errors
    /// When authorities, certificate or key cannot be used.
    pub fn for_client(trust: &Trust, shown: Option<(&[u8], &[u8])>) -> Result<Self, TlsError> {
        let roots = match trust {
            Trust::Pem(pem) => Some(roots(pem)?),
            Trust::Der(all) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(all.iter().map(|der| CertificateDer::from(der.as_slice())));
                Some(roots)
            }
            Trust::Anybody => None,
        };
        let shown = shown.map(|(certificate, key)| chain(certificate, key)).transpose()?;
        let mut config = client_config(&Policy::default(), roots, shown)?;
        // gRPC servers insist on it.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with the server at `address`, `host:port`.
    ///
    /// # Errors
    /// A certificate that is not for that host or not from our authority, or no TLS at all.
    pub async fn connect(&self, address: &str, stream: Stream) -> io::Result<Stream> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let stream = self.0.connect(name, Box::new(stream)).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

/// The common name in a certificate.
#[must_use]
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned)
}

/// Takes any server's certificate: for certificates that each member makes for itself (`--peer-auto-tls`), which nobody
/// could check. The connection is encrypted; whom it goes to is not proven.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_suites_are_named_as_in_go() {
        let policy = |min: &str, max: &str, suites: &[&str]| Policy {
            version_min: min.into(),
            version_max: max.into(),
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert_eq!(policy("", "", &[]).versions().expect("all").len(), 2);
        assert_eq!(policy("TLS1.3", "", &[]).versions().expect("one").len(), 1);
        assert!(policy("TLS1.3", "TLS1.2", &[]).versions().is_err());
        assert!(matches!(policy("TLS1.1", "", &[]).versions(), Err(TlsError::Version(_))));
        let suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_AES_128_GCM_SHA256"];
        let provider = policy("", "", &suites).provider().expect("known");
        assert_eq!(provider.cipher_suites.len(), 5);
        assert!(matches!(policy("", "", &["TLS_RSA_WITH_RC4_128_SHA"]).provider(), Err(TlsError::Suite(_))));
    }

    #[test]
    fn what_is_no_pem_is_refused() {
        let nothing = Credentials { certificate: b"x".to_vec(), key: b"y".to_vec(), ..Default::default() };
        assert!(matches!(nothing.acceptor(&Policy::default()), Err(TlsError::Pem { what: "certificate file", .. })));
        assert_eq!(common_name(b"nonsense"), None);
    }
}
