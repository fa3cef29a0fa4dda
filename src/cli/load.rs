//! Events from a file, from stdin or made up, into Kafka: as fast as it takes them, and counted by its
//! acknowledgements.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use chrono::{Datelike, NaiveDate, Utc};
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;

use super::account::AccountData;
use super::generate::{Generated, Usage, account_name};
use super::history::History;
use super::output::Output;
use super::request::{CLOUD_EVENTS_JSON, CloudEvent};
use super::source::{Line, Source, actions, lines, now_ms, read_ahead};
use super::{Ended, values};
use crate::config::{Config, read_catalogue};
use crate::ingest::client::Cluster;
use crate::ingest::decode::{self, Bears};
use crate::ingest::producer::{Acknowledgement, Delivered, Outgoing, OutgoingHeader, ProduceError, Producer};
use crate::ledger::command::ACCOUNT_PUT;
use crate::note;

/// The `source` of made-up events and commands.
const SOURCE: &str = "load";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("events").required(true).args(["file", "generate"])))]
pub struct LoadArgs {
    /// A file with one CloudEvent in JSON on each line; `-` reads stdin
    pub file: Option<PathBuf>,
    /// Make up so many usage events instead
    #[arg(long, value_name = "N")]
    pub generate: Option<u64>,
    /// Spread them over so many accounts, team-00001 the largest [default: 1000]
    #[arg(long, value_name = "A", conflicts_with = "file", value_parser = clap::value_parser!(u32).range(1..))]
    pub accounts: Option<u32>,
    /// Makes the same events again: the same ids, so they count once [default: from the clock]
    #[arg(long, value_name = "S", conflicts_with = "file")]
    pub seed: Option<u64>,
    /// Create the accounts first, on this plan, and make up only what it includes
    #[arg(long, value_name = "PLAN", conflicts_with = "file", value_parser = values::name)]
    pub put_accounts: Option<String>,
    /// Events per second [default: as many as Kafka takes]
    #[arg(long, value_name = "EVENTS_PER_S", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Send commands and usage of the past: each record bears its event's time, and time passes to the latest; for
    /// topics with CreateTime and a meter with events.age_from = "create"
    #[arg(long, conflicts_with_all = ["generate", "topic"])]
    pub history: bool,
    /// Go on after a line that cannot be sent; it is an error if none can
    #[arg(long)]
    pub skip_bad: bool,
    /// Where to send a file's events; those that belong to the other topic are refused
    #[arg(long, conflicts_with = "generate", default_value = "usage")]
    pub topic: TopicName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopicName {
    Usage,
    Commands,
}

impl TopicName {
    /// An event in the other topic would end as a dead letter, or never be seen.
    fn takes(self, value: &[u8]) -> Result<(), String> {
        match (self, decode::bears(value)) {
            (TopicName::Usage, Some((Bears::Command, _))) => {
                Err("it is a command: --topic commands sends a file of them".to_owned())
            }
            (TopicName::Commands, Some((Bears::Usage, _))) => {
                Err("it is no command: a file of usage goes without --topic commands".to_owned())
            }
            _ => Ok(()),
        }
    }
}

pub async fn run(args: LoadArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let topics = &config.kafka.topics;
    let topic = match args.topic {
        TopicName::Usage => &topics.usage,
        TopicName::Commands => &topics.commands,
    };
    let partitions = Cluster::new(&config.kafka)?.partitions(topic).await?;
    let history = if args.history { Some(History::open(config).await?) } else { None };
    let mut loader = Loader::new(config, history)?;
    loader.only = args.file.is_some().then_some(args.topic);
    let source = open(&args, config)?;
    if let (Some(plan), Some(usage)) = (&args.put_accounts, source.usage()) {
        let accounts = put_accounts(&loader, &topics.commands, plan, usage).await?;
        note!("kafka acknowledged the commands that create {accounts} accounts on plan {plan}");
    }
    let total = source.usage().map(|usage| usage.events);
    let lines = read_ahead(source, args.rate);
    let stopped = loader.load(lines, topic, args.skip_bad, progress_bar(total)).await;
    let report = loader.report();
    output.answer(&report, || report.text())?;
    if let Some(failure) = &loader.first_failure {
        note!("first failure: {failure}");
    }
    stopped?;
    if report.sent == 0 && report.skipped > 0 {
        bail!("nothing was sent: every line was skipped ({}), for the reasons above", report.skipped);
    }
    loader.end_history(partitions).await?;
    Ok(if report.failed == 0 { Ended::Well } else { Ended::Badly })
}

fn open(args: &LoadArgs, config: &Config) -> anyhow::Result<Source> {
    if let Some(events) = args.generate {
        let seed = args.seed.unwrap_or_else(|| now_ms().unsigned_abs());
        if args.seed.is_none() {
            note!("seed {seed}");
        }
        let usage = Usage { events, accounts: args.accounts.unwrap_or(1000), seed };
        return Ok(Source::Made(usage, actions(&read_catalogue(config)?, args.put_accounts.as_deref())?));
    }
    let file = args.file.as_ref().expect("clap asks for one of the two");
    if file.as_os_str() == "-" {
        return Ok(lines(std::io::stdin()));
    }
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(lines(opened))
}

/// Creates the accounts of made-up usage. Their order with the events does not matter: an event waits for the
/// commands that were in Kafka before it.
async fn put_accounts(loader: &Loader, topic: &str, plan: &str, usage: Usage) -> anyhow::Result<u32> {
    let mut acknowledgements = VecDeque::new();
    for number in 1..=usage.accounts {
        let account = account_name(number);
        let id = format!("{:016x}-put-{account}", usage.seed);
        let data = AccountData {
            plan: plan.to_owned(),
            anchor: first_of_this_month(),
            interval: None,
            timezone: None,
            addons: Vec::new(),
            thresholds: None,
            overage: None,
            member_limits: Vec::new(),
        };
        let value = serde_json::to_vec(&CloudEvent::now(SOURCE, ACCOUNT_PUT, &id, &account, data))?;
        let headers: [OutgoingHeader; 1] = [("content-type", Some(CLOUD_EVENTS_JSON))];
        let record = Outgoing {
            topic,
            key: Some(account.as_bytes()),
            value: Some(&value),
            headers: &headers,
            ..Outgoing::default()
        };
        acknowledgements.push_back(loader.producer.enqueue(record).await?);
    }
    for acknowledgement in acknowledgements {
        acknowledgement.await.context("an account was not created")?;
    }
    Ok(usage.accounts)
}

fn first_of_this_month() -> NaiveDate {
    let today = Utc::now().date_naive();
    today.with_day(1).expect("every month has a first day")
}

/// What came of a load.
#[derive(Debug, Serialize)]
struct Report {
    sent: u64,
    acknowledged: u64,
    failed: u64,
    skipped: u64,
    seconds: f64,
    events_per_second: u64,
}

impl Report {
    fn text(&self) -> String {
        let Report { sent, acknowledged, failed, skipped, seconds, events_per_second } = self;
        format!(
            "sent {sent}, acknowledged {acknowledged}, failed {failed}, skipped {skipped} in {seconds} s \
             ({events_per_second} events/s)"
        )
    }
}

/// A topic, and the time that a record bears in it; without one, the clock's.
type Place<'a> = (Cow<'a, str>, Option<i64>);

struct Loader {
    producer: Producer,
    /// Set where records bear their events' times.
    history: Option<History>,
    /// The topic that a file's events are for.
    only: Option<TopicName>,
    started: Instant,
    waiting: VecDeque<Acknowledgement>,
    sent: u64,
    acknowledged: u64,
    failed: u64,
    skipped: u64,
    first_failure: Option<ProduceError>,
}

impl Loader {
    fn new(config: &Config, history: Option<History>) -> anyhow::Result<Loader> {
        Ok(Loader {
            producer: Producer::new(&config.kafka)?,
            history,
            only: None,
            started: Instant::now(),
            waiting: VecDeque::new(),
            sent: 0,
            acknowledged: 0,
            failed: 0,
            skipped: 0,
            first_failure: None,
        })
    }

    /// Sends until the source ends, a line is bad or someone interrupts; then waits for what is under way.
    async fn load(
        &mut self,
        mut lines: mpsc::Receiver<Vec<Line>>,
        topic: &str,
        skip_bad: bool,
        bar: ProgressBar,
    ) -> anyhow::Result<()> {
        self.started = Instant::now();
        let sending = self.send_all(&mut lines, topic, skip_bad, &bar);
        let stopped = tokio::select! {
            stopped = sending => stopped,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: what was read later is not sent")),
        };
        drop(lines);
        let settled = tokio::select! {
            () = self.settle_all(&bar) => Ok(()),
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: some events may or may not be there")),
        };
        bar.finish_and_clear();
        stopped.and(settled)
    }

    async fn send_all(
        &mut self,
        lines: &mut mpsc::Receiver<Vec<Line>>,
        topic: &str,
        skip_bad: bool,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        while let Some(batch) = lines.recv().await {
            for line in batch {
                match line {
                    Line::Event { number, event } => match self.place(topic, &event) {
                        Ok(None) => {}
                        Ok(Some((topic, time_ms))) => self.send(&topic, &event, time_ms).await,
                        Err(reason) if skip_bad => {
                            note!("line {number} is skipped: {reason}");
                            self.skipped += 1;
                        }
                        Err(reason) => {
                            bail!("line {number} cannot be sent: {reason}; --skip-bad goes on after such lines")
                        }
                    },
                    Line::Bad { number, reason } if skip_bad => {
                        note!("line {number} is skipped: {reason}");
                        self.skipped += 1;
                    }
                    Line::Bad { number, reason } => {
                        bail!("line {number} is no event with a subject: {reason}; --skip-bad goes on after such lines")
                    }
                    Line::Broken(reason) => bail!(reason),
                }
            }
            self.settle_known();
            bar.set_position(self.acknowledged + self.failed);
        }
        Ok(())
    }

    /// Where an event goes; `None`: nowhere.
    fn place<'a>(&mut self, topic: &'a str, event: &Generated) -> Result<Option<Place<'a>>, String> {
        let Some(history) = &mut self.history else {
            self.only.map_or(Ok(()), |only| only.takes(&event.value))?;
            return Ok(Some((Cow::Borrowed(topic), None)));
        };
        let placed = history.place(&event.value)?;
        Ok(placed.map(|(topic, time_ms)| (Cow::Owned(topic.to_owned()), Some(time_ms))))
    }

    async fn send(&mut self, topic: &str, event: &Generated, time_ms: Option<i64>) {
        let (key, value) = (Some(event.account.as_bytes()), Some(event.value.as_slice()));
        let record = Outgoing { topic, key, value, time_ms, ..Outgoing::default() };
        self.sent += 1;
        match self.producer.enqueue(record).await {
            Ok(acknowledgement) => self.waiting.push_back(acknowledgement),
            Err(error) => self.settle(Err(error)),
        }
    }

    fn settle(&mut self, fate: Result<Delivered, ProduceError>) {
        match fate {
            Ok(_) => self.acknowledged += 1,
            Err(error) => {
                self.failed += 1;
                self.first_failure.get_or_insert(error);
            }
        }
    }

    fn settle_known(&mut self) {
        while let Some(fate) = self.waiting.front_mut().and_then(Acknowledgement::known) {
            self.waiting.pop_front();
            self.settle(fate);
        }
    }

    async fn settle_all(&mut self, bar: &ProgressBar) {
        while let Some(oldest) = self.waiting.front_mut() {
            let fate = oldest.await;
            self.waiting.pop_front();
            self.settle(fate);
            bar.set_position(self.acknowledged + self.failed);
        }
    }

    /// Once everything is there: a tick that overtook a record would make it late.
    async fn end_history(&self, partitions: i32) -> anyhow::Result<()> {
        match &self.history {
            Some(history) if self.failed == 0 => history.end(&self.producer, partitions).await,
            Some(_) | None => Ok(()),
        }
    }

    fn report(&self) -> Report {
        let seconds = self.started.elapsed().as_secs_f64();
        Report {
            sent: self.sent,
            acknowledged: self.acknowledged,
            failed: self.failed,
            skipped: self.skipped,
            seconds: (seconds * 1000.0).round() / 1000.0,
            events_per_second: (self.acknowledged as f64 / seconds.max(f64::EPSILON)).round() as u64,
        }
    }
}

/// On stderr, and only where a person looks.
fn progress_bar(total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = |template| ProgressStyle::with_template(template).expect("the template is a constant that is valid");
    match total {
        Some(total) => ProgressBar::new(total).with_style(style("{bar:40} {pos}/{len} {per_sec} {eta} left")),
        None => ProgressBar::new_spinner().with_style(style("{spinner} {pos} {per_sec} {elapsed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_for_the_other_topic_is_not_sent() {
        let event = |kind: &str| format!("{{\"type\":\"credits.{kind}.v1\",\"time\":\"2026-01-31T12:00:00Z\"}}");
        let taken = |topic: TopicName| {
            ["usage", "usage.void", "gift", "grant", "account.put", "adjust"]
                .map(|kind| topic.takes(event(kind).as_bytes()).is_ok())
        };
        assert_eq!(taken(TopicName::Usage), [true, true, true, false, false, false]);
        assert_eq!(taken(TopicName::Commands), [false, false, false, true, true, true]);
        // What cannot be read goes where it was to go, to be told of by the meter.
        assert!(TopicName::Usage.takes(b"nonsense").is_ok() && TopicName::Commands.takes(b"nonsense").is_ok());
    }
}
