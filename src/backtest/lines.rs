//! Lines of a file to records: NDJSON, one CloudEvent a line, commands and usage mixed.

use std::io::{self, Read};
use std::sync::Arc;

use crate::ingest::decode::{self, Decoded, Decoder, Raw};
use crate::ledger::call::Partition;
use crate::ledger::catalogue::Conditions;
use crate::ledger::outcome::DeadReason;
use crate::pipeline::record::{Body, Record};

/// Bytes that are read and decoded at once. No reason: round number.
const BLOCK_BYTES: usize = 1 << 20;

/// What some editors and spreadsheets put before a file's first line. Readers of JSON may pass over it (RFC 8259, 8.1).
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A record with its own time.
#[derive(Debug)]
pub struct Timed {
    /// Its offset is the number of its line.
    pub record: Record,
    /// `None`: it cannot be read.
    pub time_ms: Option<i64>,
    /// What is wrong with it.
    pub detail: Option<String>,
}

/// Reads lines in blocks.
pub struct Lines<R> {
    input: R,
    decoder: Decoder,
    block: Vec<u8>,
    line: i64,
    ended: bool,
}

impl<R: Read> Lines<R> {
    pub fn new(input: R, settings: decode::Settings, conditions: Arc<Conditions>) -> Lines<R> {
        Lines { input, decoder: Decoder::new(settings, conditions), block: Vec::new(), line: 0, ended: false }
    }

    /// The records of the next block with the number of bytes that they were read from; `None` at the end.
    pub fn next_block(&mut self) -> io::Result<Option<(usize, Vec<Timed>)>> {
        if self.ended {
            return Ok(None);
        }
        let before = self.block.len();
        let read = (&mut self.input).take(BLOCK_BYTES as u64).read_to_end(&mut self.block)?;
        self.ended = read == 0;
        let whole = match self.block[before..].iter().rposition(|byte| *byte == b'\n') {
            _ if self.ended => self.block.len(),
            Some(last) => before + last + 1,
            None => 0,
        };
        let rest = self.block.split_off(whole);
        let block = std::mem::replace(&mut self.block, rest);
        let mut records = Vec::with_capacity(block.len() / 200);
        for line in block.split_inclusive(|byte| *byte == b'\n') {
            self.line += 1;
            let line = if self.line == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
            let line = line.trim_ascii();
            if !line.is_empty() {
                records.push(self.decode(line));
            }
        }
        Ok(Some((block.len(), records)))
    }

    fn decode(&mut self, line: &[u8]) -> Timed {
        // Nobody has appended these records: their time is never ahead.
        let mut decoded = self.decode_as(Partition::usage(0), line, i64::MAX);
        if matches!(decoded.record.body, Body::Dead { reason: DeadReason::UnknownType, .. }) {
            decoded = self.decode_as(Partition::COMMANDS, line, i64::MAX);
        }
        let own_ms = || decode::bears(line).map(|(_, time_ms)| time_ms);
        let time_ms = match &decoded.record.body {
            // A void has two times. It comes at its own, and the event that it takes back must not lie far after that.
            Body::Usage(event) if event.voids.is_some() => {
                let own_ms = own_ms().expect("a void that could be read has a time");
                decoded = self.decode_as(Partition::usage(0), line, own_ms);
                let is_dead = matches!(decoded.record.body, Body::Dead { .. });
                (!is_dead).then_some(own_ms)
            }
            Body::Usage(event) => Some(event.time_ms),
            Body::Command(command) => Some(command.time_ms),
            Body::Tick => own_ms(),
            Body::Dead { .. } => None,
        };
        let Decoded { mut record, detail, .. } = decoded;
        record.append_ms = time_ms.unwrap_or_default();
        Timed { record, time_ms, detail }
    }

    fn decode_as(&mut self, partition: Partition, line: &[u8], append_ms: i64) -> Decoded {
        let (key, headers) = (None, &[][..]);
        self.decoder.decode(Raw { partition, offset: self.line, append_ms, key, value: Some(line), headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: decode::Settings = decode::Settings { max_bytes: 1000, early_limit_ms: 300_000 };

    fn read(text: &str) -> Vec<Timed> {
        let mut lines = Lines::new(text.as_bytes(), SETTINGS, Arc::default());
        let mut records = Vec::new();
        while let Some((_, block)) = lines.next_block().expect("memory can be read") {
            records.extend(block);
        }
        records
    }

    #[test]
    fn a_byte_order_mark_belongs_to_no_line() {
        let is_bad = |text: &str| {
            let no_json =
                |timed: &Timed| timed.detail.as_deref().is_some_and(|detail| detail.contains("expected value"));
            read(text).iter().map(no_json).collect::<Vec<_>>()
        };
        assert_eq!(is_bad("\u{feff}{}\n\u{feff}{}\n"), [false, true], "only before the first");
    }

    #[test]
    fn a_void_comes_at_its_own_time_and_must_not_be_far_before_its_event() {
        let ms = |time: &str| decode::bears(format!("{{\"time\":\"{time}\"}}").as_bytes()).map(|(_, time_ms)| time_ms);
        // When it comes, and by which time it counts; or why it cannot be taken.
        let check = |own: &str, voided: &str, expected: Result<&str, &str>| {
            let line = format!(
                "{{\"specversion\":\"1.0\",\"id\":\"v\",\"source\":\"s\",\"type\":\"credits.usage.void.v1\",\
                 \"subject\":\"a\",\"time\":\"{own}\",\
                 \"data\":{{\"source\":\"s\",\"id\":\"1\",\"time\":\"{voided}\",\"action\":\"reveal\"}}}}"
            );
            let Timed { record, time_ms, detail } = read(&line).remove(0);
            match (&record.body, expected) {
                (Body::Usage(event), Ok(dated)) => {
                    let seen = (time_ms, record.append_ms, event.time_ms, Some(event.dated_ms));
                    assert_eq!(seen, (ms(own), time_ms.unwrap(), ms(voided).unwrap(), ms(dated)), "{line}");
                }
                (Body::Dead { reason, .. }, Err(why)) => {
                    assert_eq!((*reason, time_ms), (DeadReason::TooEarly, None), "{line}");
                    assert_eq!(detail.as_deref(), Some(why));
                }
                (body, _) => panic!("{line}: {body:?}"),
            }
        };
        check("2026-01-31T12:00:00Z", "2026-01-31T11:00:00Z", Ok("2026-01-31T11:00:00Z"));
        check("2026-03-31T12:00:00Z", "2026-01-31T11:00:00Z", Ok("2026-01-31T11:00:00Z"));
        check("2026-01-31T12:00:00Z", "2026-01-31T12:05:00Z", Ok("2026-01-31T12:00:00Z"));
        check(
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:05:00.001Z",
            Err("the voided event's time is 300001 ms ahead of the append time, more than 300000"),
        );
        check(
            "2026-01-31T12:00:00Z",
            "2027-01-31T12:00:00Z",
            Err("the voided event's time is 31536000000 ms ahead of the append time, more than 300000"),
        );
    }

    #[test]
    fn a_line_is_usage_or_a_command_by_its_type_and_keeps_its_number() {
        let event = |kind: &str, data: &str| {
            format!(
                "{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"credits.{kind}.v1\",\"subject\":\"a\",\
                 \"time\":\"2026-01-31T12:00:00Z\",\"data\":{data}}}"
            )
        };
        let usage = event("usage", "{\"action\":\"reveal\"}");
        let put = event("account.put", "{\"plan\":\"basic\",\"anchor\":\"2026-01-01\"}");
        let text = format!("{usage}\r\n\n{put}\n{}\n{}\nnonsense", event("tick", "null"), event("gift", "{}"));
        let records = read(&text);
        let time = Some(1_769_860_800_000);
        let seen: Vec<_> = records
            .iter()
            .map(|Timed { record, time_ms, .. }| {
                let kind = match &record.body {
                    Body::Usage(_) => "usage",
                    Body::Command(_) => "command",
                    Body::Tick => "tick",
                    Body::Dead { reason, .. } => reason.name(),
                };
                (record.offset, kind, *time_ms)
            })
            .collect();
        let expected = [
            (1, "usage", time),
            (3, "command", time),
            (4, "tick", time),
            (5, "unknown_type", None),
            (6, "invalid_json", None),
        ];
        assert_eq!(seen, expected);
    }
}
