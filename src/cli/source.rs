//! Events from a file, from stdin or made up, read ahead of those who send them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::generate::{Generated, Generator, Usage};
use crate::backtest::lines::BYTE_ORDER_MARK;
use crate::ledger::catalogue::{Action, Catalogue};

/// Events that go from the reading to the sending thread at once.
const BATCH_EVENTS: usize = 1000;
/// Batches that wait between the two: reading stays ahead, and memory stays small.
const BATCHES_WAITING: usize = 8;
/// Read from the file at once; no reason: a round number.
const READ_BYTES: usize = 1 << 20;
/// A wait that is shorter is made up for later: timers are no finer.
const WAIT_MIN: Duration = Duration::from_millis(1);

type Reader = BufReader<Box<dyn Read + Send>>;

/// Where events come from.
pub enum Source {
    Lines(Reader),
    Made(Usage, BTreeMap<String, Action>),
}

impl Source {
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Source::Lines(_) => None,
            Source::Made(usage, _) => Some(*usage),
        }
    }
}

/// The actions that a plan is entitled to now, or all.
pub fn actions(catalogue: &Catalogue, plan: Option<&str>) -> anyhow::Result<BTreeMap<String, Action>> {
    let Some(plan) = plan else { return Ok(catalogue.actions.clone()) };
    let Some(plan) = catalogue.plans.get(plan) else {
        let known: Vec<&str> = catalogue.plans.keys().map(String::as_str).collect();
        bail!("plan {plan} is none of {}", known.join(", "));
    };
    let now_ms = now_ms();
    let actions = catalogue.actions.iter().filter(|(name, _)| plan.is_entitled(name, now_ms));
    Ok(actions.map(|(name, action)| (name.clone(), action.clone())).collect())
}

pub fn lines(input: impl Read + Send + 'static) -> Source {
    Source::Lines(BufReader::with_capacity(READ_BYTES, Box::new(input)))
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock shows a year after 1970");
    i64::try_from(since.as_millis()).expect("milliseconds fit for 292 million years")
}

/// What a line of the source is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Event {
        number: u64,
        event: Generated,
    },
    Bad {
        number: u64,
        reason: String,
    },
    /// The source cannot be read on.
    Broken(String),
}

/// Reads on a thread of its own, which waits for the rate and for whoever writes to stdin.
pub fn read_ahead(source: Source, rate: Option<u64>) -> mpsc::Receiver<Vec<Line>> {
    let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
    let mut batches = Batches { sender, batch: Vec::new(), pace: rate.map(Pace::new) };
    std::thread::spawn(move || match source {
        Source::Lines(lines) => read_lines(lines, &mut batches),
        Source::Made(usage, actions) => make(usage, &actions, &mut batches),
    });
    receiver
}

/// `None` from here on: the sending side has stopped.
fn read_lines(mut lines: Reader, batches: &mut Batches) -> Option<()> {
    for number in 1.. {
        let mut text = Vec::new();
        match read_line(&mut lines, &mut text) {
            Ok(0) => break,
            Ok(_) => {
                if number == 1 && text.starts_with(BYTE_ORDER_MARK) {
                    text.drain(..BYTE_ORDER_MARK.len());
                }
                batches.extend(parse(number, text))?;
            }
            Err(error) => {
                batches.push(Line::Broken(format!("line {number} cannot be read: {error}")))?;
                break;
            }
        }
        // Whoever writes slowly does not wait for a batch to be full.
        if !lines.buffer().contains(&b'\n') {
            batches.flush()?;
        }
    }
    batches.flush()
}

fn read_line(lines: &mut Reader, text: &mut Vec<u8>) -> std::io::Result<usize> {
    let read = lines.read_until(b'\n', text)?;
    let end = text.trim_ascii_end().len();
    text.truncate(end);
    Ok(read)
}

fn make(usage: Usage, actions: &BTreeMap<String, Action>, batches: &mut Batches) -> Option<()> {
    let Some(generator) = Generator::new(usage, actions, now_ms) else {
        batches.push(Line::Broken(
            "there are no actions to make up: add one to the catalogue, or to the plan".to_owned(),
        ))?;
        return batches.flush();
    };
    for (number, event) in (1..).zip(generator) {
        batches.push(Line::Event { number, event })?;
    }
    batches.flush()
}

struct Batches {
    sender: mpsc::Sender<Vec<Line>>,
    batch: Vec<Line>,
    pace: Option<Pace>,
}

impl Batches {
    fn extend(&mut self, line: Option<Line>) -> Option<()> {
        line.map_or(Some(()), |line| self.push(line))
    }

    fn push(&mut self, line: Line) -> Option<()> {
        self.batch.push(line);
        let wait = self.pace.as_mut().map_or(Duration::ZERO, Pace::next);
        if self.batch.len() >= BATCH_EVENTS || wait >= WAIT_MIN {
            self.flush()?;
        }
        if wait >= WAIT_MIN {
            std::thread::sleep(wait);
        }
        Some(())
    }

    fn flush(&mut self) -> Option<()> {
        if self.batch.is_empty() {
            return Some(());
        }
        self.sender.blocking_send(std::mem::take(&mut self.batch)).ok()
    }
}

/// Spreads events evenly over time.
struct Pace {
    started: Instant,
    per_second: u64,
    events: u64,
}

impl Pace {
    fn new(per_second: u64) -> Pace {
        Pace { started: Instant::now(), per_second, events: 0 }
    }

    /// How long to wait after one more event.
    fn next(&mut self) -> Duration {
        self.due().saturating_sub(self.started.elapsed())
    }

    /// When one more event is due, from the start.
    fn due(&mut self) -> Duration {
        self.events += 1;
        Duration::from_secs_f64(self.events as f64 / self.per_second as f64)
    }
}

#[derive(Deserialize)]
struct Addressed<'a> {
    #[serde(borrow)]
    subject: std::borrow::Cow<'a, str>,
}

/// `None`: an empty line.
fn parse(number: u64, text: Vec<u8>) -> Option<Line> {
    if text.is_empty() {
        return None;
    }
    // serde takes an array for a struct.
    let is_object = text.trim_ascii_start().first() == Some(&b'{');
    let addressed = match serde_json::from_slice::<Addressed>(&text) {
        Ok(addressed) if is_object => Ok(addressed.subject.into_owned()),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        // The line is the file's, not the text's.
        Err(error) => Err(error.to_string().replace("at line 1 column", "at column")),
    };
    Some(match addressed {
        Ok(account) => Line::Event { number, event: Generated { account, value: text } },
        Err(reason) => Line::Bad { number, reason },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_with_a_subject() {
        let check = |text: &str, expected: Result<&str, &str>| match (parse(3, text.into()), expected) {
            (Some(Line::Event { number: 3, event }), Ok(account)) => {
                assert_eq!((event.account.as_str(), event.value.as_slice()), (account, text.as_bytes()));
            }
            (Some(Line::Bad { number: 3, reason }), Err(expected)) => assert!(reason.contains(expected), "{reason}"),
            (line, expected) => panic!("{text}: {line:?}, not {expected:?}"),
        };
        check(r#"{"subject":"team-1","data":{"a":[1,2]}}"#, Ok("team-1"));
        check(r#" {"subject":"\u00e9quipe"}"#, Ok("équipe"));
        check(r#"{"id":"1"}"#, Err("missing field `subject`"));
        check(r#"{"subject":7}"#, Err("invalid type"));
        check(r#"["team-1"]"#, Err("not a JSON object"));
        check(r#"{"subject":"team-1""#, Err("EOF"));
        check("team-1", Err("expected"));
        assert_eq!(parse(3, Vec::new()), None);
    }

    #[test]
    fn lines_end_as_lines_do_everywhere() {
        let text = "\u{feff}{\"subject\":\"a\"}\r\n\n  \n{\"subject\":\"b\"}";
        let source = lines(text.as_bytes());
        let mut receiver = read_ahead(source, None);
        let mut accounts = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            for line in batch {
                let Line::Event { event, .. } = line else { panic!("{line:?}") };
                assert!(event.value.ends_with(b"}"));
                accounts.push(event.account);
            }
        }
        assert_eq!(accounts, ["a", "b"]);
    }

    #[test]
    fn a_rate_spreads_events_evenly() {
        let mut pace = Pace::new(1000);
        let due: Vec<u128> = (0..100).map(|_| pace.due().as_millis()).collect();
        assert_eq!((due[0], due[49], due[99]), (1, 50, 100));
    }
}
