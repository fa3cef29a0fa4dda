//! Measures what the meter stores in Redis, with its own scripts, in a real Redis that nobody else uses:
//!
//!     REDIS_URL=redis://127.0.0.1:6379/ cargo run --release --example redis_bytes [-- --json]
//!
//! Bytes are differences of Redis' `used_memory`. The keys are deleted at the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use credit_meter::config::Redis;
use credit_meter::ledger::account::{AccountConfig, Addon};
use credit_meter::ledger::call::{Partition, Range, Reply, StaleAccount, Stamp};
use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::command::{ACCOUNT_PUT, Command, CommandBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::day::SET_MEMBERS_MAX;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::shard::InitCall;
use credit_meter::ledger::usage::{FoldUsageCall, JOURNAL_BYTES_MAX, local_day};
use credit_meter::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known};
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::Recorded;
use credit_meter::store::RedisStore;

const ACCOUNTS: usize = 5_000;
/// Events a day and account: a quiet account, a usual one, one at the edge of an intset, one beyond it.
const EVENTS: [usize; 4] = [5, 25, 400, 700];
/// Members of an account who did all three actions on a day: a small team, a usual one, one beyond a packed hash.
const MEMBERS: [usize; 3] = [5, 50, 200];
const ACTIONS: [&str; 3] = ["reveal_email", "reveal_phone", "enrich_contact"];
const NOON_MS: i64 = 1_773_144_000_000;
const BATCH: usize = 2_000;
/// Contacts that an account was charged for in its cycle, and the accounts that are measured with so many.
const CONTACTS: [(usize, usize); 4] = [(5, 2_000), (25, 1_500), (400, 150), (5_000, 10)];

const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[credit_types.phone]
[credit_types.enrichment]
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1 }]
charge_once = { by = "contact" }
[actions.reveal_phone]
prices = [{ credit_type = "phone", credits = 1 }]
[actions.enrich_contact]
prices = [{ credit_type = "enrichment", credits = 1 }]
[plans.basic]
interval = "monthly"
allowance = { email = 100_000, phone = 1000, enrichment = 500 }
actions = ["reveal_email", "reveal_phone", "enrich_contact"]
"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::vars().find(|(name, _)| name == "REDIS_URL").map(|(_, url)| url);
    let url = url.context("REDIS_URL is not set: `docker/services up` starts a redis and prints it")?;
    let json = std::env::args().any(|argument| argument == "--json");
    let mut meter = Meter::open(&url).await?;
    let empty = meter.used().await?;
    meter.put_accounts(ACCOUNTS).await?;
    let per_account = (meter.used().await? - empty) / ACCOUNTS as f64;
    let mut rows = Vec::new();
    for (day, events) in EVENTS.into_iter().enumerate() {
        let accounts = (60_000 / events).min(ACCOUNTS);
        let before = meter.used().await?;
        meter.apply_events(day as i64, 0..accounts, events, Of::Members(1)).await?;
        let bytes = meter.used().await? - before;
        rows.push((events, bytes / (accounts * events) as f64));
    }
    meter.clean_up().await?;
    let mut usage = Vec::new();
    for members in MEMBERS {
        let accounts = 10_000 / members;
        let bytes = |usage| alone(&url, accounts, 3 * members, Of::Members(members), usage);
        let none = bytes(Usage::None).await?;
        let more = |bytes: f64| (bytes - none) / (accounts * members) as f64;
        usage.push((members, more(bytes(Usage::Past).await?), more(bytes(Usage::Today).await?)));
    }
    let mut contacts = Vec::new();
    for (number, accounts) in CONTACTS {
        // The same events, with a contact and without one.
        let bytes = |of| alone(&url, accounts, number, of, Usage::None);
        let more = bytes(Of::Contacts).await? - bytes(Of::Members(1)).await?;
        contacts.push((number, more / (accounts * number) as f64));
    }
    if json {
        let rows: Vec<_> = rows.iter().map(|(events, bytes)| serde_json::json!([events, bytes])).collect();
        let past: Vec<_> = usage.iter().map(|(members, past, _)| serde_json::json!([members, past])).collect();
        let today: Vec<_> = usage.iter().map(|(members, _, today)| serde_json::json!([members, today])).collect();
        let contacts: Vec<_> = contacts.iter().map(|(number, bytes)| serde_json::json!([number, bytes])).collect();
        println!(
            "{}",
            serde_json::json!({
                "redis_bytes_per_account": per_account,
                "events_a_day_and_bytes_per_event": rows,
                "members_and_bytes_per_day_and_member": past,
                "members_and_bytes_per_day_and_member_while_it_lasts": today,
                "contacts_charged_once_and_bytes_per_contact": contacts,
            })
        );
        return Ok(());
    }
    println!("| What | bytes |\n|---|---|");
    println!("| an account: three credit types, two add-ons, one command | {per_account:.0} |");
    for (events, bytes) in rows {
        println!("| a remembered event, of {events} a day in its account | {bytes:.1} |");
    }
    for (members, past, today) in usage {
        let what = format!("a day of usage of a member with three actions, of {members} in its account");
        println!("| {what} | {past:.0}, while it lasts {today:.0} |");
    }
    for (number, bytes) in contacts {
        println!("| a contact that is charged once, of {number} in its account and cycle | {bytes:.1} |");
    }
    Ok(())
}

/// Whether usage by day is kept, and if so, whether the day has passed.
#[derive(Clone, Copy, PartialEq)]
enum Usage {
    None,
    Today,
    Past,
}

/// The bytes that events take of accounts that have no others.
async fn alone(url: &str, accounts: usize, events: usize, of: Of, usage: Usage) -> anyhow::Result<f64> {
    let mut meter = Meter::open(url).await?;
    meter.put_accounts(accounts).await?;
    Arc::make_mut(&mut meter.stamp).breakdown = usage != Usage::None;
    let before = meter.used().await?;
    meter.apply_events(0, 0..accounts, events, of).await?;
    if usage == Usage::Past {
        let day = local_day(NOON_MS, chrono_tz::Europe::Paris);
        let call =
            FoldUsageCall { generation: "g".into(), days: vec![day], accounts: (0..accounts).map(name).collect() };
        meter.store.fold_usage(0, &call).await?.context("the state is the example's own")?;
    }
    let bytes = meter.used().await? - before;
    meter.clean_up().await?;
    Ok(bytes)
}

/// What events are of.
#[derive(Clone, Copy)]
enum Of {
    /// So many members, who do all actions in turn.
    Members(usize),
    /// A contact each.
    Contacts,
}

struct Meter {
    store: RedisStore,
    prefix: String,
    stamp: Arc<Stamp>,
    catalogue: Catalogue,
    accounts: Accounts,
    position: i64,
}

impl Meter {
    async fn open(url: &str) -> anyhow::Result<Meter> {
        let prefix = format!("redis-bytes-{}", std::process::id());
        let timeout = Duration::from_secs(60);
        let redis = Redis { url: url.into(), prefix: prefix.clone(), shards: 1, timeout, ..Redis::default() };
        let store = RedisStore::new(&redis)?;
        let catalogue = Catalogue::parse(CATALOGUE)?;
        let init = InitCall {
            generation: "g".into(),
            shards: 1,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: Vec::new(),
            first_start: true,
        };
        store.init(0, &init).await?;
        let stamp = Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "credits.usage".into(),
            restamp_tolerance_ms: 600_000,
            outbox_max: usize::MAX,
            set_members_max: SET_MEMBERS_MAX,
            journal_bytes_max: JOURNAL_BYTES_MAX,
            breakdown: false,
        };
        Ok(Meter { store, prefix, stamp: Arc::new(stamp), catalogue, accounts: Accounts::default(), position: 0 })
    }

    async fn put_accounts(&mut self, accounts: usize) -> anyhow::Result<()> {
        let addon = |credit_type: &str| Addon { credit_type: credit_type.into(), amount: Credits::whole(500) };
        for index in 0..accounts {
            let command = Command {
                account: name(index),
                id: uuid::Uuid::now_v7().to_string(),
                identity: Identity::of("cli", &index.to_string()),
                time_ms: NOON_MS,
                command_type: ACCOUNT_PUT,
                body: Ok(CommandBody::Put(Box::new(AccountConfig {
                    plan: "basic".into(),
                    anchor: "2026-01-31".parse()?,
                    interval: None,
                    timezone: chrono_tz::Europe::Paris,
                    addons: vec![addon("email"), addon("phone")],
                    thresholds: None,
                    overage: None,
                    member_limits: Default::default(),
                }))),
            };
            let offset = index as i64;
            let record = record(Partition::COMMANDS, offset, Body::Command(Box::new(command)));
            self.send(Partition::COMMANDS, offset, vec![record]).await?;
        }
        // What the commands left for the relay is not what an account costs.
        self.trim_outbox().await
    }

    async fn apply_events(
        &mut self,
        day: i64,
        accounts: std::ops::Range<usize>,
        events: usize,
        of: Of,
    ) -> anyhow::Result<()> {
        let members = if let Of::Members(members) = of { members } else { 1 };
        let time_ms = NOON_MS + day * 86_400_000;
        let partition = Partition::usage(0);
        let all = (0..events).flat_map(|event| accounts.clone().map(move |account| (event, account)));
        let mut records = Vec::new();
        let mut offset = self.position;
        for (event, account) in all {
            let id = format!("{day}-{account}-{event}");
            let number = format!("contact-{event}");
            let event = UsageEvent {
                account: name(account),
                source: "reveal-service".into(),
                identity: Identity::of("reveal-service", &id),
                id: id.into(),
                time_ms,
                dated_ms: time_ms,
                action: ACTIONS[event / members % 3 * usize::from(members > 1)].into(),
                quantity: 1,
                outcome: None,
                user: Some(format!("member-{:03}", event % members).into()),
                fields: Box::default(),
                once: matches!(of, Of::Contacts).then(|| Identity::of("reveal_email", &number)),
                voids: None,
            };
            records.push(record(partition, offset, Body::Usage(Arc::new(event))));
            offset += 1;
            if records.len() == BATCH {
                self.send(partition, self.position, std::mem::take(&mut records)).await?;
                self.position = offset;
            }
        }
        if !records.is_empty() {
            self.send(partition, self.position, records).await?;
        }
        self.position = offset;
        Ok(())
    }

    async fn send(&mut self, partition: Partition, from: i64, records: Vec<Record>) -> anyhow::Result<()> {
        let to = records.last().map_or(from, |last| last.offset + 1);
        let ranges = vec![Range { partition, from, to, repeats: 0, last: None }];
        let batch = Batch { records, ranges, commands_end: None };
        for _ in 0..3 {
            let call = batch.call(&Known {
                stamp: &self.stamp,
                catalogue: &self.catalogue,
                accounts: &self.accounts,
                dead: &DeadNotes::new(),
                recorded: &Recorded::default(),
                commands_first: None,
                others: Vec::new(),
                late_after_ms: 0,
            });
            let stale = match call {
                Call::Apply(call) => match self.store.apply(0, &call).await? {
                    Reply::Applied(_) => return Ok(()),
                    Reply::Stale(stale) => stale,
                    other => bail!("unexpected: {other:?}"),
                },
                Call::Roll(call) => match self.store.roll(0, &call).await? {
                    Reply::Stale(stale) => stale,
                    other => bail!("unexpected: {other:?}"),
                },
                Call::Command(call) => match self.store.command(0, &call).await? {
                    Reply::Applied(_) => return Ok(()),
                    Reply::Stale(stale) => stale,
                    other => bail!("unexpected: {other:?}"),
                },
            };
            for StaleAccount { account, view } in stale {
                self.accounts.insert(account, view.context("the account was put")?);
            }
        }
        bail!("the accounts are always stale")
    }

    async fn used(&self) -> anyhow::Result<f64> {
        let info: String = self.store.read(redis::cmd("INFO").arg("memory")).await?;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(line.context("redis tells its memory")?.trim().parse()?)
    }

    async fn trim_outbox(&self) -> anyhow::Result<()> {
        let key = self.store.keys().spell(credit_meter::store::keys::Key::Outbox(0));
        Ok(self.store.read(redis::cmd("DEL").arg(key)).await?)
    }

    async fn clean_up(&self) -> anyhow::Result<()> {
        let keys: Vec<String> = self.store.read(redis::cmd("KEYS").arg(format!("{}*", self.prefix))).await?;
        for chunk in keys.chunks(1_000) {
            self.store.read::<()>(redis::cmd("DEL").arg(chunk)).await?;
        }
        Ok(())
    }
}

fn name(index: usize) -> Arc<str> {
    format!("team-{index:05}").into()
}

fn record(partition: Partition, offset: i64, body: Body) -> Record {
    Record { partition, offset, append_ms: NOON_MS, bytes: 100, fingerprint: offset as u64, body }
}
