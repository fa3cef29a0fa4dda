//! Reads a topic, outside the group, from given offsets to where it ends now.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Reasons};
use super::fault::{Fault, not_allowed};
use crate::config::Kafka;

/// A broker that is there delivers something within this time.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The client pauses a partition that is far ahead for this long, a second by default.
const DEFAULTS: [(&str, &str); 2] = [("fetch.wait.max.ms", "20"), ("fetch.queue.backoff.ms", "20")];
pub(super) const POLL: Duration = Duration::from_millis(100);

/// What the visitor wants next of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    On,
    /// Nothing more of this partition.
    Enough,
}

/// Gives every record of the partitions from their offsets on, up to where they ended when it began.
/// It blocks: call it off the async threads.
pub fn scan(
    kafka: &Kafka,
    topic: &str,
    starts: &BTreeMap<i32, i64>,
    mut visit: impl FnMut(&BorrowedMessage) -> Next,
) -> Result<(), BrokerError> {
    let consumer = consumer(kafka)?;
    let failed = |error: &KafkaError| no_answer(kafka, error);
    let mut ends = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    for (&partition, &start) in starts {
        let marks = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT);
        let (first, end) = marks.map_err(|error| {
            let fault = Fault::new(&error, &format!("{topic}/{partition}: {error}"));
            BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault }
        })?;
        let start = start.max(first);
        if start < end {
            ends.insert(partition, end);
            list.add_partition_offset(topic, partition, Offset::Offset(start)).map_err(|error| failed(&error))?;
        }
    }
    if ends.is_empty() {
        return Ok(());
    }
    consumer.assign(&list).map_err(|error| failed(&error))?;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let partition = message.partition();
                let Some(&end) = ends.get(&partition) else { continue };
                let enough = message.offset() >= end || visit(&message) == Next::Enough;
                if enough || message.offset() + 1 >= end {
                    ends.remove(&partition);
                }
            }
            // What lies before the end are control records.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                ends.remove(&partition);
            }
            Some(Err(error)) => {
                if let Some(reason) = consumer.context().damage.take() {
                    // Of one partition it is known which.
                    let one = starts.iter().next().filter(|_| starts.len() == 1);
                    let place =
                        one.map_or(topic.to_owned(), |(partition, from)| format!("{topic}/{partition} from {from} on"));
                    return Err(BrokerError::Damaged { place, reason });
                }
                if heard.elapsed() > SILENCE_MAX || error.rdkafka_error_code().is_some_and(not_allowed) {
                    let fault = Fault::new(&error, &format!("{topic}: {error}"));
                    return Err(BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault });
                }
            }
            None if heard.elapsed() > SILENCE_MAX => {
                let reason = format!("{topic} cannot be read: nothing came for {SILENCE_MAX:?}");
                return Err(BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault: Fault::silence(reason) });
            }
            None => {}
        }
    }
    Ok(())
}

/// The same, but a partition that cannot be read keeps no other from being read: it is given back, with the reason. What is
/// visited may come twice.
pub fn scan_each(
    kafka: &Kafka,
    topic: &str,
    starts: &BTreeMap<i32, i64>,
    mut visit: impl FnMut(&BorrowedMessage) -> Next,
) -> Result<BTreeMap<i32, BrokerError>, BrokerError> {
    let mut damaged = BTreeMap::new();
    match scan(kafka, topic, starts, &mut visit) {
        Err(BrokerError::Damaged { .. }) => {}
        other => return other.map(|()| damaged),
    }
    for (&partition, &from) in starts {
        match scan(kafka, topic, &BTreeMap::from([(partition, from)]), &mut visit) {
            Err(error @ BrokerError::Damaged { .. }) => drop(damaged.insert(partition, error)),
            other => other?,
        }
    }
    Ok(damaged)
}

/// For each partition of a topic the offset of the first record that was appended at this time or later.
pub fn offsets_at(kafka: &Kafka, topic: &str, time_ms: i64) -> Result<BTreeMap<i32, i64>, BrokerError> {
    let consumer = consumer(kafka)?;
    let failed = |error: KafkaError| no_answer(kafka, &error);
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).map_err(failed)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    if partitions == 0 {
        return Err(BrokerError::NoTopic { topic: topic.to_owned() });
    }
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        let time = Offset::Offset(time_ms.max(0));
        list.add_partition_offset(topic, partition, time).map_err(failed)?;
    }
    let found = consumer.offsets_for_times(list, ANSWER_TIMEOUT).map_err(failed)?;
    let start = |offset: Offset| match offset {
        Offset::Offset(offset) => offset,
        // Nothing is that young.
        _ => i64::MAX,
    };
    Ok(found.elements().iter().map(|element| (element.partition(), start(element.offset()))).collect())
}

pub(super) fn consumer(kafka: &Kafka) -> Result<BaseConsumer<Reasons>, BrokerError> {
    let fixed = [
        ("auto.offset.reset", "error"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
        ("check.crcs", "true"),
    ];
    let made = client::reader_settings(kafka, &DEFAULTS, &fixed).create_with_context(Reasons::default());
    made.map_err(BrokerError::settings)
}

fn no_answer(kafka: &Kafka, error: &KafkaError) -> BrokerError {
    BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault: error.into() }
}
