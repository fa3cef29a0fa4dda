//! Steps that are neither usage nor commands.
//!
//! | Step | What happens |
//! |---|---|
//! | `@+3d tick` | meter time goes there, the floor two days below; `ahead` names an end that is not reached, `reached` goes by the partitions' own times |
//! | `sweep` | what meter time changes in the accounts; `old` knows older versions, `ahead` another meter time |
//! | `forget` | identities below the floor; `early` asks for all days, `changed` believes in other days |
//! | `forget_usage` | usage of noon's day; `keep=` days longer |
//! | `take` | a relay takes what is in the outbox; `other` is another relay |
//! | `root g1 g2`, `init …`, `name g1 g2`, `wipe`, `census acme`, `look acme` | the scripts of these names |
//! | `tear`, `lose acme`, `schema 1` | damage, by hand |

use std::sync::Arc;

use credit_meter::ledger::account::{Counter, Life};
use credit_meter::ledger::alerts::Alarm;
use credit_meter::ledger::call::{Partition, SCHEMA};
use credit_meter::ledger::catalogue::CatalogueId;
use credit_meter::ledger::event::DAY_MS;
use credit_meter::ledger::roll::{RollAccount, RollCall};
use credit_meter::ledger::shard::{Grown, InitCall, InitReply, NameReply, Shard};
use credit_meter::ledger::steps::{MeterTime, steps_until};
use credit_meter::ledger::time::{ForgetCall, ForgetDays, TimeCall, TimeReply, forgettable};
use credit_meter::ledger::usage::{ForgetUsageCall, local_day};
use credit_meter::pipeline::batch::{Call, thresholds};
use credit_meter::store::keys::Key;
use credit_meter::store::look::Asked;
use credit_meter::store::{Counted, CountedBalance, Root, TakeCall, Taken};

use super::story::{Words, time};
use super::world::{Twist, World, same};
use super::{LATE_AFTER_MS, NOON_MS};

const REDIS_ANSWERS: &str = "redis answers";

impl World<'_> {
    pub async fn other_step(&mut self, words: &Words<'_>, twist: &Twist) -> Result<(), String> {
        let has = |word: &str| words.plain[1..].contains(&word);
        let generation = twist.generation.clone().unwrap_or_else(|| "g1".into());
        let answer = match words.plain[0] {
            "tick" => self.tick(words, generation).await?,
            "sweep" => return self.sweep(has("old"), has("ahead"), twist).await,
            "forget" => self.forget(has("early"), has("changed"), generation).await?,
            "forget_usage" => self.forget_usage(words.number("keep").unwrap_or(0), generation).await?,
            "take" => self.take(has("other")).await?,
            "root" => self.root(&words.plain[1..]).await,
            "init" => self.init(words, generation).await?,
            "name" => {
                let rebuilt_s = words.get("rebuilt").map(|at| (time(at) / 1000) as u32);
                self.name(words.plain[1], words.plain[2], rebuilt_s).await?
            }
            "wipe" => {
                let wiped = self.store.wipe(0).await.expect(REDIS_ANSWERS);
                self.shard = Shard::default();
                format!("wiped {wiped}")
            }
            "census" => self.census(&words.plain[1..]).await?,
            "look" => self.look(&words.plain[1..]).await,
            "tear" => {
                let key = self.keys.spell(Key::Shard(0));
                self.damage(redis::cmd("HINCRBY").arg(key).arg("begun").arg(1)).await;
                return Ok(());
            }
            "lose" => {
                let key = self.keys.spell(Key::Account(words.plain[1]));
                self.damage(redis::cmd("DEL").arg(key)).await;
                return Ok(());
            }
            // Changes a closed cycle as a program of before does: it does not count, and does not keep what was told.
            "older" => {
                let account = words.plain[1];
                let closed = self.shard.accounts.get_mut(account).and_then(|account| account.closed.get_mut(&0));
                let closed = closed.expect("a closed cycle");
                (closed.restate, closed.told) = (true, 0);
                let times = [closed.start_ms, closed.end_ms, closed.keep_ms, closed.stated_ms].map(|ms| ms.to_string());
                let terms = format!("1 {} {} {}", closed.revision, closed.overage.to_stored(), closed.plan);
                let mut set = redis::cmd("HSET");
                set.arg(self.keys.spell(Key::Account(account)))
                    .arg("closed:0")
                    .arg(times.join(" "))
                    .arg("terms:0")
                    .arg(terms);
                let _: () = set.query_async(&mut self.redis).await.expect(REDIS_ANSWERS);
                return Ok(());
            }
            "schema" => {
                let schema = words.plain[1];
                let mut set = redis::cmd("HSET");
                set.arg(self.keys.spell(Key::Shard(0))).arg("schema").arg(schema);
                let _: () = set.query_async(&mut self.redis).await.expect(REDIS_ANSWERS);
                self.shard.fence.as_mut().expect("it is made").schema = schema.parse().expect("a number");
                return Ok(());
            }
            other => panic!("`{other}` is no step"),
        };
        self.trail.push(answer);
        Ok(())
    }

    /// Proposes one root after the other; a state of tests has none afterwards.
    async fn root(&mut self, generations: &[&str]) -> String {
        let mut answers = Vec::new();
        for generation in generations {
            let generation = (*generation).to_owned();
            let root = Root { schema: SCHEMA, generation, shards: 1, usage_starts: vec![0], commands_start: 0 };
            answers.push(self.store.root(&root).await.expect(REDIS_ANSWERS).generation);
        }
        let mut delete = redis::cmd("DEL");
        let _: () = delete.arg(self.keys.spell(Key::Root)).query_async(&mut self.redis).await.expect(REDIS_ANSWERS);
        format!("root {}", answers.join(" "))
    }

    async fn name(&mut self, from: &str, to: &str, rebuilt_s: Option<u32>) -> Result<String, String> {
        let redis = self.store.name(0, from, to, rebuilt_s).await.expect(REDIS_ANSWERS);
        Ok(match same(redis, self.shard.name(from, to, rebuilt_s))? {
            NameReply::Named => "named".to_owned(),
            NameReply::OtherGeneration(stored) => format!("other_generation {}", stored.as_deref().unwrap_or("-")),
        })
    }

    async fn tick(&mut self, words: &Words<'_>, generation: String) -> Result<String, String> {
        let ahead = i64::from(words.plain.contains(&"ahead"));
        let reached = words.plain.contains(&"reached");
        let ends = [Partition::COMMANDS, Partition::usage(0)];
        let ends = ends.map(|partition| {
            let own = reached && partition != Partition::COMMANDS;
            (partition, (!own).then(|| self.positions[&partition] + ahead))
        });
        let call = TimeCall {
            generation,
            tick_ms: (!reached).then_some(words.at_ms),
            late_after_ms: LATE_AFTER_MS,
            ends: ends.to_vec(),
        };
        let stored = self.store.move_time(0, &call).await.expect(REDIS_ANSWERS);
        Ok(time_text(&same(stored, self.shard.move_time(&call))?))
    }

    async fn sweep(&mut self, old: bool, ahead: bool, twist: &Twist) -> Result<(), String> {
        let fence = self.shard.fence.as_ref().expect("it is made");
        let meter = MeterTime { now_ms: fence.meter_time_ms, floor_ms: fence.floor_ms };
        let mut names: Vec<_> = self.shard.accounts.keys().cloned().collect();
        names.sort();
        let accounts = names.into_iter().map(|account| {
            let view = self.view(&account).expect("it is there");
            let steps = steps_until(self.catalogue, &view, meter.now_ms, meter);
            let version = view.version - u64::from(old);
            RollAccount { account, version, thresholds: thresholds(self.catalogue, &view.config), steps }
        });
        let accounts: Vec<_> = accounts.filter(|roll| !roll.steps.is_empty()).collect();
        if accounts.is_empty() {
            self.trail.push("nothing".into());
            return Ok(());
        }
        let call = RollCall {
            stamp: Arc::new(twist.stamp(&self.stamp)),
            others: Vec::new(),
            commands_first: twist.commands_first,
            meter_time_ms: Some(meter.now_ms + i64::from(ahead)),
            late_after_ms: LATE_AFTER_MS,
            credit_types: self.catalogue.credit_types.clone(),
            accounts,
        };
        self.send(&Call::Roll(Arc::new(call))).await.map(drop)
    }

    async fn forget(&mut self, early: bool, changed: bool, generation: String) -> Result<String, String> {
        let fence = self.shard.fence.as_ref().expect("it is made");
        let (floor_ms, tolerance_ms) = (fence.floor_ms, fence.restamp_tolerance_ms);
        let (_, accounts) = self.store.days(0, 0, 1000).await.expect(REDIS_ANSWERS);
        let accounts = accounts.into_iter().map(|(account, mut read)| {
            let days = read.iter().map(|(day, _)| *day);
            let gone = days.filter(|day| early || forgettable(*day, floor_ms, tolerance_ms)).collect();
            if let Some((day, layout)) = read.last().cloned().filter(|_| changed) {
                read.push((day + 1, layout));
            }
            ForgetDays { account, read, gone }
        });
        let call = ForgetCall { generation, accounts: accounts.collect() };
        let stored = self.store.forget(0, &call).await.expect(REDIS_ANSWERS);
        let gone = same(stored, self.shard.forget(&call))?;
        Ok(gone.map_or("other_generation".into(), |accounts| format!("forgotten {accounts}")))
    }

    async fn forget_usage(&mut self, keep: i64, generation: String) -> Result<String, String> {
        let day = local_day(NOON_MS, chrono_tz::UTC);
        let call = ForgetUsageCall {
            generation,
            keep_ms: keep * DAY_MS,
            days: vec![day],
            accounts: vec!["acme".into()],
            from: day.succ_opt(),
        };
        let stored = self.store.forget_usage(0, &call).await.expect(REDIS_ANSWERS);
        let gone = same(stored, self.shard.forget_usage(&call))?;
        Ok(gone.map_or("refused".into(), |days| format!("forgotten {days}")))
    }

    async fn take(&mut self, other: bool) -> Result<String, String> {
        let relay = if other { "r2" } else { "r1" };
        let published = if other { Vec::new() } else { self.published.clone() };
        let call = TakeCall { relay: relay.into(), lease_ms: 600_000, published, count: 2, durable: None };
        let entries = match self.store.take(0, &call).await.expect(REDIS_ANSWERS) {
            Taken::Held => return Ok("held".into()),
            Taken::Entries(entries) => entries,
            Taken::NotDurable(why) => panic!("nobody asked: {why}"),
        };
        let expected = self.shard.take(self.shard.outbox_taken + self.published.len() as u64, 2);
        let expected: Vec<_> = expected.into_iter().map(|(_, entry)| entry).collect();
        let (ids, entries): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        self.published = ids;
        let entries = same(entries, expected)?;
        let types: Vec<_> = entries.iter().map(|entry| entry.event_type.as_str()).collect();
        Ok(format!("taken {}", types.join(" ")).trim_end().to_owned())
    }

    async fn init(&mut self, words: &Words<'_>, generation: String) -> Result<String, String> {
        let own = self.init_call();
        let stored = self.shard.fence.as_ref().map_or(own.catalogue.clone(), |fence| fence.catalogue.clone());
        let catalogue = CatalogueId {
            version: words.number("version").map_or(own.catalogue.version, |version| version as _),
            hash: words.get("hash").map_or(own.catalogue.hash.clone(), str::to_owned),
        };
        let starts_ms = words.get("differs").map(time);
        let grown = words.plain.contains(&"compared").then_some(Grown { from: stored, starts_ms });
        let call = InitCall {
            generation,
            shards: words.number("shards").unwrap_or(1) as u32,
            catalogue,
            grown,
            first_start: words.plain.contains(&"first"),
            ..own
        };
        let stored = self.store.init(0, &call).await.expect(REDIS_ANSWERS);
        Ok(init_text(&same(stored, self.shard.init(&call))?))
    }

    async fn census(&mut self, names: &[&str]) -> Result<String, String> {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        let counted = self.store.census(&names, &self.catalogue.credit_types).await.expect(REDIS_ANSWERS);
        let open = |name: &Arc<str>| {
            let account = self.shard.accounts.get(name)?;
            let open = account.life != Life::Closed;
            let balance = |(name, counter): (&String, &Counter)| {
                let alarm = account.alarms.get(name).cloned().unwrap_or_else(Alarm::default);
                (name.clone(), CountedBalance::of(*counter, &alarm))
            };
            let balances = account.counters.iter().map(balance).collect();
            open.then(|| Counted { plan: account.config.plan.clone(), balances })
        };
        let counted = same(counted, names.iter().map(open).collect())?;
        let text = counted.iter().map(|counted| match counted {
            None => "none".into(),
            Some(counted) => {
                let remaining = counted.balances.get("email").and_then(|balance| balance.remaining);
                let remaining = remaining.map_or("unlimited".into(), |remaining| remaining.to_string());
                format!("{} {} {remaining}", counted.plan, counted.standing().name())
            }
        });
        Ok(text.collect::<Vec<String>>().join(", "))
    }

    /// What is stored under the names, and how many identities, if the days are as the ledger has them.
    async fn look(&mut self, names: &[&str]) -> String {
        let asked = names.iter().map(|name| {
            let days = self.shard.accounts.get(*name).map_or(String::new(), |account| {
                let days = account.days.iter().map(|(day, layout)| format!(" {day}:{layout}"));
                days.collect()
            });
            Asked { days, ..Asked::account(name) }
        });
        let looked = self.store.look(0, &asked.collect::<Vec<_>>()).await.expect(REDIS_ANSWERS);
        let text = looked.accounts.iter().map(|account| match account.fields.get("plan") {
            None => "none".into(),
            Some(plan) => {
                let remembered: u64 = account.remembered.values().sum();
                format!("{plan} {} commands {remembered} events", account.commands)
            }
        });
        text.collect::<Vec<String>>().join(", ")
    }
}

/// In days from noon.
fn days(time_ms: i64) -> String {
    let (days, rest) = ((time_ms - NOON_MS) / DAY_MS, (time_ms - NOON_MS) % DAY_MS);
    assert_eq!(rest, 0, "the tables tick by days");
    format!("{days:+}d")
}

/// A new answer stands here and in `TIMES`.
fn time_text(reply: &TimeReply) -> String {
    match reply {
        TimeReply::OtherGeneration => "other_generation".into(),
        TimeReply::Held(partition) => format!("held {partition}"),
        TimeReply::At { meter_time_ms, floor_ms } => format!("at {} {}", days(*meter_time_ms), days(*floor_ms)),
    }
}

pub const TIMES: [&str; 3] = ["other_generation", "held", "at"];

/// A new answer stands here and in `INITS`.
fn init_text(reply: &InitReply) -> String {
    match reply {
        InitReply::Ready => "ready".into(),
        InitReply::Emptied => "emptied".into(),
        InitReply::OtherGeneration(stored) => format!("other_generation {stored}"),
        InitReply::OtherShards(stored) => format!("other_shards {stored}"),
        InitReply::OtherSchema(stored) => format!("other_schema {stored}"),
        InitReply::OtherCatalogue(stored) => format!("other_catalogue {}", stored.version),
        InitReply::OlderCatalogue(stored, _) => format!("older_catalogue {}", stored.version),
        InitReply::PricedUpTo(time_ms) => format!("priced_up_to {}", days(*time_ms)),
    }
}

pub const INITS: [&str; 8] = [
    "ready",
    "emptied",
    "other_generation",
    "other_shards",
    "other_schema",
    "other_catalogue",
    "older_catalogue",
    "priced_up_to",
];
