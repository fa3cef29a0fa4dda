//! Shards in memory: the ledger itself. For the demo and for tests; nothing of it survives the process.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{AccountState, Counted, CountedBalance, DaysPage, Root, ShardState, TakeCall, Taken};
use crate::ledger::account::Life;
use crate::ledger::call::{Applied, ApplyCall, CommandCall, Commanded, Reply};
use crate::ledger::roll::RollCall;
use crate::ledger::shard::{InitCall, InitReply, NameReply, Shard, shard_of};
use crate::ledger::time::{ForgetCall, TimeCall, TimeReply};
use crate::ledger::usage::ForgetUsageCall;

#[derive(Clone)]
pub struct MemoryStore {
    root: Arc<Mutex<Option<Root>>>,
    shards: Arc<[Mutex<Shard>]>,
}

impl MemoryStore {
    pub fn new(shards: u32) -> MemoryStore {
        MemoryStore { root: Arc::default(), shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, shard: u32) -> MutexGuard<'_, Shard> {
        self.shards[shard as usize].lock().expect("no thread panics while it holds a shard")
    }

    pub fn root(&self, proposed: &Root) -> Root {
        let mut root = self.root.lock().expect("no thread panics while it holds the root");
        root.get_or_insert_with(|| proposed.clone()).clone()
    }

    pub fn stored_root(&self) -> Option<Root> {
        self.root.lock().expect("no thread panics while it holds the root").clone()
    }

    pub fn init(&self, shard: u32, call: &InitCall) -> InitReply {
        self.shard(shard).init(call)
    }

    pub fn apply(&self, shard: u32, call: &ApplyCall) -> Reply<Applied> {
        self.shard(shard).apply(call)
    }

    pub fn command(&self, shard: u32, call: &CommandCall) -> Reply<Commanded> {
        self.shard(shard).command(call)
    }

    pub fn roll(&self, shard: u32, call: &RollCall) -> Reply<()> {
        self.shard(shard).roll(call)
    }

    pub fn take(&self, shard: u32, call: &TakeCall) -> Taken {
        let published = call.published.iter().filter_map(|id| id.parse().ok()).max().unwrap_or(0);
        let entries = self.shard(shard).take(published, call.count);
        Taken::Entries(entries.into_iter().map(|(id, entry)| (id.to_string(), entry)).collect())
    }

    pub fn move_time(&self, shard: u32, call: &TimeCall) -> TimeReply {
        self.shard(shard).move_time(call)
    }

    pub fn forget(&self, shard: u32, call: &ForgetCall) -> Option<u64> {
        self.shard(shard).forget(call)
    }

    pub fn forget_usage(&self, shard: u32, call: &ForgetUsageCall) -> Option<u64> {
        self.shard(shard).forget_usage(call)
    }

    pub fn days(&self, shard: u32, _: u64, _: usize) -> DaysPage {
        let shard = self.shard(shard);
        let accounts = shard.accounts.iter().map(|(name, account)| {
            let days = account.days.iter().map(|(day, layout)| (*day, layout.clone()));
            (name.clone(), days.collect())
        });
        (0, accounts.collect())
    }

    pub fn oldest(&self, shard: u32, _: u64, _: usize) -> (u64, Option<i64>) {
        (0, self.shard(shard).accounts.values().map(|account| account.since_ms).min())
    }

    pub fn due_by(&self, shard: u32, time_ms: i64, skip: usize, count: usize) -> Vec<Arc<str>> {
        let shard = self.shard(shard);
        let due = shard.accounts.iter().map(|(name, account)| (account.due_ms(), name.clone()));
        let mut due: Vec<_> = due.filter(|(due_ms, _)| *due_ms <= time_ms).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, name)| name).skip(skip).take(count).collect()
    }

    pub fn census(&self, accounts: &[Arc<str>]) -> Vec<Option<Counted>> {
        let counted = |name: &Arc<str>| {
            let shard = self.shard(shard_of(name, self.shards.len() as u32));
            let account = shard.accounts.get(name).filter(|account| account.life != Life::Closed)?;
            let types = account.counters.keys().chain(account.alarms.keys());
            let balance = |credit_type: &String| {
                let counter = account.counters.get(credit_type).copied().unwrap_or_default();
                let alarm = account.alarms.get(credit_type).cloned().unwrap_or_default();
                (credit_type.clone(), CountedBalance::of(counter, &alarm))
            };
            Some(Counted { plan: account.config.plan.clone(), balances: types.map(balance).collect() })
        };
        accounts.iter().map(counted).collect()
    }

    pub fn names(&self, shard: u32) -> Vec<Arc<str>> {
        self.shard(shard).accounts.keys().cloned().collect()
    }

    pub fn has_keys(&self, shard: u32) -> bool {
        *self.shard(shard) != Shard::default()
    }

    pub fn name(&self, shard: u32, from: &str, to: &str, rebuilt_s: Option<u32>) -> NameReply {
        self.shard(shard).name(from, to, rebuilt_s)
    }

    pub fn wipe_fence(&self, shard: u32) -> u64 {
        u64::from(self.shard(shard).fence.take().is_some())
    }

    pub fn wipe(&self, shard: u32) -> u64 {
        let had = self.has_keys(shard);
        *self.shard(shard) = Shard::default();
        u64::from(had)
    }

    pub fn shard_state(&self, shard: u32) -> ShardState {
        let shard = self.shard(shard);
        let Some(fence) = &shard.fence else { return ShardState::default() };
        ShardState {
            generation: Some(fence.generation.clone()),
            schema: Some(fence.schema),
            positions: fence.positions.iter().map(|(partition, offset)| (*partition, *offset)).collect(),
            totals: fence.totals.iter().map(|((partition, outcome), n)| (*partition, *outcome, *n)).collect(),
            anchors: fence.anchors.iter().map(|(partition, anchor)| (*partition, *anchor)).collect(),
            reached_ms: fence.reached.values().copied().max(),
            rebuilt_s: fence.rebuilt_s,
            meter_time_ms: fence.meter_time_ms,
            floor_ms: fence.floor_ms,
            restamp_tolerance_ms: fence.restamp_tolerance_ms,
            usage_from: fence.usage_from,
            catalogue: Some(fence.catalogue.clone()),
            writes: [0, 0],
        }
    }

    pub fn account(&self, account: &str) -> Option<AccountState> {
        let shard = self.shard(shard_of(account, self.shards.len() as u32));
        let account = shard.accounts.get(account)?;
        let counters = account.counters.iter().map(|(name, counter)| (name.clone(), *counter)).collect();
        Some(AccountState { view: account.view(), counters, denied: account.denied.clone() })
    }
}
