//! What a team's admins look at: usage by day, member and action, on a real meter.

use chrono::{DateTime, Days, NaiveTime, SecondsFormat, TimeZone, Utc};
use serde_json::{Value, json};

use crate::cycles::Past;
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::until;
use crate::walk::CATALOGUE;

const ZONE: chrono_tz::Tz = chrono_tz::Asia::Kathmandu;

async fn event(topics: &Topics, id: &str, time: DateTime<Utc>, user: Option<&str>, action: &str, quantity: u64) {
    let event = json!({
        "specversion": "1.0", "id": id, "source": "test", "type": "credits.usage.v1", "subject": "acme",
        "time": time.to_rfc3339_opts(SecondsFormat::Millis, true),
        "data": { "action": action, "quantity": quantity, "user": user },
    });
    let value = event.to_string().into_bytes();
    topics.send("usage", &Outgoing { key: Some("acme".into()), value: Some(value), ..Outgoing::default() }).await;
}

fn row(told: Value, numbers: [f64; 4]) -> Value {
    let [charged, credits, denied, free] =
        numbers.map(|number| if number.fract() == 0.0 { json!(number as u64) } else { json!(number) });
    let mut row = json!({ "charged": charged, "credits": credits, "denied": denied, "free": free });
    for (name, value) in told.as_object().expect("an object") {
        row[name] = value.clone();
    }
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_told_by_day_of_the_accounts_zone_member_and_action() {
    let topics = Topics::create("usage", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("TIME__TICK_EVERY", "200ms");
    let running = meter.start(&[]);
    running.ready().await;
    // Yesterday, as Kathmandu has it.
    let today = Utc::now().with_timezone(&ZONE).date_naive();
    let day = today - Days::new(1);
    let midnight = ZONE.from_local_datetime(&day.and_time(NaiveTime::MIN)).unwrap().to_utc();
    let second = chrono::TimeDelta::seconds(1);
    let put = json!({
        "specversion": "1.0", "id": "put-1", "source": "test", "type": "credits.account.put.v1", "subject": "acme",
        "time": (midnight - chrono::TimeDelta::hours(2)).to_rfc3339_opts(SecondsFormat::Millis, true),
        "data": { "plan": "starter", "anchor": (day - Days::new(3)).to_string(), "timezone": ZONE.name() },
    });
    topics.command(&put).await; // 30 e-mail credits
    event(&topics, "e1", midnight - second, Some("ann"), "reveal_email", 1).await;
    event(&topics, "e2", midnight, Some("ann"), "reveal_email", 2).await;
    event(&topics, "e2", midnight, Some("ann"), "reveal_email", 2).await; // the same again
    event(&topics, "e3", midnight + second, Some("bob, \"the\" boss"), "reveal_email", 5).await;
    event(&topics, "e4", midnight + second * 2, None, "reveal_email", 4).await;
    event(&topics, "e5", midnight + second * 3, Some("ann"), "reveal_email", 100).await; // denied
    meter.caught_up(&topics).await;
    // Another worker goes on where this one has ended.
    drop(running);
    let running = meter.start(&[]);
    running.ready().await;
    event(&topics, "e6", midnight + second * 4, Some("ann"), "reveal_email", 1).await;
    meter.caught_up(&topics).await;

    let before = day - Days::new(1);
    let by_member = meter.json(&["usage", "acme", "--by", "day,user", "--json"]);
    let told = |day: chrono::NaiveDate, user: &str| json!({ "day": day, "user": user, "credit_type": "email" });
    let expected = json!([
        row(told(before, "ann"), [1.0, 1.0, 0.0, 0.0]),
        row(told(day, ""), [1.0, 4.0, 0.0, 0.0]),
        row(told(day, "ann"), [2.0, 3.0, 1.0, 0.0]),
        row(told(day, "bob, \"the\" boss"), [1.0, 5.0, 0.0, 0.0]),
    ]);
    assert_eq!(by_member["usage"], expected, "{by_member}");
    // What is told of the open cycle is what the balance says.
    let all = meter.json(&["usage", "acme", "--json"]);
    assert_eq!(all["usage"][0]["credits"], meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"]);
    assert_eq!(all["usage"][0]["credits"], 13);

    let day_text = day.to_string();
    let csv = meter.run(&["usage", "acme", "--from", &day_text, "--to", &day_text, "--by", "user,action", "--csv"]);
    let csv = String::from_utf8(csv.stdout).expect("text");
    assert_eq!(
        csv.lines().collect::<Vec<_>>(),
        [
            "user,action,credit_type,charged,credits,denied,free",
            ",reveal_email,email,1,4,0,0",
            "ann,reveal_email,email,2,3,1,0",
            "\"bob, \"\"the\"\" boss\",reveal_email,email,1,5,0,0",
        ]
    );
    let forecast = meter.json(&["usage", "acme", "--forecast", "--json"])["forecast"]["email"].clone();
    // 12 credits were used yesterday, and 17 are left.
    assert_eq!((&forecast["remaining"], &forecast["last_day"]["credits_per_day"]), (&json!(17), &json!(12)));
    assert_eq!(forecast["last_day"]["before_renewal"], true, "{forecast}");
    // A promo burns first, and most of it ends unused within the hour.
    let ends = (Utc::now() + chrono::TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
    let promo = ["grant", "acme", "--type", "email", "--amount", "1000", "--kind", "promo", "--expires-at", &ends];
    assert!(meter.run(&promo).status.success());
    let with_promo = meter.json(&["usage", "acme", "--forecast", "--json"])["forecast"]["email"].clone();
    assert_eq!(with_promo["remaining"], 1017, "{with_promo}");
    let day_of = |forecast: &Value| forecast["last_day"]["runs_out"].as_str().expect("a time")[..10].to_owned();
    let within = Utc::now() + chrono::TimeDelta::days(3);
    assert!(day_of(&with_promo) >= day_of(&forecast) && day_of(&with_promo) < within.to_rfc3339(), "{with_promo}");
    // Where nothing is added up, a rate of 0 is not told for one.
    let off = meter.json(&["usage", "acme", "--forecast", "--set", "usage.breakdown=false", "--json"]);
    assert_eq!((&off["breakdown"], off.get("forecast")), (&json!(false), None), "{off}");
    let off = meter.run(&["usage", "acme", "--forecast", "--set", "usage.breakdown=false"]);
    assert!(String::from_utf8_lossy(&off.stdout).contains("usage.breakdown is off"), "{off:?}");

    // Kept for a day only, the day is deleted once meter time is far enough.
    drop(running);
    meter.set("EVENTS__LATE_AFTER", "1h");
    meter.set("USAGE__KEEP", "1day");
    let old = Utc::now() - chrono::TimeDelta::days(40);
    let _running = meter.start(&[]);
    until("old usage is forgotten", || async {
        let from = meter.states().await.into_iter().map(|state| state.usage_from).min()??;
        (from > old.date_naive()).then_some(())
    })
    .await;
    let kept = meter.json(&["usage", "acme", "--by", "day", "--json"]);
    // The last day that is surely past in every zone is three days old: nothing of this was.
    assert_eq!(kept["usage"].as_array().map(Vec::len), Some(2), "{kept}");
    assert_eq!(meter.audit()["mismatches"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn days_that_were_deleted_are_told_of() {
    let mut past = Past::new("usage-kept").await;
    past.meter.set("USAGE__KEEP", "10days");
    let _running = past.start().await;
    for (account, since) in [("old", "2026-01-02T00:00:00Z"), ("young", "2026-04-05T00:00:00Z")] {
        let data = json!({"plan": "starter", "anchor": "2026-01-01"});
        past.command(account, "account.put", &format!("put-{account}"), since, data).await;
    }
    past.reveal("old", "e1", 2, "2026-01-05T00:00:00Z", 0).await;
    past.reveal("old", "e2", 3, "2026-04-10T00:00:00Z", 0).await;
    past.reveal("young", "e3", 4, "2026-04-10T00:00:00Z", 0).await;
    past.tick("2026-04-11T00:00:00Z").await;
    past.meter.caught_up(&past.topics).await;
    // Time has passed all at once, as where a log of before is read anew.
    let kept_from = until("january to march are deleted", || async {
        let from: Vec<_> = past.meter.states().await.into_iter().map(|state| state.usage_from).collect();
        from[0].filter(|first| {
            first.to_string().as_str() > "2026-03-01" && from.iter().all(|other| *other == Some(*first))
        })
    })
    .await;

    let usage = |account: &str, from: &str| {
        past.meter.json(&["usage", account, "--from", from, "--to", "2026-04-20", "--by", "day", "--json"])
    };
    let row = |credits: f64| row(json!({"day": "2026-04-10", "credit_type": "email"}), [1.0, credits, 0.0, 0.0]);
    let told = usage("old", "2026-01-01");
    assert_eq!((&told["usage"], &told["deleted_before"]), (&json!([row(3.0)]), &json!(kept_from)), "{told}");
    for whole in [usage("old", &kept_from.to_string()), usage("young", "2026-01-01")] {
        assert!(whole.get("deleted_before").is_none(), "{whole}");
    }
    let text = past.meter.run(&["usage", "old", "--from", "2026-01-01", "--to", "2026-01-10"]);
    let text = String::from_utf8(text.stdout).expect("text");
    assert!(text.contains("no usage") && text.contains(&format!("usage before {kept_from} is kept no more")), "{text}");
    past.meter.audit();
}
