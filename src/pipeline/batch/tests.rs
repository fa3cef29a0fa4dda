//! What a batch comes to.

use super::*;
use crate::ledger::account::AccountConfig;
use crate::ledger::closed::ClosedCycle;
use crate::ledger::cycle::Cycle;
use crate::ledger::event::{DAY_MS, Identity, price};

/// One account, whose cycle ends after 100 days.
fn accounts() -> Accounts {
    let config = AccountConfig {
        plan: "basic".into(),
        anchor: "1970-01-01".parse().unwrap(),
        interval: None,
        timezone: chrono_tz::UTC,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits: Default::default(),
    };
    let cycle = Cycle { number: 0, start_ms: 0, end_ms: 100 * DAY_MS };
    let view = AccountView { version: 1, ..AccountView::opened(config, cycle) };
    [(Arc::from("acme"), view)].into_iter().collect()
}

fn record(offset: i64, time_ms: i64) -> Record {
    Record {
        partition: Partition::usage(0),
        offset,
        append_ms: time_ms,
        bytes: 1,
        fingerprint: 0,
        body: Body::Usage(Arc::new(UsageEvent {
            account: "acme".into(),
            source: "s".into(),
            id: "1".into(),
            time_ms,
            dated_ms: time_ms,
            action: "reveal_email".into(),
            quantity: 1,
            outcome: None,
            user: None,
            fields: Box::default(),
            once: None,
            voids: None,
            identity: Identity::of("s", "1"),
        })),
    }
}

#[test]
fn a_batch_is_cut_where_its_account_changes_while_earlier_events_wait() {
    let end_ms = 100 * DAY_MS;
    let check = |times: &[i64], cut: Option<usize>| {
        let records = times.iter().zip(0..).map(|(time_ms, offset)| record(offset, *time_ms)).collect();
        let batch = Batch { records, ranges: Vec::new(), commands_end: None };
        assert_eq!(batch.cut_at(&accounts()), cut, "{times:?}");
    };
    check(&[end_ms - 2, end_ms - 1], None);
    check(&[end_ms - 2, end_ms - 1, end_ms, end_ms + 1], Some(2));
    // Time changes the account first, and what was late is late.
    check(&[end_ms, end_ms + 1], None);
    check(&[end_ms, end_ms - 1], None);
    check(&[end_ms, end_ms - 1, end_ms + 1], Some(2));
}

fn call(records: Vec<Record>, catalogue: &Catalogue, accounts: &Accounts) -> Arc<ApplyCall> {
    let stamp = Arc::new(Stamp {
        generation: "g".into(),
        catalogue: catalogue.id.clone(),
        usage_topic: "u".into(),
        restamp_tolerance_ms: 600_000,
        outbox_max: 10,
        set_members_max: 512,
        journal_bytes_max: 8192,
        breakdown: false,
    });
    let to = records.len() as i64;
    let ranges = vec![Range { partition: Partition::usage(0), from: 0, to, repeats: 0, last: None }];
    let call = Batch { records, ranges, commands_end: None }.call(&Known {
        stamp: &stamp,
        catalogue,
        accounts,
        dead: &DeadNotes::new(),
        recorded: &Recorded::default(),
        commands_first: None,
        others: Vec::new(),
        late_after_ms: 0,
    });
    let Call::Apply(call) = call else { panic!("it is usage") };
    call
}

#[test]
fn a_retry_over_midnight_in_the_same_call_is_remembered_in_its_own_day() {
    let catalogue = Catalogue::parse(include_str!("../../../config/catalogue.toml")).unwrap();
    let minute = 60_000;
    // Before midnight, after it, and again: only the last is nothing new to the shard.
    let records = vec![record(0, DAY_MS - 2 * minute), record(1, DAY_MS + 5 * minute), record(2, DAY_MS + 9 * minute)];
    let call = call(records, &catalogue, &accounts());
    let judged: Vec<_> = call.groups[0].events.iter().map(|event| call.classes[event.class].judge).collect();
    assert_eq!(judged, [Judge::Charge, Judge::Repeat]);
    assert_eq!(call.ranges[0].repeats, 1);
    assert_eq!(call.repeats, [("reveal_email".into(), 1)].into());
}

#[test]
fn events_that_share_a_call_cost_what_each_costs_alone() {
    let catalogue = r#"
        version = 1
        [credit_types.email]
        [actions.reveal_email]
        prices = [
            { credit_type = "email", credits = 1 },
            { credit_type = "email", credits = 2, effective_from = "1970-01-21T00:00:00Z" },
        ]
        [actions.enrich]
        prices = [{ credit_type = "email", credits = 2 }]
        [plans.basic]
        interval = "monthly"
        allowance = { email = 1000 }
        actions = ["reveal_email"]
        [plans.large]
        interval = "monthly"
        allowance = { email = 1000 }
        actions = ["reveal_email", "enrich"]
        prices.reveal_email = [{ credits = 0.5, effective_from = "1970-03-12T00:00:00Z" }]
    "#;
    let catalogue = Catalogue::parse(catalogue).unwrap();
    // acme had the large plan for 50 days and has the basic one since, globex the other way round.
    let [acme, globex]: [Arc<str>; 2] = ["acme".into(), "globex".into()];
    let mut accounts = accounts();
    let mut view = accounts.remove("acme").unwrap();
    view.cycle.start_ms = 50 * DAY_MS;
    for (account, then, now) in [(&acme, "large", "basic"), (&globex, "basic", "large")] {
        let mut view = view.clone();
        view.config.plan = now.into();
        let (start_ms, end_ms, plan) = (0, 50 * DAY_MS, then.to_owned());
        let (overage, revision, stated_ms, restate, keep_ms) = (Overage::Reject, 1, 0, false, 0);
        let counters = BTreeMap::new();
        let closed =
            ClosedCycle { start_ms, end_ms, plan, overage, revision, told: 0, stated_ms, restate, keep_ms, counters };
        view.closed.insert(-1, closed);
        accounts.insert(account.clone(), view);
    }
    let actions: [Arc<str>; 2] = ["reveal_email".into(), "enrich".into()];
    let mut records = Vec::new();
    for day in [10, 80, 30, 60] {
        for (account, action) in [(&acme, 0), (&acme, 1), (&globex, 0), (&globex, 1)] {
            let mut record = record(records.len() as i64, day * DAY_MS);
            let Body::Usage(event) = &mut record.body else { unreachable!("it is usage") };
            let event = Arc::make_mut(event);
            (event.account, event.action) = (account.clone(), actions[action].clone());
            event.identity = Identity::of("s", &record.offset.to_string());
            records.push(record);
        }
    }
    let call = call(records, &catalogue, &accounts);
    for CallEvent { class, event, .. } in call.groups.iter().flat_map(|group| &group.events) {
        assert_eq!(Ok(call.classes[*class].clone()), price(&catalogue, &accounts[&event.account], event), "{event:?}");
    }
    assert_eq!(call.events(), 16);
    let of_reveals = |class: &&Class| *class.action == *actions[0];
    assert_eq!(call.classes.iter().filter(of_reveals).count(), 4, "{:?}", call.classes);
}
