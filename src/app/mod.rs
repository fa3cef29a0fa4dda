//! The wiring of a meter: what it is made of, in which order it starts, and in which it stops.

/// Accounts over HTTP.
mod accounts;
/// How accounts stand.
mod census;
/// What calls have changed, in the metrics.
mod counted;
/// A catalogue into every shard.
mod install;
/// The catalogue's file while the meter runs.
mod reload;
/// Whether positions stand still.
mod stall;
/// From an unknown state to open shards.
pub mod start;
/// What time asks of idle accounts.
mod sweeper;
/// Meter time.
pub mod ticker;
/// Loops that are stuck.
mod watchdog;
/// The loop that carries the pipeline's effects out.
pub mod worker;

use std::backtrace::Backtrace;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, RwLock, mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use accounts::FromRedis;
use census::Census;
use sweeper::Sweeper;

use crate::config::{AgeFrom, Config, read_catalogue};
use crate::http::{self, Accounts, ByShard, Check, Health};
use crate::ingest::client::Cluster;
use crate::ingest::clock;
use crate::ingest::consumer;
use crate::ingest::decode::{self, Decoder};
use crate::ingest::producer::Producer;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::Stamp;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::day::SET_MEMBERS_MAX;
use crate::ledger::shard::name_of_rebuild;
use crate::ledger::usage::JOURNAL_BYTES_MAX;
use crate::log;
use crate::outbox::Relay;
use crate::outbox::known::Known;
use crate::pipeline::{self, Pipeline};
use crate::store::{RedisStore, Store};
use reload::Reloader;
use ticker::Ticker;

/// How long a stopping meter waits for what is under way. What has no answer by then is resent at the next start.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Of the room that the worker has, one part in so many is for usage that waits for slower partitions.
const AHEAD_SHARE: usize = 3;
/// Longer than a failover takes.
const SILENT_AFTER: Duration = Duration::from_secs(5);

/// Runs a meter on real Kafka and Redis until a signal stops it.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    end_on_panic();
    let catalogue = read_catalogue(&config)?;
    let store = RedisStore::new(&config.redis)?;
    let listener = TcpListener::bind(&config.http.listen)
        .await
        .with_context(|| format!("http.listen = {}: is another meter running here?", config.http.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving /metrics, /livez and /readyz");
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    let health = Arc::new(Health::new());
    let (in_force, catalogues) = watch::channel(Arc::new(catalogue));
    let accounts: Option<Arc<dyn Accounts>> = match config.http.accounts {
        true => Some(Arc::new(FromRedis::new(config.clone(), catalogues))),
        false => None,
    };
    let connections_max = config.http.connections_max;
    let http = tokio::spawn(http::serve(listener, health.clone(), accounts, connections_max, stop.clone()));
    let meter = run(config, in_force, Job::Serve, Store::Redis(store), health, stop.clone());
    let result = clock::watched(meter, stop.clone(), clock::START_AGAIN).await;
    stop.cancel();
    http.await.context("the http server")?;
    result
}

/// A task that has panicked would leave its shard waiting for ever: the process ends, and its supervisor starts it anew.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("?").to_owned();
        // Not as the standard library reports it, which waits for a stderr that takes nothing.
        log::tell(&format!("thread '{thread}' {panic}\n{}", Backtrace::capture()));
        std::process::abort();
    }));
}

/// What a meter runs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The only one that looks again at the file that the catalogue came from; else it is the caller's, and SIGHUP ends the
    /// process as ever.
    Serve,
    /// What the log holds is applied in the order in which it was appended.
    Rebuild {
        id: Uuid,
        usage_partitions: i32,
    },
    Demo,
}

impl Job {
    /// Under which name a state lets in who does this: calls bear it, as its generation.
    pub fn state_name(self, generation: &str) -> String {
        match self {
            Job::Rebuild { id, .. } => name_of_rebuild(generation, id),
            Job::Serve | Job::Demo => generation.to_owned(),
        }
    }
}

/// Runs a meter until it is told to stop. `in_force`: the catalogue, and who else follows it.
pub async fn run(
    config: Config,
    in_force: watch::Sender<Arc<Catalogue>>,
    job: Job,
    store: Store,
    health: Arc<Health>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (catalogue, catalogues) = (in_force.borrow().clone(), in_force.subscribe());
    worker::start_series(&catalogue);
    let watermarks = Watermarks::new(&config.kafka)?;
    let producer = Arc::new(Producer::new(&config.kafka)?);
    let generation = tokio::select! {
        opened = start::open(&config, &catalogue, &store, &watermarks, &producer, &health, job) => opened?,
        () = stop.cancelled() => return Ok(()),
    };

    let state_name = job.state_name(&generation);

    let (alerts, alerted) = mpsc::channel(census::ALERTED_MAX);
    let relay = Arc::new(Relay {
        store: store.clone(),
        producer: producer.clone(),
        topics: config.kafka.topics.clone(),
        settings: config.outbox.clone(),
        source: config.redis.prefix.clone(),
        name: uuid::Uuid::now_v7().to_string(),
        waiting: ByShard::new(health.clone(), Check::Outbox),
        known: Known::new(
            config.redis.shards,
            config.outbox.lease.max(2 * config.outbox.poll) + config.redis.timeout,
            config.health.outbox_after,
        ),
        bells: (0..config.redis.shards).map(|_| Notify::new()).collect(),
        alerts,
        publishing: RwLock::default(),
    });
    let stop_relays = CancellationToken::new();
    let relays: Vec<_> =
        (0..config.redis.shards).map(|shard| tokio::spawn(relay.clone().run(shard, stop_relays.clone()))).collect();

    let stamp = Arc::new(Stamp {
        generation: state_name.clone(),
        catalogue: catalogue.id.clone(),
        usage_topic: config.kafka.topics.usage.clone(),
        restamp_tolerance_ms: config.events.restamp_tolerance.as_millis() as i64,
        breakdown: config.usage.breakdown,
        outbox_max: config.outbox.max_entries,
        set_members_max: SET_MEMBERS_MAX,
        journal_bytes_max: JOURNAL_BYTES_MAX,
    });
    let (lead, leads) = watch::channel(false);
    let ticker = Ticker {
        config: config.clone(),
        store: store.clone(),
        producer: producer.clone(),
        watermarks: watermarks.clone(),
        cluster: Cluster::new(&config.kafka)?,
        generation: state_name.clone(),
        sweeper: Arc::new(Sweeper {
            store: store.clone(),
            relay: relay.clone(),
            catalogues: catalogues.clone(),
            stamp: (*stamp).clone(),
            late_after_ms: config.events.late_after.as_millis() as i64,
            busy: (0..config.redis.shards).map(|_| AtomicBool::new(false)).collect(),
        }),
        leads,
        health: health.clone(),
    };
    let ticker = tokio::spawn(ticker.run(stop.clone()));
    let census = Census {
        store: store.clone(),
        relay: relay.clone(),
        catalogues: catalogues.clone(),
        shards: config.redis.shards,
        settings: config.metrics.clone(),
        alerted,
    };
    tokio::spawn(census.run(stop.clone()));

    let other_catalogue = Arc::new(Notify::new());
    let reloader = Reloader {
        config: config.clone(),
        store: store.clone(),
        generation: state_name,
        other_catalogue: other_catalogue.clone(),
        in_force,
    };
    if job == Job::Serve {
        tokio::spawn(reloader.run(stop.clone()));
    }

    // Where records have times of their own, those of a backlog order them.
    let in_order = matches!(job, Job::Rebuild { .. }) || config.events.age_from == AgeFrom::Create;
    let (from_kafka, events) = mpsc::unbounded_channel();
    let reader = consumer::spawn(
        consumer::Settings {
            kafka: config.kafka.clone(),
            age_from: config.events.age_from,
            decoder: Decoder::new(decode::Settings::of(&config.events), Arc::new(catalogue.conditions())),
            generation,
            in_order,
            ahead_max: config.batch.queue_max / AHEAD_SHARE,
        },
        from_kafka,
    )?;
    let settings = pipeline::Settings {
        shards: config.redis.shards,
        bounds: pipeline::lane::Bounds {
            max_events: config.batch.max_events,
            max_bytes: config.batch.max_bytes,
            max_age_ms: config.batch.max_age.as_millis() as u64,
        },
        queue_max: config.batch.queue_max,
        dead_limit: pipeline::DeadLimit {
            records: config.events.dead_letters_max,
            among: config.events.dead_letters_among as i64,
        },
        late_after_ms: config.events.late_after.as_millis() as i64,
        silent_ms: SILENT_AFTER.as_millis() as u64,
        in_order,
    };
    let pipeline = Pipeline::new(settings, stamp, catalogue);
    let pulse = Arc::new(watchdog::Pulse::default());
    let stop_watchdog = stop.child_token();
    tokio::spawn(watchdog::run(pulse.clone(), health.clone(), stop_watchdog));
    let worker = worker::Worker::new(worker::Parts {
        config,
        job,
        pipeline,
        store,
        reader: reader.control,
        enough: reader.enough,
        producer,
        relay,
        watermarks,
        health,
        lead,
        catalogues,
        other_catalogue,
        pulse,
    });

    // The order of stopping: the worker (reads no more, waits for its calls, commits) · the reader (leaves the
    // group) · the relays (their outboxes stay in Redis for the next).
    let worked = worker.run(events, stop, STOP_WAIT).await;
    let left = tokio::task::spawn_blocking(move || reader.thread.join());
    if tokio::time::timeout(STOP_WAIT, left).await.is_err() {
        tracing::warn!("kafka did not let the consumer go in time; its partitions wait for the session to expire");
    }
    ticker.abort();
    stop_relays.cancel();
    let deadline = tokio::time::Instant::now() + STOP_WAIT;
    for relay in relays {
        let _ = tokio::time::timeout_at(deadline, relay).await;
    }
    worked
}

/// Cancels on SIGTERM or ctrl-c.
pub async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = signal(SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(error) => {
            tracing::warn!(%error, "no SIGTERM handler; ctrl-c stops the meter");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
    tracing::info!("stopping");
    stop.cancel();
}
