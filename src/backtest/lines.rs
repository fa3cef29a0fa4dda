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
    pub fn new(input: R, bytes_max: usize, conditions: Arc<Conditions>) -> Lines<R> {
        // Nobody has appended these records: their time is never ahead.
        let settings = decode::Settings { max_bytes: bytes_max, early_limit_ms: 0 };
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
            let line = line.trim_ascii();
            if !line.is_empty() {
                records.push(self.decode(line));
            }
        }
        Ok(Some((block.len(), records)))
    }

    fn decode(&mut self, line: &[u8]) -> Timed {
        let mut decoded = self.decode_as(Partition::usage(0), line);
        if matches!(decoded.record.body, Body::Dead { reason: DeadReason::UnknownType, .. }) {
            decoded = self.decode_as(Partition::COMMANDS, line);
        }
        let Decoded { mut record, detail, .. } = decoded;
        let time_ms = match &record.body {
            Body::Usage(event) => Some(event.time_ms),
            Body::Command(command) => Some(command.time_ms),
            Body::Tick => decode::bears(line).map(|(_, time_ms)| time_ms),
            Body::Dead { .. } => None,
        };
        record.append_ms = time_ms.unwrap_or_default();
        Timed { record, time_ms, detail }
    }

    fn decode_as(&mut self, partition: Partition, line: &[u8]) -> Decoded {
        let (key, headers) = (None, &[][..]);
        self.decoder.decode(Raw { partition, offset: self.line, append_ms: i64::MAX, key, value: Some(line), headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut lines = Lines::new(text.as_bytes(), 1000, Arc::default());
        let mut records = Vec::new();
        while let Some((_, block)) = lines.next_block().expect("memory can be read") {
            records.extend(block);
        }
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
