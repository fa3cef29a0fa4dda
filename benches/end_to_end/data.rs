//! The data set, and what a meter must make of it.
//!
//! The table is kept in plain sums of its own: it knows neither cycles nor dedupe sets nor outcomes of the ledger.
//! The same number of events gives the same data set, but for its day.

use std::collections::VecDeque;
use std::fmt::Write as _;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, SecondsFormat, Utc};
use rand::distr::Distribution;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::Zipf;
use serde_json::json;

pub const ACCOUNTS: usize = 10_000;
/// The largest account does about a seventh of all, as `load --generate` has it.
const ACCOUNTS_EXPONENT: f64 = 1.1;
const USERS_PER_ACCOUNT: u32 = 50;
const CONTACTS_PER_ACCOUNT: u32 = 20_000;
const COMPANIES: u32 = 100_000;
const CHANNELS: [&str; 3] = ["web", "extension", "crm"];
/// One event in a hundred comes again, half of them soon and half of them late.
const REPEATS: f64 = 0.01;
const REPEAT_SOON: usize = 100;
const REPEAT_LATE: usize = 100_000;
/// Events that no plan is entitled to, over all accounts.
const NOT_ENTITLED: f64 = 0.005;
/// Every so many accounts one is on trial: out of credits soon, and denied from then on.
const TRIAL_EVERY: usize = 25;
const FOUND_NOTHING: f64 = 0.05;
/// Every so many events one is cut off in the middle.
const BROKEN_EVERY: u64 = 1_000_000;
/// Allowances of the trial plan, in thousandths.
const TRIAL: [u64; 3] = [10_000, 6_000, 10_000];
const SEED: u64 = 3;

/// What an action costs: its credit type (see [`CREDIT_TYPES`]) and thousandths.
struct Action {
    name: &'static str,
    credit_type: usize,
    cost: u64,
}

pub const CREDIT_TYPES: [&str; 3] = ["email", "phone", "enrichment"];
const ACTIONS: [Action; 3] = [
    Action { name: "reveal_email", credit_type: 0, cost: 1_000 },
    Action { name: "reveal_phone", credit_type: 1, cost: 1_500 },
    Action { name: "enrich_contact", credit_type: 2, cost: 2_000 },
];

/// What must come of the data set.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub charged: u64,
    pub free: u64,
    pub duplicate: u64,
    pub denied: u64,
    pub dead_lettered: u64,
    /// Thousandths charged, by account and credit type.
    pub used: Vec<[u64; 3]>,
    /// Of all values.
    pub bytes: u64,
}

/// An event as it is sent.
#[derive(Clone)]
pub struct Made {
    pub account: usize,
    pub value: String,
    fate: Fate,
}

/// How an event ends, the first time that it comes.
#[derive(Clone, Copy)]
enum Fate {
    Charged { credit_type: usize, cost: u64 },
    Free,
    NotEntitled,
}

pub struct DataSet {
    events: u64,
    sent: u64,
    rng: SmallRng,
    by_size: Zipf<f64>,
    /// Events that come again, in the order in which they do: soon, and late.
    again: [VecDeque<(usize, Made)>; 2],
    day: Day,
    pub table: Table,
}

/// Yesterday: a whole day that is neither late nor early, whatever the hour.
#[derive(Clone, Copy)]
pub struct Day {
    pub date: NaiveDate,
    start_ms: i64,
}

impl Day {
    pub fn yesterday() -> Day {
        let date = Utc::now().date_naive() - Days::new(1);
        Day { date, start_ms: date.and_time(NaiveTime::MIN).and_utc().timestamp_millis() }
    }

    fn time(self, into_day_ms: i64) -> String {
        let time = DateTime::from_timestamp_millis(self.start_ms + into_day_ms).expect("yesterday is a valid time");
        time.to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

pub fn account_name(index: usize) -> String {
    format!("team-{:05}", index + 1)
}

/// The commands that make the accounts: three credit types, two add-ons, one command each.
pub fn commands(day: Day) -> impl Iterator<Item = (String, String)> {
    (0..ACCOUNTS).map(move |index| {
        let account = account_name(index);
        let (plan, addons) = match is_trial(index) {
            true => ("trial", json!([])),
            false => {
                let addon = |credit_type: &str| json!({ "credit_type": credit_type, "amount": 500 });
                ("business", json!([addon("phone"), addon("enrichment")]))
            }
        };
        let event = json!({
            "specversion": "1.0", "id": format!("put-{account}"), "source": "billing",
            "type": "credits.account.put.v1", "subject": account, "time": day.time(0),
            "data": { "plan": plan, "anchor": day.date.to_string(), "addons": addons },
        });
        (account, event.to_string())
    })
}

fn is_trial(account: usize) -> bool {
    account % TRIAL_EVERY == TRIAL_EVERY - 1
}

impl DataSet {
    pub fn new(events: u64, day: Day) -> DataSet {
        DataSet {
            events,
            sent: 0,
            rng: SmallRng::seed_from_u64(SEED),
            by_size: Zipf::new(ACCOUNTS as f64, ACCOUNTS_EXPONENT).expect("the parameters are positive"),
            again: [VecDeque::new(), VecDeque::new()],
            day,
            table: Table { used: vec![[0; 3]; ACCOUNTS], ..Table::default() },
        }
    }

    fn make(&mut self) -> Made {
        let account = self.by_size.sample(&mut self.rng) as usize - 1;
        let action = match self.rng.random_range(0..100) {
            0..60 => &ACTIONS[0],
            60..75 => &ACTIONS[1],
            _ => &ACTIONS[2],
        };
        let entitled = !self.rng.random_bool(NOT_ENTITLED);
        let found_nothing = entitled && action.credit_type == 0 && self.rng.random_bool(FOUND_NOTHING);
        let (high, low): (u64, u64) = (self.rng.random(), self.rng.random());
        let user = self.rng.random_range(1..=USERS_PER_ACCOUNT);
        let channel = CHANNELS[self.rng.random_range(0..CHANNELS.len())];
        let company = self.rng.random_range(0..COMPANIES);
        let into_day_ms = (self.sent as i64).saturating_mul(86_400_000) / self.events as i64;
        let time = self.day.time(into_day_ms);
        let name = if entitled { action.name } else { "export_list" };
        let mut value = String::with_capacity(320);
        write!(
            value,
            "{{\"specversion\":\"1.0\",\"id\":\"{:08x}-{:04x}-{:04x}-{low:016x}\",\"source\":\"reveal-service\",\
             \"type\":\"credits.usage.v1\",\"subject\":\"{}\",\"time\":\"{time}\",\"data\":{{\"action\":\"{name}\",\
             \"user\":\"u{user:02}\",\"channel\":\"{channel}\",\"company\":\"c{company:05}\"",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            account_name(account),
        )
        .expect("a string takes all text");
        if action.credit_type == 1 {
            let contact = self.rng.random_range(0..CONTACTS_PER_ACCOUNT);
            write!(value, ",\"contact\":\"contact-{contact:05}\"").expect("a string takes all text");
        }
        if found_nothing {
            value.push_str(",\"outcome\":\"not_found\"");
        }
        value.push_str("}}");
        let fate = match (entitled, found_nothing) {
            (false, _) => Fate::NotEntitled,
            (true, true) => Fate::Free,
            (true, false) => Fate::Charged { credit_type: action.credit_type, cost: action.cost },
        };
        Made { account, value, fate }
    }

    /// What the event changes, the first time that it comes.
    fn expect(&mut self, made: &Made) {
        let table = &mut self.table;
        match made.fate {
            Fate::NotEntitled => table.denied += 1,
            Fate::Free => table.free += 1,
            Fate::Charged { credit_type, cost } => {
                let used = &mut table.used[made.account][credit_type];
                // A key's events are in one partition, so that a team runs out at the same event in every run.
                if is_trial(made.account) && *used + cost > TRIAL[credit_type] {
                    table.denied += 1;
                } else {
                    *used += cost;
                    table.charged += 1;
                }
            }
        }
    }

    fn due_again(&mut self) -> Option<Made> {
        let sent = self.sent as usize;
        let queue = self.again.iter_mut().find(|queue| queue.front().is_some_and(|(due, _)| *due <= sent))?;
        queue.pop_front().map(|(_, made)| made)
    }
}

impl Iterator for DataSet {
    type Item = Made;

    fn next(&mut self) -> Option<Made> {
        if self.sent == self.events {
            return None;
        }
        self.sent += 1;
        let made = if let Some(made) = self.due_again() {
            self.table.duplicate += 1;
            made
        } else {
            let mut made = self.make();
            if self.sent.is_multiple_of(BROKEN_EVERY) {
                made.value.truncate(made.value.len() / 2);
                self.table.dead_lettered += 1;
            } else {
                self.expect(&made);
                if self.rng.random_bool(REPEATS) {
                    let late = usize::from(self.rng.random_bool(0.5));
                    let delay = [REPEAT_SOON, REPEAT_LATE][late];
                    self.again[late].push_back((self.sent as usize + delay, made.clone()));
                }
            }
            made
        };
        self.table.bytes += made.value.len() as u64;
        Some(made)
    }
}
