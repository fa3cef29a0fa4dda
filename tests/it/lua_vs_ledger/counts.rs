use std::collections::BTreeSet;

use credit_meter::ledger::call::ApplyCall;
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::Judge;
use credit_meter::ledger::once::mark_of;
use credit_meter::ledger::outcome::{Denial, Verdict};
use credit_meter::ledger::shard::Shard;

use super::History;

/// What voids take out of a shard.
#[derive(Clone, Copy)]
pub struct Held {
    marks: usize,
    members: Credits,
    usage: Credits,
    open: Credits,
    closed: Credits,
    lots_open: Credits,
    lots_closed: Credits,
}

impl Held {
    pub fn by(shard: &Shard) -> Held {
        let sum = |sum: Credits, more: Credits| sum + more;
        let accounts = || shard.accounts.values();
        let lots = |open: bool| {
            let used =
                accounts().flat_map(|account| account.lots.values().map(|lot| (account.cycle.number, &lot.used)));
            let used = used.flat_map(|(own, used)| used.iter().filter(move |(cycle, _)| (**cycle == own) == open));
            used.map(|(_, used)| *used).fold(Credits::ZERO, sum)
        };
        Held {
            marks: shard.marks.values().flat_map(|cycle| cycle.sets.values()).map(|set| set.len()).sum(),
            members: shard.members.values().flat_map(|cycle| cycle.values()).copied().fold(Credits::ZERO, sum),
            usage: shard.usage.values().flat_map(|day| day.values()).map(|used| used.credits).fold(Credits::ZERO, sum),
            open: accounts()
                .flat_map(|account| account.counters.values())
                .map(|counter| counter.charged)
                .fold(Credits::ZERO, sum),
            closed: accounts()
                .flat_map(|account| account.closed.values())
                .flat_map(|closed| closed.counters.values())
                .map(|counter| counter.charged)
                .fold(Credits::ZERO, sum),
            lots_open: lots(true),
            lots_closed: lots(false),
        }
    }
}

impl History<'_> {
    /// Calls after which less is held.
    pub fn count_given_back(&mut self, before: Held) {
        let after = Held::by(&self.shard);
        for (kind, less) in [
            ("void_unmarks", after.marks < before.marks),
            ("void_frees_a_member", after.members < before.members),
            ("void_leaves_usage", after.usage < before.usage),
            ("void_refunds", after.open < before.open),
            ("void_refunds_a_closed_cycle", after.closed < before.closed),
            ("void_refunds_a_lot", after.lots_open < before.lots_open),
            ("void_refunds_a_lot_late", after.lots_closed < before.lots_closed),
        ] {
            *self.replies.entry(kind).or_insert(0) += u64::from(less);
        }
    }

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

    /// Events that their plan is not entitled to, behind some that were charged and some that were not, where all else fits.
    pub fn count_unentitled(&mut self, call: &ApplyCall, verdicts: &[Verdict]) {
        let mut rest = verdicts;
        for group in &call.groups {
            let (own, others) = rest.split_at(group.events.len());
            rest = others;
            let denial = Verdict::Denied(Denial::NotEntitled);
            let fits =
                |verdict: &Verdict| [Verdict::Charged, Verdict::Free, Verdict::Duplicate, denial].contains(verdict);
            if !own.iter().all(fits) || !group.member_limits.is_empty() {
                continue;
            }
            let (mut charged, mut skipped) = (false, false);
            for (event, verdict) in group.events.iter().zip(own) {
                let costs = call.classes[event.class].judge == Judge::Charge;
                charged |= *verdict == Verdict::Charged;
                skipped |= costs && *verdict != Verdict::Charged;
                if charged && skipped && *verdict == denial {
                    *self.replies.entry("unentitled_beside_others").or_insert(0) += 1;
                }
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
