//! A Redis that speaks TLS, and what is said where the two sides do not come to terms.

use std::path::{Path, PathBuf};
use std::process::Command;

use credit_meter::ledger::outcome::Outcome;

use crate::redis_answers::{Traffic, every_event_is_charged_once, is_counted, topics, unready};
use crate::support::certificates::{Authority, Certificate};
use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::redis::{OwnRedis, free_port};
use crate::support::until;
use crate::walk::CATALOGUE;

/// A server with a port for the meter, which asks for a certificate and a password, and one for the test.
struct Secured {
    redis: OwnRedis,
    port: u16,
}

impl Secured {
    fn start(authority: &Path, own: &Certificate) -> Secured {
        let port = free_port();
        let path = |path: &PathBuf| path.display().to_string();
        let flags = ["--tls-port", &port.to_string(), "--tls-ca-cert-file", &authority.display().to_string()];
        let own = ["--tls-cert-file", &path(&own.certificate), "--tls-key-file", &path(&own.key)];
        let user = ["--user", "meter", "on", ">open sesame", "~*", "&*", "+@all"];
        Secured { redis: OwnRedis::start(&[&flags[..], &own, &user].concat()), port }
    }

    fn url(&self) -> String {
        format!("rediss://meter:open%20sesame@127.0.0.1:{}", self.port)
    }
}

fn folder(parent: &Path, name: &str) -> PathBuf {
    let folder = parent.join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn shows(meter: &mut Meter, authority: &Path, own: &Certificate) {
    meter.set("REDIS__TLS__CA", &authority.display().to_string());
    meter.set("REDIS__TLS__CERTIFICATE", &own.certificate.display().to_string());
    meter.set("REDIS__TLS__KEY", &own.key.display().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_a_meter_runs() {
    let files = tempfile::tempdir().expect("a folder");
    let (servers, meters) = (folder(files.path(), "server"), folder(files.path(), "meter"));
    let make =
        |folder: &Path, authority: &Authority| (authority.write(folder), authority.sign(folder, "127.0.0.1", false));
    let authority = Authority::new("the first");
    let (ca, own) = make(&servers, &authority);
    let mut secured = Secured::start(&ca, &own);
    let topics = topics("tls").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&secured.redis.url());
    meter.set("REDIS__URL", &secured.url());
    meter.set("REDIS__TIMEOUT", "2s");
    let (ca, own) = make(&meters, &authority);
    shows(&mut meter, &ca, &own);
    let running = meter.start(&[]);
    running.ready().await;
    let traffic = Traffic::start(&topics, 4);
    let charged = async || meter.totals("usage").await.get(&Outcome::Charged).copied();
    until("some is applied", charged).await;
    let check = String::from_utf8_lossy(&meter.run(&["check"]).stdout).into_owned();
    assert!(check.lines().any(|line| line.starts_with("OK    redis  ")), "{check}");

    // The server is the first to get what another authority has signed.
    let authority = Authority::new("the second");
    make(&servers, &authority);
    secured.redis.kill();
    secured.redis.start_again(&[]);
    let place = format!("127.0.0.1:{}", secured.port);
    unready(&running, &["[-]redis", &place, "a certificate that is not accepted", "UnknownIssuer", "redis.tls.ca"])
        .await;
    is_counted(&running, "certificate").await;
    make(&meters, &authority);
    running.ready().await;
    let before = charged().await;
    until("more is applied", || async { charged().await.filter(|now| Some(*now) > before) }).await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&topics, &meter, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_to_terms_is_told_with_the_remedy() {
    let files = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("the right one");
    let ca = authority.write(files.path());
    let signed = |name: &str, host: &str, expired| authority.sign(&folder(files.path(), name), host, expired);
    let right = signed("right", "127.0.0.1", false);
    let other = folder(files.path(), "other");
    let wrong = Authority::new("another one");
    let (wrong_ca, by_other) = (wrong.write(&other), wrong.sign(&other, "127.0.0.1", false));
    let topics = Topics::create("tls-terms", 1).await;

    let said = |url: &str, ca: Option<&Path>, own: Option<&Certificate>, words: &[&str]| {
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.set("REDIS__URL", url);
        meter.set("REDIS__TIMEOUT", "5s");
        if let Some(ca) = ca {
            meter.set("REDIS__TLS__CA", &ca.display().to_string());
        }
        if let Some(own) = own {
            meter.set("REDIS__TLS__CERTIFICATE", &own.certificate.display().to_string());
            meter.set("REDIS__TLS__KEY", &own.key.display().to_string());
        }
        let output = meter.run(&["balance", "acme"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        for word in words {
            assert!(told.contains(word), "{url}: no `{word}` in: {told}");
        }
        assert!(!told.contains("sesame"), "{told}");
    };

    let secured = Secured::start(&ca, &right);
    let url = secured.url();
    // All is well: the state is what is missing.
    said(&url, Some(&ca), Some(&right), &["holds no state under the prefix"]);
    said(
        &url,
        Some(&wrong_ca),
        Some(&right),
        &["not accepted", "UnknownIssuer", "name who has signed it in redis.tls.ca"],
    );
    said(&url, None, Some(&right), &["not accepted", "UnknownIssuer", "redis.tls.ca"]);
    said(&url, Some(&ca), None, &["does not accept this program's TLS", "redis.tls.certificate and redis.tls.key"]);
    said(&url, Some(&ca), Some(&by_other), &["does not accept this program's TLS", "redis.tls.certificate"]);
    said(&url.replace("sesame", "sesam"), Some(&ca), Some(&right), &["does not allow it", "password in redis.url"]);
    let plain = secured.redis.url().replace("redis://", "rediss://");
    said(&plain, Some(&ca), Some(&right), &["its port may be one without TLS"]);
    said(&url.replace("rediss", "redis"), None, None, &["its port may be one with TLS"]);
    said(&url.replace("127.0.0.1", "localhost"), Some(&ca), Some(&right), &["not accepted", "names this host"]);
    let gone = Certificate { certificate: "/no/such.pem".into(), key: right.key.clone() };
    said(&url, Some(&ca), Some(&gone), &["redis.tls.certificate: cannot read /no/such.pem"]);

    let expired = Secured::start(&ca, &signed("expired", "127.0.0.1", true));
    said(&expired.url(), Some(&ca), Some(&right), &["not accepted", "xpired", "one that is in force"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_a_cluster_are_spoken_to_like_the_first() {
    let files = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("the cluster's");
    let (ca, own) = (authority.write(files.path()), authority.sign(files.path(), "127.0.0.1", false));
    let path = |path: &Path| path.display().to_string();
    let (ca_path, certificate, key) = (path(&ca), path(&own.certificate), path(&own.key));
    let nodes: Vec<(OwnRedis, u16)> = (0..3)
        .map(|_| {
            let port = free_port();
            let tls = ["--tls-port", &port.to_string(), "--tls-ca-cert-file", &ca_path, "--tls-cluster", "yes"];
            let own = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--cluster-enabled", "yes"];
            (OwnRedis::start(&[&tls[..], &own].concat()), port)
        })
        .collect();
    let addresses: Vec<String> = nodes.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--tls", "--cacert", &ca_path, "--cert", &certificate, "--key", &key, "--cluster", "create"]);
    let made = create.args(&addresses).args(["--cluster-replicas", "0", "--cluster-yes"]).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    for (node, _) in &nodes {
        until("the cluster is whole", || async {
            let told: String = node.tell(&["CLUSTER", "INFO"]).await;
            told.contains("cluster_state:ok").then_some(())
        })
        .await;
    }

    let topics = topics("tls-cluster").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    // The test itself asks at the plain port of a node, and the others as that one names them.
    meter.use_redis(&nodes[0].0.url());
    meter.set("REDIS__URL", &format!("rediss://{}", addresses[0]));
    shows(&mut meter, &ca, &own);
    let running = meter.start(&[]);
    running.ready().await;
    let traffic = Traffic::start(&topics, 4);
    until("some is applied", || async { meter.totals("usage").await.get(&Outcome::Charged).copied() }).await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&topics, &meter, &sent).await;
    for (node, _) in &nodes {
        let keys: u64 = node.tell(&["DBSIZE"]).await;
        assert!(keys > 0, "each node has some of the shards");
    }
}
