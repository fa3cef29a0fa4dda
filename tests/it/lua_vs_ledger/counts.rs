use std::collections::BTreeSet;

use credit_meter::ledger::call::ApplyCall;
use credit_meter::ledger::once::mark_of;
use credit_meter::ledger::outcome::{Denial, Verdict};

use super::History;

impl History<'_> {
    /// Events that were free since another was charged for the same.
    pub fn count_once(&mut self, call: &ApplyCall, verdicts: &[Verdict]) {
        let events = call.groups.iter().flat_map(|group| group.events.iter().map(move |event| (group, event)));
        let mut charged = BTreeSet::new();
        for ((group, event), verdict) in events.zip(verdicts) {
            let class = &call.classes[event.class];
            let Some(mark) = mark_of(group, class, event) else { continue };
            match verdict {
                Verdict::Free if class.cycle.is_some() => *self.replies.entry("free_once_late").or_insert(0) += 1,
                Verdict::Free if charged.contains(&(&group.account, mark)) => {
                    *self.replies.entry("free_once_in_call").or_insert(0) += 1;
                }
                Verdict::Free => *self.replies.entry("free_once").or_insert(0) += 1,
                Verdict::Charged | Verdict::Capped => drop(charged.insert((&group.account, mark))),
                Verdict::Denied(_) | Verdict::Duplicate | Verdict::Voided => {}
            }
        }
    }

    /// Events that were denied for what their members had used, and those of limited members that were not.
    pub fn count_members(&mut self, call: &ApplyCall, verdicts: &[Verdict]) {
        let events = call.groups.iter().flat_map(|group| group.events.iter().map(move |event| (group, event)));
        for ((group, event), verdict) in events.zip(verdicts) {
            let class = &call.classes[event.class];
            let limited = group.member_count(class, event).is_some_and(|count| count.limit.is_some());
            let kind = match verdict {
                Verdict::Denied(Denial::MemberLimit) if class.judge.recorded() => "member_limit_stands",
                Verdict::Denied(Denial::MemberLimit) if class.cycle.is_some() => "member_limit_late",
                Verdict::Denied(Denial::MemberLimit) => "member_limit",
                Verdict::Charged | Verdict::Capped if limited => "member_below_limit",
                _ => continue,
            };
            *self.replies.entry(kind).or_insert(0) += 1;
        }
    }
}
