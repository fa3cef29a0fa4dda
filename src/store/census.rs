//! How accounts stand, for the metrics. Reads only, a few fields of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::{Key, Keys};
use super::scripts::Script;
use super::stored::{ALERTS, CHARGED, EXPIRED, GRANTED, number, parse_amount};
use super::words::{Fields, Input};
use super::{RedisStore, StoreError};
use crate::ledger::account::{Counter, Life};
use crate::ledger::alerts::{Alarm, Level};
use crate::ledger::catalogue::Amount;
use crate::ledger::credits::Credits;
use crate::metrics::accounts::Standing;

/// An open account, as a census sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub plan: String,
    /// Of the credit types that it knows.
    pub balances: BTreeMap<String, CountedBalance>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CountedBalance {
    pub standing: Standing,
    /// `None` where the type is unlimited.
    pub remaining: Option<Credits>,
}

impl Counted {
    pub fn standing(&self) -> Standing {
        self.balances.values().map(|balance| balance.standing).max().unwrap_or(Standing::Ok)
    }
}

impl CountedBalance {
    pub fn of(counter: Counter, alarm: &Alarm) -> CountedBalance {
        let standing = if alarm.fired.contains(&Level::Exhausted) {
            Standing::Exhausted
        } else if alarm.fired.is_empty() {
            Standing::Ok
        } else {
            Standing::Low
        };
        CountedBalance { standing, remaining: counter.remaining() }
    }
}

/// Fields of an account itself, then of each credit type.
const OWN_FIELDS: [&str; 2] = ["plan", "life"];
const TYPE_FIELDS: [&str; 4] = [GRANTED, CHARGED, EXPIRED, ALERTS];

/// Some accounts of one shard.
pub struct CensusScript<'a> {
    pub accounts: &'a [Arc<str>],
    /// Those that are looked at.
    pub credit_types: &'a [String],
}

impl Script for CensusScript<'_> {
    const NAME: &'static str = "census";
    const SOURCE: &'static str = include_str!("lua/census.lua");
    /// In the order of the question; `None`: there is no such account, or it is closed.
    type Reply = Vec<Option<Counted>>;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        for account in self.accounts {
            input.key(keys, Key::Account(account));
        }
        for field in OWN_FIELDS {
            input.text(field);
        }
        for credit_type in self.credit_types {
            for field in TYPE_FIELDS {
                input.text(format!("{credit_type}.{field}"));
            }
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Self::Reply, StoreError> {
        let accounts = self.accounts.iter().map(|_| {
            let (plan, life) = (fields.text()?, fields.text()?);
            let mut balances = BTreeMap::new();
            for credit_type in self.credit_types {
                let [granted, charged, expired, alerts] =
                    [fields.text()?, fields.text()?, fields.text()?, fields.text()?];
                if let Some(balance) = balance(&granted, &charged, &expired, &alerts)? {
                    balances.insert(credit_type.clone(), balance);
                }
            }
            let open = !plan.is_empty() && life != Life::Closed.name();
            Ok(open.then_some(Counted { plan, balances }))
        });
        accounts.collect()
    }
}

fn balance(granted: &str, charged: &str, expired: &str, alerts: &str) -> Result<Option<CountedBalance>, StoreError> {
    let thousandths =
        |text: &str| if text.is_empty() { Ok(Credits::ZERO) } else { number(text).map(Credits::from_thousandths) };
    if [granted, charged, expired, alerts].iter().all(|text| text.is_empty()) {
        return Ok(None);
    }
    let broken = |what: &str, text: &str| StoreError::Broken(format!("{what} is `{text}`"));
    let granted = match granted {
        "" => Amount::Limited(Credits::ZERO),
        text => parse_amount(text).ok_or_else(|| broken("granted", text))?,
    };
    let counter = Counter { granted, charged: thousandths(charged)?, expired: thousandths(expired)? };
    let alarm = match alerts {
        "" => Alarm::default(),
        text => Alarm::parse(text).ok_or_else(|| broken("alerts", text))?,
    };
    Ok(Some(CountedBalance::of(counter, &alarm)))
}

impl RedisStore {
    /// Some accounts of one shard.
    pub async fn census(
        &self,
        accounts: &[Arc<str>],
        credit_types: &[String],
    ) -> Result<Vec<Option<Counted>>, StoreError> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        self.run(&CensusScript { accounts, credit_types }).await
    }

    /// About so many of a shard's accounts, from a cursor on, and where to go on: 0 at the end. One may come twice.
    pub async fn names(&self, shard: u32, cursor: u64, count: usize) -> Result<(u64, Vec<Arc<str>>), StoreError> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(self.keys().spell(Key::Due(shard))).arg(cursor).arg("COUNT").arg(count);
        let (next, pairs): (u64, Vec<(String, String)>) = self.read(&scan).await?;
        Ok((next, pairs.into_iter().map(|(account, _)| account.into()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_is_read_from_its_fields() {
        let read = |granted, charged, expired, alerts| {
            let balance = balance(granted, charged, expired, alerts).unwrap();
            balance.map(|balance| (balance.standing, balance.remaining.map(|credits| credits.thousandths())))
        };
        assert_eq!(read("", "", "", ""), None, "it does not know the type");
        assert_eq!(read("10000", "", "", ""), Some((Standing::Ok, Some(10_000))));
        assert_eq!(read("10000", "8500", "500", "0 p80"), Some((Standing::Low, Some(1_000))));
        assert_eq!(read("10000", "12000", "", "3 p80,x"), Some((Standing::Exhausted, Some(0))));
        assert_eq!(read("10000", "2000", "", "4 "), Some((Standing::Ok, Some(8_000))), "restored");
        assert_eq!(read("unlimited", "2000", "", ""), Some((Standing::Ok, None)));
        assert!(balance("much", "", "", "").is_err() && balance("1", "", "", "x").is_err());
    }

    #[test]
    fn the_worst_balance_decides_how_an_account_stands() {
        let counted = |standings: &[Standing]| {
            let balance = |standing: &Standing| CountedBalance { standing: *standing, remaining: None };
            let balances = standings.iter().enumerate().map(|(index, own)| (index.to_string(), balance(own))).collect();
            Counted { plan: "basic".into(), balances }.standing()
        };
        assert_eq!(counted(&[]), Standing::Ok);
        assert_eq!(counted(&[Standing::Low, Standing::Exhausted, Standing::Ok]), Standing::Exhausted);
        assert_eq!(counted(&[Standing::Ok, Standing::Low]), Standing::Low);
    }
}
