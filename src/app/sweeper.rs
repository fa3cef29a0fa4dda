//! The sweeper: does for idle accounts what time asks of them. Accounts with usage are rolled on their way.
//!
//! It goes by meter time: everything that the log held before a renewal is applied by then. Several sweepers at once do
//! no harm, since an account takes its steps only at the version that the sweeper saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::ledger::call::{Reply, StaleAccount, Stamp};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::roll::{RollAccount, RollCall};
use crate::ledger::steps::{MeterTime, STEPS_MAX, steps_until};
use crate::metrics;
use crate::outbox::Relay;
use crate::pipeline::batch::thresholds;
use crate::store::{Store, StoreError};

/// Accounts that are looked at at once.
const PAGE: usize = 100;

pub struct Sweeper {
    pub store: Store,
    pub relay: Arc<Relay>,
    /// The one in force.
    pub catalogues: watch::Receiver<Arc<Catalogue>>,
    /// Of the catalogue that was in force at first.
    pub stamp: Stamp,
    pub late_after_ms: i64,
    /// Shards that are being swept.
    pub busy: Vec<AtomicBool>,
}

impl Sweeper {
    /// Begins to sweep a shard, unless that is under way: a month's renewals must not hold meter time up.
    pub fn begin(self: &Arc<Sweeper>, shard: u32, meter: MeterTime) {
        if self.busy[shard as usize].swap(true, Ordering::Relaxed) {
            return;
        }
        let sweeper = self.clone();
        tokio::spawn(async move {
            match sweeper.sweep(shard, meter).await {
                Ok(0) => {}
                Ok(steps) => tracing::info!(shard, steps, "accounts that were due are rolled"),
                Err(error) => {
                    metrics::record_sweep_failed();
                    tracing::warn!(shard, %error, "accounts that are due wait");
                }
            }
            sweeper.busy[shard as usize].store(false, Ordering::Relaxed);
        });
    }

    /// Rolls the accounts of a shard that are due; gives how many steps they took.
    async fn sweep(&self, shard: u32, meter: MeterTime) -> Result<usize, StoreError> {
        let catalogue = self.catalogues.borrow().clone();
        let mut taken = 0;
        // Accounts that are due and have nothing to do yet: a closed cycle that the floor has not passed.
        let mut waiting = 0;
        loop {
            let due = self.store.due_by(shard, meter.now_ms, waiting, PAGE).await?;
            if due.is_empty() {
                return Ok(taken);
            }
            let last = due.len() < PAGE;
            let look = due
                .into_iter()
                .map(|account| RollAccount { account, version: 0, thresholds: Vec::new(), steps: Vec::new() })
                .collect();
            let Some(shown) = self.roll(shard, meter, &catalogue, look).await? else { return Ok(taken) };
            let mut accounts = Vec::new();
            let (mut steps_left, mut waiting_here) = (STEPS_MAX, 0);
            for StaleAccount { account, view } in shown {
                let steps = view.as_ref().map(|view| steps_until(&catalogue, view, meter.now_ms, meter));
                let steps = steps.unwrap_or_default();
                if steps.is_empty() {
                    waiting_here += 1;
                } else if steps_left > 0 {
                    // The rest is due again in the next round.
                    let steps: Vec<_> = steps.into_iter().take(steps_left).collect();
                    steps_left -= steps.len();
                    let Some(view) = view else { continue };
                    let thresholds = thresholds(&catalogue, &view.config);
                    accounts.push(RollAccount { account, version: view.version, thresholds, steps });
                }
            }
            // Where steps are left over, accounts that are still due lie between those that wait: none may be passed over.
            if steps_left > 0 {
                waiting += waiting_here;
            }
            if accounts.is_empty() && last {
                return Ok(taken);
            }
            if !accounts.is_empty() {
                taken += STEPS_MAX - steps_left;
                metrics::record_swept(accounts.iter().flat_map(|roll| &roll.steps).map(|step| step.name()));
                if self.roll(shard, meter, &catalogue, accounts).await?.is_none() {
                    return Ok(taken);
                }
                self.relay.bells[shard as usize].notify_one();
            }
        }
    }

    /// The accounts as they are afterwards; `None`: the shard takes no steps now, and the next round tries again.
    async fn roll(
        &self,
        shard: u32,
        meter: MeterTime,
        catalogue: &Catalogue,
        accounts: Vec<RollAccount>,
    ) -> Result<Option<Vec<StaleAccount>>, StoreError> {
        let call = RollCall {
            stamp: Arc::new(Stamp { catalogue: catalogue.id.clone(), ..self.stamp.clone() }),
            others: Vec::new(),
            commands_first: None,
            meter_time_ms: Some(meter.now_ms),
            late_after_ms: self.late_after_ms,
            credit_types: catalogue.credit_types.clone(),
            accounts,
        };
        match self.store.roll(shard, &call).await? {
            Reply::Stale(shown) => Ok(Some(shown)),
            refused => {
                metrics::record_call_refusal(refused.kind());
                Ok(None)
            }
        }
    }
}
