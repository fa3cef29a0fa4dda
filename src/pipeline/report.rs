//! What a call has changed, for the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::batch::{Batch, Call};
use super::record::Body;
use crate::ledger::call::{Applied, Input, Note};
use crate::ledger::credits::Credits;
use crate::ledger::outcome::{DeadReason, Outcome, Verdict};

#[derive(Debug, Default)]
pub struct Report {
    pub records: usize,
    pub verdicts: BTreeMap<(Arc<str>, Verdict), u64>,
    /// Repeats within the call, by action.
    pub repeats: BTreeMap<Arc<str>, u64>,
    /// By credit type and plan.
    pub charged: BTreeMap<(String, Arc<str>), Credits>,
    /// When usage events were appended, and how many at once.
    pub appended: Vec<(i64, u64)>,
    pub dead: BTreeMap<(Input, DeadReason), u64>,
    pub command: Option<Outcome>,
}

impl Report {
    pub fn of_command(batch: &Batch, outcome: Outcome) -> Report {
        Report { records: batch.records.len(), command: Some(outcome), ..Report::default() }
    }

    pub fn of(batch: &Batch, call: &Call, applied: &Applied) -> Report {
        let mut report = Report { records: batch.records.len(), ..Report::default() };
        let Call::Apply(call) = call else { return report };
        report.dead(&call.dead);
        report.repeats = call.repeats.clone();
        report.appended(batch);
        // By class and plan first: a call has few of them and many events.
        let mut plans: Vec<&Arc<str>> = Vec::new();
        let mut by_class: FxHashMap<(usize, Option<usize>, Verdict), u64> = FxHashMap::default();
        let mut verdicts = applied.verdicts.iter();
        for group in &call.groups {
            let plan = group.plan.as_ref().map(|plan| index_of(&mut plans, plan));
            for (event, verdict) in group.events.iter().zip(&mut verdicts) {
                *by_class.entry((event.class, plan, *verdict)).or_default() += 1;
            }
        }
        for ((class, plan, verdict), events) in by_class {
            let class = &call.classes[class];
            *report.verdicts.entry((class.action.clone(), verdict)).or_default() += events;
            // An account that the worker does not know is not charged.
            if let (Verdict::Charged | Verdict::Capped, Some(plan)) = (verdict, plan) {
                let cost = class.cost.checked_mul(events).expect("a call's costs fit");
                *report.charged.entry((class.credit_type.clone(), plans[plan].clone())).or_default() += cost;
            }
        }
        for (&(group, class), &uncovered) in &applied.uncovered {
            let Some(plan) = &call.groups[group].plan else { continue };
            if let Some(charged) = report.charged.get_mut(&(call.classes[class].credit_type.clone(), plan.clone())) {
                *charged = *charged - uncovered;
            }
        }
        report
    }

    fn appended(&mut self, batch: &Batch) {
        for record in batch.records.iter().filter(|record| matches!(record.body, Body::Usage(_))) {
            match self.appended.last_mut() {
                Some((append_ms, events)) if *append_ms == record.append_ms => *events += 1,
                _ => self.appended.push((record.append_ms, 1)),
            }
        }
    }

    fn dead(&mut self, notes: &[Note]) {
        for note in notes {
            *self.dead.entry((note.partition.input, note.reason)).or_default() += 1;
        }
    }
}

/// Where a plan stands in a list of the few that a call has; it is added if it is new.
fn index_of<'a>(plans: &mut Vec<&'a Arc<str>>, plan: &'a Arc<str>) -> usize {
    plans.iter().position(|known| Arc::ptr_eq(known, plan)).unwrap_or_else(|| {
        plans.push(plan);
        plans.len() - 1
    })
}
