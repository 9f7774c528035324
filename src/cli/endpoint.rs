//! Flags of the commands that speak etcd's protocol to an endpoint, with etcdctl's names.

use anyhow::{Context, Result, bail};
use brickraft_net::etcd::client::Client;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Endpoint {
    /// Comma-separated URLs of members' client ports
    #[arg(long, env = "ETCDCTL_ENDPOINTS", default_value = "127.0.0.1:2379")]
    endpoints: String,
    /// NAME:PASSWORD, where users are in use
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true)]
    user: Option<String>,
    /// How the answer is printed
    #[arg(short = 'w', long = "write-out", default_value = "simple", value_parser = ["simple", "table", "json"])]
    pub(crate) write_out: String,
}

impl Endpoint {
    pub(crate) fn all(&self) -> Vec<&str> {
        self.endpoints.split(',').map(str::trim).filter(|e| !e.is_empty()).collect()
    }

    /// The only endpoint, for what one member is asked.
    pub(crate) fn one(&self) -> Result<&str> {
        match self.all()[..] {
            [endpoint] => Ok(endpoint),
            [] => bail!("--endpoints: no endpoint is given"),
            ref many => bail!("snapshot must be requested to one selected node, not multiple {many:?}"),
        }
    }

    async fn login(&self, mut client: Client) -> Result<Client> {
        if let Some(user) = &self.user {
            let (name, password) = user.split_once(':').context("--user: NAME:PASSWORD is wanted")?;
            client.login(name, password).await?;
        }
        Ok(client)
    }

    pub(crate) async fn connect_one(&self) -> Result<Client> {
        self.login(Client::connect(self.one()?).await?).await
    }

    /// The first endpoint that answers.
    pub(crate) async fn connect(&self) -> Result<Client> {
        let mut last = None;
        for endpoint in self.all() {
            match Client::connect(endpoint).await {
                Ok(client) => return self.login(client).await,
                Err(e) => last = Some(e),
            }
        }
        Err(last.map_or_else(|| anyhow::anyhow!("--endpoints: no endpoint is given"), Into::into))
    }
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
