//! The shards in a real Redis: one connection, and what is known after it fails.
//!
//! The client retries nothing by itself. A call without an answer is *indefinite*: the caller sends the same
//! call again, and the fence lets it in once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;

use super::apply_call::ApplyScript;
use super::keys::{Key, Keys};
use super::scripts::{
    ALL, CommandScript, ForgetScript, InitScript, RootScript, Script, TakeScript, TimeScript, WipeScript,
};
use super::stored::{parse_counters, parse_days, parse_root, parse_shard, parse_view};
use super::words::Fields;
use super::{AccountState, DaysPage, Root, ShardState, StoreError, TakeCall, Taken};
use crate::ledger::call::{Applied, ApplyCall, CommandCall, Commanded, Reply};
use crate::ledger::shard::{InitCall, InitReply};
use crate::ledger::time::{ForgetCall, TimeCall, TimeReply};
use crate::metrics;

/// How often a script may be missing in a row before the call is given up: something flushes scripts in a loop.
const NOSCRIPT_MAX: usize = 100;

#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

struct Shared {
    keys: Keys,
    client: Client,
    /// Host and port, without user and password.
    shown: String,
    timeout: Duration,
    hashes: BTreeMap<&'static str, String>,
    connection: Mutex<Connection>,
    failpoint: Option<Failpoint>,
}

/// The connection: down until a call needs it, and down again when its state is unknown.
enum Connection {
    Down,
    Up { connection: MultiplexedConnection, epoch: u64 },
}

/// A named place at which a test kills the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// The script has run; the worker has not seen its reply.
    AfterApply,
}

impl Failpoint {
    pub fn from_name(name: &str) -> Option<Failpoint> {
        (name == "after_apply").then_some(Failpoint::AfterApply)
    }
}

impl RedisStore {
    pub fn new(
        url: &str,
        prefix: &str,
        shards: u32,
        timeout: Duration,
        failpoint: Option<Failpoint>,
    ) -> Result<RedisStore, StoreError> {
        let bad_url =
            |reason: String| StoreError::Broken(format!("redis.url is not a redis:// or unix:// address: {reason}"));
        let client = Client::open(url).map_err(|error| bad_url(error.to_string()))?;
        let shown = client.get_connection_info().addr().to_string();
        let hashes = ALL.iter().map(|(name, source)| (*name, redis::Script::new(source).get_hash().to_owned()));
        Ok(RedisStore {
            shared: Arc::new(Shared {
                keys: Keys::new(prefix, shards),
                client,
                shown,
                timeout,
                hashes: hashes.collect(),
                connection: Mutex::new(Connection::Down),
                failpoint,
            }),
        })
    }

    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    pub async fn root(&self, proposed: &Root) -> Result<Root, StoreError> {
        self.run(&RootScript(proposed)).await
    }

    pub async fn stored_root(&self) -> Result<Option<Root>, StoreError> {
        let key = self.shared.keys.spell(Key::Root);
        let stored: Option<String> = self.read(redis::cmd("GET").arg(key)).await?;
        stored.map(|text| parse_root(&text)).transpose()
    }

    pub async fn init(&self, shard: u32, call: &InitCall) -> Result<InitReply, StoreError> {
        self.run(&InitScript { shard, call }).await
    }

    pub async fn apply(&self, shard: u32, call: &ApplyCall) -> Result<Reply<Applied>, StoreError> {
        let reply = self.run(&ApplyScript { shard, call }).await?;
        if self.shared.failpoint == Some(Failpoint::AfterApply) && matches!(reply, Reply::Applied(_)) {
            tracing::warn!(shard, "failpoint: the script has run, the process ends");
            std::process::abort();
        }
        Ok(reply)
    }

    pub async fn command(&self, shard: u32, call: &CommandCall) -> Result<Reply<Commanded>, StoreError> {
        self.run(&CommandScript { shard, call }).await
    }

    pub async fn take(&self, shard: u32, call: &TakeCall) -> Result<Taken, StoreError> {
        self.run(&TakeScript { shard, call }).await
    }

    pub async fn move_time(&self, shard: u32, call: &TimeCall) -> Result<TimeReply, StoreError> {
        self.run(&TimeScript { shard, call }).await
    }

    pub async fn forget(&self, shard: u32, call: &ForgetCall) -> Result<Option<u64>, StoreError> {
        self.run(&ForgetScript { shard, call }).await
    }

    pub async fn days(&self, shard: u32, cursor: u64, count: usize) -> Result<DaysPage, StoreError> {
        let key = self.shared.keys.spell(Key::Due(shard));
        let (next, entries): (u64, Vec<(String, f64)>) =
            self.read(redis::cmd("ZSCAN").arg(key).arg(cursor).arg("COUNT").arg(count)).await?;
        let mut accounts = Vec::new();
        for (account, _) in entries {
            let key = self.shared.keys.spell(Key::Account(&account));
            let days: Option<String> = self.read(redis::cmd("HGET").arg(key).arg("days")).await?;
            accounts.push((account.into(), parse_days(days.as_deref().unwrap_or_default())?));
        }
        Ok((next, accounts))
    }

    pub async fn has_keys(&self, shard: u32) -> Result<bool, StoreError> {
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(shard, cursor).await?;
            // A relay that goes on asks for its lease, whatever the shard holds.
            let relay = self.shared.keys.spell(Key::Relay(shard));
            let found = keys.iter().any(|key| *key != relay);
            if found || next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    pub async fn wipe(&self, shard: u32) -> Result<u64, StoreError> {
        let fence = self.shared.keys.spell(Key::Shard(shard));
        let mut wiped = self.run(&WipeScript { keys: vec![fence] }).await?;
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(shard, cursor).await?;
            if !keys.is_empty() {
                wiped += self.run(&WipeScript { keys }).await?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(wiped);
            }
        }
    }

    async fn scan(&self, shard: u32, cursor: u64) -> Result<(u64, Vec<String>), StoreError> {
        let pattern = self.shared.keys.pattern(shard);
        self.read(redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000)).await
    }

    pub async fn shard_state(&self, shard: u32) -> Result<ShardState, StoreError> {
        let key = self.shared.keys.spell(Key::Shard(shard));
        let fields: BTreeMap<String, String> = self.read(redis::cmd("HGETALL").arg(key)).await?;
        parse_shard(&fields)
    }

    pub async fn account(&self, account: &str) -> Result<Option<AccountState>, StoreError> {
        let key = self.shared.keys.spell(Key::Account(account));
        let fields: BTreeMap<String, String> = self.read(redis::cmd("HGETALL").arg(key)).await?;
        if fields.is_empty() {
            return Ok(None);
        }
        let counters = parse_counters(&fields)?.into_iter().collect();
        Ok(Some(AccountState { view: parse_view(&fields)?, counters }))
    }

    /// Runs a command that only reads.
    pub async fn read<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, StoreError> {
        let (mut connection, epoch) = self.connected().await?;
        match command.query_async(&mut connection).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(error, epoch).await),
        }
    }

    pub(super) async fn run<S: Script>(&self, script: &S) -> Result<S::Reply, StoreError> {
        let input = script.input(&self.shared.keys);
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.shared.hashes[S::NAME]).arg(input.keys.len());
        command.arg(&input.keys).arg(&input.arguments);
        for _ in 0..NOSCRIPT_MAX {
            let (mut connection, epoch) = self.connected().await?;
            match command.query_async::<Value>(&mut connection).await {
                Ok(value) => return script.reply(Fields::of(value)),
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    // Nothing ran: Redis has restarted, or its scripts were flushed.
                    if let Err(error) = load(&mut connection, S::SOURCE).await {
                        return Err(self.failed(error, epoch).await);
                    }
                }
                Err(error) => return Err(self.failed(error, epoch).await),
            }
        }
        Err(self.refused(format!("{}.lua vanishes each time it is loaded: something flushes scripts", S::NAME)))
    }

    async fn connected(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        let mut state = self.shared.connection.lock().await;
        if let Connection::Up { connection, epoch } = &*state {
            return Ok((connection.clone(), *epoch));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.shared.timeout))
            .set_response_timeout(Some(self.shared.timeout));
        let opened = self.shared.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = opened.map_err(|error| self.indefinite(&error))?;
        for (_, source) in ALL {
            load(&mut connection, source).await.map_err(|error| self.indefinite(&error))?;
        }
        let epoch = metrics::record_redis_connect();
        tracing::info!(redis = %self.shared.shown, "connected");
        *state = Connection::Up { connection: connection.clone(), epoch };
        Ok((connection, epoch))
    }

    /// Says what a failure means, and drops the connection where its state is unknown or its server is wrong.
    async fn failed(&self, error: RedisError, epoch: u64) -> StoreError {
        let server_refused = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
        let demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        if !server_refused || demoted {
            let mut state = self.shared.connection.lock().await;
            // A later connection is not this failure's.
            if matches!(&*state, Connection::Up { epoch: current, .. } if *current == epoch) {
                *state = Connection::Down;
            }
        }
        if server_refused { self.refused(error.to_string()) } else { self.indefinite(&error) }
    }

    fn indefinite(&self, error: &RedisError) -> StoreError {
        StoreError::Indefinite { url: self.shared.shown.clone(), reason: error.to_string() }
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Refused { url: self.shared.shown.clone(), reason }
    }
}

async fn load(connection: &mut MultiplexedConnection, source: &str) -> Result<(), RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(source).query_async::<Value>(connection).await?;
    Ok(())
}
