//! Usage by day, member and action: read, and forgotten when its time is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::NaiveDate;
use serde::Deserialize;

use super::keys::{Key, Keys};
use super::scripts::{Script, unexpected};
use super::stored::number;
use super::words::{Fields, Input};
use super::{RedisStore, StoreError};
use crate::ledger::credits::Credits;
use crate::ledger::usage::{DayUsage, FoldUsageCall, ForgetUsageCall, Used, day_number};

/// The field that names the actions, in the order in which members' lists have them.
const ACTIONS: &[u8] = b"\t";
/// Numbers of an action in a member's list.
const NUMBERS: usize = 4;

pub struct ForgetUsageScript<'a> {
    pub shard: u32,
    pub call: &'a ForgetUsageCall,
}

impl Script for ForgetUsageScript<'_> {
    const NAME: &'static str = "forget_usage";
    const SOURCE: &'static str = include_str!("lua/forget_usage.lua");
    type Reply = Option<u64>;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        days_of(&mut input, keys, &call.accounts, &call.days);
        let last = call.days.iter().max().map_or(0, |day| day_start_ms(*day));
        input.text(&call.generation);
        input.number(call.keep_ms);
        input.number(last);
        input.text(call.from.map(|from| day_number(from).to_string()).unwrap_or_default());
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Option<u64>, StoreError> {
        match fields.text()?.as_str() {
            "refused" => Ok(None),
            "forgotten" => Ok(Some(number(&fields.text()?)?)),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

fn day_start_ms(day: NaiveDate) -> i64 {
    day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()
}

/// Adds journals to what they belong to.
pub struct FoldUsageScript<'a> {
    pub shard: u32,
    pub call: &'a FoldUsageCall,
}

impl Script for FoldUsageScript<'_> {
    const NAME: &'static str = "fold_usage";
    const SOURCE: &'static str =
        concat!(include_str!("lua/account.lua"), include_str!("lua/usage.lua"), include_str!("lua/fold_usage.lua"));
    type Reply = Option<u64>;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        days_of(&mut input, keys, &self.call.accounts, &self.call.days);
        input.text(&self.call.generation);
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Option<u64>, StoreError> {
        match fields.text()?.as_str() {
            "refused" => Ok(None),
            "folded" => Ok(Some(number(&fields.text()?)?)),
            other => Err(unexpected(Self::NAME, other)),
        }
    }
}

fn days_of(input: &mut Input, keys: &Keys, accounts: &[Arc<str>], days: &[NaiveDate]) {
    for (account, day) in accounts.iter().flat_map(|account| days.iter().map(move |day| (account, *day))) {
        input.key(keys, Key::Usage(account, day));
        input.key(keys, Key::Journal(account, day));
    }
}

pub struct DayUsageScript<'a> {
    pub account: &'a str,
    pub day: NaiveDate,
}

impl Script for DayUsageScript<'_> {
    const NAME: &'static str = "day_usage";
    const SOURCE: &'static str = include_str!("lua/day_usage.lua");
    type Reply = DayUsage;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Usage(self.account, self.day));
        input.key(keys, Key::Journal(self.account, self.day));
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<DayUsage, StoreError> {
        let journal = fields.bytes()?;
        let mut hash = Vec::new();
        while !fields.is_empty() {
            hash.push((fields.bytes()?, fields.bytes()?));
        }
        parse_usage(hash, &journal)
            .map_err(|reason| StoreError::Broken(format!("usage of {} on {}: {reason}", self.account, self.day)))
    }
}

impl RedisStore {
    pub async fn forget_usage(&self, shard: u32, call: &ForgetUsageCall) -> Result<Option<u64>, StoreError> {
        self.run(&ForgetUsageScript { shard, call }).await
    }

    /// Adds journals to the usage that they belong to; gives how many. `None`: the shard belongs to another state.
    pub async fn fold_usage(&self, shard: u32, call: &FoldUsageCall) -> Result<Option<u64>, StoreError> {
        self.run(&FoldUsageScript { shard, call }).await
    }

    /// An account's usage of one of its days.
    pub async fn day_usage(&self, account: &str, day: NaiveDate) -> Result<DayUsage, StoreError> {
        self.run(&DayUsageScript { account, day }).await
    }
}

/// A part of a journal, as `lua/usage.lua` describes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Told(Vec<String>, Vec<String>, Vec<usize>, Vec<i64>, Vec<i64>, Vec<i64>),
    Otherwise(Vec<usize>, Vec<i64>, Vec<i64>, Vec<i64>, Vec<i64>),
}

/// What is stored of a member and an action: events charged, thousandths, events denied, free.
type Sums = BTreeMap<(String, String), [i64; NUMBERS]>;

fn add(sums: &mut Sums, row: &(String, String), numbers: [i64; NUMBERS]) {
    let sum = sums.entry(row.clone()).or_default();
    sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
}

/// Reads a day's hash and its journal. A void may have taken from the one what only the other has.
pub fn parse_usage(fields: Vec<(Vec<u8>, Vec<u8>)>, journal: &[u8]) -> Result<DayUsage, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string());
    let actions = fields.iter().find(|(field, _)| field == ACTIONS).map(|(_, actions)| text(actions)).transpose()?;
    let actions: Vec<String> = actions.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let mut sums = Sums::new();
    for (field, value) in fields.iter().filter(|(field, _)| field != ACTIONS) {
        let user = text(field)?;
        let numbers: Vec<i64> = rmp_serde::from_slice(value).map_err(|error| format!("member {user}: {error}"))?;
        let (numbers, rest) = numbers.as_chunks::<NUMBERS>();
        if numbers.len() > actions.len() || !rest.is_empty() {
            return Err(format!("member {user} has actions that are not named"));
        }
        for (action, numbers) in actions.iter().zip(numbers) {
            add(&mut sums, &(user.clone(), action.clone()), *numbers);
        }
    }
    add_journal(&mut sums, journal).ok_or("its journal is broken")?;
    let mut usage = DayUsage::new();
    for ((user, action), [charged, cost, denied, free]) in sums {
        let count =
            |number: i64| u64::try_from(number).map_err(|_| format!("member {user} did {action} {number} times"));
        let credits = Credits::from_thousandths(cost);
        let used = Used { charged: count(charged)?, credits, denied: count(denied)?, free: count(free)? };
        // An action that another member did.
        if used != Used::default() {
            usage.insert((user.into(), action.into()), used);
        }
    }
    Ok(usage)
}

/// Adds what a journal has; `None`: it is broken.
fn add_journal(sums: &mut Sums, mut journal: &[u8]) -> Option<()> {
    let mut rows: Vec<(String, String)> = Vec::new();
    while !journal.is_empty() {
        match rmp_serde::from_read(&mut journal).ok()? {
            Part::Told(actions, users, places, charged, cost, free) => {
                let action = |place: usize| actions.get(place.checked_sub(1)?).cloned();
                rows = users.into_iter().zip(places.into_iter().map_while(action)).collect();
                for (index, row) in rows.iter().enumerate() {
                    add(sums, row, [*charged.get(index)?, *cost.get(index)?, 0, *free.get(index)?]);
                }
            }
            Part::Otherwise(of, charged, cost, denied, free) => {
                for (index, row) in of.into_iter().enumerate() {
                    let numbers = [*charged.get(index)?, *cost.get(index)?, *denied.get(index)?, *free.get(index)?];
                    add(sums, rows.get(row.checked_sub(1)?)?, numbers);
                }
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_days_hash_is_read() {
        let list = |numbers: &[u64]| rmp_serde::to_vec(numbers).unwrap();
        let fields = vec![
            (b"u-1".to_vec(), list(&[0, 0, 0, 0, 2, 3_000, 1, 70_000])),
            (ACTIONS.to_vec(), b"reveal_email reveal_phone".to_vec()),
            (Vec::new(), list(&[1, 5_000_000_000_000, 0, 0])),
        ];
        // The rows of two calls; of one of the first's events turned out to be a duplicate, one to be denied.
        let mut journal = Vec::new();
        let told = |users: &[&str], charged: &[i64], cost: &[i64]| {
            rmp_serde::to_vec(&(&["reveal_phone"], users, vec![1; users.len()], charged, cost, vec![1; users.len()]))
                .unwrap()
        };
        journal.extend(told(&["u-2", "u-1"], &[2, 1], &[6_000, 3_000]));
        journal.extend(rmp_serde::to_vec(&([1], [-2], [-6_000], [1], [0])).unwrap());
        journal.extend(told(&["u-2"], &[1], &[3_000]));
        let usage = parse_usage(fields, &journal).unwrap();
        let of = |charged: u64, thousandths: i64, denied: u64, free: u64| Used {
            charged,
            credits: Credits::from_thousandths(thousandths),
            denied,
            free,
        };
        let key = |user: &str, action: &str| (Arc::from(user), Arc::from(action));
        let expected = [
            (key("", "reveal_email"), of(1, 5_000_000_000_000, 0, 0)),
            (key("u-1", "reveal_phone"), of(3, 6_000, 1, 70_001)),
            (key("u-2", "reveal_phone"), of(1, 3_000, 1, 2)),
        ];
        assert_eq!(usage, DayUsage::from(expected));
        for broken in [list(&[1, 1, 0, 0]), b"x".to_vec()] {
            assert!(parse_usage(vec![(b"u-1".to_vec(), broken)], b"").is_err());
        }
        let (whole, past) = (told(&["u"], &[1], &[1]), rmp_serde::to_vec(&([9], [1], [1], [1], [1])).unwrap());
        let negative = rmp_serde::to_vec(&([1], [-2], [0], [0], [0])).unwrap();
        for broken in
            [&whole[..whole.len() - 1], &past, &[&whole[..], &past].concat(), &[&whole[..], &negative].concat()]
        {
            assert!(parse_usage(Vec::new(), broken).is_err());
        }
    }
}
