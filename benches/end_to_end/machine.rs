//! What ran where: processor time of processes and threads, memory, and the names of what is measured on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Linux counts processor time for users in hundredths of a second, on every architecture that it tells it to.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds (user and system) that a process has used; `self` is this one.
pub fn cpu_seconds(process: &str) -> f64 {
    cpu_of(Path::new(&format!("/proc/{process}/stat"))).unwrap_or(0.0)
}

fn cpu_of(stat: &Path) -> Option<f64> {
    let text = fs::read_to_string(stat).ok()?;
    // The name may hold blanks; what follows it does not.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// Processor seconds of a process' threads, by their names.
pub fn threads(process: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        *found.entry(name).or_insert(0.0) += cpu_of(&entry.path().join("stat")).unwrap_or(0.0);
    }
    found
}

/// The most memory that a process has held at once, in MB of 10^6 bytes.
pub fn rss_peak_mb(process: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0 / 1e6
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, model)| model).to_owned()
}

pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or("unknown".to_owned(), |text| text.trim().to_owned())
}
