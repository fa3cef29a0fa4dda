//! Whatever key of a shard is of another type: a call that meets it writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::usage::FoldUsageCall;
use credit_meter::pipeline::batch::Call;
use credit_meter::store::RedisStore;
use credit_meter::store::keys::Key;
use redis::aio::MultiplexedConnection;

use super::{CATALOGUE, History, STEPS};
use crate::support::redis::{connection, quiet};
use crate::support::{dump, own_prefix};

const HISTORIES: u64 = 20;

/// All keys of a state, as Redis serializes them.
type Snapshot = BTreeMap<String, Vec<u8>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_meets_a_key_of_another_type_writes_nothing() {
    let mut connection = connection(&quiet()).await;
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    let mut refused: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for seed in 0..HISTORIES {
        let prefix = own_prefix("poison");
        let store = crate::support::redis::store(&quiet(), &prefix, 1);
        let mut history = History::new(seed, &catalogue, &prefix, store).await;
        history.poisons = Some((connection.clone(), prefix.clone()));
        for step in 0..STEPS {
            history.step(&mut connection).await;
            if step % 2 == 0 {
                history.fold_usage().await;
            }
        }
        for (met, count) in history.refused_poison {
            *refused.entry(met).or_default() += count;
        }
        restore(&mut connection, &prefix, &Snapshot::new()).await;
    }
    // Kinds of keys that each script must have met.
    let met = [
        ("apply", "shard notes outbox due a d v u j o m"),
        ("command", "shard notes outbox a c due"),
        ("roll", "shard outbox due a"),
        ("fold_usage", "shard u j"),
    ];
    for (script, kinds) in met {
        for kind in kinds.split(' ') {
            assert!(refused.contains_key(&(script, kind.to_owned())), "{script} never meets {kind}: {refused:?}");
        }
    }
}

impl History<'_> {
    pub async fn poison(&mut self, call: &Call) {
        // Few accounts get as many commands as make this key.
        let commands = match call {
            Call::Command(call) => Some(self.keys.spell(Key::Commands(&call.account))),
            Call::Apply(_) | Call::Roll(_) => None,
        };
        self.poison_script(call.script(), async |store| carry(store, call).await, commands).await;
    }

    pub async fn poison_fold(&mut self, call: &FoldUsageCall) {
        let fold =
            async |store: &RedisStore| store.fold_usage(0, call).await.map(drop).map_err(|error| error.to_string());
        self.poison_script("fold_usage", fold, None).await;
    }

    /// Runs a script again and again, with one poisoned key each time; then the state is as before.
    async fn poison_script(
        &mut self,
        script: &'static str,
        carry: impl AsyncFn(&RedisStore) -> Result<(), String>,
        more: Option<String>,
    ) {
        let Some((mut connection, prefix)) = self.poisons.clone() else { return };
        let before = snapshot(&mut connection, &prefix).await;
        carry(&self.store).await.expect("nothing is poisoned");
        let after = snapshot(&mut connection, &prefix).await;
        let mut keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        keys.extend(&more);
        for key in keys {
            restore(&mut connection, &prefix, &before).await;
            let mut poison = redis::pipe();
            poison.del(key).cmd("GEOADD").arg(key).arg(1).arg(1).arg("poison");
            let is_due = key.ends_with(":due");
            if is_due {
                poison.del(key).set(key, "poison"); // it is sorted itself
            }
            let _: () = poison.query_async(&mut connection).await.expect("redis answers");
            let poisoned = contents(&mut connection, &prefix).await;
            let answer = carry(&self.store).await;
            let left = contents(&mut connection, &prefix).await;
            if answer.is_err() {
                let changed: Vec<_> = left.iter().filter(|(key, value)| poisoned.get(*key) != Some(value)).collect();
                assert!(
                    left == poisoned,
                    "seed {}: {script}: {key} of another type: {answer:?}, {changed:?}",
                    self.seed
                );
                let name = key.split_once('}').map_or("", |(_, name)| name).trim_start_matches(':');
                let kind = name.split(':').next().unwrap_or_default().to_owned();
                *self.refused_poison.entry((script, kind)).or_default() += 1;
            } else {
                assert_eq!(left.get(key), poisoned.get(key), "seed {}: {key} is written over", self.seed);
            }
        }
        restore(&mut connection, &prefix, &before).await;
    }
}

async fn carry(store: &RedisStore, call: &Call) -> Result<(), String> {
    match call {
        Call::Apply(call) => store.apply(0, call).await.map(drop).map_err(|error| error.to_string()),
        Call::Command(call) => store.command(0, call).await.map(drop).map_err(|error| error.to_string()),
        Call::Roll(call) => store.roll(0, call).await.map(drop).map_err(|error| error.to_string()),
    }
}

/// What the keys hold, whatever the order in which Redis keeps it: that of a large hash changes while it is read.
async fn contents(connection: &mut MultiplexedConnection, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let keys = dump::keys(connection, prefix).await;
    let mut asks = redis::pipe();
    for key in &keys {
        asks.cmd("TYPE").arg(key);
    }
    let kinds: Vec<String> = asks.query_async(connection).await.expect("redis answers");
    let mut reads = redis::pipe();
    for (key, kind) in keys.iter().zip(&kinds) {
        match kind.as_str() {
            "hash" => reads.cmd("HGETALL").arg(key),
            "set" => reads.cmd("SMEMBERS").arg(key),
            "zset" => reads.cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES"),
            "stream" => reads.cmd("XRANGE").arg(key).arg("-").arg("+"),
            _ => reads.cmd("GET").arg(key),
        };
    }
    let held: Vec<redis::Value> = reads.query_async(connection).await.expect("redis answers");
    let contents = keys.into_iter().zip(&kinds).zip(held).map(|((key, kind), held)| {
        let values = held.into_sequence().unwrap_or_else(|single| vec![single]);
        let each = if matches!(kind.as_str(), "hash" | "zset") { 2 } else { 1 };
        let mut words: Vec<String> = values.chunks(each).map(|value| format!("{value:?}")).collect();
        words.sort_unstable();
        (key, words)
    });
    contents.collect()
}

async fn snapshot(connection: &mut MultiplexedConnection, prefix: &str) -> Snapshot {
    let keys = dump::keys(connection, prefix).await;
    let mut dumps = redis::pipe();
    for key in &keys {
        dumps.cmd("DUMP").arg(key);
    }
    let dumps: Vec<Vec<u8>> = dumps.query_async(connection).await.expect("redis answers");
    keys.into_iter().zip(dumps).collect()
}

async fn restore(connection: &mut MultiplexedConnection, prefix: &str, snapshot: &Snapshot) {
    let mut restore = redis::pipe();
    for key in dump::keys(connection, prefix).await {
        restore.del(key).ignore();
    }
    for (key, value) in snapshot {
        restore.cmd("RESTORE").arg(key).arg(0).arg(&value[..]).ignore();
    }
    let _: () = restore.query_async(connection).await.expect("redis answers");
}
