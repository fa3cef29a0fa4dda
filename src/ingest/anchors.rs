//! Whether a log is still the one that was read: at each position stands the record that a shard remembers.
//!
//! A topic that was made anew, or truncated and written again, may have grown past a position. Its offsets then look
//! right, and its records are others.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::message::Message as _;

use super::client::{BrokerError, topic_of};
use super::decode::fingerprint;
use super::scan::{Next, scan_each};
use crate::config::Kafka;
use crate::ledger::call::{Anchor, Input, Partition};

/// The partitions whose log is another, with what is wrong. What retention has taken proves nothing. It blocks.
pub fn check(
    kafka: &Kafka,
    anchors: &BTreeMap<Partition, BTreeSet<Anchor>>,
) -> Result<Vec<(Partition, String)>, BrokerError> {
    let mut wrong: BTreeMap<Partition, String> = BTreeMap::new();
    for input in Input::ALL {
        let topic = topic_of(&kafka.topics, input);
        let own = anchors.iter().filter(|(partition, anchors)| partition.input == input && !anchors.is_empty());
        let own: BTreeMap<i32, &BTreeSet<Anchor>> =
            own.map(|(partition, anchors)| (partition.index, anchors)).collect();
        let starts = own.iter().filter_map(|(index, anchors)| Some((*index, anchors.first()?.offset))).collect();
        let damaged = scan_each(kafka, topic, &starts, |message| {
            let Some(anchors) = own.get(&message.partition()) else { return Next::Enough };
            let offset = message.offset();
            let found = fingerprint(message.payload(), message.timestamp().to_millis().unwrap_or(0));
            if anchors.iter().any(|anchor| anchor.offset == offset && anchor.fingerprint != found) {
                let index = message.partition();
                let reason = format!(
                    "{topic}/{index}@{offset} is not the record that was counted there: the topic was made anew, or \
                     truncated and written again; restore it, or begin with a new state under another redis.prefix"
                );
                wrong.insert(Partition { input, index }, reason);
                return Next::Enough;
            }
            let last = anchors.last().map_or(offset, |anchor| anchor.offset);
            if offset >= last { Next::Enough } else { Next::On }
        })?;
        wrong.extend(damaged.into_iter().map(|(index, error)| {
            (Partition { input, index }, format!("{error}, and restart the worker; nothing is passed over"))
        }));
    }
    Ok(wrong.into_iter().collect())
}
