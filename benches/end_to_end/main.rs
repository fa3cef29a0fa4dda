//! How fast the meter is, next to what its parts allow and to what one would write without it:
//!
//!     cargo bench --bench end_to_end [-- --json] [--events 3000000] [--rounds 3]
//!
//! With `--redis-delay-ms 0,2,10` only the meter has its turns, with a Redis that is so many milliseconds away.
//!
//! Real Kafka and Redis: those that KAFKA_BROKERS and REDIS_URL name, or a set that `docker/services` starts for the
//! run. One data set, read in turns by everyone, several rounds; the meter's result is checked each time.

/// A Redis that is further away.
mod away;
/// The data set, and what must come of it.
mod data;
/// Clients of Kafka.
mod kafka;
/// Processor time, memory, names.
mod machine;
/// `credit-meter serve`, timed and checked.
mod meter;
/// The obvious worker, and the same in pipelines.
mod obvious;
/// Reading and parsing alone.
mod readers;
/// A look into Redis.
mod redis_probe;
/// Tables and JSON.
mod report;
/// Kafka and Redis.
mod services;

use std::path::Path;

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use away::Away;
use data::{ACCOUNTS, DataSet, Day};
use kafka::PARTITIONS;
use meter::{Meter, SHARDS};
use obvious::Obvious;
use redis_probe::RedisProbe;
use report::{Round, Run};
use services::Services;

/// The obvious workers read fewer: their rate does not change with the number, and time is short.
const OBVIOUS_SHARE: u64 = 40;
const PIPELINED_SHARE: u64 = 5;
const PIPELINE: usize = 500;

#[derive(Debug, Parser)]
#[command(about = "The meter's speed on a real Kafka and Redis, next to what is possible and what is obvious")]
struct Arguments {
    /// One line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Events of the data set
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    events: u64,
    /// How often everyone has a turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// As `redis.shards`
    #[arg(long, default_value_t = SHARDS, value_parser = clap::value_parser!(u32).range(1..=4096))]
    shards: u32,
    /// Only the meter and what it is compared with first: reading and parsing
    #[arg(long)]
    quick: bool,
    /// Only the meter, once a round for each of these milliseconds between it and Redis in either direction
    #[arg(long, value_delimiter = ',', value_name = "MS,…", value_parser = clap::value_parser!(u64).range(..=1_000))]
    redis_delay_ms: Vec<u64>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runtime = Runtime::new()?;
    let services = Services::start(root)?;
    let dir = services.dir();
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            if let Some(dir) = dir {
                services::stop(&dir);
            }
            std::process::exit(130);
        }
    });
    let bench = Bench::prepare(&arguments, root, services)?;
    let delays = &arguments.redis_delay_ms;
    if !delays.is_empty() {
        let rounds: Vec<_> =
            (0..arguments.rounds).map(|index| bench.delayed(index, delays)).collect::<Result<_, _>>()?;
        let report = if arguments.json { report::delays_json } else { report::delays_text };
        println!("{}", report(delays, &rounds, &bench.facts()?));
        return Ok(());
    }
    let mut rounds = Vec::new();
    for index in 0..arguments.rounds {
        rounds.push(bench.round(index, &runtime)?);
    }
    let facts = bench.facts()?;
    if arguments.json {
        println!("{}", report::json(&rounds, &facts));
    } else {
        println!("{}", report::text(&rounds, &facts));
    }
    Ok(())
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

struct Bench {
    events: u64,
    rounds: u32,
    quick: bool,
    shards: u32,
    usage: String,
    table: data::Table,
    /// A meter a round (a round and delay), and the bytes that an account of it takes.
    meters: Vec<(Meter, f64)>,
    away: Option<Away>,
    services: Services,
}

impl Bench {
    /// Accounts for every round, then the data set: a meter that comes back finds a backlog.
    fn prepare(arguments: &Arguments, root: &Path, services: Services) -> anyhow::Result<Bench> {
        let work_dir = root.join(".run/bench");
        std::fs::create_dir_all(&work_dir)?;
        // As long as the default prefix of keys, `credit-meter`: it is part of what an account costs.
        let own = uuid::Uuid::now_v7().as_u128() as u32 & 0xfffff;
        let name = format!("bench{own:05x}");
        let (usage, events) = (format!("{name}.usage"), arguments.events);
        let day = Day::yesterday();
        let mut probe = RedisProbe::open(&services.redis_url)?;
        if services.are_own() {
            probe.settle()?;
        }
        let delays = &arguments.redis_delay_ms;
        let away = if delays.is_empty() { None } else { Some(Away::before(&services.redis_url)?) };
        let redis_url = away.as_ref().map_or(&services.redis_url, |away| &away.redis_url);
        let turns = arguments.rounds as usize * delays.len().max(1);
        let new_meter = |own: &str| -> anyhow::Result<Meter> {
            let own = format!("{name}-{own}");
            let meter = Meter::new(&services.brokers, redis_url, &name, &own, &work_dir, arguments.shards)?;
            meter.create_topics()?;
            Ok(meter)
        };
        // What a Redis takes once for all accounts, like the scripts, is there before the accounts are weighed.
        let first = new_meter("w")?;
        let made = kafka::produce(&services.brokers, &format!("{name}.commands"), data::commands(day))?;
        say(&format!("{made} commands are in kafka"));
        first.make_accounts(&mut probe)?;
        probe.delete(&first.name)?;
        std::thread::sleep(std::time::Duration::from_secs(1)); // Redis makes its table of keys smaller by and by.
        let mut meters = Vec::new();
        for turn in 0..turns {
            let meter = new_meter(&turn.to_string())?;
            let bytes = meter.make_accounts(&mut probe)?;
            say(&format!("accounts of turn {} of {turns}: {bytes:.0} bytes each", turn + 1));
            meters.push((meter, bytes));
        }
        let mut set = DataSet::new(events, day);
        let records = set.by_ref().map(|made| (data::account_name(made.account), made.value));
        kafka::produce(&services.brokers, &usage, records)?;
        let table = set.table;
        let size = table.bytes as f64 / events as f64;
        say(&format!(
            "{events} events of {size:.1} bytes are in kafka: {} charged, {} free, {} duplicates, {} denied, {} broken",
            table.charged, table.free, table.duplicate, table.denied, table.dead_lettered
        ));
        Ok(Bench {
            events,
            rounds: arguments.rounds,
            quick: arguments.quick,
            shards: arguments.shards,
            usage,
            table,
            meters,
            away,
            services,
        })
    }

    /// The meter's turns of a round, one a delay: what is compared ran within minutes. Each round begins with another
    /// delay, since the first turn may find a colder machine.
    fn delayed(&self, index: u32, delays: &[u64]) -> anyhow::Result<Vec<Run>> {
        let away = self.away.as_ref().context("there is a way to Redis")?;
        let mut runs = Vec::new();
        for step in 0..delays.len() {
            let nth = (index as usize + step) % delays.len();
            let (meter, _) = &self.meters[index as usize * delays.len() + nth];
            let mut probe = RedisProbe::open(&self.services.redis_url)?;
            away.set_delay_ms(delays[nth]);
            let measured = meter.work_off(self.events, &mut probe);
            away.set_delay_ms(0);
            let run = measured?.run;
            let rate = run.events as f64 / run.seconds;
            say(&format!("round {} of {}: {} ms away, meter {rate:.0}/s", index + 1, self.rounds, delays[nth]));
            meter.check(&self.table, self.events, &mut probe).context("the meter has counted wrongly")?;
            probe.delete(&meter.name)?;
            runs.push((nth, run));
        }
        runs.sort_by_key(|(nth, _)| *nth);
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    fn round(&self, index: u32, runtime: &Runtime) -> anyhow::Result<Round> {
        let told = |name: &str, run: Run| {
            let rate = run.events as f64 / run.seconds;
            say(&format!("round {} of {}: {name} {rate:.0}/s", index + 1, self.rounds));
            run
        };
        let Services { brokers, redis_url, .. } = &self.services;
        let consume = told("consume", readers::consume(brokers, &self.usage, self.events)?);
        let parse = readers::parse(brokers, &self.usage, self.events, self.table.dead_lettered)?;
        let parse = told("parse", parse);
        let few = if self.quick { 2_000 } else { self.events };
        let obvious = self.obvious(1, (few / OBVIOUS_SHARE).max(1_000), runtime)?;
        let obvious = told("obvious", obvious);
        let pipelined = told("pipelined", self.obvious(PIPELINE, (few / PIPELINED_SHARE).max(1_000), runtime)?);

        let (meter, bytes_per_account) = &self.meters[index as usize];
        let mut probe = RedisProbe::open(redis_url)?;
        let before = probe.used_memory()?;
        let measured = meter.work_off(self.events, &mut probe)?;
        let bytes_per_event = (probe.used_memory()? - before) / self.events as f64;
        told("meter", measured.run);
        say(&format!("processor seconds of its threads: {}", measured.threads));
        meter.check(&self.table, self.events, &mut probe).context("the meter has counted wrongly")?;
        probe.delete(&meter.name)?;
        Ok(Round {
            consume,
            parse,
            obvious,
            pipelined,
            meter: measured.run,
            bytes_per_event,
            bytes_per_account: *bytes_per_account,
            rss_mb: measured.rss_mb,
        })
    }

    /// In a database of its own, where Redis is ours: emptying that leaves nothing behind for the next turn.
    fn obvious(&self, pipeline: usize, events: u64, runtime: &Runtime) -> anyhow::Result<Run> {
        let own = self.services.are_own();
        let redis_url = if own { format!("{}1", self.services.redis_url) } else { self.services.redis_url.clone() };
        let mut probe = RedisProbe::open(&redis_url)?;
        let prefix = format!("{}-obvious", self.usage);
        let worker = Obvious {
            brokers: &self.services.brokers,
            topic: &self.usage,
            redis_url: &redis_url,
            prefix: &prefix,
            pipeline,
        };
        let run = runtime.block_on(worker.run(events, &mut probe))?;
        if own {
            probe.flush()?
        } else {
            probe.delete(&prefix)?
        }
        Ok(run)
    }

    /// What the figures were taken on.
    fn facts(&self) -> anyhow::Result<Vec<(&'static str, Value)>> {
        let mut probe = RedisProbe::open(&self.services.redis_url)?;
        let bytes = self.table.bytes as f64 / self.events as f64;
        Ok(vec![
            ("events", json!(self.events)),
            ("rounds", json!(self.rounds)),
            ("event_bytes", json!((bytes * 10.0).round() / 10.0)),
            ("accounts", json!(ACCOUNTS)),
            ("partitions", json!(PARTITIONS)),
            ("shards", json!(self.shards)),
            ("cores", json!(machine::cores())),
            ("cpu", json!(machine::cpu_model())),
            ("linux", json!(machine::kernel())),
            ("kafka", json!(self.services.kafka_version)),
            ("redis", json!(probe.info("server", "redis_version")?)),
            ("redis_settings", json!(probe.appendonly()?)),
            ("librdkafka", json!(rdkafka::util::get_rdkafka_version().1)),
            ("credit_meter", json!(env!("CARGO_PKG_VERSION"))),
        ])
    }
}
