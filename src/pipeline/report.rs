//! What a call has changed, for the metrics.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::batch::{Batch, Call};
use super::record::Body;
use crate::ledger::call::{ApplyCall, Note};
use crate::ledger::credits::Credits;
use crate::ledger::outcome::{DeadReason, Outcome, Verdict};

#[derive(Debug, Default)]
pub struct Report {
    pub records: usize,
    pub verdicts: BTreeMap<(Arc<str>, Verdict), u64>,
    /// Repeats within the call, by action.
    pub repeats: BTreeMap<Arc<str>, u64>,
    pub charged: BTreeMap<String, Credits>,
    pub dead: BTreeMap<DeadReason, u64>,
    pub command: Option<Outcome>,
}

impl Report {
    pub fn of(batch: &Batch, call: &Call, verdicts: &[Verdict], command: Option<Outcome>) -> Report {
        let mut report = Report { records: batch.records.len(), command, ..Report::default() };
        let Call::Apply(call) = call else { return report };
        report.dead(&call.dead);
        report.repeats(batch, call);
        // By class first: a call has few classes and many events.
        let mut by_class: FxHashMap<(usize, Verdict), u64> = FxHashMap::default();
        let events = call.groups.iter().flat_map(|group| &group.events);
        for (event, verdict) in events.zip(verdicts) {
            *by_class.entry((event.class, *verdict)).or_default() += 1;
        }
        for ((class, verdict), events) in by_class {
            let class = &call.classes[class];
            *report.verdicts.entry((class.action.clone(), verdict)).or_default() += events;
            if verdict == Verdict::Charged {
                let cost = class.cost.checked_mul(events).expect("a call's costs fit");
                *report.charged.entry(class.credit_type.clone()).or_default() += cost;
            }
        }
        report
    }

    /// What the batch holds and the call does not, and is not dead.
    fn repeats(&mut self, batch: &Batch, call: &ApplyCall) {
        if call.ranges.iter().all(|range| range.repeats == 0) {
            return;
        }
        let dead: HashSet<_> = call.dead.iter().map(|note| (note.partition, note.offset)).collect();
        for record in batch.records.iter().filter(|record| !dead.contains(&(record.partition, record.offset))) {
            if let Body::Usage(event) = &record.body {
                *self.repeats.entry(event.action.clone()).or_default() += 1;
            }
        }
        for event in call.groups.iter().flat_map(|group| &group.events) {
            if let Some(records) = self.repeats.get_mut(&event.event.action) {
                *records -= 1;
            }
        }
    }

    fn dead(&mut self, notes: &[Note]) {
        for note in notes {
            *self.dead.entry(note.reason).or_default() += 1;
        }
    }
}
