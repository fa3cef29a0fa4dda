//! The pipeline against shards in memory, with everything that can go wrong between them, from a seed:
//! lost calls, lost answers, answers that come late, calls that arrive after they were given up, two workers on the
//! same partitions, rebalances, shards that fall back to an older state, chunks cut anywhere,
//! catalogues that are replaced, a Redis that takes seconds to say where a shard is.
//!
//! Whatever happens, in the end each event is charged once, each dead record has its dead letter, and the totals
//! add up to the records of the log.

mod alerts;
mod check;
mod in_order;
mod log;
#[path = "../it/support/schema.rs"]
mod schema;
mod world;

use std::collections::BTreeMap;

use self::world::World;

const SEEDS: u64 = 1_000;
const SHARDS: u32 = 3;
const STEPS: usize = 600;
/// Prices that new versions of the catalogue add.
const PRICES: usize = 3;
const NOW_MS: i64 = 1_773_144_000_000;

const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[actions.reveal_phone]
prices = [{ credit_type = "email", credits = 2 }]
charge_once = { by = "contact" }
[actions.enrich]
prices = [{ credit_type = "email", credits = 3 }]
voidable = true
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1.5 }]
[plans.basic]
interval = "monthly"
allowance = { email = 1_000_000 }
actions = ["reveal_email", "reveal_phone", "enrich"]
[plans.tiny]
interval = "monthly"
allowance = { email = 10 }
actions = ["reveal_email"]
[plans.capped]
interval = "monthly"
allowance = { email = 10 }
actions = ["reveal_email"]
overage = "cap"
[plans.rolling]
interval = "monthly"
allowance = { email = 10 }
carry_over_max = { email = 6 }
actions = ["reveal_email", "enrich"]
overage = { allow = { limit = 5 } }
"#;

#[test]
fn every_event_is_charged_once_whatever_happens() {
    let mut met = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check();
        for (what, count) in world.met {
            *met.entry(what).or_insert(0u64) += count;
        }
    }
    let expected = [
        "other_position",
        "done_before",
        "stale",
        "question",
        "unknown",
        "dead",
        "rewind",
        "old_answer",
        "let_go",
        "late_call",
        "rollback",
        "zombie",
        "recalled",
        "renewed",
        "other_catalogue",
        "paused",
    ];
    for what in expected {
        assert!(met.get(what).is_some_and(|count| *count >= 50), "{what} hardly occurs: {met:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let run = |seed| {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        format!("{:?} {:?}", world.met, world.dead_letters)
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
