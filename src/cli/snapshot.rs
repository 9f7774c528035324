//! `snapshot save | status | restore`, with the flags and words of etcdctl and etcdutl.

use super::endpoint::{Endpoint, block_on, grid, human_bytes};
use crate::node::config::{DEFAULT_TOKEN, initial_cluster};
use crate::node::restore::{Restore, restore};
use anyhow::{Context, Result, anyhow, ensure};
use brickraft_engine::kv::BackupReader;
use clap::{Args, Subcommand};
use serde_json::json;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Store a member's state in a file
    Save {
        file: PathBuf,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Check a file and say what is in it
    Status {
        file: PathBuf,
        /// How the answer is printed
        #[arg(short = 'w', long = "write-out", default_value = "simple", value_parser = ["simple", "table", "json"])]
        write_out: String,
    },
    /// Make the data directory of a new cluster's member out of a file
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    file: PathBuf,
    /// The directory to be made; NAME.etcd by default
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Human-readable name of the member
    #[arg(long, default_value = "default")]
    name: String,
    /// Members of the new cluster: name=url,name=url
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Token that tells clusters with the same members apart
    #[arg(long, default_value = DEFAULT_TOKEN)]
    initial_cluster_token: String,
    /// This member's peer URLs
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Do not check the hash at the file's end
    #[arg(long)]
    skip_hash_check: bool,
    /// Let the revision grow by so much
    #[arg(long, default_value_t = 0)]
    bump_revision: u64,
    /// Count everything before the new revision as compacted
    #[arg(long)]
    mark_compacted: bool,
}

pub(crate) fn run(command: &Snapshot) -> Result<()> {
    match command {
        Snapshot::Save { file, endpoint } => {
            block_on(save(file, endpoint))?;
            println!("Snapshot saved at {}", file.display());
            Ok(())
        }
        Snapshot::Status { file, write_out } => status(file, write_out),
        Snapshot::Restore(args) => run_restore(args),
    }
}

/// To another name first, so that the file is whole wherever it is.
async fn save(path: &Path, endpoint: &Endpoint) -> Result<()> {
    let client = endpoint.connect_one().await?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut file = File::create(&part).with_context(|| format!("could not open {}", part.display()))?;
    let saved = async {
        client.snapshot(&mut |portion| file.write_all(portion)).await?;
        file.sync_all().with_context(|| format!("sync {}", part.display()))?;
        // What arrived is read back: a backup that cannot be restored is none.
        open(&part, false)?;
        std::fs::rename(&part, path).with_context(|| format!("could not rename {} to {}", part.display(), path.display()))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|d| d.sync_all()).with_context(|| format!("sync {}", parent.display()))
    };
    let result = saved.await;
    if result.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    result
}

fn open(path: &Path, skip_hash: bool) -> Result<BackupReader<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    BackupReader::open(BufReader::with_capacity(1 << 20, file), skip_hash).map_err(|e| anyhow!("{}: {e}", path.display()))
}

fn status(path: &Path, write_out: &str) -> Result<()> {
    let s = open(path, false)?.summary().map_err(|e| anyhow!("{}: {e}", path.display()))?;
    match write_out {
        "json" => println!("{}", json!({ "hash": s.hash, "revision": s.revision.0, "totalKey": s.keys, "totalSize": s.bytes })),
        "table" => {
            let row = vec![format!("{:x}", s.hash), s.revision.0.to_string(), s.keys.to_string(), human_bytes(s.bytes)];
            println!("{}", grid(&["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"], &[row]));
        }
        _ => println!("{:x}, {}, {}, {}", s.hash, s.revision.0, s.keys, human_bytes(s.bytes)),
    }
    Ok(())
}

fn run_restore(args: &RestoreArgs) -> Result<()> {
    ensure!(
        (args.bump_revision > 0) == args.mark_compacted,
        "--mark-compacted required if --bump-revision > 0, and not allowed without it"
    );
    let members = initial_cluster(&args.initial_cluster)?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", args.name)));
    let urls: Vec<String> = args.initial_advertise_peer_urls.split(',').map(|u| u.trim().to_owned()).collect();
    let mut backup = open(&args.file, args.skip_hash_check)?;
    let plan = Restore {
        data_dir: &data_dir,
        name: &args.name,
        members: &members,
        token: &args.initial_cluster_token,
        advertise_peer_urls: &urls,
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted,
    };
    let made = restore(&plan, &mut backup).with_context(|| format!("restore {}", args.file.display()))?;
    println!(
        "restored {} to {}: member {:016x} of the new cluster {:016x}",
        args.file.display(),
        data_dir.display(),
        made.identity.member_id.0,
        made.identity.cluster_id
    );
    let volumes: Vec<&str> = made.records.volumes.keys().map(String::as_str).collect();
    if !volumes.is_empty() {
        eprintln!(
            "note: volumes {}: their files are in the bricks, not in the backup; a volume serves again if no brick of it has left \
             or come back since the backup was made",
            volumes.join(", ")
        );
    }
    if !made.missing.is_empty() {
        eprintln!("note: servers with bricks that are no members of the new cluster, by their peer URLs: {}", made.missing.join(", "));
    }
    Ok(())
}
