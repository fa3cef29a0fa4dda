//! Voids: what an event was charged is given back (`credits.usage.void.v1`).
//!
//! A charged event of a voidable action leaves its *charge* beside its identity, by account and day. A void names the
//! event, and is remembered by an identity made from that event's, so that each is voided at most once, whoever asks. It
//! gives back what was charged, to the cycle and the credit type of the charge, whatever its data say. A void that comes
//! before its event waits for it, and the event then takes nothing. The ledger topic tells of each that gave something back, and
//! of each that found nothing charged: that may wait for ever.
//!
//! What comes back covers overage first, then it is again in what it was taken from, first in what burns last. A closed cycle lets
//! expire what was its own, and its statement is restated. Where a type has become unlimited within the cycle, what was charged before
//! comes back to top-ups and promos, which may go on to a cycle that is not; for what was charged after, nothing was taken.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chrono::NaiveDate;

use super::account::Life;
use super::alerts::Moved;
use super::apply::{Unjudged, named};
use super::call::{ApplyCall, CallEvent, Group, OutboxEntry, Output};
use super::credits::Credits;
use super::event::{Class, Days};
use super::members::give_back;
use super::once::mark_of;
use super::outcome::Verdict;
use super::shard::{Account, Shard};
use super::usage::{Used, day_number, day_of_number, local_day};

/// What is kept of an event of a voidable action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its void came first.
    Waits,
    Charged(Charge),
}

/// What an event was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    pub credit_type: String,
    pub cost: Credits,
    /// The cycle that it was charged to.
    pub cycle: i32,
    /// Nothing was taken for it: the type was unlimited.
    pub unlimited: bool,
    /// The mark that it has set, of what is charged once.
    pub mark: Option<i64>,
    /// The member for whom it was counted; `None`: the account had no limit of that type.
    pub member: Option<Arc<str>>,
    /// The day, action and member under which it is broken down; `None`: it is not.
    pub usage: Option<(NaiveDate, Arc<str>, Arc<str>)>,
}

impl Kept {
    pub fn parse(text: &str) -> Option<Kept> {
        if text == "-" {
            return Some(Kept::Waits);
        }
        let mut words = text.splitn(7, ' ');
        let mut charge = Charge {
            credit_type: words.next()?.to_owned(),
            cost: Credits::from_thousandths(words.next()?.parse().ok()?),
            cycle: words.next()?.parse().ok()?,
            unlimited: false,
            mark: None,
            member: None,
            usage: None,
        };
        let mark = words.next()?;
        let counted = mark.strip_suffix('m');
        let mark = counted.unwrap_or(mark);
        let untaken = mark.strip_suffix('u');
        charge.unlimited = untaken.is_some();
        charge.mark = match untaken.unwrap_or(mark) {
            "-" => None,
            mark => Some(mark.parse().ok()?),
        };
        if let Some(day) = words.next() {
            let (action, user): (Arc<str>, Arc<str>) = (words.next()?.into(), words.next()?.into());
            charge.member = counted.map(|_| user.clone());
            charge.usage = match day {
                "-" => None,
                day => Some((day_of_number(day.parse().ok()?)?, action, user)),
            };
        }
        Some(Kept::Charged(charge))
    }
}

/// The stored form. The member comes last, since it may be any text.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kept::Charged(charge) = self else { return f.write_str("-") };
        let Charge { credit_type, cost, cycle, unlimited, mark, member, usage } = charge;
        let mark = mark.map_or("-".to_owned(), |mark| mark.to_string());
        let untaken = if *unlimited { "u" } else { "" };
        let counted = if member.is_some() { "m" } else { "" };
        write!(f, "{credit_type} {} {cycle} {mark}{untaken}{counted}", cost.thousandths())?;
        match (usage, member) {
            (Some((day, action, user)), _) => write!(f, " {} {action} {user}", day_number(*day)),
            (None, Some(user)) => write!(f, " - - {user}"),
            (None, None) => Ok(()),
        }
    }
}

/// An account's events of a day, by the remembered half of their identities.
pub type DayCharges = BTreeMap<i64, Kept>;

impl Shard {
    fn kept_in(&self, account: &Arc<str>, days: Days, member: i64) -> Option<(i64, &Kept)> {
        let in_day = |day| Some((day, self.charges.get(&(account.clone(), day))?.get(&member)?));
        in_day(days.own).or_else(|| in_day(days.neighbour?))
    }

    fn forget_charge(&mut self, account: &Arc<str>, day: i64, member: i64) {
        let key = (account.clone(), day);
        let charges = self.charges.get_mut(&key).expect("the charge was found in it");
        charges.remove(&member);
        if charges.is_empty() {
            self.charges.remove(&key);
        }
    }

    /// Whether a void of a call asks for a charge to a cycle that is kept no more.
    pub(super) fn voids_too_late(&self, call: &ApplyCall, group: &Group, event: &CallEvent) -> bool {
        let (Some(voided), Some(account)) = (event.event.voids, self.accounts.get(&group.account)) else {
            return false;
        };
        let days = Days::of(event.event.time_ms, call.stamp.restamp_tolerance_ms);
        match self.kept_in(&group.account, days, voided.member) {
            Some((_, Kept::Charged(charge))) => !account.keeps(charge.cycle),
            Some((_, Kept::Waits)) | None => false,
        }
    }

    /// Whether the void of an event that would be charged has come before it; it waits no longer.
    pub(super) fn was_voided(&mut self, group: &Group, class: &Class, event: &CallEvent, days: Days) -> bool {
        let member = event.event.identity.member;
        match self.kept_in(&group.account, days, member) {
            Some((day, Kept::Waits)) if class.voidable => {
                self.forget_charge(&group.account, day, member);
                true
            }
            _ => false,
        }
    }

    /// Keeps what an event was charged.
    pub(super) fn keep_charge(&mut self, group: &Group, class: &Class, event: &CallEvent, days: Days, charge: Charge) {
        if class.voidable {
            let charges = self.charges.entry((group.account.clone(), days.own)).or_default();
            charges.insert(event.event.identity.member, Kept::Charged(charge));
        }
    }

    /// Takes a charge back, or waits for it. Alerts about the usage before are judged first.
    pub(super) fn void(
        &mut self,
        call: &ApplyCall,
        group: &Group,
        event: &CallEvent,
        unjudged: &mut Unjudged,
        messages: &mut Vec<OutboxEntry>,
    ) -> Verdict {
        let days = Days::of(event.event.time_ms, call.stamp.restamp_tolerance_ms);
        let member = event.event.voids.expect("its class says that it is a void").member;
        let kept = self.kept_in(&group.account, days, member).map(|(day, kept)| (day, kept.clone()));
        let Some((day, Kept::Charged(charge))) = kept else {
            if kept.is_none() {
                self.charges.entry((group.account.clone(), days.own)).or_default().insert(member, Kept::Waits);
            }
            let action = format!("\"action\":\"{}\"", call.classes[event.class].action);
            messages.push(line(call, group, event, "waits", "credits.ledger.void-waits.v1", &action));
            return Verdict::Voided;
        };
        self.forget_charge(&group.account, day, member);
        let asked = mark_of(group, &call.classes[event.class], event);
        if let Some((cycle, mark)) =
            asked.filter(|(cycle, mark)| (*cycle, Some(mark.member)) == (charge.cycle, charge.mark))
        {
            let marks = self.marks.get_mut(&(group.account.clone(), cycle));
            marks.expect("the group's marks were begun").remove(mark);
        }
        self.uncount_usage(group, event, &charge);
        give_back(&mut self.members, group, &call.classes[event.class], &charge);
        if charge.cost == Credits::ZERO {
            return Verdict::Voided;
        }
        let account = self.accounts.get_mut(&group.account).expect("an unknown account was refused");
        let lives = account.life != Life::Closed;
        let remaining = |account: &Account| {
            let counter = account.counters.get(&charge.credit_type).copied().unwrap_or_default();
            counter.remaining().filter(|_| lives)
        };
        if lives {
            messages.extend(account.alerts_after_use(group, unjudged));
        }
        let before = remaining(account);
        if lives && account.cycle.number == charge.cycle {
            account.refund(&charge.credit_type, charge.cost, charge.unlimited);
        } else {
            account.refund_late(charge.cycle, &charge.credit_type, charge.cost, charge.unlimited);
        }
        let after = remaining(account);
        let or_null = |amount: Option<Credits>| amount.map_or("null".to_owned(), |amount| amount.to_string());
        let data = format!(
            "\"credit_type\":\"{}\",\"amount\":{},\"cycle\":{},\"before\":{},\"after\":{}",
            charge.credit_type,
            charge.cost,
            charge.cycle,
            or_null(before),
            or_null(after),
        );
        messages.push(line(call, group, event, "refund", "credits.ledger.refund.v1", &data));
        if lives {
            let risen = before.is_some_and(|before| after.is_none_or(|after| after > before));
            let moved = Moved::Changed { risen };
            messages.extend(account.judge_alerts(&group.account, &charge.credit_type, &group.thresholds, moved));
            unjudged.before.clone_from(&account.counters);
        }
        Verdict::Voided
    }

    /// Takes a charge out of the usage of its day, unless that was forgotten. After a change of zone it stays.
    fn uncount_usage(&mut self, group: &Group, event: &CallEvent, charge: &Charge) {
        let Some(day) = group.breakdown.map(|timezone| local_day(event.event.dated_ms, timezone)) else { return };
        let Some((_, action, user)) = charge.usage.as_ref().filter(|(of, ..)| *of == day) else { return };
        let Some(usage) = self.usage.get_mut(&(group.account.clone(), day)) else { return };
        let own = (user.clone(), action.clone());
        let Some(used) = usage.get_mut(&own).filter(|used| used.charged > 0 && used.credits >= charge.cost) else {
            return;
        };
        used.charged -= 1;
        used.credits = used.credits - charge.cost;
        if *used == Used::default() {
            usage.remove(&own);
        }
    }
}

/// What `credits.ledger` says of a void.
fn line(call: &ApplyCall, group: &Group, event: &CallEvent, kind: &str, event_type: &str, data: &str) -> OutboxEntry {
    let partition = call.ranges[event.range].partition.index;
    OutboxEntry {
        output: Output::Ledger,
        id: format!("{}/{partition}/{}/{kind}", call.stamp.usage_topic, event.offset),
        event_type: event_type.to_owned(),
        account: group.account.to_string(),
        data: format!("{{{data},\"cause\":{{{}}}}}", named(&event.event.source, &event.event.id)),
    }
}

impl Account {
    fn keeps(&self, cycle: i32) -> bool {
        self.life != Life::Closed && self.cycle.number == cycle || self.closed.contains_key(&cycle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_as_it_is_written() {
        let charge = Charge {
            credit_type: "email".into(),
            cost: Credits::from_thousandths(1_500),
            cycle: -3,
            unlimited: false,
            mark: Some(-7),
            member: None,
            usage: day_of_number(20_261_125).map(|day| (day, "reveal_email".into(), "Ada von L".into())),
        };
        for (kept, text) in [
            (Kept::Waits, "-"),
            (Kept::Charged(charge.clone()), "email 1500 -3 -7 20261125 reveal_email Ada von L"),
            (
                Kept::Charged(Charge { member: Some("Ada von L".into()), ..charge.clone() }),
                "email 1500 -3 -7m 20261125 reveal_email Ada von L",
            ),
            (
                Kept::Charged(Charge { member: Some("".into()), usage: None, mark: None, ..charge.clone() }),
                "email 1500 -3 -m - - ",
            ),
            (
                Kept::Charged(Charge { member: Some("Ada von L".into()), unlimited: true, ..charge.clone() }),
                "email 1500 -3 -7um 20261125 reveal_email Ada von L",
            ),
            (Kept::Charged(Charge { usage: None, mark: None, unlimited: true, ..charge.clone() }), "email 1500 -3 -u"),
            (Kept::Charged(Charge { usage: None, mark: None, ..charge }), "email 1500 -3 -"),
        ] {
            assert_eq!((kept.to_string(), Kept::parse(text)), (text.to_owned(), Some(kept)));
        }
    }
}
