//! `volume`.

use super::Context_;
use super::print::table;
use crate::management::{Ask, HealReport, VolumeInfo, VolumeStatusReport};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// NAME [replica N] HOST:/DIRECTORY... [force]
    Create {
        name: String,
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
    /// Let clients in
    Start {
        name: String,
        #[arg(value_parser = ["force"])]
        force: Option<String>,
    },
    /// Shut clients out
    Stop {
        name: String,
        #[arg(value_parser = ["force"])]
        force: Option<String>,
    },
    /// Forget a stopped volume; the bricks' files stay
    Delete { name: String },
    /// What the volumes are
    Info { name: Option<String> },
    /// How their bricks are
    Status { name: Option<String> },
    /// Their names
    List,
    /// NAME [full | info]
    Heal {
        name: String,
        #[arg(trailing_var_arg = true)]
        words: Vec<String>,
    },
    /// Verify content signatures on all bricks and heal what does not match
    Scrub { name: String },
    /// Take more bricks in
    AddBrick { words: Vec<String> },
    /// Take bricks out
    RemoveBrick { words: Vec<String> },
    /// Swap a brick for another
    ReplaceBrick { words: Vec<String> },
    /// Spread files over new bricks
    Rebalance { words: Vec<String> },
    /// Set an option
    Set { words: Vec<String> },
    /// Show an option
    Get { words: Vec<String> },
}

/// Reads `[replica N] BRICK... [force]`.
fn create_words(words: &[String]) -> Result<(usize, Vec<String>, bool)> {
    let mut words = words.to_vec();
    let force = words.last().is_some_and(|w| w == "force");
    if force {
        words.pop();
    }
    let mut replica = 1;
    let mut bricks = Vec::new();
    let mut rest = words.into_iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "replica" => {
                let n = rest.next().context("replica needs a count")?;
                replica = n.parse().map_err(|_| anyhow!("{n} is not a replica count"))?;
                ensure!(replica >= 2, "replica count should be greater than 1");
            }
            "arbiter" | "stripe" | "disperse" | "disperse-data" | "redundancy" | "thin-arbiter" | "transport" => {
                bail!("{word} volumes are not supported yet")
            }
            _ => bricks.push(word),
        }
    }
    Ok((replica, bricks, force))
}

pub(crate) fn run(c: &Context_, command: &Volume) -> Result<()> {
    match command {
        Volume::Create { name, words } => create(c, name, words),
        Volume::Start { name, .. } => simple(c, "start", name, &Ask::VolumeStart { name: name.clone() }),
        Volume::Stop { name, .. } => {
            if !c.confirm("Stopping volume will make its data inaccessible. Do you want to continue?")? {
                return Ok(());
            }
            simple(c, "stop", name, &Ask::VolumeStop { name: name.clone() })
        }
        Volume::Delete { name } => {
            if !c.confirm("Deleting volume will erase all information about the volume. Do you want to continue?")? {
                return Ok(());
            }
            simple(c, "delete", name, &Ask::VolumeDelete { name: name.clone() })
        }
        Volume::Info { name } => {
            let volumes: Vec<VolumeInfo> = c.ask(&Ask::VolumeInfo { name: name.clone() }).map_err(|e| anyhow!("{e}"))?;
            c.print.show(&volumes, |v| if v.is_empty() { "No volumes present".into() } else { v.iter().map(info_text).collect() });
            Ok(())
        }
        Volume::Status { name } => {
            let volumes: Vec<VolumeStatusReport> = c.ask(&Ask::VolumeStatus { name: name.clone() }).map_err(|e| anyhow!("{e}"))?;
            c.print.show(&volumes, |v| {
                if v.is_empty() { "No started volumes present".into() } else { v.iter().map(status_text).collect::<Vec<_>>().join("\n") }
            });
            Ok(())
        }
        Volume::List => {
            let names: Vec<String> = c.ask(&Ask::VolumeList).map_err(|e| anyhow!("volume list: failed: {e}"))?;
            c.print.show(&names, |n| if n.is_empty() { "No volumes present in cluster".into() } else { n.join("\n") });
            Ok(())
        }
        Volume::Heal { name, words } => heal(c, name, words),
        Volume::Scrub { name } => {
            let report: HealReport =
                c.ask(&Ask::VolumeScrub { name: name.clone() }).map_err(|e| anyhow!("volume scrub: {name}: failed: {e}"))?;
            c.print
                .show(&report, |r| format!("volume scrub: {name}: success: see `volume heal {name} info` for progress\n{}", heal_text(r)));
            Ok(())
        }
        Volume::AddBrick { .. } => bail!("volume add-brick: not supported yet"),
        Volume::RemoveBrick { .. } => bail!("volume remove-brick: not supported yet"),
        Volume::ReplaceBrick { .. } => bail!(
            "volume replace-brick: not supported yet (a brick whose directory is emptied or whose disk is replaced under the same path is healed by itself)"
        ),
        Volume::Rebalance { .. } => bail!("volume rebalance: not supported yet"),
        Volume::Set { .. } => bail!("volume set: not supported yet"),
        Volume::Get { .. } => bail!("volume get: not supported yet"),
    }
}

fn create(c: &Context_, name: &str, words: &[String]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| anyhow!("volume create: {name}: failed: {e}");
    let (replica, bricks, force) = create_words(words).map_err(|e| failed(&e))?;
    let ask = Ask::VolumeCreate { name: name.to_owned(), replica, bricks, force };
    let answer: Value = c.ask(&ask).map_err(|e| failed(&e))?;
    c.print.show(&answer, |a| {
        let note = a["warning"].as_str().map(|w| format!("\nnote: {w}")).unwrap_or_default();
        format!("volume create: {name}: success: please start the volume to access data{note}")
    });
    Ok(())
}

fn simple(c: &Context_, verb: &str, name: &str, ask: &Ask) -> Result<()> {
    let answer: Value = c.ask(ask).map_err(|e| anyhow!("volume {verb}: {name}: failed: {e}"))?;
    c.print.show(&answer, |_| format!("volume {verb}: {name}: success"));
    Ok(())
}

fn heal(c: &Context_, name: &str, words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ask = match words[..] {
        [] => Ask::VolumeHeal { name: name.to_owned(), full: false },
        ["full"] => Ask::VolumeHeal { name: name.to_owned(), full: true },
        ["info"] | ["info", "summary"] => Ask::VolumeHealInfo { name: name.to_owned() },
        ["info", "split-brain"] => {
            c.print.show(&Vec::<String>::new(), |_| {
                "Number of entries in split-brain: 0 (a group has one primary at a time; there is no split brain)".into()
            });
            return Ok(());
        }
        _ => bail!("volume heal: {} is not supported yet; usage: volume heal {name} [full | info]", words.join(" ")),
    };
    let report: HealReport = c.ask(&ask).map_err(|e| anyhow!("volume heal: {name}: failed: {e}"))?;
    c.print.show(&report, |r| match ask {
        Ask::VolumeHealInfo { .. } => heal_text(r),
        _ => format!("Launching heal operation on volume {name} has been successful\nUse heal info commands to check status.\n"),
    });
    Ok(())
}

fn info_text(v: &VolumeInfo) -> String {
    let kind = if v.volume.replica > 1 { "Replicate" } else { "Distribute" };
    let mut text = format!(
        "\nVolume Name: {}\nType: {kind}\nVolume ID: {}\nStatus: {}\nNumber of Bricks: {} x {} = {}\nTransport-type: tcp\nBricks:\n",
        v.volume.name,
        v.volume.id,
        v.volume.status,
        v.volume.groups.len(),
        v.volume.replica,
        v.bricks.len()
    );
    for (i, b) in v.bricks.iter().enumerate() {
        text.push_str(&format!("Brick{}: {}\n", i + 1, b.name));
    }
    if !v.volume.options.is_empty() {
        text.push_str("Options Reconfigured:\n");
        for (key, value) in &v.volume.options {
            text.push_str(&format!("{key}: {value}\n"));
        }
    }
    text
}

fn status_text(v: &VolumeStatusReport) -> String {
    let or_na = |n: Option<String>| n.unwrap_or_else(|| "N/A".into());
    let rows: Vec<_> = v
        .bricks
        .iter()
        .map(|b| {
            let online = if b.online { "Y" } else { "N" };
            vec![
                format!("Brick {}", b.name),
                or_na(b.port.map(|p| p.to_string())),
                online.into(),
                or_na(b.pid.map(|p| p.to_string())),
                b.state.clone(),
            ]
        })
        .collect();
    let mut text = format!(
        "Status of volume: {}\n{}",
        v.name,
        table(&["Gluster process", "TCP Port", "Online", "Pid", "State"], &rows).replace("Gluster process", "Process")
    );
    for b in &v.bricks {
        if let Some(e) = &b.error {
            text.push_str(&format!("Brick {}: {e}\n", b.name));
        }
    }
    text
}

fn heal_text(r: &HealReport) -> String {
    let name = |id| r.bricks.iter().find(|b| b.id == id).map_or_else(|| format!("{id:016x}"), |b| b.name.clone());
    let mut text = String::new();
    for g in &r.groups {
        for &brick in &g.config.members {
            let in_sync = g.config.in_sync.contains(&brick);
            let heals: Vec<_> = g.heals.iter().filter(|h| h.brick == brick).collect();
            let left: u64 = heals.iter().map(|h| h.buckets_left).sum();
            text.push_str(&format!("Brick {}\nStatus: {}\n", name(brick), if in_sync { "in sync" } else { "out of sync" }));
            let entries = if in_sync { left } else { left.max(u64::from(heals.is_empty())) };
            text.push_str(&format!("Number of entries: {entries}\n"));
            for h in heals {
                let left = h.seconds_left().map(|s| format!(", about {s} s left")).unwrap_or_default();
                text.push_str(&format!(
                    "Heal: {}, {} buckets done, {} to go, {} objects healed, {} bytes sent in {:.1} s{left}\n",
                    h.state,
                    h.buckets_done,
                    h.buckets_left,
                    h.objects,
                    h.bytes,
                    h.elapsed_us as f64 / 1e6
                ));
            }
            text.push('\n');
        }
        for d in &g.damage {
            text.push_str(&format!("Damage found: {d}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn create_is_read_as_gluster_reads_it() {
        assert_eq!(create_words(&words("replica 2 a:/x b:/y")).expect("plain"), (2, words("a:/x b:/y"), false));
        assert_eq!(create_words(&words("a:/x force")).expect("force"), (1, words("a:/x"), true));
        assert!(create_words(&words("replica two a:/x")).is_err());
        assert!(create_words(&words("replica 1 a:/x")).is_err());
        assert!(create_words(&words("arbiter 1 a:/x")).expect_err("arbiter").to_string().contains("not supported yet"));
    }
}
