//! A check that holds when it holds for every shard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Check, Health};

/// What is wrong with each shard, for one check: good news of one shard does not hide bad news of another.
#[derive(Debug)]
pub struct ByShard {
    health: Arc<Health>,
    check: Check,
    faults: Mutex<BTreeMap<u32, String>>,
}

impl ByShard {
    pub fn new(health: Arc<Health>, check: Check) -> ByShard {
        ByShard { health, check, faults: Mutex::default() }
    }

    /// Says whether the check holds for a shard, or why not.
    pub fn set(&self, shard: u32, state: Result<(), String>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Ok(()) => faults.remove(&shard),
            Err(fault) => faults.insert(shard, fault),
        };
        if faults.is_empty() {
            return self.health.set(self.check, Ok(()));
        }
        let mut by_reason: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (shard, fault) in faults.iter() {
            by_reason.entry(fault.clone()).or_default().insert(*shard);
        }
        self.health.set(self.check, Err(name_shards(&by_reason, "", "")));
    }

    /// All shards are as good as new.
    pub fn clear(&self) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.clear();
        self.health.set(self.check, Ok(()));
    }
}

/// Which shards something is the matter with, and why: it may be many for one reason. `one` and `many` follow the shards.
pub fn name_shards(by_reason: &BTreeMap<String, BTreeSet<u32>>, one: &str, many: &str) -> String {
    let each = by_reason.iter().map(|(reason, shards)| {
        let named: Vec<String> = shards.iter().map(u32::to_string).collect();
        match named.as_slice() {
            [shard] => format!("shard {shard}{one}: {reason}"),
            shards => format!("shards {}{many}: {reason}", shards.join(", ")),
        }
    });
    each.collect::<Vec<_>>().join("; also: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_s_good_news_does_not_hide_another_s_fault() {
        let health = Arc::new(Health::new());
        let redis = ByShard::new(health.clone(), Check::Redis);
        let state = || health.checks().into_iter().find(|(check, _)| *check == Check::Redis).map(|(_, state)| state);
        redis.set(3, Err("down".into()));
        redis.set(1, Ok(()));
        assert_eq!(state(), Some(Err("shard 3: down".into())));
        redis.set(2, Err("asleep".into()));
        redis.set(4, Err("down".into()));
        assert_eq!(state(), Some(Err("shard 2: asleep; also: shards 3, 4: down".into())));
        for shard in 2..=4 {
            redis.set(shard, Ok(()));
        }
        assert_eq!(state(), Some(Ok(())));
        redis.set(0, Err("down".into()));
        redis.clear();
        assert_eq!(state(), Some(Ok(())));
    }
}
