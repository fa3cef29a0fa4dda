//! A row for each answer of each script, and for each pain that the meter is to spare its users.
//!
//! A row is a short story, told to the scripts in a real Redis and to the ledger at once: both answer the same and end
//! in the same state, and both are what the row says. `lua_vs_ledger.rs` finds where the two differ; these tables say
//! which of them would be right.

#[path = "tables/apply.rs"]
mod apply;
#[path = "tables/command.rs"]
mod command;
#[path = "tables/facts.rs"]
mod facts;
#[path = "tables/other_scripts.rs"]
mod other_scripts;
#[path = "tables/other_steps.rs"]
mod other_steps;
#[path = "tables/pains.rs"]
mod pains;
#[path = "tables/roll.rs"]
mod roll;
#[path = "tables/story.rs"]
mod story;
#[path = "tables/world.rs"]
mod world;

use credit_meter::ledger::call::RefusalReason;
use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::outcome::{DeadReason, Denial, Outcome};
use credit_meter::ledger::steps::Step;

use world::World;

/// 10 March 2026, 12:00 UTC.
const NOON_MS: i64 = 1_773_144_000_000;
const LATE_AFTER_MS: i64 = 2 * 86_400_000;

/// The story, the answer to its last step, and how things stand then. `a > b`: the first answer had the worker send again.
type Row = (&'static str, &'static str, &'static str);

const CATALOGUE: &str = r#"
version = 3
[credit_types.email]
[credit_types.phone]
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1 }]
voidable = true
[actions.reveal_phone]
prices = [{ credit_type = "phone", credits = 8 }]
free_outcomes = ["not_found"]
charge_once = { by = "contact" }
voidable = true
[actions.enrich]
prices = [
  { credit_type = "email", credits = 0.5 },
  { credit_type = "email", credits = 2, when = { source = "premium" } },
]
free_outcomes = ["not_found"]
[actions.verify]
prices = [{ credit_type = "email", credits = 0 }]
[actions.export]
prices = [{ credit_type = "email", credits = 4 }]
[plans.small]
interval = "monthly"
allowance = { email = 10, phone = 16 }
thresholds = ["80%"]
actions = ["reveal_email", "reveal_phone", "enrich", "verify"]
[plans.large]
interval = "monthly"
allowance = { email = 100, phone = 40 }
actions = ["reveal_email", "reveal_phone", "enrich", "verify", "export"]
[plans.saver]
interval = "monthly"
allowance = { email = 10 }
carry_over_max = { email = 3 }
thresholds = ["remaining 12"]
actions = ["reveal_email", "enrich"]
[plans.yearly]
interval = "annual"
allowance = { email = 300 }
actions = ["reveal_email"]
[plans.unlimited]
interval = "monthly"
allowance = { email = "unlimited", phone = 16 }
actions = ["reveal_email", "reveal_phone", "enrich", "verify"]
"#;

/// How much of what a row's last step was answered must be what it says.
#[derive(Clone, Copy)]
enum Told {
    Whole,
    End,
}

async fn check(table: &[Row], how_much: Told) {
    let failed = failures(table, how_much).await;
    assert!(failed.is_empty(), "{} rows do not hold:\n\n{}\n", failed.len(), failed.join("\n\n"));
}

/// The rows that do not hold, each with the reason.
async fn failures(table: &[Row], how_much: Told) -> Vec<String> {
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    let mut failed = Vec::new();
    for row in table {
        println!("{row:?}"); // the last one, if the rest panics
        let mut world = World::new(&catalogue).await;
        if let Err(why) = told(&mut world, row, how_much).await {
            failed.push(format!("{}\n  {why}", row.0));
        }
        world.end().await;
    }
    failed
}

async fn told(world: &mut World<'_>, (story, answer, state): &Row, how_much: Told) -> Result<(), String> {
    for step in story.split(';') {
        world.step(step.trim()).await.map_err(|why| format!("`{}`: {why}", step.trim()))?;
        world.compare().await.map_err(|why| format!("after `{}`: {why}", step.trim()))?;
    }
    let answers = world.trail.join(" > ");
    let wrong = facts::wrong(&world.shard, state);
    let as_told = match how_much {
        Told::Whole => answers == *answer,
        Told::End => answers == *answer || answers.ends_with(&format!(" > {answer}")),
    };
    if as_told && wrong.is_empty() {
        return Ok(());
    }
    Err(format!("should be answered `{answer}` and was `{answers}`; should leave `{state}`, but {}", wrong.join(", ")))
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_answered_as_the_table_says() {
    check(apply::OUTCOMES, Told::End).await;
    check(apply::DEAD, Told::End).await;
    check(apply::REFUSALS, Told::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_as_the_table_says() {
    check(command::OUTCOMES, Told::End).await;
    check(command::REFUSED, Told::End).await;
    check(command::REFUSALS, Told::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_is_taken_as_the_table_says() {
    check(roll::STEPS, Told::End).await;
    check(roll::REFUSALS, Told::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_scripts_answer_as_the_table_says() {
    check(other_scripts::INIT, Told::End).await;
    check(other_scripts::TIME, Told::End).await;
    check(other_scripts::FORGET, Told::End).await;
    check(other_scripts::FORGET_USAGE, Told::End).await;
    check(other_scripts::OUTBOX, Told::End).await;
    check(other_scripts::READING, Told::End).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pain_comes_back() {
    let mut back = Vec::new();
    for (pain, table) in pains::PAINS {
        println!("{pain}");
        let failed = failures(table, Told::End).await;
        back.extend(failed.iter().map(|failed| format!("{}:\n{failed}", pain.to_uppercase())));
    }
    assert!(back.is_empty(), "these are back:\n\n{}\n", back.join("\n\n"));
}

/// Reasons that decoding finds before any script is asked: `bad_input.rs` has a record for each.
const DECODED: &[DeadReason] = &[
    DeadReason::EmptyValue,
    DeadReason::TooLarge,
    DeadReason::InvalidUtf8,
    DeadReason::InvalidJson,
    DeadReason::NestingTooDeep,
    DeadReason::NotACloudEvent,
    DeadReason::UnsupportedSpecversion,
    DeadReason::UnknownType,
    DeadReason::MissingField,
    DeadReason::WrongType,
    DeadReason::InvalidField,
    DeadReason::InvalidTime,
    DeadReason::QuantityZero,
    DeadReason::QuantityNegative,
    DeadReason::QuantityNotInteger,
    DeadReason::QuantityTooLarge,
    DeadReason::TooEarly,
];
/// Calendars tile time (`steps.rs`), and no catalogue loses a plan (`grows.rs`): so each account has its next cycle.
const NEVER: &[DeadReason] = &[DeadReason::CycleNotOpen];

#[test]
fn every_answer_has_its_row() {
    let tables = |tables: &[&[Row]]| {
        let answers: Vec<&str> = tables.iter().flat_map(|table| table.iter()).map(|(_, answer, _)| *answer).collect();
        move |words: &str| {
            let met = |answer: &&str| {
                answer.split([',', '>']).any(|part| format!("{} ", part.trim()).contains(&format!("{words} ")))
            };
            answers.iter().any(met)
        }
    };
    let missing = |script: &str, has: &dyn Fn(&str) -> bool, words: Vec<String>| -> Vec<String> {
        words.into_iter().filter(|words| !has(words)).map(|words| format!("{script}: {words}")).collect()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let with = |word: &str, names: Vec<&str>| names.iter().map(|name| format!("{word} {name}")).collect::<Vec<_>>();

    let apply = tables(&[apply::OUTCOMES, apply::DEAD, apply::REFUSALS]);
    let of_commands = [Outcome::Refused, Outcome::Applied];
    let outcomes = Outcome::ALL.iter().filter(|outcome| !of_commands.contains(outcome)).map(|outcome| outcome.name());
    let dead = DeadReason::ALL.iter().filter(|reason| !DECODED.contains(reason) && !NEVER.contains(reason));
    let mut lacking = missing("apply", &apply, names(&outcomes.collect::<Vec<_>>()));
    lacking.extend(missing("apply", &apply, with("denied", Denial::ALL.iter().map(|denial| denial.name()).collect())));
    lacking.extend(missing("apply", &apply, with("dead", dead.map(|reason| reason.name()).collect())));
    lacking.extend(missing("apply", &apply, names(&world::REFUSALS)));

    let command = tables(&[command::OUTCOMES, command::REFUSED, command::REFUSALS]);
    let reasons = RefusalReason::ALL.iter().map(|reason| reason.name()).collect();
    lacking.extend(missing("command", &command, names(&["applied", "duplicate"])));
    lacking.extend(missing("command", &command, with("refused", reasons)));
    // Who it is is part of the version.
    let never = ["unknown"];
    let refusals: Vec<_> = world::REFUSALS.into_iter().filter(|kind| !never.contains(kind)).collect();
    lacking.extend(missing("command", &command, names(&refusals)));

    let roll = tables(&[roll::STEPS, roll::REFUSALS]);
    lacking.extend(missing("roll", &roll, with("took", Step::NAMES.to_vec())));
    // It moves no position.
    let never = ["done_before", "other_position", "account_lost", "dead"];
    let refusals: Vec<_> = world::REFUSALS.into_iter().filter(|kind| !never.contains(kind)).collect();
    lacking.extend(missing("roll", &roll, names(&refusals)));

    lacking.extend(missing("init", &tables(&[other_scripts::INIT]), names(&other_steps::INITS)));
    lacking.extend(missing("time", &tables(&[other_scripts::TIME]), names(&other_steps::TIMES)));
    lacking.extend(missing("forget", &tables(&[other_scripts::FORGET]), names(&["forgotten", "other_generation"])));
    lacking.extend(missing("forget_usage", &tables(&[other_scripts::FORGET_USAGE]), names(&["forgotten", "refused"])));
    lacking.extend(missing("take", &tables(&[other_scripts::OUTBOX]), names(&["taken", "held"])));
    lacking.extend(missing(
        "others",
        &tables(&[other_scripts::READING]),
        names(&["root", "named", "other_generation", "wiped"]),
    ));
    assert!(lacking.is_empty(), "no row is answered with:\n{}", lacking.join("\n"));
}
