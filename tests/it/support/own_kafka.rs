//! A Kafka of a test's own, so that it may be killed and given another past.

use std::path::PathBuf;
use std::process::Command;

pub struct OwnKafka {
    folder: tempfile::TempDir,
    pub brokers: String,
}

impl OwnKafka {
    pub fn start() -> OwnKafka {
        let folder = tempfile::tempdir().expect("a folder");
        let up = services(&folder, &["up"]);
        let brokers = up.lines().find_map(|line| line.strip_prefix("KAFKA_BROKERS=")).expect("it says where it is");
        OwnKafka { brokers: brokers.to_owned(), folder }
    }

    pub fn kill(&self) {
        services(&self.folder, &["stop", "kafka", "--kill"]);
    }

    pub fn stop(&self) {
        services(&self.folder, &["stop", "kafka"]);
    }

    /// The same broker again, with what its files hold.
    pub fn start_again(&self) {
        services(&self.folder, &["start", "kafka"]);
    }

    /// The folder of its log; only for a broker that does not run.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("kafka/data")
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        services(&self.folder, &["down"]);
    }
}

fn services(folder: &tempfile::TempDir, arguments: &[&str]) -> String {
    let mut command = Command::new("docker/services");
    let output = command.args(arguments).arg("--dir").arg(folder.path()).output().expect("docker/services starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
