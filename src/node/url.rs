//! etcd's URLs: where to listen, and what to tell others.

use anyhow::{Result, bail, ensure};
use std::fmt;
use std::str::FromStr;

/// How a URL is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    /// True when TLS is spoken.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }

    /// True for a Unix socket.
    #[must_use]
    pub fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::Unixs)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
            Self::Unixs => "unixs",
        }
    }
}

/// A URL without path, query or user: `http://host:port`, `unix://path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// How.
    pub scheme: Scheme,
    /// `host:port`, or the socket's path.
    pub address: String,
}

impl Url {
    /// A plain TCP URL.
    #[must_use]
    pub fn http(address: impl Into<String>) -> Self {
        Self { scheme: Scheme::Http, address: address.into() }
    }

    /// The port; 0 for a Unix socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        if self.scheme.is_unix() { 0 } else { super::config::port_of(&self.address) }
    }

    /// True when others cannot use it to reach us: any address, or a socket of this host.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        super::config::is_wildcard(&self.address)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.address)
    }
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> Result<Self> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("unix", rest)) => (Scheme::Unix, rest),
            Some(("unixs", rest)) => (Scheme::Unixs, rest),
            Some((other, _)) => bail!("{url}: URL scheme must be http, https, unix, or unixs: {other}://"),
            None => bail!("{url}: URL scheme must be http, https, unix, or unixs"),
        };
        if scheme.is_unix() {
            ensure!(!rest.is_empty(), "{url}: no path of a socket");
            return Ok(Self { scheme, address: rest.to_owned() });
        }
        let address = rest.trim_end_matches('/');
        ensure!(!address.contains('/'), "{url}: URL must not contain a path");
        let port = address.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok());
        ensure!(port.is_some(), "{url}: URL address does not have the form \"host:port\"");
        Ok(Self { scheme, address: address.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for good in ["http://10.0.0.1:2379", "https://a:1", "unix:///run/etcd.sock", "unixs://localhost:2379", "http://[::1]:1"] {
            assert_eq!(good.parse::<Url>().expect(good).to_string(), good);
        }
        assert_eq!("http://localhost:2379/".parse::<Url>().expect("slash").address, "localhost:2379");
        for bad in ["10.0.0.1:2379", "http://host", "ftp://a:1", "http://a:99999", "http://a:1/x", "unix://", ""] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
