//! A Kafka that asks for TLS and a password: the meter counts as exactly as ever, and says what is wrong with either.

use std::time::{Duration, Instant};

use credit_meter::ledger::outcome::Outcome;
use serde_json::json;

use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::secured_kafka::{PASSWORD, SecuredKafka};
use crate::walk::{CATALOGUE, put, reveal};

const SECOND_PASSWORD: &str = "second-of-two-secrets";
const EVENTS: u64 = 2_000;
const PARTITIONS: i32 = 2;
/// `check` asks Kafka for 10 seconds; the rest is for a slow machine.
const CHECK_MAX: Duration = Duration::from_secs(60);

async fn send(topics: &Topics, ids: std::ops::Range<u64>) {
    for id in ids {
        let mut record = reveal("acme", &format!("e{id}"), 1);
        record.partition = (id % PARTITIONS as u64) as i32;
        topics.send("usage", &record).await;
    }
}

fn without_secrets(told: &str) {
    assert!(!told.contains(PASSWORD) && !told.contains(SECOND_PASSWORD), "a password is told: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_counted_exactly_over_tls_while_the_password_is_rotated() {
    let kafka = SecuredKafka::start().await;
    let topics = Topics::create_in(&kafka.plain(), "secured", PARTITIONS).await;
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).expect("a file");
    let meter = kafka.meter(&topics, CATALOGUE, &password);
    let (first_log, second_log) = (folder.path().join("first.log"), folder.path().join("second.log"));

    topics.command(&put("acme", "organization")).await; // e-mail unlimited
    let running = meter.start_telling(&[], &first_log);
    running.ready().await;
    send(&topics, 0..EVENTS).await;
    send(&topics, 0..10).await; // again
    meter.caught_up(&topics).await;

    // The connections show it again, and it is not the right one any more.
    kafka.set_password(SECOND_PASSWORD);
    let unready = running.not_ready("sasl.password").await;
    assert!(unready.contains("no broker is connected") && unready.contains("SASL authentication error"), "{unready}");
    without_secrets(&unready);
    send(&topics, EVENTS..2 * EVENTS).await;
    assert!(running.terminate().await.success(), "a meter that Kafka refuses still ends when it is told to");

    std::fs::write(&password, format!("{SECOND_PASSWORD}\n")).expect("a file");
    let running = meter.start_telling(&[], &second_log);
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    let expected = [(Outcome::Duplicate, 10), (Outcome::Charged, 2 * EVENTS)];
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], json!(2 * EVENTS));
    assert_eq!(meter.audit()["records"], json!(2 * EVENTS + 10));
    running.ready().await;
    assert!(running.terminate().await.success());

    let [first, second] = [first_log, second_log].map(|log| std::fs::read_to_string(log).expect("it told"));
    assert!(first.contains("SASL authentication error"), "{first}");
    assert!(first.lines().count() < 200, "it repeats itself: {first}");
    without_secrets(&first);
    without_secrets(&second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_an_old_certificate_and_a_wrong_password_are_told_with_their_remedy() {
    let kafka = SecuredKafka::start().await;
    let topics = Topics::create_in(&kafka.plain(), "refused", 1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, PASSWORD).expect("a file");
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, SECOND_PASSWORD).expect("a file");
    let (wrong, other, expired) = (wrong.display().to_string(), kafka.other_authority(), kafka.expired());

    let ca = "KAFKA__PROPERTIES__SSL_CA_LOCATION";
    let certificate = ["certificate could not be verified", "an authority of ssl.ca.location"];
    // changed, to                                        what is told: fault and remedy
    let rows: [(&'static str, &str, [&'static str; 2]); 6] = [
        (ca, &other, certificate),
        // Those of the system.
        (ca, "", certificate),
        ("KAFKA__BROKERS", &expired, ["certificate", "is it in force?"]),
        (
            "KAFKA__PROPERTIES__SASL_PASSWORD_FILE",
            &wrong,
            ["SASL authentication error", "do the brokers know this user and password?"],
        ),
        (
            "KAFKA__PROPERTIES__SASL_MECHANISM",
            "PLAIN",
            ["SASL PLAIN mechanism handshake failed", "see sasl.mechanism, sasl.username and sasl.password"],
        ),
        (
            "KAFKA__PROPERTIES__SECURITY_PROTOCOL",
            "plaintext",
            ["APIVERSION_QUERY", "is security.protocol in kafka.properties what"],
        ),
    ];
    let mut all = tokio::task::JoinSet::new();
    for (row, (key, value, words)) in rows.into_iter().enumerate() {
        let mut meter = kafka.meter(&topics, CATALOGUE, &password);
        // Nobody listens at a second address, as at one of a name that has several: no more is told of it than is of use.
        let at = |place: &str| format!("{place},127.0.0.1:1");
        meter.set("KAFKA__BROKERS", &at(&kafka.secured()));
        let changed = if key == "KAFKA__BROKERS" { at(value) } else { value.to_owned() };
        meter.set(key, &changed);
        let place = if key == "KAFKA__BROKERS" { expired.clone() } else { kafka.secured() };
        all.spawn(refused(meter, folder.path().join(format!("{row}.log")), place, words));
    }
    all.join_all().await;

    let mut meter = kafka.meter(&topics, CATALOGUE, &password);
    // At once: no broker can help.
    meter.set(ca, "/does/not/exist.pem");
    for command in ["check", "serve"] {
        let ended = meter.run(&[command]);
        let told = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(!ended.status.success(), "{told}");
        assert!(told.contains("ssl.ca.location failed") && told.contains("is the file that it names there"), "{told}");
        without_secrets(&told);
    }
    // Without a file: those of the system, which Java brings along on Debian.
    meter.set(ca, "");
    meter.set("KAFKA__PROPERTIES__DEBUG", "security,conf");
    let told = String::from_utf8_lossy(&meter.run(&["check", "-vv"]).stderr).into_owned();
    assert!(told.contains("Setting default CA certificate location"), "{told}");
    without_secrets(&told);
}

/// What `check` and `serve` tell of brokers that cannot be used.
async fn refused(meter: Meter, log: std::path::PathBuf, place: String, words: [&'static str; 2]) {
    let running = meter.start_telling(&[], &log);
    let started = Instant::now();
    let check = tokio::task::block_in_place(|| meter.run(&["check"]));
    assert!(started.elapsed() < CHECK_MAX, "{words:?} took {:?}", started.elapsed());
    let (out, err) = (String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    without_secrets(&out);
    without_secrets(&err);
    let line = out.lines().find(|line| line.starts_with("FAIL  kafka")).unwrap_or_else(|| panic!("{words:?}: {out}"));
    assert!(words.iter().all(|words| line.contains(words)) && line.contains(&place), "{words:?}: {line}");
    assert!(!check.status.success() && !out.contains("FAIL  redis"), "the rest is checked too: {out}");

    without_secrets(&running.not_ready(words[1]).await);
    assert!(running.terminate().await.success(), "{words:?}");
    let log = std::fs::read_to_string(&log).expect("it told");
    assert!(log.contains("not ready") && log.contains(words[0]), "{words:?}: {log}");
    without_secrets(&log);
}
