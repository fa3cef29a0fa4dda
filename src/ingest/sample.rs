//! The newest records of a topic, now and then: as many as can be read in passing, however many come.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Reasons};
use super::log::LogRecord;
use crate::config::Kafka;

/// The client reads ahead a little only: most of a busy topic is passed over.
const DEFAULTS: [(&str, &str); 4] = [
    ("fetch.wait.max.ms", "20"),
    ("fetch.message.max.bytes", "262144"),
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.queue.backoff.ms", "20"),
];
const FIXED: [(&str, &str); 4] = [
    ("enable.auto.commit", "false"),
    // What is gone is not missed here.
    ("auto.offset.reset", "latest"),
    ("enable.partition.eof", "true"),
    ("isolation.level", "read_committed"),
];
const POLL: Duration = Duration::from_millis(50);

/// Samples all partitions that a topic has when it begins.
pub struct Sampler {
    consumer: BaseConsumer<Reasons>,
    kafka: Kafka,
    topic: String,
    partitions: BTreeMap<i32, Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// The next offset to read.
    at: i64,
    /// Where the partition ended in the last round.
    end: i64,
}

/// What was read of a partition in a round, of how many records that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<T> {
    pub appended: u64,
    pub read: Vec<T>,
}

impl Sampler {
    /// Begins so many records before the topic's end. It blocks.
    pub fn open(kafka: &Kafka, topic: &str, back: usize) -> Result<Sampler, BrokerError> {
        let made = client::reader_settings(kafka, &DEFAULTS, &FIXED).create_with_context(Reasons::default());
        let consumer: BaseConsumer<Reasons> = made.map_err(BrokerError::settings)?;
        let mut sampler =
            Sampler { consumer, kafka: kafka.clone(), topic: topic.to_owned(), partitions: BTreeMap::new() };
        let metadata = sampler.consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT);
        let metadata = metadata.map_err(|error| sampler.no_answer(&error))?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if count == 0 {
            return Err(BrokerError::NoTopic { topic: topic.to_owned() });
        }
        let mut starts = TopicPartitionList::new();
        for partition in 0..count as i32 {
            let (first, end) = sampler.range(partition)?;
            let at = (end - (back / count) as i64).max(first);
            sampler.partitions.insert(partition, Place { at, end });
            let added = starts.add_partition_offset(topic, partition, Offset::Offset(at));
            added.expect("an offset that kafka gave is valid");
        }
        sampler.consumer.assign(&starts).map_err(|error| sampler.no_answer(&error))?;
        Ok(sampler)
    }

    /// Reads the newest records, at most about so many and for so long. It blocks.
    pub fn round<T>(
        &mut self,
        records_max: usize,
        time_max: Duration,
        mut visit: impl FnMut(LogRecord<'_>) -> T,
    ) -> Result<BTreeMap<i32, Part<T>>, BrokerError> {
        let deadline = Instant::now() + time_max;
        let each = (records_max / self.partitions.len()).max(1) as i64;
        let mut parts = BTreeMap::new();
        let mut waiting = 0;
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            let (_, end) = self.range(partition)?;
            let place = self.partitions.get_mut(&partition).expect("it is a key");
            let appended = u64::try_from(end - place.end).unwrap_or(0);
            place.end = end;
            // A topic that was made anew starts again, and who is far behind goes on near the end.
            if place.at > end || place.at < end - each {
                let at = (end - each).max(0);
                // One that is just being assigned refuses, and is asked again in the next round.
                if self.consumer.seek(&self.topic, partition, Offset::Offset(at), ANSWER_TIMEOUT).is_ok() {
                    place.at = at;
                }
            }
            let place = self.partitions[&partition];
            waiting += i32::from(place.at < place.end);
            parts.insert(partition, Part { appended, read: Vec::new() });
        }
        while waiting > 0 && Instant::now() < deadline {
            let (partition, at) = match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let headers =
                        message.headers().map(|headers| headers.iter().map(|header| (header.key, header.value)));
                    let headers: Vec<_> = headers.into_iter().flatten().collect();
                    let record = LogRecord {
                        partition,
                        offset,
                        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
                        key: message.key(),
                        value: message.payload(),
                        headers: &headers,
                    };
                    parts.entry(partition).and_modify(|part| part.read.push(visit(record)));
                    (partition, offset + 1)
                }
                // What lies before the end are control records.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    (partition, self.partitions.get(&partition).map_or(0, |place| place.end))
                }
                Some(Err(_)) | None => continue,
            };
            let Some(place) = self.partitions.get_mut(&partition) else { continue };
            waiting -= i32::from(place.at < place.end && at >= place.end);
            place.at = place.at.max(at);
        }
        Ok(parts)
    }

    fn range(&self, partition: i32) -> Result<(i64, i64), BrokerError> {
        let range = self.consumer.fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT);
        range.map_err(|error| self.no_answer(&error))
    }

    fn no_answer(&self, error: &KafkaError) -> BrokerError {
        let fault = self.consumer.context().fault(error);
        BrokerError::NoAnswer { brokers: self.kafka.brokers.clone(), fault }
    }
}
