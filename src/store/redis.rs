//! The shards in a real Redis, or in a Redis Cluster.
//!
//! The client retries nothing by itself. A call without an answer is *indefinite*: the caller sends the same
//! call again, and the fence lets it in once.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Cmd;

use super::apply_call::ApplyScript;
use super::durable::{Durable, OwnConnections};
use super::keys::{Key, Keys, slot_of};
use super::nodes::{Node, Nodes, Request};
use super::scripts::{
    ALL, CommandScript, ForgetScript, InitScript, NameScript, RollScript, RootScript, Script, TakeScript, TimeScript,
    WipeScript,
};
use super::stored::{parse_counters, parse_days, parse_denied, parse_root, parse_shard, parse_view};
use super::words::Fields;
use super::{AccountState, BEING_REBUILT, DaysPage, Root, ShardState, StoreError, TakeCall, Taken, shard_lost};
use crate::config::Redis;
use crate::failpoint::{self, Failpoint};
use crate::ledger::call::{Applied, ApplyCall, CommandCall, Commanded, Reply, account_lost};
use crate::ledger::roll::RollCall;
use crate::ledger::shard::{InitCall, InitReply, NameReply, is_name_of_rebuild};
use crate::ledger::time::{ForgetCall, TimeCall, TimeReply};

#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

struct Shared {
    keys: Keys,
    nodes: Nodes,
    /// For the relays, whose WAIT would hold up everyone else.
    own: OwnConnections,
    hashes: BTreeMap<&'static str, String>,
}

impl RedisStore {
    pub fn new(redis: &Redis) -> Result<RedisStore, StoreError> {
        let hashes = ALL.iter().map(|(name, source)| (*name, redis::Script::new(source).get_hash().to_owned()));
        Ok(RedisStore {
            shared: Arc::new(Shared {
                keys: Keys::new(&redis.prefix, redis.shards),
                nodes: Nodes::new(redis)?,
                own: OwnConnections::new(redis.shards),
                hashes: hashes.collect(),
            }),
        })
    }

    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    pub async fn root(&self, proposed: &Root) -> Result<Root, StoreError> {
        let root = self.run(&RootScript(proposed)).await?;
        failpoint::reached(Failpoint::AfterRoot);
        Ok(root)
    }

    pub async fn stored_root(&self) -> Result<Option<Root>, StoreError> {
        let key = self.shared.keys.spell(Key::Root);
        let stored: Option<String> = self.read(redis::cmd("GET").arg(key)).await?;
        stored.map(|text| parse_root(&text)).transpose()
    }

    pub async fn init(&self, shard: u32, call: &InitCall) -> Result<InitReply, StoreError> {
        let reply = self.run(&InitScript { shard, call }).await?;
        failpoint::reached(Failpoint::AfterInit);
        Ok(reply)
    }

    pub async fn apply(&self, shard: u32, call: &ApplyCall) -> Result<Reply<Applied>, StoreError> {
        failpoint::reached(Failpoint::BeforeApply);
        let reply = self.run(&ApplyScript { shard, call }).await?;
        match reply {
            Reply::Applied(_) => failpoint::reached(Failpoint::AfterApply),
            Reply::Dead(_) => failpoint::reached(Failpoint::AfterNote),
            _ => {}
        }
        Ok(reply)
    }

    pub async fn roll(&self, shard: u32, call: &RollCall) -> Result<Reply<()>, StoreError> {
        self.run(&RollScript { shard, call }).await
    }

    pub async fn command(&self, shard: u32, call: &CommandCall) -> Result<Reply<Commanded>, StoreError> {
        let reply = self.run(&CommandScript { shard, call }).await?;
        if matches!(reply, Reply::Applied(_)) {
            failpoint::reached(Failpoint::AfterCommand);
        }
        Ok(reply)
    }

    pub async fn take(&self, shard: u32, call: &TakeCall) -> Result<Taken, StoreError> {
        let script = TakeScript { shard, call };
        match &call.durable {
            None => self.run(&script).await,
            Some(durable) => {
                let (command, key) = self.evalsha(&script);
                let Shared { own, nodes, .. } = &*self.shared;
                own.take(shard, nodes, &script, &command, &key, durable).await
            }
        }
    }

    /// Whether every node can tell that a write is durable, or why not.
    pub async fn check_durable(&self, durable: &Durable) -> Result<(), StoreError> {
        for node in self.primaries().await?.0 {
            self.shared
                .nodes
                .ask(&node, &durable.probe())
                .await
                .map_err(|error| durable.unfit(&node.address, error))?;
        }
        Ok(())
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

    /// Since when the oldest of about so many accounts has been there, from a cursor on, and where to go on: 0 at the end.
    pub async fn oldest(&self, shard: u32, cursor: u64, count: usize) -> Result<(u64, Option<i64>), StoreError> {
        let (next, accounts) = self.names(shard, cursor, count).await?;
        let mut oldest: Option<i64> = None;
        for account in accounts {
            let key = self.shared.keys.spell(Key::Account(&account));
            let fields: BTreeMap<String, String> = self.read(redis::cmd("HGETALL").arg(key)).await?;
            // What is not there or cannot be read is told where it is asked for.
            let since_ms = parse_view(&fields).ok().map(|view| view.since_ms);
            oldest = [oldest, since_ms].into_iter().flatten().min();
        }
        Ok((next, oldest))
    }

    pub async fn due_by(
        &self,
        shard: u32,
        time_ms: i64,
        skip: usize,
        count: usize,
    ) -> Result<Vec<Arc<str>>, StoreError> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(self.shared.keys.spell(Key::Due(shard))).arg("-inf").arg(time_ms);
        let accounts: Vec<String> = self.read(range.arg("LIMIT").arg(skip).arg(count)).await?;
        Ok(accounts.into_iter().map(Arc::from).collect())
    }

    pub async fn has_keys(&self, shard: u32) -> Result<bool, StoreError> {
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(shard, cursor).await?;
            // A relay that goes on asks for its lease, whatever the shard holds; a price list is not counted with.
            let nothing = [Key::Relay(shard), Key::Catalogue(shard)].map(|key| self.shared.keys.spell(key));
            let found = keys.iter().any(|key| !nothing.contains(key));
            if found || next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    pub async fn name(
        &self,
        shard: u32,
        from: &str,
        to: &str,
        rebuilt_s: Option<u32>,
    ) -> Result<NameReply, StoreError> {
        let reply = self.run(&NameScript { shard, from, to, rebuilt_s }).await?;
        failpoint::reached(Failpoint::AfterName);
        Ok(reply)
    }

    pub async fn wipe_fence(&self, shard: u32) -> Result<u64, StoreError> {
        let wiped = self.run(&WipeScript { keys: vec![self.shared.keys.spell(Key::Shard(shard))] }).await?;
        failpoint::reached(Failpoint::AfterFenceWiped);
        Ok(wiped)
    }

    pub async fn wipe(&self, shard: u32) -> Result<u64, StoreError> {
        let mut wiped = self.wipe_fence(shard).await?;
        loop {
            wiped += self.wipe_rest(shard).await?;
            // Who has made it anew meanwhile has written behind the scan.
            match self.wipe_fence(shard).await? {
                0 => break,
                made => wiped += made,
            }
        }
        failpoint::reached(Failpoint::AfterWipe);
        Ok(wiped)
    }

    async fn wipe_rest(&self, shard: u32) -> Result<u64, StoreError> {
        let (mut wiped, mut cursor) = (0, 0);
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
        let key = self.shared.keys.spell(Key::Shard(shard));
        self.read_of(&key, redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000)).await
    }

    pub async fn shard_state(&self, shard: u32) -> Result<ShardState, StoreError> {
        let key = self.shared.keys.spell(Key::Shard(shard));
        let fields: BTreeMap<String, String> = self.read(redis::cmd("HGETALL").arg(key)).await?;
        parse_shard(&fields)
    }

    /// Refused where it is not known: while a rebuild is under way, and where Redis has lost the shard or the account.
    pub async fn account(&self, account: &str) -> Result<Option<AccountState>, StoreError> {
        let keys = &self.shared.keys;
        let shard = keys.shard_of(account);
        let key = keys.spell(Key::Account(account));
        let (due, fence) = (keys.spell(Key::Due(shard)), keys.spell(Key::Shard(shard)));
        // In this order, whatever is written meanwhile: an account is listed when it is made, and what a rebuild has deleted
        // is not taken for what there was before it.
        let listed: Option<String> = self.read(redis::cmd("ZSCORE").arg(due).arg(account)).await?;
        let fields: BTreeMap<String, String> = self.read(redis::cmd("HGETALL").arg(&key)).await?;
        let name: Option<String> = self.read(redis::cmd("HGET").arg(fence).arg("generation")).await?;
        match name {
            None => return Err(StoreError::Unfit(shard_lost(shard))),
            Some(name) if is_name_of_rebuild(&name) => return Err(StoreError::Unfit(BEING_REBUILT.to_owned())),
            Some(_) => {}
        }
        if fields.is_empty() {
            return match listed {
                Some(_) => Err(StoreError::Unfit(account_lost(account, shard))),
                None => Ok(None),
            };
        }
        let parsed = || {
            let counters = parse_counters(&fields)?.into_iter().collect();
            Ok(AccountState { view: parse_view(&fields)?, counters, denied: parse_denied(&fields)? })
        };
        parsed().map(Some).map_err(|error| match error {
            StoreError::Broken(what) => StoreError::Broken(format!("`{key}`: {what}")),
            error => error,
        })
    }

    /// Runs a command that only reads; its first argument is its key.
    pub async fn read<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let key = match command.args_iter().nth(1) {
            Some(redis::Arg::Simple(key)) => String::from_utf8_lossy(key).into_owned(),
            _ => return Err(StoreError::Broken("a command without a key has no node".to_owned())),
        };
        self.read_of(&key, command).await
    }

    /// Runs a command that only reads, on the node that has a key.
    async fn read_of<T: redis::FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T, StoreError> {
        let request = Request { command, slot: slot_of(key), keys: key, script: None };
        let value = self.shared.nodes.send(&request).await?;
        redis::from_redis_value(value).map_err(|error| StoreError::Broken(format!("`{key}`: {error}")))
    }

    /// Every node that has shards, and whether they are a cluster.
    pub async fn primaries(&self) -> Result<(Vec<Arc<Node>>, bool), StoreError> {
        self.shared.nodes.primaries().await
    }

    /// What each Sentinel says: its address, and where the primary is. Nothing where there are none.
    pub async fn sentinels(&self) -> Vec<(String, Result<String, StoreError>)> {
        self.shared.nodes.sentinels().await
    }

    /// Asks one node something that has no key.
    pub async fn ask<T: redis::FromRedisValue>(&self, node: &Node, command: &Cmd) -> Result<T, StoreError> {
        let value = self.shared.nodes.ask(node, command).await?;
        redis::from_redis_value(value).map_err(|error| StoreError::Broken(format!("{}: {error}", node.address)))
    }

    pub(super) async fn run<S: Script>(&self, script: &S) -> Result<S::Reply, StoreError> {
        let (command, first_key) = self.evalsha(script);
        // Not the whole key: any of the call's keys may be the one that is meant.
        let keys = first_key.rsplit_once(':').map_or("", |(keys, _)| keys);
        let slot = slot_of(&first_key);
        let request = Request { command: &command, slot, keys, script: Some(S::SOURCE) };
        script.reply(Fields::of(self.shared.nodes.send(&request).await?))
    }

    /// A script's call, and its first key.
    fn evalsha<S: Script>(&self, script: &S) -> (Cmd, String) {
        let input = script.input(&self.shared.keys);
        let first_key = String::from_utf8_lossy(input.keys.first().unwrap_or_default()).into_owned();
        // In one piece: a call has megabytes, and memory that grows is asked for several times.
        let words = 3 + input.keys.len() + input.arguments.len();
        let mut command = Cmd::with_capacity(words, 64 + input.keys.text.len() + input.arguments.text.len());
        command.arg("EVALSHA").arg(&self.shared.hashes[S::NAME]).arg(input.keys.len());
        command.arg(&input.keys).arg(&input.arguments);
        (command, first_key)
    }
}
