//! One shard twice, in a real Redis and as the ledger, and a worker that speaks to both.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::account::AccountView;
use credit_meter::ledger::call::{Anchor, LastRead, Partition, Range, Reply, StaleAccount, Stamp};
use credit_meter::ledger::catalogue::{Catalogue, CatalogueId};
use credit_meter::ledger::event::UsageEvent;
use credit_meter::ledger::outcome::{DeadReason, Outcome, Verdict};
use credit_meter::ledger::shard::{InitCall, Shard};
use credit_meter::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known};
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::{Published, Recorded};
use credit_meter::store::RedisStore;
use credit_meter::store::keys::Keys;
use redis::aio::MultiplexedConnection;

use super::{LATE_AFTER_MS, NOON_MS};
use crate::lua_vs_ledger::without_answer;
use crate::support::redis::{connection, quiet};
use crate::support::{dump, own_prefix};

pub struct World<'a> {
    pub catalogue: &'a Catalogue,
    pub store: RedisStore,
    pub redis: MultiplexedConnection,
    pub prefix: String,
    pub keys: Keys,
    pub shard: Shard,
    pub stamp: Stamp,
    pub accounts: Accounts,
    dead: DeadNotes,
    pub positions: BTreeMap<Partition, i64>,
    /// What the partitions' records have reached.
    pub now_ms: i64,
    pub events: BTreeMap<String, Arc<UsageEvent>>,
    pub recorded: Recorded,
    pub published: Vec<String>,
    last: Option<Call>,
    /// What the last step was answered, one after the other.
    pub trail: Vec<String>,
    /// Redis was damaged by hand, which the ledger knows nothing of: how it was then. It must stay so.
    pub damaged: Option<Shard>,
}

/// How a step's call differs from what a worker would send.
#[derive(Clone, Debug, Default)]
pub struct Twist {
    pub generation: Option<String>,
    pub catalogue: Option<String>,
    /// Added to the offsets of the call's ranges.
    pub shift: i64,
    /// By how much the worker believes other partitions to be further than they are.
    pub others: i64,
    /// Commands that must be applied first.
    pub commands_first: Option<i64>,
    pub outbox_max: Option<usize>,
    /// The worker dies when it has found something dead.
    pub dies: bool,
}

impl Twist {
    pub fn stamp(&self, own: &Stamp) -> Stamp {
        let catalogue = self.catalogue.clone().map(|hash| CatalogueId { hash, ..own.catalogue.clone() });
        Stamp {
            generation: self.generation.clone().unwrap_or_else(|| own.generation.clone()),
            catalogue: catalogue.unwrap_or_else(|| own.catalogue.clone()),
            outbox_max: self.outbox_max.unwrap_or(own.outbox_max),
            ..own.clone()
        }
    }
}

/// The same answer of both, or how they differ.
pub fn same<T: PartialEq + std::fmt::Debug>(stored: T, expected: T) -> Result<T, String> {
    if stored == expected {
        return Ok(stored);
    }
    Err(format!("the script answers\n    {stored:?}\n  and the ledger\n    {expected:?}"))
}

impl<'a> World<'a> {
    pub async fn new(catalogue: &'a Catalogue) -> World<'a> {
        let prefix = own_prefix("table");
        let store = crate::support::redis::store(&quiet(), &prefix, 1);
        let partitions = [Partition::COMMANDS, Partition::usage(0), Partition::usage(1)];
        let mut world = World {
            catalogue,
            store,
            redis: connection(&quiet()).await,
            keys: Keys::new(&prefix, 1),
            prefix,
            shard: Shard::default(),
            stamp: Stamp {
                generation: "g1".into(),
                catalogue: catalogue.id.clone(),
                usage_topic: "credits.usage".into(),
                restamp_tolerance_ms: 10 * 60_000,
                breakdown: true,
                set_members_max: 512,
                journal_bytes_max: 200,
                outbox_max: 1000,
            },
            accounts: Accounts::default(),
            dead: DeadNotes::new(),
            positions: partitions.into_iter().map(|partition| (partition, 0)).collect(),
            now_ms: NOON_MS,
            events: BTreeMap::new(),
            recorded: Recorded::default(),
            published: Vec::new(),
            last: None,
            trail: Vec::new(),
            damaged: None,
        };
        let call = InitCall { first_start: true, ..world.init_call() };
        let stored = world.store.init(0, &call).await.expect("redis answers");
        assert_eq!(stored, world.shard.init(&call));
        world
    }

    pub fn init_call(&self) -> InitCall {
        InitCall {
            generation: "g1".into(),
            shards: 1,
            catalogue: self.catalogue.id.clone(),
            catalogue_text: self.catalogue.text.clone(),
            grown: None,
            starts: self.positions.keys().map(|partition| (*partition, 0)).collect(),
            first_start: false,
        }
    }

    /// The next record of a partition, behind those that this step has already.
    pub fn record(&self, partition: Partition, before: usize, at_ms: i64, body: Body) -> Record {
        let offset = self.positions[&partition] + before as i64;
        Record { partition, offset, append_ms: at_ms, bytes: 100, fingerprint: offset as u64, body }
    }

    /// What was published about a record before the shard fell back.
    pub fn publish(&mut self, record: &Record, decision: credit_meter::pipeline::recorded::Decision) {
        let event = match &record.body {
            Body::Usage(event) => Some((event.account.clone(), event.identity)),
            _ => None,
        };
        let (partition, offset) = (record.partition, record.offset);
        self.recorded.insert(Published { partition, offset, event, decision });
    }

    /// Sends records as a worker does: follows each answer until they are applied, or it can go no further.
    pub async fn submit(&mut self, records: Vec<Record>, twist: &Twist) -> Result<(), String> {
        let mut ends: BTreeMap<Partition, i64> = BTreeMap::new();
        for record in &records {
            ends.insert(record.partition, record.offset + 1);
            self.now_ms = self.now_ms.max(record.append_ms);
        }
        let ranges = ends.iter().map(|(partition, to)| Range {
            partition: *partition,
            from: self.positions[partition],
            to: *to,
            repeats: 0,
            last: Some(LastRead {
                anchor: Anchor { offset: to - 1, fingerprint: (to - 1) as u64 },
                reached_ms: self.now_ms,
            }),
        });
        let mut batch = Batch { records, ranges: ranges.collect(), commands_end: None };
        let outside = self.positions.iter().filter(|(partition, _)| !ends.contains_key(partition));
        let others: Vec<_> = outside.map(|(partition, position)| (*partition, position + twist.others)).collect();
        let stamp = Arc::new(twist.stamp(&self.stamp));
        for _ in 0..16 {
            let mut call = batch.call(&Known {
                stamp: &stamp,
                catalogue: self.catalogue,
                accounts: &self.accounts,
                dead: &self.dead,
                recorded: &self.recorded,
                commands_first: twist.commands_first,
                others: others.clone(),
                late_after_ms: LATE_AFTER_MS,
            });
            if let Call::Roll(_) = &call
                && batch.commands_end.is_none()
            {
                // The worker asks first what the commands topic held.
                batch.commands_end = Some(self.positions[&Partition::COMMANDS]);
                continue;
            }
            match &mut call {
                Call::Apply(call) => {
                    for range in &mut Arc::make_mut(call).ranges {
                        (range.from, range.to) = (range.from + twist.shift, range.to + twist.shift);
                    }
                }
                Call::Command(call) => {
                    let range = &mut Arc::make_mut(call).range;
                    (range.from, range.to) = (range.from + twist.shift, range.to + twist.shift);
                }
                Call::Roll(_) => {}
            }
            let reply = self.send(&call).await?;
            match reply {
                Reply::Applied(()) => {
                    self.positions.extend(ends);
                    return Ok(());
                }
                Reply::Stale(shown) => self.learn(shown),
                Reply::Unknown { commands_position } if twist.commands_first.is_none() => {
                    batch.commands_end = Some(commands_position);
                }
                Reply::Dead(_) if twist.dies => return Ok(()),
                Reply::Dead(notes) => {
                    self.dead.extend(notes.iter().map(|note| ((note.partition, note.offset), note.reason)));
                }
                Reply::OtherGeneration(_)
                | Reply::Torn { .. }
                | Reply::DoneBefore
                | Reply::OtherPosition(_)
                | Reply::FellBack
                | Reply::OtherCatalogue(_)
                | Reply::AccountLost(_)
                | Reply::Unknown { .. }
                | Reply::OutboxFull { .. } => return Ok(()),
            }
        }
        Err("it does not end".to_owned())
    }

    pub async fn again(&mut self) -> Result<(), String> {
        let call = self.last.clone().expect("something was sent");
        self.send(&call).await.map(drop)
    }

    fn learn(&mut self, shown: Vec<StaleAccount>) {
        for StaleAccount { account, view } in shown {
            match view {
                Some(view) => self.accounts.insert(account, view),
                None => self.accounts.remove(&account),
            };
        }
    }

    /// The same call to Redis and to the ledger.
    pub async fn send(&mut self, call: &Call) -> Result<Reply<()>, String> {
        let damaged = self.damaged.is_some();
        let (answer, reply) = match call {
            Call::Apply(call) => {
                let stored = self.store.apply(0, call).await.map_err(|error| error.to_string())?;
                let reply = if damaged { stored } else { same(stored, self.shard.apply(call))? };
                if let Reply::Applied(applied) = &reply {
                    let mut words: Vec<_> = applied.verdicts.iter().map(|verdict| verdict_text(*verdict)).collect();
                    let repeats = call.ranges.iter().map(|range| range.repeats).sum::<u32>();
                    words.extend((0..repeats).map(|_| Outcome::Duplicate.name().to_owned()));
                    words.extend(call.dead.iter().map(|_| Outcome::DeadLettered.name().to_owned()));
                    (words.join(", "), without_answer(reply))
                } else {
                    (refusal_text(&reply), without_answer(reply))
                }
            }
            Call::Command(call) => {
                let stored = self.store.command(0, call).await.map_err(|error| error.to_string())?;
                let reply = if damaged { stored } else { same(stored, self.shard.command(call))? };
                let answer = match &reply {
                    Reply::Applied(commanded) if commanded.outcome == Outcome::Refused => {
                        let id = format!("command/{}", call.range.to - 1);
                        let told = self.shard.outbox.iter().find(|entry| entry.id == id);
                        let told = told.unwrap_or_else(|| panic!("{id} was not told"));
                        let data: serde_json::Value = serde_json::from_str(&told.data).expect("JSON");
                        format!("refused {}", data["reason"].as_str().expect("a reason"))
                    }
                    Reply::Applied(commanded) => commanded.outcome.name().to_owned(),
                    refused => refusal_text(refused),
                };
                (answer, without_answer(reply))
            }
            Call::Roll(call) => {
                let version = |world: &World, name: &Arc<str>| world.shard.accounts.get(name).map(|a| a.version);
                let before: Vec<_> = call.accounts.iter().map(|roll| version(self, &roll.account)).collect();
                let stored = self.store.roll(0, call).await.map_err(|error| error.to_string())?;
                let reply = if damaged { stored } else { same(stored, self.shard.roll(call))? };
                let each = call.accounts.iter().zip(before);
                let taken: Vec<_> = each
                    .filter(|(roll, before)| version(self, &roll.account) != *before)
                    .flat_map(|(roll, _)| roll.steps.iter().map(|step| step.name()))
                    .collect();
                let answer = match &reply {
                    Reply::Stale(_) if !taken.is_empty() => format!("took {}", taken.join(" ")),
                    other => refusal_text(other),
                };
                (answer, reply)
            }
        };
        self.last = Some(call.clone());
        self.trail.push(answer);
        Ok(reply)
    }

    /// The state of both, compared.
    pub async fn compare(&mut self) -> Result<(), String> {
        let stored = dump::normal(dump::shard(&mut self.redis, &self.prefix).await);
        let (expected, whose) = match &self.damaged {
            Some(damaged) => (damaged.clone(), "what was refused has changed redis"),
            None => (dump::normal(self.shard.clone()), "the states differ"),
        };
        if stored == expected {
            return Ok(());
        }
        Err(format!("{whose}: redis has\n{stored:#?}\n  and the ledger\n{expected:#?}"))
    }

    pub async fn damage(&mut self, command: &redis::Cmd) {
        let _: redis::Value = command.query_async(&mut self.redis).await.expect("redis answers");
        self.damaged = Some(dump::normal(dump::shard(&mut self.redis, &self.prefix).await));
    }

    pub async fn end(mut self) {
        let keys = dump::keys(&mut self.redis, &self.prefix).await;
        if !keys.is_empty() {
            let _: () = redis::cmd("DEL").arg(keys).query_async(&mut self.redis).await.expect("redis answers");
        }
    }

    pub fn view(&self, name: &str) -> Option<AccountView> {
        self.shard.accounts.get(name).map(credit_meter::ledger::shard::Account::view)
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Denied(denial) => format!("denied {}", denial.name()),
        other => other.outcome().name().to_owned(),
    }
}

/// Everything that a call can be answered but what it asked for. A new answer stands here and in `REFUSALS`.
fn refusal_text<T>(reply: &Reply<T>) -> String {
    let details = match reply {
        Reply::OtherGeneration(stored) => stored.clone().unwrap_or_default(),
        Reply::AccountLost(account) => account.clone(),
        Reply::OtherPosition(stored) => stored.iter().map(i64::to_string).collect::<Vec<_>>().join(" "),
        Reply::Dead(notes) => {
            let reasons: Vec<_> = notes.iter().map(|note| note.reason).map(DeadReason::name).collect();
            reasons.join(" ")
        }
        Reply::Torn { .. }
        | Reply::DoneBefore
        | Reply::FellBack
        | Reply::OtherCatalogue(_)
        | Reply::Stale(_)
        | Reply::Unknown { .. }
        | Reply::OutboxFull { .. }
        | Reply::Applied(_) => String::new(),
    };
    format!("{} {details}", reply.kind()).trim_end().to_owned()
}

/// The kinds of answers that change nothing.
pub const REFUSALS: [&str; 11] = [
    "other_generation",
    "torn",
    "done_before",
    "other_position",
    "fell_back",
    "other_catalogue",
    "stale",
    "account_lost",
    "unknown",
    "dead",
    "outbox_full",
];
