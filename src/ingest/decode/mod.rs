//! Bytes to records: CloudEvents 1.0 in both content modes. Knows no Kafka client, and of the catalogue only
//! which data its prices depend on.
//!
//! A record is read in one pass with what it borrows from the bytes. Only a faulty one is looked at again, to say
//! what is wrong with it and whose it is.

/// Commands to accounts.
mod command;
/// The event around the data: content modes, attributes, time.
mod envelope;
/// JSON below serde.
mod json;
/// `credits.usage.v1`.
mod usage;

use std::collections::HashSet;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::Events;
use crate::ledger::call::{Input, Partition};
use crate::ledger::catalogue::Conditions;
use crate::ledger::outcome::DeadReason;
use crate::pipeline::record::{Body, Record};

pub use command::PRIORITY_MAX;
pub use envelope::{Bears, Called, bears, called};
pub use usage::{USAGE, Voids, voids};

/// A record that only moves time.
pub const TICK: &str = "credits.tick.v1";

/// Shared texts that a decoder keeps, about 6 MB. Beyond it all are forgotten: simpler than an order of use, and
/// reading each account once more costs one allocation.
const SHARED_TEXTS_MAX: usize = 65_536;

/// A record as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    pub partition: Partition,
    pub offset: i64,
    /// When the broker appended it, or what stands for that (`events.age_from`).
    pub append_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of a record, in their order. Most records have none: an empty slice costs nothing.
pub type Headers<'a> = &'a [(&'a str, Option<&'a [u8]>)];

/// What the configuration says about events.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub max_bytes: usize,
    pub early_limit_ms: i64,
}

impl Settings {
    pub fn of(events: &Events) -> Settings {
        Settings { max_bytes: events.max_bytes, early_limit_ms: events.early_limit.as_millis() as i64 }
    }
}

/// A record, and what is only counted or logged about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub record: Record,
    /// A usage record whose key is not its subject.
    pub misrouted: bool,
    /// What is wrong with a dead record, and where.
    pub detail: Option<String>,
}

/// Decodes records, and shares the texts that come again and again.
#[derive(Debug)]
pub struct Decoder {
    settings: Settings,
    conditions: Arc<Conditions>,
    texts: SharedTexts,
}

impl Decoder {
    /// `conditions`: what is kept of the data, beside what every price needs.
    pub fn new(settings: Settings, conditions: Arc<Conditions>) -> Decoder {
        Decoder { settings, conditions, texts: SharedTexts::default() }
    }

    /// Another catalogue's prices may depend on more.
    pub fn set_conditions(&mut self, conditions: Arc<Conditions>) {
        self.conditions = conditions;
    }

    pub fn decode(&mut self, raw: Raw<'_>) -> Decoded {
        let read = match raw.partition.input {
            Input::Usage => usage::read(raw, self.settings, &self.conditions, &mut self.texts),
            Input::Commands => command::read(raw, self.settings, &mut self.texts),
        };
        let (body, detail) = match read {
            Ok(body) => (body, None),
            Err(fault) => {
                let account = envelope::subject_of(raw).map(|subject| self.texts.share(&subject));
                (Body::Dead { reason: fault.reason, account }, Some(fault.detail))
            }
        };
        let bytes = raw.key.map_or(0, <[u8]>::len) + raw.value.map_or(0, <[u8]>::len);
        let fingerprint = fingerprint(raw.value, raw.append_ms);
        let (partition, offset, append_ms) = (raw.partition, raw.offset, raw.append_ms);
        let record = Record { partition, offset, append_ms, bytes, fingerprint, body };
        let other_key = record.account().is_some_and(|account| raw.key != Some(account.as_bytes()));
        Decoded { misrouted: other_key && raw.partition.input == Input::Usage, record, detail }
    }
}

/// Tells a record from another at the same offset.
pub fn fingerprint(value: Option<&[u8]>, append_ms: i64) -> u64 {
    xxh3_64_with_seed(value.unwrap_or_default(), append_ms as u64)
}

/// One `Arc` for each text, as long as it is remembered.
#[derive(Debug, Default)]
struct SharedTexts {
    texts: HashSet<Arc<str>, FxBuildHasher>,
}

impl SharedTexts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        if self.texts.len() == SHARED_TEXTS_MAX {
            self.texts.clear();
        }
        let shared: Arc<str> = Arc::from(text);
        self.texts.insert(shared.clone());
        shared
    }
}

/// Why a record is dead, in a word and in a sentence.
#[derive(Debug)]
struct Fault {
    reason: DeadReason,
    detail: String,
}

impl Fault {
    fn new(reason: DeadReason, detail: impl Into<String>) -> Fault {
        Fault { reason, detail: detail.into() }
    }
}

/// Collects what is wrong with a record: of several faults the one whose reason comes first counts, not the one
/// whose field is read first.
#[derive(Debug, Default)]
struct Faults {
    first: Option<Fault>,
}

impl Faults {
    fn take<T: Default>(&mut self, result: Result<T, Fault>) -> T {
        match result {
            Ok(value) => value,
            Err(fault) => {
                if self.first.as_ref().is_none_or(|first| fault.reason < first.reason) {
                    self.first = Some(fault);
                }
                T::default()
            }
        }
    }

    fn none(self) -> Result<(), Fault> {
        self.first.map_or(Ok(()), Err)
    }
}

/// The start of a text, for messages.
fn clip(text: &str) -> &str {
    match text.char_indices().nth(40) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests;
