//! docs/permissions.md: the rights that it names are enough, and what is missing of them is told.

use std::process::Output;

use serde_json::json;

use crate::support::acls::{self, May, On, Right};
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::secured_kafka::{PASSWORD, SecuredKafka, USER};
use crate::support::{own_prefix, redis, service, until};
use crate::walk::{CATALOGUE, put, reveal};

const PAGE: &str = include_str!("../../docs/permissions.md");

fn part<'a>(name: &str) -> &'a str {
    let (_, rest) = PAGE.split_once(&format!("<!-- {name} -->")).expect("it begins");
    rest.split_once(&format!("<!-- /{name} -->")).expect("it ends").0
}

/// The rights of one kind of user, on the topics and the group of a test.
fn rights_of(who: &str, topics: &Topics) -> Vec<Right> {
    let rows = part("kafka").lines().filter(|line| line.starts_with(&format!("| {who} |")));
    let mut rights = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names: Vec<String> = match cells[2].strip_prefix("topics ") {
            Some(roles) => {
                roles.split(", ").map(|role| topics.name(&role.trim_matches('`').replace('_', "-"))).collect()
            }
            None => vec![topics.prefix.clone()],
        };
        let on = if cells[2] == "group" { On::Group } else { On::Topic };
        for may in cells[3].split(", ") {
            let may = match may {
                "Read" => May::Read,
                "Write" => May::Write,
                "DescribeConfigs" => May::DescribeConfigs,
                other => panic!("{other} is no right"),
            };
            rights.extend(names.iter().map(|name| Right { on, name: name.clone(), may }));
        }
    }
    assert!(!rights.is_empty(), "{who} may nothing");
    rights
}

/// A user of the Redis that all tests share, as the page says.
async fn redis_user(prefix: &str) -> String {
    let line = part("redis").trim().replace("ACL SETUSER meter", &format!("ACL SETUSER {prefix}"));
    let line = line.replace("PASSWORD", "of-a-test").replace("credit-meter", prefix);
    let mut command = ::redis::cmd("ACL");
    command.arg(line.split(" ").skip(1).collect::<Vec<_>>());
    command.query_async::<()>(&mut redis::shared().await).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    service("REDIS_URL").replace("redis://", &format!("redis://{prefix}:of-a-test@"))
}

/// The broker may take a moment until it heeds what was given.
async fn allowed(meter: &Meter, command: &[&str]) {
    until(&format!("{command:?} succeeds"), || async { meter.run(command).status.success().then_some(()) }).await;
}

fn told(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn close(account: &str) -> serde_json::Value {
    let mut command = put(account, "starter");
    command["id"] = json!(format!("close-{account}"));
    command["type"] = json!("credits.account.close.v1");
    command["data"] = json!({});
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_page_names_are_enough_and_what_is_missing_is_told() {
    let kafka = SecuredKafka::start_closed().await;
    let topics = Topics::named(&kafka.plain(), own_prefix("rights"), 1);
    // By somebody else.
    let made = Meter::new(&topics, CATALOGUE).run(&["check", "--create-topics", "--partitions", "1"]);
    assert!(made.status.success(), "{}", told(&made));
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, PASSWORD).expect("a file");
    let mut meter = kafka.meter(&topics, CATALOGUE, &password);
    meter.set("REDIS__URL", &redis_user(&topics.prefix).await);
    let (plain, of) = (kafka.plain(), |who| rights_of(who, &topics));
    let [own, reader] = ["meter", "reader"].map(of);
    let right = |role: &str, may| vec![Right { on: On::Topic, name: topics.name(role), may }];

    let remedy = "docs/permissions.md names the rights";

    // A first start waits for each right to read, and says so.
    let mut running = meter.start(&[]);
    let hidden = running.not_ready("its user may not see it").await;
    assert!(hidden.contains(&topics.name("commands")), "{hidden}");
    let inputs = [right("commands", May::Read), right("usage", May::Read)].concat();
    acls::give(&plain, USER, &inputs);
    let group = vec![Right { on: On::Group, name: topics.prefix.clone(), may: May::Read }];
    let refused = running.not_ready("Group authorization failed").await;
    assert!(refused.contains(remedy), "{refused}");
    acls::give(&plain, USER, &group);
    running.not_ready(&topics.name("ledger")).await;
    let others = own.iter().filter(|right| !inputs.contains(right) && !group.contains(right));
    acls::give(&plain, USER, &others.cloned().collect::<Vec<_>>());
    running.ready().await;

    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    let broken = Outgoing { value: Some(b"{".to_vec()), ..reveal("acme", "broken", 1) };
    let usage = async |account: &str| {
        for id in 0..31 {
            topics.send("usage", &reveal(account, &format!("{account}{id}"), 1)).await; // the last is denied
        }
        topics.send("usage", &broken).await;
    };
    usage("acme").await;
    meter.caught_up(&topics).await;
    meter.published().await;
    meter.audit();
    for look in [&["balance", "acme"] as &[&str], &["usage", "acme"], &["events", "acme"], &["dead-letters", "list"]] {
        allowed(&meter, look).await;
    }
    acls::give(&plain, USER, &reader);
    for look in [&["check"] as &[&str], &["statement", "acme"], &["alerts"]] {
        allowed(&meter, look).await;
    }
    for (who, command) in [
        ("billing", ["grant", "acme", "--type", "email", "--amount", "5", "--id", "more"].as_slice()),
        ("producer", &["load", "--generate", "1"]),
    ] {
        let refused = meter.run(command);
        let failed = !refused.status.success() && told(&refused).contains(remedy);
        assert!(failed && !told(&refused).contains("may or may not"), "{command:?}: {}", told(&refused));
        acls::give(&plain, USER, &of(who));
        allowed(&meter, command).await;
        acls::take(&plain, USER, &of(who));
    }

    // While it runs, each right goes and comes back.
    for (number, role) in ["denied", "alerts", "cycles", "ledger", "dead-letter"].into_iter().enumerate() {
        acls::take(&plain, USER, &right(role, May::Write));
        let account = format!("team-{number}");
        topics.command(&put(&account, "starter")).await;
        usage(&account).await;
        topics.command(&close(&account)).await; // its statement
        let refused = running.not_ready(&topics.name(role)).await;
        assert!(refused.contains(remedy), "{refused}");
        acls::give(&plain, USER, &right(role, May::Write));
        if role == "dead-letter" {
            // Its shard is halted until a restart.
            assert!(running.terminate().await.success());
            running = meter.start(&[]);
        }
        running.ready().await;
    }
    acls::take(&plain, USER, &right("ticks", May::Write));
    let refused = running.not_ready("[-]time failed: meter time stands still").await;
    assert!(refused.contains(&topics.name("ticks")) && refused.contains(remedy), "{refused}");
    acls::give(&plain, USER, &right("ticks", May::Write));
    running.ready().await;
    // Whether or not the topic may still be seen.
    for role in ["usage", "commands"] {
        for may_see in [true, false] {
            if may_see {
                acls::give(&plain, USER, &right(role, May::Describe));
            }
            acls::take(&plain, USER, &right(role, May::Read));
            usage("acme").await;
            topics.command(&put("again", "starter")).await;
            let refused = running.not_ready("[-]allowed").await;
            assert!(refused.contains(remedy) || refused.contains("its user may not see it"), "{refused}");
            acls::give(&plain, USER, &right(role, May::Read));
            running.ready().await;
            if may_see {
                acls::take(&plain, USER, &right(role, May::Describe));
            }
        }
    }
    acls::take(&plain, USER, &group);
    let refused = running.not_ready("GroupAuthorizationFailed").await;
    assert!(refused.contains("[-]assigned") && refused.contains(remedy), "{refused}");
    acls::give(&plain, USER, &group);
    running.ready().await;
    meter.caught_up(&topics).await;
    meter.audit();

    // It sees who is in the group: one that was killed is a member until its session ends.
    running.kill();
    let rebuilt = meter.run(&["rebuild", "--shard", "0"]);
    assert!(rebuilt.status.success() && told(&rebuilt).contains("waiting: 1 worker is in"), "{}", told(&rebuilt));
    meter.audit();

    // The broker may take a moment until it heeds what has changed.
    acls::take(&plain, USER, &right("denied", May::Read));
    until("the audit is refused", || async {
        let refused = told(&meter.run(&["audit"]));
        (refused.contains(&topics.name("denied")) && refused.contains(remedy)).then_some(())
    })
    .await;
    acls::take(&plain, USER, &[right("ticks", May::DescribeConfigs), group].concat());
    until("check tells what is missing", || async {
        let checked = told(&meter.run(&["check"]));
        let line = |start: &str| checked.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        let settings = line(&format!("FAIL  {}", topics.name("ticks")));
        (settings.contains("DescribeConfigs") && line("FAIL  group").contains(remedy)).then_some(())
    })
    .await;
}
