//! The files by themselves: no fault in any, and no name in one that another does not have.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use credit_meter::cli::Cli;
use credit_meter::metrics;
use serde_yaml_ng::Value;

pub fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    let mut value: Value = serde_yaml_ng::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    value.apply_merge().unwrap_or_else(|error| panic!("{path}: {error}"));
    value
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value:?} is no text"))
}

/// What a tool says of our files; a fault fails the test.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program}: {error}: tests/run --install fetches it");
    });
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    told
}

fn rules() -> Vec<Value> {
    let file = yaml("config/prometheus/rules.yml");
    list(&file["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

fn alerts() -> BTreeSet<String> {
    rules().iter().map(|rule| word(&rule["alert"]).to_owned()).collect()
}

#[test]
fn prometheus_and_alertmanager_find_no_fault_in_their_files() {
    run("promtool", &["check", "config", "config/prometheus/prometheus.yml"]);
    run("promtool", &["test", "rules", "config/prometheus/rules.test.yml"]);
    run("amtool", &["check-config", "config/alertmanager.yml"]);
}

#[test]
fn every_alert_is_tried_firing_and_silent() {
    let file = yaml("config/prometheus/rules.test.yml");
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for group in list(&file["tests"]) {
        // What a group of series fires it does not try for silence.
        let fires: BTreeSet<&str> = list(&group["alert_rule_test"])
            .iter()
            .filter(|case| !list(&case["exp_alerts"]).is_empty())
            .map(|case| word(&case["alertname"]))
            .collect();
        let cases = list(&group["alert_rule_test"]).iter().map(|case| word(&case["alertname"]));
        silent.extend(cases.filter(|alert| !fires.contains(alert)).map(str::to_owned));
        firing.extend(fires.into_iter().map(str::to_owned));
    }
    assert_eq!(firing, alerts());
    assert_eq!(silent, alerts());
}

#[test]
fn every_alert_tells_what_it_is_and_has_a_run_book() {
    let index = text("docs/runbooks/README.md");
    for rule in rules() {
        let alert = word(&rule["alert"]);
        assert!(alert.starts_with("CreditMeter"), "{alert}");
        let severity = word(&rule["labels"]["severity"]);
        assert!(["critical", "warning", "info"].contains(&severity), "{alert}: {severity}");
        let annotation = |name: &str| word(&rule["annotations"][name]).to_owned();
        let summary = annotation("summary");
        assert!(
            summary.ends_with('.') && !summary.contains("{{"),
            "{alert}: a summary is a sentence that never changes"
        );
        assert!(!annotation("description").is_empty(), "{alert}");
        assert!(annotation("runbook_url").ends_with(&format!("/docs/runbooks/{alert}.md")), "{alert}");

        let page = text(&format!("docs/runbooks/{alert}.md"));
        let told = format!("{summary} Severity: {severity}.");
        assert!(page.contains(&told), "the page of {alert} says `{told}`");
        for part in ["What it means", "What customers notice", "How to look", "What to do", "When it is over"] {
            assert!(page.contains(&format!("\n## {part}\n")), "the page of {alert} says: {part}");
        }
        let line = format!("| [{alert}]({alert}.md) | {severity} | {summary} |");
        assert!(index.contains(&line), "the index has `{line}`");
    }
    assert_eq!(pages(), alerts(), "a page for each alert, and an alert for each page");
}

fn pages() -> BTreeSet<String> {
    let files = std::fs::read_dir("docs/runbooks").expect("the run-books").map(|entry| entry.expect("a file").path());
    let names = files.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned());
    names.filter(|name| name != "README").collect()
}

#[test]
fn run_books_name_only_commands_and_pages_that_exist() {
    for page in pages() {
        let text = text(&format!("docs/runbooks/{page}.md"));
        for line in text.lines().filter_map(|line| line.strip_prefix("$ credit-meter ")) {
            let line = line.split(['#', '|']).next().unwrap_or("");
            let words = ["credit-meter"].into_iter().chain(line.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{page}: credit-meter {line}: {error}");
            }
        }
        // In the midst of a sentence a command may stand without its arguments.
        for quoted in text.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.strip_prefix("credit-meter ")) {
            let command = quoted.split_whitespace().next().expect("a word");
            let known = <Cli as clap::CommandFactory>::command().find_subcommand(command).is_some();
            assert!(known || command == "--version", "{page}: `credit-meter {quoted}`");
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(Path::new("docs/runbooks").join(link).exists(), "{page} points to {link}");
        }
    }
}

/// The names of metrics and recorded series in a text.
pub fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'));
    let ours = words.filter(|word| word.starts_with("credit_meter_") || word.starts_with("credit_meter:"));
    ours.map(str::to_owned).collect()
}

#[test]
fn every_metric_that_is_named_is_there() {
    let recording = yaml("config/prometheus/recording.yml");
    let recorded: BTreeSet<&str> = list(&recording["groups"])
        .iter()
        .flat_map(|group| list(&group["rules"]))
        .map(|rule| word(&rule["record"]))
        .collect();
    let mut registered: BTreeSet<String> = metrics::names().iter().cloned().collect();
    // The series of histograms.
    for name in metrics::names().iter().filter(|name| name.ends_with("_seconds") || name.ends_with("_events")) {
        registered.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
    }
    let mut files = vec!["config/prometheus/rules.yml".to_owned(), "config/prometheus/recording.yml".to_owned()];
    files.push("config/prometheus/rules.test.yml".to_owned());
    files.extend(["operations", "business"].map(|name| format!("config/grafana/dashboards/{name}.json")));
    files.extend(pages().into_iter().map(|page| format!("docs/runbooks/{page}.md")));
    let mut missing = Vec::new();
    for file in files {
        for name in names_in(&text(&file)) {
            if !registered.contains(&name) && !recorded.contains(name.as_str()) {
                missing.push(format!("{name} in {file}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such metric:\n{}", missing.join("\n"));
}

#[test]
fn alerts_reach_those_who_can_do_something() {
    let check = |labels: &[&str], receiver: &str| {
        let mut arguments = vec!["config", "routes", "test", "--config.file=config/alertmanager.yml"];
        arguments.extend(labels);
        assert_eq!(run("amtool", &arguments).lines().next(), Some(receiver), "{labels:?}");
    };
    check(&["alertname=CreditMeterAccountExhausted", "severity=info", "audience=accounts"], "accounts");
    check(&["alertname=CreditMeterStalled", "severity=critical"], "pager");
    check(&["alertname=CreditMeterDown", "severity=warning"], "team");
    check(&["alertname=CreditMeterAccountSeriesDropped", "severity=info"], "team");

    let routes = yaml("config/alertmanager.yml");
    for rule in list(&routes["inhibit_rules"]) {
        for matcher in ["source_matchers", "target_matchers"].iter().flat_map(|side| list(&rule[*side])) {
            for alert in alternatives(word(matcher)) {
                assert!(alerts().contains(&alert), "{alert} is inhibited or inhibits, and is no alert");
            }
        }
    }
}

/// The alerts of a matcher such as `alertname=~"CreditMeter(Absent|Down)"`.
fn alternatives(matcher: &str) -> Vec<String> {
    let quoted = matcher.split('"').nth(1).expect("a quoted value");
    match quoted.split_once('(') {
        Some((head, rest)) => rest.trim_end_matches(')').split('|').map(|tail| format!("{head}{tail}")).collect(),
        None => vec![quoted.to_owned()],
    }
}

#[test]
fn compose_and_image_are_whole() {
    let compose = yaml("docker/compose.yaml");
    let services = compose["services"].as_mapping().expect("services");
    let named: BTreeSet<&str> = services.keys().map(word).collect();
    for name in ["kafka", "redis", "meter", "audit", "prometheus", "alertmanager", "grafana"] {
        assert!(named.contains(name), "compose starts {name}");
    }
    for (name, service) in services {
        let name = word(name);
        assert!(service["image"].is_string(), "{name} has an image");
        for port in list(&service["ports"]) {
            assert!(word(port).starts_with("127.0.0.1:"), "{name} is open to this machine only: {port:?}");
        }
        for volume in list(&service["volumes"]) {
            let (from, rest) = word(volume).split_once(':').expect("from:to");
            if from.starts_with('.') {
                assert!(Path::new("docker").join(from).exists() && rest.ends_with(":ro"), "{name} mounts {from}");
            } else {
                assert!(
                    !compose["volumes"][from].is_null() || compose["volumes"].get(from).is_some(),
                    "{name}: {from}"
                );
            }
        }
        let others = match &service["depends_on"] {
            Value::Mapping(others) => others.keys().map(word).collect(),
            others => list(others).iter().map(word).collect::<Vec<_>>(),
        };
        assert!(others.iter().all(|other| named.contains(other)), "{name} depends on {others:?}");
    }

    let body = |text: String| text.split_once("global:").expect("settings").1.to_owned();
    let moved = body(text("config/prometheus/prometheus.yml"))
        .replace("127.0.0.1:9464", "meter:9464")
        .replace("127.0.0.1:9465", "audit:9464")
        .replace("127.0.0.1:9093", "alertmanager:9093");
    assert_eq!(body(text("docker/prometheus.yml")), moved, "docker/prometheus.yml differs in addresses only");

    let image = text("docker/Dockerfile");
    let stages = image.lines().filter(|line| line.starts_with("FROM ")).count();
    assert_eq!(stages, 2, "one stage to build, one to run");
    assert!(image.lines().any(|line| line == "USER nonroot"));
    let lets = text("docker/Dockerfile.dockerignore");
    for line in image.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for from in &words[1..words.len() - 1] {
            assert!(Path::new(from).exists(), "the image copies {from}");
            let is_let = lets.lines().any(|let_in| let_in.strip_prefix('!').is_some_and(|own| from.starts_with(own)));
            assert!(is_let, "{from} is kept out by Dockerfile.dockerignore");
        }
    }
    for file in ["docker/Dockerfile", "docker/compose.yaml"] {
        assert!(text(file).contains("CI does not"), "{file} says that nobody has tried it in CI");
    }
    for file in ["datasources", "dashboards"] {
        assert_eq!(yaml(&format!("config/grafana/provisioning/{file}/credit-meter.yml"))["apiVersion"], 1);
    }
}
