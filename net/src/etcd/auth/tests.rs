//! Tokens and their keys.

use super::*;
use jsonwebtoken::Algorithm;

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

#[test]
fn the_flag_is_read() {
    assert_eq!(TokenSpec::parse("simple"), Ok(TokenSpec::Simple));
    let read = TokenSpec::parse("jwt,pub-key=a.pem,priv-key=b.pem,sign-method=RS256,ttl=1h30m");
    let wanted = TokenSpec::Jwt { method: Algorithm::RS256, public: Some("a.pem".into()), private: Some("b.pem".into()), ttl: minutes(90) };
    assert_eq!(read, Ok(wanted));
    let Ok(TokenSpec::Jwt { ttl, .. }) = TokenSpec::parse("jwt,priv-key=k,sign-method=HS256") else { panic!("a default") };
    assert_eq!(ttl, minutes(5));
    for bad in [
        "",
        "other",
        "simple,ttl=1s",
        "jwt",
        "jwt,sign-method=RS256",
        "jwt,priv-key=k",
        "jwt,sign-method=none,priv-key=k",
        "jwt,sign-method=HS256,priv-key=k,ttl=x",
        "jwt,sign-method=HS256,priv-key=k,ttl=0s",
        "jwt,sign-method=HS256,priv-key=k,priv-key=l",
        "jwt,sign-method=HS256,priv-key=k,what=1",
        "jwt,priv-key",
    ] {
        assert!(TokenSpec::parse(bad).is_err(), "{bad}");
    }
}

/// The key files of the tests were made by openssl.
const RSA_PRIVATE: &[u8] = include_bytes!("testdata/rsa.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("testdata/rsa.pub.pem");
const EC_PRIVATE: &[u8] = include_bytes!("testdata/ec.pem");
const EC_PUBLIC: &[u8] = include_bytes!("testdata/ec.pub.pem");
const ED_PRIVATE: &[u8] = include_bytes!("testdata/ed.pem");
const ED_PUBLIC: &[u8] = include_bytes!("testdata/ed.pub.pem");

#[test]
fn every_method_signs_and_checks() {
    use Algorithm::*;
    let now = jsonwebtoken::get_current_timestamp();
    for (method, private, public) in [
        (HS256, &b"secret"[..], None),
        (HS384, b"secret", None),
        (HS512, b"secret", None),
        (RS256, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (RS384, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (RS512, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (PS256, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (PS384, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (PS512, RSA_PRIVATE, Some(RSA_PUBLIC)),
        (ES256, EC_PRIVATE, Some(EC_PUBLIC)),
        (EdDSA, ED_PRIVATE, Some(ED_PUBLIC)),
    ] {
        let keys = JwtKeys::new(method, public, Some(private), minutes(5)).unwrap_or_else(|e| panic!("{method:?}: {e}"));
        let token = keys.sign("alice", 7, now).expect("sign");
        let claims = keys.verify(&token).expect("verify");
        assert_eq!((claims.username.as_str(), claims.revision, claims.exp), ("alice", 7, now + 300), "{method:?}");
        assert!(keys.verify(&token[..token.len() - 2]).is_none() && keys.verify("a.b.c").is_none());
        assert!(keys.verify(&keys.sign("alice", 7, now - 301).expect("sign")).is_none(), "{method:?}: it has run out");
        // With the private key alone; and a member that only checks.
        let alone = JwtKeys::new(method, None, Some(private), minutes(5)).expect("the private key is enough");
        assert!(alone.verify(&token).is_some());
        if let Some(public) = public {
            let checks = JwtKeys::new(method, Some(public), None, minutes(5)).expect("the public key is enough to check");
            assert!(checks.verify(&token).is_some() && checks.sign("alice", 7, now).is_none());
        }
    }
    // No token of another method, not even with the public key as the secret.
    let rsa = JwtKeys::new(RS256, Some(RSA_PUBLIC), None, minutes(5)).expect("keys");
    let forged = JwtKeys::new(HS256, None, Some(RSA_PUBLIC), minutes(5)).expect("keys").sign("root", 7, now).expect("sign");
    assert!(rsa.verify(&forged).is_none());
    assert!(JwtKeys::new(RS256, Some(RSA_PUBLIC), Some(EC_PRIVATE), minutes(5)).is_err(), "a key of another kind");
    assert!(JwtKeys::new(RS256, Some(b"nonsense"), None, minutes(5)).is_err());
    assert!(JwtKeys::new(HS256, None, Some(b""), minutes(5)).is_err(), "an empty secret");
}
