//! What top-ups gave, before and after the renewals at midnight, and voids of it.

use std::sync::Arc;

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::command::{Command, CommandBody, GRANT, GrantBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{DAY_MS, Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::pipeline::record::{Body, Record};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{History, MIDNIGHT_MS, MINUTE_MS};

impl History<'_> {
    /// An account gets a top-up that burns first and outlives the cycle, and uses some of it.
    pub async fn use_a_top_up(&mut self, append_ms: i64) {
        let account = *["a", "b"].choose(&mut self.rng).expect("not empty");
        let id = format!("top-up {}", self.commands.len());
        let body = GrantBody {
            credit_type: "email".into(),
            amount: Credits::whole(self.rng.random_range(1..6)),
            kind: GrantKind::Topup,
            priority: self.rng.random_range(48..51),
            effective_ms: None,
            expires_ms: Some(MIDNIGHT_MS + 90 * DAY_MS),
        };
        let command = Command {
            account: account.into(),
            identity: Identity::of("cli", &id),
            id,
            time_ms: append_ms - MINUTE_MS,
            command_type: GRANT,
            body: Ok(CommandBody::Grant(Box::new(body))),
        };
        self.commands.push(command.clone());
        let record = self.command_record(self.positions[&Partition::COMMANDS], command);
        self.submit(vec![record]).await;

        let first = self.positions[&Partition::usage(0)];
        let records = (first..first + self.rng.random_range(1..6)).map(|offset| {
            let id = format!("of a top-up {offset}");
            let event = Arc::new(UsageEvent {
                account: account.into(),
                source: "s/1".into(),
                identity: Identity::of("s/1", &id),
                id: id.into(),
                time_ms: append_ms,
                dated_ms: append_ms,
                action: "reveal_email".into(),
                quantity: 1,
                outcome: None,
                user: None,
                fields: Box::default(),
                once: None,
                voids: None,
            });
            self.of_top_ups.push(event.clone());
            Record { append_ms, ..self.record(Partition::usage(0), offset, Body::Usage(event)) }
        });
        let records: Vec<Record> = records.collect();
        self.submit(records).await;
    }

    pub fn voids_of_top_ups(&mut self) -> Vec<Record> {
        let first = self.positions[&Partition::usage(0)];
        let events: Vec<_> = self.of_top_ups.choose_multiple(&mut self.rng, 3).cloned().collect();
        let voids = events.iter().zip(first..).map(|(event, offset)| {
            let void = self.void(event);
            self.record(Partition::usage(0), offset, Body::Usage(void))
        });
        voids.collect()
    }
}
