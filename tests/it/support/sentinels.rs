//! A primary, its replica, and three Sentinels of a test's own that watch them.

use std::process::{Child, Command, Stdio};

use super::redis::{OwnRedis, free_port};
use super::until;

/// What the Sentinels call the primary.
pub const NAME: &str = "ledger";
/// What they ask for.
pub const PASSWORD: &str = "watchword";

pub struct Sentinels {
    processes: Vec<(Child, u16)>,
    _folder: tempfile::TempDir,
}

impl Sentinels {
    /// Once each knows the others and the replica.
    pub async fn watch(primary: &OwnRedis) -> Sentinels {
        let folder = tempfile::tempdir().expect("a folder");
        let start = |number: u16| {
            let port = free_port();
            let file = folder.path().join(format!("sentinel-{number}.conf"));
            let settings = [
                format!("port {port}"),
                "bind 127.0.0.1".to_owned(),
                format!("requirepass {PASSWORD}"),
                format!("sentinel sentinel-pass {PASSWORD}"),
                format!("sentinel monitor {NAME} 127.0.0.1 {} 2", primary.port),
                format!("sentinel down-after-milliseconds {NAME} 1000"),
                format!("sentinel failover-timeout {NAME} 6000"),
            ];
            std::fs::write(&file, settings.join("\n")).expect("a file");
            let mut server = Command::new("redis-server");
            server.arg(&file).arg("--sentinel").current_dir(folder.path()).stdout(Stdio::null());
            (server.spawn().expect("redis-server starts"), port)
        };
        let processes: Vec<(Child, u16)> = (0..3).map(start).collect();
        let sentinels = Sentinels { processes, _folder: folder };
        for (_, port) in &sentinels.processes {
            until("the sentinels have found one another", || async {
                let known = redis::Client::open(sentinels.address(*port)).expect("an address");
                let mut connection = known.get_multiplexed_async_connection().await.ok()?;
                let told: Vec<String> =
                    redis::cmd("SENTINEL").arg("MASTER").arg(NAME).query_async(&mut connection).await.ok()?;
                let field = |name: &str| told.iter().position(|word| word == name).map(|at| told[at + 1].clone());
                let found = field("num-other-sentinels").as_deref() == Some("2");
                (found && field("num-slaves").as_deref() == Some("1")).then_some(())
            })
            .await;
        }
        sentinels
    }

    fn address(&self, port: u16) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{port}/")
    }

    pub fn ports(&self) -> Vec<u16> {
        self.processes.iter().map(|(_, port)| *port).collect()
    }

    /// What a meter is given.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis-sentinel://{}/#{NAME}", hosts.join(","))
    }

    /// Lets the replica become the primary while all are well.
    pub async fn switch(&self) {
        let client = redis::Client::open(self.address(self.processes[0].1)).expect("an address");
        until("the sentinels switch", || async {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            redis::cmd("SENTINEL").arg("FAILOVER").arg(NAME).query_async::<()>(&mut connection).await.ok()
        })
        .await;
    }

    pub fn kill(&mut self, number: usize) {
        let (process, _) = &mut self.processes[number];
        process.kill().expect("it can be killed");
        process.wait().expect("it ends");
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for number in 0..self.processes.len() {
            let _ = self.processes[number].0.kill();
            let _ = self.processes[number].0.wait();
        }
    }
}
