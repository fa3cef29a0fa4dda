//! How usage events are decided: one by one, in the call's order.
//! `store/lua/apply.lua` adds an account's events up where the sum fits; the answers are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::account::{Balance, Counter};
use super::alerts::Moved;
use super::call::{
    Applied, ApplyCall, CallEvent, DENIED_BYTES_MAX, DENIED_EVENTS_MAX, Group, GrownDay, Note, OutboxEntry, Output,
    Reply, StaleAccount,
};
use super::catalogue::Overage;
use super::credits::Credits;
use super::day::{DaySets, Room, layouts_of};
use super::event::{Class, Days, Judge};
use super::members::{count_charged, denied_by_limit};
use super::once::mark_of;
use super::outcome::{DeadReason, Denial, Outcome, Verdict};
use super::shard::{Account, Shard};
use super::void::Charge;

impl Shard {
    /// Applies usage events, or changes nothing and says why.
    pub fn apply(&mut self, call: &ApplyCall) -> Reply<Applied> {
        match self.check(call) {
            Err(refused) => refused,
            Ok(()) => Reply::Applied(self.write(call)),
        }
    }

    fn check(&mut self, call: &ApplyCall) -> Result<(), Reply<Applied>> {
        self.check_fence(&call.stamp, &call.ranges)?;
        self.check_others(&call.others)?;

        let stale = call.groups.iter().filter(|group| self.is_stale(call, group));
        let stale: Vec<_> = stale
            .map(|group| StaleAccount {
                account: group.account.clone(),
                view: self.accounts.get(&group.account).map(|account| account.view()),
            })
            .collect();
        if !stale.is_empty() {
            return Err(Reply::Stale(stale));
        }

        let unknown = || call.groups.iter().filter(|group| group.version == 0 && !group.events.is_empty());
        let commands_position = self.position(super::call::Partition::COMMANDS);
        let settled = call.commands_end.is_some_and(|end| commands_position >= end);
        let too_soon = call.commands_first.is_some_and(|first| commands_position < first);
        if too_soon || (unknown().next().is_some() && !settled) {
            return Err(Reply::Unknown { commands_position });
        }

        let mut found: Vec<Note> = call.found.clone();
        // Redis may be older than the dead letter.
        found.extend(call.dead.iter().filter(|note| !self.notes.contains_key(&(note.partition, note.offset))));
        for group in unknown() {
            found.extend(group.events.iter().map(|event| note(call, event, DeadReason::UnknownAccount)));
        }
        let floor_ms = self.fence.as_ref().map_or(0, |fence| fence.floor_ms);
        for group in call.groups.iter().filter(|group| group.version > 0) {
            for event in &group.events {
                let is_void = call.classes[event.class].judge == Judge::Void;
                if event.event.dated_ms < floor_ms || is_void && self.voids_too_late(call, group, event) {
                    let reason = if is_void { DeadReason::VoidTooLate } else { DeadReason::TooLate };
                    found.push(note(call, event, reason));
                }
            }
        }
        let declared: BTreeSet<_> = call.dead.iter().map(|note| (note.partition, note.offset)).collect();
        let undeclared = |note: &Note| !declared.contains(&(note.partition, note.offset));
        if !found.is_empty() || self.notes_in(&call.ranges).iter().any(undeclared) {
            for note in found {
                // A note that is there decides.
                self.notes.entry((note.partition, note.offset)).or_insert(note.reason);
            }
            return Err(Reply::Dead(self.notes_in(&call.ranges)));
        }
        self.check_outbox(&call.stamp)?;
        self.check_room(call)
    }

    /// A day whose sets are full gets more before anything is remembered in it, and so does a cycle with its marks.
    fn check_room(&mut self, call: &ApplyCall) -> Result<(), Reply<Applied>> {
        let full = self.without_room(call, Room::Now);
        let full_marks = self.marks_without_room(call, Room::Now);
        if full.is_empty() && full_marks.is_empty() {
            return Ok(());
        }
        self.grow(&full);
        self.grow_marks(&full_marks);
        let of_days = full.iter().map(|grown| &grown.account);
        let grown: BTreeSet<&Arc<str>> = of_days.chain(full_marks.iter().map(|grown| &grown.account)).collect();
        let groups = call.groups.iter().filter(|group| grown.contains(&group.account));
        let shown = groups.map(|group| StaleAccount {
            account: group.account.clone(),
            view: self.accounts.get(&group.account).map(Account::view),
        });
        Err(Reply::Stale(shown.collect()))
    }

    /// The call's days whose sets have no room, with one generation more.
    fn without_room(&self, call: &ApplyCall, room: Room) -> Vec<GrownDay> {
        let mut grown: Vec<GrownDay> = Vec::new();
        for group in &call.groups {
            let account = &group.account;
            for (days, run) in group.runs(call.stamp.restamp_tolerance_ms) {
                let (day, members_max) = (days.own, call.stamp.set_members_max);
                let Some(sets) = self.seen.get(&(account.clone(), day)) else { continue };
                let met = grown.iter().any(|grown| grown.account == *account && grown.day == day);
                let identities = run.iter().map(|event| event.event.identity);
                if !met && !sets.has_room(identities, room, members_max) {
                    let layout = sets.layout.grown(run.len(), members_max);
                    grown.push(GrownDay { account: account.clone(), day, layout });
                }
            }
        }
        grown
    }

    fn grow(&mut self, grown: &[GrownDay]) {
        for GrownDay { account, day, layout } in grown {
            let sets = self.seen.get_mut(&(account.clone(), *day)).expect("a day that grows is there");
            sets.layout = layout.clone();
            let account = self.accounts.get_mut(account).expect("it has days");
            account.days.insert(*day, layout.clone());
        }
    }

    fn is_stale(&self, call: &ApplyCall, group: &Group) -> bool {
        let Some(account) = self.accounts.get(&group.account) else { return group.version != 0 };
        let other_days = |(days, _): (Days, _)| {
            let (own, neighbour) = layouts_of(&group.days, days);
            account.days.get(&days.own).is_some_and(|stored| stored != own)
                || days.neighbour.is_some_and(|day| account.days.get(&day) != neighbour)
        };
        account.version != group.version
            || group.runs(call.stamp.restamp_tolerance_ms).any(other_days)
            || group.marks.iter().any(|marks| marks.differ_from(&account.marks))
    }

    fn write(&mut self, call: &ApplyCall) -> Applied {
        // The next call finds more sets, and need not be refused for it.
        let grown = self.without_room(call, Room::Again);
        let grown_marks = self.marks_without_room(call, Room::Again);
        let mut verdicts = Vec::with_capacity(call.events());
        let mut all_uncovered: BTreeMap<(usize, usize), Credits> = BTreeMap::new();
        let mut alerts = Vec::new();
        for (index, group) in call.groups.iter().enumerate() {
            let before = self.accounts.get(&group.account).map(|account| account.counters.clone()).unwrap_or_default();
            let mut denied = Denied::new(call, group);
            let mut unjudged = Unjudged { before, starved: BTreeSet::new() };
            self.begin_marks(group);
            for event in &group.events {
                let class = &call.classes[event.class];
                let (verdict, uncovered) = match class.judge {
                    _ if self.is_duplicate(call, group, event) => (Verdict::Duplicate, Credits::ZERO),
                    Judge::Void => (self.void(call, group, event, &mut unjudged, &mut alerts), Credits::ZERO),
                    _ => self.decide(call, group, event, &mut denied),
                };
                if uncovered > Credits::ZERO {
                    *all_uncovered.entry((index, event.class)).or_default() += uncovered;
                }
                self.count(call.ranges[event.range].partition, verdict.outcome(), 1);
                verdicts.push(verdict);
                if class.cycle.is_none()
                    && let Verdict::Denied(Denial::InsufficientCredits | Denial::OverageLimit) = verdict
                {
                    unjudged.starved.insert(class.credit_type.clone());
                }
            }
            self.outbox.extend(denied.messages());
            if let Some(account) = self.accounts.get_mut(&group.account) {
                alerts.extend(account.alerts_after_use(group, &mut unjudged));
            }
        }
        self.outbox.extend(alerts);
        for note in &call.dead {
            self.count(note.partition, Outcome::DeadLettered, 1);
        }
        for range in &call.ranges {
            self.count(range.partition, Outcome::Duplicate, u64::from(range.repeats));
        }
        self.advance(&call.stamp, &call.ranges);
        self.grow(&grown);
        self.grow_marks(&grown_marks);
        Applied { verdicts, outbox: self.outbox.len(), uncovered: all_uncovered, grown, grown_marks }
    }

    /// Whether an event was decided before; it is remembered from now on.
    fn is_duplicate(&mut self, call: &ApplyCall, group: &Group, event: &CallEvent) -> bool {
        let days = Days::of(event.event.time_ms, call.stamp.restamp_tolerance_ms);
        let identity = event.event.identity;
        let in_day =
            |day: i64| self.seen.get(&(group.account.clone(), day)).is_some_and(|sets| sets.contains(identity));
        let repeat = call.classes[event.class].judge == Judge::Repeat || days.neighbour.is_some_and(in_day);
        let (layout, _) = layouts_of(&group.days, days);
        let begun = self.seen.entry((group.account.clone(), days.own)).or_insert_with(|| DaySets::new(layout.clone()));
        let duplicate = repeat || begun.contains(identity);
        // Each event is remembered in its own day, a duplicate too: the next retry may be nearer to that one.
        begun.insert(identity);
        let account = self.accounts.get_mut(&group.account).expect("an unknown account was refused");
        account.days.entry(days.own).or_insert_with(|| layout.clone());
        duplicate
    }

    /// How an event ends, and what of its cost is not charged where it is capped.
    fn decide(
        &mut self,
        call: &ApplyCall,
        group: &Group,
        event: &CallEvent,
        denied: &mut Denied,
    ) -> (Verdict, Credits) {
        let class = &call.classes[event.class];
        let days = Days::of(event.event.time_ms, call.stamp.restamp_tolerance_ms);
        let takes = matches!(class.judge, Judge::Charge | Judge::Capped);
        let mark = mark_of(group, class, event);
        let is_marked = mark.is_some_and(|(cycle, mark)| self.has_mark(group, cycle, mark));
        // A recorded decision stands, also beside another that was made anew.
        let charged_before = class.judge == Judge::Charge && is_marked;
        if takes && !charged_before && self.was_voided(group, class, event, days) {
            return (Verdict::Voided, Credits::ZERO);
        }
        let account = self.accounts.get_mut(&group.account).expect("an unknown account was refused");
        let count = group.member_count(class, event);
        let limited = denied_by_limit(&self.members, &group.account, count, class);
        let judged = limited.as_ref().unwrap_or(class);
        let (verdict, uncovered, remaining) = match class.cycle {
            _ if class.judge == Judge::Free || charged_before => (Verdict::Free, Credits::ZERO, None),
            Some(number) => account.use_late(number, judged, event.event.dated_ms),
            None => account.use_now(judged, group.overage),
        };
        let cost = class.cost - uncovered;
        count_charged(&mut self.members, &group.account, count, verdict, cost);
        let day = self.count_usage(group, event, class, verdict, cost);
        if let Verdict::Charged | Verdict::Capped = verdict {
            let set = mark.filter(|_| !is_marked && cost > Credits::ZERO);
            if let Some((cycle, mark)) = set {
                self.set_mark(group, cycle, mark);
            }
            let charge = Charge {
                credit_type: class.credit_type.clone(),
                cost,
                cycle: class.cycle.unwrap_or(group.cycle),
                unlimited: remaining.is_none(),
                mark: set.map(|(_, mark)| mark.member),
                member: count.map(|count| count.user.into()),
                usage: day.map(|day| (day, class.action.clone(), event.event.user.clone().unwrap_or_default())),
            };
            self.keep_charge(group, class, event, days, charge);
        }
        match verdict {
            _ if class.judge.recorded() => {}
            Verdict::Denied(_) => denied.add(verdict, event, class, remaining, None),
            Verdict::Capped => denied.add(verdict, event, class, remaining, Some(uncovered)),
            Verdict::Charged | Verdict::Free | Verdict::Duplicate | Verdict::Voided => {}
        }
        (verdict, uncovered)
    }
}

/// What a group's usage has moved since its alerts were judged last.
pub(super) struct Unjudged {
    pub before: BTreeMap<String, Counter>,
    /// Credit types of which an event was denied for want of credits.
    pub starved: BTreeSet<String>,
}

impl Account {
    /// Messages about the credit types that a group's events have moved since they were judged last.
    pub(super) fn alerts_after_use(&mut self, group: &Group, unjudged: &mut Unjudged) -> Vec<OutboxEntry> {
        let Unjudged { before, starved } = unjudged;
        let charged = |counters: &BTreeMap<String, Counter>, name: &str| counters.get(name).map(|each| each.charged);
        let mut messages = Vec::new();
        let at_ms = group.events.iter().map(|event| event.event.dated_ms).max().unwrap_or(i64::MIN);
        let types = self.counters.keys().chain(starved.iter()).cloned().collect::<BTreeSet<_>>();
        for credit_type in types {
            let denied = starved.contains(&credit_type);
            if denied || charged(&self.counters, &credit_type) != charged(before, &credit_type) {
                let moved = Moved::Used { denied, at_ms };
                messages.extend(self.judge_alerts(&group.account, &credit_type, &group.thresholds, moved));
            }
        }
        starved.clear();
        messages
    }

    /// Decides an event of the open cycle, and charges it. The remaining credits are those before it.
    fn use_now(&mut self, class: &Class, overage: Overage) -> (Verdict, Credits, Option<Credits>) {
        let counter = self.counters.get(&class.credit_type).copied().unwrap_or_default();
        let Balance { remaining, overage: over, .. } = counter.balance();
        let (verdict, uncovered) = judge(class, remaining, counter.charged, over, overage);
        match verdict {
            Verdict::Charged | Verdict::Capped => {
                let charged = counter.charged + class.cost - uncovered;
                match self.counters.get_mut(&class.credit_type) {
                    Some(counter) => counter.charged = charged,
                    None => drop(self.counters.insert(class.credit_type.clone(), Counter { charged, ..counter })),
                }
            }
            Verdict::Denied(_) => *self.denied.entry(class.credit_type.clone()).or_default() += 1,
            Verdict::Free | Verdict::Duplicate | Verdict::Voided => {}
        }
        (verdict, uncovered, remaining)
    }
}

/// Whether a cost is charged, and how much of it is not covered. `over` is what was charged beyond the grants before.
pub(super) fn judge(
    class: &Class,
    remaining: Option<Credits>,
    charged: Credits,
    over: Credits,
    overage: Overage,
) -> (Verdict, Credits) {
    match class.judge {
        Judge::NotEntitled => return (Verdict::Denied(Denial::NotEntitled), Credits::ZERO),
        Judge::Free => return (Verdict::Free, Credits::ZERO),
        Judge::Denied(denial) => return (Verdict::Denied(denial), Credits::ZERO),
        Judge::Capped => return (Verdict::Capped, Credits::ZERO),
        Judge::Repeat => return (Verdict::Duplicate, Credits::ZERO),
        Judge::Void => return (Verdict::Voided, Credits::ZERO),
        Judge::Charge => {}
    }
    let Some(remaining) = remaining else {
        // Only counted, but the count must stay exact.
        if charged + class.cost > Credits::BALANCE_MAX {
            return (Verdict::Denied(Denial::OverageLimit), Credits::ZERO);
        }
        return (Verdict::Charged, Credits::ZERO);
    };
    if class.cost <= remaining {
        return (Verdict::Charged, Credits::ZERO);
    }
    match overage {
        Overage::Reject => (Verdict::Denied(Denial::InsufficientCredits), Credits::ZERO),
        Overage::Cap => (Verdict::Capped, class.cost - remaining),
        Overage::Allow { limit } => {
            let beyond = over + class.cost - remaining;
            let limit = limit.unwrap_or(Credits::BALANCE_MAX);
            if beyond > limit {
                return (Verdict::Denied(Denial::OverageLimit), Credits::ZERO);
            }
            (Verdict::Charged, Credits::ZERO)
        }
    }
}

fn note(call: &ApplyCall, event: &CallEvent, reason: DeadReason) -> Note {
    Note { partition: call.ranges[event.range].partition, offset: event.offset, reason }
}

/// The messages about one account's denied and capped events in a call.
struct Denied<'a> {
    call: &'a ApplyCall,
    group: &'a Group,
    by_reason: [Vec<OutboxEntry>; 5],
    /// Events in the last message of each reason.
    open: [usize; 5],
}

const REASONS: [&str; 5] = [
    Denial::NotEntitled.name(),
    Denial::InsufficientCredits.name(),
    Denial::OverageLimit.name(),
    Outcome::Capped.name(),
    Denial::MemberLimit.name(),
];

impl<'a> Denied<'a> {
    fn new(call: &'a ApplyCall, group: &'a Group) -> Denied<'a> {
        Denied { call, group, by_reason: Default::default(), open: [0; 5] }
    }

    fn add(
        &mut self,
        verdict: Verdict,
        event: &CallEvent,
        class: &Class,
        remaining: Option<Credits>,
        uncovered: Option<Credits>,
    ) {
        let reason = match verdict {
            Verdict::Denied(Denial::MemberLimit) => 4,
            Verdict::Denied(denial) => denial as usize,
            _ => 3,
        };
        let topic = &self.call.stamp.usage_topic;
        let partition = self.call.ranges[event.range].partition.index;
        let offset = event.offset;
        let remaining = remaining.map_or("null".to_owned(), |remaining| remaining.to_string());
        let uncovered = uncovered.map_or(String::new(), |uncovered| format!(",\"uncovered\":{uncovered}"));
        let text = format!(
            "{{{},\"topic\":{},\"partition\":{partition},\"offset\":{offset},\"action\":\"{}\",\
             \"credit_type\":\"{}\",\"required\":{},\"remaining\":{remaining}{uncovered}}}",
            named(&event.event.source, &event.event.id),
            json_text(topic),
            class.action,
            class.credit_type,
            class.cost,
        );
        let messages = &mut self.by_reason[reason];
        let full = messages.last().is_none_or(|message| {
            self.open[reason] == DENIED_EVENTS_MAX || message.data.len() + text.len() > DENIED_BYTES_MAX
        });
        if full {
            messages.push(OutboxEntry {
                output: Output::Denied,
                id: format!("{topic}/{partition}/{offset}/{}", REASONS[reason]),
                event_type: "credits.denied.v1".to_owned(),
                account: self.group.account.to_string(),
                data: format!("{{\"reason\":\"{}\",\"events\":[{text}", REASONS[reason]),
            });
            self.open[reason] = 1;
        } else {
            let message = messages.last_mut().expect("it is not full, so it is there");
            message.data.push(',');
            message.data.push_str(&text);
            self.open[reason] += 1;
        }
    }

    fn messages(self) -> impl Iterator<Item = OutboxEntry> {
        self.by_reason.into_iter().flatten().map(|mut message| {
            message.data.push_str("]}");
            message
        })
    }
}

/// The part of a JSON object that names an event.
pub fn named(source: &str, id: &str) -> String {
    format!("\"source\":{},\"id\":{}", json_text(source), json_text(id))
}

pub fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("text is always valid JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::catalogue::Amount;

    fn class(judge: Judge, cost: i64) -> Class {
        let (action, credit_type) = ("reveal".into(), "email".into());
        Class { action, credit_type, cost: Credits::whole(cost), judge, cycle: None, once: false, voidable: false }
    }

    #[test]
    fn an_event_is_judged_by_what_remains_and_by_the_plans_policy() {
        use Judge::{Charge, Free, NotEntitled};
        let reject = Overage::Reject;
        let limited = Overage::Allow { limit: Some(Credits::whole(5)) };
        let allow = Overage::Allow { limit: None };
        let denied = Verdict::Denied;
        let check = |granted: i64, charged: i64, judge: Judge, cost: i64, overage, verdict, uncovered: i64| {
            let counter = Counter {
                granted: Amount::Limited(Credits::whole(granted)),
                charged: Credits::whole(charged),
                expired: Credits::ZERO,
            };
            let row = format!("granted {granted} charged {charged} {judge:?} {cost} {overage:?}");
            let Balance { remaining, overage: over, .. } = counter.balance();
            let judged = super::judge(&class(judge, cost), remaining, counter.charged, over, overage);
            assert_eq!(judged, (verdict, Credits::whole(uncovered)), "{row}");
        };
        // granted charged judge cost policy | verdict uncovered
        check(10, 0, Charge, 10, reject, Verdict::Charged, 0);
        check(10, 4, Charge, 6, reject, Verdict::Charged, 0);
        check(10, 4, Charge, 7, reject, denied(Denial::InsufficientCredits), 0);
        check(10, 10, Free, 0, reject, Verdict::Free, 0);
        check(10, 0, NotEntitled, 1, reject, denied(Denial::NotEntitled), 0);
        check(10, 0, NotEntitled, 1, allow, denied(Denial::NotEntitled), 0);
        check(10, 4, Charge, 7, Overage::Cap, Verdict::Capped, 1);
        check(10, 10, Charge, 7, Overage::Cap, Verdict::Capped, 7);
        check(10, 4, Charge, 6, Overage::Cap, Verdict::Charged, 0);
        check(10, 10, Charge, 5, limited, Verdict::Charged, 0);
        check(10, 4, Charge, 12, limited, denied(Denial::OverageLimit), 0);
        check(10, 14, Charge, 1, limited, Verdict::Charged, 0);
        check(10, 15, Charge, 1, limited, denied(Denial::OverageLimit), 0);
        check(0, 0, Charge, 100_000_000, allow, Verdict::Charged, 0);
        check(0, 1_000_000_000_000, Charge, 1, allow, denied(Denial::OverageLimit), 0);
    }

    #[test]
    fn an_unlimited_type_only_counts_and_stays_exact() {
        let judged = |charged| super::judge(&class(Judge::Charge, 1), None, charged, Credits::ZERO, Overage::Reject).0;
        assert_eq!(judged(Credits::ZERO), Verdict::Charged);
        assert_eq!(judged(Credits::BALANCE_MAX), Verdict::Denied(Denial::OverageLimit));
    }
}
