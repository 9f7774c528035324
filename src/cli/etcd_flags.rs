//! etcd's flags that mean nothing here: accepted, so that scripts and unit files go on working, and told in the log
//! once. A flag whose meaning would be missed is accepted only with the values that ask for nothing.
//!
//! SEMANTICS.md lists them; a test compares. A flag that gets a meaning moves to [`super::server::ServerArgs`]: what is
//! defined there is left out here.

use anyhow::{Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// What may be said to a flag.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// True or false, `--flag` alone being true.
    Bool,
    /// Anything.
    Text,
    /// One of these; anything else is refused.
    Only(&'static [&'static str]),
    /// False, or nothing at all.
    False,
}

/// A flag: its name, what it takes, and why it has no effect.
struct Flag(&'static str, Takes, &'static str);

const LOG: &str = "the log's segments are recycled, and checkpoints follow its size";
const STORE: &str = "it tunes bbolt, which is not used";
const GRPC: &str = "its default is what is done";
const V2: &str = "the v2 API is not served";
const CHECKS: &str = "the log and the store check their own sums";
const TRACE: &str = "there is no tracing";
const OUTPUT: &str = "the log goes to standard error";

/// See the module's text.
const FLAGS: &[Flag] = &[
    Flag("wal-dir", Takes::Only(&[""]), "the log lies in the data directory"),
    Flag("snapshot-count", Takes::Text, LOG),
    Flag("max-snapshots", Takes::Text, LOG),
    Flag("max-wals", Takes::Text, LOG),
    Flag("experimental-snapshot-catchup-entries", Takes::Text, LOG),
    Flag("snapshot-catchup-entries", Takes::Text, LOG),
    Flag("initial-election-tick-advance", Takes::Bool, "elections need no ticks"),
    Flag("backend-bbolt-freelist-type", Takes::Text, STORE),
    Flag("backend-batch-interval", Takes::Text, STORE),
    Flag("backend-batch-limit", Takes::Text, STORE),
    Flag("experimental-compaction-batch-limit", Takes::Text, STORE),
    Flag("compaction-batch-limit", Takes::Text, STORE),
    Flag("experimental-compaction-sleep-interval", Takes::Text, STORE),
    Flag("compaction-sleep-interval", Takes::Text, STORE),
    Flag("experimental-txn-mode-write-with-shared-buffer", Takes::Bool, STORE),
    Flag("experimental-bootstrap-defrag-threshold-megabytes", Takes::Text, STORE),
    Flag("bootstrap-defrag-threshold-megabytes", Takes::Text, STORE),
    Flag("experimental-memory-mlock", Takes::Bool, STORE),
    Flag("memory-mlock", Takes::Bool, STORE),
    Flag("experimental-stop-grpc-service-on-defrag", Takes::Bool, "defragmentation stops nothing"),
    Flag("max-concurrent-streams", Takes::Text, GRPC),
    Flag("grpc-keepalive-min-time", Takes::Text, "clients may ping as often as they like"),
    Flag("grpc-keepalive-interval", Takes::Text, GRPC),
    Flag("grpc-keepalive-timeout", Takes::Text, GRPC),
    Flag("socket-reuse-port", Takes::Bool, "ports are not shared"),
    Flag("socket-reuse-address", Takes::Bool, "addresses are always used again"),
    Flag("raft-read-timeout", Takes::Text, "members speak a protocol of their own"),
    Flag("raft-write-timeout", Takes::Text, "members speak a protocol of their own"),
    Flag("listen-client-http-urls", Takes::Only(&[""]), "client URLs serve both"),
    Flag("discovery", Takes::Only(&[""]), "there is no discovery service"),
    Flag("discovery-fallback", Takes::Text, "there is no discovery service"),
    Flag("discovery-proxy", Takes::Only(&[""]), "there is no discovery service"),
    Flag("discovery-srv", Takes::Only(&[""]), "there is no discovery service"),
    Flag("discovery-srv-name", Takes::Only(&[""]), "there is no discovery service"),
    Flag("strict-reconfig-check", Takes::Bool, "it is always on"),
    Flag("pre-vote", Takes::Bool, "it is always on"),
    Flag("enable-v2", Takes::False, V2),
    Flag("v2-deprecation", Takes::Text, V2),
    Flag("experimental-enable-v2v3", Takes::Only(&[""]), V2),
    Flag("proxy", Takes::Only(&["off"]), V2),
    Flag("proxy-failure-wait", Takes::Text, V2),
    Flag("proxy-refresh-interval", Takes::Text, V2),
    Flag("proxy-dial-timeout", Takes::Text, V2),
    Flag("proxy-write-timeout", Takes::Text, V2),
    Flag("proxy-read-timeout", Takes::Text, V2),
    Flag("client-cert-file", Takes::Only(&[""]), "nothing connects to clients"),
    Flag("client-key-file", Takes::Only(&[""]), "nothing connects to clients"),
    Flag("cors", Takes::Only(&["*", ""]), "pages are given to whoever asks"),
    Flag("host-whitelist", Takes::Only(&["*", ""]), "the Host header is not looked at"),
    Flag("client-cert-allowed-hostname", Takes::Only(&[""]), "not supported yet"),
    Flag("peer-cert-allowed-cn", Takes::Only(&[""]), "not supported yet"),
    Flag("peer-cert-allowed-hostname", Takes::Only(&[""]), "not supported yet"),
    Flag("experimental-peer-skip-client-san-verification", Takes::Bool, "a member's certificate is not held against its address"),
    Flag("peer-skip-client-san-verification", Takes::Bool, "a member's certificate is not held against its address"),
    Flag("enable-pprof", Takes::Bool, "there are no Go profiles; use perf(1)"),
    Flag("metrics", Takes::Text, "all metrics are always there"),
    Flag("logger", Takes::Text, "there is one logger"),
    Flag("log-outputs", Takes::Only(&["default", "stderr"]), OUTPUT),
    Flag("log-format", Takes::Text, OUTPUT),
    Flag("enable-log-rotation", Takes::False, OUTPUT),
    Flag("log-rotation-config-json", Takes::Text, OUTPUT),
    Flag("debug", Takes::False, "use --log-level=debug"),
    Flag("log-package-levels", Takes::Text, "use BRICKRAFT_LOG"),
    Flag("experimental-enable-distributed-tracing", Takes::False, TRACE),
    Flag("enable-distributed-tracing", Takes::False, TRACE),
    Flag("experimental-distributed-tracing-address", Takes::Text, TRACE),
    Flag("distributed-tracing-address", Takes::Text, TRACE),
    Flag("experimental-distributed-tracing-service-name", Takes::Text, TRACE),
    Flag("distributed-tracing-service-name", Takes::Text, TRACE),
    Flag("experimental-distributed-tracing-instance-id", Takes::Text, TRACE),
    Flag("distributed-tracing-instance-id", Takes::Text, TRACE),
    Flag("experimental-distributed-tracing-sampling-rate", Takes::Text, TRACE),
    Flag("distributed-tracing-sampling-rate", Takes::Text, TRACE),
    Flag("experimental-initial-corrupt-check", Takes::Bool, CHECKS),
    Flag("experimental-corrupt-check-time", Takes::Text, CHECKS),
    Flag("corrupt-check-time", Takes::Text, CHECKS),
    Flag("experimental-compact-hash-check-enabled", Takes::Bool, CHECKS),
    Flag("experimental-compact-hash-check-time", Takes::Text, CHECKS),
    Flag("compact-hash-check-time", Takes::Text, CHECKS),
    Flag("experimental-enable-lease-checkpoint", Takes::Bool, "a new leader grants every lease its full time"),
    Flag("experimental-enable-lease-checkpoint-persist", Takes::Bool, "a new leader grants every lease its full time"),
    Flag("experimental-downgrade-check-time", Takes::Text, "members do not downgrade each other"),
    Flag("downgrade-check-time", Takes::Text, "members do not downgrade each other"),
    Flag("experimental-warning-apply-duration", Takes::Text, "slow requests are not logged"),
    Flag("experimental-warning-unary-request-duration", Takes::Text, "slow requests are not logged"),
    Flag("warning-unary-request-duration", Takes::Text, "slow requests are not logged"),
    Flag("experimental-max-learners", Takes::Text, "the number of learners is bounded by the store"),
    Flag("max-learners", Takes::Text, "the number of learners is bounded by the store"),
    Flag("feature-gates", Takes::Text, "there are none"),
    Flag("unsafe-no-fsync", Takes::False, "what is acknowledged is on disk"),
];

/// The flags of this table that were given.
#[derive(Debug, Default)]
pub(crate) struct Unused(Vec<(&'static str, String)>);

impl Unused {
    /// Refuses what would be missed.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in &self.0 {
            let Some(Flag(_, takes, why)) = FLAGS.iter().find(|f| f.0 == *name) else { continue };
            let fits = match takes {
                Takes::Text => true,
                Takes::Only(values) => values.contains(&value.as_str()),
                Takes::Bool | Takes::False => match value.as_str() {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => matches!(takes, Takes::Bool),
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => true,
                    other => bail!("invalid boolean value {other:?} for -{name}: parse error"),
                },
            };
            if !fits {
                let why = if *why == "not supported yet" { String::new() } else { format!(" ({why})") };
                bail!("--{name}={value} is not supported yet{why}");
            }
        }
        Ok(())
    }

    /// Flags that were given and do nothing, with the reason.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.0.iter().filter_map(|(name, _)| FLAGS.iter().find(|f| f.0 == *name).map(|f| (f.0, f.2)))
    }
}

impl FromArgMatches for Unused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // A name that the server's own flags have taken over is of the type they gave it, and is not ours.
        let value = |f: &Flag| matches.try_get_one::<String>(f.0).ok().flatten().map(|v| (f.0, v.clone()));
        Ok(Self(FLAGS.iter().filter_map(value).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Unused {
    fn augment_args(mut command: Command) -> Command {
        for Flag(name, takes, _) in FLAGS {
            if command.get_arguments().any(|a| a.get_long() == Some(name)) {
                continue;
            }
            let variable: &'static str = format!("ETCD_{}", name.replace('-', "_").to_uppercase()).leak();
            let arg = Arg::new(*name).long(*name).env(variable).hide(true).action(ArgAction::Set);
            command = command.arg(match takes {
                Takes::Bool | Takes::False => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
                Takes::Text | Takes::Only(_) => arg,
            });
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unused(args: &[&str]) -> Unused {
        let command = Unused::augment_args(Command::new("x"));
        Unused::from_arg_matches(&command.try_get_matches_from([&["x"], args].concat()).expect("known")).expect("plain")
    }

    #[test]
    fn harmless_values_pass_and_others_are_refused() {
        unused(&["--snapshot-count=5", "--pre-vote", "--enable-v2=false", "--proxy=off", "--discovery="]).check().expect("harmless");
        for bad in ["--enable-v2", "--enable-v2=maybe", "--proxy=on", "--discovery=http://d", "--unsafe-no-fsync=true"] {
            assert!(unused(&[bad]).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_page_names_each() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SEMANTICS.md")).expect("SEMANTICS.md");
        let command = <super::super::server::ServerArgs as Args>::augment_args(Command::new("x"));
        for arg in command.get_arguments().filter(|a| a.is_hide_set()) {
            let name = arg.get_long().expect("a long name");
            let plain = name.strip_prefix("experimental-").unwrap_or(name);
            assert!(page.contains(&format!("`{plain}`")), "SEMANTICS.md does not name {plain}");
        }
    }
}
