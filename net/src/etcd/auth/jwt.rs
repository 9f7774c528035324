//! JSON Web Tokens, with etcd's claims: `username`, `revision` and `exp`.
//!
//! The tokens are the crate jsonwebtoken's affair; the cryptography is ring's, as TLS's is, by way of a provider that is
//! given to that crate here.

use crate::duration::go_duration;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey, Header, Validation};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature as rs;
use ring::signature::KeyPair as _;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error as ThisError;

/// etcd's default time to live.
const TTL_DEFAULT: Duration = Duration::from_secs(300);

/// Why `--auth-token` is not taken.
#[derive(Debug, PartialEq, Eq, ThisError)]
pub enum TokenSpecError {
    /// Neither `simple` nor `jwt`.
    #[error("--auth-token {0:?}: it must be simple, or jwt with its options")]
    Kind(String),
    /// Not `name=value`, or twice.
    #[error("--auth-token: {0:?} is no option, or is given twice")]
    Option(String),
    /// An option with a value that means nothing.
    #[error("--auth-token: {option} {value:?} {why}")]
    Value {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A needed option is missing.
    #[error("--auth-token jwt needs {0}")]
    Missing(&'static str),
    /// A key that cannot be used.
    #[error("--auth-token: the {0} key does not fit the sign-method: {1}")]
    Key(&'static str, String),
}

/// What `--auth-token` says, before its key files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSpec {
    /// `simple`.
    Simple,
    /// `jwt,...`.
    Jwt {
        /// The signature's algorithm.
        method: Algorithm,
        /// `pub-key`: a file's name.
        public: Option<String>,
        /// `priv-key`: a file's name; for HS methods it holds the secret.
        private: Option<String>,
        /// `ttl`.
        ttl: Duration,
    },
}

fn algorithm(method: &str) -> Result<Algorithm, TokenSpecError> {
    Ok(match method {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        other => {
            let why = if other == "ES512" { "is not supported yet" } else { "is unknown" };
            return Err(TokenSpecError::Value { option: "sign-method", value: other.to_owned(), why });
        }
    })
}

impl TokenSpec {
    /// Reads the flag.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TokenSpecError> {
        let mut parts = text.split(',');
        match parts.next() {
            Some("simple") if text == "simple" => return Ok(Self::Simple),
            Some("jwt") => {}
            _ => return Err(TokenSpecError::Kind(text.to_owned())),
        }
        let (mut method, mut public, mut private, mut ttl) = (None, None, None, None);
        for part in parts {
            let bad = || TokenSpecError::Option(part.to_owned());
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            let place = match name {
                "sign-method" => &mut method,
                "pub-key" => &mut public,
                "priv-key" => &mut private,
                "ttl" => &mut ttl,
                _ => return Err(bad()),
            };
            if place.replace(value.to_owned()).is_some() {
                return Err(bad());
            }
        }
        let method = algorithm(&method.ok_or(TokenSpecError::Missing("sign-method"))?)?;
        if public.is_none() && private.is_none() {
            return Err(TokenSpecError::Missing("pub-key or priv-key"));
        }
        let wrong = |value: &String| TokenSpecError::Value { option: "ttl", value: value.clone(), why: "is no duration, as 5m is" };
        let ttl = ttl.map_or(Ok(TTL_DEFAULT), |text| go_duration(&text).filter(|ttl| !ttl.is_zero()).ok_or_else(|| wrong(&text)))?;
        Ok(Self::Jwt { method, public, private, ttl })
    }
}

/// What a token says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) username: String,
    pub(super) revision: u64,
    /// Seconds since 1970.
    pub(super) exp: u64,
}

/// Keys to check tokens with, and perhaps to make them.
pub struct JwtKeys {
    method: Algorithm,
    ttl: Duration,
    signing: Option<EncodingKey>,
    checking: DecodingKey,
}

impl std::fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKeys").field("method", &self.method).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

fn is_hmac(method: Algorithm) -> bool {
    method.family() == AlgorithmFamily::Hmac
}

fn unfit(which: &'static str) -> impl Fn(Error) -> TokenSpecError {
    move |e| TokenSpecError::Key(which, e.to_string())
}

fn private_key(method: Algorithm, bytes: &[u8]) -> Result<EncodingKey, TokenSpecError> {
    match method.family() {
        AlgorithmFamily::Hmac => Ok(EncodingKey::from_secret(bytes)),
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(bytes).map_err(unfit("private")),
        AlgorithmFamily::Ec => EncodingKey::from_ec_pem(bytes)
            .map_err(|e| TokenSpecError::Key("private", format!("{e} (it must be PKCS #8: openssl pkcs8 -topk8 -nocrypt -in KEY)"))),
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(bytes).map_err(unfit("private")),
    }
}

fn public_key(method: Algorithm, bytes: &[u8]) -> Result<DecodingKey, TokenSpecError> {
    match method.family() {
        AlgorithmFamily::Hmac => Ok(DecodingKey::from_secret(bytes)),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(bytes),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(bytes),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(bytes),
    }
    .map_err(unfit("public"))
}

/// The public half of a private key.
fn public_of(method: Algorithm, private: &EncodingKey) -> Result<DecodingKey, Error> {
    let der = private.as_bytes();
    Ok(match method.family() {
        AlgorithmFamily::Hmac => DecodingKey::from_secret(der),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_der(rsa_pair(der)?.public_key().as_ref()),
        AlgorithmFamily::Ec => DecodingKey::from_ec_der(ec_pair(method, der)?.public_key().as_ref()),
        AlgorithmFamily::Ed => DecodingKey::from_ed_der(ed_pair(der)?.public_key().as_ref()),
    })
}

impl JwtKeys {
    /// Keys out of files' contents: PEM, but for the secret of an HS method. With a public key alone, tokens are checked
    /// and none are made.
    ///
    /// # Errors
    /// Keys that do not fit the method, or each other.
    pub fn new(method: Algorithm, public: Option<&[u8]>, private: Option<&[u8]>, ttl: Duration) -> Result<Self, TokenSpecError> {
        // There is one provider in a process; whichever of this program's installed it is this one.
        let _ = PROVIDER.install_default();
        if is_hmac(method) && private.is_none_or(<[u8]>::is_empty) {
            return Err(TokenSpecError::Missing("priv-key: the file that holds the secret"));
        }
        let signing = private.map(|bytes| private_key(method, bytes)).transpose()?;
        let checking = match (&signing, public) {
            (None, None) => return Err(TokenSpecError::Missing("pub-key or priv-key")),
            (Some(private), _) if is_hmac(method) => DecodingKey::from_secret(private.as_bytes()),
            (_, Some(bytes)) => public_key(method, bytes)?,
            (Some(private), None) => public_of(method, private).map_err(unfit("private"))?,
        };
        let keys = Self { method, ttl, signing, checking };
        // A pair that does not match is found now, not at the first log-in.
        let probe = keys.sign("probe", 1, jsonwebtoken::get_current_timestamp());
        if keys.signing.is_some() && probe.is_none_or(|token| keys.verify(&token).is_none()) {
            return Err(TokenSpecError::Key("private", "public and private keys don't match".into()));
        }
        Ok(keys)
    }

    /// `None` where there is no private key.
    pub(super) fn sign(&self, user: &str, revision: u64, now_s: u64) -> Option<String> {
        let claims = Claims { username: user.to_owned(), revision, exp: now_s + self.ttl.as_secs().max(1) };
        jsonwebtoken::encode(&Header::new(self.method), &claims, self.signing.as_ref()?).ok()
    }

    /// `None` for what is no token of ours, or has run out.
    pub(super) fn verify(&self, token: &str) -> Option<Claims> {
        let mut validation = Validation::new(self.method);
        validation.leeway = 0;
        validation.validate_aud = false;
        Some(jsonwebtoken::decode::<Claims>(token, &self.checking, &validation).ok()?.claims)
    }
}

fn rsa_pair(der: &[u8]) -> Result<rs::RsaKeyPair, Error> {
    let pair = rs::RsaKeyPair::from_der(der).or_else(|_| rs::RsaKeyPair::from_pkcs8(der));
    pair.map_err(|e| ErrorKind::InvalidRsaKey(e.to_string()).into())
}

fn ec_pair(method: Algorithm, der: &[u8]) -> Result<rs::EcdsaKeyPair, Error> {
    let kind = if method == Algorithm::ES256 { &rs::ECDSA_P256_SHA256_FIXED_SIGNING } else { &rs::ECDSA_P384_SHA384_FIXED_SIGNING };
    rs::EcdsaKeyPair::from_pkcs8(kind, der, &SystemRandom::new()).map_err(|_| ErrorKind::InvalidEcdsaKey.into())
}

fn ed_pair(der: &[u8]) -> Result<rs::Ed25519KeyPair, Error> {
    rs::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| ErrorKind::InvalidEddsaKey.into())
}

fn hmac_kind(method: Algorithm) -> hmac::Algorithm {
    match method {
        Algorithm::HS384 => hmac::HMAC_SHA384,
        Algorithm::HS512 => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    }
}

fn rsa_padding(method: Algorithm) -> &'static dyn rs::RsaEncoding {
    match method {
        Algorithm::RS384 => &rs::RSA_PKCS1_SHA384,
        Algorithm::RS512 => &rs::RSA_PKCS1_SHA512,
        Algorithm::PS256 => &rs::RSA_PSS_SHA256,
        Algorithm::PS384 => &rs::RSA_PSS_SHA384,
        Algorithm::PS512 => &rs::RSA_PSS_SHA512,
        _ => &rs::RSA_PKCS1_SHA256,
    }
}

fn verification(method: Algorithm) -> &'static dyn rs::VerificationAlgorithm {
    match method {
        Algorithm::RS384 => &rs::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &rs::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &rs::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &rs::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &rs::RSA_PSS_2048_8192_SHA512,
        Algorithm::ES256 => &rs::ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &rs::ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDSA => &rs::ED25519,
        _ => &rs::RSA_PKCS1_2048_8192_SHA256,
    }
}

/// A key of ring's.
enum RingKey {
    Hmac(hmac::Key),
    Rsa(rs::RsaKeyPair),
    Ec(rs::EcdsaKeyPair),
    Ed(rs::Ed25519KeyPair),
}

struct RingSigner(Algorithm, RingKey);

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let random = SystemRandom::new();
        let failed = |_| SignatureError::new();
        match &self.1 {
            RingKey::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            RingKey::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(rsa_padding(self.0), &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            RingKey::Ec(pair) => Ok(pair.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            RingKey::Ed(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

struct RingVerifier(Algorithm, Vec<u8>);

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let good = if is_hmac(self.0) {
            hmac::verify(&hmac::Key::new(hmac_kind(self.0), &self.1), message, signature)
        } else {
            rs::UnparsedPublicKey::new(verification(self.0), &self.1).verify(message, signature)
        };
        good.map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

fn signer(method: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if key.family() != method.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let der = key.as_bytes();
    let key = match method.family() {
        AlgorithmFamily::Hmac => RingKey::Hmac(hmac::Key::new(hmac_kind(*method), der)),
        AlgorithmFamily::Rsa => RingKey::Rsa(rsa_pair(der)?),
        AlgorithmFamily::Ec => RingKey::Ec(ec_pair(*method, der)?),
        AlgorithmFamily::Ed => RingKey::Ed(ed_pair(der)?),
    };
    Ok(Box::new(RingSigner(*method, key)))
}

fn verifier(method: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) if key.family() == method.family() => Ok(Box::new(RingVerifier(*method, bytes.clone()))),
        _ => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

static PROVIDER: CryptoProvider =
    CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };
