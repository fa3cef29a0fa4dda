//! What became of the records, and why some could not be judged.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts of records, and what happened first for each reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Lines that are not empty.
    pub records: u64,
    /// Usage events by how they ended.
    pub usage: BTreeMap<&'static str, u64>,
    /// Commands by how they ended.
    pub commands: BTreeMap<&'static str, u64>,
    /// Records that could not be judged, by reason.
    pub not_judged: BTreeMap<&'static str, Reason>,
    /// Commands that were refused, by reason.
    pub refused: BTreeMap<&'static str, Reason>,
    /// Records dated after `--until`.
    pub after_until: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Reason {
    pub records: u64,
    pub first_line: i64,
    pub first: String,
}

impl Tally {
    /// Counts a record that could not be judged.
    pub fn not_judged(&mut self, reason: &'static str, line: i64, detail: &str) {
        self.not_judged.entry(reason).or_default().add(line, detail);
    }

    pub fn refused(&mut self, reason: &'static str, line: i64, detail: &str) {
        self.refused.entry(reason).or_default().add(line, detail);
    }

    /// Whether every record was judged, and every command applied.
    pub fn is_clean(&self) -> bool {
        self.not_judged.is_empty() && self.refused.is_empty()
    }

    /// Whether there was any record that could be read.
    pub fn read_any(&self) -> bool {
        let ended: u64 = self.usage.values().chain(self.commands.values()).sum();
        ended + self.after_until > 0
    }
}

impl Reason {
    fn add(&mut self, line: i64, detail: &str) {
        self.records += 1;
        // Those of a call come in no order.
        if self.records == 1 || line < self.first_line {
            (self.first_line, self.first) = (line, detail.to_owned());
        }
    }
}
