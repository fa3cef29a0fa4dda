//! The meter as users run it: the real program, its default settings, everything on. It makes the accounts first and
//! is stopped; timed is how it works off a backlog after its next start. What it comes to is checked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use credit_meter::store::keys::{Key, Keys};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;

use crate::data::{ACCOUNTS, CREDIT_TYPES, Table, account_name};
use crate::kafka::{self, PARTITIONS};
use crate::machine::{cpu_seconds, rss_peak_mb, threads};
use crate::redis_probe::RedisProbe;
use crate::report::Run;

const PROGRAM: &str = env!("CARGO_BIN_EXE_credit-meter");
/// The default of `redis.shards`.
pub const SHARDS: u32 = 16;
/// Nothing that is waited for takes so long, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// The settings of one round's meter: its own group, state and output topics, the common input topics.
pub struct Meter {
    environment: Vec<(String, String)>,
    pub name: String,
    work_dir: PathBuf,
    brokers: String,
    keys: Keys,
    shards: u32,
}

/// What a run came to beside its time.
pub struct Measured {
    pub run: Run,
    pub rss_mb: f64,
    pub threads: String,
}

impl Meter {
    pub fn new(
        brokers: &str,
        redis_url: &str,
        inputs: &str,
        name: &str,
        work_dir: &Path,
        shards: u32,
    ) -> anyhow::Result<Meter> {
        let catalogue = work_dir.join("catalogue.toml");
        std::fs::write(&catalogue, include_str!("catalogue.toml"))?;
        let mut environment = Vec::new();
        let mut set = |key: &str, value: &str| environment.push((format!("CREDIT_METER__{key}"), value.to_owned()));
        set("KAFKA__BROKERS", brokers);
        set("KAFKA__GROUP", name);
        set("KAFKA__TOPICS__USAGE", &format!("{inputs}.usage"));
        set("KAFKA__TOPICS__COMMANDS", &format!("{inputs}.commands"));
        for output in ["denied", "alerts", "cycles", "ledger", "dead_letter"] {
            set(&format!("KAFKA__TOPICS__{}", output.to_uppercase()), &format!("{name}.{output}"));
        }
        set("REDIS__URL", redis_url);
        set("REDIS__PREFIX", name);
        set("REDIS__SHARDS", &shards.to_string());
        set("HTTP__LISTEN", "127.0.0.1:0");
        set("CATALOGUE__PATH", &catalogue.to_string_lossy());
        Ok(Meter {
            environment,
            name: name.to_owned(),
            work_dir: work_dir.to_owned(),
            brokers: brokers.to_owned(),
            keys: Keys::new(name, shards),
            shards,
        })
    }

    /// In a folder without a configuration, so that only ours counts.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(PROGRAM);
        let log = File::options().create(true).append(true).open(self.log())?;
        command.args(arguments).envs(self.environment.iter().cloned()).current_dir(&self.work_dir);
        command.stdin(Stdio::null()).stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.work_dir.join(format!("{}.log", self.name))
    }

    pub fn create_topics(&self) -> anyhow::Result<()> {
        let partitions = PARTITIONS.to_string();
        let arguments = ["check", "--create-topics", "--partitions", &partitions];
        // What it says of the machine is for a production set-up; the topics are what is wanted.
        self.command(&arguments)?.stdout(Stdio::null()).status()?;
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Running> {
        Ok(Running { child: self.command(&["serve"])?.stdout(Stdio::null()).spawn()?, log: self.log() })
    }

    /// Makes the accounts, and gives the bytes that one takes.
    pub fn make_accounts(&self, probe: &mut RedisProbe) -> anyhow::Result<f64> {
        let before = probe.used_memory()?;
        let mut running = self.start()?;
        let deadline = Instant::now() + PATIENCE;
        while self.total(probe, "commands", "applied")? < ACCOUNTS as u64 || self.outbox_entries(probe)? > 0 {
            running.check(deadline, "the accounts are made")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        running.stop()?;
        Ok((probe.used_memory()? - before) / ACCOUNTS as f64)
    }

    /// Works off the usage topic: from the last look that found nothing applied to the first that finds all.
    pub fn work_off(&self, events: u64, probe: &mut RedisProbe) -> anyhow::Result<Measured> {
        let mut running = self.start()?;
        let process = running.child.id().to_string();
        let deadline = Instant::now() + PATIENCE + Duration::from_micros(events * 1_000);
        let mut started = (Instant::now(), 0.0, 0.0);
        let ended = loop {
            let (now, cpu) = (Instant::now(), cpu_seconds(&process));
            let redis_cpu = probe.cpu_seconds()?;
            let applied = self.records(probe)?;
            if applied == 0 {
                started = (now, cpu, redis_cpu);
            } else if applied == events {
                break (Instant::now(), cpu_seconds(&process), probe.cpu_seconds()?);
            }
            running.check(deadline, "all events are applied")?;
            // Seldom while there is much to do, often near the end.
            let rate = applied as f64 / started.0.elapsed().as_secs_f64().max(1e-3);
            let left = if applied == 0 { 0.0 } else { (events - applied) as f64 / rate.max(1.0) };
            std::thread::sleep(Duration::from_secs_f64((left / 4.0).clamp(0.005, 0.5)));
        };
        let by_thread = threads(&process);
        while self.outbox_entries(probe)? > 0 {
            running.check(deadline, "the outboxes are empty")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let rss_mb = rss_peak_mb(&process);
        running.stop()?;
        let run = Run {
            events,
            seconds: (ended.0 - started.0).as_secs_f64(),
            cpu_seconds: ended.1 - started.1,
            redis_seconds: ended.2 - started.2,
        };
        let by_thread: Vec<_> = by_thread.into_iter().filter(|(_, seconds)| *seconds >= 0.1).collect();
        let threads: Vec<_> = by_thread.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
        Ok(Measured { run, rss_mb, threads: threads.join(", ") })
    }

    /// Compares totals, balances and denials with the table, and asks the audit where there is one.
    pub fn check(&self, table: &Table, events: u64, probe: &mut RedisProbe) -> anyhow::Result<()> {
        let expected = [
            ("charged", table.charged),
            ("free", table.free),
            ("duplicate", table.duplicate),
            ("denied", table.denied),
            ("dead_lettered", table.dead_lettered),
            ("capped", 0),
        ];
        for (outcome, records) in expected {
            let counted = self.total(probe, "usage", outcome)?;
            ensure!(counted == records, "{counted} events are {outcome}, the data set holds {records}");
        }
        let accounts: Vec<String> =
            (0..ACCOUNTS).map(|index| self.keys.spell(Key::Account(&account_name(index)))).collect();
        for (index, stored) in probe.hashes(&accounts)?.iter().enumerate() {
            for (credit_type, used) in CREDIT_TYPES.iter().zip(table.used[index]) {
                let charged = stored.get(&format!("{credit_type}.c")).map_or("0", String::as_str);
                let account = account_name(index);
                ensure!(charged == used.to_string(), "{account} has used {charged} of {credit_type}, not {used}");
            }
        }
        let denied = self.denied()?;
        ensure!(denied == table.denied, "{denied} denials were published, the data set holds {}", table.denied);
        self.audit(events)
    }

    fn audit(&self, events: u64) -> anyhow::Result<()> {
        let there = self.command(&["audit", "--help"])?.stdout(Stdio::null()).status()?.success();
        if !there {
            return Ok(());
        }
        let output = self.command(&["audit", "--json"])?.output()?;
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("audit: see {}", self.log().display()))?;
        let of_events = answer["records"].as_u64().is_some_and(|records| records >= events);
        ensure!(output.status.success() && answer["mismatches"] == 0 && of_events, "the audit finds: {answer}");
        Ok(())
    }

    /// The events that the messages to the denied topic name.
    fn denied(&self) -> anyhow::Result<u64> {
        let topic = format!("{}.denied", self.name);
        let consumer: BaseConsumer = kafka::settings(&self.brokers).set("enable.partition.eof", "true").create()?;
        let ends = kafka::ends(&consumer, &topic, PARTITIONS)?;
        let consumer: BaseConsumer = kafka::settings(&self.brokers).set("enable.partition.eof", "true").create()?;
        rdkafka::consumer::Consumer::assign(&consumer, &kafka::beginning(&topic, PARTITIONS)?)?;
        let (mut named, mut at_end) = (0, 0);
        while at_end < ends.len() {
            match consumer.poll(PATIENCE).context("kafka sends no denials")? {
                Err(KafkaError::PartitionEOF(_)) => at_end += 1,
                Err(error) => return Err(error.into()),
                Ok(message) => {
                    let event: serde_json::Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
                    named += event["data"]["events"].as_array().map_or(0, Vec::len) as u64;
                }
            }
        }
        Ok(named)
    }

    fn shard_keys(&self, key: fn(u32) -> Key<'static>) -> Vec<String> {
        (0..self.shards).map(|shard| self.keys.spell(key(shard))).collect()
    }

    /// Records of an input that ended so, over all shards.
    fn total(&self, probe: &mut RedisProbe, input: &str, outcome: &str) -> anyhow::Result<u64> {
        self.totals(probe, |field| {
            field.strip_prefix("total:").is_some_and(|rest| {
                rest.strip_prefix(input).is_some_and(|rest| rest.starts_with(':'))
                    && rest.ends_with(&format!(":{outcome}"))
            })
        })
    }

    fn records(&self, probe: &mut RedisProbe) -> anyhow::Result<u64> {
        self.totals(probe, |field| field.starts_with("total:usage:"))
    }

    fn totals(&self, probe: &mut RedisProbe, wanted: impl Fn(&str) -> bool) -> anyhow::Result<u64> {
        let mut sum = 0;
        for shard in probe.hashes(&self.shard_keys(Key::Shard))? {
            for (_, value) in shard.iter().filter(|(field, _)| wanted(field)) {
                sum += value.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    fn outbox_entries(&self, probe: &mut RedisProbe) -> anyhow::Result<u64> {
        probe.stream_entries(&self.shard_keys(Key::Outbox))
    }
}

/// A running meter; killed when it is dropped.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Goes on waiting only while there is something to wait for.
    fn check(&mut self, deadline: Instant, what: &str) -> anyhow::Result<()> {
        let log = self.log.display();
        if let Some(status) = self.child.try_wait()? {
            bail!("the meter ended ({status}) before {what}: see {log}");
        }
        ensure!(Instant::now() < deadline, "waited too long until {what}: see {log}");
        Ok(())
    }

    fn stop(mut self) -> anyhow::Result<()> {
        Command::new("sh").args(["-c", "kill -TERM $0", &self.child.id().to_string()]).status()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the meter ended badly ({status}): see {}", self.log.display());
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
