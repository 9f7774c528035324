//! Certificates and keys: from the files that the flags name, or made here (`--auto-tls`, `--peer-auto-tls`).

use super::url::Url;
use anyhow::{Context, Result, bail, ensure};
use brickraft_net::peers::PeerTls;
use brickraft_net::tls::{Acceptor, Credentials, Policy};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// etcd's flags for one side, clients or peers.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// `--cert-file`.
    pub certificate: Option<PathBuf>,
    /// `--key-file`.
    pub key: Option<PathBuf>,
    /// `--client-cert-file`: what is shown to other members where it is another one.
    pub client_certificate: Option<PathBuf>,
    /// `--client-key-file`.
    pub client_key: Option<PathBuf>,
    /// `--trusted-ca-file`. With it, those who come must show a certificate, as in etcd.
    pub authorities: Option<PathBuf>,
    /// `--client-cert-auth`: moreover, a client's certificate says who it is.
    pub cert_auth: bool,
    /// `--client-crl-file`.
    pub revoked: Option<PathBuf>,
    /// `--auto-tls`.
    pub auto: bool,
}

/// Whose certificates: the start of the flags' names, and the directory for those made here.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    flag: &'static str,
    dir: &'static str,
}

/// Clients.
pub const CLIENT: Side = Side { flag: "--", dir: "client" };
/// Members.
pub const PEER: Side = Side { flag: "--peer-", dir: "peer" };

fn read(path: &Path, flag: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{flag}: read {}", path.display()))
}

impl TlsFiles {
    /// Who we are; `None` where TLS is not set up. `urls` are where we listen.
    fn credentials(&self, side: Side, urls: &[Url], data_dir: &Path, years: u32) -> Result<Option<Credentials>> {
        let flag = |name: &str| format!("{}{name}", side.flag);
        let wants = urls.iter().find(|u| u.scheme.is_tls());
        let (certificate, key) = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => (read(certificate, &flag("cert-file"))?, read(key, &flag("key-file"))?),
            (None, None) if self.auto && wants.is_some() => own_certificate(&data_dir.join("fixtures").join(side.dir), urls, years)?,
            (None, None) => {
                if let Some(url) = wants {
                    bail!("TLS key/cert ({}, {}) must be provided for {url} with HTTPS scheme", flag("cert-file"), flag("key-file"));
                }
                ensure!(!self.cert_auth, "{} needs {} and {}", flag("client-cert-auth"), flag("cert-file"), flag("key-file"));
                return Ok(None);
            }
            (certificate, key) => bail!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                key.as_deref().unwrap_or(Path::new("")).display(),
                certificate.as_deref().unwrap_or(Path::new("")).display()
            ),
        };
        if wants.is_none() && !urls.is_empty() {
            tracing::warn!("the scheme of {} is not HTTPS: key and certificate are not used there", urls[0]);
        }
        let authorities = self.authorities.as_deref().map(|f| read(f, &flag("trusted-ca-file"))).transpose()?;
        ensure!(!self.cert_auth || authorities.is_some(), "{} needs {}", flag("client-cert-auth"), flag("trusted-ca-file"));
        let crl = if side.dir == "client" { "--client-crl-file" } else { "--peer-crl-file" };
        let revoked = self.revoked.as_deref().map(|f| read(f, crl)).transpose()?;
        Ok(Some(Credentials { certificate, key, authorities, revoked }))
    }

    /// For the clients' ports.
    ///
    /// # Errors
    /// What is missing or cannot be used.
    pub fn for_clients(&self, urls: &[Url], data_dir: &Path, years: u32, policy: &Policy) -> Result<Option<Acceptor>> {
        let credentials = self.credentials(CLIENT, urls, data_dir, years)?;
        credentials.map(|c| c.acceptor(policy).context("TLS for clients")).transpose()
    }

    /// Between members.
    ///
    /// # Errors
    /// What is missing or cannot be used.
    pub fn for_peers(&self, urls: &[Url], data_dir: &Path, years: u32, policy: &Policy) -> Result<Option<PeerTls>> {
        let Some(ours) = self.credentials(PEER, urls, data_dir, years)? else { return Ok(None) };
        ensure!(
            ours.authorities.is_some() || self.certificate.is_none(),
            "--peer-cert-file needs --peer-trusted-ca-file, by which the other members' certificates are checked"
        );
        let shown = match (&self.client_certificate, &self.client_key) {
            (None, None) => ours.clone(),
            (Some(certificate), Some(key)) => Credentials {
                certificate: read(certificate, "--peer-client-cert-file")?,
                key: read(key, "--peer-client-key-file")?,
                ..ours.clone()
            },
            _ => bail!("--peer-client-cert-file and --peer-client-key-file must both be present"),
        };
        let acceptor = ours.acceptor(policy).context("TLS for peers")?;
        let connector = shown.connector(policy).context("TLS for peers")?;
        Ok(Some(PeerTls { acceptor, connector }))
    }
}

/// A certificate that is signed by itself, kept in `dir` as etcd keeps it.
fn own_certificate(dir: &Path, urls: &[Url], years: u32) -> Result<(Vec<u8>, Vec<u8>)> {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if let (Ok(certificate), Ok(key)) = (std::fs::read(&certificate), std::fs::read(&key)) {
        return Ok((certificate, key));
    }
    ensure!((1..=100).contains(&years), "--self-signed-cert-validity: {years} is not between 1 and 100 years");
    let hosts = urls.iter().filter(|u| !u.scheme.is_unix()).filter_map(|u| u.address.rsplit_once(':'));
    let mut names: Vec<String> = hosts.map(|(host, _)| host.trim_matches(['[', ']']).to_owned()).collect();
    names.dedup();
    let mut params = rcgen::CertificateParams::new(names).context("a certificate's names")?;
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "etcd");
    let now = SystemTime::now();
    // Clocks that are a little behind must not find it not yet valid.
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(u64::from(years) * 365 * 24 * 3600)).into();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let pair = rcgen::KeyPair::generate().context("make a key")?;
    let made = params.self_signed(&pair).context("make a certificate")?;
    let (certificate_pem, key_pem) = (made.pem(), pair.serialize_pem());
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    std::fs::write(&certificate, &certificate_pem).with_context(|| format!("write {}", certificate.display()))?;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&key);
    file.as_mut()
        .map_err(|e| std::io::Error::new(e.kind(), e.to_string()))
        .and_then(|f| std::io::Write::write_all(f, key_pem.as_bytes()))
        .with_context(|| format!("write {}", key.display()))?;
    Ok((certificate_pem.into_bytes(), key_pem.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_certificates_are_made_once_and_work() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let urls = ["https://127.0.0.1:1".parse().expect("URL"), "https://localhost:1".parse().expect("URL")];
        let files = TlsFiles { auto: true, ..Default::default() };
        let first = files.credentials(CLIENT, &urls, dir.path(), 1).expect("made").expect("wanted");
        let again = files.credentials(CLIENT, &urls, dir.path(), 1).expect("found").expect("wanted");
        assert_eq!(first.certificate, again.certificate);
        assert!(files.for_clients(&urls, dir.path(), 1, &Policy::default()).expect("usable").is_some());
        assert!(files.for_peers(&urls, dir.path(), 1, &Policy::default()).expect("usable").is_some());
        assert!(files.for_clients(&["http://a:1".parse().expect("URL")], dir.path(), 1, &Policy::default()).expect("plain").is_none());
    }

    #[test]
    fn halves_are_refused() {
        let urls = ["https://127.0.0.1:1".parse().expect("URL")];
        let refused =
            |files: TlsFiles| format!("{:#}", files.for_clients(&urls, Path::new("/x"), 1, &Policy::default()).expect_err("refused"));
        assert!(refused(TlsFiles::default()).contains("must be provided for https://127.0.0.1:1"));
        assert!(refused(TlsFiles { key: Some("/k".into()), ..Default::default() }).contains("must both be present[key: /k, cert: ]"));
        let missing = TlsFiles { certificate: Some("/nowhere/c".into()), key: Some("/nowhere/k".into()), ..Default::default() };
        assert!(refused(missing).contains("--cert-file: read /nowhere/c"));
    }
}
