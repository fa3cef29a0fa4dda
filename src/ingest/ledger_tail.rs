//! Waits for the ledger's answer to a command: applied, refused or a duplicate.

use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::TopicPartitionList;
use serde::Deserialize;

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Cluster, Reasons};
use crate::config::Kafka;

/// The type of the ledger's line about a command.
const COMMAND_LINE: &str = "credits.ledger.command.v1";

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Applied,
    Refused {
        reason: String,
        message: String,
    },
    /// The same id was decided before; nothing changed now.
    Duplicate,
}

/// The ledger from a moment on.
pub struct LedgerTail {
    consumer: StreamConsumer<Reasons>,
    brokers: String,
}

impl LedgerTail {
    /// Remembers where the ledger ends now: what is answered later comes after.
    pub async fn open(kafka: &Kafka) -> Result<LedgerTail, BrokerError> {
        let topic = kafka.topics.ledger.clone();
        let partitions = Cluster::new(kafka)?.partitions(&topic).await?;
        let fixed = [
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            ("isolation.level", "read_committed"),
        ];
        let config = client::reader_settings(kafka, &[("fetch.wait.max.ms", "100")], &fixed);
        let made = config.create_with_context(Reasons::default());
        let consumer: StreamConsumer<Reasons> = made.map_err(BrokerError::settings)?;
        let tail = Arc::new(LedgerTail { consumer, brokers: kafka.brokers.clone() });
        let opening = tail.clone();
        let opened = tokio::task::spawn_blocking(move || opening.start_at_end(&topic, partitions));
        opened.await.expect("opening does not panic")?;
        Ok(Arc::into_inner(tail).expect("the opening has ended"))
    }

    fn start_at_end(&self, topic: &str, partitions: i32) -> Result<(), BrokerError> {
        let mut ends = TopicPartitionList::new();
        for partition in 0..partitions {
            let watermarks = self.consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT);
            let (_, end) = watermarks.map_err(|error| self.no_answer(&error))?;
            ends.add_partition_offset(topic, partition, Offset::Offset(end)).map_err(|error| self.no_answer(&error))?;
        }
        self.consumer.assign(&ends).map_err(|error| self.no_answer(&error))
    }

    /// Waits until the ledger tells how a command ended. The caller sets the bound.
    pub async fn answer(&self, account: &str, command_id: &str) -> Result<Answer, BrokerError> {
        loop {
            let line = match self.consumer.recv().await {
                Ok(line) => line,
                Err(error) => {
                    if let Some(reason) = self.consumer.context().damage.take() {
                        return Err(BrokerError::Damaged { place: "the ledger's topic".to_owned(), reason });
                    }
                    let given_up = matches!(error, KafkaError::MessageConsumptionFatal(_))
                        || error.rdkafka_error_code().is_some_and(will_not_pass);
                    if given_up {
                        return Err(BrokerError::Refused {
                            what: "let the ledger be read".to_owned(),
                            reason: error.to_string(),
                        });
                    }
                    // The client reconnects by itself.
                    continue;
                }
            };
            if let Some(answer) = line.payload().and_then(|value| read(value, account, command_id)) {
                return Ok(answer);
            }
        }
    }

    fn no_answer(&self, error: &KafkaError) -> BrokerError {
        let fault = self.consumer.context().fault(error);
        BrokerError::NoAnswer { brokers: self.brokers.clone(), fault }
    }
}

pub(super) fn will_not_pass(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::AutoOffsetReset
            | Code::OffsetOutOfRange
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::UnknownTopicOrPartition
    )
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    subject: Option<String>,
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct CommandLine {
    command_id: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// The answer to a command, if this line of the ledger is it.
fn read(value: &[u8], account: &str, command_id: &str) -> Option<Answer> {
    let line: Line = serde_json::from_slice(value).ok()?;
    if line.r#type != COMMAND_LINE || line.subject.as_deref() != Some(account) {
        return None;
    }
    let told: CommandLine = serde_json::from_value(line.data).ok()?;
    if told.command_id != command_id {
        return None;
    }
    match told.status.as_str() {
        "applied" => Some(Answer::Applied),
        "refused" => Some(Answer::Refused { reason: told.reason, message: told.message }),
        "duplicate" => Some(Answer::Duplicate),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_about_the_command_is_its_answer() {
        let line = |line_type: &str, subject: &str, data: &str| {
            format!(
                r#"{{"specversion":"1.0","id":"command/7","source":"credit-meter","type":"{line_type}",
                "subject":"{subject}","time":"2026-11-24T00:00:00Z","data":{data}}}"#
            )
        };
        let check = |text: String, expected: Option<Answer>| {
            assert_eq!(read(text.as_bytes(), "team-1", "c-1"), expected, "{text}");
        };
        let applied = r#"{"command_id":"c-1","command_type":"credits.grant.v1","status":"applied"}"#;
        check(line(COMMAND_LINE, "team-1", applied), Some(Answer::Applied));
        check(line(COMMAND_LINE, "team-2", applied), None);
        check(line("credits.ledger.grant.v1", "team-1", applied), None);
        check(line(COMMAND_LINE, "team-1", r#"{"command_id":"c-2","status":"applied"}"#), None);
        check(line(COMMAND_LINE, "team-1", r#"{"command_id":"c-1","status":"duplicate"}"#), Some(Answer::Duplicate));
        check(
            line(
                COMMAND_LINE,
                "team-1",
                r#"{"command_id":"c-1","status":"refused","reason":"unknown_plan","message":"no such plan"}"#,
            ),
            Some(Answer::Refused { reason: "unknown_plan".into(), message: "no such plan".into() }),
        );
        check("not json".into(), None);
    }
}
