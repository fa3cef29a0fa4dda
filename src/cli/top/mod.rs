//! A live view of one or several meters, or one look at them.

/// Accounts in alarm, from the alerts.
mod alarms;
/// What it looks like.
mod draw;
/// Who uses most.
mod hottest;
/// The live view on a terminal.
mod live;
/// From what meters say to what is shown.
mod model;
/// What a meter shows.
mod page;
/// Asks a meter.
mod scrape;
/// Reads alerts and usage in the background.
mod watch;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::output::{self, Output};
use super::{Ended, values};
use crate::app;
use crate::config::Config;
use crate::ledger::credits::Credits;

use model::{Meter, Meters, Scrape};
use scrape::Endpoint;
use watch::{Watched, Watches};

/// Accounts of a view; a terminal shows as many as fit.
const ACCOUNTS_MAX: usize = 50;
/// A meter that is there answers within this time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one look waits for usage and alerts to be read to their ends.
const READ_MAX: Duration = Duration::from_secs(30);
/// What `--once` prints has the size of a plain terminal.
const TEXT_SIZE: (u16, u16) = (80, 24);

#[derive(Debug, Args)]
pub struct TopArgs {
    /// A meter's http.listen; repeatable [default: http.listen of the configuration]
    #[arg(long, value_name = "URL")]
    pub url: Vec<Endpoint>,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = every)]
    pub every: Duration,
    /// One look and no terminal; so does --json, and any output that is no terminal
    #[arg(long)]
    pub once: bool,
}

fn every(text: &str) -> Result<Duration, String> {
    let every = values::duration(text)?;
    let fits = Duration::from_millis(100) <= every && every <= Duration::from_secs(3600);
    if fits { Ok(every) } else { Err("it must be 100ms to 1h".to_owned()) }
}

pub async fn run(args: TopArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let stop = CancellationToken::new();
    tokio::spawn(app::stop_on_signal(stop.clone()));
    let once = args.once || output.json || !std::io::stdout().is_terminal();
    let top = Top::new(args, config);
    if !once {
        live::run(top, stop).await?;
        return Ok(Ended::Well);
    }
    tokio::select! {
        view = top.once() => {
            let view = view?;
            output.answer(&view, || draw::text(&view, TEXT_SIZE.0, TEXT_SIZE.1))?;
            Ok(Ended::Well)
        }
        // It has said nothing.
        () = stop.cancelled() => Ok(Ended::Badly),
    }
}

/// All that is shown.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    pub at: String,
    #[serde(skip)]
    pub mode: String,
    #[serde(flatten)]
    pub meters: Meters,
    /// Usage records that producers append.
    pub arriving_per_second: Option<f64>,
    pub hottest: Vec<Hot>,
    /// Why nothing is known of usage.
    pub usage_failure: Option<String>,
    pub alarms: AlarmsView,
    /// Why nothing is known of alarms.
    pub alerts_failure: Option<String>,
}

/// An account, by the newest records of the usage topic, of which only some are read where many come.
#[derive(Clone, Debug, Serialize)]
pub struct Hot {
    pub account: String,
    /// Of all events of late.
    pub share: f64,
    pub events_per_second: Option<f64>,
}

/// Balances in alarm, by the alerts that the topic holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AlarmsView {
    pub exhausted: usize,
    pub low: usize,
    /// There were too many, and some are not counted.
    pub overflowed: bool,
    /// The topic was read to its end.
    pub complete: bool,
    /// Some of them: exhausted ones first, then the newest.
    pub newest: Vec<AlarmView>,
}

#[derive(Clone, Debug, Serialize)]
pub struct AlarmView {
    pub account: String,
    pub credit_type: String,
    /// `exhausted` or `low`.
    pub state: &'static str,
    pub levels: Vec<String>,
    /// As the last alert about it said; `null`: unlimited.
    pub remaining: Option<Credits>,
    pub granted: Option<Credits>,
    pub since: String,
}

/// Looks at meters, and at what is read in the background.
struct Top {
    endpoints: Vec<Endpoint>,
    every: Duration,
    meters: Vec<Meter>,
    started: Instant,
    watches: Watches,
}

impl Top {
    fn new(args: TopArgs, config: &Config) -> Top {
        let mut endpoints = args.url;
        if endpoints.is_empty() {
            endpoints.push(Endpoint::here(&config.http.listen));
        }
        let asked = |endpoint: &Endpoint| Meter {
            url: endpoint.address.clone(),
            before: None,
            now: Err("not asked so far".to_owned()),
        };
        Top {
            meters: endpoints.iter().map(asked).collect(),
            endpoints,
            every: args.every,
            started: Instant::now(),
            watches: Watches::start(config),
        }
    }

    /// Two looks, so that there are rates, and everything read that the topics hold.
    async fn once(mut self) -> anyhow::Result<View> {
        self.look().await;
        let read = async {
            while !self.watches.both_read() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (_, _) = tokio::join!(tokio::time::sleep(self.every), tokio::time::timeout(READ_MAX, read));
        self.look().await;
        self.view()
    }

    /// Asks all meters at once.
    async fn look(&mut self) {
        let mut asking = JoinSet::new();
        for (index, endpoint) in self.endpoints.iter().cloned().enumerate() {
            let at_seconds = self.started.elapsed().as_secs_f64();
            asking.spawn(async move { (index, endpoint.ask(at_seconds, ANSWER_MAX).await) });
        }
        while let Some(answered) = asking.join_next().await {
            let (index, answer) = answered.expect("asking does not panic");
            let meter = &mut self.meters[index];
            let last: Option<Scrape> = std::mem::replace(&mut meter.now, answer).ok();
            // One that is away for a while goes on with rates from before.
            meter.before = last.or(meter.before.take());
        }
    }

    fn view(&self) -> anyhow::Result<View> {
        let now_ms = Utc::now().timestamp_millis();
        let Watched { arriving_per_second, shares, usage_failure, alarms, alerts_failure } =
            self.watches.seen(ACCOUNTS_MAX)?;
        let hot = |(account, share): (Arc<str>, f64)| {
            let events_per_second = arriving_per_second.map(|rate| rate * share);
            Hot { account: account.to_string(), share, events_per_second }
        };
        Ok(View {
            at: draw::at(now_ms),
            mode: String::new(),
            meters: model::view(&self.meters, now_ms),
            arriving_per_second,
            hottest: shares.into_iter().map(hot).collect(),
            usage_failure,
            alarms,
            alerts_failure,
        })
    }
}

impl AlarmsView {
    fn of(alarms: &alarms::Alarms, most: usize) -> AlarmsView {
        let (exhausted, low) = alarms.counts();
        let shown = |(account, credit_type, alarm): (&str, &str, &alarms::Alarm)| AlarmView {
            account: account.to_owned(),
            credit_type: credit_type.to_owned(),
            state: alarm.edge.name(),
            levels: alarm.levels.iter().cloned().collect(),
            remaining: alarm.remaining,
            granted: alarm.granted,
            since: output::time(alarm.at_ms),
        };
        let newest = alarms.newest(most).into_iter().map(shown).collect();
        AlarmsView { exhausted, low, overflowed: alarms.overflowed, complete: alarms.complete, newest }
    }
}
