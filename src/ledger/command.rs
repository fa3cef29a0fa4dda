//! Commands to accounts: what they ask, what they change, and how a shard applies them.
//!
//! [`decide`] is the worker's part: it knows the catalogue and the calendar. [`Shard::command`] is the
//! script's: it checks that nothing has changed since, and moves the credits.

use std::sync::Arc;

use super::account::{AccountConfig, AccountView, Life};
use super::apply::json_text;
use super::call::{
    Change, CommandCall, Commanded, OutboxEntry, Output, Refusal, RefusalReason, Replaced, Reply, StaleAccount,
};
use super::catalogue::{Amount, Catalogue, Plan};
use super::credits::Credits;
use super::cycle::Cycle;
use super::event::Identity;
use super::grants::{GrantKind, LOTS_MAX, Lot};
use super::outcome::Outcome;
use super::roll::time_text;
use super::shard::{Account, Remaining, Shard};

pub const ACCOUNT_PUT: &str = "credits.account.put.v1";
pub const ACCOUNT_CLOSE: &str = "credits.account.close.v1";
pub const GRANT: &str = "credits.grant.v1";
pub const GRANT_VOID: &str = "credits.grant.void.v1";
pub const ADJUST: &str = "credits.adjust.v1";

/// A command that was read. One whose fields are bad is refused, so that its sender gets an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub account: Arc<str>,
    pub id: String,
    pub identity: Identity,
    /// Its own time, or its append time if that is earlier: a clock that runs ahead opens no later cycle.
    pub time_ms: i64,
    pub command_type: &'static str,
    pub body: Result<CommandBody, Refusal>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CommandBody {
    Put(Box<AccountConfig>),
    Grant(Box<GrantBody>),
    /// Takes back what is left of what a grant gave.
    GrantVoid {
        grant: String,
    },
    /// Corrects the open cycle: adds credits, or takes some as used.
    Adjust {
        credit_type: String,
        amount: Credits,
        adds: bool,
        reason: String,
    },
    Close,
}

/// Credits on top of plan and add-ons.
#[derive(Clone, Debug, PartialEq)]
pub struct GrantBody {
    pub credit_type: String,
    pub amount: Credits,
    /// A top-up or a promo.
    pub kind: GrantKind,
    pub priority: u32,
    /// `None`: at once.
    pub effective_ms: Option<i64>,
    /// `None`: at the end of the cycle in which they begin.
    pub expires_ms: Option<i64>,
}

/// What a command changes in an account as it is known. Whatever time has changed by then was carried out before.
pub fn decide(catalogue: &Catalogue, account: Option<&AccountView>, command: &Command) -> Change {
    let change = match (&command.body, account) {
        (Err(refusal), _) => Err(refusal.clone()),
        (Ok(CommandBody::Put(config)), None) => first_put(catalogue, command, config),
        (Ok(_), None) => {
            let message = format!("account `{}` does not exist: put it first", command.account);
            Err(refuse(RefusalReason::UnknownAccount, message))
        }
        (Ok(_), Some(account)) if account.life != Life::Open => {
            let closed = time_text(account.cycle.end_ms);
            let message = format!("account `{}` was closed at {closed}: use another account", command.account);
            Err(refuse(RefusalReason::AccountClosed, message))
        }
        (Ok(CommandBody::Put(config)), Some(account)) => put(catalogue, account, account.at(command.time_ms), config),
        (Ok(CommandBody::Grant(body)), Some(account)) => grant(catalogue, account, command, body),
        (Ok(CommandBody::GrantVoid { grant }), Some(account)) => void(account, grant),
        (Ok(CommandBody::Adjust { credit_type, amount, adds, reason }), Some(_)) => {
            known_credit_type(catalogue, credit_type).map(|()| Change::Adjust {
                credit_type: credit_type.clone(),
                amount: *amount,
                adds: *adds,
                reason: json_text(reason),
            })
        }
        (Ok(CommandBody::Close), Some(account)) => {
            let next = account.next.clone().map(Box::new);
            Ok(Change::Close { at_ms: account.at(command.time_ms), next })
        }
    };
    change.unwrap_or_else(Change::Refuse)
}

impl AccountView {
    /// A command takes effect in the open cycle, also one that comes late.
    fn at(&self, time_ms: i64) -> i64 {
        time_ms.max(self.cycle.start_ms)
    }
}

fn known_plan<'a>(catalogue: &'a Catalogue, config: &AccountConfig) -> Result<&'a Plan, Refusal> {
    let limited = config.member_limits.iter().map(|limit| &limit.credit_type);
    for credit_type in config.addons.iter().map(|addon| &addon.credit_type).chain(limited) {
        known_credit_type(catalogue, credit_type)?;
    }
    catalogue.plans.get(&config.plan).ok_or_else(|| {
        let known: Vec<_> = catalogue.plans.keys().map(String::as_str).collect();
        refuse(RefusalReason::UnknownPlan, format!("plan `{}` is none of {}", config.plan, known.join(", ")))
    })
}

fn first_put(catalogue: &Catalogue, command: &Command, config: &AccountConfig) -> Result<Change, Refusal> {
    let plan = known_plan(catalogue, config)?;
    let cycle = config.calendar(plan).cycle_at(command.time_ms).ok_or_else(|| {
        let message = format!("anchor {} and the command's time give no cycle", config.anchor);
        refuse(RefusalReason::InvalidCommand, message)
    })?;
    let config = Box::new(config.clone());
    let grants = config.grants(plan, cycle.start_ms);
    Ok(Change::Put { config, next: None, replaces: None, opens: Some(cycle), grants })
}

/// A put to an account that exists. Add-ons, thresholds, policy and member limits change at once, and so does the plan where the new
/// one allows at least as much of everything; the rest waits for the renewal. Nothing resets what was used.
fn put(catalogue: &Catalogue, account: &AccountView, at_ms: i64, wanted: &AccountConfig) -> Result<Change, Refusal> {
    let plan = known_plan(catalogue, wanted)?;
    let old = &account.config;
    let old_plan = catalogue.plans.get(&old.plan);
    let same_interval =
        old_plan.is_some_and(|old_plan| old.calendar(old_plan).interval == wanted.calendar(plan).interval);
    let upgrade =
        same_interval && old_plan.is_some_and(|old_plan| plan.allows_all_of(old_plan, account.cycle.start_ms, at_ms));
    let (plan_now, interval_now) = if upgrade { (&wanted.plan, wanted.interval) } else { (&old.plan, old.interval) };
    let now = AccountConfig {
        plan: plan_now.clone(),
        interval: interval_now,
        anchor: old.anchor,
        timezone: old.timezone,
        ..wanted.clone()
    };
    let granted = |credit_type: &String, kind: GrantKind| {
        account.pools.get(credit_type).map_or(Amount::Limited(Credits::ZERO), |pool| pool.granted.of(kind))
    };
    let mut grants = Vec::new();
    // Within a cycle plan and add-on grant at most their highest amount, however often they are set.
    let given = if upgrade { now.grants(plan, account.cycle.start_ms) } else { Vec::new() };
    let addons = now.addons.iter();
    let addons = addons.map(|each| (each.credit_type.clone(), GrantKind::Addon, Amount::Limited(each.amount)));
    let plans = given.into_iter().filter(|(_, kind, _)| *kind == GrantKind::Plan);
    for (credit_type, kind, amount) in plans.chain(addons) {
        match (amount, granted(&credit_type, kind)) {
            (Amount::Limited(wanted), Amount::Limited(before)) if wanted > before => {
                grants.push((credit_type, kind, Amount::Limited(wanted - before)));
            }
            (Amount::Unlimited, Amount::Limited(_)) => grants.push((credit_type, kind, Amount::Unlimited)),
            _ => {}
        }
    }
    let next = (now != *wanted).then(|| Box::new(wanted.clone()));
    let replaces = Some(Box::new(Replaced { config: old.clone(), next: account.next.clone() }));
    Ok(Change::Put { config: Box::new(now), next, replaces, opens: None, grants })
}

fn grant(catalogue: &Catalogue, account: &AccountView, command: &Command, body: &GrantBody) -> Result<Change, Refusal> {
    known_credit_type(catalogue, &body.credit_type)?;
    let now_ms = account.at(command.time_ms);
    let effective_ms = body.effective_ms.unwrap_or(now_ms).max(now_ms);
    if body.expires_ms.is_some_and(|expires_ms| expires_ms <= effective_ms) {
        let message = "expires_at is not after the grant takes effect: give a later one".to_owned();
        return Err(refuse(RefusalReason::InvalidCommand, message));
    }
    if account.lots.len() >= LOTS_MAX {
        let message = format!("the account has {LOTS_MAX} top-ups and promos that have not ended: add amounts up");
        return Err(refuse(RefusalReason::TooManyGrants, message));
    }
    Ok(Change::Grant(Lot {
        kind: body.kind,
        credit_type: body.credit_type.clone(),
        left: body.amount,
        used: Default::default(),
        priority: body.priority,
        effective_ms,
        expires_ms: body.expires_ms,
        begun: effective_ms <= now_ms,
        command_id: command.id.clone(),
    }))
}

fn void(account: &AccountView, command_id: &str) -> Result<Change, Refusal> {
    let lot = account.lots.iter().find(|(_, lot)| lot.command_id == command_id);
    lot.map(|(created, _)| Change::Void { created: *created }).ok_or_else(|| {
        let message = format!("no top-up or promo of command `{command_id}` is in force");
        refuse(RefusalReason::UnknownGrant, message)
    })
}

fn known_credit_type(catalogue: &Catalogue, name: &str) -> Result<(), Refusal> {
    if catalogue.credit_types.iter().any(|known| known == name) {
        return Ok(());
    }
    let message = format!("credit type `{name}` is none of {}", catalogue.credit_types.join(", "));
    Err(refuse(RefusalReason::UnknownCreditType, message))
}

pub fn refuse(reason: RefusalReason, message: String) -> Refusal {
    Refusal { reason, message }
}

impl Shard {
    /// Applies a command, or changes nothing and says why.
    pub fn command(&mut self, call: &CommandCall) -> Reply<Commanded> {
        if let Err(refused) = self.check_command(call) {
            return refused;
        }
        let result = match &call.change {
            _ if self.seen_command(call) => CommandResult::Duplicate,
            Change::Refuse(refusal) => CommandResult::Refused(refusal.clone()),
            _ => self.change(call),
        };
        let outcome = result.outcome();
        if outcome == Outcome::Applied {
            // A refused command is not remembered: once its fault is mended, it may be sent again.
            self.commands_seen.entry(call.account.clone()).or_default().insert(call.member);
        }
        if !call.told {
            self.outbox.push(result.entry(call));
        }
        self.count(call.range.partition, outcome, 1);
        self.advance(&call.stamp, std::slice::from_ref(&call.range));
        Reply::Applied(Commanded { outcome, outbox: self.outbox.len() })
    }

    fn check_command(&self, call: &CommandCall) -> Result<(), Reply<Commanded>> {
        let ranges = std::slice::from_ref(&call.range);
        self.check_fence(&call.stamp, ranges)?;
        self.check_others(&call.others)?;
        let account = self.accounts.get(&call.account);
        let duplicate = self.seen_command(call);
        let stale = account.map_or(0, |account| account.version) != call.version;
        if stale && !duplicate {
            let view = account.map(Account::view);
            return Err(Reply::Stale(vec![StaleAccount { account: call.account.clone(), view }]));
        }
        let notes = self.notes_in(ranges);
        if !notes.is_empty() {
            return Err(Reply::Dead(notes));
        }
        self.check_outbox(&call.stamp)
    }

    fn seen_command(&self, call: &CommandCall) -> bool {
        self.commands_seen.get(&call.account).is_some_and(|seen| seen.contains(&call.member))
    }

    /// Changes the account, or refuses where its balance does not allow it.
    fn change(&mut self, call: &CommandCall) -> CommandResult {
        let stored = self.accounts.get(&call.account).cloned();
        let mut lines = Lines { call, lines: Vec::new() };
        match Self::changed(stored, call, &mut lines) {
            Ok(account) => {
                self.accounts.insert(call.account.clone(), account);
                // An alert that comes again bears the same id, and one that was never published would be lost.
                let again = |line: &OutboxEntry| !call.told || line.output == Output::Alerts;
                self.outbox.extend(lines.lines.into_iter().filter(again));
                CommandResult::Applied
            }
            Err(refusal) => CommandResult::Refused(refusal),
        }
    }

    fn changed(stored: Option<Account>, call: &CommandCall, lines: &mut Lines) -> Result<Account, Refusal> {
        let mut account = match (&call.change, stored) {
            (Change::Put { config, opens: Some(cycle), .. }, _) => Account::opened((**config).clone(), *cycle),
            (_, stored) => stored.expect("its version was checked"),
        };
        account.version += 1;
        let before = account.remaining();
        let granted = "credits.ledger.grant.v1";
        match &call.change {
            Change::Put { config, next, grants, .. } => {
                account.config = (**config).clone();
                account.next = next.as_deref().cloned();
                for (credit_type, kind, amount) in grants {
                    account.settle(credit_type);
                    let moved =
                        account.grant(credit_type, *kind, *amount).ok_or_else(|| too_large(credit_type, *amount))?;
                    lines.add(granted, (*kind, credit_type, *amount), moved, "");
                }
            }
            Change::Grant(lot) => {
                let amount = Amount::Limited(lot.left);
                if lot.begun {
                    account.settle(&lot.credit_type);
                    let moved = account
                        .grant(&lot.credit_type, lot.kind, amount)
                        .ok_or_else(|| too_large(&lot.credit_type, amount))?;
                    lines.add(granted, (lot.kind, &lot.credit_type, amount), moved, "");
                }
                account.lots.insert(call.range.to - 1, lot.clone());
            }
            Change::Void { created } => {
                let lot = account.lots.get(created).expect("the account is as it was decided by").clone();
                account.settle(&lot.credit_type);
                let left = account.lots.remove(created).expect("it was there").left;
                if lot.begun {
                    let moved = account.take_back(&lot.credit_type, lot.kind, left);
                    lines.add("credits.ledger.void.v1", (lot.kind, &lot.credit_type, Amount::Limited(left)), moved, "");
                }
            }
            Change::Adjust { credit_type, amount, adds, reason } => {
                account.settle(credit_type);
                let kind = GrantKind::Adjusted;
                let moved = if *adds {
                    let amount = Amount::Limited(*amount);
                    account.grant(credit_type, kind, amount).ok_or_else(|| too_large(credit_type, amount))?
                } else {
                    account
                        .take_away(credit_type, *amount)
                        .ok_or_else(|| too_large(credit_type, Amount::Limited(Credits::ZERO - *amount)))?
                };
                let signed = if *adds { *amount } else { Credits::ZERO - *amount };
                let why = format!(",\"reason\":{reason}");
                lines.add("credits.ledger.adjustment.v1", (kind, credit_type, Amount::Limited(signed)), moved, &why);
            }
            Change::Close { at_ms, .. } => {
                account.life = Life::Closing;
                account.cycle.end_ms = *at_ms;
                account.next = None;
            }
            Change::Refuse(_) => unreachable!("the caller has taken it"),
        }
        if account.life == Life::Open {
            lines.lines.extend(account.judge_changed(&call.account, &call.thresholds, Some(&before)));
        }
        Ok(account)
    }
}

impl Account {
    pub(super) fn opened(config: AccountConfig, cycle: Cycle) -> Account {
        Account {
            version: 0,
            config,
            next: None,
            life: Life::Open,
            since_ms: cycle.start_ms,
            cycle,
            counters: Default::default(),
            pools: Default::default(),
            lots: Default::default(),
            alarms: Default::default(),
            denied: Default::default(),
            closed: Default::default(),
            days: Default::default(),
            marks: Default::default(),
        }
    }

    /// What is left of a lot is no longer granted.
    fn take_back(&mut self, credit_type: &str, kind: GrantKind, left: Credits) -> Remaining {
        let counter = self.counters.entry(credit_type.to_owned()).or_default();
        let before = counter.remaining();
        if let Amount::Limited(granted) = counter.granted {
            counter.granted = Amount::Limited(granted - left);
        }
        let after = counter.remaining();
        self.pools.entry(credit_type.to_owned()).or_default().granted.take(kind, left);
        (before, after)
    }

    /// Takes credits as used, beyond what remains if need be: what it corrects has happened.
    fn take_away(&mut self, credit_type: &str, amount: Credits) -> Option<Remaining> {
        let counter = self.counters.entry(credit_type.to_owned()).or_default();
        let before = counter.remaining();
        if counter.charged + amount > Credits::BALANCE_MAX {
            return None;
        }
        counter.charged += amount;
        Some((before, counter.remaining()))
    }
}

fn too_large(credit_type: &str, amount: Amount) -> Refusal {
    let message = format!("{amount} credits of {credit_type} would exceed the largest balance");
    refuse(RefusalReason::BalanceTooLarge, message)
}

/// The lines of `credits.ledger` that tell what a command has moved.
struct Lines<'a> {
    call: &'a CommandCall,
    lines: Vec<OutboxEntry>,
}

impl Lines<'_> {
    fn add(&mut self, event_type: &str, what: (GrantKind, &str, Amount), moved: Remaining, more: &str) {
        let id = format!("command/{}/{}", self.call.range.to - 1, self.lines.len() + 1);
        let cause = format!("\"command_id\":{}{more}", json_text(&self.call.command_id));
        self.lines.push(ledger_line(event_type, &self.call.account, id, what, moved, &cause));
    }
}

enum CommandResult {
    Applied,
    Duplicate,
    Refused(Refusal),
}

impl CommandResult {
    fn outcome(&self) -> Outcome {
        match self {
            CommandResult::Applied => Outcome::Applied,
            CommandResult::Duplicate => Outcome::Duplicate,
            CommandResult::Refused(_) => Outcome::Refused,
        }
    }

    /// The line of `credits.ledger` that answers the command.
    fn entry(&self, call: &CommandCall) -> OutboxEntry {
        let why = match self {
            CommandResult::Applied | CommandResult::Duplicate => String::new(),
            CommandResult::Refused(refusal) => {
                format!(",\"reason\":\"{}\",\"message\":{}", refusal.reason.name(), json_text(&refusal.message))
            }
        };
        OutboxEntry {
            output: Output::Ledger,
            id: format!("command/{}", call.range.to - 1),
            event_type: "credits.ledger.command.v1".to_owned(),
            account: call.account.to_string(),
            data: format!(
                "{{\"command_id\":{},\"command_type\":\"{}\",\"status\":\"{}\"{why}}}",
                json_text(&call.command_id),
                call.command_type,
                self.outcome().name(),
            ),
        }
    }
}

/// A line of `credits.ledger` that tells what has moved, and why.
pub(super) fn ledger_line(
    event_type: &str,
    account: &str,
    id: String,
    (kind, credit_type, amount): (GrantKind, &str, Amount),
    (before, after): Remaining,
    cause: &str,
) -> OutboxEntry {
    let or_null = |amount: Option<Credits>| amount.map_or("null".to_owned(), |amount| amount.to_string());
    OutboxEntry {
        output: Output::Ledger,
        id,
        event_type: event_type.to_owned(),
        account: account.to_owned(),
        data: format!(
            "{{\"kind\":\"{}\",\"credit_type\":\"{credit_type}\",\"amount\":{},\"before\":{},\"after\":{},\
             \"cause\":{{{cause}}}}}",
            kind.name(),
            null_or_amount(amount),
            or_null(before),
            or_null(after),
        ),
    }
}

pub(super) fn null_or_amount(amount: Amount) -> String {
    match amount {
        Amount::Limited(credits) => credits.to_string(),
        Amount::Unlimited => "null".to_owned(),
    }
}
