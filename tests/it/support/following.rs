//! A command that follows what a meter does.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::meter::Meter;
use super::until;

/// A command that goes on, and its lines as they come.
pub struct Following {
    pub child: Child,
    pub lines: Receiver<String>,
    /// Where it tells what it says on stderr, if not here.
    pub log: Option<PathBuf>,
}

impl Following {
    pub fn start(meter: &Meter, arguments: &[&str]) -> Following {
        Following::start_with(meter, arguments, Stdio::inherit(), None)
    }

    /// What it says on stderr goes there.
    pub fn start_telling(meter: &Meter, arguments: &[&str], log: &Path) -> Following {
        let told = File::create(log).expect("a file");
        Following::start_with(meter, arguments, told.into(), Some(log.to_owned()))
    }

    fn start_with(meter: &Meter, arguments: &[&str], told: Stdio, log: Option<PathBuf>) -> Following {
        let mut command = meter.command();
        let spawned = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(told).spawn();
        let mut child = spawned.expect("the program starts");
        let stdout: ChildStdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line.expect("text")).is_err() {
                    return;
                }
            }
        });
        Following { child, lines, log }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(180)).unwrap_or_else(|error| {
            let told = self.log.as_ref().map(|log| std::fs::read_to_string(log).expect("it is text"));
            panic!("no line comes: {error} {}", told.unwrap_or_default())
        })
    }

    pub async fn ends(&mut self, why: &str) -> i32 {
        let status = until(why, || {
            let ended = self.child.try_wait().expect("it is a child");
            async move { ended }
        });
        status.await.code().expect("it was not killed")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
