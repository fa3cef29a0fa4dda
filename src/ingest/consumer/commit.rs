//! Offsets that are committed to the group: the generation before reading starts, and applied positions for lag tools.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::super::client::topic_of;
use super::Thread;
use crate::ledger::call::Partition;

/// A commit at the start that has no answer by then waits for brokers that are silent: the process ends without it.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// What refuses a commit does so at once.
const COMMIT_AGAIN: Duration = Duration::from_millis(200);

/// The commit that starting waits for, which another thread makes.
pub(super) struct Committing {
    positions: Vec<(Partition, i64)>,
    pub(super) answer: Receiver<Result<(), KafkaError>>,
}

impl Thread {
    /// Commits the positions unless that is on its way, and tells whether Kafka has taken them.
    ///
    /// Only a call that waits is told how it ends, and it may wait for as long as Kafka is silent, so another thread makes it:
    /// this one has to hear that the partitions are lost meanwhile.
    pub(super) fn has_committed(&mut self, positions: &[(Partition, i64)]) -> bool {
        let told = "kafka has not taken the state's generation yet; reading waits";
        if let Some(committing) = &self.committing {
            let answer = match committing.answer.try_recv() {
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => unreachable!("it answers before it ends"),
                Ok(answer) => answer,
            };
            // They may have gone back since.
            let same = committing.positions == positions;
            self.committing = None;
            match answer {
                Ok(()) if same => return true,
                Ok(()) => {}
                Err(error) => {
                    self.tell_of_rights(&error);
                    self.complain(&error, told);
                }
            }
        }
        // The client would keep it until there is a coordinator: see `to_commit`.
        if !self.in_group {
            return false;
        }
        match self.positions(positions) {
            Err(error) => self.complain(&error, told),
            Ok(list) => {
                let (consumer, (answers, answer)) = (self.consumer.clone(), channel());
                let commit = move || {
                    let result = consumer.commit(&list, CommitMode::Sync);
                    // The consumer ends with its own thread.
                    drop(consumer);
                    if result.is_err() {
                        std::thread::sleep(COMMIT_AGAIN);
                    }
                    let _ = answers.send(result);
                };
                std::thread::Builder::new().name("commit".into()).spawn(commit).expect("a thread starts");
                self.committing = Some(Committing { positions: positions.to_vec(), answer });
            }
        }
        false
    }

    pub(super) fn commit(&mut self) {
        let positions = std::mem::take(&mut self.to_commit);
        if !self.in_group || positions.is_empty() {
            return;
        }
        let committed = self.positions(&positions).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(%error, "could not commit offsets to kafka: lag tools will lag");
        }
    }

    fn positions(&self, positions: &[(Partition, i64)]) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, position) in positions {
            let topic = topic_of(&self.settings.kafka.topics, partition.input);
            let mut element = list.add_partition(topic, partition.index);
            element.set_offset(Offset::Offset(*position))?;
            element.set_metadata(&self.settings.generation);
        }
        Ok(list)
    }
}
