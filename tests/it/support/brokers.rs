//! Three brokers of a test's own, each a controller too: any one may be killed.

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::one_broker::{java, java_command};
use super::redis::free_port;
use super::until;

const COUNT: usize = 3;

/// Killed when they are dropped.
pub struct Brokers {
    folder: tempfile::TempDir,
    servers: Vec<Child>,
    ports: Vec<u16>,
}

impl Brokers {
    pub async fn start() -> Brokers {
        let folder = tempfile::tempdir().expect("a folder");
        let controllers = [(); COUNT].map(|()| free_port());
        let ports = [(); COUNT].map(|()| free_port());
        let voters: Vec<String> =
            (0..COUNT).map(|number| format!("{}@127.0.0.1:{}", number + 1, controllers[number])).collect();
        let id = uuid::Uuid::now_v7().simple().to_string();
        for number in 0..COUNT {
            let (port, controller) = (ports[number], controllers[number]);
            let properties = format!(
                "process.roles=broker,controller\n\
                 node.id={node}\n\
                 controller.quorum.voters={voters}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
                 controller.listener.names=CONTROLLER\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                 log.dirs={folder}/data-{node}\n\
                 auto.create.topics.enable=false\n\
                 offsets.topic.replication.factor=3\n\
                 offsets.topic.num.partitions=4\n\
                 min.insync.replicas=2\n\
                 group.initial.rebalance.delay.ms=0\n\
                 group.min.session.timeout.ms=1000\n\
                 # One that is killed is missed soon.\n\
                 broker.session.timeout.ms=3000\n\
                 broker.heartbeat.interval.ms=500\n\
                 replica.lag.time.max.ms=5000\n",
                node = number + 1,
                voters = voters.join(","),
                folder = folder.path().display(),
            );
            let file = format!("server-{number}.properties");
            std::fs::write(folder.path().join(&file), properties).expect("a file");
            java(folder.path(), "kafka.tools.StorageTool", &["format", "-t", &id[..22], "-c", &file]);
        }
        let mut brokers = Brokers { folder, servers: Vec::new(), ports: ports.to_vec() };
        for number in 0..COUNT {
            let server = brokers.spawn(number);
            brokers.servers.push(server);
        }
        for port in ports {
            let listens = || async { TcpStream::connect(("127.0.0.1", port)).ok().map(drop) };
            until("the brokers listen", listens).await;
        }
        until("all three are there", || {
            let there = brokers.metadata(None, |metadata| metadata.brokers().len() == COUNT);
            async move { there.then_some(()) }
        })
        .await;
        brokers
    }

    fn spawn(&self, number: usize) -> Child {
        let folder = self.folder.path();
        let log =
            std::fs::OpenOptions::new().append(true).create(true).open(folder.join(format!("kafka-{number}.log")));
        let log = log.expect("a file");
        let mut server = java_command(folder, "kafka.Kafka");
        server
            .arg(format!("server-{number}.properties"))
            .stdout(Stdio::from(log.try_clone().expect("a file")))
            .stderr(log);
        server.spawn().expect("java starts")
    }

    pub fn addresses(&self) -> String {
        let addresses: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        addresses.join(",")
    }

    pub fn kill(&mut self, number: usize) {
        self.servers[number].kill().expect("it can be killed");
        self.servers[number].wait().expect("it ends");
    }

    pub fn signal(&self, number: usize, signal: &str) {
        super::signal(self.servers[number].id(), signal);
    }

    pub fn start_again(&mut self, number: usize) {
        self.servers[number] = self.spawn(number);
    }

    /// Waits until every replica of every partition has caught up: one more may die then.
    pub async fn in_sync(&self) {
        until("all replicas are in sync", || {
            let whole = self.metadata(None, |metadata| {
                let partitions: Vec<_> = metadata.topics().iter().flat_map(|topic| topic.partitions()).collect();
                !partitions.is_empty() && partitions.iter().all(|partition| partition.isr().len() == COUNT)
            });
            async move { whole.then_some(()) }
        })
        .await;
    }

    fn metadata(&self, topic: Option<&str>, holds: impl Fn(&rdkafka::metadata::Metadata) -> bool) -> bool {
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.addresses()).create().expect("a client");
        let metadata = client.fetch_metadata(topic, Duration::from_secs(5));
        metadata.is_ok_and(|metadata| holds(&metadata))
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
