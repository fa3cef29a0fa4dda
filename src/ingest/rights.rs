//! Whether the brokers let the meter's user read its inputs.
//!
//! The client tells once that it is not let, and reads on by itself when it is: that has to be asked for.

use std::collections::BTreeMap;

use super::client::{BrokerError, Cluster, topic_of};
use super::scan::{Next, scan_each};
use super::watermarks::Watermarks;
use crate::config::Kafka;
use crate::ledger::call::Input;

/// Asks for what the group has committed, and reads the last record of every partition.
pub async fn may_read(kafka: &Kafka, watermarks: &Watermarks) -> Result<(), BrokerError> {
    let cluster = Cluster::new(kafka)?;
    for input in Input::ALL {
        let topic = topic_of(&kafka.topics, input).to_owned();
        let partitions = cluster.partitions(&topic).await?;
        watermarks.committed_metadata(&topic, partitions).await?;
        let mut last = BTreeMap::new();
        for partition in 0..partitions {
            last.insert(partition, watermarks.range(&topic, partition).await?.1 - 1);
        }
        let kafka = kafka.clone();
        // One that is damaged may be read, all the same.
        let read = move || scan_each(&kafka, &topic, &last, |_| Next::Enough).map(drop);
        tokio::task::spawn_blocking(read).await.expect("reading does not panic")?;
    }
    Ok(())
}
