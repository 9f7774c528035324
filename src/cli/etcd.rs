//! The binary called as `etcd`: etcd's command line, on the flags of `brickraft server`.
//!
//! Go's flag package is what scripts count on: one dash or two, `-flag=value` or `-flag value`, booleans that take a
//! value only behind `=`, the last of several wins, and status 2 for what cannot be read. So the words are brought into
//! the one form `--flag=value` here, and clap does the rest.

use super::server::{self, ServerArgs};
use anyhow::{Context, Result, anyhow};
use brickraft_net::etcd::ETCD_VERSION;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "Usage:

  etcd [flags]
    Start a member of a coordination store (brickraft, speaking etcd's API).

  etcd --version
    Show the version of etcd that the API is equal to.

  etcd -h | --help
    Show this help.

  etcd --config-file FILE
    Read the flags from a YAML file; other flags and environment variables are ignored then.
";

/// A flag and its value, in the order in which they were given.
type Given = Vec<(String, String)>;

/// Why there is nothing to run.
enum Refusal {
    /// `-h`.
    Help,
    /// What Go's flag package would say, with status 2.
    Flags(String),
    /// What etcd would say, with status 1.
    Config(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(e: anyhow::Error) -> Self {
        Self::Config(e)
    }
}

/// etcd's flags, with etcd's defaults.
fn command() -> Command {
    let mut command = ServerArgs::augment_args(Command::new("etcd")).args_override_self(true);
    for (id, default) in [
        ("listen_client_urls", "http://localhost:2379"),
        ("listen_peer_urls", "http://localhost:2380"),
        ("initial_advertise_peer_urls", "http://localhost:2380"),
    ] {
        command = command.mut_arg(id, |a| a.default_value(default));
    }
    command
        .arg(Arg::new("version").long("version").action(ArgAction::SetTrue))
        .arg(Arg::new("config-file").long("config-file").env("ETCD_CONFIG_FILE"))
}

/// True when the flag takes a value only behind `=`.
fn is_bool(arg: &Arg) -> bool {
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => true,
        _ => arg.get_num_args().is_some_and(|n| n.min_values() == 0),
    }
}

pub(super) fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(name))
}

/// Reads words as Go's flag package does.
fn read_words(command: &Command, words: &[String]) -> Result<Given, Refusal> {
    let mut given = Given::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|f| !f.is_empty()) else {
            let first = if word == "--" { words.next() } else { Some(word) };
            let Some(first) = first else { break };
            return Err(anyhow!("'{first}' is not a valid flag").into());
        };
        if flag.starts_with(['-', '=']) {
            return Err(Refusal::Flags(format!("bad flag syntax: {word}")));
        }
        let (name, value) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v.to_owned())));
        let Some(arg) = find(command, name) else {
            return Err(if matches!(name, "h" | "help") {
                Refusal::Help
            } else {
                Refusal::Flags(format!("flag provided but not defined: -{name}"))
            });
        };
        let value = match value {
            Some(value) => value,
            None if is_bool(arg) => "true".into(),
            None => words.next().cloned().ok_or_else(|| Refusal::Flags(format!("flag needs an argument: -{name}")))?,
        };
        if is_bool(arg) && truth(&value).is_none() {
            return Err(Refusal::Flags(format!("invalid boolean value \"{value}\" for -{name}: parse error")));
        }
        given.push((name.to_owned(), value));
    }
    Ok(given)
}

/// A YAML value as a flag's: lists are joined with commas.
fn flag_value(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(s) => Some(s.clone()),
        serde_json::Value::Array(items) => Some(items.iter().filter_map(flag_value).collect::<Vec<_>>().join(",")),
        other => Some(other.to_string()),
    }
}

/// Reads a configuration file: the flags' names are its keys, and those about TLS stand in two groups of their own. As in
/// etcd, keys that nobody knows are passed over; here the log says so.
fn read_config(command: &Command, path: &Path) -> Result<Given> {
    let text = std::fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
    let file: serde_json::Value =
        serde_saphyr::from_str(&text).map_err(|e| anyhow!("{}: error converting YAML to JSON: {e}", path.display()))?;
    let mut given = Given::new();
    let mut add = |name: String, value: &serde_json::Value| {
        let Some(value) = flag_value(value) else { return };
        match find(command, &name) {
            Some(_) => given.push((name, value)),
            None => tracing::warn!("{}: {name} is not known and has no effect", path.display()),
        }
    };
    let Some(keys) = file.as_object() else {
        return if file.is_null() { Ok(given) } else { Err(anyhow!("{} holds no keys with values", path.display())) };
    };
    for (key, value) in keys {
        let prefix = match key.as_str() {
            "client-transport-security" => "",
            "peer-transport-security" => "peer-",
            _ => {
                add(key.clone(), value);
                continue;
            }
        };
        for (key, value) in value.as_object().into_iter().flatten() {
            let name = match (prefix, key.as_str()) {
                ("peer-", "allowed-cn") => "peer-cert-allowed-cn".to_owned(),
                ("peer-", "allowed-hostname") => "peer-cert-allowed-hostname".to_owned(),
                ("peer-", key) if !key.starts_with("peer-") => format!("peer-{key}"),
                (_, key) => key.to_owned(),
            };
            add(name, value);
        }
    }
    Ok(given)
}

/// The flags in clap's form; a boolean that clap knows without a value is there or not.
fn clap_words(command: &Command, given: &Given) -> Vec<String> {
    let mut words = vec!["etcd".to_owned()];
    for (i, (name, value)) in given.iter().enumerate() {
        if given[i + 1..].iter().any(|(later, _)| later == name) {
            continue;
        }
        match find(command, name).map(Arg::get_action) {
            Some(ArgAction::SetTrue) if truth(value) == Some(true) => words.push(format!("--{name}")),
            Some(ArgAction::SetTrue) => {}
            _ if find(command, name).is_some_and(is_bool) => words.push(format!("--{name}={}", truth(value).unwrap_or(false))),
            _ => words.push(format!("--{name}={value}")),
        }
    }
    words
}

fn parse(words: &[String], environment: bool) -> Result<(ServerArgs, bool), Refusal> {
    let mut command = command();
    let mut given = read_words(&command, words)?;
    let shown = given.iter().any(|(name, value)| name == "version" && truth(value) == Some(true));
    let from_environment = || environment.then(|| std::env::var("ETCD_CONFIG_FILE").ok()).flatten();
    let file = given.iter().rfind(|(name, _)| name == "config-file").map(|(_, file)| file.clone()).or_else(from_environment);
    let alone = file.as_ref().is_some_and(|f| !f.is_empty());
    if let Some(file) = file.filter(|f| !f.is_empty() && !shown) {
        given = read_config(&command, Path::new(&file))?;
    }
    if alone || !environment {
        command = command.mut_args(|a| a.env(Resettable::Reset));
    }
    let words = clap_words(&command, &given);
    let matches = command.try_get_matches_from(words).map_err(|e| {
        let told = |kind| match e.get(kind) {
            Some(ContextValue::String(s)) => s.clone(),
            _ => String::new(),
        };
        let flag = told(ContextKind::InvalidArg);
        let flag = flag.split([' ', '=']).next().unwrap_or_default().trim_start_matches('-').to_owned();
        Refusal::Flags(format!("invalid value \"{}\" for flag -{flag}: parse error", told(ContextKind::InvalidValue)))
    })?;
    let mut args = ServerArgs::from_arg_matches(&matches).map_err(|e| Refusal::Flags(e.to_string()))?;
    args.store_only = true;
    let by_default = |id| matches.value_source(id) == Some(ValueSource::DefaultValue);
    if by_default("data_dir") {
        args.data_dir = PathBuf::from(format!("{}.etcd", args.name));
    }
    if by_default("initial_cluster") {
        let urls = args.initial_advertise_peer_urls.split(',').filter(|u| !u.is_empty());
        args.initial_cluster = urls.map(|url| format!("{}={}", args.name, url.trim())).collect::<Vec<_>>().join(",");
    }
    Ok((args, shown))
}

fn help() {
    println!("{USAGE}");
    for arg in command().get_arguments().filter(|a| !a.is_hide_set()) {
        let Some(name) = arg.get_long().filter(|n| !matches!(*n, "listen-brick-addr" | "version" | "config-file")) else { continue };
        let default = arg.get_default_values().first().map(|d| format!(" '{}'", d.to_string_lossy())).unwrap_or_default();
        println!("  --{name}{default}\n    {}", arg.get_help().map(ToString::to_string).unwrap_or_default());
    }
}

/// Runs as `etcd` with these arguments, the program's name first; the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = args.into_iter().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    let result = match parse(&words, true) {
        Ok((_, true)) => {
            println!("etcd Version: {ETCD_VERSION}");
            println!("Git SHA: brickraft {}", env!("CARGO_PKG_VERSION"));
            println!("Go Version: none (Rust)");
            println!(
                "Go OS/Arch: {}/{}",
                std::env::consts::OS,
                if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }
            );
            return ExitCode::SUCCESS;
        }
        Ok((args, false)) => {
            super::log(args.log_filter());
            server::run(&args)
        }
        Err(Refusal::Help) => {
            help();
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Flags(why)) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
        Err(Refusal::Config(e)) => Err(e.context("error verifying flags, see 'etcd --help'")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> ServerArgs {
        let words: Vec<String> = words.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
        match parse(&words, false) {
            Ok((args, _)) => args,
            Err(Refusal::Help) => panic!("{words:?}: help"),
            Err(Refusal::Flags(why)) => panic!("{words:?}: {why}"),
            Err(Refusal::Config(e)) => panic!("{words:?}: {e:#}"),
        }
    }

    fn refused(words: &str) -> String {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        match parse(&words, false) {
            Err(Refusal::Flags(why)) => why,
            Err(Refusal::Config(e)) => e.to_string(),
            _ => panic!("{words:?} should be refused"),
        }
    }

    #[test]
    fn defaults_are_etcds() {
        let args = parsed("");
        assert_eq!((args.name.as_str(), args.data_dir.as_path()), ("default", Path::new("default.etcd")));
        assert_eq!(args.initial_cluster, "default=http://localhost:2380");
        let args = parsed("--name x --initial-advertise-peer-urls=http://a:1,http://b:1");
        assert_eq!(args.data_dir, Path::new("x.etcd"));
        assert_eq!(args.initial_cluster, "x=http://a:1,x=http://b:1");
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let args = parsed(
            "-name a --name=b -data-dir /d --pre-vote -strict-reconfig-check=false --snapshot-count 10000 -initial-cluster-state new",
        );
        assert_eq!((args.name.as_str(), args.data_dir.as_path()), ("b", Path::new("/d")));
        assert_eq!(parsed("--data-dir=--odd").data_dir, Path::new("--odd"));
        assert_eq!(refused("--nonsense"), "flag provided but not defined: -nonsense");
        assert_eq!(refused("-name"), "flag needs an argument: -name");
        assert_eq!(refused("--pre-vote=maybe"), "invalid boolean value \"maybe\" for -pre-vote: parse error");
        assert_eq!(refused("stray"), "'stray' is not a valid flag");
        assert_eq!(refused("--pre-vote true"), "'true' is not a valid flag");
        assert_eq!(refused("---x"), "bad flag syntax: ---x");
        assert_eq!(refused("--heartbeat-interval=x"), "invalid value \"x\" for flag -heartbeat-interval: parse error");
        assert_eq!(refused("--initial-cluster-state=odd"), "invalid value \"odd\" for flag -initial-cluster-state: parse error");
    }

    #[test]
    fn a_file_is_all_there_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("etcd.yml");
        let text = "# as etcd's sample\nname: 'f'\ndata-dir:\nsnapshot-count: 10000\npre-vote: true\nlisten-client-urls: http://a:1,http://b:2\n\
                    cipher-suites: []\nclient-transport-security:\n  auto-tls: false\npeer-transport-security:\n  auto-tls: false\nunheard-of: 1\n";
        std::fs::write(&path, text).expect("write");
        let args = parsed(&format!("--name flag --config-file {}", path.display()));
        assert_eq!((args.name.as_str(), args.data_dir.as_path()), ("f", Path::new("f.etcd")));
        assert!(refused("--config-file /nowhere/at-all").contains("/nowhere/at-all"));
        std::fs::write(&path, "a: [").expect("write");
        assert!(refused(&format!("--config-file {}", path.display())).contains("YAML"));
    }
}
