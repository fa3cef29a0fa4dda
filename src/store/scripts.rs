//! The Lua scripts: for each a typed call, its keys and arguments, and its reply.
//! One script is one transition; those that change accounts are put together from several files. Only they write to Redis.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::apply_call::ApplyScript;
use super::census::CensusScript;
use super::keys::{Key, Keys};
use super::look::LookScript;
use super::stored::{PENDING, number, parse_note, parse_root, parse_view};
use super::usage::{DayUsageScript, FoldUsageScript, ForgetUsageScript};
use super::words::{Fields, Input, Words};
use super::{Root, StoreError, TakeCall, Taken};
use crate::ledger::account::AccountConfig;
use crate::ledger::alerts::{Level, levels};
use crate::ledger::apply::json_text;
use crate::ledger::call::{
    Change, CommandCall, Commanded, OutboxEntry, Output, Partition, Reply, SCHEMA, StaleAccount,
};
use crate::ledger::catalogue::{Amount, CatalogueId, Threshold};
use crate::ledger::day::{Layout, SetIndex};
use crate::ledger::grants::GrantKind;
use crate::ledger::outcome::Outcome;
use crate::ledger::roll::{RollCall, cycle_text};
use crate::ledger::shard::{InitCall, InitReply, NameReply};
use crate::ledger::steps::Step;
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, TimeReply};

/// A call of a script.
pub trait Script {
    const NAME: &'static str;
    const SOURCE: &'static str;
    type Reply;

    fn input(&self, keys: &Keys) -> Input;
    fn reply(&self, fields: Fields) -> Result<Self::Reply, StoreError>;
}

/// All scripts, to be loaded on each connection.
pub const ALL: [(&str, &str); 15] = [
    (RootScript::NAME, RootScript::SOURCE),
    (InitScript::NAME, InitScript::SOURCE),
    (ApplyScript::NAME, ApplyScript::SOURCE),
    (CommandScript::NAME, CommandScript::SOURCE),
    (RollScript::NAME, RollScript::SOURCE),
    (TakeScript::NAME, TakeScript::SOURCE),
    (TimeScript::NAME, TimeScript::SOURCE),
    (ForgetScript::NAME, ForgetScript::SOURCE),
    (ForgetUsageScript::NAME, ForgetUsageScript::SOURCE),
    (FoldUsageScript::NAME, FoldUsageScript::SOURCE),
    (DayUsageScript::NAME, DayUsageScript::SOURCE),
    (NameScript::NAME, NameScript::SOURCE),
    (WipeScript::NAME, WipeScript::SOURCE),
    (LookScript::NAME, LookScript::SOURCE),
    (CensusScript::NAME, CensusScript::SOURCE),
];

pub struct RootScript<'a>(pub &'a Root);

impl Script for RootScript<'_> {
    const NAME: &'static str = "root";
    const SOURCE: &'static str = include_str!("lua/root.lua");
    type Reply = Root;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Root);
        input.text(serde_json::to_vec(self.0).expect("a root has only text keys"));
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Root, StoreError> {
        parse_root(&fields.text()?)
    }
}

pub struct InitScript<'a> {
    pub shard: u32,
    pub call: &'a InitCall,
}

impl Script for InitScript<'_> {
    const NAME: &'static str = "init";
    const SOURCE: &'static str = include_str!("lua/init.lua");
    type Reply = InitReply;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.key(keys, Key::Catalogue(self.shard));
        input.number(SCHEMA);
        input.text(&call.generation);
        input.number(call.shards);
        input.number(call.catalogue.version);
        input.text(&call.catalogue.hash);
        input.text(&*call.catalogue_text);
        input.text(if call.first_start { "1" } else { "0" });
        let grown = call.grown.as_ref();
        input.text(grown.map(|grown| grown.from.version.to_string()).unwrap_or_default());
        input.text(grown.map_or("", |grown| grown.from.hash.as_str()));
        input.text(grown.and_then(|grown| grown.starts_ms).map(|ms| ms.to_string()).unwrap_or_default());
        input.number(call.starts.len());
        for (partition, start) in &call.starts {
            input.text(partition.to_string());
            input.number(*start);
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<InitReply, StoreError> {
        let code = fields.text()?;
        let detail = fields.text()?;
        match code.as_str() {
            "ready" => Ok(InitReply::Ready),
            "emptied" => Ok(InitReply::Emptied),
            "other_generation" => Ok(InitReply::OtherGeneration(detail)),
            "other_shards" => Ok(InitReply::OtherShards(number(&detail)?)),
            "other_schema" => Ok(InitReply::OtherSchema(number(&detail)?)),
            "other_catalogue" => {
                Ok(InitReply::OtherCatalogue(CatalogueId { version: number(&detail)?, hash: fields.text()? }))
            }
            "older_catalogue" => {
                let stored = CatalogueId { version: number(&detail)?, hash: fields.text()? };
                Ok(InitReply::OlderCatalogue(stored, fields.text()?.into()))
            }
            "priced_up_to" => Ok(InitReply::PricedUpTo(number(&detail)?)),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct CommandScript<'a> {
    pub shard: u32,
    pub call: &'a CommandCall,
}

impl Script for CommandScript<'_> {
    const NAME: &'static str = "command";
    const SOURCE: &'static str = concat!(include_str!("lua/account.lua"), include_str!("lua/command.lua"));
    type Reply = Reply<Commanded>;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.key(keys, Key::Notes(self.shard));
        input.key(keys, Key::Outbox(self.shard));
        input.key(keys, Key::Account(&call.account));
        input.key(keys, Key::Commands(&call.account));
        input.key(keys, Key::Due(self.shard));
        input.text(&call.stamp.generation);
        input.number(call.stamp.catalogue.version);
        input.text(&call.stamp.catalogue.hash);
        input.number(call.stamp.outbox_max);
        input.number(call.stamp.restamp_tolerance_ms);
        input.text(call.range.partition.to_string());
        input.number(call.range.from);
        input.number(call.range.to);
        input.last_read(call.range.last);
        input.text(call.account.as_bytes());
        input.number(call.version);
        input.number(call.member);
        input.text(json_text(&call.command_id));
        input.text(call.command_type);
        input.text(if call.told { "1" } else { "0" });
        input.text(levels_text(&call.thresholds));
        input.text(call.credit_types.join(","));
        others(&mut input, &call.others);
        match &call.change {
            Change::Refuse(refusal) => {
                input.text("refuse");
                input.text(refusal.reason.name());
                input.text(json_text(&refusal.message));
            }
            Change::Put { config, next, replaces, opens, grants } => {
                input.text("put");
                input.text(if opens.is_some() { "1" } else { "" });
                if let Some(cycle) = opens {
                    input.number(cycle.number);
                    input.number(cycle.start_ms);
                    input.number(cycle.end_ms);
                }
                let replaces = replaces.as_deref().map(|old| (&old.config, old.next.as_ref()));
                configure(&mut input, Some((config, next.as_deref())), replaces);
                give(&mut input, grants);
            }
            Change::Grant(lot) => {
                input.text("grant");
                input.text(lot.to_string());
                input.text(&lot.command_id);
            }
            Change::Void { created } => {
                input.text("void");
                input.number(*created);
            }
            Change::Adjust { credit_type, amount, adds, reason } => {
                input.text("adjust");
                input.text(credit_type);
                input.number(amount.thousandths());
                input.text(if *adds { "1" } else { "" });
                input.text(reason);
            }
            Change::Close { at_ms, next } => {
                input.text("close");
                input.number(*at_ms);
                let gone: Vec<_> = next.iter().flat_map(|next| next.to_fields()).collect();
                input.number(gone.len());
                gone.iter().for_each(|(field, _)| input.text(pending(field)));
            }
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Reply<Commanded>, StoreError> {
        let code = fields.text()?;
        if code != "applied" {
            return refused(Self::NAME, &code, fields, vec![self.call.account.clone()]);
        }
        let name = fields.text()?;
        let outcome = Outcome::from_name(&name).ok_or_else(|| unexpected(Self::NAME, &name))?;
        Ok(Reply::Applied(Commanded { outcome, outbox: number(&fields.text()?)? }))
    }
}

/// An account's configuration, and what waits for its renewal.
type Configured<'a> = (&'a AccountConfig, Option<&'a AccountConfig>);

/// The name of a field that waits for the renewal.
fn pending(field: &str) -> String {
    format!("{PENDING}{field}")
}

/// The fields to set and to clear, so that one configuration takes the place of another.
fn configure(input: &mut Input, new: Option<Configured>, old: Option<Configured>) {
    let fields = |(config, next): Configured| {
        let next = next.map(AccountConfig::to_fields).unwrap_or_default().into_iter();
        let next = next.map(|(field, value)| (pending(&field), value));
        config.to_fields().into_iter().chain(next).collect::<Vec<_>>()
    };
    let set = new.map(fields).unwrap_or_default();
    let mut clear = old.map(fields).unwrap_or_default();
    clear.retain(|(field, _)| set.iter().all(|(kept, _)| kept != field));
    input.number(set.len());
    for (field, value) in &set {
        input.text(field);
        input.text(value);
    }
    input.number(clear.len());
    clear.iter().for_each(|(field, _)| input.text(field));
}

/// The levels at which an account alerts, in order.
pub fn levels_text(thresholds: &[Threshold]) -> String {
    let levels: Vec<String> = levels(thresholds).iter().map(Level::to_string).collect();
    levels.join(",")
}

fn give(input: &mut Input, grants: &[(String, GrantKind, Amount)]) {
    input.number(grants.len());
    for (credit_type, kind, amount) in grants {
        input.text(credit_type);
        input.text(kind.name());
        match amount {
            Amount::Limited(amount) => input.number(amount.thousandths()),
            Amount::Unlimited => input.text("unlimited"),
        }
    }
}

pub struct RollScript<'a> {
    pub shard: u32,
    pub call: &'a RollCall,
}

impl Script for RollScript<'_> {
    const NAME: &'static str = "roll";
    const SOURCE: &'static str = concat!(include_str!("lua/account.lua"), include_str!("lua/roll.lua"));
    type Reply = Reply<()>;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.key(keys, Key::Outbox(self.shard));
        input.key(keys, Key::Due(self.shard));
        input.text(&call.stamp.generation);
        input.number(call.stamp.catalogue.version);
        input.text(&call.stamp.catalogue.hash);
        others(&mut input, &call.others);
        input.text(call.commands_first.map(|first| first.to_string()).unwrap_or_default());
        input.text(call.meter_time_ms.map(|found_at_ms| found_at_ms.to_string()).unwrap_or_default());
        input.number(call.stamp.outbox_max);
        input.number(call.late_after_ms);
        input.number(call.credit_types.len());
        call.credit_types.iter().for_each(|name| input.text(name));
        input.number(call.accounts.len());
        for roll in &call.accounts {
            input.key(keys, Key::Account(&roll.account));
            input.text(roll.account.as_bytes());
            input.number(roll.version);
            input.text(levels_text(&roll.thresholds));
            input.number(roll.steps.len());
            roll.steps.iter().for_each(|step| write_step(&mut input, keys, &roll.account, step));
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Reply<()>, StoreError> {
        let code = fields.text()?;
        let accounts = self.call.accounts.iter().map(|roll| roll.account.clone()).collect();
        refused(Self::NAME, &code, fields, accounts)
    }
}

/// Positions that the worker knows.
pub fn others(input: &mut Input, others: &[(Partition, i64)]) {
    input.number(others.len());
    for (partition, position) in others {
        input.text(partition.to_string());
        input.number(*position);
    }
}

fn write_step(input: &mut Input, keys: &Keys, account: &str, step: &Step) {
    match step {
        Step::Lots { at_ms } => {
            input.text("lots");
            input.number(*at_ms);
        }
        Step::Restate { number, cycle } => {
            input.text("restate");
            input.number(*number);
            input.text(cycle_text(*cycle));
        }
        Step::Forget { number, cycle, marks } => {
            input.text("forget");
            input.number(*number);
            input.text(cycle_text(*cycle));
            input.text(marks.as_ref().map(Layout::to_string).unwrap_or_default());
            let sets: Vec<SetIndex> = marks.iter().flat_map(Layout::sets).collect();
            input.number(sets.len());
            sets.iter().for_each(|set| input.key(keys, Key::Marks(account, *number, *set)));
            input.key(keys, Key::Members(account, *number));
        }
        Step::Renew { closes, opens } => {
            input.text("renew");
            input.number(closes.cycle.number);
            input.text(cycle_text(closes.cycle));
            input.text(&closes.plan);
            input.text(closes.overage.to_stored());
            input.number(closes.carry_over.len());
            for (credit_type, most) in &closes.carry_over {
                input.text(credit_type);
                input.number(most.thousandths());
            }
            let Some(opens) = opens else { return input.text("") };
            input.text("1");
            input.number(opens.cycle.number);
            input.number(opens.cycle.start_ms);
            input.number(opens.cycle.end_ms);
            input.text(cycle_text(opens.cycle));
            input.text(&opens.plan);
            input.text(levels_text(&opens.thresholds));
            give(input, &opens.grants);
            let config = opens.config.as_ref();
            let old = config.map(|(next, old)| (&**old, Some(&**next)));
            configure(input, config.map(|(next, _)| (&**next, None)), old);
        }
    }
}

pub struct TimeScript<'a> {
    pub shard: u32,
    pub call: &'a TimeCall,
}

impl Script for TimeScript<'_> {
    const NAME: &'static str = "time";
    const SOURCE: &'static str = include_str!("lua/time.lua");
    type Reply = TimeReply;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.text(&call.generation);
        input.text(call.tick_ms.map(|tick_ms| tick_ms.to_string()).unwrap_or_default());
        input.number(call.late_after_ms);
        input.number(call.ends.len());
        for (partition, end) in &call.ends {
            input.text(partition.to_string());
            input.text(end.map(|end| end.to_string()).unwrap_or_default());
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<TimeReply, StoreError> {
        let code = fields.text()?;
        match code.as_str() {
            "other_generation" => Ok(TimeReply::OtherGeneration),
            "held" => {
                let partition = fields.text()?;
                Partition::parse(&partition).map(TimeReply::Held).ok_or_else(|| unexpected(Self::NAME, &partition))
            }
            "at" => Ok(TimeReply::At { meter_time_ms: number(&fields.text()?)?, floor_ms: number(&fields.text()?)? }),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct ForgetScript<'a> {
    pub shard: u32,
    pub call: &'a ForgetCall,
}

impl Script for ForgetScript<'_> {
    const NAME: &'static str = "forget";
    const SOURCE: &'static str = include_str!("lua/forget.lua");
    type Reply = Option<u64>;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.text(&self.call.generation);
        input.number(self.call.accounts.len());
        for ForgetDays { account, read, gone } in &self.call.accounts {
            input.key(keys, Key::Account(account));
            let text = |days: &mut dyn Iterator<Item = &(i64, Layout)>| {
                days.map(|(day, layout)| format!(" {day}:{layout}")).collect::<String>()
            };
            input.text(text(&mut read.iter()));
            input.text(text(&mut read.iter().filter(|(day, _)| !gone.contains(day))));
            input.number(gone.len());
            for (day, layout) in read.iter().filter(|(day, _)| gone.contains(day)) {
                input.number(*day);
                input.number(layout.sets().count());
                for set in layout.sets() {
                    input.key(keys, Key::Day(account, *day, set));
                }
                input.key(keys, Key::Charges(account, *day));
            }
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Option<u64>, StoreError> {
        match fields.text()?.as_str() {
            "other_generation" => Ok(None),
            "forgotten" => Ok(Some(number(&fields.text()?)?)),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct NameScript<'a> {
    pub shard: u32,
    pub from: &'a str,
    pub to: &'a str,
    pub rebuilt_s: Option<u32>,
}

impl Script for NameScript<'_> {
    const NAME: &'static str = "name";
    const SOURCE: &'static str = include_str!("lua/name.lua");
    type Reply = NameReply;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.text(self.from);
        input.text(self.to);
        input.text(self.rebuilt_s.map(|seconds| seconds.to_string()).unwrap_or_default());
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<NameReply, StoreError> {
        match fields.text()?.as_str() {
            "named" => Ok(NameReply::Named),
            "other_generation" => {
                Ok(NameReply::OtherGeneration(Some(fields.text()?).filter(|stored| !stored.is_empty())))
            }
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct WipeScript {
    pub keys: Vec<String>,
}

impl Script for WipeScript {
    const NAME: &'static str = "wipe";
    const SOURCE: &'static str = include_str!("lua/wipe.lua");
    type Reply = u64;

    fn input(&self, _: &Keys) -> Input {
        Input { keys: self.keys.iter().collect(), arguments: Words::default() }
    }

    fn reply(&self, mut fields: Fields) -> Result<u64, StoreError> {
        match fields.text()?.as_str() {
            "wiped" => number(&fields.text()?),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct TakeScript<'a> {
    pub shard: u32,
    pub call: &'a TakeCall,
}

impl Script for TakeScript<'_> {
    const NAME: &'static str = "take";
    const SOURCE: &'static str = include_str!("lua/take.lua");
    type Reply = Taken;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Outbox(self.shard));
        input.key(keys, Key::Relay(self.shard));
        input.text(&self.call.relay);
        input.number(self.call.lease_ms);
        input.number(self.call.count);
        input.text(if self.call.durable.is_some() { "1" } else { "0" });
        input.number(self.call.published.len());
        for id in &self.call.published {
            input.text(id);
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Taken, StoreError> {
        match fields.text()?.as_str() {
            "held" => return Ok(Taken::Held),
            "taken" => {}
            other => return Err(unexpected(Self::NAME, other)),
        }
        let mut entries = Vec::new();
        while !fields.is_empty() {
            let entry_id = fields.text()?;
            let output = fields.text()?;
            let entry = OutboxEntry {
                output: Output::from_name(&output).ok_or_else(|| unexpected(Self::NAME, &output))?,
                id: fields.text()?,
                event_type: fields.text()?,
                account: fields.text()?,
                data: fields.text()?,
            };
            entries.push((entry_id, entry));
        }
        Ok(Taken::Entries(entries))
    }
}

/// The replies that `apply`, `command` and `roll` share.
pub fn refused<T>(
    script: &str,
    code: &str,
    mut fields: Fields,
    accounts: Vec<Arc<str>>,
) -> Result<Reply<T>, StoreError> {
    Ok(match code {
        "other_generation" => Reply::OtherGeneration(Some(fields.text()?).filter(|stored| !stored.is_empty())),
        "done_before" => Reply::DoneBefore,
        "other_position" => {
            let mut stored = Vec::new();
            while !fields.is_empty() {
                stored.push(number(&fields.text()?)?);
            }
            Reply::OtherPosition(stored)
        }
        "torn" => Reply::Torn { begun: number(&fields.text()?)?, ended: number(&fields.text()?)? },
        "fell_back" => Reply::FellBack,
        "other_catalogue" => {
            Reply::OtherCatalogue(CatalogueId { version: number(&fields.text()?)?, hash: fields.text()? })
        }
        "stale" => {
            let mut stale = Vec::new();
            while !fields.is_empty() {
                let index: usize = number(&fields.text()?)?;
                let account = accounts.get(index).ok_or_else(|| unexpected(script, "an unknown group"))?;
                let count: usize = number(&fields.text()?)?;
                let mut stored = BTreeMap::new();
                for _ in 0..count {
                    stored.insert(fields.text()?, fields.text()?);
                }
                let view = if stored.is_empty() { None } else { Some(parse_view(&stored)?) };
                stale.push(StaleAccount { account: account.clone(), view });
            }
            Reply::Stale(stale)
        }
        "account_lost" => Reply::AccountLost(fields.text()?),
        "unknown" => Reply::Unknown { commands_position: number(&fields.text()?)? },
        "dead" => {
            let mut notes = Vec::new();
            while !fields.is_empty() {
                let (name, reason) = (fields.text()?, fields.text()?);
                notes.push(parse_note(&name, &reason).ok_or_else(|| unexpected(script, &name))?);
            }
            Reply::Dead(notes)
        }
        "outbox_full" => Reply::OutboxFull { entries: number(&fields.text()?)? },
        other => return Err(unexpected(script, other)),
    })
}

pub fn unexpected(script: &str, what: &str) -> StoreError {
    StoreError::Broken(format!("{script}.lua replied `{what}`"))
}
