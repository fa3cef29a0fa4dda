//! Accounts over HTTP: read from Redis, over connections of their own.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::NaiveDate;
use clap::ValueEnum;
use serde::Serialize;
use tokio::sync::{OnceCell, watch};

use crate::config::Config;
use crate::http::accounts::{Accounts, Question, Refused};
use crate::ledger::catalogue::Catalogue;
use crate::report::usage::{By, Days, distinct};
use crate::report::{balance, state, unknown, usage};
use crate::store::{RedisStore, StoreError};

/// Days of usage that one answer tells of: a year.
const DAYS_MAX: i64 = 366;

pub struct FromRedis {
    config: Config,
    catalogues: watch::Receiver<Arc<Catalogue>>,
    store: OnceCell<RedisStore>,
}

impl FromRedis {
    pub fn new(config: Config, catalogues: watch::Receiver<Arc<Catalogue>>) -> FromRedis {
        FromRedis { config, catalogues, store: OnceCell::new() }
    }

    /// With the number of shards that the state was made with, as soon as there is one.
    async fn store(&self) -> Result<&RedisStore, Refused> {
        let opened = self.store.get_or_try_init(|| state::open(&self.config)).await;
        opened.map_err(|error| Refused::Unavailable(format!("{error:#}")))
    }

    async fn balance(&self, account: &str) -> Result<String, Refused> {
        let found = balance::read(self.store().await?, account).await?;
        let (state, positions) = found.ok_or_else(|| Refused::UnknownAccount(unknown(account)))?;
        Ok(document(&balance::Shown::of(account, &state, &positions)))
    }

    async fn usage(&self, account: &str, parameters: &HashMap<String, String>) -> Result<String, Refused> {
        let asked = Asked::of(parameters).map_err(Refused::Invalid)?;
        let store = self.store().await?;
        let state = store.account(account).await?.ok_or_else(|| Refused::UnknownAccount(unknown(account)))?;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let days = Days::of((asked.from, asked.to), DAYS_MAX, &state, now_ms).map_err(Refused::Invalid)?;
        let catalogue = self.catalogues.borrow().clone();
        let forecast_at = asked.forecast.then_some(now_ms);
        let added_up = (&*catalogue, self.config.usage.breakdown);
        let shown = usage::shown(store, added_up, (account, &state), (&days, &asked.by), forecast_at, || {}).await?;
        Ok(document(&shown))
    }
}

impl Accounts for FromRedis {
    fn answer(&self, question: Question) -> Pin<Box<dyn Future<Output = Result<String, Refused>> + Send + '_>> {
        Box::pin(async move {
            match question {
                Question::Balance { account } => self.balance(&account).await,
                Question::Usage { account, parameters } => self.usage(&account, &parameters).await,
            }
        })
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Unavailable(format!("redis: {error}"))
    }
}

/// Amounts are numbers that JSON takes.
fn document(shown: &impl Serialize) -> String {
    serde_json::to_string(shown).expect("texts and numbers")
}

/// The parameters of a question for usage: those of the command line.
#[derive(Debug, PartialEq)]
struct Asked {
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
    by: Vec<By>,
    forecast: bool,
}

impl Asked {
    fn of(parameters: &HashMap<String, String>) -> Result<Asked, String> {
        let mut asked = Asked { from: None, to: None, by: vec![By::Action], forecast: false };
        for (name, value) in parameters {
            let date = || value.parse().map_err(|_| format!("{name}={value}: it must be a date like 2026-01-31"));
            match name.as_str() {
                "from" => asked.from = Some(date()?),
                "to" => asked.to = Some(date()?),
                "by" => {
                    let by = value.split(',').map(|one| By::from_str(one, false));
                    let by = by.collect::<Result<Vec<_>, _>>();
                    asked.by = distinct(&by.map_err(|_| format!("by={value}: it must be of day, user, action"))?);
                }
                "forecast" => {
                    asked.forecast =
                        value.parse().map_err(|_| format!("forecast={value}: it must be true or false"))?;
                }
                other => return Err(format!("{other}: there are from, to, by and forecast")),
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(parameters: &[(&str, &str)]) -> Result<Asked, String> {
        Asked::of(&parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn parameters_are_those_of_the_command_line() {
        assert_eq!(asked(&[]), Ok(Asked { from: None, to: None, by: vec![By::Action], forecast: false }));
        let date = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            asked(&[("from", "2026-01-31"), ("to", "2026-02-01"), ("by", "day,user,day"), ("forecast", "true")]),
            Ok(Asked { from: date("2026-01-31"), to: date("2026-02-01"), by: vec![By::Day, By::User], forecast: true })
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |name: &str, value: &str, told: &str| {
            let wrong = asked(&[(name, value)]).expect_err(value);
            assert!(wrong.contains(told), "{wrong}");
        };
        check("from", "yesterday", "from=yesterday: it must be a date");
        check("to", "2026-02-30", "to=2026-02-30: it must be a date");
        check("by", "team", "by=team: it must be of day, user, action");
        check("forecast", "yes", "forecast=yes: it must be true or false");
        check("form", "2026-01-31", "form: there are from, to, by and forecast");
    }
}
