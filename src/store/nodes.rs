//! The nodes of Redis, one or a cluster's: a connection to each, and where a key's slot is now.
//!
//! Which it is, the server tells: a cluster answers CLUSTER SLOTS. Who has a slot is asked at first, after a node
//! has failed, and otherwise learned from the nodes' redirections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value};

use super::StoreError;
use super::address::Address;
use super::attempt::Attempt;
use super::refusal::{Refusal, store_error};
use super::sentinel::{self, Role};
use super::slots::Slots;
use crate::config::Redis;
use crate::metrics;

/// Redirections of one call in a row, after which it is given up for now.
const REDIRECTIONS_MAX: usize = 5;
/// How often a script may be missing in a row before the call is given up for now: something flushes scripts.
const NOSCRIPT_MAX: usize = 100;

pub struct Nodes {
    address: Arc<Address>,
    timeout: Duration,
    state: Mutex<State>,
    /// One asks who has which slot; the others wait for the answer.
    asking: Attempt<StoreError>,
}

#[derive(Default)]
struct State {
    slots: Option<Slots>,
    nodes: BTreeMap<String, Arc<Node>>,
    /// The node that has failed last: asked last.
    suspect: Option<String>,
    /// The Sentinel that answered last, as `redis.url` counts them.
    sentinel: usize,
}

/// One server.
pub struct Node {
    pub address: String,
    info: ConnectionInfo,
    how: Arc<Address>,
    timeout: Duration,
    connection: Mutex<Option<Up>>,
    connecting: Attempt<RedisError>,
}

/// An open connection, and a number that tells it from earlier ones.
#[derive(Clone)]
struct Up {
    connection: MultiplexedConnection,
    number: u64,
}

/// A call: its command, the slot of its keys, and what they begin with.
pub struct Request<'a> {
    pub command: &'a Cmd,
    pub slot: u16,
    pub keys: &'a str,
    /// The script that an EVALSHA runs.
    pub script: Option<&'a str>,
}

impl Nodes {
    pub fn new(redis: &Redis) -> Result<Nodes, StoreError> {
        let address = Arc::new(Address::new(redis)?);
        Ok(Nodes { address, timeout: redis.timeout, state: Mutex::default(), asking: Attempt::default() })
    }

    /// Sends a call to the node that has its slot, and follows where it is sent on.
    pub async fn send(&self, request: &Request<'_>) -> Result<Value, StoreError> {
        let mut node = self.owner(request.slot).await?;
        let mut ask = false;
        let (mut redirections, mut loads) = (0, 0);
        loop {
            let up = match node.up().await {
                Ok(up) => up,
                Err(error) => return Err(self.failed(&node, None, &error, request.keys)),
            };
            let error = match up.send(request.command, ask).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match (error.code(), request.script) {
                // Nothing ran: the node has restarted, or its scripts were flushed, or it is new to us.
                (Some("NOSCRIPT"), Some(script)) if loads < NOSCRIPT_MAX => {
                    loads += 1;
                    if let Err(error) = up.load(script).await {
                        return Err(self.failed(&node, Some(up.number), &error, request.keys));
                    }
                }
                (Some(code @ ("MOVED" | "ASK")), _) if redirections < REDIRECTIONS_MAX => {
                    redirections += 1;
                    ask = code == "ASK";
                    let to = error.detail().and_then(|detail| super::slots::redirection(detail, &node.address));
                    let Some(to) = to else {
                        return Err(self.failed(&node, Some(up.number), &error, request.keys));
                    };
                    if !ask {
                        self.moved(request.slot, &to);
                    }
                    node = self.node(&to)?;
                }
                _ => return Err(self.failed(&node, Some(up.number), &error, request.keys)),
            }
        }
    }

    /// The node that has a slot.
    pub async fn owner(&self, slot: u16) -> Result<Arc<Node>, StoreError> {
        let slots = self.slots().await?;
        let Some(address) = slots.owner(slot) else {
            self.forget(None);
            let place = self.address.seeds[0].addr().to_string();
            let told = format!("no node has slot {slot}");
            return Err(StoreError::Refused { place, refusal: Refusal::ClusterDown, told });
        };
        self.node(address)
    }

    /// A node has told who has a slot now.
    pub fn moved(&self, slot: u16, to: &str) {
        if let Some(slots) = &mut self.state().slots {
            slots.moved(slot, to);
        }
    }

    /// Every node that has slots, and whether they are a cluster.
    pub async fn primaries(&self) -> Result<(Vec<Arc<Node>>, bool), StoreError> {
        let slots = self.slots().await?;
        let nodes: Result<_, _> = slots.primaries().iter().map(|address| self.node(address)).collect();
        Ok((nodes?, matches!(slots, Slots::Cluster(_))))
    }

    /// Asks one node.
    pub async fn ask(&self, node: &Node, command: &Cmd) -> Result<Value, StoreError> {
        let up = match node.up().await {
            Ok(up) => up,
            Err(error) => return Err(self.failed(node, None, &error, "")),
        };
        match up.send(command, false).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(node, Some(up.number), &error, "")),
        }
    }

    /// What is known of a call that has failed; forgets the connection and the slots where they may be wrong.
    pub fn failed(&self, node: &Node, number: Option<u64>, error: &RedisError, keys: &str) -> StoreError {
        let meaning = store_error(error, &node.address, keys);
        let elsewhere = match &meaning {
            // Its state is unknown, or it is not the one to ask any more: another may have taken over.
            StoreError::Indefinite { .. } => true,
            StoreError::Refused { refusal, .. } => {
                use Refusal::{
                    Certificate, ClientTls, ClusterDown, NoTls, NotAllowed, PrimaryAway, ReadOnly, Redirected,
                };
                let of_tls = matches!(refusal, Certificate | ClientTls | NoTls);
                of_tls || matches!(refusal, ReadOnly | PrimaryAway | ClusterDown | Redirected | NotAllowed)
            }
            StoreError::Unfit(_) | StoreError::Broken(_) => false,
        };
        if elsewhere {
            if let Some(number) = number {
                node.forget(number);
            }
            self.forget(Some(&node.address));
        }
        meaning
    }

    fn forget(&self, suspect: Option<&str>) {
        let mut state = self.state();
        state.slots = None;
        state.suspect = suspect.map(str::to_owned);
    }

    async fn slots(&self) -> Result<Slots, StoreError> {
        let known = || self.state().slots.clone();
        let ask = async || {
            if let Some(name) = &self.address.primary {
                return self.ask_sentinels(name).await;
            }
            let mut failure = None;
            for address in self.candidates() {
                let node = self.node(&address)?;
                match self.ask_slots(&node).await {
                    Ok(slots) => {
                        self.state().slots = Some(slots.clone());
                        return Ok(slots);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            Err(failure.expect("redis.url names an address"))
        };
        self.asking.share(known, ask).await
    }

    /// The primary that a Sentinel names; first the one that answered last.
    async fn ask_sentinels(&self, name: &str) -> Result<Slots, StoreError> {
        let mut sentinels: Vec<ConnectionInfo> = self.address.sentinels().collect();
        let first = self.state().sentinel;
        let count = sentinels.len();
        sentinels.rotate_left(first);
        let mut failure = None;
        for (place, info) in sentinels.into_iter().enumerate() {
            let sentinel = Node::new(info, &self.address, self.timeout);
            let asked = async { self.single(&*self.node(&sentinel::primary(&sentinel, name).await?)?).await };
            match asked.await {
                Ok(slots) => {
                    let mut state = self.state();
                    state.sentinel = (first + place) % count;
                    state.slots = Some(slots.clone());
                    return Ok(slots);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("redis.url names an address"))
    }

    /// What each Sentinel says: its address, and where the primary is. Nothing where there are none.
    pub async fn sentinels(&self) -> Vec<(String, Result<String, StoreError>)> {
        let Some(name) = &self.address.primary else { return Vec::new() };
        let mut told = Vec::new();
        for info in self.address.sentinels() {
            let sentinel = Node::new(info, &self.address, self.timeout);
            let primary = sentinel::primary(&sentinel, name).await;
            told.push((sentinel.address, primary));
        }
        told
    }

    /// Whom to ask, the one that has failed last.
    fn candidates(&self) -> Vec<String> {
        let state = self.state();
        let seeds = self.address.seeds.iter().map(|seed| seed.addr().to_string());
        let mut candidates: Vec<String> = seeds.collect();
        let others = state.nodes.keys().filter(|known| !candidates.contains(known)).cloned();
        candidates.extend(others.collect::<Vec<_>>());
        candidates.sort_by_key(|address| state.suspect.as_ref() == Some(address));
        candidates
    }

    async fn ask_slots(&self, node: &Node) -> Result<Slots, StoreError> {
        if let Some(answer) = node.ask(redis::cmd("CLUSTER").arg("SLOTS")).await? {
            let slots = Slots::parse(answer, &node.address);
            return slots.ok_or_else(|| StoreError::Broken(format!("redis at {}: CLUSTER SLOTS", node.address)));
        }
        let single = self.single(node).await?;
        if self.address.seeds.len() > 1 {
            return Err(StoreError::Unfit(format!(
                "redis.url names {} addresses, but redis at {} is no cluster: name one",
                self.address.seeds.len(),
                node.address
            )));
        }
        Ok(single)
    }

    /// One Redis for all slots, if it is a primary.
    async fn single(&self, node: &Node) -> Result<Slots, StoreError> {
        match node.ask(&redis::cmd("ROLE")).await?.map_or(Role::Primary, |answer| Role::of(&answer)) {
            Role::Primary => Ok(Slots::Single(node.address.clone())),
            // It would answer reads with what was, until the first write.
            Role::Replica => {
                node.connection().take();
                let told = redis::make_extension_error("READONLY".into(), Some("ROLE is slave".into()));
                Err(store_error(&told, &node.address, ""))
            }
            Role::Sentinel(names) => Err(StoreError::Unfit(format!(
                "redis at {} is a Sentinel: begin redis.url with redis-sentinel:// and end it with /# and the primary's \
                 name ({})",
                node.address,
                names.join(", ")
            ))),
        }
    }

    pub fn node(&self, address: &str) -> Result<Arc<Node>, StoreError> {
        let mut state = self.state();
        if let Some(node) = state.nodes.get(address) {
            return Ok(node.clone());
        }
        let node = Arc::new(Node::new(self.address.node(address)?, &self.address, self.timeout));
        state.nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    pub fn new(info: ConnectionInfo, how: &Arc<Address>, timeout: Duration) -> Node {
        Node {
            address: info.addr().to_string(),
            info,
            how: how.clone(),
            timeout,
            connection: Mutex::default(),
            connecting: Attempt::default(),
        }
    }

    /// A connection of the caller's own, that waits for answers so much longer than the shared one.
    pub async fn open(&self, longer: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout + longer));
        let client = self.how.client(self.info.clone())?;
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        // A port without TLS waits for the end of a line, as we do; one with TLS closes what speaks without it.
        let connection = connected.map_err(|error| match self.info.addr() {
            ConnectionAddr::TcpTls { .. } if error.is_timeout() => {
                RedisError::from((ErrorKind::Io, "its port may be one without TLS", error.to_string()))
            }
            ConnectionAddr::Tcp(..) if error.is_connection_dropped() && !error.is_connection_refusal() => {
                RedisError::from((ErrorKind::Io, "its port may be one with TLS", error.to_string()))
            }
            _ => error,
        })?;
        tracing::info!(redis = self.address, "connected");
        Ok(connection)
    }

    /// What a server says of itself; `None`: it knows nothing of the kind, is a proxy, or does not tell this user.
    async fn ask(&self, command: &Cmd) -> Result<Option<Value>, StoreError> {
        let failed = |error: RedisError| store_error(&error, &self.address, "");
        let up = self.up().await.map_err(failed)?;
        match up.send(command, false).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => Ok(None),
            Err(error) => {
                self.forget(up.number);
                Err(failed(error))
            }
        }
    }

    async fn up(&self) -> Result<Up, RedisError> {
        let connect = async || {
            let connection = self.open(Duration::ZERO).await?;
            let up = Up { connection, number: metrics::record_redis_connect() };
            *self.connection() = Some(up.clone());
            Ok(up)
        };
        self.connecting.share(|| self.connection().clone(), connect).await
    }

    /// Forgets a connection; a later one is not its failure's.
    fn forget(&self, number: u64) {
        self.connection().take_if(|up| up.number == number);
    }

    fn connection(&self) -> MutexGuard<'_, Option<Up>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Up {
    /// With `ask`, for a slot that is on its way to this node.
    async fn send(&self, command: &Cmd, ask: bool) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        if !ask {
            return command.query_async(&mut connection).await;
        }
        // In one go: ASKING counts for the next command of the connection, which others use too.
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        let mut replies = connection.req_packed_commands(&both, 1, 1).await?;
        replies.pop().unwrap_or(Value::Nil).extract_error()
    }

    async fn load(&self, script: &str) -> Result<(), RedisError> {
        load(&mut self.connection.clone(), script).await
    }
}

pub async fn load(connection: &mut MultiplexedConnection, script: &str) -> Result<(), RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async::<Value>(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(url: &str, timeout: Duration) -> Nodes {
        Nodes::new(&Redis { url: url.into(), timeout, ..Redis::default() }).expect("an address")
    }

    #[tokio::test]
    async fn callers_of_a_node_that_does_not_answer_share_one_attempt() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let nodes = Arc::new(nodes(&url, Duration::from_millis(500)));
        let node = nodes.node(&silent.local_addr().unwrap().to_string()).unwrap();
        for round in 1..=2 {
            let mut callers = tokio::task::JoinSet::new();
            for _ in 0..16 {
                let (nodes, node) = (nodes.clone(), node.clone());
                callers.spawn(async move {
                    nodes.owner(0).await.is_err() && nodes.ask(&node, &redis::cmd("PING")).await.is_err()
                });
            }
            assert!(callers.join_all().await.into_iter().all(|failed| failed), "nobody answers");
            let mut attempts = 0;
            while silent.accept().is_ok() {
                attempts += 1;
            }
            assert_eq!(attempts, 2, "one for the slots and one for the node, in round {round}");
        }
    }

    #[test]
    fn the_node_that_failed_is_asked_last() {
        let nodes = nodes("redis://a:1,b:2", Duration::from_secs(1));
        nodes.node("c:3").unwrap();
        assert_eq!(nodes.candidates(), ["a:1", "b:2", "c:3"]);
        nodes.forget(Some("a:1"));
        assert_eq!(nodes.candidates(), ["b:2", "c:3", "a:1"]);
    }
}
