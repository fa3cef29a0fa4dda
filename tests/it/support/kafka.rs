//! Topics of a test's own in the real Kafka, and what is in them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicI32;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::schema::keeps_its_schema;
use super::{own_prefix, service, until};

/// The topics of one test, with names that no other has.
pub struct Topics {
    pub prefix: String,
    /// Of the usage topic. A test may add some.
    pub partitions: AtomicI32,
    pub brokers: String,
    producer: Mutex<FutureProducer>,
}

/// Roles whose topics only meters write to.
const PUBLISHED: [&str; 5] = ["denied", "alerts", "cycles", "ledger", "ticks"];

/// A record to produce.
#[derive(Clone, Default)]
pub struct Outgoing {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Topics {
    pub async fn create(test: &str, partitions: i32) -> Topics {
        Topics::stamped(test, partitions, "LogAppendTime").await
    }

    /// In a Kafka of the test's own.
    pub async fn create_in(brokers: &str, test: &str, partitions: i32) -> Topics {
        Topics::make(brokers, test, partitions, ["LogAppendTime"; 2]).await
    }

    /// Those that a meter has made by itself.
    pub fn named(brokers: &str, prefix: String, partitions: i32) -> Topics {
        Topics {
            prefix,
            partitions: AtomicI32::new(partitions),
            brokers: brokers.to_owned(),
            producer: Mutex::new(producer(brokers)),
        }
    }

    /// With `CreateTime`, records carry their producer's clock.
    pub async fn stamped(test: &str, partitions: i32, timestamps: &str) -> Topics {
        Topics::make(&service("KAFKA_BROKERS"), test, partitions, [timestamps, "LogAppendTime"]).await
    }

    /// Usage and commands carry their producer's clock.
    pub async fn of_the_past(test: &str, partitions: i32) -> Topics {
        Topics::make(&service("KAFKA_BROKERS"), test, partitions, ["CreateTime"; 2]).await
    }

    /// `timestamps` of usage and of commands.
    async fn make(brokers: &str, test: &str, partitions: i32, timestamps: [&str; 2]) -> Topics {
        let prefix = own_prefix(test);
        let admin: AdminClient<DefaultClientContext> = client(brokers).create().expect("an admin client");
        let name = |role: &str| format!("{prefix}.{role}");
        let usage = name("usage");
        let commands = name("commands");
        let append =
            |topic| NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
        let ticks = name("ticks");
        let stamped = |topic, timestamps| {
            let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("message.timestamp.type", timestamps);
            // Kafka would delete what a producer dates months back.
            if timestamps == "CreateTime" { topic.set("retention.ms", "-1") } else { topic }
        };
        let mut of_usage = stamped(&usage, timestamps[0]).set("max.message.bytes", "20000000");
        of_usage.num_partitions = partitions;
        let mut topics = vec![stamped(&commands, timestamps[1]), append(&ticks), of_usage];
        let others = ["denied", "alerts", "cycles", "ledger", "dead-letter"].map(name);
        for topic in &others {
            topics.push(append(topic).set("max.message.bytes", "20100000"));
        }
        // A broker that has just started may hang up on its first client.
        let made =
            until("kafka makes topics", || async { admin.create_topics(&topics, &AdminOptions::new()).await.ok() });
        for result in made.await {
            let there = matches!(result, Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)));
            assert!(there, "a topic is not made: {result:?}");
        }
        Topics::named(brokers, prefix, partitions)
    }

    pub async fn delete(&self, role: &str) {
        let deleted = self.admin().delete_topics(&[&self.name(role)], &AdminOptions::new()).await;
        let deleted = deleted.expect("kafka answers").into_iter().next().expect("an answer");
        deleted.expect("the topic is deleted");
    }

    /// Deletes a topic and makes one of the same name.
    pub async fn remake(&self, role: &str, partitions: i32, settings: &[(&str, &str)]) {
        self.delete(role).await;
        let (admin, name) = (self.admin(), self.name(role));
        until("the topic is made again", || async {
            let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
            let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
            let made = admin.create_topics(&[topic], &AdminOptions::new()).await.expect("kafka answers");
            made.into_iter().all(|result| result.is_ok()).then_some(())
        })
        .await;
    }

    pub fn name(&self, role: &str) -> String {
        format!("{}.{role}", self.prefix)
    }

    pub async fn send(&self, role: &str, record: &Outgoing) -> i64 {
        self.send_stamped(role, record, None).await
    }

    /// With the producer's time, for a topic that keeps it.
    pub async fn send_at(&self, role: &str, record: &Outgoing, time_ms: i64) -> i64 {
        self.send_stamped(role, record, Some(time_ms)).await
    }

    async fn send_stamped(&self, role: &str, record: &Outgoing, time_ms: Option<i64>) -> i64 {
        let topic = self.name(role);
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        until("kafka takes the record", || async {
            let mut outgoing: FutureRecord<[u8], [u8]> = FutureRecord::to(&topic).partition(record.partition);
            outgoing.key = record.key.as_deref();
            outgoing.payload = record.value.as_deref();
            outgoing.timestamp = time_ms;
            outgoing = outgoing.headers(headers.clone());
            let used = self.producer.lock().expect("nobody panics with it").clone();
            match used.send(outgoing, Duration::from_secs(60)).await {
                Ok(delivery) => Some(delivery.offset),
                // A broker that has just started may have told it that there are none: it never finds one again.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut), _)) => {
                    self.take_another_producer();
                    None
                }
                // Just added, and the producer has not heard of it.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition), _)) => None,
                Err((error, _)) => panic!("{topic}: {error}"),
            }
        })
        .await
    }

    /// For one that may have given up.
    pub fn take_another_producer(&self) {
        *self.producer.lock().expect("nobody panics with it") = producer(&self.brokers);
    }

    pub async fn command(&self, event: &serde_json::Value) -> i64 {
        let key = event["subject"].as_str().expect("a subject").as_bytes().to_vec();
        let record = Outgoing { key: Some(key), value: Some(event.to_string().into_bytes()), ..Outgoing::default() };
        self.send("commands", &record).await
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.brokers).create().expect("an admin client")
    }

    /// Adds partitions until there are so many.
    pub async fn grow(&self, role: &str, partitions: i32) {
        let name = self.name(role);
        let more = NewPartitions::new(&name, partitions as usize);
        let made = self.admin().create_partitions(&[more], &AdminOptions::new()).await.expect("kafka answers");
        made.into_iter().next().expect("an answer").expect("partitions are added");
    }

    /// Deletes the records of a partition below an offset, as retention would.
    pub async fn delete_below(&self, role: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name(role), partition, Offset::Offset(offset)).expect("an offset");
        self.admin().delete_records(&list, &AdminOptions::new()).await.expect("kafka deletes them");
    }

    /// The offset after the last record of each partition. A broker that has just started may not lead it yet.
    pub fn ends(&self, role: &str, partitions: i32) -> Vec<i64> {
        let consumer: BaseConsumer = client(&self.brokers).set("group.id", "tests").create().expect("a consumer");
        let deadline = Instant::now() + Duration::from_secs(60);
        let end = |partition| loop {
            match consumer.fetch_watermarks(&self.name(role), partition, Duration::from_secs(30)) {
                Ok((_, end)) => return end,
                Err(error) if Instant::now() > deadline => panic!("{}/{partition}: {error}", self.name(role)),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        (0..partitions).map(end).collect()
    }

    /// All records of a topic, partition by partition.
    pub fn read(&self, role: &str, partitions: i32) -> Vec<OwnedMessage> {
        let ends = self.ends(role, partitions);
        let mut config = client(&self.brokers);
        config.set("group.id", "tests").set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(&self.name(role), partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&list).expect("an assignment");
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut messages = Vec::new();
        let mut heard = Instant::now();
        loop {
            let done = (0..partitions).all(|each| next.get(&each).copied().unwrap_or(0) >= ends[each as usize]);
            if done {
                return messages;
            }
            match consumer.poll(Duration::from_secs(1)) {
                // Also when the client has had something else to do.
                None => assert!(heard.elapsed() < Duration::from_secs(120), "{role} is silent: {next:?} of {ends:?}"),
                Some(Ok(message)) => {
                    heard = Instant::now();
                    next.insert(message.partition(), message.offset() + 1);
                    if PUBLISHED.contains(&role) {
                        keeps_its_schema(message.payload().expect("a message has a value"));
                    }
                    messages.push(message.detach());
                }
                // The last offsets may be those of control records, which nobody is given.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    next.insert(partition, ends[partition as usize]);
                }
                Some(Err(error)) => panic!("reading {role}: {error}"),
            }
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn producer(brokers: &str) -> FutureProducer {
    let mut config = client(brokers);
    config.set("message.max.bytes", "30000000").set("linger.ms", "2").set("acks", "all");
    // How soon it hears of partitions that a test adds.
    config.set("topic.metadata.refresh.interval.ms", "1000");
    // Longer than any test keeps a broker away.
    config.set("message.timeout.ms", "90000");
    config.create().expect("a producer")
}

/// A header's value as text.
pub fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}

/// The type of a message that the meter has published.
pub fn kind(message: &OwnedMessage) -> String {
    let event: serde_json::Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
    event["type"].as_str().expect("a type").to_owned()
}

/// The `data` of a message that the meter has published.
pub fn data(message: &OwnedMessage) -> serde_json::Value {
    let event: serde_json::Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
    event["data"].clone()
}
