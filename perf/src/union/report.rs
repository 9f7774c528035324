//! Seconds, their table, and the files they are kept in.

use super::systems::System;
use super::work::Work;
use crate::circumstances::Circumstances;
use crate::kv::report::{aligned, median};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What was run, where, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    #[serde(flatten)]
    pub(crate) circumstances: Circumstances,
    pub(crate) lower: String,
    pub(crate) versions: Vec<String>,
    pub(crate) rounds: u32,
}

impl Setting {
    fn text(&self) -> String {
        format!(
            "{}. Read-only branch: {}. Systems: {}. \
             Seconds, medians of {} rounds in turns; in parentheses: the multiple of overlayfs's time.\n\n",
            self.circumstances.text(),
            self.lower,
            self.versions.join(", "),
            self.rounds
        )
    }
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    text: &'static str,
    target: Option<f64>,
    /// All rounds, by the system's name.
    seconds: BTreeMap<&'static str, Vec<f64>>,
    failed: Vec<String>,
}

impl Row {
    fn median(&self, system: System) -> Option<f64> {
        median(self.seconds.get(system.name())?.clone())
    }

    /// Ours as a multiple of the kernel's overlayfs.
    fn ratio(&self, system: System) -> Option<f64> {
        Some(self.median(system)? / self.median(System::Overlayfs).filter(|s| *s > 0.0)?)
    }

    fn cell(&self, system: System) -> String {
        let Some(seconds) = self.median(system) else { return "-".into() };
        let digits = if seconds < 10.0 { 3 } else { 1 };
        match self.ratio(system).filter(|_| system != System::Overlayfs) {
            Some(ratio) => format!("{seconds:.digits$} ({ratio:.2}x)"),
            None => format!("{seconds:.digits$}"),
        }
    }

    fn verdict(&self, systems: &[System]) -> String {
        let word = |ratio: Option<f64>, most: f64| match ratio {
            Some(r) if r <= most => "met".to_owned(),
            Some(_) => "MISSED".to_owned(),
            None => "not measured".to_owned(),
        };
        let Some(most) = self.target else { return String::new() };
        let ours: Vec<String> = systems.iter().filter(|s| s.is_ours()).map(|s| word(self.ratio(*s), most)).collect();
        format!("{most}x: {}", ours.join(" / "))
    }
}

/// All works on all systems.
#[derive(Debug)]
pub(crate) struct Table {
    systems: Vec<System>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(systems: &[System]) -> Self {
        Self { systems: systems.to_vec(), rows: Vec::new() }
    }

    fn row(&mut self, work: &Work) -> &mut Row {
        let at = self.rows.iter().position(|r| r.name == work.name).unwrap_or_else(|| {
            let (seconds, failed) = (BTreeMap::new(), Vec::new());
            self.rows.push(Row { name: work.name, text: work.text, target: work.target, seconds, failed });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    pub(crate) fn add(&mut self, work: &Work, system: System, seconds: f64) {
        self.row(work).seconds.entry(system.name()).or_default().push(seconds);
    }

    pub(crate) fn failed(&mut self, work: &Work, system: System, error: &anyhow::Error) {
        self.row(work).failed.push(format!("{}: {error:#}", system.name()));
    }

    /// Failures of ours, and of the kernel's: what a peer cannot do is a finding, not a failure.
    pub(crate) fn failures(&self) -> usize {
        let ours = |f: &&String| f.starts_with("brickraft") || f.starts_with("overlayfs");
        self.rows.iter().flat_map(|r| r.failed.iter().filter(ours)).count()
    }

    pub(crate) fn text(&self) -> String {
        let mut rows = vec![vec!["work".to_owned()]];
        rows[0].extend(self.systems.iter().map(|s| s.name().to_owned()));
        rows[0].push("target".into());
        for row in &self.rows {
            let mut cells = vec![row.text.to_owned()];
            cells.extend(self.systems.iter().map(|s| row.cell(*s)));
            cells.push(row.verdict(&self.systems));
            rows.push(cells);
        }
        let mut out = aligned(&rows);
        for row in &self.rows {
            for failed in &row.failed {
                let _ = write!(out, "\nFailed: {}: {failed}\n", row.name);
            }
        }
        out
    }

    /// Writes `NAME.md` and `NAME.json`.
    pub(crate) fn keep(&self, dir: &Path, name: &str, setting: &Setting) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let (markdown, json) = (dir.join(format!("{name}.md")), dir.join(format!("{name}.json")));
        std::fs::write(&markdown, setting.text() + &self.text()).with_context(|| format!("write {}", markdown.display()))?;
        let all = serde_json::json!({ "setting": setting, "results": self.rows });
        std::fs::write(&json, serde_json::to_string_pretty(&all)? + "\n").with_context(|| format!("write {}", json.display()))?;
        println!("\nKept in {} and {}.", markdown.display(), json.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::systems::OWN;
    use super::super::work::WORKS;
    use super::*;

    #[test]
    fn targets_are_judged_by_ratio() {
        let [ours, none] = [&OWN[0], &OWN[1]].map(System::Ours);
        let systems = [System::Overlayfs, ours, none];
        let mut table = Table::new(&systems);
        let find = WORKS.iter().find(|w| w.name == "find").expect("listed");
        for (system, seconds) in [(System::Overlayfs, 1.0), (ours, 2.0), (none, 1.3)] {
            table.add(find, system, seconds);
        }
        assert_eq!(table.rows[0].verdict(&systems), "1.3x: MISSED / met");
        assert!(table.text().contains("2.000 (2.00x)"), "{}", table.text());
    }
}
