//! Many keys that nobody asks for: memory, space on disk, and how long restarts take.

use super::cluster::{Cluster, MEMBERS};
use super::load::fill;
use super::report::Figures;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Rest before memory is looked at: what runs after the last put (checkpoint, collection) ends.
const SETTLE: Duration = Duration::from_secs(10);

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

/// Fills, rests, measures, restarts a follower in good order, then kills all and starts them.
pub(crate) async fn run(cluster: &mut Cluster, keys: u32) -> Result<Figures> {
    let began = Instant::now();
    fill(cluster, "k", keys).await?;
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

    for member in 0..MEMBERS {
        cluster.kill(member)?;
    }
    let began = Instant::now();
    for member in 0..MEMBERS {
        cluster.launch(member)?;
    }
    cluster.ready().await?;
    figures.extra("cluster_restart_ms", began.elapsed().as_secs_f64() * 1e3);
    Ok(figures)
}
