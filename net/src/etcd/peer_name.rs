//! The name in a client's certificate, on its way from the TLS layer to authentication.
//!
//! Whoever ends TLS on the client port puts [`ClientCertName`] into the extensions of each request of a connection whose
//! client certificate was verified (`--client-cert-auth`) and has a common name. Authentication takes a request that
//! brings no token for one of that user, as etcd does. Requests without it are nobody's until they bring a token.

use tonic::Extensions;

/// The common name (CN) of the verified certificate that the client showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertName(pub String);

/// The name that a request came with. An empty one names nobody.
pub(super) fn cert_name(extensions: &Extensions) -> Option<&str> {
    extensions.get::<ClientCertName>().map(|name| name.0.as_str()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_unless_it_is_empty() {
        let mut extensions = Extensions::new();
        assert_eq!(cert_name(&extensions), None);
        extensions.insert(ClientCertName(String::new()));
        assert_eq!(cert_name(&extensions), None);
        extensions.insert(ClientCertName("alice".into()));
        assert_eq!(cert_name(&extensions), Some("alice"));
    }
}
