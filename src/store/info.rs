//! What Redis says of itself, for `check`.

use super::nodes::Node;
use super::{RedisStore, StoreError};

/// The answer to INFO: it needs no right to read the configuration, which managed services do not give.
pub struct RedisInfo(String);

impl RedisInfo {
    pub async fn ask(store: &RedisStore, node: &Node) -> Result<RedisInfo, StoreError> {
        store.ask(node, &redis::cmd("INFO")).await.map(RedisInfo)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
    }

    /// Major and minor version of Redis, or of the Redis that a Valkey stands for.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.field("redis_version")?.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// What a node of a cluster says of the cluster: `cluster_state`, `cluster_slots_ok` and the like.
pub async fn cluster_info(store: &RedisStore, node: &Node) -> Result<RedisInfo, StoreError> {
    store.ask(node, redis::cmd("CLUSTER").arg("INFO")).await.map(RedisInfo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\nmaxmemory:0\r\n";
        let info = RedisInfo(text.to_owned());
        assert_eq!(info.version(), Some((7, 0)));
        assert_eq!(info.field("maxmemory"), Some("0"));
        assert_eq!(info.field("maxmemory_policy"), Some("noeviction"));
        assert_eq!(info.field("aof_enabled"), None);
    }
}
