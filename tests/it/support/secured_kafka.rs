//! A Kafka of a test's own that asks for TLS and a password, beside a plain listener for the test itself.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::redis::free_port;
use super::{service, until};

pub const USER: &str = "meter";
pub const PASSWORD: &str = "first-of-two-secrets";

/// Killed when it is dropped.
pub struct SecuredKafka {
    folder: tempfile::TempDir,
    server: Child,
    plain: u16,
    secured: u16,
    expired: u16,
}

impl SecuredKafka {
    pub async fn start() -> SecuredKafka {
        let folder = tempfile::tempdir().expect("a folder");
        make_certificates(folder.path());
        let [controller, plain, secured, expired] = [(); 4].map(|()| free_port());
        let at = folder.path().display();
        let store = |name: &str| format!("{at}/{name}.p12");
        let (good, old) = (store("good"), store("old"));
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAIN://127.0.0.1:{plain},SECURED://127.0.0.1:{secured},EXPIRED://127.0.0.1:{expired},\
             CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAIN://127.0.0.1:{plain},SECURED://localhost:{secured},EXPIRED://localhost:{expired}\n\
             listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL,EXPIRED:SASL_SSL\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAIN\n\
             sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.secured.ssl.keystore.location={good}\n\
             listener.name.expired.ssl.keystore.location={old}\n\
             ssl.keystore.type=PKCS12\n\
             ssl.keystore.password={STORE_PASSWORD}\n\
             listener.name.secured.ssl.keystore.password={STORE_PASSWORD}\n\
             listener.name.expired.ssl.keystore.password={STORE_PASSWORD}\n\
             listener.name.secured.scram-sha-512.sasl.jaas.config={SCRAM}\n\
             listener.name.expired.scram-sha-512.sasl.jaas.config={SCRAM}\n\
             # A connection shows its password again after so long: one that was taken away is soon of no use.\n\
             connections.max.reauth.ms=3000\n\
             log.dirs={at}/data\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n",
        );
        std::fs::write(folder.path().join("server.properties"), properties).expect("a file");
        let id = uuid::Uuid::now_v7().simple().to_string();
        let scram = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        let format = ["format", "-t", &id[..22], "-c", "server.properties", "--add-scram", &scram];
        java(folder.path(), "kafka.tools.StorageTool", &format);
        let mut server = java_command(folder.path(), "kafka.Kafka");
        let log = std::fs::File::create(folder.path().join("kafka.log")).expect("a file");
        server.arg("server.properties").stdout(log.try_clone().expect("a file")).stderr(log);
        let mut kafka = SecuredKafka { server: server.spawn().expect("java starts"), folder, plain, secured, expired };
        until("the broker listens", || {
            let ended = kafka.server.try_wait().expect("it is a child");
            let log = || std::fs::read_to_string(kafka.folder.path().join("kafka.log")).unwrap_or_default();
            assert!(ended.is_none(), "the broker has ended: {}", log());
            let listens = [plain, secured, expired].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
            async move { listens.then_some(()) }
        })
        .await;
        kafka
    }

    /// Without TLS and password, for the test.
    pub fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.plain)
    }

    /// Asks for the password, and shows a certificate of the authority [`SecuredKafka::authority`].
    pub fn secured(&self) -> String {
        format!("localhost:{}", self.secured)
    }

    /// As [`SecuredKafka::secured`], but the certificate was in force until yesterday.
    pub fn expired(&self) -> String {
        format!("localhost:{}", self.expired)
    }

    /// A file of the authority that has made the certificates.
    pub fn authority(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// An authority that has made none of them.
    pub fn other_authority(&self) -> String {
        self.folder.path().join("other.pem").display().to_string()
    }

    /// From now on the user has this password, and no other.
    pub fn set_password(&self, password: &str) {
        let (plain, scram) = (self.plain(), format!("SCRAM-SHA-512=[password={password}]"));
        let user = ["--entity-type", "users", "--entity-name", USER];
        let arguments =
            [["--bootstrap-server", &plain, "--alter", "--add-config"].as_slice(), &[&scram], &user].concat();
        java(self.folder.path(), "kafka.admin.ConfigCommand", &arguments);
    }
}

impl Drop for SecuredKafka {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

const STORE_PASSWORD: &str = "of-the-key-stores";
const SCRAM: &str = "org.apache.kafka.common.security.scram.ScramLoginModule required;";

/// Java's keytool comes with the broker's Java, so that nothing more needs to be installed.
fn make_certificates(folder: &Path) {
    for authority in ["ca", "other"] {
        let name = format!("CN={authority}");
        keytool(
            folder,
            authority,
            &["-genkeypair", "-keyalg", "EC", "-dname", &name, "-ext", "bc:c", "-alias", authority],
        );
        let file = format!("{authority}.pem");
        keytool(folder, authority, &["-exportcert", "-rfc", "-file", &file, "-alias", authority]);
    }
    for (broker, from, days) in [("good", "-1d", "30"), ("old", "-3d", "2")] {
        keytool(folder, broker, &["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-alias", broker]);
        keytool(folder, broker, &["-certreq", "-file", "request", "-alias", broker]);
        let names = "san=dns:localhost,ip:127.0.0.1";
        let sign = ["-gencert", "-rfc", "-infile", "request", "-outfile", "signed", "-ext", names, "-alias", "ca"];
        keytool(folder, "ca", &[sign.as_slice(), &["-startdate", from, "-validity", days]].concat());
        keytool(folder, broker, &["-importcert", "-noprompt", "-file", "ca.pem", "-alias", "ca"]);
        keytool(folder, broker, &["-importcert", "-noprompt", "-file", "signed", "-alias", broker]);
    }
}

fn keytool(folder: &Path, store: &str, arguments: &[&str]) {
    let mut command = Command::new("keytool");
    command.args(arguments).args(["-keystore", &format!("{store}.p12"), "-storetype", "PKCS12"]);
    run(command.args(["-storepass", STORE_PASSWORD]).current_dir(folder));
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

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(output.status.success(), "{command:?}: {told:?}");
}
