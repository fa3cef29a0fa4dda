//! The commands of billing on a real meter, from a renewal to an account's end.

use chrono::{Days, Months, NaiveTime, Utc};
use serde_json::{Value, json};

use crate::support::kafka::{Outgoing, Topics, data};
use crate::support::meter::Meter;
use crate::support::until;
use crate::walk::{CATALOGUE, reveal_event};

/// A meter with an account whose first cycle has ended, with 20 e-mail credits used in it. They were told of after its end, so
/// that its statement was written anew for them.
pub async fn renewed(topics: &Topics, meter: &mut Meter) -> (crate::support::meter::Running, String) {
    meter.set("TIME__TICK_EVERY", "200ms");
    let anchor = Utc::now().date_naive() - Days::new(1) - Months::new(1);
    let day = |days: u64| ((anchor + Days::new(days)).and_time(NaiveTime::MIN).and_utc()).to_rfc3339();
    let put = json!({
        "specversion": "1.0", "id": "put-1", "source": "test", "type": "credits.account.put.v1", "subject": "acme",
        "time": day(1), "data": { "plan": "basic", "anchor": anchor },
    });
    topics.command(&put).await;
    let mut event = reveal_event("acme", "e1", 20);
    event["time"] = day(2).into();
    let record = Outgoing { key: Some("acme".into()), value: Some(event.to_string().into()), ..Outgoing::default() };
    topics.send("usage", &record).await;
    let running = meter.start(&[]);
    running.ready().await;
    until("the first cycle is closed, and stated with its late use", || async {
        let account = meter.store.account("acme").await.ok()??;
        (account.view.closed.get(&0)?.revision == 2).then_some(())
    })
    .await;
    (running, anchor.to_string())
}

fn email(meter: &Meter) -> Value {
    meter.json(&["balance", "acme", "--json"])["balances"]["email"].clone()
}

fn applied(meter: &Meter, arguments: &[&str]) {
    let answer = meter.json(&[arguments, &["--json"]].concat());
    assert_eq!(answer["status"], "applied", "{arguments:?}: {answer}");
}

fn refused(meter: &Meter, arguments: &[&str], why: &str) {
    let output = meter.run(arguments);
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
    assert!(told.contains(why), "{arguments:?}: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_goes_through_a_renewal_grants_corrections_addons_and_its_end() {
    let topics = Topics::create("billing", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    let (running, anchor) = renewed(&topics, &mut meter).await;
    let statements = |more: &[&str]| {
        let answer = meter.json(&[&["statement", "acme", "--json"], more].concat());
        answer["statements"].as_array().expect("statements").clone()
    };
    let told = |statement: &Value| {
        let email = &statement["balances"]["email"];
        let sums = ["granted", "used", "expired", "remaining", "overage"].map(|name| email[name].clone());
        (statement["cycle"]["number"].clone(), statement["revision"].clone(), statement["open"].clone(), json!(sums))
    };
    let first = (json!(0), json!(2), json!(false), json!([1000, 20, 980, 0, 0]));
    // Also before it is published.
    let both = [first.clone(), (json!(1), json!(0), json!(true), json!([1000, 0, 0, 1000, 0]))];
    assert_eq!(statements(&[]).iter().map(told).collect::<Vec<_>>(), both);
    meter.published().await;
    assert_eq!(statements(&[]).iter().map(told).collect::<Vec<_>>(), both);
    assert_eq!(statements(&["--cycle", "0"]).iter().map(told).next(), Some(first.clone()));
    assert_eq!(statements(&[])[0]["balances"]["email"]["granted_by"]["plan"], 1000);
    refused(&meter, &["statement", "acme", "--cycle", "7"], "no statement of cycle 7");
    refused(&meter, &["statement", "nobody"], "does not exist");
    let text = String::from_utf8(meter.run(&["statement", "acme"]).stdout).expect("text");
    assert!(text.contains("(revision 2)") && text.contains("(open)"), "{text}");

    // A promo that ends first burns first; a top-up waits, and is taken back.
    let (tomorrow, later) = (Utc::now() + Days::new(1), Utc::now() + Days::new(2));
    let (tomorrow, later) = (tomorrow.to_rfc3339(), later.to_rfc3339());
    let grant = ["grant", "acme", "--type", "email", "--amount"];
    applied(&meter, &[&grant[..], &["50", "--kind", "promo", "--id", "p1", "--expires-at", &later]].concat());
    applied(&meter, &[&grant[..], &["100", "--id", "t1", "--effective-at", &tomorrow, "--priority", "7"]].concat());
    refused(&meter, &[&grant[..], &["1", "--expires-at", "2020-01-01T00:00:00Z"]].concat(), "invalid_command");
    applied(&meter, &["adjust", "acme", "--type", "email", "--amount", "-7", "--reason", "an import"]);
    applied(&meter, &["adjust", "acme", "--type", "email", "--amount", "2.5", "--reason", "a gift"]);
    let balance = meter.json(&["balance", "acme", "--json"]);
    assert_eq!(balance["balances"]["email"]["remaining"], 1045.5);
    let grants = &balance["grants"];
    assert_eq!((&grants[0]["command_id"], &grants[0]["left"]), (&json!("p1"), &json!(43)), "{balance}");
    assert_eq!((&grants[1]["command_id"], &grants[1]["left"]), (&json!("t1"), &json!(100)), "{balance}");
    applied(&meter, &["void-grant", "acme", "--grant", "t1"]);
    refused(&meter, &["void-grant", "acme", "--grant", "t1"], "unknown_grant");
    assert!(meter.json(&["balance", "acme", "--json"])["grants"][1].is_null());

    // Add-ons change at once, while a smaller plan goes on waiting.
    applied(&meter, &["account", "put", "acme", "--plan", "starter", "--anchor", &anchor, "--overage", "cap"]);
    applied(&meter, &["addon", "set", "acme", "email=500"]);
    let account = meter.json(&["account", "get", "acme", "--json"]);
    assert_eq!((&account["plan"], &account["next"]["plan"]), (&json!("basic"), &json!("starter")), "{account}");
    assert_eq!((&account["overage"], &account["next"]["overage"]), (&json!("cap"), &json!("cap")), "{account}");
    assert_eq!(account["next"]["addons"], json!([{"credit_type": "email", "amount": 500}]));
    assert_eq!(email(&meter)["remaining"], 1545.5);
    assert_eq!(meter.json(&["balance", "acme", "--json"])["next_plan"], "starter");
    applied(&meter, &["addon", "remove", "acme", "email", "--id", "r1"]);
    assert_eq!(email(&meter)["remaining"], 1545.5, "what it gave stays until the renewal");
    assert_eq!(meter.json(&["account", "get", "acme", "--json"])["next"]["plan"], "starter");
    refused(&meter, &["addon", "remove", "acme", "email"], "no such add-on");
    assert_eq!(meter.json(&["addon", "remove", "acme", "email", "--id", "r1", "--json"])["status"], "duplicate");
    refused(&meter, &["addon", "set", "acme", "fax=1"], "unknown_credit_type");

    // Closed for good.
    applied(&meter, &["account", "close", "acme"]);
    refused(&meter, &[&grant[..], &["1"]].concat(), "account_closed");
    refused(&meter, &["account", "put", "acme", "--plan", "basic", "--anchor", &anchor], "account_closed");
    until("the last cycle is closed", || async {
        statements(&[]).iter().all(|statement| statement["open"] == false).then_some(())
    })
    .await;
    let last = (json!(1), json!(1), json!(false), json!([1552.5, 7, 1545.5, 0, 0]));
    assert_eq!(statements(&[]).iter().map(told).collect::<Vec<_>>(), [first, last]);
    assert!(meter.json(&["balance", "acme", "--json"])["closed_at"].is_string());
    meter.published().await;
    let reasons: Vec<_> = topics.read("ledger", 1).iter().map(data).collect();
    assert!(reasons.iter().any(|line| line["cause"]["reason"] == "an import"), "{reasons:?}");
    meter.audit();
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_addon_commands_at_once_none_is_lost_in_silence() {
    let topics = Topics::create("addons", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    let (running, _) = renewed(&topics, &mut meter).await;
    for round in 1..=3 {
        let (one, other) = (format!("one-{round}"), format!("other-{round}"));
        let set = |addon: String, id: &str| meter.run(&["addon", "set", "acme", &addon, "--id", id, "--json"]);
        let ended = std::thread::scope(|scope| {
            let email = scope.spawn(|| set(format!("email={round}"), &one));
            let phone = scope.spawn(|| set(format!("phone={round}"), &other));
            [email.join().expect("it ends"), phone.join().expect("it ends")]
        });
        let addons = meter.json(&["account", "get", "acme", "--json"])["addons"].clone();
        let has = |credit_type: &str| {
            let all = addons.as_array().expect("add-ons");
            all.iter().any(|addon| addon["credit_type"] == credit_type && addon["amount"] == round)
        };
        for (output, (lost, by)) in ended.iter().zip([("phone", &other), ("email", &one)]) {
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(answer["status"], "applied");
            let told = output.status.code() == Some(1) && answer["replaced"] == by.as_str();
            assert_eq!(told, !has(lost), "round {round}: {addons} {answer}");
            assert_eq!(output.status.success(), has(lost), "round {round}: {answer}");
        }
    }
    meter.audit();
    assert!(running.terminate().await.success());
}
