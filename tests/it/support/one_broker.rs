//! One broker of a test's own, with the listeners that the test asks for.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::redis::free_port;
use super::{service, until};

/// Killed when it is dropped.
pub struct OneBroker {
    pub folder: tempfile::TempDir,
    settings: String,
    ports: Vec<u16>,
    server: Child,
}

/// Where the broker listens. It tells clients to come to `advertised`.
pub struct Listener {
    pub name: &'static str,
    pub protocol: &'static str,
    pub port: u16,
    pub advertised: String,
}

impl Listener {
    /// Without TLS and password.
    pub fn plain(name: &'static str, port: u16, advertised: String) -> Listener {
        Listener { name, protocol: "PLAINTEXT", port, advertised }
    }
}

impl OneBroker {
    /// The first listener is also the broker's own. `properties` and `format` are added to its settings, and to what formats
    /// its log.
    pub async fn start(
        folder: tempfile::TempDir,
        listeners: &[Listener],
        properties: &str,
        format: &[&str],
    ) -> OneBroker {
        let controller = free_port();
        let each = |told: &dyn Fn(&Listener) -> String| listeners.iter().map(told).collect::<Vec<_>>().join(",");
        let settings = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners={listen},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners={advertised}\n\
             listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name={own}\n\
             log.dirs={folder}/data\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             {properties}",
            listen = each(&|own| format!("{}://127.0.0.1:{}", own.name, own.port)),
            advertised = each(&|own| format!("{}://{}", own.name, own.advertised)),
            protocols = each(&|own| format!("{}:{}", own.name, own.protocol)),
            own = listeners[0].name,
            folder = folder.path().display(),
        );
        configure(folder.path(), &settings);
        let id = uuid::Uuid::now_v7().simple().to_string();
        let format = [&["format", "-t", &id[..22], "-c", "server.properties"], format].concat();
        java(folder.path(), "kafka.tools.StorageTool", &format);
        let ports = listeners.iter().map(|own| own.port).collect();
        let mut broker = OneBroker { server: serve(folder.path()), folder, settings, ports };
        broker.listens().await;
        broker
    }

    /// Stops it as an administrator would, and starts it again.
    pub async fn restart(&mut self) {
        self.restart_with("").await;
    }

    /// The same; what it is given for settings holds until it is started again.
    pub async fn restart_with(&mut self, properties: &str) {
        super::signal(self.server.id(), "-TERM");
        until("the broker ends", || {
            let ended = self.server.try_wait().expect("it is a child");
            async move { ended }
        })
        .await;
        configure(self.folder.path(), &format!("{}\n{properties}", self.settings));
        self.server = serve(self.folder.path());
        self.listens().await;
    }

    async fn listens(&mut self) {
        until("the broker listens", || {
            let ended = self.server.try_wait().expect("it is a child");
            let log = || std::fs::read_to_string(self.folder.path().join("kafka.log")).unwrap_or_default();
            assert!(ended.is_none(), "the broker has ended: {}", log());
            let listens = self.ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
            async move { listens.then_some(()) }
        })
        .await;
    }
}

impl Drop for OneBroker {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn configure(folder: &Path, settings: &str) {
    std::fs::write(folder.join("server.properties"), settings).expect("a file");
}

fn serve(folder: &Path) -> Child {
    let mut server = java_command(folder, "kafka.Kafka");
    let log = std::fs::File::create(folder.join("kafka.log")).expect("a file");
    server.arg("server.properties").stdout(log.try_clone().expect("a file")).stderr(log);
    server.spawn().expect("java starts")
}

pub fn java_command(folder: &Path, class: &str) -> Command {
    let mut command = Command::new("java");
    let jars = format!("{}/*", service("KAFKA_HOME"));
    let flags = ["-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    command.args(flags).args(["-cp", &jars, class]).current_dir(folder).stdin(Stdio::null());
    command
}

pub fn java(folder: &Path, class: &str, arguments: &[&str]) {
    run(java_command(folder, class).args(arguments));
}

/// Runs a program to its end, which must be a good one.
pub fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(output.status.success(), "{command:?}: {told:?}");
}
