//! What a row expects of the state, in words: `email 10/1/0/9/0, cycle 1`.
//!
//! | Fact | |
//! |---|---|
//! | `email 10/1/0/9/0` | granted/used/expired/remaining/overage of acme; `globex.email …` of another |
//! | `closed0.email 10/1/9/0/0`, `closed0.told 2` | granted/used/expired/moved on/overage of a closed cycle, its last statement's number |
//! | `cycle 1`, `plan small`, `next large`, `life open`, `version 3`, `lots 1`, `marks 2` | of acme |
//! | `ends 2026-04-01T00:00:00Z …` | of acme's closed cycles and its open one |
//! | `usage.ada 2/3/1/0` | events charged/credits/events denied/free of a member, all days and actions |
//! | `left 9/8.5` | what remained before each event that was denied or capped |
//! | `total.denied 1`, `position.usage:0 2`, `notes 1`, `remembered 2`, `accounts 1`, `said.low 1` | of the shard |

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::catalogue::Amount;
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::outcome::Outcome;
use credit_meter::ledger::roll::time_text;
use credit_meter::ledger::shard::Shard;
use credit_meter::ledger::usage::Used;

/// The facts that do not hold, each with what does.
pub fn wrong(shard: &Shard, expected: &str) -> Vec<String> {
    let facts = expected.split(", ").filter(|fact| !fact.is_empty());
    let wrong = facts.filter_map(|fact| {
        let (name, value) = fact.split_once(' ').expect("a name and a value");
        let actual = fact_of(shard, name);
        (actual != value).then(|| format!("{name} {actual}"))
    });
    wrong.collect()
}

fn fact_of(shard: &Shard, name: &str) -> String {
    let (of, name) = name.split_once('.').unwrap_or(("acme", name));
    let account = shard.accounts.get("acme");
    let of_account = |value: &dyn Fn(&credit_meter::ledger::shard::Account) -> String| {
        account.map_or("without account".into(), value)
    };
    match (of, name) {
        ("total", outcome) => {
            let outcome = Outcome::from_name(outcome).expect("an outcome");
            let totals = &shard.fence.as_ref().expect("it is made").totals;
            totals.iter().filter(|((_, own), _)| *own == outcome).map(|(_, count)| count).sum::<u64>().to_string()
        }
        ("position", partition) => {
            let partitions = [Partition::COMMANDS, Partition::usage(0), Partition::usage(1)];
            let partition = partitions.into_iter().find(|each| each.to_string() == partition).expect("a partition");
            shard.position(partition).to_string()
        }
        ("said", name) => {
            let said = |event_type: &str| event_type.starts_with(&format!("credits.{name}."));
            shard.outbox.iter().filter(|entry| said(&entry.event_type)).count().to_string()
        }
        (_, "left") => {
            let denied = shard.outbox.iter().filter(|entry| entry.event_type == "credits.denied.v1");
            let left = denied.flat_map(|entry| {
                let data: serde_json::Value = serde_json::from_str(&entry.data).expect("JSON");
                let events = data["events"].as_array().expect("events").clone();
                events.into_iter().map(|event| event["remaining"].to_string())
            });
            left.collect::<Vec<_>>().join("/")
        }
        ("usage", member) => {
            let rows = shard.usage.values().flatten().filter(|((user, _), _)| **user == *member);
            let mut sum = Used::default();
            rows.for_each(|(_, used)| sum.add(*used));
            format!("{}/{}/{}/{}", sum.charged, sum.credits, sum.denied, sum.free)
        }
        (_, "notes") => shard.notes.len().to_string(),
        (_, "accounts") => shard.accounts.len().to_string(),
        (_, "remembered") => {
            let sets = shard.seen.values().flat_map(|day| day.sets.values());
            sets.map(|set| set.len()).sum::<usize>().to_string()
        }
        (_, "marks") => {
            let sets = shard.marks.values().flat_map(|cycle| cycle.sets.values());
            sets.map(|set| set.len()).sum::<usize>().to_string()
        }
        (_, "cycle") => of_account(&|account| account.cycle.number.to_string()),
        (_, "ends") => of_account(&|account| {
            let ends = account.closed.values().map(|closed| closed.end_ms).chain([account.cycle.end_ms]);
            ends.map(time_text).collect::<Vec<_>>().join(" ")
        }),
        (_, "plan") => of_account(&|account| account.config.plan.clone()),
        (_, "next") => of_account(&|account| account.next.as_ref().map_or("none".into(), |next| next.plan.clone())),
        (_, "life") => of_account(&|account| account.life.name().to_owned()),
        (_, "version") => of_account(&|account| account.version.to_string()),
        (_, "lots") => of_account(&|account| account.lots.len().to_string()),
        (_, "closed") => of_account(&|account| account.closed.len().to_string()),
        (closed, credit_type) if closed.starts_with("closed") => of_account(&|account| {
            let number: i32 = closed["closed".len()..].parse().expect("a number");
            let Some(closed) = account.closed.get(&number) else { return "forgotten".into() };
            if credit_type == "told" {
                return closed.told.to_string();
            }
            let counter = closed.counters.get(credit_type).copied().unwrap_or_default();
            let (overage, expired, moved) = (counter.overage(), counter.expired, counter.moved);
            let granted = match counter.granted.total() {
                Amount::Limited(granted) => granted.to_string(),
                Amount::Unlimited => "unlimited".into(),
            };
            format!("{granted}/{}/{expired}/{moved}/{overage}", counter.charged - overage)
        }),
        (account, credit_type) => {
            let Some(account) = shard.accounts.get(account) else { return "without account".into() };
            let counter = account.counters.get(credit_type).copied().unwrap_or_default();
            let balance = counter.balance();
            let text = |credits: Option<Credits>| credits.map_or("unlimited".into(), |credits| credits.to_string());
            let (granted, remaining) = (text(balance.granted), text(balance.remaining));
            format!("{granted}/{}/{}/{remaining}/{}", balance.used, balance.expired, balance.overage)
        }
    }
}
