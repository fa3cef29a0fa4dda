use std::sync::Arc;

use credit_meter::ledger::call::{Partition, Range};
use credit_meter::ledger::catalogue::CatalogueId;
use credit_meter::ledger::day::Layout;
use credit_meter::ledger::event::DAY_MS;
use credit_meter::ledger::roll::{RollAccount, RollCall};
use credit_meter::ledger::shard::{Grown, InitCall, InitReply};
use credit_meter::ledger::steps::{MeterTime, Step, steps_until};
use credit_meter::ledger::time::{ForgetCall, ForgetDays, TimeCall, TimeReply, forgettable};
use credit_meter::ledger::usage::{FoldUsageCall, ForgetUsageCall, local_day};
use credit_meter::pipeline::batch::{Call, thresholds};
use credit_meter::store::keys::Key;
use credit_meter::store::{TakeCall, Taken};
use rand::Rng;

use super::{History, LATE_AFTER_MS, MIDNIGHT_MS, MINUTE_MS};

impl History<'_> {
    pub async fn raise_floor(&mut self, floor_ms: i64, connection: &mut redis::aio::MultiplexedConnection) {
        let fence = self.shard.fence.as_mut().expect("it is made");
        fence.floor_ms = fence.floor_ms.max(floor_ms);
        let mut set = redis::cmd("HSET");
        set.arg(self.keys.spell(Key::Shard(0))).arg("floor_ms").arg(fence.floor_ms);
        let _: () = set.query_async(connection).await.expect("redis answers");
    }

    pub async fn move_time(&mut self) {
        let mut ends = vec![(Partition::COMMANDS, Some(self.positions[&Partition::COMMANDS]))];
        let create = self.rng.random_bool(0.4);
        for partition in [Partition::usage(0), Partition::usage(1)] {
            let end = self.positions[&partition] + self.rng.random_range(-1..=1);
            ends.push((partition, (!create).then_some(end)));
        }
        let call = TimeCall {
            generation: if self.rng.random_bool(0.1) { "g2".into() } else { "g1".into() },
            tick_ms: (!create).then_some(MIDNIGHT_MS + self.rng.random_range(-20..30) * MINUTE_MS),
            late_after_ms: self.rng.random_range(0..30) * MINUTE_MS,
            ends,
        };
        let stored = self.store.move_time(0, &call).await.expect("redis answers");
        assert_eq!(stored, self.shard.move_time(&call), "seed {}: {call:?}", self.seed);
        let kind = match stored {
            TimeReply::OtherGeneration => "time_other_generation",
            TimeReply::Held(_) => "time_held",
            TimeReply::At { .. } => "time_moved",
        };
        *self.replies.entry(kind).or_insert(0) += 1;
    }

    /// The store's own affair: the next comparison must find what it was before.
    pub async fn fold_usage(&mut self) {
        let today = local_day(MIDNIGHT_MS, chrono_tz::UTC);
        let call = FoldUsageCall {
            generation: if self.rng.random_bool(0.1) { "g2".into() } else { "g1".into() },
            days: [-1, 0, 1].map(|days| today + chrono::TimeDelta::days(days)).to_vec(),
            accounts: ["a", "b", "d \"}{", "nobody"].map(Arc::from).to_vec(),
        };
        self.poison_fold(&call).await;
        let folded = self.store.fold_usage(0, &call).await.expect("redis answers");
        assert_eq!(folded.is_none(), call.generation == "g2", "seed {}: {call:?}", self.seed);
        *self.replies.entry("usage_folded").or_insert(0) += folded.unwrap_or(0);
    }

    pub async fn forget_usage(&mut self) {
        // Events lie around a midnight, and meter time goes no further: what is kept must end in its past.
        let keep_ms = self.rng.random_range(-4..2) * DAY_MS;
        let today = local_day(MIDNIGHT_MS, chrono_tz::UTC);
        let days: Vec<_> = today.iter_days().skip(self.rng.random_range(0..2)).take(2).collect();
        let call = ForgetUsageCall {
            generation: if self.rng.random_bool(0.1) { "g2".into() } else { "g1".into() },
            keep_ms,
            days: days.iter().map(|day| *day - chrono::TimeDelta::days(1)).collect(),
            accounts: ["a", "b", "d \"}{", "nobody"].map(Arc::from).to_vec(),
            from: self.rng.random_bool(0.5).then(|| days[1]),
        };
        let stored = self.store.forget_usage(0, &call).await.expect("redis answers");
        assert_eq!(stored, self.shard.forget_usage(&call), "seed {}: {call:?}", self.seed);
        *self.replies.entry(if stored > Some(0) { "usage_forgotten" } else { "usage_kept" }).or_insert(0) += 1;
    }

    pub async fn forget(&mut self) {
        let fence = self.shard.fence.as_ref().expect("it is made");
        // Sometimes a floor that the shard has not reached: another state was there when it was read.
        let ahead = if self.rng.random_bool(0.3) { 3 * DAY_MS } else { 0 };
        let (floor_ms, tolerance_ms) = (fence.floor_ms + ahead, fence.restamp_tolerance_ms);
        let (next, accounts) = self.store.days(0, 0, 1000).await.expect("redis answers");
        assert_eq!(next, 0, "it is one page");
        let accounts = accounts.into_iter().map(|(account, read)| {
            let days = read.iter().map(|(day, _)| *day);
            let gone = days.filter(|day| forgettable(*day, floor_ms, tolerance_ms)).collect();
            ForgetDays { account, read, gone }
        });
        let call = ForgetCall { generation: "g1".into(), accounts: accounts.collect() };
        if self.rng.random_bool(0.3) {
            self.submit_one().await; // a day begins meanwhile
        }
        let stored = self.store.forget(0, &call).await.expect("redis answers");
        assert_eq!(stored, self.shard.forget(&call), "seed {}: {call:?}", self.seed);
        *self.replies.entry("forgotten").or_insert(0) += stored.unwrap_or(0);
    }

    /// What the sweeper does, with a view that may be old.
    pub async fn sweep(&mut self) {
        let fence = self.shard.fence.as_ref().expect("it is made");
        let meter = MeterTime { now_ms: fence.meter_time_ms, floor_ms: fence.floor_ms };
        // Sometimes meter time was further when the worker asked.
        let by_ms = if self.rng.random_bool(0.6) { 2 * LATE_AFTER_MS } else { 2 * MINUTE_MS };
        let ahead = MeterTime { now_ms: meter.now_ms.max(MIDNIGHT_MS) + by_ms, ..meter };
        let meter = if self.rng.random_bool(0.5) { meter } else { ahead };
        let mut views: Vec<_> =
            self.shard.accounts.iter().map(|(name, account)| (name.clone(), account.view())).collect();
        views.sort_by(|(a, _), (b, _)| a.cmp(b));
        let meter_time_ms = self.rng.random_bool(0.2).then_some(meter.now_ms);
        let accounts = views.into_iter().map(|(account, view)| {
            let mut steps = steps_until(self.catalogue, &view, meter.now_ms, meter);
            for step in &mut steps {
                if let Step::Forget { marks, .. } = step
                    && self.rng.random_bool(0.1)
                {
                    *marks = Some(Layout::first(1, 512).grown(1, 512)); // the account does not have these
                }
            }
            let version = view.version - u64::from(self.rng.random_bool(0.1));
            RollAccount { account, version, thresholds: thresholds(self.catalogue, &view.config), steps }
        });
        let call = RollCall {
            stamp: self.stamp.clone(),
            others: Vec::new(),
            commands_first: None,
            meter_time_ms,
            late_after_ms: LATE_AFTER_MS,
            credit_types: self.catalogue.credit_types.clone(),
            accounts: accounts.filter(|roll| !roll.steps.is_empty()).collect(),
        };
        let call = Call::Roll(Arc::new(call));
        self.send(&call).await;
        if self.rng.random_bool(0.3) {
            self.send(&call).await; // another sweeper
        }
    }

    /// As a worker that starts, maybe with another catalogue: a higher version is taken if it was compared with the
    /// stored one, and changes nothing up to what was priced.
    pub async fn init_again(&mut self) {
        let fence = self.shard.fence.clone().expect("it is made");
        let rng = &mut self.rng;
        let version = (fence.catalogue.version + rng.random_range(0..3)).max(2) - 1;
        let hash = if rng.random_bool(0.3) { "other".to_owned() } else { self.catalogue.id.hash.clone() };
        let from = if rng.random_bool(0.8) { fence.catalogue.clone() } else { self.catalogue.id.clone() };
        let reached_ms = fence.priced_up_to_ms().unwrap_or(0);
        let starts_ms = rng.random_bool(0.8).then(|| reached_ms + rng.random_range(-1..=1));
        let call = InitCall {
            generation: if rng.random_bool(0.9) { "g1".into() } else { "g2".into() },
            shards: if rng.random_bool(0.9) { 1 } else { 2 },
            catalogue: CatalogueId { version, hash },
            catalogue_text: format!("version = {version}").into(),
            grown: rng.random_bool(0.8).then_some(Grown { from, starts_ms }),
            starts: Vec::new(),
            first_start: rng.random_bool(0.5),
        };
        let stored = self.store.init(0, &call).await.expect("redis answers");
        assert_eq!(stored, self.shard.init(&call), "seed {}: {call:?}", self.seed);
        let kind = match &stored {
            InitReply::Ready if call.catalogue != fence.catalogue => "installed",
            InitReply::Ready => "ready",
            InitReply::OtherCatalogue(_) => "init_other_catalogue",
            InitReply::OlderCatalogue(..) => "older_catalogue",
            InitReply::PricedUpTo(_) => "priced_up_to",
            _ => "init_other",
        };
        *self.replies.entry(kind).or_insert(0) += 1;
        if stored == InitReply::Ready {
            Arc::make_mut(&mut self.stamp).catalogue = call.catalogue;
        }
    }

    pub async fn other_stamp(&mut self) {
        let Some(mut call) = self.last.clone() else { return };
        let mut stamp = (*self.stamp).clone();
        if self.rng.random_bool(0.5) {
            stamp.generation = "g2".into();
        } else {
            stamp.catalogue = CatalogueId { version: 2, hash: "other".into() };
        }
        let stamp = Arc::new(stamp);
        let place = |range: &mut Range, position: i64| {
            range.from = position;
            range.to = range.to.max(position + 1);
        };
        match &mut call {
            Call::Apply(call) => {
                let call = Arc::make_mut(call);
                call.stamp = stamp;
                for range in &mut call.ranges {
                    place(range, self.shard.position(range.partition));
                }
            }
            Call::Command(call) => {
                let call = Arc::make_mut(call);
                call.stamp = stamp;
                place(&mut call.range, self.shard.position(Partition::COMMANDS));
            }
            Call::Roll(call) => Arc::make_mut(call).stamp = stamp,
        }
        self.send(&call).await;
    }

    pub async fn take(&mut self) {
        let call = TakeCall {
            relay: "r1".into(),
            lease_ms: 10_000,
            published: self.published.clone(),
            count: 2,
            durable: None,
        };
        let Taken::Entries(stored) = self.store.take(0, &call).await.expect("redis answers") else {
            panic!("nobody else holds the lease");
        };
        let published = self.shard.outbox_taken + self.published.len() as u64;
        let expected = self.shard.take(published, 2);
        let plain = |entries: &[(String, _)]| {
            entries.iter().map(|(_, entry): &(_, _)| format!("{entry:?}")).collect::<Vec<_>>()
        };
        let expected: Vec<_> = expected.into_iter().map(|(_, entry)| (String::new(), entry)).collect();
        assert_eq!(plain(&stored), plain(&expected), "seed {}", self.seed);
        let other = TakeCall { relay: "r2".into(), published: Vec::new(), ..call };
        assert_eq!(self.store.take(0, &other).await.expect("redis answers"), Taken::Held);
        for (_, entry) in &stored {
            let kind = match entry.event_type.as_str() {
                "credits.low.v1" => "low",
                "credits.exhausted.v1" => "exhausted",
                "credits.restored.v1" => "restored",
                "credits.ledger.refund.v1" => "refund",
                _ => continue,
            };
            *self.replies.entry(kind).or_insert(0) += 1;
        }
        self.published = stored.into_iter().map(|(id, _)| id).collect();
        *self.replies.entry("taken").or_insert(0) += self.published.len() as u64;
    }
}
