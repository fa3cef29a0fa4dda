//! A topic as it goes on, outside the group.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::{Instant, sleep_until};

use super::by_time::Source;
use super::client::{self, BrokerError, Cluster, Reasons};
use super::ledger_tail::will_not_pass;
use super::recorded::CLOCKS_APART_MS;
use super::scan::offsets_at;
use super::watermarks::Watermarks;
use crate::config::{Kafka, StartFrom};

/// How often it looks for partitions that were added.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const FIXED: [(&str, &str); 6] = [
    ("check.crcs", "true"),
    ("enable.auto.commit", "false"),
    // What retention took before it was read is told, not passed over.
    ("auto.offset.reset", "error"),
    ("enable.partition.eof", "true"),
    ("isolation.level", "read_committed"),
    client::STATISTICS,
];

pub(super) fn headers(message: &BorrowedMessage) -> Vec<(String, Option<Vec<u8>>)> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
}

/// All partitions of a topic from a moment on.
pub struct Tail {
    kafka: Kafka,
    consumer: StreamConsumer<Reasons>,
    cluster: Cluster,
    topic: String,
    /// What comes next, by partition.
    next: BTreeMap<i32, Offset>,
    looked: Instant,
    /// Where partitions ended at the start that have not come so far.
    ends: BTreeMap<i32, i64>,
    told_end: bool,
    /// Offsets between where it began and where the topic ended then.
    pub backlog: u64,
}

/// A record, on its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailRecord {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Record(TailRecord),
    /// All that was there at the start has been given; told once.
    CaughtUp,
}

impl Tail {
    pub async fn open(kafka: &Kafka, topic: &str, from: StartFrom) -> Result<Tail, BrokerError> {
        let since = match from {
            StartFrom::Time(time_ms) => asked_offsets(kafka, topic, time_ms).await?,
            StartFrom::Earliest | StartFrom::Latest => BTreeMap::new(),
        };
        let start = |partition: i32, (first, end): (i64, i64)| match from {
            StartFrom::Earliest => first,
            StartFrom::Latest => end,
            StartFrom::Time(_) => since.get(&partition).map_or(end, |start| (*start).clamp(first, end)),
        };
        Tail::begin(kafka, topic, start).await
    }

    /// From where an earlier one was, which had read nothing younger than `read_ms`; a partition that it did not know from its
    /// beginning. Also tells, for people, what it has missed.
    pub async fn resume(
        kafka: &Kafka,
        topic: &str,
        places: &BTreeMap<i32, i64>,
        read_ms: Option<i64>,
    ) -> Result<(Tail, Vec<String>), BrokerError> {
        let younger = match read_ms {
            Some(read_ms) => asked_offsets(kafka, topic, read_ms + CLOCKS_APART_MS).await?,
            None => BTreeMap::new(),
        };
        let mut missed = Vec::new();
        let start = |partition: i32, (first, end): (i64, i64)| match places.get(&partition) {
            // What lies below would have been read, and is younger than anything that was.
            Some(&place) if place > end || younger.get(&partition).is_some_and(|younger| *younger < place) => {
                missed.push(format!(
                    "{topic}/{partition} is another log than the one that was read up to {place}: it is read from its beginning"
                ));
                first
            }
            Some(&place) if place < first => {
                missed.push(format!(
                    "{topic}/{partition}: what lay from {place} to {first} was deleted before it was read"
                ));
                first
            }
            Some(&place) => place,
            None => first,
        };
        Ok((Tail::begin(kafka, topic, start).await?, missed))
    }

    /// `start`: where a partition begins to be read, which has these first and end offsets.
    async fn begin(
        kafka: &Kafka,
        topic: &str,
        mut start: impl FnMut(i32, (i64, i64)) -> i64,
    ) -> Result<Tail, BrokerError> {
        let cluster = Cluster::new(kafka)?;
        let partitions = cluster.partitions(topic).await?;
        let watermarks = Watermarks::new(kafka)?;
        let (mut next, mut ends, mut backlog) = (BTreeMap::new(), BTreeMap::new(), 0);
        for partition in 0..partitions {
            let (first, end) = watermarks.range(topic, partition).await?;
            let start = start(partition, (first, end));
            if start < end {
                ends.insert(partition, end);
                backlog += (end - start).unsigned_abs();
            }
            next.insert(partition, Offset::Offset(start));
        }
        let consumer = read(kafka, topic, &next)?;
        let (kafka, topic, looked) = (kafka.clone(), topic.to_owned(), Instant::now());
        Ok(Tail { kafka, consumer, cluster, topic, next, looked, ends, told_end: false, backlog })
    }

    /// What comes next of each partition whose offsets are known.
    pub fn places(&self) -> BTreeMap<i32, i64> {
        let known = self.next.iter().filter_map(|(partition, next)| match next {
            Offset::Offset(next) => Some((*partition, *next)),
            _ => None,
        });
        known.collect()
    }

    async fn step(&mut self) -> Result<Step, BrokerError> {
        loop {
            if self.ends.is_empty() && !self.told_end {
                self.told_end = true;
                return Ok(Step::CaughtUp);
            }
            let received = tokio::select! {
                received = self.consumer.recv() => received,
                () = sleep_until(self.looked + LOOK_EVERY) => {
                    self.look().await?;
                    continue;
                }
            };
            match received {
                Ok(message) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    self.next.insert(partition, Offset::Offset(offset + 1));
                    if self.ends.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                        self.ends.remove(&partition);
                    }
                    return Ok(Step::Record(TailRecord {
                        partition,
                        offset,
                        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: headers(&message),
                    }));
                }
                // What lies before the end are control records.
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.ends.remove(&partition);
                }
                Err(error) => {
                    if let Some(reason) = self.consumer.context().damage.take() {
                        return Err(BrokerError::Damaged { place: self.topic.clone(), reason });
                    }
                    let given_up = matches!(error, KafkaError::MessageConsumptionFatal(_))
                        || error.rdkafka_error_code().is_some_and(will_not_pass);
                    if given_up {
                        let what = format!("let {} be read", self.topic);
                        return Err(BrokerError::Refused { what, reason: error.to_string() });
                    }
                    // The client reconnects by itself.
                }
            }
        }
    }

    /// Adds partitions that were made meanwhile, from their beginning; one that has no answer is asked for again. Takes another
    /// client for one that has given up.
    async fn look(&mut self) -> Result<(), BrokerError> {
        self.looked = Instant::now();
        if self.consumer.context().has_given_up(&client::settings(&self.kafka, &[], &[])) {
            tracing::warn!(
                topic = self.topic,
                "the client has no connection to a broker, and does not try to make one; another goes on where it was"
            );
            let consumer = read(&self.kafka, &self.topic, &self.next)?;
            let lost = std::mem::replace(&mut self.consumer, consumer);
            // It may wait for its threads.
            tokio::task::spawn_blocking(move || drop(lost));
        }
        let Ok(partitions) = self.cluster.partitions(&self.topic).await else { return Ok(()) };
        let known = self.next.len() as i32;
        let new: BTreeMap<i32, Offset> = (known..partitions).map(|partition| (partition, Offset::Beginning)).collect();
        if new.is_empty() {
            return Ok(());
        }
        match self.consumer.incremental_assign(&places(&self.topic, &new)) {
            Ok(()) => self.next.extend(new),
            Err(error) => tracing::warn!(topic = self.topic, %error, "new partitions wait"),
        }
        Ok(())
    }
}

impl Source for Tail {
    async fn next(&mut self) -> Result<Step, BrokerError> {
        self.step().await
    }

    fn behind(&self) -> impl Iterator<Item = i32> {
        self.ends.keys().copied()
    }
}

/// The first offset of each partition whose record is as young as that.
async fn asked_offsets(kafka: &Kafka, topic: &str, time_ms: i64) -> Result<BTreeMap<i32, i64>, BrokerError> {
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    let asked = tokio::task::spawn_blocking(move || offsets_at(&kafka, &topic, time_ms));
    asked.await.expect("asking does not panic")
}

fn read(kafka: &Kafka, topic: &str, next: &BTreeMap<i32, Offset>) -> Result<StreamConsumer<Reasons>, BrokerError> {
    let config = client::reader_settings(kafka, &[("fetch.wait.max.ms", "100")], &FIXED);
    let made = config.create_with_context(Reasons::default());
    let consumer: StreamConsumer<Reasons> = made.map_err(BrokerError::settings)?;
    let refused = |error: KafkaError| BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault: (&error).into() };
    consumer.assign(&places(topic, next)).map_err(refused)?;
    Ok(consumer)
}

fn places(topic: &str, next: &BTreeMap<i32, Offset>) -> TopicPartitionList {
    let mut places = TopicPartitionList::new();
    for (partition, offset) in next {
        places.add_partition_offset(topic, *partition, *offset).expect("an offset that kafka gave is valid");
    }
    places
}
