//! The benchmark's own clients of Kafka: the data set into it, and plain readers with the meter's settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

pub const PARTITIONS: i32 = 8;
const WAIT: Duration = Duration::from_secs(120);

/// As `ingest::consumer` reads: what is measured against each other fetches in the same way.
pub const READER: [(&str, &str); 10] = [
    ("fetch.min.bytes", "1"),
    ("fetch.wait.max.ms", "20"),
    ("queued.min.messages", "100000"),
    ("queued.max.messages.kbytes", "65536"),
    ("fetch.queue.backoff.ms", "10"),
    ("check.crcs", "true"),
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
];

#[derive(Clone, Default)]
struct Deliveries {
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.done } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends records, each by its key, as `credit-meter load` does, and returns how many were acknowledged.
pub fn produce(brokers: &str, topic: &str, records: impl Iterator<Item = (String, String)>) -> anyhow::Result<u64> {
    let deliveries = Deliveries::default();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("acks", "all").set("enable.idempotence", "true");
    config.set("linger.ms", "20").set("compression.type", "lz4").set("partitioner", "murmur2_random");
    config.set("queue.buffering.max.messages", "200000").set("queue.buffering.max.kbytes", "262144");
    let producer: ThreadedProducer<Deliveries> = config.create_with_context(deliveries.clone())?;
    let mut sent = 0;
    for (key, value) in records {
        sent += 1;
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        while let Err((error, returned)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error).context("producing the data set");
            }
            std::thread::sleep(Duration::from_millis(2));
            record = returned;
        }
    }
    producer.flush(WAIT)?;
    let (done, failed) = (deliveries.done.load(Ordering::Relaxed), deliveries.failed.load(Ordering::Relaxed));
    if failed > 0 || done != sent {
        bail!("of {sent} records for {topic} {done} were acknowledged and {failed} failed");
    }
    Ok(sent)
}

/// A reader of all partitions from their beginning.
pub fn reader(brokers: &str, topic: &str, partitions: i32) -> anyhow::Result<BaseConsumer> {
    let consumer: BaseConsumer = settings(brokers).create()?;
    consumer.assign(&beginning(topic, partitions)?)?;
    Ok(consumer)
}

pub fn settings(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "bench");
    for (name, value) in READER {
        config.set(name, value);
    }
    config
}

pub fn beginning(topic: &str, partitions: i32) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(list)
}

/// The offsets after the last records.
pub fn ends<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    topic: &str,
    partitions: i32,
) -> Result<Vec<i64>, KafkaError> {
    (0..partitions).map(|partition| Ok(consumer.fetch_watermarks(topic, partition, WAIT)?.1)).collect()
}
