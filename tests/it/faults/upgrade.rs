//! Programs of different versions on one state: an upgrade one worker after the other, and the way back.

use std::path::{Path, PathBuf};

use super::under_load;
use crate::support::meter::{Meter, Running};
use crate::support::report::{row, short_or_long};

/// The program of an earlier version. Where it is not named, this one plays both parts.
const OLDER: &str = "CREDIT_METER_OLDER";

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_one_worker_after_the_other_and_back() {
    let (topics, newer, traffic) = under_load("upgrade", 50).await;
    let mut older = newer.clone();
    let named = std::env::var_os(OLDER).map(PathBuf::from);
    if let Some(program) = &named {
        older.use_program(program);
    }
    let mut workers = [start(&older).await, start(&older).await];
    // Up, back, and in the long form up again: for a while both versions work side by side.
    for version in [&newer, &older, &newer].into_iter().take(short_or_long(2, 3)) {
        for worker in &mut workers {
            newer.applies(short_or_long(600, 20_000)).await;
            let left = std::mem::replace(worker, start(version).await);
            assert_eq!(left.terminate().await.code(), Some(0));
        }
        newer.applies(short_or_long(600, 20_000)).await;
        assert_eq!(version.audit()["mismatches"], 0, "in the eyes of the version that is left");
    }
    let seen = traffic.end().await.check(&topics, &newer).await;
    let name = |program: &Path| program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let older = named.map_or_else(|| "the same version".to_owned(), |program| name(&program));
    row("50", &format!("An upgrade from {older} and the way back, one worker after the other"), &seen.to_string());
}

async fn start(meter: &Meter) -> Running {
    let running = meter.start(&[]);
    running.ready().await;
    running
}
