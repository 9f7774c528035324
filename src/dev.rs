//! `brickraft dev`: a whole cluster on one machine, with nothing set up before.

use crate::client::{ClientOptions, VolumeClient};
use crate::management::{Ask, BRICK_PORT, VolumeInfo, VolumeStatusReport, ask};
use crate::node::url::Url;
use crate::node::{Ended, Node, ServerConfig};
use crate::records::VolumeStatus;
use crate::signals::Stop;
use anyhow::{Context, Result, bail, ensure};
use brickraft_engine::member::identity::InitialMember;
use brickraft_fs::fuse::{Mount, MountOptions};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `dev`'s flags.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Keep the data here [default: brickraft-dev under the user's state home]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Mount the volume here [default: DIR/mnt]
    #[arg(long, conflicts_with = "no_mount")]
    mount: Option<PathBuf>,
    /// Do not mount
    #[arg(long)]
    no_mount: bool,
    /// The port of the etcd endpoints on 127.0.0.1, 127.0.0.2 and 127.0.0.3
    #[arg(long, default_value_t = 2379)]
    client_port: u16,
    /// The port at which members meet
    #[arg(long, default_value_t = 2380)]
    peer_port: u16,
    /// The port of bricks, mounts and management
    #[arg(long, default_value_t = BRICK_PORT)]
    brick_port: u16,
}

const MEMBERS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
const VOLUME: &str = "dev";
/// How long the cluster may take to come up.
const UP: Duration = Duration::from_secs(60);

/// Runs until Ctrl-C.
///
/// # Errors
/// What keeps the cluster from starting, or ended it.
pub fn run(args: &DevArgs, json_output: bool) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        let me = std::env::current_exe().unwrap_or_else(|_| "brickraft".into());
        bail!(
            "`dev` needs root, because bricks keep owners and trusted attributes and the mount serves all users. Run: sudo {} dev",
            me.display()
        );
    }
    let stop = Stop::install()?;
    let dir = args.dir.clone().map_or_else(default_dir, Ok)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("create {} (--dir)", dir.display()))?;
    let dir = dir.canonicalize()?;
    eprintln!("data in {}", dir.display());
    let mount_dir = (!args.no_mount).then(|| args.mount.clone().unwrap_or_else(|| dir.join("mnt")));
    if let Some(m) = &mount_dir {
        prepare_mount_point(m)?;
    }
    let mut nodes = Vec::new();
    for i in 0..MEMBERS.len() {
        nodes.push(Node::start(&member(args, &dir, i)).with_context(|| format!("start member-{}", i + 1))?);
    }
    let server = format!("{}:{}", MEMBERS[0], args.brick_port);
    let result = serve(args, &dir, &server, mount_dir.as_deref(), &stop, &nodes, json_output);
    for node in &mut nodes {
        node.stop_bricks();
    }
    nodes.into_iter().for_each(Node::stop);
    result
}

fn default_dir() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|h| Path::new(&h).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    Ok(state.context("neither XDG_STATE_HOME nor HOME is set; name a directory with --dir")?.join("brickraft-dev"))
}

/// Makes the directory; what a killed run left mounted there is taken away.
fn prepare_mount_point(dir: &Path) -> Result<()> {
    if let Err(e) = std::fs::metadata(dir)
        && e.raw_os_error() == Some(107)
    {
        rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount the dead mount on {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("create the mount point {}", dir.display()))?;
    let mut entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    ensure!(entries.next().is_none(), "the mount point {} is not empty, or already mounted", dir.display());
    Ok(())
}

fn member(args: &DevArgs, dir: &Path, i: usize) -> ServerConfig {
    let name = |i: usize| format!("member-{}", i + 1);
    let peer_url = |i: usize| format!("http://{}:{}", MEMBERS[i], args.peer_port);
    let host = MEMBERS[i];
    ServerConfig {
        name: name(i),
        data_dir: dir.join(name(i)),
        listen_client: vec![Url::http(format!("{host}:{}", args.client_port))],
        listen_peer: vec![Url::http(format!("{host}:{}", args.peer_port))],
        initial_cluster: (0..MEMBERS.len()).map(|i| InitialMember { name: name(i), peer_urls: vec![peer_url(i)] }).collect(),
        token: "brickraft-dev".into(),
        listen_brick: Some(format!("{host}:{}", args.brick_port)),
        host: Some(host.into()),
        ..ServerConfig::default()
    }
}

/// Repeats a question until the cluster has its leader and its records.
fn until<T>(what: &str, stop: &Stop, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(t) => return Ok(t),
            Err(e) if started.elapsed() > UP => return Err(e.context(format!("{what} took more than {} s", UP.as_secs()))),
            Err(_) if stop.wanted() => bail!("stopped before it was ready"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn volume(args: &DevArgs, dir: &Path, server: &str, stop: &Stop) -> Result<()> {
    let timeout = Duration::from_secs(10);
    let nodes: Vec<Value> = until("the first election", stop, || {
        let nodes: Vec<Value> = ask(server, &Ask::PoolList, timeout)?;
        ensure!(nodes.len() == MEMBERS.len(), "only {} of {} members are there", nodes.len(), MEMBERS.len());
        Ok(nodes)
    })?;
    debug_assert_eq!(nodes.len(), MEMBERS.len());
    let volumes: Vec<VolumeInfo> = until("reading the volumes", stop, || Ok(ask(server, &Ask::VolumeInfo { name: None }, timeout)?))?;
    let status = volumes.iter().find(|v| v.volume.name == VOLUME).map(|v| v.volume.status);
    if status.is_none() {
        let bricks = (0..2).map(|i| format!("{}:{}", MEMBERS[i], dir.join(format!("brick-{}", i + 1)).display())).collect();
        ask::<Value>(server, &Ask::VolumeCreate { name: VOLUME.into(), replica: 2, bricks, force: true }, timeout)
            .context("create the volume")?;
    }
    if status != Some(VolumeStatus::Started) {
        ask::<Value>(server, &Ask::VolumeStart { name: VOLUME.into() }, timeout).context("start the volume")?;
    }
    until("starting the bricks", stop, || {
        let status: Vec<VolumeStatusReport> = ask(server, &Ask::VolumeStatus { name: Some(VOLUME.into()) }, timeout)?;
        let bricks = &status.first().context("the volume is not started")?.bricks;
        match bricks.iter().find(|b| !b.online || !matches!(b.state.as_str(), "primary" | "in sync")) {
            None => Ok(()),
            Some(b) => bail!("brick {} is {}{}", b.name, b.state, b.error.as_ref().map(|e| format!(": {e}")).unwrap_or_default()),
        }
    })?;
    let _ = args;
    Ok(())
}

fn serve(args: &DevArgs, dir: &Path, server: &str, mount_dir: Option<&Path>, stop: &Stop, nodes: &[Node], json_output: bool) -> Result<()> {
    volume(args, dir, server, stop)?;
    let servers: Vec<String> = MEMBERS.iter().map(|m| format!("{m}:{}", args.brick_port)).collect();
    let mount = match mount_dir {
        Some(m) => {
            let client = VolumeClient::open(&servers, VOLUME, ClientOptions::default())?;
            let options = MountOptions { source: format!("{}:{VOLUME}", MEMBERS[0]), ..MountOptions::default() };
            Some(Mount::new(Arc::new(client), m, &options).with_context(|| format!("mount on {}", m.display()))?)
        }
        None => None,
    };
    let endpoints: Vec<String> = MEMBERS.iter().map(|m| format!("http://{m}:{}", args.client_port)).collect();
    if json_output {
        println!("{}", json!({ "ready": true, "mount": mount_dir, "endpoints": endpoints, "server": server, "dir": dir }));
    } else {
        greet(args, server, mount_dir, &endpoints);
    }
    let ended = loop {
        if stop.wanted() {
            break Ok(());
        }
        if let Some(ended) = nodes.iter().find_map(|n| n.wait(Duration::from_millis(30))) {
            match ended {
                Ended::Failed(why) => break Err(anyhow::anyhow!(why)),
                Ended::Restart | Ended::Stopped => break Ok(()),
            }
        }
    };
    if let (Some(mount), Some(m)) = (mount, mount_dir) {
        eprintln!("unmounting {}", m.display());
        if mount.unmount().is_err() {
            eprintln!("{} is in use; it goes away as soon as it is not", m.display());
            let _ = rustix::mount::unmount(m, rustix::mount::UnmountFlags::DETACH);
        }
    }
    ended
}

fn greet(args: &DevArgs, server: &str, mount_dir: Option<&Path>, endpoints: &[String]) {
    let server_flag = if args.brick_port == BRICK_PORT { String::new() } else { format!(" --server {server}") };
    println!("etcd endpoints: {}", endpoints.join(","));
    if let Some(m) = mount_dir {
        println!("volume {VOLUME} is mounted on {}", m.display());
    }
    println!("three things to try:");
    println!("  ETCDCTL_API=3 etcdctl --endpoints={} put greeting hello", endpoints.join(","));
    match mount_dir {
        Some(m) => println!("  echo hello > {}/greeting", m.display()),
        None => println!("  brickraft mount {server}:{VOLUME} /mnt"),
    }
    println!("  brickraft{server_flag} volume status {VOLUME}");
    println!("ready; Ctrl-C stops everything, the data stays");
}
