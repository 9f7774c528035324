//! Tokens: what clients show instead of a password.
//!
//! A simple token is `name and dates . signature`, signed with a key that every member has from the log (drawn when
//! authentication was switched on). So no member needs to be told of it: a token that one member gave out is good at all of
//! them, after their restarts too, and giving it out writes nothing. It lives for `--auth-token-ttl` from when it was
//! given out; a member that sees it used before that keeps it going for as long again from each use, as etcd does, and
//! forgets that when it restarts. A change of the user's password, its deletion, or switching authentication off voids it.

use super::jwt::JwtKeys;
use brickraft_engine::kv::auth::{AuthError, AuthState, Identity};
use ring::hmac;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tokens that a member remembers; others are good until their own end, and looked at anew each time.
const REMEMBERED_MAX: usize = 100_000;
/// A longer token is none of ours.
const TOKEN_BYTES_MAX: usize = 4096;

/// What kind of tokens are given out and taken.
#[derive(Clone, Debug)]
pub enum TokenKind {
    /// Simple tokens with this time to live.
    Simple(Duration),
    /// JSON Web Tokens.
    Jwt(std::sync::Arc<JwtKeys>),
}

/// A token that was looked at.
struct Seen {
    user: String,
    /// Of a simple token: the revision that set the password. Of a JWT: the one it carries.
    revision: u64,
    /// Of a simple token: when authentication was switched on.
    enabled_at: u64,
    expires: Instant,
}

/// The tokens of one member.
pub(in super::super) struct Tokens {
    kind: TokenKind,
    seen: Mutex<HashMap<String, Seen>>,
}

/// What is signed, in postcard.
#[derive(serde::Serialize, serde::Deserialize)]
struct Simple {
    user: String,
    since: u64,
    enabled_at: u64,
    issued_s: u64,
    /// Makes each token its own.
    nonce: u64,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| Some((digit(pair[0])? << 4) | digit(pair[1])?)).collect())?
}

fn key_of(auth: &AuthState) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, auth.token_key())
}

impl Simple {
    fn sign(&self, auth: &AuthState) -> Option<String> {
        let body = postcard::to_allocvec(self).ok()?;
        Some(format!("{}.{}", hex(&body), hex(hmac::sign(&key_of(auth), &body).as_ref())))
    }

    fn open(auth: &AuthState, token: &str) -> Option<Self> {
        let (body, signature) = token.split_once('.')?;
        let (body, signature) = (unhex(body)?, unhex(signature)?);
        hmac::verify(&key_of(auth), &body, &signature).ok()?;
        postcard::from_bytes(&body).ok()
    }
}

impl Tokens {
    pub(in super::super) fn new(kind: TokenKind) -> Self {
        Self { kind, seen: Mutex::default() }
    }

    /// Whether a token says the auth revision that it is good for, so that a change makes it useless.
    pub(super) fn are_dated(&self) -> bool {
        matches!(self.kind, TokenKind::Jwt(_))
    }

    /// A token for a user that has shown its password.
    pub(super) fn assign(&self, auth: &AuthState, user: &str) -> Result<String, AuthError> {
        match &self.kind {
            TokenKind::Jwt(keys) => keys.sign(user, auth.revision(), now_s()).ok_or(AuthError::AuthFailed),
            TokenKind::Simple(_) => {
                let since = auth.user(user).ok_or(AuthError::AuthFailed)?.since;
                let token =
                    Simple { user: user.to_owned(), since, enabled_at: auth.enabled_at(), issued_s: now_s(), nonce: rand::random() };
                token.sign(auth).ok_or(AuthError::AuthFailed)
            }
        }
    }

    /// Whose token it is. The revision in the answer is the one to be judged by.
    pub(super) fn identify(&self, auth: &AuthState, token: &str) -> Result<Identity, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::InvalidToken);
        }
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get_mut(token) {
            if known.expires <= now {
                seen.remove(token);
                // A JWT's end is final. A simple token may be younger than this member's memory of it tells, but then
                // it would not have ended here: both ends are at least so long after it was given out.
                return Err(AuthError::InvalidToken);
            }
            let identity = self.still_good(auth, known)?;
            if let TokenKind::Simple(ttl) = self.kind {
                known.expires = now + ttl;
            }
            return Ok(identity);
        }
        let fresh = self.look_at(auth, token, now).ok_or(AuthError::InvalidToken)?;
        let identity = self.still_good(auth, &fresh)?;
        if seen.len() >= REMEMBERED_MAX {
            seen.retain(|_, known| known.expires > now);
        }
        if seen.len() < REMEMBERED_MAX {
            seen.insert(token.to_owned(), fresh);
        }
        Ok(identity)
    }

    fn still_good(&self, auth: &AuthState, seen: &Seen) -> Result<Identity, AuthError> {
        let revision = match self.kind {
            TokenKind::Jwt(_) => seen.revision,
            TokenKind::Simple(_) => {
                let same = auth.user(&seen.user).is_some_and(|user| user.since == seen.revision) && seen.enabled_at == auth.enabled_at();
                if !same {
                    return Err(AuthError::InvalidToken);
                }
                auth.revision()
            }
        };
        Ok(Identity { user: seen.user.clone(), revision })
    }

    fn look_at(&self, auth: &AuthState, token: &str, now: Instant) -> Option<Seen> {
        match &self.kind {
            TokenKind::Jwt(keys) => {
                let claims = keys.verify(token)?;
                let left = claims.exp.checked_sub(now_s()).filter(|left| *left > 0)?;
                Some(Seen {
                    user: claims.username,
                    revision: claims.revision,
                    enabled_at: 0,
                    expires: now + Duration::from_secs(left.min(u64::from(u32::MAX))),
                })
            }
            TokenKind::Simple(ttl) => {
                let simple = Simple::open(auth, token)?;
                // Where this member's clock is behind the other's, the token is new.
                let age = Duration::from_secs(now_s().saturating_sub(simple.issued_s));
                (age < *ttl).then(|| Seen { user: simple.user, revision: simple.since, enabled_at: simple.enabled_at, expires: now + *ttl })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        assert_eq!(unhex(&hex(&[0, 1, 0xab, 0xff])), Some(vec![0, 1, 0xab, 0xff]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex("é"), None);
    }
}
