//! Edges of balances, as the meter publishes them: what there is, or as they come.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustc_hash::FxHashSet;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_128;

use super::exec::{Program, Ran};
use super::output::{self, Output, Reader};
use super::resume::{Followed, Noted, Place};
use super::{Ended, values};
use crate::app;
use crate::config::{Config, StartFrom};
use crate::ingest::alerts::Alert;
use crate::ingest::by_time::ByTime;
use crate::ingest::clock;
use crate::ingest::scan::SILENCE_MAX;
use crate::ingest::tail::{Step, Tail, TailRecord};
use crate::note;

/// Ids that are remembered, 10 MB: a relay that died repeats what it had under way, a few hundred.
const SEEN_MAX: usize = 200_000;

#[derive(Debug, Args)]
pub struct AlertsArgs {
    /// Stay, and print alerts as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Where to begin: earliest, latest, a date (in UTC) or a time like 2026-01-31T12:00:00Z
    /// [default: earliest; with --follow latest]
    #[arg(long, value_name = "TIME")]
    pub from: Option<StartFrom>,
    /// Go on from where this file says, and note there what was told; where there is no such file, from --from
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Only this account's
    #[arg(long, value_name = "ACCOUNT", value_parser = values::name)]
    pub account: Option<String>,
    /// Run this program for each alert, one after the other, with the JSON on its stdin and ALERT_EDGE, ALERT_ACCOUNT
    /// and more in its environment; where it fails, the next alerts come all the same, and the exit code is 1 at the end
    #[arg(long, value_name = "PROGRAM")]
    pub exec: Option<PathBuf>,
    /// A program that has not ended by then is killed, and counts as failed: the next alerts wait for it
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::time_limit, requires = "exec")]
    pub exec_timeout: Duration,
}

pub async fn run(args: AlertsArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let stop = CancellationToken::new();
    let advice = "it has ended and is to be started again; with --resume it goes on from where it was";
    clock::watched(print(args, config, output, stop.clone()), stop, advice).await
}

async fn print(args: AlertsArgs, config: &Config, output: Output, stop: CancellationToken) -> anyhow::Result<Ended> {
    tokio::spawn(app::stop_on_signal(stop.clone()));
    let from = args.from.unwrap_or(if args.follow { StartFrom::Latest } else { StartFrom::Earliest });
    let (meter, topic) = (&config.redis.prefix, &config.kafka.topics.alerts);
    let of = Followed { meter: meter.clone(), topic: topic.clone(), account: args.account.clone() };
    let place = args.resume.as_ref().map(|path| Place::read(path, &of)).transpose()?.flatten();
    let opening = async {
        match &place {
            Some(place) => Tail::resume(&config.kafka, topic, &place.next, place.read_ms).await,
            None => Ok((Tail::open(&config.kafka, topic, from).await?, Vec::new())),
        }
    };
    let (tail, missed) = tokio::select! {
        opened = opening => opened?,
        () = stop.cancelled() => return Ok(Ended::Well),
    };
    for missed in &missed {
        note!("{missed}");
    }
    let place = Place { of, next: tail.places(), read_ms: place.and_then(|place| place.read_ms) };
    let begin = |path| Noted::begin(path, place);
    let mut noted = args.resume.map(begin).transpose()?;
    let mut tail = ByTime::new(tail);
    let mut teller = Teller {
        meter: meter.clone(),
        account: args.account,
        seen: Seen::new(SEEN_MAX),
        program: args.exec.map(|path| Program::new(path, args.exec_timeout)),
        missed: missed.len() as u64,
        output,
    };
    let gone = output::reader_gone();
    tokio::pin!(gone);
    loop {
        let step = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = &mut gone => break,
            noted = due(&mut noted) => {
                noted.save();
                continue;
            }
            step = next(&mut tail, args.follow) => step?,
        };
        match step {
            Step::CaughtUp if args.follow => {}
            Step::CaughtUp => break,
            Step::Record(record) => {
                let Told { reader, ran } = teller.tell(&record, &stop).await?;
                if let Some(noted) = &mut noted {
                    match ran {
                        None if reader == Reader::There => noted.told(&record),
                        None => {}
                        // What a program has done it does not do again; a line may come again.
                        Some(Ran::Began) => {
                            noted.told(&record);
                            noted.save();
                        }
                        Some(Ran::NotAtAll) => bail!("it is to be put right: --resume goes on with that alert"),
                    }
                }
                if reader == Reader::Gone {
                    break;
                }
            }
        }
    }
    if let Some(noted) = &mut noted {
        noted.save();
    }
    Ok(teller.ended())
}

/// What is to be written, once it is.
async fn due(noted: &mut Option<Noted>) -> &mut Noted {
    match noted {
        Some(noted) => {
            noted.due().await;
            noted
        }
        None => std::future::pending().await,
    }
}

/// Who follows waits for a broker that is away, who does not wants an end.
async fn next(tail: &mut ByTime, follow: bool) -> anyhow::Result<Step> {
    if follow {
        return Ok(tail.next().await?);
    }
    match tokio::time::timeout(SILENCE_MAX, tail.next()).await {
        Ok(step) => Ok(step?),
        Err(_) => bail!("alerts cannot be read: nothing came for {SILENCE_MAX:?}"),
    }
}

struct Teller {
    meter: String,
    account: Option<String>,
    seen: Seen,
    program: Option<Program>,
    /// Records that could not be read, and what was not there any more.
    missed: u64,
    output: Output,
}

struct Told {
    reader: Reader,
    /// `None`: there is no program, or the alert is none of those that were asked for.
    ran: Option<Ran>,
}

impl Teller {
    async fn tell(&mut self, record: &TailRecord, stop: &CancellationToken) -> anyhow::Result<Told> {
        let nothing = Ok(Told { reader: Reader::There, ran: None });
        let alert = match Alert::read(record, &self.meter) {
            Ok(Some(alert)) => alert,
            Ok(None) => return nothing,
            Err(error) => {
                self.missed += 1;
                note!("the alert at {}@{} cannot be read: {error}", record.partition, record.offset);
                return nothing;
            }
        };
        let wanted = self.account.as_ref().is_none_or(|account| *account == alert.account);
        if !wanted || !self.seen.is_new(&alert.id) {
            return nothing;
        }
        let json = serde_json::to_string(&shown(&alert, &self.meter)).context("an alert as JSON")?;
        let reader = self.output.line(&if self.output.json { json.clone() } else { text(&alert) })?;
        let ran = match &mut self.program {
            Some(program) => Some(program.run(&alert, &json, stop).await),
            None => None,
        };
        Ok(Told { reader, ran })
    }

    fn ended(&self) -> Ended {
        let failed = self.program.as_ref().map_or(0, |program| program.failed);
        if failed > 0 {
            note!("the program failed for {failed} alerts");
        }
        if failed + self.missed == 0 { Ended::Well } else { Ended::Badly }
    }
}

/// The CloudEvent as it was published, on one line, and when that was.
#[derive(Serialize)]
struct Shown<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    data: &'a RawValue,
}

fn shown<'a>(alert: &'a Alert, meter: &'a str) -> Shown<'a> {
    Shown {
        specversion: "1.0",
        id: &alert.id,
        source: meter,
        r#type: &alert.event_type,
        subject: &alert.account,
        time: output::time(alert.at_ms),
        datacontenttype: "application/json",
        data: &alert.data,
    }
}

fn text(alert: &Alert) -> String {
    let left = match (alert.remaining, alert.granted) {
        (Some(remaining), Some(granted)) => format!("{remaining} of {granted} left"),
        _ => "unlimited".to_owned(),
    };
    let Alert { account, credit_type, threshold, edge, .. } = alert;
    let threshold = if threshold == edge.name() { String::new() } else { format!(" ({threshold})") };
    format!("{}  {:<9}  {account}  {credit_type}{threshold}: {left}", output::time(alert.at_ms), edge.name())
}

/// The ids that came last: Kafka is given each message at least once.
struct Seen {
    known: FxHashSet<u128>,
    order: VecDeque<u128>,
    max: usize,
}

impl Seen {
    fn new(max: usize) -> Seen {
        Seen { known: FxHashSet::default(), order: VecDeque::new(), max }
    }

    fn is_new(&mut self, id: &str) -> bool {
        let id = xxh3_128(id.as_bytes());
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > self.max {
            self.order.pop_front().map(|oldest| self.known.remove(&oldest));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::alerts::tests::alert;

    #[test]
    fn an_alert_is_a_line() {
        let check = |told: &str, expected: &str| {
            assert_eq!(text(&alert(told)), format!("2026-09-21T14:13:20Z  {expected}"));
        };
        check("low acme email 80% 5.5/30 0", "low        acme  email (80%): 5.5 of 30 left");
        check("exhausted acme email exhausted 0/30 0", "exhausted  acme  email: 0 of 30 left");
        check("restored acme email exhausted 9/30 0", "restored   acme  email (exhausted): 9 of 30 left");
        check("restored acme email exhausted null/null 0", "restored   acme  email (exhausted): unlimited");
    }

    #[test]
    fn json_is_the_cloud_event_on_one_line_with_a_time() {
        let alert = alert("low acme email 80% 999999999999.001/null 3");
        let json = serde_json::to_string(&shown(&alert, "meter")).unwrap();
        let start = concat!(
            r#"{"specversion":"1.0","id":"low/acme/email/80%/0/3","source":"meter","type":"credits.low.v1","#,
            r#""subject":"acme","time":"2026-09-21T14:13:20Z","datacontenttype":"application/json","data":{"#,
        );
        assert!(json.starts_with(start), "{json}");
        assert!(json.contains(r#""remaining":999999999999.001,"#), "{json}");
    }

    #[test]
    fn a_repeat_is_told_once_and_memory_is_bounded() {
        let mut seen = Seen::new(2);
        assert!(seen.is_new("a") && !seen.is_new("a") && seen.is_new("b") && seen.is_new("c"));
        assert!(!seen.is_new("c") && !seen.is_new("b"));
        assert!(seen.is_new("a"), "it was long ago");
        assert_eq!((seen.known.len(), seen.order.len()), (2, 2));
    }
}
