//! Questions to the brokers about a log: where it starts and ends, and what the group has committed.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Reasons};
use crate::config::Kafka;

/// A client that asks about logs and never reads them.
#[derive(Clone)]
pub struct Watermarks {
    consumer: Arc<BaseConsumer<Reasons>>,
    brokers: String,
}

impl Watermarks {
    pub fn new(kafka: &Kafka) -> Result<Watermarks, BrokerError> {
        let mut config = client::settings(kafka, &[], &[("isolation.level", "read_committed")]);
        config.set("group.id", &kafka.group);
        let consumer = config.create_with_context(Reasons::default()).map_err(BrokerError::settings)?;
        Ok(Watermarks { consumer: Arc::new(consumer), brokers: kafka.brokers.clone() })
    }

    /// The first offset of a partition, and the one after its last.
    pub async fn range(&self, topic: &str, partition: i32) -> Result<(i64, i64), BrokerError> {
        let topic = topic.to_owned();
        self.ask(move |consumer, timeout| consumer.fetch_watermarks(&topic, partition, timeout)).await
    }

    /// What was committed beside the offsets of a topic's partitions; empty where nothing was.
    pub async fn committed_metadata(&self, topic: &str, partitions: i32) -> Result<Vec<String>, BrokerError> {
        let topic = topic.to_owned();
        self.ask(move |consumer, timeout| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(&topic, 0, partitions - 1);
            let committed = consumer.committed_offsets(asked, timeout)?;
            Ok(committed.elements().iter().map(|element| element.metadata().to_owned()).collect())
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Reasons>, Duration) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let consumer = self.consumer.clone();
        let answer = tokio::task::spawn_blocking(move || question(&consumer, ANSWER_TIMEOUT));
        let no_answer =
            |error: KafkaError| BrokerError::NoAnswer { brokers: self.brokers.clone(), fault: (&error).into() };
        answer.await.expect("asking does not panic").map_err(no_answer)
    }
}
