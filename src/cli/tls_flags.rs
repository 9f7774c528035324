//! etcd's flags about TLS.

use crate::node::tls::TlsFiles;
use brickraft_net::tls::Policy;
use clap::Args;
use clap::builder::BoolishValueParser;
use std::path::PathBuf;

/// A flag that is true when it stands alone, and takes a value behind `=` only, as Go's.
macro_rules! flags {
    ($(#[doc = $doc:literal] $name:ident = $env:literal,)* ; $(#[doc = $bdoc:literal] $bname:ident = $benv:literal,)*) => {
        #[derive(Debug, Args)]
        pub(crate) struct TlsArgs {
            $(#[doc = $doc] #[arg(long, env = $env, default_value = "", hide_default_value = true)] $name: String,)*
            $(
                #[doc = $bdoc]
                #[arg(
                    long, env = $benv, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
                    default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
                )]
                $bname: bool,
            )*
            /// Years for which certificates are valid that are made here
            #[arg(long, env = "ETCD_SELF_SIGNED_CERT_VALIDITY", default_value_t = 1)]
            self_signed_cert_validity: u32,
        }
    };
}

flags! {
    /// Certificate for clients
    cert_file = "ETCD_CERT_FILE",
    /// Its key
    key_file = "ETCD_KEY_FILE",
    /// Certificate authorities for clients' certificates; with it, clients must show one
    trusted_ca_file = "ETCD_TRUSTED_CA_FILE",
    /// Revoked clients' certificates
    client_crl_file = "ETCD_CLIENT_CRL_FILE",
    /// Certificate for peers
    peer_cert_file = "ETCD_PEER_CERT_FILE",
    /// Its key
    peer_key_file = "ETCD_PEER_KEY_FILE",
    /// Certificate that is shown to peers, where it is another one
    peer_client_cert_file = "ETCD_PEER_CLIENT_CERT_FILE",
    /// Its key
    peer_client_key_file = "ETCD_PEER_CLIENT_KEY_FILE",
    /// Certificate authorities for peers' certificates
    peer_trusted_ca_file = "ETCD_PEER_TRUSTED_CA_FILE",
    /// Revoked peers' certificates
    peer_crl_file = "ETCD_PEER_CRL_FILE",
    /// Cipher suites, comma-separated, by Go's names
    cipher_suites = "ETCD_CIPHER_SUITES",
    /// Oldest version of TLS: TLS1.2 or TLS1.3
    tls_min_version = "ETCD_TLS_MIN_VERSION",
    /// Newest version of TLS
    tls_max_version = "ETCD_TLS_MAX_VERSION",
    ;
    /// Clients must show a certificate, whose common name says who they are
    client_cert_auth = "ETCD_CLIENT_CERT_AUTH",
    /// Make a certificate for clients
    auto_tls = "ETCD_AUTO_TLS",
    /// Peers must show a certificate
    peer_client_cert_auth = "ETCD_PEER_CLIENT_CERT_AUTH",
    /// Make a certificate for peers
    peer_auto_tls = "ETCD_PEER_AUTO_TLS",
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

impl TlsArgs {
    pub(super) fn client(&self) -> TlsFiles {
        TlsFiles {
            certificate: path(&self.cert_file),
            key: path(&self.key_file),
            client_certificate: None,
            client_key: None,
            authorities: path(&self.trusted_ca_file),
            cert_auth: self.client_cert_auth,
            revoked: path(&self.client_crl_file),
            auto: self.auto_tls,
        }
    }

    pub(super) fn peer(&self) -> TlsFiles {
        TlsFiles {
            certificate: path(&self.peer_cert_file),
            key: path(&self.peer_key_file),
            client_certificate: path(&self.peer_client_cert_file),
            client_key: path(&self.peer_client_key_file),
            authorities: path(&self.peer_trusted_ca_file),
            cert_auth: self.peer_client_cert_auth,
            revoked: path(&self.peer_crl_file),
            auto: self.peer_auto_tls,
        }
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            version_min: self.tls_min_version.clone(),
            version_max: self.tls_max_version.clone(),
            suites: self.cipher_suites.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        }
    }

    pub(super) fn validity_years(&self) -> u32 {
        self.self_signed_cert_validity
    }
}
