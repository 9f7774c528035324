//! What the kernel says of a process.

use anyhow::{Context, Result};
use std::ops::{Add, Sub};

/// Processor time of a process, all of its threads, those that ended too, in clock ticks.
///
/// # Errors
/// When the process is gone.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    match (times.next(), times.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok(user + system),
        _ => anyhow::bail!("{path} has no processor times"),
    }
}

/// Processor time of several processes, in microseconds.
///
/// # Errors
/// When one of them is gone.
pub(crate) fn cpu_us(pids: &[u32]) -> Result<u64> {
    let ticks = pids.iter().map(|pid| cpu_ticks(*pid)).sum::<Result<u64>>()?;
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All resident pages.
    pub(crate) rss: u64,
    /// Pages that several processes share count in parts.
    pub(crate) pss: u64,
}

impl Add for Memory {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { rss: self.rss + other.rss, pss: self.pss + other.pss }
    }
}

impl Sub for Memory {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { rss: self.rss.saturating_sub(other.rss), pss: self.pss.saturating_sub(other.pss) }
    }
}

/// Resident memory of several processes.
///
/// # Errors
/// When one of them is gone.
pub(crate) fn memory(pids: &[u32]) -> Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB"));
            line.and_then(|kb| kb.parse::<u64>().ok()).map(|kb| kb * 1024).with_context(|| format!("{path} has no {name}"))
        };
        sum = sum + Memory { rss: field("Rss:")?, pss: field("Pss:")? };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let me = [std::process::id()];
        let before = cpu_us(&me).expect("stat");
        let started = std::time::Instant::now();
        let mut x = 1_u64;
        while started.elapsed().as_millis() < 200 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let used = cpu_us(&me).expect("stat") - before;
        assert!(used >= 20_000, "a loop of 200 ms used {used} us");
        let memory = memory(&me).expect("smaps_rollup");
        assert!(memory.rss >= memory.pss && memory.pss > 100_000, "{memory:?}");
    }
}
