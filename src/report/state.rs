//! The state in Redis, as the meter left it.

use anyhow::{Context, bail};

use crate::config::{Config, Redis};
use crate::ledger::call::SCHEMA;
use crate::store::{RedisStore, Root};

/// A store that only needs the root key: how many shards there are stands in it.
pub fn store_without_shards(config: &Config) -> anyhow::Result<RedisStore> {
    store(config, 1)
}

fn store(config: &Config, shards: u32) -> anyhow::Result<RedisStore> {
    Ok(RedisStore::new(&Redis { shards, ..config.redis.clone() })?)
}

/// Opens the state with the number of shards that it was made with.
pub async fn open(config: &Config) -> anyhow::Result<RedisStore> {
    Ok(open_with_root(config).await?.0)
}

pub async fn open_with_root(config: &Config) -> anyhow::Result<(RedisStore, Root)> {
    let root = store_without_shards(config)?.stored_root().await?;
    let prefix = &config.redis.prefix;
    let root = root.with_context(|| {
        format!(
            "redis holds no state under the prefix {prefix}: the first start of a meter (serve) makes it; if there was one, redis was \
             emptied or is another one: restore its data, or `credit-meter rebuild`"
        )
    })?;
    readable(&root)?;
    Ok((store(config, root.shards)?, root))
}

/// Whether this program knows the layout of a state.
pub fn readable(root: &Root) -> anyhow::Result<()> {
    if root.schema > SCHEMA {
        bail!("the state has schema {}, this program knows up to {SCHEMA}: use a newer one", root.schema);
    }
    Ok(())
}
