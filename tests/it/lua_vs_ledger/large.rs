//! Calls as large as they come: what a script unpacks at once is bounded, and no history of a few events meets the bounds.

use std::sync::Arc;

use credit_meter::ledger::account::AccountConfig;
use credit_meter::ledger::call::{CALL_EVENTS_MAX, Partition};
use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::command::{ACCOUNT_PUT, Command, CommandBody, GRANT, GrantBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::ledger::members::{MEMBER_LIMITS_MAX, MemberLimit};
use credit_meter::pipeline::record::{Body, Record};

use super::{CATALOGUE, History, MIDNIGHT_MS, MINUTE_MS};
use crate::support::redis::OwnRedis;
use crate::support::{dump, own_prefix};

#[tokio::test(flavor = "multi_thread")]
async fn scripts_and_ledger_agree_on_calls_as_large_as_they_come() {
    // Of its own: a script that takes seconds on a busy machine would keep other tests waiting.
    let redis = OwnRedis::start(&[]);
    let mut connection = redis.connection().await;
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    // With limits all is decided one by one, without them all is added up.
    for (seed, limited) in [(1, false), (2, true)] {
        let prefix = own_prefix("large");
        let store = crate::support::redis::store(&redis.url(), &prefix, 1);
        let mut history = History::new(seed, &catalogue, &prefix, store).await;
        let stamp = Arc::make_mut(&mut history.stamp);
        (stamp.breakdown, stamp.outbox_max, stamp.set_members_max) = (true, usize::MAX >> 1, 512);
        for (number, body) in [put(limited), grant("email"), grant("phone")].into_iter().enumerate() {
            let record = history.ordered(number, body);
            history.submit(vec![record]).await;
        }
        let events: Vec<_> = (0..CALL_EVENTS_MAX).map(event).collect();
        let voids: Vec<_> = events.iter().map(void).collect();
        let early: Vec<_> = (CALL_EVENTS_MAX..CALL_EVENTS_MAX + 9_000).map(event).collect();
        let early_voids: Vec<_> = early.iter().map(void).collect();
        // Charged, given back; charged again under other ids; voids that wait, and what they waited for.
        let again: Vec<_> = (0..CALL_EVENTS_MAX).map(|number| renamed(&event(number), "again")).collect();
        for events in [&events, &voids, &again, &early_voids, &early] {
            let first = history.positions[&Partition::usage(0)];
            let records = events.iter().zip(first..);
            let records =
                records.map(|(event, offset)| history.record(Partition::usage(0), offset, Body::Usage(event.clone())));
            let records: Vec<Record> = records.collect();
            history.submit(records).await;
            history.check_books();
            let stored = dump::normal(dump::shard(&mut connection, &prefix).await);
            assert!(stored == dump::normal(history.shard.clone()), "limited {limited}: the states differ");
        }
        let verdicts = ["charged", "voided", "void_came_first", "free_once_in_call"];
        for kind in verdicts {
            assert!(history.replies.get(kind).is_some_and(|count| *count > 2_000), "{kind}: {:?}", history.replies);
        }
        let keys = dump::keys(&mut connection, &prefix).await;
        let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.expect("redis answers");
    }
}

impl History<'_> {
    fn ordered(&mut self, number: usize, (command_type, body): (&'static str, CommandBody)) -> Record {
        let id = format!("c{number}");
        let (identity, time_ms) = (Identity::of("cli", &id), MIDNIGHT_MS - 12 * MINUTE_MS);
        let command = Command { account: "a".into(), identity, id, time_ms, command_type, body: Ok(body) };
        let offset = self.positions[&Partition::COMMANDS];
        self.command_record(offset, command)
    }
}

fn put(limited: bool) -> (&'static str, CommandBody) {
    let limit = |number: usize| MemberLimit {
        credit_type: if number.is_multiple_of(2) { "email".into() } else { "phone".into() },
        user: (number > 1).then(|| format!("u{}", number / 2).into()),
        amount: Credits::whole(number as i64 % 7 + 1),
    };
    let mut limits: Vec<_> = (0..if limited { MEMBER_LIMITS_MAX } else { 0 }).map(limit).collect();
    limits.sort_by(MemberLimit::order);
    let config = AccountConfig {
        plan: "large".into(),
        anchor: "2026-03-01".parse().expect("a date"),
        interval: None,
        timezone: chrono_tz::Europe::Paris,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits: limits.into(),
    };
    (ACCOUNT_PUT, CommandBody::Put(Box::new(config)))
}

fn grant(credit_type: &str) -> (&'static str, CommandBody) {
    let body = GrantBody {
        credit_type: credit_type.to_owned(),
        amount: Credits::whole(1_000_000),
        kind: GrantKind::Topup,
        priority: 100,
        effective_ms: None,
        expires_ms: None,
    };
    (GRANT, CommandBody::Grant(Box::new(body)))
}

/// Every second one is charged once, for a contact that some share; most have a member of their own. They lie on both
/// sides of a UTC midnight, so that there are runs of each day.
fn event(number: usize) -> Arc<UsageEvent> {
    let id = format!("e{number}");
    let phone = number % 2 == 1;
    let time_ms = MIDNIGHT_MS + if number.is_multiple_of(3) { -5 * MINUTE_MS } else { 5 * MINUTE_MS };
    let action = if phone { "reveal_phone" } else { "reveal_email" };
    Arc::new(UsageEvent {
        account: "a".into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        id: id.into(),
        time_ms,
        dated_ms: time_ms,
        action: action.into(),
        quantity: 1,
        outcome: None,
        user: Some(format!("u{}", number % 12_000).into()),
        fields: Box::default(),
        once: phone.then(|| Identity::of(action, &format!("c{}", number % 6_001))),
        voids: None,
    })
}

fn renamed(event: &UsageEvent, by: &str) -> Arc<UsageEvent> {
    let id = format!("{by} {}", event.id);
    Arc::new(UsageEvent { identity: Identity::of("s", &id), id: id.into(), ..event.clone() })
}

fn void(event: &Arc<UsageEvent>) -> Arc<UsageEvent> {
    Arc::new(UsageEvent {
        identity: event.identity.of_its_void(),
        voids: Some(event.identity),
        id: format!("void {}", event.id).into(),
        user: None,
        ..(**event).clone()
    })
}
