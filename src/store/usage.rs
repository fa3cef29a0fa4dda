//! Usage by day, member and action: read, and forgotten when its time is over.

use std::sync::Arc;

use chrono::NaiveDate;

use super::keys::{Key, Keys};
use super::scripts::{Script, unexpected};
use super::stored::number;
use super::words::{Fields, Input};
use super::{RedisStore, StoreError};
use crate::ledger::credits::Credits;
use crate::ledger::usage::{DayUsage, ForgetUsageCall, Used, day_number};

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
        for account in &call.accounts {
            call.days.iter().for_each(|day| input.key(keys, Key::Usage(account, *day)));
        }
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

impl RedisStore {
    pub async fn forget_usage(&self, shard: u32, call: &ForgetUsageCall) -> Result<Option<u64>, StoreError> {
        self.run(&ForgetUsageScript { shard, call }).await
    }

    /// An account's usage of one of its days.
    pub async fn day_usage(&self, account: &str, day: NaiveDate) -> Result<DayUsage, StoreError> {
        let key = self.keys().spell(Key::Usage(account, day));
        parse_usage(self.read(redis::cmd("HGETALL").arg(&key)).await?)
            .map_err(|reason| StoreError::Broken(format!("`{key}`: {reason}")))
    }
}

/// Reads a day's hash.
pub fn parse_usage(fields: Vec<(Vec<u8>, Vec<u8>)>) -> Result<DayUsage, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string());
    let actions = fields.iter().find(|(field, _)| field == ACTIONS).map(|(_, actions)| text(actions)).transpose()?;
    let actions: Vec<Arc<str>> = actions.unwrap_or_default().split_whitespace().map(Arc::from).collect();
    let mut usage = DayUsage::new();
    for (field, value) in fields.iter().filter(|(field, _)| field != ACTIONS) {
        let user: Arc<str> = text(field)?.into();
        let numbers: Vec<u64> = rmp_serde::from_slice(value).map_err(|error| format!("member {user}: {error}"))?;
        if numbers.len() > NUMBERS * actions.len() {
            return Err(format!("member {user} has actions that are not named"));
        }
        for (action, numbers) in actions.iter().zip(numbers.chunks_exact(NUMBERS)) {
            let credits = i64::try_from(numbers[1]).map_err(|error| error.to_string())?;
            let used = Used {
                charged: numbers[0],
                credits: Credits::from_thousandths(credits),
                denied: numbers[2],
                free: numbers[3],
            };
            // An action that another member did.
            if used != Used::default() {
                usage.insert((user.clone(), action.clone()), used);
            }
        }
    }
    Ok(usage)
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
        let usage = parse_usage(fields).unwrap();
        let of = |charged: u64, thousandths: i64, denied: u64, free: u64| Used {
            charged,
            credits: Credits::from_thousandths(thousandths),
            denied,
            free,
        };
        let key = |user: &str, action: &str| (Arc::from(user), Arc::from(action));
        let expected = [
            (key("", "reveal_email"), of(1, 5_000_000_000_000, 0, 0)),
            (key("u-1", "reveal_phone"), of(2, 3_000, 1, 70_000)),
        ];
        assert_eq!(usage, DayUsage::from(expected));
        for broken in [list(&[1, 1, 0, 0]), b"x".to_vec()] {
            assert!(parse_usage(vec![(b"u-1".to_vec(), broken)]).is_err());
        }
    }
}
