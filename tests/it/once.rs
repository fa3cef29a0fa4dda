//! What is charged once within a cycle, on a real meter whose workers are killed: whatever comes between.

use std::collections::BTreeSet;
use std::future::Future;
use std::task::Poll;

use credit_meter::ledger::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::dump;
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::walk::{CATALOGUE, put, reveal_event};

const PARTITIONS: i32 = 3;
const CONTACTS: u32 = 150;

/// A mobile number costs 1.5 credits, once for each contact.
fn mobile(account: &str, id: &str, contact: Option<&str>, quantity: u64) -> Value {
    let mut event = reveal_event(account, id, quantity);
    event["data"]["action"] = json!("reveal_mobile");
    if let Some(contact) = contact {
        event["data"]["contact"] = json!(contact);
    }
    event
}

async fn send(topics: &Topics, partition: i32, event: &Value) {
    let key = event["subject"].as_str().expect("an account");
    let value = Some(event.to_string().into_bytes());
    let record = Outgoing { partition, key: Some(key.into()), value, ..Outgoing::default() };
    topics.send("usage", &record).await;
}

fn phone(meter: &Meter, account: &str) -> [Value; 3] {
    let balance = meter.json(&["balance", account, "--json"]);
    ["used", "remaining", "overage"].map(|field| balance["balances"]["phone"][field].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_is_charged_once_whatever_is_killed_and_comes_again() {
    let topics = Topics::create("once", PARTITIONS).await;
    let meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("large", "organization")).await;
    topics.command(&put("capped", "capped")).await;
    let mut rng = SmallRng::seed_from_u64(1);
    let mut running = vec![meter.start(&[]), meter.start(&[])];
    running[0].ready().await;
    let (mut met, mut sent, mut without, mut again) = (BTreeSet::new(), Vec::new(), 0, 0);
    for round in 0..6 {
        for number in 0..200 {
            let account = *["large", "large", "large", "capped"].choose(&mut rng).expect("not empty");
            let partition = rng.random_range(0..PARTITIONS);
            let contact = (rng.random_range(0..20) > 0).then(|| format!("c{}", rng.random_range(0..CONTACTS)));
            let event = mobile(account, &format!("{round}-{number}"), contact.as_deref(), 1);
            send(&topics, partition, &event).await;
            if rng.random_bool(0.1) {
                send(&topics, rng.random_range(0..PARTITIONS), &event).await;
                again += 1;
            }
            match contact {
                Some(contact) if account == "large" => drop(met.insert(contact)),
                None if account == "large" => without += 1,
                _ => {}
            }
            sent.push(event);
        }
        // One of the two dies in the middle of its work.
        let last = running.pop().expect("two run");
        drop(last);
        running.insert(0, meter.start(&[]));
    }
    meter.caught_up(&topics).await;
    assert!(met.len() > 100 && without > 20, "{} {without}", met.len());
    let used = json!(1.5 * (met.len() + without) as f64);
    assert_eq!(phone(&meter, "large")[0].as_f64(), used.as_f64());
    // 20 credits; what does not fit takes what is left, and is charged with that.
    assert_eq!(phone(&meter, "capped"), [json!(20), json!(0), json!(0)]);
    let totals = meter.totals("usage").await;
    assert_eq!(totals[&Outcome::Duplicate], again);
    let charged = totals[&Outcome::Charged] + totals[&Outcome::Capped];
    assert_eq!(charged + totals[&Outcome::Free], sent.len() as u64);
    meter.audit();

    // All of them once more, under other ids: nothing is charged but what names no contact. What was capped at nothing is so again.
    for (number, event) in sent.iter().enumerate().filter(|(_, event)| event["data"]["contact"].is_string()) {
        let mut event = event.clone();
        event["id"] = json!(format!("more-{number}"));
        send(&topics, (number % 3) as i32, &event).await;
    }
    meter.caught_up(&topics).await;
    assert_eq!(phone(&meter, "large")[0].as_f64(), used.as_f64());
    let later = meter.totals("usage").await;
    assert_eq!(later[&Outcome::Charged], totals[&Outcome::Charged]);
    assert_eq!(phone(&meter, "capped"), [json!(20), json!(0), json!(0)]);
    meter.published().await;
    meter.audit();

    // What Redis remembers is what was charged: a mark that is gone, or one too many, is found.
    let mut connection = shared().await;
    let marks = dump::keys(&mut connection, &meter.prefix).await;
    let marks: Vec<&String> = marks.iter().filter(|key| key.contains("}:o:") && key.ends_with(":large")).collect();
    let [marks] = marks.as_slice() else { panic!("one set: {marks:?}") };
    let _: () = redis::cmd("SADD").arg(marks).arg(7).query_async(&mut connection).await.expect("redis answers");
    let output = meter.run(&["audit", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["mismatches"], json!(1), "{report}");
    let what = report["differences"][0]["what"].as_str().expect("a text");
    assert!(what.starts_with("charged once in cycle"), "{report}");
    running.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_contacts_in_one_call_are_kept_packed() {
    let topics = Topics::create("once-many", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("large", "organization")).await;
    let running = meter.start(&[]);
    running.ready().await;
    send(&topics, 0, &mobile("large", "first", Some("first"), 1)).await;
    meter.caught_up(&topics).await;
    assert!(running.terminate().await.success());
    // A backlog, of which a call takes as much as it can: each contact, and then some of them again.
    let contacts: Vec<String> = (0..9_000).map(|number| format!("contact-{number}")).collect();
    let events: Vec<Value> = contacts
        .iter()
        .chain(contacts.iter().step_by(7))
        .enumerate()
        .map(|(number, contact)| mobile("large", &format!("e{number}"), Some(contact), 1))
        .collect();
    for chunk in events.chunks(200) {
        let mut waiting: Vec<_> = chunk.iter().map(|event| Box::pin(send(&topics, 0, event))).collect();
        std::future::poll_fn(|context| {
            waiting.retain_mut(|sent| sent.as_mut().poll(context).is_pending());
            if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(phone(&meter, "large")[0], json!(12_000));
    assert_eq!(phone(&meter, "large")[2], json!(1501.5), "1.5 credits for each of 9,001 contacts");
    let totals: Vec<_> = meter.totals("usage").await.into_iter().collect();
    assert_eq!(totals, [(Outcome::Free, 1_286), (Outcome::Charged, 9_001)]);
    let mut connection = shared().await;
    let mut marks = 0;
    for key in dump::keys(&mut connection, &meter.prefix).await.iter().filter(|key| key.contains("}:o:")) {
        let mut encoding = redis::cmd("OBJECT");
        encoding.arg("ENCODING").arg(key);
        let encoding: String = encoding.query_async(&mut connection).await.expect("redis answers");
        assert_eq!(encoding, "intset", "{key}");
        let members: u64 = redis::cmd("SCARD").arg(key).query_async(&mut connection).await.expect("redis answers");
        marks += members;
    }
    assert_eq!(marks, 9_001);
    meter.audit();
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_denied_or_free_does_not_count_as_charged() {
    let topics = Topics::create("once-denied", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("acme", "basic")).await; // 100 credits
    topics.command(&put("small", "starter")).await; // not entitled
    let events = [
        mobile("acme", "1", Some("a"), 40), // 60
        mobile("acme", "2", Some("b"), 40), // denied
        mobile("acme", "3", Some("b"), 2),  // 3
        mobile("acme", "4", Some("b"), 40), // free, and would not fit
        mobile("acme", "5", Some("a"), 1),  // free
        mobile("acme", "6", None, 1),       // 1.5
        mobile("acme", "7", Some(""), 1),   // 1.5
        mobile("acme", "8", Some("a"), 1),  // free
        mobile("acme", "1", Some("a"), 40), // the first again
        mobile("small", "9", Some("a"), 1), // denied
    ];
    for event in &events {
        send(&topics, 0, event).await;
    }
    // Nothing was found: it is free, and the next one is charged.
    let mut nothing = mobile("acme", "10", Some("c"), 1);
    nothing["data"]["outcome"] = json!("not_found");
    send(&topics, 0, &nothing).await;
    send(&topics, 0, &mobile("acme", "11", Some("c"), 1)).await; // 1.5
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(phone(&meter, "acme"), [json!(67.5), json!(32.5), json!(0)]);
    let totals: Vec<_> = meter.totals("usage").await.into_iter().collect();
    let expected = [(Outcome::Duplicate, 1), (Outcome::Denied, 2), (Outcome::Free, 4), (Outcome::Charged, 5)];
    assert_eq!(totals, expected);
    meter.published().await;
    meter.audit();
    assert!(running.terminate().await.success());
}
