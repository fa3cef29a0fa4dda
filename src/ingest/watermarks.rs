//! Questions to the brokers about a log: where it starts and ends, and what the group has committed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Reasons};
use super::fault::Fault;
use crate::config::Kafka;

/// After an answer that did not come.
const TO_HEAR_REPORTS: Duration = Duration::from_millis(100);

/// A client that asks about logs and never reads them.
#[derive(Clone)]
pub struct Watermarks {
    client: Arc<Mutex<Option<Arc<Client>>>>,
    kafka: Kafka,
}

type Client = BaseConsumer<Reasons>;

impl Watermarks {
    pub fn new(kafka: &Kafka) -> Result<Watermarks, BrokerError> {
        let client = Arc::new(Mutex::new(Some(Arc::new(client(kafka)?))));
        Ok(Watermarks { client, kafka: kafka.clone() })
    }

    /// The first offset of a partition, and the one after its last.
    pub async fn range(&self, topic: &str, partition: i32) -> Result<(i64, i64), BrokerError> {
        let place = format!("{topic}/{partition}");
        let topic = topic.to_owned();
        self.ask(place, move |consumer, timeout| consumer.fetch_watermarks(&topic, partition, timeout)).await
    }

    /// What was committed beside the offsets of a topic's partitions; empty where nothing was.
    pub async fn committed_metadata(&self, topic: &str, partitions: i32) -> Result<Vec<String>, BrokerError> {
        let topic = topic.to_owned();
        self.ask(topic.clone(), move |consumer, timeout| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(&topic, 0, partitions - 1);
            let committed = consumer.committed_offsets(asked, timeout)?;
            Ok(committed.elements().iter().map(|element| element.metadata().to_owned()).collect())
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        place: String,
        question: impl FnOnce(&BaseConsumer<Reasons>, Duration) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (slot, kafka) = (self.client.clone(), self.kafka.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let slot = || slot.lock().unwrap_or_else(PoisonError::into_inner);
            let known = slot().clone();
            let asked = match known {
                Some(client) => client,
                None => slot().insert(Arc::new(client(&kafka)?)).clone(),
            };
            // Those of before say nothing about this question.
            hear_reports(&asked, Duration::from_millis(1));
            asked.context().faults.clear();
            question(&asked, ANSWER_TIMEOUT).map_err(|error| {
                // One that has failed is not asked again: after a leader's death it may take a partition for unknown for ever,
                // where a new client finds the next leader.
                slot().take_if(|client| Arc::ptr_eq(client, &asked));
                let fault = fault(&asked, &place, &error);
                BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault }
            })
        });
        asking.await.expect("asking does not panic")
    }
}

/// Reports wait for whoever polls the client, which gives one at a time.
fn hear_reports(client: &Client, within: Duration) {
    while client.poll(within).is_some() {}
}

/// That nothing came in time says nothing; what the client has reported meanwhile does.
fn fault(client: &Client, place: &str, error: &KafkaError) -> Fault {
    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) {
        hear_reports(client, TO_HEAR_REPORTS);
        if let Some(reported) = client.context().faults.lately() {
            return reported;
        }
    }
    Fault::new(error, &format!("{place}: {error}"))
}

fn client(kafka: &Kafka) -> Result<Client, BrokerError> {
    let config = client::reader_settings(kafka, &[], &[("isolation.level", "read_committed")]);
    config.create_with_context(Reasons::default()).map_err(BrokerError::settings)
}
