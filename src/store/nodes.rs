//! The nodes of Redis, one or a cluster's: a connection to each, and where a key's slot is now.
//!
//! Which it is, the server tells: a cluster answers CLUSTER SLOTS. Who has a slot is asked at first, after a node
//! has failed, and otherwise learned from the nodes' redirections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, Value,
};

use super::StoreError;
use super::attempt::Attempt;
use super::refusal::{Refusal, store_error};
use super::slots::Slots;
use crate::metrics;

/// Redirections of one call in a row, after which it is given up for now.
const REDIRECTIONS_MAX: usize = 5;
/// How often a script may be missing in a row before the call is given up for now: something flushes scripts.
const NOSCRIPT_MAX: usize = 100;
const SCHEMES: [&str; 2] = ["redis", "unix"];

pub struct Nodes {
    /// The addresses of `redis.url`; the first tells user and password for all nodes.
    seeds: Vec<ConnectionInfo>,
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
}

/// One server.
pub struct Node {
    pub address: String,
    client: Client,
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
    /// `url`: one address, or several of a cluster's, separated by commas.
    pub fn new(url: &str, timeout: Duration) -> Result<Nodes, StoreError> {
        let mut seeds: Vec<ConnectionInfo> = Vec::new();
        for part in url.split(',').map(str::trim) {
            // What stands before the first host counts for all.
            let whole = if part.contains("://") { part.to_owned() } else { format!("redis://{part}") };
            let unfit = |reason: String| {
                let schemes = SCHEMES.map(|scheme| format!("{scheme}://")).join(" or ");
                StoreError::Unfit(format!("redis.url is not a {schemes} address: {reason}"))
            };
            let mut info = whole.as_str().into_connection_info().map_err(|error| unfit(error.to_string()))?;
            if let Some(first) = seeds.first() {
                info = info.set_redis_settings(first.redis_settings().clone());
            }
            Client::open(info.clone()).map_err(|error| unfit(error.to_string()))?;
            seeds.push(info);
        }
        Ok(Nodes { seeds, timeout, state: Mutex::default(), asking: Attempt::default() })
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
            let place = self.seeds[0].addr().to_string();
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
                use Refusal::{ClusterDown, NotAllowed, PrimaryAway, ReadOnly, Redirected};
                matches!(refusal, ReadOnly | PrimaryAway | ClusterDown | Redirected | NotAllowed)
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

    /// Whom to ask, the one that has failed last.
    fn candidates(&self) -> Vec<String> {
        let state = self.state();
        let seeds = self.seeds.iter().map(|seed| seed.addr().to_string());
        let mut candidates: Vec<String> = seeds.collect();
        let others = state.nodes.keys().filter(|known| !candidates.contains(known)).cloned();
        candidates.extend(others.collect::<Vec<_>>());
        candidates.sort_by_key(|address| state.suspect.as_ref() == Some(address));
        candidates
    }

    async fn ask_slots(&self, node: &Node) -> Result<Slots, StoreError> {
        let failed = |number, error: RedisError| {
            if let Some(number) = number {
                node.forget(number);
            }
            store_error(&error, &node.address, "")
        };
        let up = match node.up().await {
            Ok(up) => up,
            Err(error) => return Err(failed(None, error)),
        };
        match up.send(redis::cmd("CLUSTER").arg("SLOTS"), false).await {
            Ok(answer) => {
                let slots = Slots::parse(answer, &node.address);
                slots.ok_or_else(|| StoreError::Broken(format!("redis at {}: CLUSTER SLOTS", node.address)))
            }
            // No cluster, or nothing of the kind: a proxy, or a user without the right to ask.
            Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => {
                if self.seeds.len() > 1 {
                    return Err(StoreError::Unfit(format!(
                        "redis.url names {} addresses, but redis at {} is no cluster: name one",
                        self.seeds.len(),
                        node.address
                    )));
                }
                // A replica would answer reads with what was, until the first write.
                match up.send(&redis::cmd("ROLE"), false).await {
                    Ok(Value::Array(role)) if role.first() == Some(&Value::BulkString(b"slave".to_vec())) => {
                        let told = redis::make_extension_error("READONLY".into(), Some("ROLE is slave".into()));
                        Err(failed(Some(up.number), told))
                    }
                    Ok(_) => Ok(Slots::Single(node.address.clone())),
                    Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => {
                        Ok(Slots::Single(node.address.clone()))
                    }
                    Err(error) => Err(failed(Some(up.number), error)),
                }
            }
            Err(error) => Err(failed(Some(up.number), error)),
        }
    }

    pub fn node(&self, address: &str) -> Result<Arc<Node>, StoreError> {
        let mut state = self.state();
        if let Some(node) = state.nodes.get(address) {
            return Ok(node.clone());
        }
        let seed = self.seeds.iter().find(|seed| seed.addr().to_string() == address);
        let info = match (seed, address.rsplit_once(':').map(|(host, port)| (host, port.parse()))) {
            (Some(seed), _) => seed.clone(),
            (None, Some((host, Ok(port)))) => {
                self.seeds[0].clone().set_addr(ConnectionAddr::Tcp(host.to_owned(), port))
            }
            (None, _) => return Err(StoreError::Broken(format!("redis names a node `{address}`"))),
        };
        let client = Client::open(info).map_err(|error| StoreError::Unfit(error.to_string()))?;
        let node = Arc::new(Node {
            address: address.to_owned(),
            client,
            timeout: self.timeout,
            connection: Mutex::default(),
            connecting: Attempt::default(),
        });
        state.nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// A connection of the caller's own, that waits for answers so much longer than the shared one.
    pub async fn open(&self, longer: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout + longer));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        tracing::info!(redis = self.address, "connected");
        Ok(connection)
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

    fn seeds(url: &str) -> Result<Vec<String>, String> {
        let nodes = Nodes::new(url, Duration::from_secs(1)).map_err(|error| error.to_string())?;
        Ok(nodes.seeds.iter().map(|seed| format!("{:?}@{}", seed.redis_settings().password(), seed.addr())).collect())
    }

    #[test]
    fn an_address_list_shares_what_stands_before_its_first_host() {
        assert_eq!(seeds("redis://10.0.0.1:7001/").unwrap(), ["None@10.0.0.1:7001"]);
        let nodes = ["Some(\"x\")@a:7001", "Some(\"x\")@b:7002", "Some(\"x\")@c:6379"];
        assert_eq!(seeds("redis://:x@a:7001, b:7002,redis://c").unwrap(), nodes);
        assert_eq!(seeds("unix:///run/redis.sock").unwrap(), ["None@/run/redis.sock"]);
        assert!(seeds("http://a").unwrap_err().starts_with("redis.url is not a redis:// or unix:// address"));
        assert!(seeds("redis://a:7001,").is_err(), "an empty address");
    }

    #[tokio::test]
    async fn callers_of_a_node_that_does_not_answer_share_one_attempt() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let nodes = Arc::new(Nodes::new(&url, Duration::from_millis(500)).unwrap());
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
        let nodes = Nodes::new("redis://a:1,b:2", Duration::from_secs(1)).unwrap();
        nodes.node("c:3").unwrap();
        assert_eq!(nodes.candidates(), ["a:1", "b:2", "c:3"]);
        nodes.forget(Some("a:1"));
        assert_eq!(nodes.candidates(), ["b:2", "c:3", "a:1"]);
    }
}
