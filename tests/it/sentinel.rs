//! Sentinels tell where the primary is: a meter follows it, and says what is wrong where they do not.

use credit_meter::ledger::outcome::Outcome;

use crate::redis_answers::{Traffic, every_event_is_charged_once, topics};
use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::redis::OwnRedis;
use crate::support::sentinels::{NAME, PASSWORD, Sentinels};
use crate::support::until;
use crate::walk::CATALOGUE;

/// A primary and its replica.
async fn pair() -> (OwnRedis, OwnRedis) {
    let primary = OwnRedis::start(&[]);
    let replica = OwnRedis::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    follows(&replica).await;
    (primary, replica)
}

async fn follows(replica: &OwnRedis) {
    until("the replica follows", || async {
        let up = replica.info("role").await == "slave" && replica.info("master_link_status").await == "up";
        up.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_follows_the_primary() {
    let (mut first, second) = pair().await;
    let mut sentinels = Sentinels::watch(&first).await;
    let topics = topics("sentinel").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_sentinels(&sentinels.url(), PASSWORD);
    meter.set("REDIS__TIMEOUT", "2s");
    let running = meter.start(&[]);
    running.ready().await;
    let traffic = Traffic::start(&topics, 4);
    let charged = async || meter.totals("usage").await.get(&Outcome::Charged).copied().unwrap_or(0);
    let charges_more = async || {
        let before = charged().await;
        until("more is charged", || async { (charged().await > before + 50).then_some(()) }).await;
    };
    charges_more().await;
    let check = String::from_utf8_lossy(&meter.run(&["check"]).stdout).into_owned();
    assert_eq!(check.matches(&format!("says that the primary is at 127.0.0.1:{}", first.port)).count(), 3, "{check}");

    // It dies, another one takes over, and it comes back as a replica.
    first.kill();
    until("another one takes over", || async { (second.info("role").await == "master").then_some(()) }).await;
    charges_more().await;
    running.ready().await;
    first.start_again(&[]);
    follows(&first).await;

    // An orderly switch, with a Sentinel fewer.
    sentinels.kill(2);
    sentinels.switch().await;
    until("it is the primary again", || async { (first.info("role").await == "master").then_some(()) }).await;
    follows(&second).await;
    charges_more().await;
    running.ready().await;

    // With a primary, nobody needs Sentinels.
    sentinels.kill(0);
    sentinels.kill(1);
    charges_more().await;
    let sent = traffic.end().await;
    running.ready().await;
    until("all is applied", || async { (charged().await == sent.values().sum::<u64>()).then_some(()) }).await;
    meter.use_redis(&first.url());
    every_event_is_charged_once(&topics, &meter, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_sentinels_is_told_with_the_remedy() {
    let (first, _second) = pair().await;
    let mut sentinels = Sentinels::watch(&first).await;
    let topics = Topics::create("sentinel-terms", 1).await;
    let said = |url: &str, password: Option<&str>, words: &[&str]| {
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.set("REDIS__URL", url);
        if let Some(password) = password {
            meter.set("REDIS__SENTINEL__PASSWORD", password);
        }
        let output = meter.run(&["balance", "acme"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        for word in words {
            assert!(told.contains(word), "{url}: no `{word}` in: {told}");
        }
    };
    let (url, password) = (sentinels.url(), Some(PASSWORD));
    // All is well: the state is what is missing.
    said(&url, password, &["holds no state under the prefix"]);
    said(&url, None, &["does not allow it", "redis.sentinel"]);
    said(
        &url.replace(NAME, "other"),
        password,
        &["is a Sentinel that does not watch this primary", "`other`", "behind #"],
    );
    let plain = first.url().replace("redis://", "redis-sentinel://");
    said(&format!("{plain}#{NAME}"), None, &["is no Sentinel", &first.address()]);
    let one = format!("redis://:{PASSWORD}@127.0.0.1:{}", sentinels.ports()[0]);
    said(&one, None, &["is a Sentinel: begin redis.url with redis-sentinel://", NAME]);
    let all = url.replace("redis-sentinel://", &format!("redis://:{PASSWORD}@"));
    said(all.trim_end_matches(&format!("#{NAME}")), None, &["is a Sentinel: begin redis.url with redis-sentinel://"]);
    // One is enough, wherever it stands.
    sentinels.kill(0);
    sentinels.kill(1);
    said(&url, password, &["holds no state under the prefix"]);
    sentinels.kill(2);
    said(&url, password, &["no answer from redis at 127.0.0.1:", "refused"]);
}
