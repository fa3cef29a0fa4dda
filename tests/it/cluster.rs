//! A real Redis Cluster, three primaries with a replica each: what one Redis gives, and what happens when a node dies,
//! slots move, or a node is emptied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use credit_meter::ledger::outcome::Outcome;
use credit_meter::store::keys::{Key, slot_of};
use serde_json::json;

use crate::redis_answers::{Traffic, every_event_is_charged_once, is_counted, metric, topics, unready};
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::redis::OwnCluster;
use crate::support::until;
use crate::walk::CATALOGUE;

struct Case {
    cluster: OwnCluster,
    topics: Arc<Topics>,
    meter: Meter,
    running: Running,
}

impl Case {
    async fn start(test: &str) -> Case {
        Case::start_with(test, &[]).await
    }

    async fn start_with(test: &str, settings: &[(&str, &str)]) -> Case {
        let (cluster, topics) = tokio::join!(OwnCluster::start(), topics(test));
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.use_redis(&cluster.url());
        meter.set("REDIS__TIMEOUT", "2s");
        for (key, value) in settings {
            meter.set(key, value);
        }
        let running = meter.start(&[]);
        running.ready().await;
        Case { cluster, topics, meter, running }
    }

    fn slot(&self, shard: u32) -> u16 {
        slot_of(&self.meter.key(Key::Shard(shard)))
    }

    /// The node that has each shard.
    async fn owners(&self) -> Vec<usize> {
        let mut owners = Vec::new();
        for shard in 0..SHARDS {
            owners.push(self.cluster.owner(self.slot(shard)).await);
        }
        owners
    }

    async fn charged(&self) -> u64 {
        let mut charged = 0;
        for shard in 0..SHARDS {
            charged += self.charged_in(shard).await;
        }
        charged
    }

    async fn charged_in(&self, shard: u32) -> u64 {
        until("redis tells the totals", || async {
            let state = self.meter.store.shard_state(shard).await.ok()?;
            Some(state.totals.iter().filter(|total| total.1 == Outcome::Charged).map(|total| total.2).sum())
        })
        .await
    }

    async fn charges_more(&self) {
        let before = self.charged().await;
        until("more is charged", || async { (self.charged().await > before + 50).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_gives_the_balances_that_one_redis_gives() {
    let case = Case::start("cluster").await;
    // The same records, counted by a second meter in the Redis that the tests share.
    let single = Meter::named(&format!("{}-single", case.topics.prefix), &case.topics, CATALOGUE);
    let on_single = single.start(&[]);
    let owners: BTreeSet<usize> = case.owners().await.into_iter().collect();
    assert_eq!(owners.len(), 3, "every primary has shards");

    let traffic = Traffic::start(&case.topics, 20);
    case.charges_more().await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    every_event_is_charged_once(&case.topics, &single, &sent).await;
    assert_eq!(case.meter.states().await.len(), single.states().await.len());
    for (account, _) in sent {
        let of = |meter: &Meter| meter.json(&["balance", &account, "--json"])["balances"].clone();
        assert_eq!(of(&case.meter), of(&single), "{account}");
    }
    drop(on_single);

    let check = case.meter.run(&["check", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let line = |name: &str| {
        let lines = told["checks"].as_array().expect("lines");
        lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("{name} is not in {told}")).clone()
    };
    assert_eq!(line("redis cluster")["detail"], "3 primaries, all slots served");
    let loose = &case.cluster.nodes[owners.into_iter().next().expect("a primary")];
    for what in ["maxmemory-policy", "persistence"] {
        assert_eq!(line(&format!("redis {} {what}", loose.address()))["ok"], json!(true));
    }
    let _: () = loose.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "appendonly", "no"]).await;
    let check = case.meter.run(&["check", "--json"]);
    assert!(!check.status.success(), "one primary that evicts is one too many");
    let told: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let failed = |line: &&serde_json::Value| line["ok"] == json!(false);
    let failed: BTreeSet<_> = told["checks"]
        .as_array()
        .expect("lines")
        .iter()
        .filter(failed)
        .collect::<Vec<_>>()
        .into_iter()
        .filter_map(|line| line["name"].as_str())
        .filter(|name| name.starts_with("redis"))
        .collect();
    let names = ["maxmemory-policy", "persistence"].map(|what| format!("redis {} {what}", loose.address()));
    assert_eq!(failed, names.iter().map(String::as_str).collect(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_dies_under_load_and_its_replica_takes_over() {
    let mut case = Case::start("failover").await;
    let traffic = Traffic::start(&case.topics, 20);
    for shard in [0, SHARDS - 1] {
        case.charges_more().await;
        let owner = case.owners().await[shard as usize];
        case.cluster.nodes[owner].kill();
        // Until the replica is promoted, the shard has no node.
        let place = case.cluster.nodes[owner].address();
        until("another node has the slot", || async {
            let now = case.cluster.owner(case.slot(shard)).await;
            (now != owner).then_some(())
        })
        .await;
        case.charges_more().await;
        case.running.ready().await;
        case.cluster.nodes[owner].start_again(&[]);
        until(&format!("{place} follows the new primary"), || async {
            let node = &case.cluster.nodes[owner];
            (node.info("role").await == "slave" && node.info("master_link_status").await == "up").then_some(())
        })
        .await;
    }
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_that_lagged_is_followed_back() {
    let mut case = Case::start("lagging").await;
    let owner = case.owners().await[0];
    let traffic = Traffic::start(&case.topics, 20);
    case.charges_more().await;
    // The replica has lost its link while the primary counts on; then the primary is gone, with what only it had.
    let replica = replica_of(&case.cluster, owner).await;
    let lagging = &case.cluster.nodes[replica];
    let _: () = lagging.tell(&["CONFIG", "SET", "masterauth", "wrong"]).await;
    let _: redis::Value = lagging.tell(&["CLIENT", "KILL", "TYPE", "master"]).await;
    until("its link is down", || async { (lagging.info("master_link_status").await == "down").then_some(()) }).await;
    let before = metric(&case.running, "credit_meter_rewinds_total").await;
    let state = async || case.meter.store.shard_state(0).await.expect("redis answers");
    let charged =
        async || state().await.totals.iter().filter(|total| total.1 == Outcome::Charged).map(|t| t.2).sum::<u64>();
    let at_stop = charged().await;
    until("the primary alone charges more", || async { (charged().await > at_stop + 20).then_some(()) }).await;
    case.cluster.nodes[owner].kill();
    until("the replica has the slot", || async {
        // By force where the cluster finds it too old to be elected.
        case.cluster.nodes[replica].try_tell::<redis::Value>(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
        (case.cluster.owner(case.slot(0)).await == replica).then_some(())
    })
    .await;
    case.charges_more().await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    let rewinds = metric(&case.running, "credit_meter_rewinds_total").await;
    assert!(rewinds > before, "it was never behind");
}

async fn replica_of(cluster: &OwnCluster, primary: usize) -> usize {
    let id = cluster.nodes[primary].id().await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let nodes: String = node.tell(&["CLUSTER", "NODES"]).await;
        let own = nodes.lines().find(|line| line.contains("myself")).expect("a line of its own");
        if own.contains("slave") && own.contains(&id) {
            return index;
        }
    }
    panic!("no replica of {id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_down_is_waited_for() {
    let mut case = Case::start("clusterdown").await;
    let traffic = Traffic::start(&case.topics, 4);
    case.charges_more().await;
    // Nobody is left who could serve the last shard's slots, and then no node serves any.
    let owner = case.owners().await[SHARDS as usize - 1];
    let replica = replica_of(&case.cluster, owner).await;
    for node in [replica, owner] {
        case.cluster.nodes[node].kill();
    }
    unready(&case.running, &["[-]redis", "says that the cluster is down", "CLUSTERDOWN"]).await;
    is_counted(&case.running, "cluster_down").await;
    for node in [owner, replica] {
        case.cluster.nodes[node].start_again(&[]);
    }
    case.cluster.whole().await;
    case.charges_more().await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    case.running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_says_nothing_holds_up_its_own_shards_only() {
    // What waits for its shards fills the queue within seconds.
    let case = Case::start_with("blackhole", &[("BATCH__MAX_EVENTS", "100"), ("BATCH__QUEUE_MAX", "1000")]).await;
    for node in &case.cluster.nodes {
        // Nobody takes over, and the other primaries serve what they have.
        let _: () = node.tell(&["CONFIG", "SET", "cluster-replica-no-failover", "yes"]).await;
        let _: () = node.tell(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    }
    let traffic = Traffic::start(&case.topics, 20);
    case.charges_more().await;
    let owners = case.owners().await;
    let shards_of = |owner: &usize| owners.iter().filter(|own| *own == owner).count();
    let most = *owners.iter().max_by_key(|owner| shards_of(owner)).expect("there are shards");
    let silent = &case.cluster.nodes[most];
    let (standing, going): (BTreeSet<u32>, BTreeSet<u32>) =
        (0..SHARDS).partition(|shard| owners[*shard as usize] == most);
    assert!(standing.len() > 1 && !going.is_empty(), "{owners:?}");

    // It takes connections and bytes, since the kernel does, and answers nothing.
    silent.signal("-STOP");
    let names_what_stands = async || {
        until("readiness names the shards that stand still, and no others", || async {
            let (_, told) = case.running.get("/readyz").await?;
            let line = told.lines().find(|line| line.starts_with("[-]redis"))?;
            (named_shards(line) == standing && line.contains(&silent.address())).then_some(())
        })
        .await;
    };
    names_what_stands().await;
    for round in 1..=10 {
        for shard in &going {
            let before = case.charged_in(*shard).await;
            until(&format!("shard {shard} goes on, round {round}"), || async {
                (case.charged_in(*shard).await > before + 200).then_some(())
            })
            .await;
        }
    }
    names_what_stands().await;

    silent.signal("-CONT");
    case.running.ready().await;
    for shard in standing {
        let before = case.charged_in(shard).await;
        until("what stood still goes on", || async { (case.charged_in(shard).await > before).then_some(()) }).await;
    }
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    case.running.ready().await;
}

/// The numbers after `shard` or `shards` in what readiness tells.
fn named_shards(line: &str) -> BTreeSet<u32> {
    let after = line.split("shard").skip(1);
    let lists = after.filter_map(|rest| rest.trim_start_matches('s').split_once(':')).map(|(list, _)| list);
    lists.flat_map(|list| list.split(',').filter_map(|number| number.trim().parse().ok())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_under_load() {
    let case = Case::start("reshard").await;
    let traffic = Traffic::start(&case.topics, 20);
    case.charges_more().await;
    let before = case.owners().await;
    // All of one primary's slots to another.
    let (from, to) = (before[0], *before.iter().find(|owner| **owner != before[0]).expect("another"));
    case.cluster.move_slots(from, to, 16_384).await;
    assert_eq!(case.owners().await[0], to, "the shard has moved");
    case.charges_more().await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    case.running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_half_moved_is_waited_for() {
    let case = Case::start("halfmoved").await;
    let traffic = Traffic::start(&case.topics, 4);
    case.charges_more().await;
    let slot = case.slot(0).to_string();
    let from = &case.cluster.nodes[case.owners().await[0]];
    let others = case.owners().await;
    let to = &case.cluster.nodes[*others.iter().find(|owner| **owner != others[0]).expect("another")];
    let _: () = to.tell(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from.id().await]).await;
    let _: () = from.tell(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to.id().await]).await;
    // One account's key has moved, the shard's has not: no node has all keys of a call.
    let key = case.meter.key(Key::Account(&case.meter.account_of(0)));
    let port = to.port.to_string();
    let _: () = from.tell(&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS", &key]).await;
    unready(&case.running, &["[-]redis", "is moving the shard's slot", "TRYAGAIN", &from.address()]).await;
    is_counted(&case.running, "slot_moving").await;
    // Reads of one key follow it to where it is.
    let account = case.meter.store.account(&case.meter.account_of(0)).await.expect("redis answers");
    assert!(account.is_some(), "the account is on its way, not gone");
    loop {
        let keys: Vec<String> = from.tell(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
        if keys.is_empty() {
            break;
        }
        let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        migrate.extend(keys.iter().map(String::as_str));
        let _: () = from.tell(&migrate).await;
    }
    for node in [to, from] {
        let _: () = node.tell(&["CLUSTER", "SETSLOT", &slot, "NODE", &to.id().await]).await;
    }
    case.charges_more().await;
    let sent = traffic.end().await;
    every_event_is_charged_once(&case.topics, &case.meter, &sent).await;
    case.running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_primary_halts_its_shards_and_the_others_go_on() {
    let case = Case::start("flushed").await;
    let traffic = Traffic::start(&case.topics, 20);
    case.charges_more().await;
    let owners = case.owners().await;
    let emptied = owners[1];
    let _: () = case.cluster.nodes[emptied].tell(&["FLUSHALL"]).await;
    let lost: Vec<u32> = (0..SHARDS).filter(|shard| owners[*shard as usize] == emptied).collect();
    unready(&case.running, &["[-]shards", "halted", "it was emptied"]).await;
    until("all its shards are halted", || async {
        (metric(&case.running, "credit_meter_shards_halted").await == lost.len() as u64).then_some(())
    })
    .await;
    let kept: Vec<u32> = (0..SHARDS).filter(|shard| !lost.contains(shard)).collect();
    let sent = traffic.end().await;
    let mut counted = BTreeMap::new();
    for (account, events) in &sent {
        let shard = credit_meter::ledger::shard::shard_of(account, SHARDS);
        if kept.contains(&shard) {
            counted.insert(account, events);
        }
    }
    assert!(!counted.is_empty() && !lost.is_empty());
    for (account, events) in counted {
        until(&format!("{account} has each event once"), || async {
            let balance = case.meter.store.account(account).await.expect("redis answers")?;
            let email = balance.counters.iter().find(|(name, _)| name == "email")?.1.balance();
            assert!(email.used.thousandths() <= *events as i64 * 1000, "{account}: charged twice");
            (email.used.thousandths() == *events as i64 * 1000).then_some(())
        })
        .await;
    }
    for shard in lost {
        let state = case.meter.store.shard_state(shard).await.expect("redis answers");
        assert!(state.positions.is_empty(), "nothing starts over: {state:?}");
    }
}
