//! Whether the brokers let the meter's user read its inputs.
//!
//! The client tells once that it is not let, and reads on by itself when it is: that has to be asked for.

use std::collections::BTreeSet;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{BrokerError, Cluster, topic_of};
use super::fault::Fault;
use super::scan::{POLL, SILENCE_MAX, consumer};
use crate::config::Kafka;
use crate::ledger::call::Input;

/// Reads every partition at its end, also where it holds nothing: what tells where a log ends needs lesser rights.
pub async fn may_read(kafka: &Kafka) -> Result<(), BrokerError> {
    let cluster = Cluster::new(kafka)?;
    for input in Input::ALL {
        let topic = topic_of(&kafka.topics, input).to_owned();
        let partitions = cluster.partitions(&topic).await?;
        let kafka = kafka.clone();
        let read = move || read_ends(&kafka, &topic, partitions);
        tokio::task::spawn_blocking(read).await.expect("reading does not panic")?;
    }
    Ok(())
}

fn read_ends(kafka: &Kafka, topic: &str, partitions: i32) -> Result<(), BrokerError> {
    let consumer = consumer(kafka)?;
    let no_answer = |error: &KafkaError| BrokerError::NoAnswer {
        brokers: kafka.brokers.clone(),
        fault: Fault::new(error, &format!("{topic}: {error}")),
    };
    let mut unread: BTreeSet<i32> = (0..partitions).collect();
    let mut ends = TopicPartitionList::new();
    for partition in &unread {
        ends.add_partition_offset(topic, *partition, Offset::End).map_err(|error| no_answer(&error))?;
    }
    consumer.assign(&ends).map_err(|error| no_answer(&error))?;
    let asked = Instant::now();
    while !unread.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => drop(unread.remove(&message.partition())),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
            Some(Err(error)) => return Err(no_answer(&error)),
            None if asked.elapsed() > SILENCE_MAX => {
                let reason = format!("{topic} cannot be read: nothing came for {SILENCE_MAX:?}");
                return Err(BrokerError::NoAnswer { brokers: kafka.brokers.clone(), fault: Fault::silence(reason) });
            }
            None => {}
        }
    }
    Ok(())
}
