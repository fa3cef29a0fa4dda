//! What Redis says of itself, and of the meter's keys, read without the meter's own code for reading.

use std::collections::HashMap;

use anyhow::Context;
use redis::Connection;

pub struct RedisProbe {
    connection: Connection,
}

impl RedisProbe {
    pub fn open(url: &str) -> anyhow::Result<RedisProbe> {
        let connection = redis::Client::open(url)?.get_connection()?;
        Ok(RedisProbe { connection })
    }

    /// No rewrite of the append-only file and no snapshot starts in the middle of somebody's turn.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        redis::cmd("CONFIG").arg(&["SET", "auto-aof-rewrite-percentage", "0"]).exec(&mut self.connection)?;
        Ok(())
    }

    pub fn info(&mut self, section: &str, field: &str) -> anyhow::Result<String> {
        let info: String = redis::cmd("INFO").arg(section).query(&mut self.connection)?;
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("redis does not tell {field}"))?.trim().to_owned())
    }

    pub fn used_memory(&mut self) -> anyhow::Result<f64> {
        Ok(self.info("memory", "used_memory")?.parse()?)
    }

    /// Processor seconds of Redis, system and user.
    pub fn cpu_seconds(&mut self) -> anyhow::Result<f64> {
        let (system, user) = (self.info("cpu", "used_cpu_sys")?, self.info("cpu", "used_cpu_user")?);
        Ok(system.parse::<f64>()? + user.parse::<f64>()?)
    }

    pub fn appendonly(&mut self) -> anyhow::Result<String> {
        let mut value = |name: &str| -> anyhow::Result<String> {
            let pair: Vec<String> = redis::cmd("CONFIG").arg(&["GET", name]).query(&mut self.connection)?;
            Ok(pair.into_iter().nth(1).unwrap_or_default())
        };
        Ok(format!("appendonly {}, appendfsync {}", value("appendonly")?, value("appendfsync")?))
    }

    pub fn hashes(&mut self, keys: &[String]) -> anyhow::Result<Vec<HashMap<String, String>>> {
        let mut found = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(500) {
            let mut pipe = redis::pipe();
            for key in chunk {
                pipe.cmd("HGETALL").arg(key);
            }
            let part: Vec<HashMap<String, String>> = pipe.query(&mut self.connection)?;
            found.extend(part);
        }
        Ok(found)
    }

    pub fn stream_entries(&mut self, keys: &[String]) -> anyhow::Result<u64> {
        let mut pipe = redis::pipe();
        for key in keys {
            pipe.cmd("XLEN").arg(key);
        }
        let entries: Vec<u64> = pipe.query(&mut self.connection)?;
        Ok(entries.iter().sum())
    }

    /// Deletes the keys that start so, in steps.
    pub fn delete(&mut self, prefix: &str) -> anyhow::Result<()> {
        let mut cursor = 0u64;
        loop {
            let scan = ["MATCH", &format!("{prefix}*"), "COUNT", "2000"].map(str::to_owned);
            let (next, keys): (u64, Vec<String>) =
                redis::cmd("SCAN").arg(cursor).arg(&scan).query(&mut self.connection)?;
            if !keys.is_empty() {
                redis::cmd("DEL").arg(&keys).exec(&mut self.connection)?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Empties the database of the connection.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        redis::cmd("FLUSHDB").exec(&mut self.connection)?;
        Ok(())
    }
}
