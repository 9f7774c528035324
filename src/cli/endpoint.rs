//! Flags of the commands that speak etcd's protocol to an endpoint, with etcdctl's names.

use anyhow::{Context, Result, bail, ensure};
use brickraft_net::duration::go_duration;
use brickraft_net::etcd::client::{Client, Dial, endpoint_tls};
use brickraft_net::tls::{Connector, Trust};
use clap::Args;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const ENDPOINT: &str = "127.0.0.1:2379";

/// All texts, because etcdctl counts an empty variable as none.
#[derive(Debug, Args)]
pub(crate) struct Endpoint {
    /// Comma-separated URLs of members' client ports
    #[arg(long, env = "ETCDCTL_ENDPOINTS", default_value = ENDPOINT)]
    endpoints: String,
    /// NAME[:PASSWORD], where users are in use; without a password it is asked for
    #[arg(long, env = "ETCDCTL_USER", default_value = "", hide_default_value = true)]
    user: String,
    /// The password, where --user does not have it
    #[arg(long, env = "ETCDCTL_PASSWORD", default_value = "", hide_default_value = true, hide_env_values = true)]
    password: String,
    /// Certificate authorities for servers' certificates; the system's by default
    #[arg(long, env = "ETCDCTL_CACERT", default_value = "", hide_default_value = true)]
    cacert: String,
    /// Certificate to show to servers
    #[arg(long, env = "ETCDCTL_CERT", default_value = "", hide_default_value = true)]
    cert: String,
    /// Its key
    #[arg(long, env = "ETCDCTL_KEY", default_value = "", hide_default_value = true)]
    key: String,
    /// Take any certificate of a server
    #[arg(
        long, env = "ETCDCTL_INSECURE_SKIP_TLS_VERIFY", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true"
    )]
    insecure_skip_tls_verify: String,
    /// With =false, endpoints without a scheme speak TLS
    #[arg(
        long, env = "ETCDCTL_INSECURE_TRANSPORT", num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true"
    )]
    insecure_transport: String,
    /// How long a connection may take to come about
    #[arg(long, env = "ETCDCTL_DIAL_TIMEOUT", default_value = "2s")]
    dial_timeout: String,
    /// How long an answer may take, connections not counted; backups may take as long as they do
    #[arg(long, env = "ETCDCTL_COMMAND_TIMEOUT", default_value = "5s")]
    command_timeout: String,
    /// How the answer is printed
    #[arg(
        short = 'w', long = "write-out", env = "ETCDCTL_WRITE_OUT", default_value = "simple",
        value_parser = ["simple", "table", "json"]
    )]
    pub(crate) write_out: String,
}

fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn truth(flag: &str, text: &str, default: bool) -> Result<bool> {
    match given(text) {
        None => Ok(default),
        Some(text) => super::etcd::truth(text).with_context(|| format!("--{flag}={text}: true or false is wanted")),
    }
}

fn duration(flag: &str, text: &str, default: Duration) -> Result<Duration> {
    match given(text) {
        None => Ok(default),
        Some(text) => go_duration(text).with_context(|| format!("--{flag}={text}: a duration such as 5s is wanted")),
    }
}

impl Endpoint {
    pub(crate) fn all(&self) -> Vec<&str> {
        let endpoints = given(&self.endpoints).unwrap_or(ENDPOINT);
        endpoints.split(',').map(str::trim).filter(|e| !e.is_empty()).collect()
    }

    /// The only endpoint, for what one member is asked.
    pub(crate) fn one(&self) -> Result<&str> {
        match self.all()[..] {
            [endpoint] => Ok(endpoint),
            [] => bail!("--endpoints: no endpoint is given"),
            ref many => bail!("snapshot must be requested to one selected node, not multiple {many:?}"),
        }
    }

    /// What speaks TLS to `endpoint`; `None` where it speaks none. As in etcdctl: the scheme decides, and without one, whether
    /// a flag about TLS is given.
    fn tls(&self, endpoint: &str) -> Result<Option<Connector>> {
        let (cacert, cert, key) = (given(&self.cacert), given(&self.cert), given(&self.key));
        ensure!(
            cert.is_some() == key.is_some(),
            "KeyFile and CertFile must both be present[key: {}, cert: {}]",
            key.unwrap_or_default(),
            cert.unwrap_or_default()
        );
        let insecure = truth("insecure-transport", &self.insecure_transport, true)?;
        let anybody = truth("insecure-skip-tls-verify", &self.insecure_skip_tls_verify, false)?;
        let wanted = cacert.is_some() || cert.is_some() || !insecure;
        if !endpoint_tls(endpoint).unwrap_or(wanted) {
            return Ok(None);
        }
        let read = |flag: &str, path: &str| std::fs::read(path).with_context(|| format!("--{flag}: read {path}"));
        let trust = match cacert {
            _ if anybody => Trust::Anybody,
            Some(path) => Trust::Pem(read("cacert", path)?),
            None => Trust::Der(rustls_native_certs::load_native_certs().certs.iter().map(|c| c.to_vec()).collect()),
        };
        let shown = match (cert, key) {
            (Some(cert), Some(key)) => Some((read("cert", cert)?, read("key", key)?)),
            _ => None,
        };
        let connector = Connector::for_client(&trust, shown.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice())));
        Ok(Some(connector.context("TLS for endpoints (--cacert, --cert, --key)")?))
    }

    fn dial(&self, endpoint: &str) -> Result<Dial> {
        let default = Dial::default();
        let answer = default.request_timeout.unwrap_or_default();
        Ok(Dial {
            tls: self.tls(endpoint)?,
            connect_timeout: duration("dial-timeout", &self.dial_timeout, default.connect_timeout)?,
            request_timeout: Some(duration("command-timeout", &self.command_timeout, answer)?),
        })
    }

    async fn login(&self, mut client: Client) -> Result<Client> {
        if let Some(user) = given(&self.user) {
            let (name, password) = match (user.split_once(':'), given(&self.password)) {
                // With --password, all of --user is the name.
                (_, Some(password)) => (user, password.to_owned()),
                (Some((name, password)), None) => (name, password.to_owned()),
                (None, None) => (user, ask_password()?),
            };
            client.login(name, &password).await?;
        }
        Ok(client)
    }

    /// A connection to whatever member, nobody being logged in.
    pub(crate) async fn open(&self, endpoint: &str) -> Result<Client> {
        Ok(Client::connect(endpoint, &self.dial(endpoint)?).await?)
    }

    /// For a backup, which takes as long as it does.
    pub(crate) async fn connect_one(&self) -> Result<Client> {
        let endpoint = self.one()?;
        let dial = Dial { request_timeout: None, ..self.dial(endpoint)? };
        self.login(Client::connect(endpoint, &dial).await?).await
    }

    /// The first endpoint that answers.
    pub(crate) async fn connect(&self) -> Result<Client> {
        let mut last = None;
        for endpoint in self.all() {
            match self.open(endpoint).await {
                Ok(client) => return self.login(client).await,
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("--endpoints: no endpoint is given")))
    }
}

/// Keeps a terminal from showing what is typed, until it is dropped.
struct Silent;

impl Silent {
    fn stty(word: &str) {
        // Where there is no stty the password is seen, and no more.
        let _ = std::fs::File::open("/dev/tty").and_then(|tty| Command::new("stty").arg(word).stdin(tty).stderr(Stdio::null()).status());
    }

    fn start() -> Self {
        Self::stty("-echo");
        Self
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        Self::stty("echo");
    }
}

fn ask_password() -> Result<String> {
    let tty = || std::fs::File::options().read(true).write(true).open("/dev/tty");
    let mut out = tty().context("--user has no password, and there is no terminal to ask for it")?;
    let silent = Silent::start();
    write!(out, "Password: ").context("ask for the password")?;
    let mut password = String::new();
    BufReader::new(tty()?).read_line(&mut password).context("read the password")?;
    drop(silent);
    writeln!(out).context("ask for the password")?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

/// Runs a command's conversation with a server.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?.block_on(work)
}

/// A table as etcdctl draws it.
pub(crate) fn grid(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([head[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let rule = widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("+");
    // Heads stand in the middle, numbers to the right.
    let head: Vec<String> = head.iter().zip(&widths).map(|(h, &w)| format!(" {h:^w$} ")).collect();
    let cell = |text: &String, w: usize| if text.parse::<f64>().is_ok() { format!(" {text:>w$} ") } else { format!(" {text:<w$} ") };
    let mut out = format!("+{rule}+\n|{}|\n+{rule}+\n", head.join("|"));
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(text, &w)| cell(text, w)).collect();
        out.push_str(&format!("|{}|\n", cells.join("|")));
    }
    out.push_str(&format!("+{rule}+"));
    out
}

/// A size as etcdctl writes it: powers of 1000, two digits.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_sizes_look_like_etcds() {
        let drawn = grid(&["HASH", "REVISION"], &[vec!["fe01cf57".into(), "10".into()]]);
        assert_eq!(
            drawn,
            "+----------+----------+\n|   HASH   | REVISION |\n+----------+----------+\n| fe01cf57 |       10 |\n+----------+----------+"
        );
        for (bytes, text) in [(9, "9 B"), (20_480, "20 kB"), (2_100_000, "2.1 MB"), (999, "999 B")] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
