//! The flags of authentication, as etcd names them.

use anyhow::{Context, Result, bail};
use brickraft_net::etcd::{AuthSettings, BCRYPT_COST_DEFAULT, JwtKeys, TokenKind, TokenSpec};
use clap::Args;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct AuthArgs {
    /// Clients' tokens: "simple", or "jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=5m"
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple")]
    auth_token: String,
    /// Time to live of simple tokens, in seconds
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300)]
    auth_token_ttl: u32,
    /// Cost of hashing passwords with bcrypt: each step doubles it
    #[arg(long, env = "ETCD_BCRYPT_COST", default_value_t = BCRYPT_COST_DEFAULT)]
    bcrypt_cost: u32,
}

fn read(file: Option<&String>) -> Result<Option<Vec<u8>>> {
    file.map(|file| std::fs::read(file).with_context(|| format!("--auth-token: read {file}"))).transpose()
}

impl AuthArgs {
    /// Reads the key files.
    pub(super) fn settings(&self) -> Result<AuthSettings> {
        let tokens = match TokenSpec::parse(&self.auth_token)? {
            TokenSpec::Simple if self.auth_token_ttl == 0 => bail!("--auth-token-ttl must be at least 1 (seconds)"),
            TokenSpec::Simple => TokenKind::Simple(Duration::from_secs(self.auth_token_ttl.into())),
            TokenSpec::Jwt { method, public, private, ttl } => {
                let (public, private) = (read(public.as_ref())?, read(private.as_ref())?);
                TokenKind::Jwt(Arc::new(JwtKeys::new(method, public.as_deref(), private.as_deref(), ttl)?))
            }
        };
        let settings = AuthSettings { bcrypt_cost: self.bcrypt_cost, tokens };
        if settings.cost() != self.bcrypt_cost {
            tracing::warn!("--bcrypt-cost {}: bcrypt's costs go from 4 to 31; using {}", self.bcrypt_cost, settings.cost());
        }
        Ok(settings)
    }
}
