//! Commands that look on while a meter works: alerts as they come, the live view, an account's events.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::{signal, until};
use crate::walk::{CATALOGUE, put, reveal};

/// A command that goes on, and its lines as they come.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(meter: &Meter, arguments: &[&str]) -> Following {
        let spawned = meter.command().args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
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
        Following { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(180)).expect("a line comes")
    }

    async fn ends(&mut self, why: &str) -> i32 {
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

/// What each run of the program was given goes to a file of its own.
fn program(folder: &Path) -> String {
    let path = folder.join("program");
    let text = format!(
        "#!/bin/sh\n(cat; echo \"$ALERT_EDGE $ALERT_ACCOUNT $ALERT_REMAINING\") > {0}/part.$$ && mv {0}/part.$$ {0}/ran.$$\n",
        folder.display()
    );
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it may be run");
    path.display().to_string()
}

fn ran(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let own = entries.filter(|path| path.file_stem().is_some_and(|stem| stem == "ran"));
    own.map(|path| std::fs::read_to_string(path).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_come_as_they_are_published_and_a_program_runs_for_each() {
    let topics = Topics::create("alerts", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let follow = ["alerts", "--follow", "--from", "earliest", "--json", "--exec", program.as_str()];
    let mut following = Following::start(&meter, &follow);
    let mut lows = Vec::new();
    for account in ["acme", "other"] {
        topics.command(&put(account, "starter")).await; // 30 e-mail credits
        topics.send("usage", &reveal(account, "e1", 25)).await;
        let low: Value = serde_json::from_str(&following.line()).expect("JSON");
        assert_eq!((&low["type"], &low["subject"]), (&json!("credits.low.v1"), &json!(account)), "{low}");
        assert_eq!((&low["data"]["threshold"], &low["data"]["remaining"]), (&json!("80%"), &json!(5)), "{low}");
        assert!(low["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{low}");
        lows.push(low);
    }
    topics.send("usage", &reveal("acme", "e2", 5)).await;
    let exhausted: Value = serde_json::from_str(&following.line()).expect("JSON");
    assert_eq!(exhausted["type"], "credits.exhausted.v1", "{exhausted}");
    let ran = until("the program has run for each", || async { Some(ran(folder.path())).filter(|ran| ran.len() == 3) });
    let ran = ran.await;
    assert!(ran.iter().any(|told| told.ends_with("exhausted acme 0\n")), "{ran:?}");
    let first = ran.iter().find(|told| told.ends_with("low acme 5\n")).expect("it ran for the first");
    assert_eq!(serde_json::from_str::<Value>(first.lines().next().expect("a line")).expect("JSON"), lows[0]);
    signal(following.child.id(), "-TERM");
    assert_eq!(following.ends("SIGTERM ends it").await, 0);

    // Again, as a relay that died would: the same message is told once.
    let published = topics.read("alerts", 1);
    let repeated = crate::support::kafka::Outgoing {
        key: Some(b"acme".to_vec()),
        value: rdkafka::Message::payload(&published[0]).map(<[u8]>::to_vec),
        ..Default::default()
    };
    topics.send("alerts", &repeated).await;
    let lines = |arguments: &[&str]| {
        let output = meter.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = lines(&["alerts", "--account", "acme"]);
    assert_eq!(own.len(), 2, "{own:?}");
    assert!(own[0].ends_with("low        acme  email (80%): 5 of 30 left"), "{own:?}");
    assert!(own[1].ends_with("exhausted  acme  email: 0 of 30 left"), "{own:?}");
    assert_eq!(lines(&["alerts"]).len(), 3);
    assert!(lines(&["alerts", "--from", "latest"]).is_empty());
    assert!(lines(&["alerts", "--from", "2999-01-01T00:00:00Z"]).is_empty());

    // A program that fails is told of, and holds nothing up.
    let failing = meter.run(&["alerts", "--exec", "/bin/false"]);
    let told = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert_eq!((failing.status.code(), String::from_utf8_lossy(&failing.stdout).lines().count()), (Some(1), 3));
    assert!(told.contains("the program failed for 3 alerts"), "{told}");

    // Nobody reads any more, and nothing comes: it ends all the same.
    let follow = ["alerts", "--follow", "--from", "earliest"];
    let spawned = meter.command().args(follow).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.expect("the program starts");
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_exact(&mut [0; 10]).expect("it tells what there is");
    drop(stdout);
    let (_, lines) = channel();
    let mut deaf = Following { child, lines };
    assert_eq!(deaf.ends("a closed pipe ends it").await, 0);
    assert!(running.terminate().await.success());
}
