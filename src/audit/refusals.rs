//! Commands that were refused, as the meter told: they stay refused. Whether a plan was there, or a balance would have
//! become too large, depended on a price list and on usage of then.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::point::End;
use super::recorded::Names;
use crate::config::AgeFrom;
use crate::ingest::log::{LogRecord, Span};
use crate::ingest::recorded::{CLOCKS_APART_MS, answer, answered};
use crate::ledger::call::OutboxEntry;
use crate::pipeline::recorded::Decision;

/// The refused commands, by their offsets.
#[derive(Debug, Default)]
pub struct Refusals {
    /// With the time of the message: what was told before the command came was told of another log.
    published: FxHashMap<i64, i64>,
    /// Told in an outbox alone, when it was looked at.
    waiting: FxHashSet<i64>,
    /// How far the ledger topic is read, by partition.
    read: BTreeMap<i32, i64>,
    /// Commands bear their producers' time, which says nothing of when they came.
    producers_time: bool,
}

impl Refusals {
    /// Goes on from what a saved point knows.
    pub fn new(age_from: AgeFrom, saved: Option<&End>) -> Refusals {
        let mut refusals = Refusals { producers_time: age_from == AgeFrom::Create, ..Refusals::default() };
        if let Some(saved) = saved {
            refusals.published.extend(saved.refused_commands.iter().copied());
            refusals.read.clone_from(&saved.ledger);
        }
        refusals
    }

    /// Whether the command at an offset was refused.
    pub fn hold(&self, offset: i64, append_ms: i64) -> bool {
        let is_own = |told_ms: &i64| self.producers_time || told_ms + CLOCKS_APART_MS >= append_ms;
        self.published.get(&offset).is_some_and(is_own) || self.waiting.contains(&offset)
    }

    /// Takes a line of the ledger that waits in an outbox.
    pub fn wait(&mut self, entry: &OutboxEntry) {
        if let Some((offset, Decision::Refused(_))) = answer(&entry.id, &entry.data) {
            self.waiting.insert(offset);
        }
    }

    /// Takes a message of the ledger topic, if it is this meter's.
    pub fn hear(&mut self, meter: &Names, record: &LogRecord<'_>) {
        let told = answered(&meter.source, record.value.unwrap_or_default());
        if let Some(told) = told.filter(|told| matches!(told.decision, Decision::Refused(_))) {
            self.published.insert(told.offset, record.timestamp_ms);
        }
        self.read.insert(record.partition, record.offset + 1);
    }

    /// What is left to read of these: all of a topic that is shorter than it was, and so another.
    pub fn unread(&self, spans: Vec<Span>) -> Vec<Span> {
        let read = |span: &Span| self.read.get(&span.partition).copied().filter(|read| *read <= span.to);
        let from = |span: &Span| read(span).unwrap_or(0).max(span.from);
        spans.into_iter().map(|span| Span { from: from(&span), ..span }).collect()
    }

    /// For a saved point: what an outbox alone tells of may be undone with it.
    pub fn to_saved(&self) -> (Vec<(i64, i64)>, BTreeMap<i32, i64>) {
        let mut refused: Vec<_> = self.published.iter().map(|(offset, told_ms)| (*offset, *told_ms)).collect();
        refused.sort_unstable();
        (refused, self.read.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::call::Output;

    const REFUSED: &str = r#"{"command_id":"c","status":"refused","reason":"unknown_plan","message":"m"}"#;

    #[test]
    fn a_refusal_holds_for_the_command_of_its_own_log() {
        let meter = Names { source: "meter".into(), usage_topic: "u".into(), commands_topic: "c".into() };
        let mut refusals = Refusals::default();
        let told_ms = 1_000_000_000;
        let mut hear = |source: &str, offset: i64| {
            let value = format!(r#"{{"id":"command/{offset}","source":"{source}","subject":"acme","data":{REFUSED}}}"#);
            let (key, headers) = (None, Default::default());
            let value = Some(value.as_bytes());
            refusals.hear(&meter, &LogRecord { partition: 1, offset: 40, timestamp_ms: told_ms, key, value, headers });
        };
        hear("meter", 7);
        hear("other", 8);
        let entry = |offset: i64| OutboxEntry {
            output: Output::Ledger,
            id: format!("command/{offset}"),
            event_type: "credits.ledger.command.v1".into(),
            account: "acme".into(),
            data: REFUSED.into(),
        };
        refusals.wait(&entry(9));
        let held = |refusals: &Refusals, append_ms: i64| [7, 8, 9].map(|offset| refusals.hold(offset, append_ms));
        assert_eq!(held(&refusals, told_ms), [true, false, true]);
        // The topic was made anew since, and its offsets begin again.
        assert_eq!(held(&refusals, told_ms + CLOCKS_APART_MS + 1), [false, false, true]);

        // A later audit reads on, and does not know of what an outbox alone told.
        let (refused, read) = refusals.to_saved();
        let end = End { refused_commands: refused, ledger: read, ..End::default() };
        let saved = Refusals::new(AgeFrom::Append, Some(&end));
        assert_eq!(held(&saved, told_ms), [true, false, false]);
        let span = |partition, from, to| Span { partition, from, to };
        assert_eq!(saved.unread(vec![span(0, 3, 60), span(1, 3, 60)]), [span(0, 3, 60), span(1, 41, 60)]);
        assert_eq!(saved.unread(vec![span(1, 3, 41)]), [span(1, 41, 41)]);
        assert_eq!(saved.unread(vec![span(1, 3, 40)]), [span(1, 3, 40)], "it was made anew");
        let by_producers = Refusals::new(AgeFrom::Create, Some(&end));
        assert!(by_producers.hold(7, told_ms + CLOCKS_APART_MS + 1));
    }
}
