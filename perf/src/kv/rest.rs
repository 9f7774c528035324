//! Many keys that nobody asks for: memory, space on disk, and how long restarts take.

use super::cluster::{Cluster, MEMBERS};
use super::load::{Load, Op, fill, run as put_for};
use super::report::Figures;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Rest before memory is looked at: what runs after the last put (checkpoint, collection) ends.
const SETTLE: Duration = Duration::from_secs(10);
/// The keys' first letter.
const PREFIX: &str = "k";
/// Puts before the second kill, so that the log has what no checkpoint has.
const CRASH_LOAD: Duration = Duration::from_secs(5);

fn bytes_below(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { bytes_below(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Fills, rests, measures, restarts a follower in good order, then kills all and starts them, once at rest and once after puts.
pub(crate) async fn run(cluster: &mut Cluster, keys: u32) -> Result<Figures> {
    let began = Instant::now();
    fill(cluster, PREFIX, keys).await?;
    let filled = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let mut figures = Figures::default();
    figures.memory(cluster.memory()?);
    figures.extra("fill_s", filled.as_secs_f64());
    figures.extra("disk_bytes", bytes_below(cluster.dir())? as f64);

    let follower = (cluster.leader().await?.0 + 1) % MEMBERS;
    cluster.terminate(follower).await?;
    let began = Instant::now();
    cluster.launch(follower)?;
    cluster.answers(follower).await?;
    figures.extra("member_restart_ms", began.elapsed().as_secs_f64() * 1e3);

    figures.extra("cluster_restart_ms", restart_all(cluster).await?);
    let load = Load { op: Op::Put { prefix: PREFIX, keys }, clients: 100, connections: 10, rate: None };
    put_for(cluster, load, CRASH_LOAD).await?;
    figures.extra("restart_after_puts_ms", restart_all(cluster).await?);
    Ok(figures)
}

/// Kills all members and starts them; milliseconds until all answer.
async fn restart_all(cluster: &mut Cluster) -> Result<f64> {
    for member in 0..MEMBERS {
        cluster.kill(member)?;
    }
    let began = Instant::now();
    for member in 0..MEMBERS {
        cluster.launch(member)?;
    }
    cluster.ready().await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
