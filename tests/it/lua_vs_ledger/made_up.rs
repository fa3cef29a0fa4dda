use std::sync::Arc;

use credit_meter::ledger::account::{AccountConfig, Addon};
use credit_meter::ledger::call::{Partition, RefusalReason};
use credit_meter::ledger::catalogue::Overage;
use credit_meter::ledger::command::{
    ACCOUNT_CLOSE, ACCOUNT_PUT, ADJUST, Command, CommandBody, GRANT, GRANT_VOID, GrantBody, refuse,
};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::cycle::Interval;
use credit_meter::ledger::event::{DAY_MS, Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::ledger::members::MemberLimit;
use credit_meter::ledger::outcome::DeadReason;
use credit_meter::pipeline::record::{Body, Record};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::{History, MIDNIGHT_MS, MINUTE_MS};

const USERS: [Option<&str>; 4] = [None, Some("u-1"), Some("\"é"), Some(" ")];

/// What an event is charged for once, mostly one of few.
fn once(action: &str, rng: &mut SmallRng) -> Option<Identity> {
    let of = if rng.random_bool(0.8) { rng.random_range(0..2) } else { rng.random_range(0..1_000) };
    let asks = matches!(action, "reveal_phone" | "enrich") && rng.random_bool(0.9);
    asks.then(|| Identity::of(action, &format!("contact-{of}")))
}

fn is_plain(event: &UsageEvent, account: &str) -> bool {
    event.voids.is_none() && &*event.account == account && matches!(&*event.action, "enrich" | "verify" | "export")
}

impl History<'_> {
    pub fn record(&self, partition: Partition, offset: i64, body: Body) -> Record {
        Record { partition, offset, append_ms: MIDNIGHT_MS, bytes: 100, fingerprint: offset as u64, body }
    }

    /// Commands come before and after the renewals at midnight.
    pub fn command_record(&mut self, offset: i64, command: Command) -> Record {
        let append_ms = command.time_ms + self.rng.random_range(0..3) * MINUTE_MS;
        Record { append_ms, ..self.record(Partition::COMMANDS, offset, Body::Command(Box::new(command))) }
    }

    pub fn usage(&mut self) -> Vec<Record> {
        let mut next = self.positions.clone();
        // Few credits of one account for actions that are not voidable: those are added up, others decided one by one.
        let plain = self.rng.random_bool(0.45).then(|| *["a", "b"].choose(&mut self.rng).expect("not empty"));
        // And few events of one day, which usage has a journal for.
        let calm = plain.filter(|_| self.rng.random_bool(0.5));
        let count = self.rng.random_range(1..if calm.is_some() { 6 } else { 25 });
        (0..count)
            .map(|_| {
                let partition = Partition::usage(self.rng.random_range(0..2));
                let offset = next[&partition] + i64::from(self.rng.random_range(0..10) == 0);
                next.insert(partition, offset + 1);
                let body = if self.rng.random_bool(0.02) {
                    Body::Dead { reason: DeadReason::InvalidJson, account: None }
                } else {
                    Body::Usage(match calm {
                        Some(account) => self.calm_event(account),
                        None => self.event(plain),
                    })
                };
                self.record(partition, offset, body)
            })
            .collect()
    }

    fn event(&mut self, plain: Option<&str>) -> Arc<UsageEvent> {
        let voidable: Vec<_> =
            self.sent.iter().filter(|event| event.voids.is_none() && plain.is_none()).cloned().collect();
        if let Some(event) = voidable.choose(&mut self.rng)
            && self.rng.random_bool(0.15)
        {
            return self.void(event);
        }
        let rng = &mut self.rng;
        let again: Vec<_> = self.sent.iter().filter(|event| plain.is_none_or(|of| is_plain(event, of))).collect();
        if !again.is_empty() && rng.random_bool(0.25) {
            let mut event = (***again.choose(rng).expect("some were sent")).clone();
            event.time_ms += rng.random_range(-8..=8) * MINUTE_MS; // a restamped retry
            event.dated_ms = event.time_ms.min(MIDNIGHT_MS + 12 * MINUTE_MS);
            if rng.random_bool(0.1) {
                event.once = once(&event.action, rng); // it says something else now
            }
            return Arc::new(event);
        }
        // Few accounts, so that they meet again; what is dead before it is judged is rare, since it holds its call up.
        let account = plain.unwrap_or_else(|| ["a", "a", "a", "b", "b", "c", "d \"}{"].choose(rng).expect("not empty"));
        let account = if rng.random_bool(0.02) { "nobody" } else { account };
        let actions = ["enrich", "verify", "export", "reveal_email", "reveal_email", "reveal_phone", "reveal_phone"];
        let action = *actions[..if plain.is_some() { 3 } else { 7 }].choose(rng).expect("not empty");
        let action = if rng.random_bool(0.02) { "unheard_of" } else { action };
        let time_ms = match rng.random_range(0..40) {
            0 => MIDNIGHT_MS + 40 * DAY_MS,
            1 => MIDNIGHT_MS - 40 * DAY_MS,
            2 => MIDNIGHT_MS + DAY_MS / 2,
            _ => MIDNIGHT_MS + rng.random_range(-15..15) * MINUTE_MS,
        };
        let id = format!("é\n\"{}", rng.random_range(0..10_000));
        // Some producers' clocks run ahead: those events are dated by their append time.
        let ahead = if rng.random_bool(0.1) { rng.random_range(0..20) * MINUTE_MS } else { 0 };
        let event = Arc::new(UsageEvent {
            account: account.into(),
            source: "s/1".into(),
            identity: Identity::of("s/1", &id),
            id: id.into(),
            time_ms,
            dated_ms: time_ms - ahead,
            action: action.into(),
            quantity: match rng.random_range(0..50) {
                0 => 1_000_000_000, // beyond what an event may cost
                1..4 => 100_000_000,
                4..10 => 3,
                10..18 => 2,
                _ => 1,
            },
            outcome: if rng.random_bool(0.2) { Some("not_found".into()) } else { None },
            user: USERS.choose(rng).expect("not empty").map(Arc::from),
            fields: Box::default(),
            once: once(action, rng),
            voids: None,
        });
        self.sent.push(event.clone());
        // Some voids come before their event.
        if plain.is_none() && self.rng.random_bool(0.1) { self.void(&event) } else { event }
    }

    /// After midnight, and nothing that an account that has something left denies.
    fn calm_event(&mut self, account: &str) -> Arc<UsageEvent> {
        let is_calm = |event: &&Arc<UsageEvent>| {
            event.voids.is_none() && &*event.account == account && event.dated_ms >= MIDNIGHT_MS
        };
        let again: Vec<_> = self.sent.iter().filter(is_calm).cloned().collect();
        let rng = &mut self.rng;
        if let Some(event) = again.choose(rng)
            && rng.random_bool(0.25)
        {
            return event.clone();
        }
        let time_ms = MIDNIGHT_MS + rng.random_range(0..12) * MINUTE_MS;
        let action = *["enrich", "reveal_email", "reveal_phone"].choose(rng).expect("not empty");
        let id = format!("calm-{}", rng.random_range(0..10_000));
        let event = Arc::new(UsageEvent {
            account: account.into(),
            source: "s/1".into(),
            identity: Identity::of("s/1", &id),
            id: id.into(),
            time_ms,
            dated_ms: time_ms,
            action: action.into(),
            quantity: 1,
            outcome: if rng.random_bool(0.2) { Some("not_found".into()) } else { None },
            user: USERS.choose(rng).expect("not empty").map(Arc::from),
            fields: Box::default(),
            once: once(action, rng),
            voids: None,
        });
        self.sent.push(event.clone());
        event
    }

    /// Voids that say that their events came after midnight: they are found on the day before, their cycle may be forgotten.
    pub fn voids_of_the_cycle_before(&mut self) -> Option<Vec<Record>> {
        let before = |event: &&Arc<UsageEvent>| event.dated_ms < MIDNIGHT_MS && event.voids.is_none();
        let events: Vec<_> = self.sent.iter().filter(before).take(20).cloned().collect();
        let first = self.positions[&Partition::usage(0)];
        let time_ms = MIDNIGHT_MS + 10 * MINUTE_MS - 1;
        let voids = events.iter().zip(first..).map(|(event, offset)| {
            let void = UsageEvent { time_ms, dated_ms: time_ms, ..(*self.void(event)).clone() };
            self.record(Partition::usage(0), offset, Body::Usage(Arc::new(void)))
        });
        let voids: Vec<Record> = voids.collect();
        (!voids.is_empty()).then_some(voids)
    }

    /// Takes an event back, by what it says of it.
    pub fn void(&mut self, event: &UsageEvent) -> Arc<UsageEvent> {
        let rng = &mut self.rng;
        let id = format!("void-{}", rng.random_range(0..10_000));
        let mut void = UsageEvent {
            identity: event.identity.of_its_void(),
            voids: Some(event.identity),
            id: id.into(),
            quantity: 1,
            outcome: None,
            user: None,
            ..event.clone()
        };
        if rng.random_bool(0.2) {
            void.action = "reveal_email".into(); // whatever it was
        }
        if rng.random_bool(0.1) {
            void.time_ms += rng.random_range(-8..=8) * MINUTE_MS;
            void.dated_ms = void.time_ms.min(MIDNIGHT_MS + 12 * MINUTE_MS);
        }
        if rng.random_bool(0.3) {
            void.dated_ms = void.time_ms; // its event was appended before the time that it bears, the void is later
        }
        if rng.random_bool(0.1) {
            void.once = once(&void.action, rng); // it names another contact, or none
        }
        let void = Arc::new(void);
        self.sent.push(void.clone());
        void
    }

    /// A put that opens a cycle.
    pub fn first_put(&mut self, account: &str) -> Command {
        let body = self.put();
        let CommandBody::Put(mut config) = body else { unreachable!("it is one") };
        config.addons.retain(|addon| addon.credit_type != "fax");
        if config.plan == "none" {
            config.plan = "large".into();
        }
        if config.member_limits.iter().any(|limit| limit.credit_type == "fax") {
            config.member_limits = Arc::default();
        }
        let id = format!("first {account}");
        let command = Command {
            account: account.into(),
            identity: Identity::of("cli", &id),
            id,
            time_ms: MIDNIGHT_MS - 12 * MINUTE_MS,
            command_type: ACCOUNT_PUT,
            body: Ok(CommandBody::Put(config)),
        };
        self.commands.push(command.clone());
        command
    }

    pub fn command(&mut self) -> Command {
        let rng = &mut self.rng;
        if !self.commands.is_empty() && rng.random_bool(0.15) {
            return self.commands.choose(rng).expect("some were sent").clone();
        }
        let account = *["a", "b", "c", "d \"}{"].choose(rng).expect("not empty");
        let id = format!("\"c{}\n", rng.random_range(0..100_000));
        let (command_type, body) = match rng.random_range(0..100) {
            0..3 => (GRANT, Err(refuse(RefusalReason::InvalidCommand, "amount is \"x\"".into()))),
            3..45 => (ACCOUNT_PUT, Ok(self.put())),
            45..78 => (GRANT, Ok(self.grant())),
            78..85 => (GRANT_VOID, Ok(self.grant_void())),
            85..95 => (ADJUST, Ok(self.adjust())),
            _ => (ACCOUNT_CLOSE, Ok(CommandBody::Close)),
        };
        let command = Command {
            account: account.into(),
            identity: Identity::of("cli", &id),
            id,
            time_ms: MIDNIGHT_MS + self.rng.random_range(-12..3) * MINUTE_MS,
            command_type,
            body,
        };
        self.commands.push(command.clone());
        command
    }

    fn amount(&mut self) -> Credits {
        let thousandths = *[500, 500, 3_000, 3_000, 3_000, 10_000, 10_000, 999_999_999_999_000]
            .choose(&mut self.rng)
            .expect("not empty");
        Credits::from_thousandths(thousandths)
    }

    fn credit_type(&mut self) -> String {
        (*["email", "email", "email", "email", "phone", "phone", "fax"].choose(&mut self.rng).expect("not empty"))
            .to_owned()
    }

    fn put(&mut self) -> CommandBody {
        let addons = if self.rng.random_bool(0.5) {
            vec![Addon { credit_type: self.credit_type(), amount: self.amount() }]
        } else {
            Vec::new()
        };
        let member_limits = self.member_limits();
        let rng = &mut self.rng;
        let plans = ["small", "small", "capped", "allowed", "large", "unlimited", "large", "yearly", "none"];
        // Of some the midnight around which everything happens is a boundary.
        let anchors = ["2026-02-10", "2026-02-10", "2025-12-10", "2026-03-01"];
        let zones = [chrono_tz::UTC, chrono_tz::UTC, chrono_tz::UTC, chrono_tz::Europe::Paris];
        CommandBody::Put(Box::new(AccountConfig {
            plan: (*plans.choose(rng).expect("not empty")).to_owned(),
            anchor: anchors.choose(rng).expect("not empty").parse().expect("a date"),
            interval: *[None, None, None, Some(Interval::Quarterly)].choose(rng).expect("not empty"),
            timezone: *zones.choose(rng).expect("not empty"),
            addons,
            thresholds: None,
            overage: if rng.random_bool(0.2) { Some(Overage::Allow { limit: None }) } else { None },
            member_limits,
        }))
    }

    fn member_limits(&mut self) -> Arc<[MemberLimit]> {
        if self.rng.random_bool(0.2) {
            return Arc::default();
        }
        let mut limits: Vec<MemberLimit> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let credit_type = self.credit_type();
            let rng = &mut self.rng;
            let credit_type = if rng.random_bool(0.9) { credit_type.replace("fax", "phone") } else { credit_type };
            let user = USERS.choose(rng).expect("not empty").map(Arc::from);
            let thousandths = *[0, 1_000, 3_000, 8_000, 200_000_000_000, 200_000_000_000, 200_000_000_000]
                .choose(rng)
                .expect("not empty");
            let limit = MemberLimit { credit_type, user, amount: Credits::from_thousandths(thousandths) };
            if limits.iter().all(|other| other.order(&limit).is_ne()) {
                limits.push(limit);
            }
        }
        limits.sort_by(MemberLimit::order);
        limits.into()
    }

    fn grant(&mut self) -> CommandBody {
        let (credit_type, amount) = (self.credit_type(), self.amount());
        let rng = &mut self.rng;
        let mut near = |often: f64| rng.random_bool(often).then(|| MIDNIGHT_MS + rng.random_range(-14..14) * MINUTE_MS);
        let (effective_ms, expires_ms) = (near(0.4), near(0.4));
        let expires_ms = expires_ms.or_else(|| rng.random_bool(0.3).then_some(MIDNIGHT_MS + 90 * DAY_MS));
        CommandBody::Grant(Box::new(GrantBody {
            credit_type,
            amount,
            kind: if rng.random_bool(0.5) { GrantKind::Topup } else { GrantKind::Promo },
            priority: *[100, 100, 50, 150].choose(rng).expect("not empty"),
            effective_ms,
            expires_ms,
        }))
    }

    fn grant_void(&mut self) -> CommandBody {
        let rng = &mut self.rng;
        let grants = self.commands.iter().filter(|command| command.command_type == GRANT).collect::<Vec<_>>();
        let grant = grants.choose(rng).map_or("none".to_owned(), |command| command.id.clone());
        CommandBody::GrantVoid { grant }
    }

    fn adjust(&mut self) -> CommandBody {
        let (credit_type, amount) = (self.credit_type(), self.amount());
        CommandBody::Adjust { credit_type, amount, adds: self.rng.random_bool(0.5), reason: "a \"mistake\"".into() }
    }
}
