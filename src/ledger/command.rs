//! Commands to accounts: what they ask, what they change, and how a shard applies them.
//!
//! [`decide`] is the worker's part: it knows the catalogue and the calendar. [`Shard::command`] is the
//! script's: it checks that nothing has changed since, and moves the credits.

use std::sync::Arc;

use super::account::{AccountConfig, AccountView, Addon, Grant, GrantKind, add_grant};
use super::apply::json_text;
use super::call::{Change, CommandCall, Commanded, OutboxEntry, Output, Refusal, RefusalReason, Reply, StaleAccount};
use super::catalogue::{Amount, Catalogue};
use super::credits::Credits;
use super::event::Identity;
use super::outcome::Outcome;
use super::shard::{Account, Shard};

pub const ACCOUNT_PUT: &str = "credits.account.put.v1";
pub const GRANT: &str = "credits.grant.v1";

/// A command that was read. One whose fields are bad is refused, so that its sender gets an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub account: Arc<str>,
    pub id: String,
    pub identity: Identity,
    pub time_ms: i64,
    pub command_type: &'static str,
    pub body: Result<CommandBody, Refusal>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CommandBody {
    Put(Box<AccountConfig>),
    /// Credits in the open cycle.
    Grant {
        credit_type: String,
        amount: Credits,
        kind: GrantKind,
    },
}

/// What a command changes in an account as it is known.
pub fn decide(catalogue: &Catalogue, account: Option<&AccountView>, command: &Command) -> Change {
    let change = match &command.body {
        Err(refusal) => Err(refusal.clone()),
        Ok(CommandBody::Put(config)) => put(catalogue, account, command, config),
        Ok(CommandBody::Grant { credit_type, amount, kind }) => {
            grant(catalogue, account, command, credit_type, *amount, *kind)
        }
    };
    change.unwrap_or_else(Change::Refuse)
}

fn put(
    catalogue: &Catalogue,
    account: Option<&AccountView>,
    command: &Command,
    config: &AccountConfig,
) -> Result<Change, Refusal> {
    let plan = catalogue.plans.get(&config.plan).ok_or_else(|| {
        let known: Vec<_> = catalogue.plans.keys().map(String::as_str).collect();
        refuse(RefusalReason::UnknownPlan, format!("plan `{}` is none of {}", config.plan, known.join(", ")))
    })?;
    for addon in &config.addons {
        known_credit_type(catalogue, &addon.credit_type)?;
    }
    let given = |kind: GrantKind, credit_type: &str, amount: Amount| Grant {
        kind,
        credit_type: credit_type.to_owned(),
        amount,
        command_id: None,
    };
    let Some(account) = account else {
        let cycle = config.calendar(plan).cycle_at(command.time_ms).ok_or_else(|| {
            let message = format!("anchor {} and the command's time give no cycle", config.anchor);
            refuse(RefusalReason::InvalidCommand, message)
        })?;
        let allowance = plan.allowance.iter().map(|(name, amount)| given(GrantKind::Plan, name, *amount));
        let addons = config
            .addons
            .iter()
            .map(|addon| given(GrantKind::Addon, &addon.credit_type, Amount::Limited(addon.amount)));
        let grants = allowance.chain(addons).collect();
        return Ok(Change::Put { config: Box::new(config.clone()), replaces: None, opens: Some(cycle), grants });
    };
    if !config.same_terms(&account.config, catalogue) {
        let message = "plan, anchor, interval and time zone cannot be changed yet: that takes a rollover".to_owned();
        return Err(refuse(RefusalReason::ChangeNeedsRollover, message));
    }
    let mut grants = Vec::new();
    for Addon { credit_type, amount } in &config.addons {
        // Within a cycle an add-on grants at most its highest amount, however often it is set and removed.
        let granted = granted_by_addons(account, credit_type);
        if *amount > granted {
            grants.push(given(GrantKind::Addon, credit_type, Amount::Limited(*amount - granted)));
        }
    }
    let replaces = Some(Box::new(account.config.clone()));
    Ok(Change::Put { config: Box::new(config.clone()), replaces, opens: None, grants })
}

fn granted_by_addons(account: &AccountView, credit_type: &str) -> Credits {
    let own = |grant: &&Grant| grant.kind == GrantKind::Addon && grant.credit_type == credit_type;
    match account.grants.iter().find(own).map(|grant| grant.amount) {
        Some(Amount::Limited(amount)) => amount,
        Some(Amount::Unlimited) | None => Credits::ZERO,
    }
}

fn grant(
    catalogue: &Catalogue,
    account: Option<&AccountView>,
    command: &Command,
    credit_type: &str,
    amount: Credits,
    kind: GrantKind,
) -> Result<Change, Refusal> {
    let account = account.ok_or_else(|| {
        refuse(RefusalReason::UnknownAccount, format!("account `{}` does not exist: put it first", command.account))
    })?;
    known_credit_type(catalogue, credit_type)?;
    if !account.cycle.holds(command.time_ms) {
        let message = "the command's time is outside the account's open cycle".to_owned();
        return Err(refuse(RefusalReason::CycleNotOpen, message));
    }
    Ok(Change::Grant(Grant {
        kind,
        credit_type: credit_type.to_owned(),
        amount: Amount::Limited(amount),
        command_id: Some(command.id.clone()),
    }))
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
            Change::Put { .. } | Change::Grant(_) => self.change(call),
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

    /// Moves the credits, or refuses where a balance would exceed its bound.
    fn change(&mut self, call: &CommandCall) -> CommandResult {
        let no_grants = Vec::new();
        let grants = match &call.change {
            Change::Put { grants, .. } => grants,
            Change::Grant(grant) => std::slice::from_ref(grant),
            Change::Refuse(_) => &no_grants,
        };
        let mut counters = self.accounts.get(&call.account).map(|account| account.counters.clone()).unwrap_or_default();
        let mut given = self.accounts.get(&call.account).map(|account| account.grants.clone()).unwrap_or_default();
        let mut lines = Vec::new();
        for (index, grant) in grants.iter().enumerate() {
            let counter = counters.entry(grant.credit_type.clone()).or_default();
            let before = counter.remaining();
            if counter.grant(grant.amount).is_none() {
                let message =
                    format!("{} credits of {} would exceed the largest balance", grant.amount, grant.credit_type);
                return CommandResult::Refused(refuse(RefusalReason::BalanceTooLarge, message));
            }
            lines.push(line(call, index, grant, before, counter.remaining()));
            add_grant(&mut given, grant.clone());
        }
        match &call.change {
            Change::Put { config, opens: Some(cycle), .. } => {
                self.accounts.insert(
                    call.account.clone(),
                    Account {
                        version: 1,
                        config: (**config).clone(),
                        cycle: *cycle,
                        grants: given,
                        counters,
                        days: Default::default(),
                    },
                );
            }
            Change::Put { config, opens: None, .. } => {
                let account = self.accounts.get_mut(&call.account).expect("its version was checked");
                account.version += 1;
                account.config = (**config).clone();
                account.grants = given;
                account.counters = counters;
            }
            Change::Grant(_) => {
                let account = self.accounts.get_mut(&call.account).expect("its version was checked");
                account.grants = given;
                account.counters = counters;
            }
            Change::Refuse(_) => {}
        }
        if !call.told {
            self.outbox.extend(lines);
        }
        CommandResult::Applied
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

/// The line of `credits.ledger` that tells of a grant.
fn line(
    call: &CommandCall,
    index: usize,
    grant: &Grant,
    before: Option<Credits>,
    after: Option<Credits>,
) -> OutboxEntry {
    let or_null = |amount: Option<Credits>| amount.map_or("null".to_owned(), |amount| amount.to_string());
    let amount = match grant.amount {
        Amount::Limited(amount) => amount.to_string(),
        Amount::Unlimited => "null".to_owned(),
    };
    OutboxEntry {
        output: Output::Ledger,
        id: format!("command/{}/{}", call.range.to - 1, index + 1),
        event_type: "credits.ledger.grant.v1".to_owned(),
        account: call.account.to_string(),
        data: format!(
            "{{\"kind\":\"{}\",\"credit_type\":\"{}\",\"amount\":{amount},\"before\":{},\"after\":{},\"cause\":{{\"command_id\":{}}}}}",
            grant.kind.name(),
            grant.credit_type,
            or_null(before),
            or_null(after),
            json_text(&call.command_id),
        ),
    }
}
