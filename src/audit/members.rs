//! What members used: usage by day, member and action, and what counts against their limits, as the log has it.
//!
//! A day is one of the account's zone. An account that has had several zones has its events under any of their days, each by
//! itself: nobody knows afterwards by which its event was counted. Likewise what was charged before a limit came, or after it
//! went, may be counted or not.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta};
use chrono_tz::Tz;

use super::commands::Commanded;
use super::compare::Comparison;
use super::fold::{Folded, Kinds};
use super::point::Point;
use super::resolve::{Between, Ended, Priced, Resolver, Sums};
use crate::config;
use crate::ledger::account::{AccountView, Life};
use crate::ledger::credits::Credits;
use crate::ledger::event::{Class, DAY_MS};
use crate::ledger::outcome::Outcome;
use crate::ledger::usage::{Used, last_past, local_day};
use crate::store::ShardState;
use crate::store::look::LookedAccount;

/// Which days of usage are compared. None of before: what a saved point stands for is not in it by day.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// For how long the meter keeps a day.
    pub keep_ms: i64,
    /// The first day to compare.
    pub from: Option<NaiveDate>,
    /// Usage dated before it is not read.
    pub begins_ms: i64,
}

impl Window {
    pub fn of(usage: &config::Usage, from: Option<NaiveDate>, point: Option<&Point>) -> Option<Window> {
        let keep_ms = i64::try_from(usage.keep.as_millis()).unwrap_or(i64::MAX);
        usage.breakdown.then(|| Window { keep_ms, from, begins_ms: point.map_or(0, Point::begins_ms) })
    }

    /// The first day that a shard must still have, whole.
    pub fn first(&self, shard: &ShardState) -> NaiveDate {
        let past = last_past(self.keep_ms, shard.meter_time_ms).map(|day| day + TimeDelta::days(1));
        past.max(shard.usage_from).max(self.from).unwrap_or_default()
    }

    /// The days that an account may have in a shard, whatever its zone. Of what was decided the identity is remembered, by
    /// day; what is not any more was dated before meter time.
    pub fn days(&self, shard: &ShardState, account: &AccountView) -> Option<(NaiveDate, NaiveDate)> {
        let day = |ms: i64| DateTime::from_timestamp_millis(ms).map(|time| time.date_naive());
        let begun = day(account.since_ms.max(self.begins_ms).saturating_sub(DAY_MS));
        let remembered = account.days.keys().last().map_or(0, |day| day.saturating_mul(DAY_MS));
        let last = day(shard.meter_time_ms.max(remembered).saturating_add(DAY_MS))?;
        let first = begun?.max(self.first(shard));
        (first <= last).then_some((first, last))
    }

    /// The first day that is compared of an account with these zones, in a shard that has all from a day on.
    pub fn first_for(&self, first: NaiveDate, zones: &[Tz]) -> NaiveDate {
        let behind = |zone: &Tz| local_day(self.begins_ms - 1, *zone) + TimeDelta::days(1);
        let begins = zones.iter().filter(|_| self.begins_ms > 0).map(behind).max();
        first.max(begins.unwrap_or_default())
    }
}

/// Numbers of a member and an action on a day: events charged, thousandths, events denied, and free.
type Numbers = [i64; 4];

/// The least and the most that each of them may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    min: Numbers,
    max: Numbers,
}

impl Row {
    fn add(&mut self, other: &Row) {
        self.min.iter_mut().zip(other.min).for_each(|(own, other)| *own += other);
        self.max.iter_mut().zip(other.max).for_each(|(own, other)| *own += other);
    }

    /// This or that.
    fn or(&self, other: &Row) -> Row {
        let each =
            |of: fn(i64, i64) -> i64, own: Numbers, other: Numbers| std::array::from_fn(|i| of(own[i], other[i]));
        Row { min: each(i64::min, self.min, other.min), max: each(i64::max, self.max, other.max) }
    }

    pub fn holds(&self, used: &Used) -> bool {
        let found = numbers(used);
        (0..4).all(|i| (self.min[i]..=self.max[i]).contains(&found[i]))
    }
}

fn numbers(used: &Used) -> Numbers {
    let count = |events: u64| i64::try_from(events).unwrap_or(i64::MAX);
    [count(used.charged), used.credits.thousandths(), count(used.denied), count(used.free)]
}

impl From<&Used> for Row {
    fn from(used: &Used) -> Row {
        Row { min: numbers(used), max: numbers(used) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |i: usize| Between { min: self.min[i], max: self.max[i] };
        let credits =
            Between { min: Credits::from_thousandths(self.min[1]), max: Credits::from_thousandths(self.max[1]) };
        write!(f, "{} charged {credits}, {} denied, {} free", of(0), of(2), of(3))
    }
}

/// A day, a member and an action.
pub type Place = (NaiveDate, Arc<str>, Arc<str>);
/// A cycle (`None`: the open one), a credit type and a member.
pub type Count = (Option<i32>, String, Arc<str>);

/// What an account's members used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    /// The zones that the account has had, and the first day that counts; `None`: usage by day is not compared.
    by_day: Option<(Vec<Tz>, NaiveDate)>,
    /// Whether the account has ever had limits.
    limited: bool,
    pub days: BTreeMap<Place, Row>,
    pub counts: BTreeMap<Count, Between<Credits>>,
}

impl Members {
    pub fn of(commanded: &Commanded, first: Option<NaiveDate>) -> Members {
        let by_day = first.map(|first| (commanded.zones.clone(), first));
        Members { by_day, limited: commanded.limits.ever, ..Members::default() }
    }

    /// Begins with what a saved point counts.
    pub fn with(self, counts: BTreeMap<Count, Between<Credits>>) -> Members {
        Members { counts, ..self }
    }

    /// Adds records that ended in a known way: nearly all do.
    fn add(&mut self, resolver: &Resolver<'_>, way: &[(Priced, Ended)]) {
        for (attempt, ended) in way {
            for (place, row) in self.rows(resolver, attempt, ended) {
                self.days.entry(place).or_default().add(&row);
            }
            if self.limited
                && let Some((count, amount)) = counted(resolver, attempt, ended)
            {
                self.counts.entry(count).or_default().add(amount, amount);
            }
        }
    }

    /// Adds records that ended in one of several ways.
    pub fn add_one_of(&mut self, resolver: &Resolver<'_>, ways: &[&[(Priced, Ended)]]) {
        if let [way] = ways {
            return self.add(resolver, way);
        }
        if self.by_day.is_some() {
            let mut places: BTreeMap<Place, Vec<Row>> = BTreeMap::new();
            for (number, way) in ways.iter().enumerate() {
                for (attempt, ended) in *way {
                    for (place, row) in self.rows(resolver, attempt, ended) {
                        let rows = places.entry(place).or_insert_with(|| vec![Row::default(); ways.len()]);
                        rows[number].add(&row);
                    }
                }
            }
            for (place, rows) in places {
                if let Some(row) = rows.into_iter().reduce(|a, b| a.or(&b)).filter(|row| *row != Row::default()) {
                    self.days.entry(place).or_default().add(&row);
                }
            }
        }
        if self.limited {
            let mut counts: BTreeMap<Count, Vec<Credits>> = BTreeMap::new();
            for (number, way) in ways.iter().enumerate() {
                for (attempt, ended) in *way {
                    if let Some((count, amount)) = counted(resolver, attempt, ended) {
                        counts.entry(count).or_insert_with(|| vec![Credits::ZERO; ways.len()])[number] += amount;
                    }
                }
            }
            for (count, sums) in counts {
                if let (Some(min), Some(max)) = (sums.iter().min(), sums.iter().max()) {
                    self.counts.entry(count).or_default().add(*min, *max);
                }
            }
        }
    }

    fn first_day(&self) -> Option<NaiveDate> {
        self.by_day.as_ref().map(|(_, first)| *first)
    }

    pub fn plus(&mut self, other: &Members) {
        other.days.iter().for_each(|(place, row)| self.days.entry(place.clone()).or_default().add(row));
        other
            .counts
            .iter()
            .for_each(|(count, sum)| self.counts.entry(count.clone()).or_default().add(sum.min, sum.max));
    }

    /// What an attempt adds to which days: with several zones perhaps to one, perhaps to another.
    fn rows(&self, resolver: &Resolver<'_>, attempt: &Priced, ended: &Ended) -> Vec<(Place, Row)> {
        let Some((zones, first)) = &self.by_day else { return Vec::new() };
        let Some((used, user)) = used(attempt, ended) else { return Vec::new() };
        let row = Row { min: used, max: used };
        let dated_ms = attempt.kept.dated_ms();
        let (user, action) = (user_of(resolver.kinds, user), &class_of(resolver, attempt).action);
        // A void takes out of the usage of its event's day what was counted there.
        let day_in = |zone: &Tz| {
            let day = local_day(dated_ms, *zone);
            ended
                .takes_back
                .is_none_or(|back| zones.iter().any(|of| local_day(back.dated_ms, *of) == day))
                .then_some(day)
        };
        let certain = |day: NaiveDate| {
            let same = |ms: i64| zones.iter().all(|zone| local_day(ms, *zone) == day);
            same(dated_ms) && ended.takes_back.is_none_or(|back| same(back.dated_ms))
        };
        let mut days: Vec<NaiveDate> = zones.iter().filter_map(day_in).collect();
        days.sort_unstable();
        days.dedup();
        let days = days.into_iter().filter(|day| day >= first);
        days.map(|day| {
            let row = if certain(day) { row } else { row.or(&Row::default()) };
            ((day, user.clone(), action.clone()), row)
        })
        .collect()
    }
}

fn class_of<'a>(resolver: &'a Resolver<'_>, attempt: &Priced) -> &'a Class {
    &resolver.classes[attempt.class as usize]
}

fn user_of(kinds: &Kinds, user: u32) -> &Arc<str> {
    &kinds.users[user as usize]
}

/// What an attempt that ended so comes to, and whose it is; `None`: it changes nothing.
fn used(attempt: &Priced, ended: &Ended) -> Option<(Numbers, u32)> {
    let own = |numbers: Numbers| Some((numbers, attempt.kept.user));
    match ended.outcome {
        Outcome::Charged | Outcome::Capped => own([1, ended.charged.thousandths(), 0, 0]),
        Outcome::Denied => own([0, 0, 1, 0]),
        Outcome::Free => own([0, 0, 0, 1]),
        Outcome::Voided => ended.takes_back.map(|back| ([-1, ended.charged.thousandths(), 0, 0], back.user)),
        _ => None,
    }
}

/// What counts against a member's limit, if there is one: a void takes it back only where its own time is in the cycle.
fn counted(resolver: &Resolver<'_>, attempt: &Priced, ended: &Ended) -> Option<(Count, Credits)> {
    if ended.charged == Credits::ZERO {
        return None;
    }
    let class = class_of(resolver, attempt);
    let user = match ended.takes_back {
        Some(back) => (back.cycle == class.cycle).then_some(back.user)?,
        None => attempt.kept.user,
    };
    let count = (class.cycle, class.credit_type.clone(), user_of(resolver.kinds, user).clone());
    Some((count, ended.charged))
}

impl Comparison<'_> {
    /// What counts against members' limits, in each cycle that is not forgotten.
    pub fn member_counts(&mut self, name: &str, folded: &Folded, stored: &LookedAccount, sums: &Sums) {
        let (Some(view), users) = (&folded.commanded.view, &self.resolver.kinds.users) else { return };
        if self.point.is_some_and(|point| !point.counts_members()) {
            return;
        }
        for (number, found) in &stored.members {
            let cycle = Some(*number).filter(|number| *number != view.cycle.number || view.life == Life::Closed);
            let of_cycle = sums.members.counts.iter().filter(|((own, ..), _)| *own == cycle);
            let mut counts: BTreeMap<(&str, &Arc<str>), Between<Credits>> =
                of_cycle.map(|((_, credit_type, user), sum)| ((credit_type.as_str(), user), *sum)).collect();
            for (credit_type, user) in found.keys() {
                counts.entry((credit_type, user)).or_default();
            }
            for ((credit_type, user), mut expected) in counts {
                match folded.commanded.limits.counted(credit_type, *number) {
                    Some(true) => {}
                    Some(false) => expected = Between::default(),
                    None => expected.min = Credits::ZERO,
                }
                let key = (credit_type.to_owned(), user.clone());
                let found = found.get(&key).copied().unwrap_or_default();
                if !expected.holds(found) {
                    let records = self.records_where(name, folded, |class, attempt, _| {
                        let own = &users[attempt.kept.user as usize] == user;
                        own && class.cycle == cycle && class.credit_type == credit_type
                    });
                    let what = format!("{credit_type} counted for {} in cycle {number}", whose(user));
                    self.differs(name, folded, &what, expected.to_string(), found.to_string(), records);
                }
            }
        }
    }

    /// Usage by day, member and action.
    pub fn usage_by_day(&mut self, name: &str, folded: &Folded, stored: &LookedAccount, sums: &Sums) {
        let (Some(first), users) = (sums.members.first_day(), &self.resolver.kinds.users) else { return };
        let mut found: BTreeMap<Place, Used> = BTreeMap::new();
        for stored in stored.usage.iter().filter(|stored| stored.day >= first) {
            match stored.read() {
                Ok(usage) => {
                    found.extend(usage.into_iter().map(|((user, action), used)| ((stored.day, user, action), used)));
                }
                Err(reason) => {
                    let what = format!("usage on {}", stored.day);
                    self.differs(name, folded, &what, "readable".to_owned(), reason, Vec::new());
                }
            }
        }
        let mut places: Vec<&Place> = sums.members.days.keys().chain(found.keys()).collect();
        places.sort_unstable();
        places.dedup();
        self.report.usage_days += places.chunk_by(|a, b| a.0 == b.0).count() as u64;
        for place in places {
            let expected = sums.members.days.get(place).copied().unwrap_or_default();
            let found = found.get(place).copied().unwrap_or_default();
            if expected.holds(&found) {
                continue;
            }
            let (day, user, action) = place;
            let zones = &folded.commanded.zones;
            let records = self.records_where(name, folded, |class, attempt, _| {
                let on_day = zones.iter().any(|zone| local_day(attempt.kept.dated_ms(), *zone) == *day);
                on_day && class.action == *action && users[attempt.kept.user as usize] == *user
            });
            let what = format!("usage on {day} of {}, {action}", whose(user));
            self.differs(name, folded, &what, expected.to_string(), Row::from(&found).to_string(), records);
        }
    }
}

fn whose(user: &str) -> String {
    if user.is_empty() { "no member".to_owned() } else { format!("member {user}") }
}
