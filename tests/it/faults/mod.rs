//! Faults on real parts, each under paced load, each followed by a check that nothing was charged twice or not at all.
//! docs/reliability.md says what was seen; `tests/faults` runs the long forms.

mod damaged;
mod kafka_network;
mod machine;
mod on_kafka;
mod on_redis;
mod soak;
mod upgrade;
mod workers;

use std::sync::Arc;

use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::traffic::Traffic;
use crate::walk::CATALOGUE;

const PARTITIONS: i32 = 4;

/// A meter of the test's own and traffic for it.
async fn under_load(test: &str, seed: u64) -> (Arc<Topics>, Meter, Traffic) {
    let topics = Arc::new(Topics::create(test, PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "warn");
    let traffic = Traffic::start(&topics, seed);
    (topics, meter, traffic)
}
