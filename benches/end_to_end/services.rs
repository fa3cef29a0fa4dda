//! The real Kafka and Redis: those that the environment names, or a set of our own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

pub struct Services {
    pub brokers: String,
    pub redis_url: String,
    pub kafka_version: String,
    own: Option<PathBuf>,
}

impl Services {
    pub fn start(root: &Path) -> anyhow::Result<Services> {
        if let (Some(brokers), Some(redis_url)) = (variable("KAFKA_BROKERS"), variable("REDIS_URL")) {
            let kafka_version = version_in(&variable("KAFKA_HOME").unwrap_or_default());
            return Ok(Services { brokers, redis_url, kafka_version, own: None });
        }
        let dir = root.join(".run/bench-services");
        // What an interrupted run has left would be in the figures.
        command(root, "down", &dir)?;
        let printed = command(root, "up", &dir)?;
        let value = |name: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(str::to_owned).with_context(|| format!("docker/services did not tell {name}"))
        };
        let kafka_version = version_in(&value("KAFKA_HOME")?);
        Ok(Services { brokers: value("KAFKA_BROKERS")?, redis_url: value("REDIS_URL")?, kafka_version, own: Some(dir) })
    }

    pub fn are_own(&self) -> bool {
        self.own.is_some()
    }

    /// Where `down` finds them: for whoever ends the process without dropping.
    pub fn dir(&self) -> Option<PathBuf> {
        self.own.clone()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(dir) = self.own.take() {
            stop(&dir);
        }
    }
}

pub fn stop(dir: &Path) {
    if let Err(error) = command(Path::new(env!("CARGO_MANIFEST_DIR")), "down", dir) {
        eprintln!("bench: {error:#}");
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `…/kafka-4.3.1/libs` says it.
fn version_in(home: &str) -> String {
    let version = home.split('/').find_map(|part| part.strip_prefix("kafka-"));
    version.unwrap_or("unknown").to_owned()
}

fn command(root: &Path, what: &str, dir: &Path) -> anyhow::Result<String> {
    let output = Command::new(root.join("docker/services"))
        .args([what, "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("docker/services cannot be run")?;
    if !output.status.success() {
        bail!("docker/services {what} has failed: see above, or set KAFKA_BROKERS and REDIS_URL");
    }
    Ok(String::from_utf8(output.stdout)?)
}
