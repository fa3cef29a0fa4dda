//! Accounts as the log of commands makes them: with the ledger's decisions, and sums of its own.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::ledger::account::{AccountConfig, AccountView, Counter, Grant, add_grant};
use crate::ledger::call::Change;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::command::{Command, decide};
use crate::ledger::cycle::Cycle;
use crate::ledger::outcome::Outcome;

/// An account after the commands that were folded so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commanded {
    pub view: Option<AccountView>,
    /// What was granted; nothing is charged here.
    pub counters: BTreeMap<String, Counter>,
    /// Commands that were applied, by the half of their identity that is remembered; with the other half.
    pub applied: FxHashMap<i64, u64>,
    /// Commands that were taken for others, since the remembered halves are the same.
    pub collisions: u64,
}

impl Commanded {
    /// Folds the next command, and says how it must have ended.
    pub fn fold(&mut self, catalogue: &Catalogue, command: &Command) -> Outcome {
        let identity = command.identity;
        if let Some(other) = self.applied.get(&identity.member) {
            self.collisions += u64::from(*other != identity.other);
            return Outcome::Duplicate;
        }
        let applied = match decide(catalogue, self.view.as_ref(), command) {
            Change::Refuse(_) => None,
            Change::Grant(grant) => self.grant(std::slice::from_ref(&grant)),
            Change::Put { config, opens, grants, .. } => self.put(*config, opens, &grants),
        };
        if applied.is_none() {
            return Outcome::Refused;
        }
        self.applied.insert(identity.member, identity.other);
        Outcome::Applied
    }

    fn put(&mut self, config: AccountConfig, opens: Option<Cycle>, grants: &[Grant]) -> Option<()> {
        let before = self.view.clone();
        let version = before.as_ref().map_or(0, |view| view.version) + 1;
        self.view = match (&before, opens) {
            (_, Some(cycle)) => Some(AccountView { version, config, cycle, grants: Vec::new(), days: BTreeMap::new() }),
            (Some(view), None) => Some(AccountView { version, config, ..view.clone() }),
            (None, None) => unreachable!("the first put opens a cycle"),
        };
        let granted = self.grant(grants);
        if granted.is_none() {
            self.view = before;
        }
        granted
    }

    /// `None`: a balance would exceed its bound, and nothing is granted.
    fn grant(&mut self, grants: &[Grant]) -> Option<()> {
        let mut counters = self.counters.clone();
        for grant in grants {
            counters.entry(grant.credit_type.clone()).or_default().grant(grant.amount)?;
        }
        self.counters = counters;
        let view = self.view.as_mut().expect("credits are granted to an account");
        for grant in grants {
            add_grant(&mut view.grants, grant.clone());
        }
        Some(())
    }
}
