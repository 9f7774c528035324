//! This process's own figures, as Prometheus' client libraries give them.

use std::fmt::Write as _;
use std::path::Path;

/// Clock ticks in a second and bytes in a page, as Linux shows them to programs.
const TICKS_PER_S: f64 = 100.0;

/// The figures in Prometheus' text format; those that cannot be read are left out.
#[must_use]
pub fn metrics() -> String {
    let mut page = String::new();
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the name in brackets, which may hold anything.
    let fields: Vec<f64> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    // Numbered from the third field, the state.
    let field = |number: usize| fields.get(number - 3).copied();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_S);
    add("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpu);
    let resident = field(24).map(|pages| pages * rustix::param::page_size() as f64);
    add("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident);
    add("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(23));
    let start = boot_time().zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS_PER_S);
    add("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", start);
    let open = std::fs::read_dir(Path::new("/proc/self/fd")).ok().map(|dir| dir.count() as f64);
    add("process_open_fds", "gauge", "Number of open file descriptors.", open);
    add("os_fd_used", "gauge", "The number of used file descriptors.", open);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    add("process_max_fds", "gauge", "Maximum number of open file descriptors.", limit.map(|n| n as f64));
    add("os_fd_limit", "gauge", "The file descriptor limit.", limit.map(|n| n as f64));
    page
}

fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_figures_are_there() {
        let page = super::metrics();
        let value = |name: &str| page.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(value("os_fd_used ").is_some_and(|n| n > 0.0) && value("os_fd_limit ") == value("process_max_fds "));
        for name in ["cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes", "start_time_seconds", "open_fds", "max_fds"] {
            let line = page.lines().find(|l| l.starts_with(&format!("process_{name} "))).unwrap_or_else(|| panic!("{name}: {page}"));
            let value: f64 = line.rsplit_once(' ').expect("a value").1.parse().expect("a number");
            assert!(value >= 0.0 && (name == "cpu_seconds_total" || value > 0.0), "{line}");
        }
    }
}
