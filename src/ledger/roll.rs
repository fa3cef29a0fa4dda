//! An account takes the steps that time asks of it, if it is as the worker believes.
//!
//! The script's part of what `steps.rs` finds. Each cycle is closed once, in order, however many were missed, since each
//! step raises the account's version.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};

use super::account::{Counter, Life};
use super::alerts::Before;
use super::apply::json_text;
use super::call::{OutboxEntry, Output, Partition, Reply, StaleAccount, Stamp};
use super::catalogue::{Amount, Threshold};
use super::closed::{ClosedCounter, ClosedCycle};
use super::command::{ledger_line, null_or_amount};
use super::credits::Credits;
use super::cycle::Cycle;
use super::grants::{GrantKind, Granted, Lot, Pool};
use super::shard::{Account, Shard};
use super::steps::{Closes, MeterTime, Opens, Step};

/// Takes steps of some accounts of a shard. It moves no position, so that whoever does it does no harm.
#[derive(Clone, Debug, PartialEq)]
pub struct RollCall {
    pub stamp: Arc<Stamp>,
    /// See [`ApplyCall::others`](super::call::ApplyCall::others). Empty: the sweeper knows no positions.
    pub others: Vec<(Partition, i64)>,
    /// The shard must have applied the commands up to here: what was ordered before a renewal comes before it.
    pub commands_first: Option<i64>,
    /// The meter time by which the steps were found; a shard that has fallen behind it takes none. `None`: usage asked.
    pub meter_time_ms: Option<i64>,
    /// How long after its end a closed cycle is looked at again.
    pub late_after_ms: i64,
    /// All that the catalogue knows, in order.
    pub credit_types: Vec<String>,
    pub accounts: Vec<RollAccount>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RollAccount {
    pub account: Arc<str>,
    /// One that has changed since takes no step, and is shown.
    pub version: u64,
    pub thresholds: Vec<Threshold>,
    pub steps: Vec<Step>,
}

impl Account {
    /// Credit types that the open cycle knows, also those of which something was only denied.
    pub(super) fn credit_types(&self) -> Vec<String> {
        let lots = self.lots.values().map(|lot| &lot.credit_type);
        let known = self.counters.keys().chain(self.pools.keys()).chain(self.alarms.keys()).chain(self.denied.keys());
        let mut types: Vec<String> = known.chain(lots).cloned().collect();
        types.sort_unstable();
        types.dedup();
        types
    }
}

impl Shard {
    /// Takes the steps of the accounts that are as the worker believes, and shows all of them.
    pub fn roll(&mut self, call: &RollCall) -> Reply<()> {
        let fits = self.check_fence(&call.stamp, &[]).and_then(|()| self.check_others(&call.others));
        if let Err(refused) = fits {
            return refused;
        }
        let commands_position = self.position(Partition::COMMANDS);
        if call.commands_first.is_some_and(|first| commands_position < first) {
            return Reply::Unknown { commands_position };
        }
        let fence = self.fence.as_ref().expect("check_fence saw it");
        if call.meter_time_ms.is_some_and(|found_at_ms| fence.meter_time_ms < found_at_ms) {
            return Reply::FellBack;
        }
        if let Err(refused) = self.check_outbox(&call.stamp) {
            return refused;
        }
        let meter = MeterTime { now_ms: fence.meter_time_ms, floor_ms: fence.floor_ms };
        let rebuilt_s = fence.rebuilt_s;
        let mut shown = Vec::new();
        for roll in &call.accounts {
            let (mut outbox, mut forgotten) = (Vec::new(), Vec::new());
            if let Some(account) =
                self.accounts.get_mut(&roll.account).filter(|account| account.version == roll.version)
            {
                let mut taker = Taker {
                    name: &roll.account,
                    account,
                    meter,
                    rebuilt_s,
                    late_after_ms: call.late_after_ms,
                    outbox: &mut outbox,
                };
                let closed: Vec<i32> = taker.account.closed.keys().copied().collect();
                let mut thresholds = &roll.thresholds;
                for step in &roll.steps {
                    taker.step(step, thresholds);
                    if let Step::Renew { opens: Some(opens), .. } = step {
                        thresholds = &opens.thresholds;
                    }
                }
                forgotten.extend(closed.into_iter().filter(|cycle| !taker.account.closed.contains_key(cycle)));
            }
            self.outbox.extend(outbox);
            for cycle in forgotten {
                self.marks.remove(&(roll.account.clone(), cycle));
                self.members.remove(&(roll.account.clone(), cycle));
            }
            let view = self.accounts.get(&roll.account).map(Account::view);
            shown.push(StaleAccount { account: roll.account.clone(), view });
        }
        Reply::Stale(shown)
    }
}

/// Takes the steps of one account.
struct Taker<'a> {
    name: &'a str,
    account: &'a mut Account,
    meter: MeterTime,
    rebuilt_s: u32,
    late_after_ms: i64,
    outbox: &'a mut Vec<OutboxEntry>,
}

/// Until when the lots last that a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LotsEnd {
    Within {
        at_ms: i64,
    },
    Renewal {
        at_ms: i64,
    },
    /// None goes on from the last cycle of an account.
    Closing,
}

impl LotsEnd {
    fn ends(self, lot: &Lot) -> bool {
        match self {
            LotsEnd::Within { at_ms } => lot.ends_by(at_ms),
            LotsEnd::Renewal { at_ms } => lot.ends_by(at_ms) || lot.begun && lot.expires_ms.is_none(),
            LotsEnd::Closing => lot.begun,
        }
    }
}

impl Taker<'_> {
    fn step(&mut self, step: &Step, thresholds: &[Threshold]) {
        match step {
            Step::Lots { at_ms } => {
                let before = self.account.remaining();
                for credit_type in self.account.credit_types() {
                    self.account.settle(&credit_type);
                    self.end_lots(&credit_type, LotsEnd::Within { at_ms: *at_ms });
                }
                self.begin_lots(*at_ms);
                self.judge_alerts(thresholds, Some(&before));
            }
            Step::Renew { closes, opens } => {
                self.close(closes, opens.as_deref());
                match opens {
                    Some(opens) => {
                        self.open(opens);
                        self.judge_alerts(&opens.thresholds, None);
                    }
                    None => {
                        // Nothing is granted any more, so that no level holds: what was told of has an end.
                        self.judge_alerts(&[], None);
                        self.account.life = Life::Closed;
                        self.account.lots.clear();
                        self.account.alarms.clear();
                    }
                }
            }
            Step::Restate { number, .. } => self.restate(*number),
            Step::Forget { number, marks, .. } => {
                let over = |closed: &ClosedCycle| !closed.restate && closed.end_ms <= self.meter.floor_ms;
                // The marks go with it, so that the worker must know where all of them are.
                let all_named = self.account.marks.get(number) == marks.as_ref();
                if all_named && let Some(closed) = self.account.closed.get(number).filter(|closed| over(closed)) {
                    // What was told before the state was counted anew may have been less.
                    if closed.told < closed.base(self.rebuilt_s) {
                        self.state(*number);
                    }
                    self.account.closed.remove(number);
                    self.account.marks.remove(number);
                    for lot in self.account.lots.values_mut() {
                        lot.used.remove(number);
                    }
                }
            }
        }
        self.account.version += 1;
    }

    fn judge_alerts(&mut self, thresholds: &[Threshold], before: Option<&Before>) {
        self.outbox.extend(self.account.judge_changed(self.name, thresholds, before));
    }

    /// Ends lots of a type whose charges are settled; gives what was left of them.
    fn end_lots(&mut self, credit_type: &str, end: LotsEnd) -> Credits {
        let of_type = self.account.lots.iter().filter(|(_, lot)| lot.credit_type == credit_type && end.ends(lot));
        let ending: Vec<i64> = of_type.map(|(created, _)| *created).collect();
        let mut left = Credits::ZERO;
        for created in ending {
            let lot = self.account.lots.remove(&created).expect("it was found above");
            self.expire(credit_type, lot.kind, lot.left, format!("expired/{created}"));
            left += lot.left;
        }
        left
    }

    /// Counts credits as expired, and says so if there are any.
    fn expire(&mut self, credit_type: &str, kind: GrantKind, amount: Credits, id: String) {
        let counter = self.account.counters.entry(credit_type.to_owned()).or_default();
        if amount == Credits::ZERO || counter.granted == Amount::Unlimited {
            return;
        }
        let before = counter.remaining();
        counter.expired += amount;
        let moved = (before, counter.remaining());
        let cause = format!("\"cycle\":{}", self.account.cycle.number);
        let what = (kind, credit_type, Amount::Limited(amount));
        self.outbox.push(ledger_line("credits.ledger.expiry.v1", self.name, id, what, moved, &cause));
    }

    fn grant(&mut self, credit_type: &str, kind: GrantKind, amount: Amount, id: String, cause: &str) {
        let amount = self.account.fitting(credit_type, amount);
        let moved = self.account.grant(credit_type, kind, amount).expect("it fits");
        let what = (kind, credit_type, amount);
        self.outbox.push(ledger_line("credits.ledger.grant.v1", self.name, id, what, moved, cause));
    }

    fn begin_lots(&mut self, at_ms: i64) {
        let waiting = self.account.lots.iter().filter(|(_, lot)| lot.begins_by(at_ms));
        let beginning: Vec<(i64, Lot)> = waiting.map(|(created, lot)| (*created, lot.clone())).collect();
        for (created, mut lot) in beginning {
            let Amount::Limited(left) = self.account.fitting(&lot.credit_type, Amount::Limited(lot.left)) else {
                unreachable!("a lot is limited")
            };
            (lot.begun, lot.left) = (true, left);
            let cause = format!("\"command_id\":{}", json_text(&lot.command_id));
            let id = format!("begun/{created}");
            self.grant(&lot.credit_type, lot.kind, Amount::Limited(left), id, &cause);
            self.account.lots.insert(created, lot);
        }
    }

    fn close(&mut self, closes: &Closes, opens: Option<&Opens>) {
        let cycle = closes.cycle;
        let at_ms = cycle.end_ms;
        let mut counters = BTreeMap::new();
        for credit_type in self.account.credit_types() {
            self.account.settle(&credit_type);
            let end = if opens.is_some() { LotsEnd::Renewal { at_ms } } else { LotsEnd::Closing };
            let mut spare = self.end_lots(&credit_type, end);
            let pool = self.account.pools.remove(&credit_type).unwrap_or_default();
            let unlimited = pool.granted.total() == Amount::Unlimited;
            let may_carry = closes.carry_over.iter().find(|(name, _)| *name == credit_type).map(|(_, most)| *most);
            let may_carry = may_carry.filter(|_| opens.is_some() && !unlimited).unwrap_or_default();
            let carried = pool.left.min(may_carry);
            let id = format!("expired/{}/{}/{credit_type}", self.name, cycle.number);
            self.expire(&credit_type, GrantKind::Plan, pool.left - carried, id);
            spare += pool.left - carried;
            // The next cycle begins with what goes on.
            let mut granted = Granted::default();
            granted.add(GrantKind::Carried, Amount::Limited(carried));
            for lot in self.account.lots.values().filter(|lot| lot.begun && lot.credit_type == credit_type) {
                granted.add(lot.kind, Amount::Limited(lot.left));
            }
            let Amount::Limited(moved) = granted.total() else { unreachable!("lots are limited") };
            let counter = self.account.counters.remove(&credit_type).unwrap_or_default();
            let closed = ClosedCounter {
                granted: pool.granted,
                charged: counter.charged,
                expired: counter.expired,
                moved: if unlimited { Credits::ZERO } else { moved },
                spare: if unlimited { Credits::ZERO } else { spare },
                denied: self.account.denied.get(&credit_type).copied().unwrap_or(0),
            };
            if closed != ClosedCounter::default() {
                counters.insert(credit_type.clone(), closed);
            }
            if moved > Credits::ZERO {
                self.account.pools.insert(credit_type.clone(), Pool { granted, left: carried });
                let counter = Counter { granted: granted.total(), ..Counter::default() };
                self.account.counters.insert(credit_type, counter);
            }
        }
        self.account.denied.clear();
        let keep_ms = cycle.end_ms + self.late_after_ms;
        self.account.closed.insert(cycle.number, ClosedCycle { keep_ms, counters, ..ClosedCycle::of(closes) });
        self.state(cycle.number);
    }

    fn open(&mut self, opens: &Opens) {
        self.account.cycle = opens.cycle;
        if let Some((config, _)) = &opens.config {
            self.account.config = (**config).clone();
            self.account.next = None;
        }
        let number = opens.cycle.number;
        for (credit_type, kind, amount) in &opens.grants {
            let id = format!("granted/{}/{number}/{credit_type}/{}", self.name, kind.name());
            self.grant(credit_type, *kind, *amount, id, &format!("\"cycle\":{number}"));
        }
        self.begin_lots(opens.cycle.start_ms);
        let granted: Vec<String> = self
            .account
            .counters
            .iter()
            .map(|(credit_type, counter)| format!("\"{credit_type}\":{}", null_or_amount(counter.granted)))
            .collect();
        self.outbox.push(OutboxEntry {
            output: Output::Cycles,
            id: format!("opened/{}/{number}", self.name),
            event_type: "credits.cycle.opened.v1".to_owned(),
            account: self.name.to_owned(),
            data: format!(
                "{{\"cycle\":{},\"plan\":\"{}\",\"granted\":{{{}}}}}",
                cycle_text(opens.cycle),
                opens.plan,
                granted.join(","),
            ),
        });
    }

    fn restate(&mut self, number: i32) {
        let due = |closed: &&mut ClosedCycle| closed.restate && closed.due_ms() <= self.meter.now_ms;
        let Some(closed) = self.account.closed.get_mut(&number).filter(due) else { return };
        // An older program changes a cycle without counting, and does not keep what was told.
        if closed.told == 0 || closed.told >= closed.number(self.rebuilt_s) {
            closed.revision += 1;
        }
        self.state(number);
    }

    fn state(&mut self, number: i32) {
        let closed = self.account.closed.get_mut(&number).expect("the caller has seen it");
        closed.restate = false;
        closed.stated_ms = self.meter.now_ms;
        closed.told = closed.number(self.rebuilt_s);
        let entry = statement(self.name, number, closed);
        self.outbox.push(entry);
    }
}

/// What `credits.cycles` says of a closed cycle.
fn statement(account: &str, number: i32, closed: &ClosedCycle) -> OutboxEntry {
    let cycle = Cycle { number, start_ms: closed.start_ms, end_ms: closed.end_ms };
    let balances: Vec<String> = closed.counters.iter().map(|(name, counter)| format!("\"{name}\":{counter}")).collect();
    OutboxEntry {
        output: Output::Cycles,
        id: format!("closed/{account}/{number}/{}", closed.told),
        event_type: "credits.cycle.closed.v1".to_owned(),
        account: account.to_owned(),
        data: format!(
            "{{\"cycle\":{},\"plan\":\"{}\",\"revision\":{},\"balances\":{{{}}}}}",
            cycle_text(cycle),
            closed.plan,
            closed.told,
            balances.join(","),
        ),
    }
}

/// The balance that a statement gives, as JSON.
impl std::fmt::Display for ClosedCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let overage = self.overage();
        let remaining = match self.granted.total() {
            Amount::Limited(_) => self.moved.to_string(),
            Amount::Unlimited => "null".to_owned(),
        };
        write!(f, "{{\"granted\":{},\"granted_by\":{{", null_or_amount(self.granted.total()))?;
        for (index, kind) in GrantKind::ALL.into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}\"{}\":{}", kind.name(), null_or_amount(self.granted.of(kind)))?;
        }
        write!(
            f,
            "}},\"used\":{},\"expired\":{},\"remaining\":{remaining},\"overage\":{overage},\"denied\":{}}}",
            self.charged - overage,
            self.expired,
            self.denied,
        )
    }
}

/// A cycle as messages show it, as JSON.
pub fn cycle_text(cycle: Cycle) -> String {
    let (start, end) = (time_text(cycle.start_ms), time_text(cycle.end_ms));
    format!("{{\"number\":{},\"start\":\"{start}\",\"end\":\"{end}\"}}", cycle.number)
}

/// A time as RFC 3339 writes it, in UTC.
pub fn time_text(time_ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
