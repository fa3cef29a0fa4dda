//! A Kafka of a test's own that asks for TLS and a password, beside a plain listener for the test itself.

use std::path::Path;
use std::process::Command;

use super::kafka::Topics;
use super::meter::Meter;
use super::one_broker::{Listener, OneBroker, java, run};
use super::redis::free_port;

pub const USER: &str = "meter";
pub const PASSWORD: &str = "first-of-two-secrets";

pub struct SecuredKafka {
    broker: OneBroker,
    plain: u16,
    secured: u16,
    expired: u16,
}

impl SecuredKafka {
    /// Whoever has the password may do everything.
    pub async fn start() -> SecuredKafka {
        SecuredKafka::open_to_all(true).await
    }

    /// Who has the password may do only what [`super::acls`] give; who comes without one, everything.
    pub async fn start_closed() -> SecuredKafka {
        SecuredKafka::open_to_all(false).await
    }

    async fn open_to_all(open: bool) -> SecuredKafka {
        let folder = tempfile::tempdir().expect("a folder");
        make_certificates(folder.path());
        let [plain, secured, expired] = [(); 3].map(|()| free_port());
        let asks = |name, port| Listener { name, protocol: "SASL_SSL", port, advertised: format!("localhost:{port}") };
        let listeners = [
            Listener::plain("PLAIN", plain, format!("127.0.0.1:{plain}")),
            asks("SECURED", secured),
            asks("EXPIRED", expired),
        ];
        let at = folder.path().display();
        let store = |name: &str| format!("{at}/{name}.p12");
        let (good, old) = (store("good"), store("old"));
        let properties = format!(
            "sasl.enabled.mechanisms=SCRAM-SHA-512\n\
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
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n\
             allow.everyone.if.no.acl.found={open}\n",
        );
        let scram = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        let broker = OneBroker::start(folder, &listeners, &properties, &["--add-scram", &scram]).await;
        SecuredKafka { broker, plain, secured, expired }
    }

    /// A meter with TLS and the password in this file.
    pub fn meter(&self, topics: &Topics, catalogue: &str, password_file: &Path) -> Meter {
        let mut meter = Meter::new(topics, catalogue);
        meter.set("KAFKA__BROKERS", &self.secured());
        meter.set("KAFKA__PROPERTIES__SECURITY_PROTOCOL", "sasl_ssl");
        meter.set("KAFKA__PROPERTIES__SSL_CA_LOCATION", &self.authority());
        meter.set("KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-512");
        meter.set("KAFKA__PROPERTIES__SASL_USERNAME", USER);
        meter.set("KAFKA__PROPERTIES__SASL_PASSWORD_FILE", &password_file.display().to_string());
        meter
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
        self.broker.folder.path().join("ca.pem").display().to_string()
    }

    /// An authority that has made none of them.
    pub fn other_authority(&self) -> String {
        self.broker.folder.path().join("other.pem").display().to_string()
    }

    /// From now on the user has this password, and no other.
    pub fn set_password(&self, password: &str) {
        let (plain, scram) = (self.plain(), format!("SCRAM-SHA-512=[password={password}]"));
        let user = ["--entity-type", "users", "--entity-name", USER];
        let arguments =
            [["--bootstrap-server", &plain, "--alter", "--add-config"].as_slice(), &[&scram], &user].concat();
        java(self.broker.folder.path(), "kafka.admin.ConfigCommand", &arguments);
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
