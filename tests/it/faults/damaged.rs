//! A batch of which a bit has flipped: none of its records is passed over.

use std::path::PathBuf;

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::outcome::Outcome;
use serde_json::json;

use super::on_kafka::is_halted;
use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::own_kafka::OwnKafka;
use crate::support::report::row;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

/// Changes one letter of a text in a partition's log, where it stands once.
fn exchange(log: &PathBuf, from: &str, to: &str) {
    let mut bytes = std::fs::read(log).expect("the log");
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|place| bytes[*place..].starts_with(from.as_bytes())).collect();
    let [place] = places[..] else { panic!("{from} stands {} times in the log", places.len()) };
    bytes[place..place + from.len()].copy_from_slice(to.as_bytes());
    // In place: the broker has it open.
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().write(true).open(log).expect("the log");
    file.write_all_at(&bytes[place..place + from.len()], place as u64).expect("it is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_its_checksum_halts_its_partition_and_is_never_passed_over() {
    let kafka = tokio::task::block_in_place(OwnKafka::start);
    let topics = Topics::create_in(&kafka.brokers, "damaged", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("acme", "organization")).await;
    // A batch each, since each is sent when the one before is acknowledged.
    for id in ["before", "damaged", "behind"] {
        topics.send("usage", &reveal("acme", id, 1)).await;
    }
    let log = kafka.data().join(format!("{}-0/00000000000000000000.log", topics.name("usage")));
    exchange(&log, "\"id\":\"damaged\"", "\"id\":\"damaqed\"");

    let running = meter.start(&[]);
    let said = is_halted(&running, "checksum").await;
    let words = [format!("{}/0 from 1 on", topics.name("usage")), "MessageSet at offset 1 ".to_owned()];
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    until("what stands before it is counted", || async {
        (meter.applied(Partition::usage(0)).await > 0).then_some(())
    })
    .await;
    assert_eq!(meter.applied(Partition::usage(0)).await, 1, "and nothing else");
    // The others go on.
    let mut other = reveal("acme", "other", 1);
    other.partition = 1;
    topics.send("usage", &other).await;
    until("the other partition goes on", || async { (meter.applied(Partition::usage(1)).await == 1).then_some(()) })
        .await;
    // Whoever else reads the log says so, and takes it for nothing else.
    let audit = meter.run(&["audit"]);
    let told = String::from_utf8_lossy(&audit.stderr).into_owned();
    assert!(!audit.status.success() && told.contains("checksum") && told.contains(&topics.name("usage")), "{told}");

    // The same after a restart, for the same partition.
    assert!(running.terminate().await.success());
    let running = meter.start(&[]);
    is_halted(&running, "checksum").await;
    other = reveal("acme", "another", 1);
    other.partition = 1;
    topics.send("usage", &other).await;
    until("the other partition goes on", || async { (meter.applied(Partition::usage(1)).await == 2).then_some(()) })
        .await;

    // Mended, as from a replica.
    assert!(running.terminate().await.success());
    exchange(&log, "\"id\":\"damaqed\"", "\"id\":\"damaged\"");
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.totals("usage").await, [(Outcome::Charged, 5)].into());
    assert_eq!(meter.audit()["mismatches"], json!(0));
    row(
        "11",
        "A bit of the log flips on the broker's disk",
        &format!(
            "halted: \"{said}\"; the same after a restart, the other partition goes on; mended, every event is charged"
        ),
    );
}
