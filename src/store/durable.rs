//! Messages leave only when what they tell of is on replicas, or on disk: a failover cannot undo it then.
//!
//! WAIT and WAITAOF ask about the last write of their own connection, and answer at once on one that has written
//! nothing. So they follow a take on the same connection: a take writes the lease, after all that the entries tell of.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::sync::Mutex;

use super::keys::slot_of;
use super::nodes::{Node, Nodes, load};
use super::refusal::{Refusal, store_error};
use super::scripts::{Script, TakeScript};
use super::slots::redirection;
use super::words::Fields;
use super::{StoreError, Taken};

/// What must hold of a write before the world may hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    pub level: Level,
    /// So many replicas must have it.
    pub replicas: u32,
    /// How long one question waits for them.
    pub within: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// In the memory of the replicas.
    Replicated,
    /// On the disks of the primary and of the replicas.
    Synced,
}

impl Durable {
    fn question(&self) -> Cmd {
        self.command(self.replicas, self.within.as_millis() as u64)
    }

    /// Asks for nothing, so that it is answered at once, by a server that knows the command.
    pub fn probe(&self) -> Cmd {
        self.command(0, 1)
    }

    fn command(&self, replicas: u32, within_ms: u64) -> Cmd {
        let mut command = match self.level {
            Level::Replicated => redis::cmd("WAIT"),
            Level::Synced => {
                let mut command = redis::cmd("WAITAOF");
                command.arg(1); // the primary's own disk
                command
            }
        };
        command.arg(replicas).arg(within_ms);
        command
    }

    /// What a probe's failure means: a server that lacks the command will never know it.
    pub fn unfit(&self, place: &str, error: StoreError) -> StoreError {
        match &error {
            StoreError::Refused { refusal: Refusal::Other, told, .. } => {
                let remedy = match self.level {
                    Level::Replicated => "set outbox.publish_after = \"applied\"",
                    Level::Synced => {
                        "it takes WAITAOF, of redis 7.2 or newer, and appendonly yes; or set outbox.publish_after = \
                         \"replicated\""
                    }
                };
                StoreError::Unfit(format!(
                    "redis at {place} cannot tell when a write is {}: {remedy} ({told})",
                    self.level.name()
                ))
            }
            _ => error,
        }
    }

    /// `None`: it is durable; else what is missing.
    fn missing(&self, answer: &Value) -> Option<String> {
        let number = |value: Option<&Value>| match value {
            Some(Value::Int(number)) => *number,
            _ => 0,
        };
        let (local, replicas) = match answer {
            Value::Array(both) => (number(both.first()), number(both.get(1))),
            single => (1, number(Some(single))),
        };
        let wanted = i64::from(self.replicas);
        if self.level == Level::Synced && local < 1 {
            return Some("the primary has not synced them to its disk".to_owned());
        }
        (replicas < wanted).then(|| format!("{replicas} of {wanted} replicas have them"))
    }
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Replicated => "replicated",
            Level::Synced => "synced",
        }
    }
}

/// A connection for each shard's relay: a question that waits holds up its own connection only.
pub struct OwnConnections(Vec<Mutex<Option<Own>>>);

struct Own {
    address: String,
    connection: MultiplexedConnection,
}

impl OwnConnections {
    pub fn new(shards: u32) -> OwnConnections {
        OwnConnections((0..shards).map(|_| Mutex::default()).collect())
    }

    /// Takes entries, and gives them once they are durable. One try: the relay comes again.
    pub async fn take(
        &self,
        shard: u32,
        nodes: &Nodes,
        script: &TakeScript<'_>,
        command: &Cmd,
        key: &str,
        durable: &Durable,
    ) -> Result<Taken, StoreError> {
        let slot = slot_of(key);
        let node = nodes.owner(slot).await?;
        let mut own = self.0[shard as usize].lock().await;
        let connection = match own.take() {
            Some(own) if own.address == node.address => Ok(own.connection),
            _ => node.open(durable.within).await,
        };
        let taken = match connection {
            Err(error) => Err(error),
            Ok(mut connection) => {
                let taken = take_and_wait(&mut connection, script, command, durable).await;
                if taken.is_ok() {
                    *own = Some(Own { address: node.address.clone(), connection });
                }
                taken
            }
        };
        match taken {
            Ok(taken) => taken,
            Err(error) => Err(failed(nodes, &node, slot, &error, key)),
        }
    }
}

fn failed(nodes: &Nodes, node: &Node, slot: u16, error: &RedisError, key: &str) -> StoreError {
    if error.code() == Some("MOVED")
        && let Some(to) = error.detail().and_then(|detail| redirection(detail, &node.address))
    {
        nodes.moved(slot, &to);
        return store_error(error, &node.address, key);
    }
    nodes.failed(node, None, error, key)
}

/// The outer error is of the connection, and drops it.
async fn take_and_wait(
    connection: &mut MultiplexedConnection,
    script: &TakeScript<'_>,
    command: &Cmd,
    durable: &Durable,
) -> Result<Result<Taken, StoreError>, RedisError> {
    let reply: Value = match command.query_async(connection).await {
        Err(error) if error.code() == Some("NOSCRIPT") => {
            load(connection, TakeScript::SOURCE).await?;
            command.query_async(connection).await?
        }
        other => other?,
    };
    let taken = script.reply(Fields::of(reply));
    let some = matches!(&taken, Ok(Taken::Entries(entries)) if !entries.is_empty());
    if !some {
        return Ok(taken);
    }
    let answer: Value = durable.question().query_async(connection).await?;
    Ok(match durable.missing(&answer) {
        None => taken,
        Some(missing) => Ok(Taken::NotDurable(missing)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(level: Level, replicas: u32) -> Durable {
        Durable { level, replicas, within: Duration::from_millis(1500) }
    }

    fn text(command: &Cmd) -> String {
        let word = |arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "?".to_owned(),
        };
        command.args_iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn questions_name_replicas_and_bound() {
        assert_eq!(text(&durable(Level::Replicated, 2).question()), "WAIT 2 1500");
        assert_eq!(text(&durable(Level::Synced, 2).question()), "WAITAOF 1 2 1500");
        assert_eq!(text(&durable(Level::Replicated, 2).probe()), "WAIT 0 1");
        assert_eq!(text(&durable(Level::Synced, 2).probe()), "WAITAOF 1 0 1");
    }

    #[test]
    fn too_few_copies_are_not_durable() {
        let replicated = durable(Level::Replicated, 2);
        assert_eq!(replicated.missing(&Value::Int(2)), None);
        assert_eq!(replicated.missing(&Value::Int(1)).as_deref(), Some("1 of 2 replicas have them"));
        let synced = durable(Level::Synced, 1);
        let answer = |local, replicas| Value::Array(vec![Value::Int(local), Value::Int(replicas)]);
        assert_eq!(synced.missing(&answer(1, 1)), None);
        assert!(synced.missing(&answer(0, 1)).is_some_and(|missing| missing.contains("disk")));
        assert_eq!(synced.missing(&answer(1, 0)).as_deref(), Some("0 of 1 replicas have them"));
        assert!(synced.missing(&Value::Nil).is_some(), "an answer of another kind proves nothing");
        assert!(replicated.missing(&Value::Nil).is_some());
    }

    #[test]
    fn a_server_without_the_command_is_refused_with_the_remedy() {
        let refused = |refusal| StoreError::Refused { place: "r:1".into(), refusal, told: "ERR unknown".into() };
        let told = durable(Level::Synced, 1).unfit("r:1", refused(Refusal::Other)).to_string();
        assert!(told.contains("7.2") && told.contains("outbox.publish_after") && told.contains("r:1"), "{told}");
        let loading = durable(Level::Synced, 1).unfit("r:1", refused(Refusal::Loading));
        assert_eq!(loading.kind(), "loading", "it may know it once it has read its data");
    }
}
