//! Runs a program for each alert, one after the other.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::output;
use crate::ingest::alerts::Alert;
use crate::ledger::credits::Credits;
use crate::note;

/// What a program that is under way may take when the command is stopped. It is then left alone, not killed: what it
/// has begun it may end.
const STOP_WAIT: Duration = Duration::from_secs(10);

pub struct Program {
    path: PathBuf,
    /// A program that takes longer is killed, with what it has started: the next alerts wait for it.
    limit: Duration,
    /// Runs that did not end well.
    pub failed: u64,
}

impl Program {
    pub fn new(path: PathBuf, limit: Duration) -> Program {
        Program { path, limit, failed: 0 }
    }

    /// Runs it with an alert, and says so if that fails: the next alert may matter more.
    pub async fn run(&mut self, alert: &Alert, json: &str, stop: &CancellationToken) -> Ran {
        let ended = match start(&self.path, alert) {
            Ok(child) => run(child, self.limit, json, stop).await,
            Err(error) => {
                self.failed += 1;
                note!("{} cannot be run for alert {}: {error}", self.path.display(), alert.id);
                return Ran::NotAtAll;
            }
        };
        let failure = match ended {
            Ok(End::Status(status)) if status.success() => return Ran::Began,
            Ok(End::Status(status)) => status.to_string(),
            Ok(End::Killed) => {
                let limit = humantime::format_duration(self.limit);
                format!("killed, since it had not ended within {limit} and others wait: see --exec-timeout")
            }
            Ok(End::Left) => format!("still running {} s after this command was stopped", STOP_WAIT.as_secs()),
            Err(error) => error.to_string(),
        };
        self.failed += 1;
        note!("{} failed for alert {}: {failure}", self.path.display(), alert.id);
        Ran::Began
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Whatever it has done.
    Began,
    /// There is no such program, or it may not be run.
    NotAtAll,
}

enum End {
    Status(ExitStatus),
    /// It took too long.
    Killed,
    /// This command was stopped, and the program goes on.
    Left,
}

fn start(path: &Path, alert: &Alert) -> std::io::Result<Child> {
    let mut command = Command::new(path);
    // In a group of its own: Ctrl-C in a terminal is for this command, and a program is killed with its children.
    command.envs(environment(alert)).stdin(Stdio::piped()).process_group(0);
    // Our stdout is data.
    command.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    command.spawn()
}

async fn run(mut child: Child, limit: Duration, json: &str, stop: &CancellationToken) -> std::io::Result<End> {
    let mut stdin = child.stdin.take().expect("it is piped");
    let line = format!("{json}\n");
    let ended = async {
        // A program need not read it.
        let _ = stdin.write_all(line.as_bytes()).await;
        drop(stdin);
        child.wait().await
    };
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WAIT).await;
    };
    tokio::select! {
        status = ended => return status.map(End::Status),
        () = stopped => return Ok(End::Left),
        () = tokio::time::sleep(limit) => {}
    }
    kill(&mut child).await?;
    Ok(End::Killed)
}

async fn kill(child: &mut Child) -> std::io::Result<()> {
    // The group has the program's id. Once the program has ended there is none to be had, and none is needed.
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        kill_process_group(group, Signal::KILL)?;
    }
    child.wait().await.map(drop)
}

fn environment(alert: &Alert) -> [(&'static str, String); 12] {
    let amount = |credits: Option<Credits>| credits.map_or("unlimited".to_owned(), |credits| credits.to_string());
    [
        ("ALERT_ID", alert.id.clone()),
        ("ALERT_TYPE", alert.event_type.clone()),
        ("ALERT_EDGE", alert.edge.name().to_owned()),
        ("ALERT_TIME", output::time(alert.at_ms)),
        ("ALERT_ACCOUNT", alert.account.clone()),
        ("ALERT_CREDIT_TYPE", alert.credit_type.clone()),
        ("ALERT_THRESHOLD", alert.threshold.clone()),
        ("ALERT_USED", alert.used.to_string()),
        ("ALERT_GRANTED", amount(alert.granted)),
        ("ALERT_REMAINING", amount(alert.remaining)),
        ("ALERT_CYCLE", alert.cycle.to_string()),
        ("ALERT_ARMING", alert.arming.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe;
    use tokio::time::timeout;

    use super::*;
    use crate::ingest::alerts::tests::alert;

    const MINUTE: Duration = Duration::from_secs(60);

    fn script(folder: &Path, text: &str) -> PathBuf {
        let (path, source) = (folder.join("program"), folder.join("source"));
        std::fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
        // Not written here: another test's child may have the file open for a moment, and then it is busy and cannot be run.
        assert!(std::process::Command::new("cp").args([&source, &path]).status().unwrap().success());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_program_gets_the_json_and_the_fields() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let line = format!("(cat; env | grep ^ALERT_ | sort) > {}", told.display());
        let mut program = Program::new(script(folder.path(), &line), MINUTE);
        let stop = CancellationToken::new();
        program.run(&alert("low acme email 80% 5.5/null 3"), "{\"a\":1}", &stop).await;
        assert_eq!(program.failed, 0);
        let told = std::fs::read_to_string(told).unwrap();
        let mut lines = told.lines();
        assert_eq!(lines.next(), Some("{\"a\":1}"));
        for line in [
            "ALERT_ACCOUNT=acme",
            "ALERT_ARMING=3",
            "ALERT_CREDIT_TYPE=email",
            "ALERT_CYCLE=0",
            "ALERT_EDGE=low",
            "ALERT_GRANTED=unlimited",
            "ALERT_ID=low/acme/email/80%/0/3",
            "ALERT_REMAINING=5.5",
            "ALERT_THRESHOLD=80%",
            "ALERT_TIME=2026-09-21T14:13:20Z",
            "ALERT_TYPE=credits.low.v1",
            "ALERT_USED=1.5",
        ] {
            assert_eq!(lines.next(), Some(line), "{told}");
        }
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_and_holds_no_alert_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::new(script(folder.path(), "exec sleep 1000"), Duration::from_millis(100));
        for failed in 1..=2 {
            program.run(&alert("low acme email 80% 5/10 3"), "{}", &CancellationToken::new()).await;
            assert_eq!(program.failed, failed);
        }
    }

    /// A shell script's `curl`, for one, would go on beside those of the next alerts.
    #[tokio::test]
    async fn what_a_program_has_started_is_killed_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let line = format!("exec 3<>{}; (echo begun >&3; sleep 1000) & wait", fifo.display());
        let path = script(folder.path(), &line);
        // On a busy machine it may be killed before it begins.
        for limit in [Duration::from_millis(100), Duration::from_secs(2), MINUTE] {
            let mut told = pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
            let mut program = Program::new(path.clone(), limit);
            program.run(&alert("low acme email 80% 5/10 3"), "{}", &CancellationToken::new()).await;
            assert_eq!(program.failed, 1);
            // It ends when nobody has it open any more.
            let mut text = String::new();
            timeout(MINUTE, told.read_to_string(&mut text)).await.expect("something goes on").unwrap();
            if !text.is_empty() {
                return;
            }
        }
        panic!("it did not begin");
    }

    #[tokio::test]
    async fn failures_are_counted_and_stop_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        // One that does not read what it is given, however long that is.
        let mut program = Program::new(script(folder.path(), "exit 3"), MINUTE);
        program.run(&alert("low acme email 80% 5/10 3"), &"x".repeat(1 << 20), &stop).await;
        assert_eq!(program.failed, 1);
        let mut missing = Program::new(folder.path().join("missing"), MINUTE);
        missing.run(&alert("low acme email 80% 5/10 3"), "{}", &stop).await;
        assert_eq!(missing.failed, 1);
    }
}
