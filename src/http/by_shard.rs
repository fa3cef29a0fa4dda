//! A check that holds when it holds for every shard.

use std::collections::BTreeMap;
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
        let first = faults.iter().next().map(|(shard, fault)| format!("shard {shard}: {fault}"));
        self.health.set(self.check, first.map_or(Ok(()), Err));
    }

    /// All shards are as good as new.
    pub fn clear(&self) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.clear();
        self.health.set(self.check, Ok(()));
    }
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
        redis.set(3, Ok(()));
        assert_eq!(state(), Some(Ok(())));
        redis.set(0, Err("down".into()));
        redis.clear();
        assert_eq!(state(), Some(Ok(())));
    }
}
