//! Commands that were sent, as they lie in the log.

use std::sync::Arc;

use super::client::BrokerError;
use super::decode::{Decoder, Raw, Settings};
use super::log::{self, Span};
use crate::config::Config;
use crate::ledger::call::Partition;
use crate::ledger::command::ACCOUNT_PUT;
use crate::pipeline::record::Body;

/// A configuration that was put to an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub account: String,
    pub id: String,
}

/// The puts among the commands from one offset to another, in their order; those whose data are bad are none.
/// It blocks.
pub fn puts(config: &Config, from: i64, to: i64) -> Result<Vec<Put>, BrokerError> {
    let mut decoder = Decoder::new(Settings::of(&config.events), Arc::default());
    let (partition, mut found) = (Partition::COMMANDS, Vec::new());
    let span = Span { partition: partition.index, from, to };
    log::read(&config.kafka, &config.kafka.topics.commands, &[span], |record| {
        let raw = Raw {
            partition,
            offset: record.offset,
            append_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        if let Body::Command(command) = decoder.decode(raw).record.body
            && command.command_type == ACCOUNT_PUT
            && command.body.is_ok()
        {
            found.push(Put { account: command.account.to_string(), id: command.id });
        }
    })?;
    Ok(found)
}
