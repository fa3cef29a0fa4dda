//! Records that could not be judged: which there are, what one holds, and sent again once the fault is mended.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;

use super::output::{self, Output, Reader, time};
use super::{Ended, values};
use crate::config::{Config, StartFrom};
use crate::ingest::by_time::ByTime;
use crate::ingest::letter::{Letter, Place};
use crate::ingest::producer::{Acknowledgement, Outgoing, Producer};
use crate::ingest::scan::SILENCE_MAX;
use crate::ingest::tail::{Step, Tail};
use crate::ledger::outcome::DeadReason;
use crate::note;

/// Records on their way to Kafka.
const UNDER_WAY_MAX: usize = 1_000;

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, with where each record was and why it is dead
    List(ListArgs),
    /// Show one as it came, with its headers
    Show(ShowArgs),
    /// Send records again to the topics that they came from: as new ones, judged by what holds now
    Replay(ReplayArgs),
}

/// Which letters.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Only those with this reason, for instance `unknown_account`
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Option<String>,
    /// Only those whose key is this account
    #[arg(long, value_name = "ACCOUNT", value_parser = values::name)]
    pub account: Option<String>,
    /// Only those since: earliest, a date (in UTC) or a time like 2026-01-31T12:00:00Z [default: earliest]
    #[arg(long, value_name = "TIME")]
    pub from: Option<StartFrom>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub wanted: Wanted,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The letter, as `list` names it: PARTITION@OFFSET
    #[arg(value_parser = place)]
    pub letter: (i32, i64),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("chosen").required(true).multiple(true).args(["letters", "reason", "account", "from"])))]
pub struct ReplayArgs {
    /// Letters, as `list` names them: PARTITION@OFFSET; or all that --reason, --account and --from choose
    #[arg(value_parser = place)]
    pub letters: Vec<(i32, i64)>,
    #[command(flatten)]
    pub wanted: Wanted,
    /// Only tell what would be sent
    #[arg(long)]
    pub dry_run: bool,
}

fn reason(text: &str) -> Result<String, String> {
    let known = || DeadReason::ALL.iter().map(|reason| reason.name()).collect::<Vec<_>>().join(", ");
    DeadReason::from_name(text)
        .map(|reason| reason.name().to_owned())
        .ok_or_else(|| format!("it is none of {}", known()))
}

fn place(text: &str) -> Result<(i32, i64), String> {
    let place =
        text.split_once('@').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    place.ok_or_else(|| "it must look like PARTITION@OFFSET, for instance 0@12".to_owned())
}

pub async fn run(command: DeadLettersCommand, config: &Config, output: Output) -> anyhow::Result<Ended> {
    match command {
        DeadLettersCommand::List(args) => list(args, config, output).await,
        DeadLettersCommand::Show(args) => show(args, config, output).await,
        DeadLettersCommand::Replay(args) => replay(args, config, output).await,
    }
}

/// The letters of this meter that the topic held when it was opened.
struct Letters {
    tail: ByTime,
    topic: String,
    meter: String,
    progress: indicatif::ProgressBar,
    unreadable: u64,
}

impl Letters {
    async fn open(config: &Config, from: Option<StartFrom>) -> anyhow::Result<Letters> {
        let topic = config.kafka.topics.dead_letter.clone();
        let tail = Tail::open(&config.kafka, &topic, from.unwrap_or(StartFrom::Earliest)).await?;
        let progress = output::progress(tail.backlog);
        Ok(Letters { tail: ByTime::new(tail), topic, meter: config.redis.prefix.clone(), progress, unreadable: 0 })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Letter>> {
        loop {
            let step = tokio::time::timeout(SILENCE_MAX, self.tail.next()).await;
            let Ok(step) = step else { bail!("{} cannot be read: nothing came for {SILENCE_MAX:?}", self.topic) };
            let Step::Record(record) = step? else {
                self.progress.finish_and_clear();
                return Ok(None);
            };
            self.progress.inc(1);
            let (partition, offset) = (record.partition, record.offset);
            match Letter::read(record, &self.meter) {
                Ok(Some(letter)) => return Ok(Some(letter)),
                Ok(None) => {}
                Err(what) => {
                    self.unreadable += 1;
                    let topic = &self.topic;
                    self.progress.suspend(|| note!("{topic}/{partition}@{offset} is no dead letter: {what}"));
                }
            }
        }
    }

    fn ended(&self) -> Ended {
        if self.unreadable == 0 { Ended::Well } else { Ended::Badly }
    }
}

impl Wanted {
    fn take(&self, letter: &Letter) -> bool {
        let account = self.account.as_ref().map(|account| Some(account.as_bytes()));
        self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && account.is_none_or(|account| account == letter.key.as_deref())
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    letter: String,
    time: String,
    reason: &'a str,
    message: &'a str,
    topic: &'a str,
    partition: i32,
    offset: i64,
    appended: String,
    /// `null`: there is none, or it is no text.
    key: Option<&'a str>,
    bytes: usize,
}

fn listed(letter: &Letter) -> Listed<'_> {
    Listed {
        letter: format!("{}@{}", letter.partition, letter.offset),
        time: time(letter.at_ms),
        reason: &letter.reason,
        message: &letter.message,
        topic: &letter.from.topic,
        partition: letter.from.partition,
        offset: letter.from.offset,
        appended: time(letter.appended_ms),
        key: letter.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()),
        bytes: letter.value.as_ref().map_or(0, Vec::len),
    }
}

impl Listed<'_> {
    fn text(&self) -> String {
        let Listed { letter, time, reason, message, topic, partition, offset, key, .. } = self;
        let key = key.map_or(String::new(), |key| format!("  {}", on_one_line(key)));
        format!("{letter}  {time}  {reason}  {topic}/{partition}@{offset}{key}  {}", on_one_line(message))
    }
}

/// As it is, so that it can be copied, but for what would end the line or move the cursor.
fn on_one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

async fn list(args: ListArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let mut letters = Letters::open(config, args.wanted.from).await?;
    while let Some(letter) = letters.next().await? {
        if !args.wanted.take(&letter) {
            continue;
        }
        let listed = listed(&letter);
        let line = if output.json { serde_json::to_string(&listed)? } else { listed.text() };
        if letters.progress.suspend(|| output.line(&line))? == Reader::Gone {
            break;
        }
    }
    Ok(letters.ended())
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    headers: Vec<(&'a str, Option<String>)>,
    /// As text; what is none has `\x..` for its bytes.
    value: Option<String>,
}

fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

async fn show(args: ShowArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let (partition, offset) = args.letter;
    let mut letters = Letters::open(config, None).await?;
    let letter = loop {
        let next = letters.next().await?;
        let letter = next.with_context(|| {
            format!("{} holds no letter {partition}@{offset} of this meter: see `dead-letters list`", letters.topic)
        })?;
        if (letter.partition, letter.offset) == args.letter {
            letters.progress.finish_and_clear();
            break letter;
        }
    };
    let headers = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref().map(printable)));
    let value = letter.value.as_deref().map(printable);
    let shown = Shown { listed: listed(&letter), headers: headers.collect(), value };
    output.answer(&shown, || {
        let headers =
            shown.headers.iter().map(|(name, value)| format!("{name}: {}", value.as_deref().unwrap_or_default()));
        let value = shown.value.clone().unwrap_or_else(|| "no value".to_owned());
        [shown.listed.text()].into_iter().chain(headers).chain([String::new(), value]).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Ended::Well)
}

#[derive(Default, Serialize)]
struct Replayed {
    /// Records that were sent again, by topic.
    sent: BTreeMap<String, u64>,
    /// Letters about a record that another letter had told of: a worker that is killed may write one twice.
    repeats: u64,
    dry_run: bool,
}

async fn replay(args: ReplayArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let producer = Producer::new(&config.kafka)?;
    let mut letters = Letters::open(config, args.wanted.from).await?;
    let mut named: BTreeSet<(i32, i64)> = args.letters.iter().copied().collect();
    let mut seen: BTreeSet<Place> = BTreeSet::new();
    let mut replayed = Replayed { dry_run: args.dry_run, ..Replayed::default() };
    let mut under_way: Vec<Acknowledgement> = Vec::new();
    while let Some(letter) = letters.next().await? {
        let is_named = args.letters.is_empty() || named.remove(&(letter.partition, letter.offset));
        if !is_named || !args.wanted.take(&letter) {
            continue;
        }
        if !seen.insert(letter.from.clone()) {
            replayed.repeats += 1;
            continue;
        }
        if !args.dry_run {
            under_way.push(send(&producer, &letter).await?);
            if under_way.len() == UNDER_WAY_MAX {
                acknowledged(&mut under_way).await?;
            }
        }
        *replayed.sent.entry(letter.from.topic).or_default() += 1;
    }
    acknowledged(&mut under_way).await?;
    output.answer(&replayed, || replayed.text())?;
    if !named.is_empty() {
        let named: Vec<String> = named.iter().map(|(partition, offset)| format!("{partition}@{offset}")).collect();
        note!("{} holds no letter {} of this meter, or not as asked for", letters.topic, named.join(", "));
        return Ok(Ended::Badly);
    }
    Ok(letters.ended())
}

/// As it came, with its time where the topic keeps producers' times.
async fn send(producer: &Producer, letter: &Letter) -> anyhow::Result<Acknowledgement> {
    let headers: Vec<_> = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    let record = Outgoing {
        topic: &letter.from.topic,
        key: letter.key.as_deref(),
        value: letter.value.as_deref(),
        headers: &headers,
        time_ms: Some(letter.appended_ms),
        ..Outgoing::default()
    };
    Ok(producer.enqueue(record).await?)
}

async fn acknowledged(under_way: &mut Vec<Acknowledgement>) -> anyhow::Result<()> {
    for acknowledgement in under_way.drain(..) {
        acknowledgement.await.context("some were sent; sent again, what was charged counts once")?;
    }
    Ok(())
}

impl Replayed {
    fn text(&self) -> String {
        let sent = self.sent.iter().map(|(topic, records)| format!("{records} to {topic}"));
        let sent = if self.sent.is_empty() { "none".to_owned() } else { sent.collect::<Vec<_>>().join(", ") };
        let would = if self.dry_run { "would be sent again" } else { "sent again" };
        let repeats = if self.repeats == 0 { String::new() } else { format!(" ({} letters twice)", self.repeats) };
        format!("{would}: {sent}{repeats}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        Letter {
            partition: 1,
            offset: 7,
            at_ms: 1_790_000_000_000,
            reason: "too_late".into(),
            message: "it is\ntoo old".into(),
            from: Place { topic: "credits.usage".into(), partition: 3, offset: 41 },
            appended_ms: 1_790_000_000_000,
            key: Some(b"acme".to_vec()),
            value: Some(b"\xff{}".to_vec()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn a_letter_is_a_line() {
        let expected = "1@7  2026-09-21T14:13:20Z  too_late  credits.usage/3@41  acme  it is\\ntoo old";
        assert_eq!(listed(&letter()).text(), expected);
        assert_eq!(listed(&Letter { key: Some(vec![255]), ..letter() }).key, None);
        assert_eq!((printable(b"\xff{}"), printable("é".as_bytes())), ("\\xff{}".to_owned(), "é".to_owned()));
    }

    #[test]
    fn letters_are_chosen_by_reason_and_account() {
        let check = |reason: Option<&str>, account: Option<&str>, taken: bool| {
            let wanted = Wanted { reason: reason.map(Into::into), account: account.map(Into::into), from: None };
            assert_eq!(wanted.take(&letter()), taken, "{reason:?} {account:?}");
        };
        check(None, None, true);
        check(Some("too_late"), Some("acme"), true);
        check(Some("too_early"), None, false);
        check(None, Some("other"), false);
        assert!(place("0@12") == Ok((0, 12)) && place("12").is_err() && place("a@1").is_err());
    }
}
