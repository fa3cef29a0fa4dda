//! From records to a call: which account they belong to, what they cost, which are repeats or dead.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::record::{Body, Record, runs};
use super::recorded::{Decision, Recorded};
use crate::ledger::account::{AccountConfig, AccountView};
use crate::ledger::call::{ApplyCall, CallEvent, Change, CommandCall, Group, Note, Partition, Range, Stamp};
use crate::ledger::catalogue::{Action, Catalogue, Overage, Threshold};
use crate::ledger::command::{Command, decide};
use crate::ledger::credits::Credits;
use crate::ledger::day::{CallDay, Layout};
use crate::ledger::event::{Charge, Class, Days, Judge, Offer, UsageEvent, allowed, charge};
use crate::ledger::once::CallMarks;
use crate::ledger::outcome::DeadReason;
use crate::ledger::roll::{RollAccount, RollCall};
use crate::ledger::steps::{MeterTime, STEPS_MAX, steps_until};

/// Accounts as the worker last saw them. The shard says when one is stale.
pub type Accounts = FxHashMap<Arc<str>, AccountView>;

/// Records taken from a lane, with the ranges that they fill. Kept until the shard has answered for them.
#[derive(Clone, Debug)]
pub struct Batch {
    pub records: Vec<Record>,
    pub ranges: Vec<Range>,
    /// See [`ApplyCall::commands_end`].
    pub commands_end: Option<i64>,
}

/// A call to a shard, shared with whoever carries it there.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Apply(Arc<ApplyCall>),
    Command(Arc<CommandCall>),
    /// What time has changed in accounts of the batch comes first.
    Roll(Arc<RollCall>),
}

impl Call {
    /// Whether it only asks for accounts.
    pub fn is_question(&self) -> bool {
        matches!(self, Call::Apply(call) if call.is_question())
    }

    pub fn stamp(&self) -> &Stamp {
        match self {
            Call::Apply(call) => &call.stamp,
            Call::Command(call) => &call.stamp,
            Call::Roll(call) => &call.stamp,
        }
    }

    pub const fn script(&self) -> &'static str {
        match self {
            Call::Apply(_) => "apply",
            Call::Command(_) => "command",
            Call::Roll(_) => "roll",
        }
    }
}

/// Records whose dead letters are in Kafka, and which a shard's positions have not passed yet.
pub type DeadNotes = BTreeMap<(Partition, i64), DeadReason>;

/// What a call is made from, beside its batch.
pub struct Known<'a> {
    pub stamp: &'a Arc<Stamp>,
    pub catalogue: &'a Catalogue,
    pub accounts: &'a Accounts,
    pub dead: &'a DeadNotes,
    pub recorded: &'a Recorded,
    /// See [`ApplyCall::commands_first`].
    pub commands_first: Option<i64>,
    /// See [`ApplyCall::others`].
    pub others: Vec<(Partition, i64)>,
    /// See [`RollCall::late_after_ms`].
    pub late_after_ms: i64,
}

/// Accounts of a batch that time changes first, with the time up to which it does.
type Due<'a> = BTreeMap<&'a str, i64>;

impl Batch {
    pub fn call(&self, known: &Known) -> Call {
        if let [record @ Record { body: Body::Command(command), partition, offset, append_ms, .. }] =
            self.records.as_slice()
            && !known.dead.contains_key(&(*partition, *offset))
        {
            // By its append time: what the log held before a renewal takes effect before it.
            let account = known.accounts.get(&command.account);
            let due = account.filter(|account| account.is_due(*append_ms));
            let due = due.map(|_| (&*command.account, *append_ms)).into_iter().collect();
            return match self.roll(known, due, None) {
                Some(roll) => Call::Roll(Arc::new(roll)),
                None => Call::Command(Arc::new(self.command(known, record, command))),
            };
        }
        let mut builder = Builder::new(self, known);
        builder.add();
        match self.roll(known, std::mem::take(&mut builder.due), self.commands_end) {
            Some(roll) => Call::Roll(Arc::new(roll)),
            None => Call::Apply(Arc::new(builder.build())),
        }
    }

    /// How many records come before the first one that time changes its account for, while others of that account wait
    /// before it: they are judged first, however far behind the meter is.
    pub fn cut_at(&self, accounts: &Accounts) -> Option<usize> {
        let mut earlier = FxHashSet::default();
        self.records.iter().position(|record| {
            let Body::Usage(event) = &record.body else { return false };
            let due = accounts.get(&event.account).is_some_and(|account| account.is_due(record.append_ms));
            if !due {
                earlier.insert(&event.account);
            }
            due && earlier.contains(&event.account)
        })
    }

    fn roll(&self, known: &Known, due: Due, commands_first: Option<i64>) -> Option<RollCall> {
        let mut steps_left = STEPS_MAX;
        let mut accounts = Vec::new();
        for (name, until_ms) in due {
            if steps_left == 0 {
                break;
            }
            let (account, view) = known.accounts.get_key_value(name)?;
            let mut steps = steps_until(known.catalogue, view, until_ms, MeterTime::default());
            steps.truncate(steps_left);
            steps_left -= steps.len();
            if !steps.is_empty() {
                let thresholds = thresholds(known.catalogue, &view.config);
                accounts.push(RollAccount { account: account.clone(), version: view.version, thresholds, steps });
            }
        }
        let own = self.ranges.iter().map(|range| (range.partition, range.from));
        (!accounts.is_empty()).then(|| RollCall {
            stamp: known.stamp.clone(),
            others: known.others.iter().copied().chain(own).collect(),
            commands_first,
            meter_time_ms: None,
            late_after_ms: known.late_after_ms,
            credit_types: known.catalogue.credit_types.clone(),
            accounts,
        })
    }

    fn command(&self, known: &Known, record: &Record, command: &Command) -> CommandCall {
        let account = known.accounts.get(&command.account);
        let decided = decide(known.catalogue, account, command);
        let (change, told) = match known.recorded.of(record) {
            Some(Decision::Refused(refusal)) => (Change::Refuse(refusal.clone()), true),
            // What was answered otherwise before is answered again.
            Some(Decision::Answered) if !matches!(decided, Change::Refuse(_)) => (decided, true),
            _ => (decided, false),
        };
        CommandCall {
            stamp: known.stamp.clone(),
            range: self.ranges[0].clone(),
            account: command.account.clone(),
            version: account.map_or(0, |account| account.version),
            command_id: command.id.clone(),
            member: command.identity.member,
            command_type: command.command_type,
            thresholds: match (&change, account) {
                (Change::Put { config, .. }, _) => thresholds(known.catalogue, config),
                (_, Some(account)) => thresholds(known.catalogue, &account.config),
                (_, None) => Vec::new(),
            },
            credit_types: known.catalogue.credit_types.clone(),
            change,
            told,
            others: known.others.clone(),
        }
    }
}

/// The thresholds of an account, by its own wish or by its plan.
pub fn thresholds(catalogue: &Catalogue, config: &AccountConfig) -> Vec<Threshold> {
    catalogue.plans.get(&config.plan).map(|plan| config.thresholds(plan)).unwrap_or_default()
}

/// The days that a group asks for: as the worker knows them, and those of its events that it does not know begun anew.
fn call_days(group: &Group, known: Option<&BTreeMap<i64, Layout>>, stamp: &Stamp) -> Vec<CallDay> {
    let mut own: BTreeMap<i64, usize> = BTreeMap::new();
    let mut days = Vec::new();
    let add = |days: &mut Vec<CallDay>, day: i64| {
        let layout = known.and_then(|known| known.get(&day));
        if let Some(layout) = layout.filter(|_| days.iter().all(|known: &CallDay| known.day != day)) {
            days.push(CallDay { day, layout: layout.clone(), known: true });
        }
    };
    for (each, run) in group.runs(stamp.restamp_tolerance_ms) {
        *own.entry(each.own).or_default() += run.len();
        add(&mut days, each.own);
        each.neighbour.into_iter().for_each(|neighbour| add(&mut days, neighbour));
    }
    for (day, events) in own {
        if days.iter().all(|known| known.day != day) {
            days.push(CallDay { day, layout: Layout::first(events, stamp.set_members_max), known: false });
        }
    }
    days
}

/// The cycles whose marks a group asks for: as the worker knows them, or begun anew.
fn call_marks(
    group: &Group,
    known: Option<&BTreeMap<i32, Layout>>,
    classes: &[Class],
    stamp: &Stamp,
) -> Vec<CallMarks> {
    let asked = group.marks_asked(classes).into_iter();
    let marks = asked.map(|(cycle, marks)| {
        let layout = known.and_then(|known| known.get(&cycle)).cloned();
        CallMarks { cycle, layout: layout.unwrap_or_else(|| Layout::first(marks.len(), stamp.set_members_max)) }
    });
    marks.collect()
}

/// What an event is to the events before it in its call.
enum Repeat {
    New,
    /// The shard need not hear of it.
    Known,
    /// It repeats one of the neighbouring day, and must be remembered in its own: the next attempt may be near to it alone.
    OfAnotherDay,
}

struct Builder<'a> {
    batch: &'a Batch,
    catalogue: &'a Catalogue,
    accounts: &'a Accounts,
    recorded: &'a Recorded,
    call: ApplyCall,
    group_of: FxHashMap<&'a str, usize>,
    /// The same by where the name lies: events that were read together share it.
    group_at: FxHashMap<*const u8, usize>,
    plans: FxHashMap<&'a str, Arc<str>>,
    /// Of each group, as the worker knows it.
    account_of: Vec<Option<&'a AccountView>>,
    /// What the catalogue has of an action, by where its name lies.
    action_at: FxHashMap<*const u8, Option<&'a Action>>,
    /// What each plan makes of an action.
    offers: FxHashMap<(*const Action, &'a str), Offer<'a>>,
    class_of: FxHashMap<(*const Action, Charge), usize>,
    /// Group, identity and day of the events that are in the call.
    in_call: FxHashSet<(usize, i64, i64)>,
    due: Due<'a>,
}

impl<'a> Builder<'a> {
    fn new(batch: &'a Batch, known: &Known<'a>) -> Builder<'a> {
        let within = |range: &Range| (range.partition, range.from)..(range.partition, range.to);
        let noted = batch.ranges.iter().flat_map(|range| known.dead.range(within(range)));
        let dead = noted.map(|(&(partition, offset), &reason)| Note { partition, offset, reason }).collect();
        let call = ApplyCall {
            stamp: known.stamp.clone(),
            ranges: batch.ranges.clone(),
            commands_end: batch.commands_end,
            commands_first: known.commands_first,
            others: known.others.clone(),
            found: Vec::new(),
            dead,
            repeats: BTreeMap::new(),
            classes: Vec::new(),
            groups: Vec::new(),
        };
        Builder {
            batch,
            catalogue: known.catalogue,
            accounts: known.accounts,
            recorded: known.recorded,
            call,
            group_of: FxHashMap::default(),
            group_at: FxHashMap::default(),
            plans: FxHashMap::default(),
            account_of: Vec::new(),
            action_at: FxHashMap::default(),
            offers: FxHashMap::default(),
            class_of: FxHashMap::default(),
            in_call: FxHashSet::default(),
            due: Due::new(),
        }
    }

    fn add(&mut self) {
        let noted: FxHashSet<_> = self.call.dead.iter().map(|note| (note.partition, note.offset)).collect();
        let batch = self.batch;
        self.in_call.reserve(batch.records.len());
        for run in runs(&batch.records) {
            let range = self.range(run[0].partition);
            for record in run.iter().filter(|record| !noted.contains(&(record.partition, record.offset))) {
                match &record.body {
                    Body::Usage(event) => self.usage(record, range, event),
                    Body::Dead { reason, .. } => self.found(record, *reason),
                    Body::Command(_) => unreachable!("a command that is not dead has a batch of its own"),
                    Body::Tick => unreachable!("a tick has no lane"),
                }
            }
        }
    }

    fn build(mut self) -> ApplyCall {
        for group in &mut self.call.groups {
            let known = self.accounts.get(&group.account).map(|account| &account.days);
            group.days = call_days(group, known, &self.call.stamp);
            let known = self.accounts.get(&group.account).map(|account| &account.marks);
            group.marks = call_marks(group, known, &self.call.classes, &self.call.stamp);
        }
        if self.call.events() == 0 {
            // The commands themselves, and the ends of partitions, wait for nothing.
            self.call.commands_first = None;
            self.call.others.clear();
        }
        self.call
    }

    fn usage(&mut self, record: &Record, range: usize, event: &'a Arc<UsageEvent>) {
        // Judged before the account, since it needs none.
        let action = match self.action(event) {
            Ok(action) => action,
            Err(reason) => return self.found(record, reason),
        };
        let group = self.group(event);
        let charge = match self.account_of[group] {
            // The shard answers with the account, or says that it has none.
            None => None,
            // By its append time: by then a sweeper had renewed an idle account, and late use is late, whoever is quicker.
            Some(account) if account.is_due(record.append_ms) => {
                // The first one decides how far: what comes between it and the next is judged before that.
                if self.due.contains_key(&*event.account) {
                    return;
                }
                if steps_until(self.catalogue, account, record.append_ms, MeterTime::default()).is_empty() {
                    return self.found(record, DeadReason::CycleNotOpen);
                }
                self.due.insert(&event.account, record.append_ms);
                return;
            }
            Some(account) => match self.charge(action, account, event) {
                // The group stays, so that the shard checks the account by which this was judged.
                Err(reason) => return self.found(record, reason),
                Ok(charge) => Some(self.as_recorded(record, charge)),
            },
        };
        let class = match charge {
            None => 0,
            Some(charge) => match self.repeat(record, group, event) {
                Repeat::New => self.class(event, action, charge),
                Repeat::Known => {
                    self.call.ranges[range].repeats += 1;
                    *self.call.repeats.entry(event.action.clone()).or_default() += 1;
                    return;
                }
                Repeat::OfAnotherDay => {
                    let (judge, cost) = (Judge::Repeat, Credits::ZERO);
                    self.class(event, action, Charge { judge, cost, once: false, voidable: false, ..charge })
                }
            },
        };
        self.call.groups[group].events.push(CallEvent { range, class, offset: record.offset, event: event.clone() });
    }

    fn action(&mut self, event: &'a UsageEvent) -> Result<&'a Action, DeadReason> {
        let catalogue = self.catalogue;
        let action = self.action_at.entry(event.action.as_ptr());
        allowed(*action.or_insert_with(|| catalogue.actions.get(&*event.action)), event)
    }

    fn charge(
        &mut self,
        action: &'a Action,
        account: &'a AccountView,
        event: &UsageEvent,
    ) -> Result<Charge, DeadReason> {
        let catalogue = self.catalogue;
        charge(action, account, event, |plan| {
            let offer = self.offers.entry((std::ptr::from_ref(action), plan));
            *offer.or_insert_with(|| Offer::of(catalogue, &event.action, plan))
        })
    }

    fn group(&mut self, event: &'a UsageEvent) -> usize {
        let at = event.account.as_ptr();
        if let Some(&index) = self.group_at.get(&at) {
            return index;
        }
        let index = self.group_of.get(&*event.account).copied().unwrap_or_else(|| self.new_group(event));
        self.group_at.insert(at, index);
        index
    }

    fn plan(&mut self, name: &'a str) -> Arc<str> {
        self.plans.entry(name).or_insert_with(|| name.into()).clone()
    }

    fn new_group(&mut self, event: &'a UsageEvent) -> usize {
        let account = self.accounts.get(&event.account);
        let plan = account.and_then(|account| self.catalogue.plans.get(&account.config.plan));
        let overage = account.zip(plan).map_or(Overage::Reject, |(account, plan)| account.config.overage(plan));
        let index = self.call.groups.len();
        let plan_name = account.map(|account| self.plan(&account.config.plan));
        self.call.groups.push(Group {
            account: event.account.clone(),
            version: account.map_or(0, |account| account.version),
            plan: plan_name,
            overage,
            thresholds: account.map_or(Vec::new(), |account| thresholds(self.catalogue, &account.config)),
            member_limits: account.map(|account| account.config.member_limits.clone()).unwrap_or_default(),
            breakdown: account.filter(|_| self.call.stamp.breakdown).map(|account| account.config.timezone),
            days: Vec::new(),
            cycle: account.map_or(0, |account| account.cycle.number),
            marks: Vec::new(),
            events: Vec::new(),
        });
        self.account_of.push(account);
        self.group_of.insert(&event.account, index);
        index
    }

    fn as_recorded(&self, record: &Record, charge: Charge) -> Charge {
        if charge.judge == Judge::Void {
            return charge;
        }
        match self.recorded.of(record) {
            Some(Decision::Denied(denial)) => {
                Charge { judge: Judge::Denied(*denial), once: false, voidable: false, ..charge }
            }
            Some(Decision::Capped { uncovered }) if *uncovered <= charge.cost => {
                Charge { judge: Judge::Capped, cost: charge.cost - *uncovered, ..charge }
            }
            _ => charge,
        }
    }

    fn class(&mut self, event: &UsageEvent, action: &'a Action, charge: Charge) -> usize {
        *self.class_of.entry((std::ptr::from_ref(action), charge)).or_insert_with(|| {
            self.call.classes.push(charge.class(event.action.clone(), action));
            self.call.classes.len() - 1
        })
    }

    /// Whether another attempt at the event counts: one that the call holds, by the rule by which the shard remembers, or
    /// one whose recorded decision is still to come.
    fn repeat(&mut self, record: &Record, group: usize, event: &UsageEvent) -> Repeat {
        if self.recorded.elsewhere(record, event) {
            return Repeat::Known;
        }
        let days = Days::of(event.time_ms, self.call.stamp.restamp_tolerance_ms);
        let member = event.identity.member;
        if !self.in_call.insert((group, member, days.own)) {
            return Repeat::Known;
        }
        match days.neighbour {
            Some(day) if self.in_call.contains(&(group, member, day)) => Repeat::OfAnotherDay,
            _ => Repeat::New,
        }
    }

    fn found(&mut self, record: &Record, reason: DeadReason) {
        self.call.found.push(Note { partition: record.partition, offset: record.offset, reason });
    }

    fn range(&self, partition: Partition) -> usize {
        let position = self.call.ranges.iter().position(|range| range.partition == partition);
        position.expect("a batch's ranges hold its records")
    }
}

#[cfg(test)]
mod tests;
