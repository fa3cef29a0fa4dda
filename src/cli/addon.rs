//! Add-ons: an account's configuration is read, one add-on of it changed, and the whole put again.
//!
//! Where a change waits for the renewal, that is put again: it goes on waiting, and the add-on changes now. A command
//! that came in between is replaced. It is looked for in the log, and told.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::account::{AccountData, Sending};
use super::output::Output;
use super::request::{self, Request, Sent};
use super::{Ended, values};
use crate::config::Config;
use crate::ingest::commands::{Put, puts};
use crate::ingest::ledger_tail::Answer;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::account::{AccountConfig, AccountView, Addon};
use crate::ledger::call::Partition;
use crate::ledger::command::ACCOUNT_PUT;
use crate::report::{state, unknown};
use crate::store::RedisStore;
use crate::store::look::{Asked, Looked};
use crate::store::stored::parse_view;

/// Between two looks at how far the meter is.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub enum AddonCommand {
    /// Set how much of a credit type an account has on top of its plan: now, and again in each cycle
    Set(SetArgs),
    /// Give no more of an add-on from the next cycle on; what it gave in this one stays
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    /// For instance email=500
    #[arg(value_name = "TYPE=AMOUNT", value_parser = values::addon)]
    pub addon: Addon,
    #[command(flatten)]
    pub sending: Sending,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    /// The add-on's credit type
    #[arg(value_name = "TYPE", value_parser = values::name)]
    pub credit_type: String,
    #[command(flatten)]
    pub sending: Sending,
}

pub async fn run(command: AddonCommand, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let (account, sending, change) = match command {
        AddonCommand::Set(SetArgs { account, addon, sending }) => (account, sending, Change::Set(addon)),
        AddonCommand::Remove(RemoveArgs { account, credit_type, sending }) => {
            (account, sending, Change::Remove(credit_type))
        }
    };
    let Sending { id, timeout } = sending;
    let commands = &config.kafka.topics.commands;
    // What was sent before must be in the account.
    let (_, end) = Watermarks::new(&config.kafka)?.range(commands, Partition::COMMANDS.index).await?;
    let store = state::open(config).await?;
    let (view, read_at) = read(&store, &account, end, timeout).await?;
    // A command that is sent again may have removed it already.
    let again = id.is_some();
    let Some(wanted) = change.of(&view).or_else(|| again.then(|| waiting(&view).clone())) else {
        bail!("account {account} has no such add-on; `account get` shows those that it has");
    };
    let data = AccountData::from(&wanted);
    let request = Request { account, command_type: ACCOUNT_PUT, id, data, timeout };
    let sent = request::deliver(request, config).await?;
    let replaced = replaced(&sent, read_at, config).await.with_context(|| {
        format!("command {} is acknowledged, but whether another came in between cannot be read", sent.id)
    })?;
    request::tell(&sent, replaced.as_deref(), output)
}

/// An account with all commands below an offset, and the offset below which it has them: they are read at one moment, since
/// a command that came between two reads would be told as replaced though the account has it.
async fn read(store: &RedisStore, account: &str, end: i64, within: Duration) -> anyhow::Result<(AccountView, i64)> {
    let shard = store.keys().shard_of(account);
    let asked = [Asked::account(account)];
    let since = Instant::now();
    loop {
        let Looked { shard: state, accounts } = store.look(shard, &asked).await?;
        let own = state.positions.iter().find(|(own, _)| *own == Partition::COMMANDS);
        let position = own.map_or(0, |(_, position)| *position);
        if position >= end {
            let fields = &accounts[0].fields;
            anyhow::ensure!(!fields.is_empty(), unknown(account));
            return Ok((parse_view(fields)?, position));
        }
        if since.elapsed() > within {
            bail!(
                "commands wait to be applied, so what account {account} is cannot be said: nothing was sent; is a \
                 meter running?"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The id of the last put to the same account between the read and the write, where the write took effect or will.
async fn replaced(sent: &Sent, from: i64, config: &Config) -> anyhow::Result<Option<String>> {
    if !matches!(sent.answer, None | Some(Answer::Applied)) {
        return Ok(None);
    }
    let (config, to) = (config.clone(), sent.offset);
    let read = tokio::task::spawn_blocking(move || puts(&config, from, to));
    let between = read.await.context("reading")??;
    Ok(between.into_iter().filter(|put| put.account == sent.account).map(|Put { id, .. }| id).next_back())
}

#[derive(Debug)]
enum Change {
    Set(Addon),
    Remove(String),
}

/// What the account will be after its renewal.
fn waiting(view: &AccountView) -> &AccountConfig {
    view.next.as_ref().unwrap_or(&view.config)
}

impl Change {
    /// `None`: there is nothing to remove.
    fn of(&self, view: &AccountView) -> Option<AccountConfig> {
        let mut wanted = waiting(view).clone();
        let had = wanted.addons.len();
        let (Change::Set(Addon { credit_type, .. }) | Change::Remove(credit_type)) = self;
        wanted.addons.retain(|addon| addon.credit_type != *credit_type);
        match self {
            Change::Set(addon) => wanted.addons.push(addon.clone()),
            Change::Remove(_) if wanted.addons.len() == had => return None,
            Change::Remove(_) => {}
        }
        wanted.addons.sort_by(|a, b| a.credit_type.cmp(&b.credit_type));
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::catalogue::{Overage, Threshold};
    use crate::ledger::credits::Credits;
    use crate::ledger::cycle::{Cycle, Interval};

    fn addon(text: &str) -> Addon {
        values::addon(text).unwrap()
    }

    #[test]
    fn everything_else_stays_also_what_waits_for_the_renewal() {
        let now = AccountConfig {
            plan: "organization".into(),
            anchor: "2026-01-31".parse().unwrap(),
            interval: Some(Interval::Annual),
            timezone: "Europe/Paris".parse().unwrap(),
            addons: vec![addon("phone=20")],
            thresholds: Some(vec![Threshold::PercentUsed(80)]),
            overage: Some(Overage::Allow { limit: Some(Credits::whole(7)) }),
            member_limits: Default::default(),
        };
        let cycle = Cycle { number: 0, start_ms: 0, end_ms: 1 };
        let mut view = AccountView::opened(now.clone(), cycle);
        let set = Change::Set(addon("email=500"));
        let both = vec![addon("email=500"), addon("phone=20")];
        assert_eq!(set.of(&view), Some(AccountConfig { addons: both.clone(), ..now.clone() }));
        // The plan that waits goes on waiting: putting the present one would take it back.
        let next = AccountConfig { plan: "basic".into(), interval: None, ..now.clone() };
        view.next = Some(next.clone());
        assert_eq!(set.of(&view), Some(AccountConfig { addons: both, ..next.clone() }));
        assert_eq!(Change::Set(addon("phone=7")).of(&view).unwrap().addons, [addon("phone=7")]);
        assert_eq!(Change::Remove("phone".into()).of(&view), Some(AccountConfig { addons: vec![], ..next }));
        assert_eq!(Change::Remove("fax".into()).of(&view), None);
    }
}
