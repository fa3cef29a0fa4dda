//! What only a restart would cure: a loop that is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::http::Health;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row without a beat after which a loop is stuck. Longer than any call to Kafka that the reader waits for.
const SILENT_LOOKS_MAX: u32 = 180;

/// The beats of the loops that must go on.
#[derive(Debug, Default)]
pub struct Pulse {
    pub worker: Beat,
    /// The thread that reads tells of the client's statistics every second, whatever the brokers do.
    pub reader: Beat,
}

#[derive(Debug, Default)]
pub struct Beat(AtomicU64);

impl Beat {
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts looks, not time: a process that was stopped, with all its loops, is not stuck.
#[derive(Debug, Default)]
struct Silence {
    beats: u64,
    looks: u32,
}

impl Silence {
    /// Whether the loop is stuck.
    fn look(&mut self, beat: &Beat) -> bool {
        let beats = beat.0.load(Ordering::Relaxed);
        self.looks = if beats == self.beats { self.looks.saturating_add(1) } else { 0 };
        self.beats = beats;
        self.looks > SILENT_LOOKS_MAX
    }
}

pub async fn run(pulse: Arc<Pulse>, health: Arc<Health>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut worker, mut reader) = (Silence::default(), Silence::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let stuck = match (worker.look(&pulse.worker), reader.look(&pulse.reader)) {
            (true, _) => Some("the worker's loop"),
            (false, true) => Some("the thread that reads kafka"),
            (false, false) => None,
        };
        health.set_stuck(stuck.map(|what| format!("{what} is stuck: restart the meter")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_without_a_beat_is_stuck_until_the_next() {
        let (beat, mut silence) = (Beat::default(), Silence::default());
        beat.beat();
        for _ in 0..=SILENT_LOOKS_MAX {
            assert!(!silence.look(&beat));
        }
        assert!(silence.look(&beat));
        beat.beat();
        assert!(!silence.look(&beat), "it goes on");
    }
}
