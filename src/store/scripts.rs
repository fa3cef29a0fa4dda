//! The Lua scripts: for each a typed call, its keys and arguments, and its reply.
//! One script is one file is one transition. Only they write to Redis.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redis::Value;

use super::keys::{Key, Keys};
use super::look::LookScript;
use super::stored::{number, parse_note, parse_root, parse_view};
use super::{Root, StoreError, TakeCall, Taken};
use crate::ledger::account::Grant;
use crate::ledger::apply::{json_text, named};
use crate::ledger::call::{
    Applied, ApplyCall, Change, CommandCall, Commanded, Group, LastRead, OutboxEntry, Output, Partition, Reply, SCHEMA,
    StaleAccount,
};
use crate::ledger::catalogue::{Amount, CatalogueId, Overage};
use crate::ledger::credits::Credits;
use crate::ledger::day::{Layout, SetIndex, layouts_of};
use crate::ledger::event::{CallEvents, Judge};
use crate::ledger::outcome::{Denial, Outcome, Verdict};
use crate::ledger::shard::{InitCall, InitReply};
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, TimeReply};

/// The keys and arguments of a call, in the order of the script's header.
#[derive(Default)]
pub struct Input {
    pub keys: Vec<String>,
    pub arguments: Vec<Vec<u8>>,
}

impl Input {
    pub(super) fn key(&mut self, keys: &Keys, key: Key) {
        self.keys.push(keys.spell(key));
    }

    pub(super) fn text(&mut self, text: impl AsRef<[u8]>) {
        self.arguments.push(text.as_ref().to_vec());
    }

    pub(super) fn last_read(&mut self, last: Option<LastRead>) {
        self.text(last.map(|last| last.anchor.to_string()).unwrap_or_default());
        self.text(last.map(|last| last.reached_ms.to_string()).unwrap_or_default());
    }

    pub(super) fn number(&mut self, number: impl itoa::Integer) {
        self.arguments.push(itoa::Buffer::new().format(number).as_bytes().to_vec());
    }
}

/// A call of a script.
pub trait Script {
    const NAME: &'static str;
    const SOURCE: &'static str;
    type Reply;

    fn input(&self, keys: &Keys) -> Input;
    fn reply(&self, fields: Fields) -> Result<Self::Reply, StoreError>;
}

/// All scripts, to be loaded on each connection.
pub const ALL: [(&str, &str); 9] = [
    (RootScript::NAME, RootScript::SOURCE),
    (InitScript::NAME, InitScript::SOURCE),
    (ApplyScript::NAME, ApplyScript::SOURCE),
    (CommandScript::NAME, CommandScript::SOURCE),
    (TakeScript::NAME, TakeScript::SOURCE),
    (TimeScript::NAME, TimeScript::SOURCE),
    (ForgetScript::NAME, ForgetScript::SOURCE),
    (WipeScript::NAME, WipeScript::SOURCE),
    (LookScript::NAME, LookScript::SOURCE),
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
        input.number(SCHEMA);
        input.text(&call.generation);
        input.number(call.shards);
        input.number(call.catalogue.version);
        input.text(&call.catalogue.hash);
        input.text(if call.first_start { "1" } else { "0" });
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
            "newer_schema" => Ok(InitReply::NewerSchema(number(&detail)?)),
            "other_catalogue" => {
                Ok(InitReply::OtherCatalogue(CatalogueId { version: number(&detail)?, hash: fields.text()? }))
            }
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

pub struct ApplyScript<'a> {
    pub shard: u32,
    pub call: &'a ApplyCall,
}

impl Script for ApplyScript<'_> {
    const NAME: &'static str = "apply";
    const SOURCE: &'static str = include_str!("lua/apply.lua");
    type Reply = Reply<Applied>;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.key(keys, Key::Notes(self.shard));
        input.key(keys, Key::Outbox(self.shard));
        input.key(keys, Key::Due(self.shard));
        input.text(&call.stamp.generation);
        input.number(call.stamp.catalogue.version);
        input.text(&call.stamp.catalogue.hash);
        input.number(call.stamp.outbox_max);
        input.number(call.stamp.restamp_tolerance_ms);
        input.text(call.commands_end.map_or(String::new(), |end| end.to_string()));
        input.text(call.commands_first.map_or(String::new(), |first| first.to_string()));
        input.number(call.stamp.set_members_max);
        input.text(&call.stamp.usage_topic);
        input.text(json_text(&call.stamp.usage_topic));
        input.number(call.ranges.len());
        for range in &call.ranges {
            input.text(range.partition.to_string());
            input.number(range.from);
            input.number(range.to);
            input.number(range.repeats);
            input.last_read(range.last);
        }
        input.number(call.others.len());
        for (partition, position) in &call.others {
            input.text(partition.to_string());
            input.number(*position);
        }
        input.number(call.found.len() + call.dead.len());
        let found = call.found.iter().map(|note| (note, "0"));
        for (note, produced) in found.chain(call.dead.iter().map(|note| (note, "1"))) {
            let range = call.ranges.iter().position(|range| range.partition == note.partition);
            input.number(range.expect("a dead record lies in a range of its call"));
            input.number(note.offset);
            input.text(note.reason.name());
            input.text(produced);
        }
        let mut types: Vec<&str> = call.classes.iter().map(|class| class.credit_type.as_str()).collect();
        types.sort_unstable();
        types.dedup();
        input.number(types.len());
        for name in &types {
            input.text(name);
        }
        let type_of = |name: &str| types.binary_search(&name).expect("every class's type is listed");
        input.number(call.classes.len());
        for class in &call.classes {
            input.text(class.action.as_bytes());
            input.number(type_of(&class.credit_type));
            input.number(class.cost.thousandths());
            input.text(match class.judge {
                Judge::Charge => "c",
                Judge::Free => "f",
                Judge::NotEntitled => "e",
                Judge::Denied(Denial::NotEntitled) => "E",
                Judge::Denied(Denial::InsufficientCredits) => "I",
                Judge::Denied(Denial::OverageLimit) => "O",
                Judge::Capped => "P",
            });
        }
        let class_types: Vec<u8> = call.classes.iter().map(|class| type_of(&class.credit_type) as u8).collect();
        let kinds = Kinds::of(call);
        input.number(kinds.list.len());
        for (range, class) in &kinds.list {
            input.number(*range);
            input.number(*class);
        }
        input.number(call.groups.len());
        for group in &call.groups {
            self.group(&mut input, keys, group, &kinds, &class_types);
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Reply<Applied>, StoreError> {
        let code = fields.text()?;
        if code != "applied" {
            let accounts = self.call.groups.iter().map(|group| group.account.clone()).collect();
            return refused(Self::NAME, &code, fields, accounts);
        }
        let outbox = number(&fields.text()?)?;
        let mut verdicts = Vec::with_capacity(self.call.events());
        for group in &self.call.groups {
            let letters = fields.bytes()?;
            if letters.is_empty() {
                verdicts.extend(group.events.iter().map(|event| match self.call.classes[event.class].judge {
                    Judge::Free => Verdict::Free,
                    _ => Verdict::Charged,
                }));
                continue;
            }
            if letters.len() != group.events.len() {
                return Err(unexpected(Self::NAME, "a verdict is missing"));
            }
            for letter in letters {
                let verdict = Verdict::from_code(letter).ok_or_else(|| unexpected(Self::NAME, "unknown verdict"))?;
                verdicts.push(verdict);
            }
        }
        Ok(Reply::Applied(Applied { verdicts, outbox }))
    }
}

/// The distinct pairs of range and class in a call; an event names its own with two bytes.
struct Kinds {
    list: Vec<(usize, usize)>,
    index: HashMap<(usize, usize), u16>,
}

impl Kinds {
    fn of(call: &ApplyCall) -> Kinds {
        let mut kinds = Kinds { list: Vec::new(), index: HashMap::new() };
        for event in call.groups.iter().flat_map(|group| &group.events) {
            let pair = (event.range, event.class);
            if !kinds.index.contains_key(&pair) {
                let next = u16::try_from(kinds.list.len()).expect("a call has at most 4,000 events");
                kinds.index.insert(pair, next);
                kinds.list.push(pair);
            }
        }
        kinds
    }
}

impl ApplyScript<'_> {
    fn group(&self, input: &mut Input, keys: &Keys, group: &Group, kinds: &Kinds, class_types: &[u8]) {
        input.key(keys, Key::Account(&group.account));
        input.text(group.account.as_bytes());
        input.number(group.version);
        let (overage, limit) = match group.overage {
            Overage::Reject => ("reject", Credits::ZERO),
            Overage::Cap => ("cap", Credits::ZERO),
            Overage::Allow { limit } => ("allow", limit.unwrap_or(Credits::BALANCE_MAX)),
        };
        input.text(overage);
        input.number(limit.thousandths());
        input.number(group.events.iter().map(|event| event.event.dated_ms).min().unwrap_or(0));
        let mut types = Vec::new();
        let mut event_kinds = Vec::with_capacity(group.events.len() * 2);
        let mut lines = Vec::new();
        for event in &group.events {
            let credit_type = class_types.get(event.class).copied();
            if let Some(credit_type) = credit_type.filter(|credit_type| !types.contains(credit_type)) {
                types.push(credit_type);
            }
            event_kinds.extend(kinds.index[&(event.range, event.class)].to_be_bytes());
            if !lines.is_empty() {
                lines.push(b'\n');
            }
            let name = named(&event.event.source, &event.event.id);
            lines.extend(format!("{} {} {name}", event.offset, event.event.dated_ms).into_bytes());
        }
        input.text(types);
        input.text(event_kinds);
        input.text(lines);
        let runs: Vec<_> = group.runs(self.call.stamp.restamp_tolerance_ms).collect();
        input.number(runs.len());
        for (days, run) in runs {
            let (own, neighbour) = layouts_of(&group.days, days);
            input.number(days.own);
            input.text(own.to_string());
            input.text(days.neighbour.map(|day| day.to_string()).unwrap_or_default());
            input.text(neighbour.map(Layout::to_string).unwrap_or_default());
            input.number(own.generations());
            input.number(own.generations() + neighbour.map_or(0, Layout::generations));
            let beside = days.neighbour.zip(neighbour);
            for (day, layout) in [Some((days.own, own)), beside].into_iter().flatten() {
                for generation in 0..layout.generations() {
                    probe(input, keys, &group.account, day, layout, generation, run);
                }
            }
            input.number(run.len());
            for event in run {
                input.number(event.event.identity.member);
            }
        }
    }
}

/// The sets of a generation that a run touches, and in two bytes an event which of them is its own.
fn probe(input: &mut Input, keys: &Keys, account: &str, day: i64, layout: &Layout, generation: usize, run: CallEvents) {
    let places: Vec<SetIndex> = run.iter().map(|event| layout.place(generation, event.event.identity)).collect();
    let mut touched = places.clone();
    touched.sort_unstable();
    touched.dedup();
    for place in &touched {
        input.key(keys, Key::Day(account, day, *place));
    }
    input.number(touched.len());
    let mut own = Vec::new();
    if touched.len() > 1 {
        for place in &places {
            let index = touched.binary_search(place).expect("every place is listed");
            own.extend(u16::try_from(index).expect("a call has at most 4,000 events").to_be_bytes());
        }
    }
    input.text(own);
}

pub struct CommandScript<'a> {
    pub shard: u32,
    pub call: &'a CommandCall,
}

impl Script for CommandScript<'_> {
    const NAME: &'static str = "command";
    const SOURCE: &'static str = include_str!("lua/command.lua");
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
        match &call.change {
            Change::Refuse(refusal) => {
                input.text("refuse");
                input.text(refusal.reason.name());
                input.text(json_text(&refusal.message));
            }
            Change::Put { config, replaces, opens, grants } => {
                input.text("put");
                input.text(opens.map(|cycle| cycle.end_ms.to_string()).unwrap_or_default());
                let mut set = config.to_fields();
                let kept: Vec<&str> = set.iter().map(|(field, _)| field.as_str()).collect();
                let old = replaces.as_ref().map(|old| old.to_fields()).unwrap_or_default();
                let clear: Vec<String> = old.into_iter().map(|(field, _)| field).collect();
                let clear: Vec<String> = clear.into_iter().filter(|field| !kept.contains(&field.as_str())).collect();
                if let Some(cycle) = opens {
                    let cycle = format!("{} {} {}", cycle.number, cycle.start_ms, cycle.end_ms);
                    set.push(("cycle".to_owned(), cycle));
                }
                change(&mut input, &set, &clear, grants, call.range.to - 1);
            }
            Change::Grant(grant) => {
                input.text("grant");
                input.text("");
                change(&mut input, &[], &[], std::slice::from_ref(grant), call.range.to - 1);
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

fn change(input: &mut Input, set: &[(String, String)], clear: &[String], grants: &[Grant], offset: i64) {
    input.number(set.len());
    for (field, value) in set {
        input.text(field);
        input.text(value);
    }
    input.number(clear.len());
    for field in clear {
        input.text(field);
    }
    input.number(grants.len());
    for grant in grants {
        let amount = match grant.amount {
            Amount::Limited(amount) => amount.thousandths().to_string(),
            Amount::Unlimited => "unlimited".to_owned(),
        };
        let own =
            grant.command_id.as_ref().map(|id| format!("{} {} {amount} {id}", grant.kind.name(), grant.credit_type));
        input.text(grant.kind.name());
        input.text(&grant.credit_type);
        input.text(amount);
        input.text(if own.is_some() { format!("grant:{offset}") } else { String::new() });
        input.text(own.unwrap_or_default());
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

pub struct WipeScript {
    pub keys: Vec<String>,
}

impl Script for WipeScript {
    const NAME: &'static str = "wipe";
    const SOURCE: &'static str = include_str!("lua/wipe.lua");
    type Reply = u64;

    fn input(&self, _: &Keys) -> Input {
        Input { keys: self.keys.clone(), arguments: Vec::new() }
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

/// The replies that `apply` and `command` share.
fn refused<T>(script: &str, code: &str, mut fields: Fields, accounts: Vec<Arc<str>>) -> Result<Reply<T>, StoreError> {
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

/// The strings of a script's reply, in order.
pub struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    pub fn of(reply: Value) -> Fields {
        match reply {
            Value::Array(values) => Fields(values.into_iter()),
            single => Fields(vec![single].into_iter()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            other => Err(StoreError::Broken(format!("a script's reply has {other:?} where a string is due"))),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?).map_err(|error| StoreError::Broken(error.to_string()))
    }
}

fn unexpected(script: &str, what: &str) -> StoreError {
    StoreError::Broken(format!("{script}.lua replied `{what}`"))
}
