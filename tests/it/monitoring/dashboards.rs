//! The dashboards as files, and each of their queries in a real Prometheus while a meter works.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::files::text;
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::monitor::Monitor;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const DASHBOARDS: [&str; 2] = ["operations", "business"];

/// Panels that show nothing in this test, each for a reason of its own.
const EMPTY: [(&str, &str); 5] = [
    ("As Kafka's exporters see it", "there is no exporter"),
    ("Held back by", "nothing holds meter time back"),
    ("Floor behind the clock", "it begins after `late_after`"),
    ("Renewals after the cycle's end", "no cycle ends"),
    ("Who used the most of what was left", "it looks an hour back"),
];

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&text(&format!("config/grafana/dashboards/{name}.json"))).expect("JSON")
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().map_or(&[], Vec::as_slice)
}

/// Each query, by the title of its panel, as Grafana would send it.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for dashboard in DASHBOARDS.map(dashboard) {
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let title = panel["title"].as_str().expect("a title").to_owned();
                let mut query = target["expr"].as_str().expect("a query").replace("$__rate_interval", "15s");
                for variable in dashboard["templating"]["list"].as_array().expect("variables") {
                    query = query.replace(&format!("${}", variable["name"].as_str().expect("a name")), ".*");
                }
                assert!(!query.contains('$'), "{title} has a variable that nobody sets: {query}");
                queries.push((title, query));
            }
        }
    }
    queries
}

#[test]
fn dashboards_are_such_as_grafana_takes() {
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["uid"], format!("credit-meter-{name}"), "links keep working");
        assert!(dashboard["schemaVersion"].as_i64().is_some_and(|version| version >= 36));
        assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = &panel["title"];
            assert!(ids.insert(panel["id"].as_i64().expect("an id")), "{title} has an id of its own");
            let at = |side: &str| panel["gridPos"][side].as_i64().expect("a place");
            assert!(at("x") + at("w") <= 24, "{title} is on the page");
            for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(cells.insert((x, y)), "{title} lies on another panel");
            }
            if panel["type"] != "row" {
                assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{title} says what it shows");
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
                let targets = panel["targets"].as_array().expect("queries");
                assert!(targets.iter().all(|target| target["datasource"]["uid"] == "${datasource}"), "{title}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_runs_under_load_and_those_that_should_have_data_have_it() {
    for (title, why) in EMPTY {
        assert!(queries().iter().any(|(panel, _)| panel == title), "no panel is called {title} ({why})");
    }
    let topics = Topics::create("dashboards", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("TIME__TICK_EVERY", "1s");
    quick_census(&mut meter);
    let running = meter.start(&[]);
    running.ready().await;
    let monitor = Monitor::start(&[&running.http]).await;

    topics.command(&put("acme", "basic")).await;
    topics.command(&put("beta", "starter")).await; // 30 e-mail credits, soon used up
    topics.command(&json!({ "subject": "acme", "type": "credits.nonsense" })).await;
    let stop = AtomicBool::new(false);
    let load = async {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for account in ["acme", "beta"] {
                topics.send("usage", &reveal(account, &format!("e{number}"), 1)).await;
            }
            if number % 50 == 0 {
                let bad = Outgoing { key: Some("acme".into()), value: Some("no event".into()), ..Outgoing::default() };
                topics.send("usage", &bad).await;
            }
        }
    };
    let look = async {
        for (title, query) in queries() {
            let has_data = || async {
                let series = monitor.query(&query).await.unwrap_or_else(|error| panic!("{title}: {query}: {error}"));
                series.iter().any(|(_, value)| !value.is_nan()).then_some(())
            };
            match EMPTY.iter().any(|(empty, _)| *empty == title) {
                // It runs without an error.
                true => drop(has_data().await),
                false => until(&format!("{title} has data: {query}"), has_data).await,
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, look);
}

/// How often accounts are counted.
pub fn quick_census(meter: &mut Meter) {
    meter.set("METRICS__CENSUS_EVERY", "1s");
}
