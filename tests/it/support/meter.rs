//! A meter as users run it: the real program, as a process of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::outcome::Outcome;
use credit_meter::store::{ShardState, Store};

use super::kafka::Topics;
use super::redis::free_port;
use super::{service, until, until_reached};

const PROGRAM: &str = env!("CARGO_BIN_EXE_credit-meter");
pub const SHARDS: u32 = 4;

/// The settings of one test's meter. Any number of processes may run with them.
#[derive(Clone)]
pub struct Meter {
    program: PathBuf,
    /// Where it is started, if that is not where the test is.
    folder: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    pub prefix: String,
    pub store: Store,
}

/// A running process; killed when it is dropped.
pub struct Running {
    pub child: Child,
    pub http: String,
}

impl Meter {
    pub fn new(topics: &Topics, catalogue: &str) -> Meter {
        Meter::named(&topics.prefix, topics, catalogue)
    }

    /// A meter of its own on the same topics.
    pub fn named(prefix: &str, topics: &Topics, catalogue: &str) -> Meter {
        let prefix = prefix.to_owned();
        let url = service("REDIS_URL");
        let store = super::redis::store(&url, &prefix, SHARDS);
        let mut meter = Meter {
            program: PROGRAM.into(),
            folder: None,
            environment: BTreeMap::new(),
            prefix: prefix.clone(),
            store: Store::Redis(store),
        };
        meter.set("KAFKA__BROKERS", &topics.brokers);
        meter.set("KAFKA__GROUP", &prefix);
        // A killed worker holds its partitions until its session ends.
        meter.set("KAFKA__SESSION_TIMEOUT", "6s");
        for role in ["usage", "commands", "denied", "alerts", "cycles", "ledger", "ticks"] {
            meter.set(&format!("KAFKA__TOPICS__{}", role.to_uppercase()), &topics.name(role));
        }
        meter.set("KAFKA__TOPICS__DEAD_LETTER", &topics.name("dead-letter"));
        meter.set("REDIS__URL", &url);
        meter.set("REDIS__PREFIX", &prefix);
        meter.set("REDIS__SHARDS", &SHARDS.to_string());
        meter.set("CATALOGUE__PATH", catalogue);
        meter
    }

    pub fn set(&mut self, key: &str, value: &str) {
        self.environment.insert(format!("CREDIT_METER__{key}"), value.to_owned());
    }

    /// Another version of the program. It knows its own settings only, so it is started where it finds no file of them.
    pub fn use_program(&mut self, program: &Path) {
        self.program = program.to_owned();
        self.folder = Some(std::env::temp_dir());
        let catalogue = &self.environment["CREDIT_METER__CATALOGUE__PATH"];
        let catalogue = Path::new(env!("CARGO_MANIFEST_DIR")).join(catalogue).to_string_lossy().into_owned();
        self.set("CATALOGUE__PATH", &catalogue);
    }

    /// Another Redis than the one that all tests share.
    pub fn use_redis(&mut self, url: &str) {
        let store = super::redis::store(url, &self.prefix, SHARDS);
        self.store = Store::Redis(store);
        self.set("REDIS__URL", url);
    }

    /// A Redis that Sentinels lead to.
    pub fn use_sentinels(&mut self, url: &str, password: &str) {
        let store = super::redis::store_by(url, Some(password), &self.prefix, SHARDS);
        self.store = Store::Redis(store);
        self.set("REDIS__URL", url);
        self.set("REDIS__SENTINEL__PASSWORD", password);
    }

    /// The program with its settings, for a test that runs it in its own way.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(&self.environment);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Starts a worker; `extra` is for this process only.
    pub fn start(&self, extra: &[(&str, &str)]) -> Running {
        self.start_with(&["serve"], extra)
    }

    /// Starts a worker whose log and last words go to a file.
    pub fn start_telling(&self, extra: &[(&str, &str)], told: &Path) -> Running {
        let told = std::fs::File::create(told).expect("a file");
        self.spawn(&["serve"], extra, &[], told.into())
    }

    /// Starts a worker on a machine of its own kind: what it says goes there, and its environment says more.
    pub fn start_on(&self, environment: &[(&str, &str)], told: impl Into<Stdio>) -> Running {
        self.spawn(&["serve"], &[], environment, told.into())
    }

    /// Starts a command that serves until it is stopped.
    pub fn start_with(&self, arguments: &[&str], extra: &[(&str, &str)]) -> Running {
        self.spawn(arguments, extra, &[], Stdio::inherit())
    }

    fn spawn(&self, arguments: &[&str], extra: &[(&str, &str)], environment: &[(&str, &str)], told: Stdio) -> Running {
        let http = format!("127.0.0.1:{}", free_port());
        let mut command = self.command();
        command.args(arguments).env("CREDIT_METER__HTTP__LISTEN", &http).stdin(Stdio::null()).stderr(told);
        for (key, value) in extra {
            command.env(format!("CREDIT_METER__{key}"), value);
        }
        command.envs(environment.iter().copied());
        Running { child: command.spawn().expect("the program starts"), http }
    }

    /// Runs a command of the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().expect("the program starts")
    }

    /// What `--json` printed.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {told}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {told}"))
    }

    /// Folds the log again and compares it with Redis: there must be no difference, also while a worker goes on.
    pub fn audit(&self) -> serde_json::Value {
        let output = self.run(&["audit", "--json"]);
        let (told, found) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "the audit fails: {told}{found}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}{found}"))
    }

    /// The one account of those numbered from 0 that is the first of a shard.
    pub fn account_of(&self, shard: u32) -> String {
        let Store::Redis(store) = &self.store else { unreachable!("the tests use a real redis") };
        let mut accounts = (0..).map(|number| format!("team-{number}"));
        accounts.find(|account| store.keys().shard_of(account) == shard).expect("every shard has accounts")
    }

    pub fn key(&self, key: credit_meter::store::keys::Key) -> String {
        let Store::Redis(store) = &self.store else { unreachable!("the tests use a real redis") };
        store.keys().spell(key)
    }

    pub async fn states(&self) -> Vec<ShardState> {
        let mut states = Vec::new();
        for shard in 0..SHARDS {
            // A test may have broken the connection: the next one is new.
            states.push(until("redis answers", || async { self.store.shard_state(shard).await.ok() }).await);
        }
        states
    }

    /// The position that every shard has passed.
    pub async fn applied(&self, partition: Partition) -> i64 {
        let of =
            |state: &ShardState| state.positions.iter().find(|(own, _)| *own == partition).map_or(0, |(_, at)| *at);
        self.states().await.iter().map(of).min().expect("there are shards")
    }

    /// The sum of all positions of all shards: grows with every call that is applied.
    pub async fn progress(&self) -> i64 {
        let usage = |partition: &Partition| *partition != Partition::COMMANDS;
        let states = self.states().await;
        states.iter().flat_map(|state| &state.positions).filter(|(own, _)| usage(own)).map(|(_, at)| at).sum()
    }

    /// Waits until at least so many more records are applied, on an average over the shards.
    pub async fn applies(&self, records: i64) {
        let enough = self.progress().await + records * i64::from(SHARDS);
        until("records are applied", || async { (self.progress().await >= enough).then_some(()) }).await;
    }

    /// Records by how they ended, over all shards.
    pub async fn totals(&self, input: &str) -> BTreeMap<Outcome, u64> {
        let mut totals = BTreeMap::new();
        for (partition, outcome, records) in self.states().await.into_iter().flat_map(|state| state.totals) {
            if partition.input.name() == input {
                *totals.entry(outcome).or_insert(0) += records;
            }
        }
        totals
    }

    pub fn shard_key(&self, shard: u32) -> String {
        let Store::Redis(store) = &self.store else { unreachable!("the tests use a real redis") };
        store.keys().spell(credit_meter::store::keys::Key::Shard(shard))
    }

    /// Waits until all records of the input topics are applied.
    pub async fn caught_up(&self, topics: &Topics) {
        let mut ends: Vec<(Partition, i64)> = vec![(Partition::COMMANDS, topics.ends("commands", 1)[0])];
        let usage = topics.ends("usage", topics.partitions.load(Ordering::Relaxed));
        ends.extend(usage.into_iter().enumerate().map(|(index, end)| (Partition::usage(index as i32), end)));
        for (partition, end) in ends {
            until_reached(&format!("{partition} is applied"), end, || self.applied(partition)).await;
        }
    }

    /// Waits until the relays have published everything.
    pub async fn published(&self) {
        let Store::Redis(store) = &self.store else { unreachable!("the tests use a real redis") };
        for shard in 0..SHARDS {
            let key = store.keys().spell(credit_meter::store::keys::Key::Outbox(shard));
            until(&format!("the outbox of shard {shard} is empty"), || async {
                let entries: usize = store.read(redis::cmd("XLEN").arg(&key)).await.ok()?;
                (entries == 0).then_some(())
            })
            .await;
        }
    }
}

impl Meter {
    /// Ids of the messages that wait in the outboxes.
    pub async fn waiting_messages(&self) -> BTreeSet<String> {
        let Store::Redis(store) = &self.store else { unreachable!("the tests use a real redis") };
        let mut ids = BTreeSet::new();
        for shard in 0..SHARDS {
            let key = store.keys().spell(credit_meter::store::keys::Key::Outbox(shard));
            let mut asked = redis::cmd("XRANGE");
            asked.arg(&key).arg("-").arg("+");
            let entries: Vec<(String, BTreeMap<String, String>)> = store.read(&asked).await.expect("redis answers");
            ids.extend(entries.into_iter().map(|(_, entry)| entry["id"].clone()));
        }
        ids
    }
}

impl Running {
    /// The body of a page, once the server answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: meter\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// The sum of a metric over its labels; 0 while there is no answer.
    pub async fn metric(&self, name: &str) -> u64 {
        self.sum(name, |_| true).await
    }

    async fn sum(&self, name: &str, counts: impl Fn(&str) -> bool) -> u64 {
        let Some((200, page)) = self.get("/metrics").await else { return 0 };
        let own = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && counts(line));
        own.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Calls of this worker that the fence has kept out.
    pub async fn fenced(&self) -> u64 {
        self.sum("credit_meter_call_refusals_total", |labels| {
            ["other_position", "done_before"].iter().any(|kind| labels.contains(kind))
        })
        .await
    }

    pub async fn ready(&self) {
        until("the meter is ready", || async { self.get("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    }

    /// Waits until the meter says these words of why it is not ready; gives all that it says.
    pub async fn not_ready(&self, words: &str) -> String {
        until(&format!("readiness says `{words}`"), || async {
            self.get("/readyz?verbose").await.filter(|(status, body)| *status == 503 && body.contains(words))
        })
        .await
        .1
    }

    pub fn signal(&self, signal: &str) {
        super::signal(self.child.id(), signal);
    }

    /// What the process takes of the machine's memory.
    pub fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("linux tells it");
        kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    }

    /// Waits until the process ends by itself.
    pub async fn ends(&mut self, why: &str) -> std::process::ExitStatus {
        until(why, || {
            let ended = self.child.try_wait().expect("it is a child");
            async move { ended }
        })
        .await
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// What it says of its readiness, for a test that fails.
    fn last_words(&self) -> String {
        let mut answer = String::new();
        let asked = TcpStream::connect(&self.http).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            write!(stream, "GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http)?;
            stream.read_to_string(&mut answer)
        });
        asked.map_or_else(|error| error.to_string(), |_| answer)
    }

    /// SIGTERM, and how it ends.
    pub async fn terminate(mut self) -> std::process::ExitStatus {
        self.signal("-TERM");
        self.ends("SIGTERM ends the meter").await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self.child.try_wait();
            eprintln!(
                "the meter at {} when the test failed: ended {state:?}, /readyz: {}",
                self.http,
                self.last_words()
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
