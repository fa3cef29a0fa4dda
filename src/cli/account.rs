//! Commands to accounts, and what an account is.

use std::time::Duration;

use anyhow::Context;
use chrono::{NaiveDate, Utc};
use chrono_tz::Tz;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Output};
use super::request::{self, Request};
use super::{Ended, values};
use crate::config::Config;
use crate::ledger::account::{AccountConfig, AccountView, Addon, Life};
use crate::ledger::catalogue::{Amount, Overage, Threshold};
use crate::ledger::closed::ClosedCycle;
use crate::ledger::command::{ACCOUNT_CLOSE, ACCOUNT_PUT};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::{Cycle, Interval};
use crate::ledger::grants::{GrantKind, Lot};
use crate::ledger::members::MemberLimit;
use crate::note;
use crate::report::{CycleShown, settled, state, unknown};

#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Create an account, or set its configuration as a whole
    Put(PutArgs),
    /// Show an account's configuration, cycle and grants
    Get(GetArgs),
    /// Close an account now and for good: it cannot be opened again
    Close(CloseArgs),
}

#[derive(Debug, Args)]
pub struct PutArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
    /// A plan of the catalogue
    #[arg(long, value_parser = values::name)]
    pub plan: String,
    /// The day from which cycles are counted, for instance 2026-01-31
    #[arg(long, value_name = "DATE", value_parser = values::date)]
    pub anchor: NaiveDate,
    /// Instead of the plan's: monthly, quarterly, semi_annual or annual
    #[arg(long, value_parser = values::interval)]
    pub interval: Option<Interval>,
    /// Where midnight is, for instance Europe/Paris [default: UTC]
    #[arg(long, value_parser = values::timezone)]
    pub timezone: Option<Tz>,
    /// Credits on top of the plan, in each cycle; repeatable
    #[arg(long = "addon", value_name = "TYPE=AMOUNT", value_parser = values::addon)]
    pub addons: Vec<Addon>,
    /// When to alert, instead of the plan's: `80%` used or `remaining 100`; repeatable
    #[arg(long = "threshold", value_name = "THRESHOLD", value_parser = values::threshold)]
    pub thresholds: Vec<Threshold>,
    /// Instead of the plan's: reject, cap, allow or allow:LIMIT
    #[arg(long, value_parser = values::overage)]
    pub overage: Option<Overage>,
    /// The most of a credit type that each member may use in a cycle, or one: `email=50`, `email:ada=200`; repeatable
    #[arg(long = "member-limit", value_name = "TYPE[:MEMBER]=AMOUNT", value_parser = values::member_limit)]
    pub member_limits: Vec<MemberLimit>,
    #[command(flatten)]
    pub sending: Sending,
}

#[derive(Debug, Args)]
pub struct Sending {
    /// Names the command: the same id counts once [default: a new one]
    #[arg(long, value_parser = values::name)]
    pub id: Option<String>,
    /// How long to wait for the meter's answer once Kafka has the command
    #[arg(long, default_value = "30s", value_parser = values::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
}

#[derive(Debug, Args)]
pub struct CloseArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    #[command(flatten)]
    pub sending: Sending,
}

pub async fn put(args: PutArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let today = Utc::now().with_timezone(&args.timezone.unwrap_or(Tz::UTC)).date_naive();
    if args.anchor > today {
        note!("the anchor {} is still to come: cycles are counted back from it, and one is open at once", args.anchor);
    }
    let data = AccountData {
        plan: args.plan,
        anchor: args.anchor,
        interval: args.interval.map(Interval::name),
        timezone: args.timezone.map(Tz::name),
        addons: args.addons.into_iter().map(AddonData::from).collect(),
        thresholds: Some(texts(&args.thresholds)).filter(|texts| !texts.is_empty()),
        overage: args.overage.map(OverageData::from),
        member_limits: args.member_limits.into_iter().map(MemberLimitData::from).collect(),
    };
    let Sending { id, timeout } = args.sending;
    let request = Request { account: args.account, command_type: ACCOUNT_PUT, id, data, timeout };
    request::send(request, config, output).await
}

pub async fn close(args: CloseArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let Sending { id, timeout } = args.sending;
    let request = Request { account: args.account, command_type: ACCOUNT_CLOSE, id, data: CloseData {}, timeout };
    request::send(request, config, output).await
}

pub async fn get(args: GetArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let stored = state::open(config).await?.account(&args.account).await?;
    let stored = stored.with_context(|| unknown(&args.account))?;
    let view = settled(&stored).view();
    let shown = Shown::of(&args.account, &view);
    output.answer(&shown, || shown.text())?;
    Ok(Ended::Well)
}

/// `data` of `credits.account.put.v1`.
#[derive(Debug, Serialize)]
pub struct AccountData {
    pub plan: String,
    pub anchor: NaiveDate,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addons: Vec<AddonData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overage: Option<OverageData>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub member_limits: Vec<MemberLimitData>,
}

#[derive(Debug, Serialize)]
pub struct AddonData {
    pub credit_type: String,
    pub amount: Credits,
}

#[derive(Debug, Serialize)]
pub struct MemberLimitData {
    pub credit_type: String,
    pub amount: Credits,
    /// Absent: for each member who has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum OverageData {
    Name(&'static str),
    Limited { allow: LimitData },
}

#[derive(Debug, Serialize)]
pub struct LimitData {
    limit: Credits,
}

/// `data` of `credits.account.close.v1`.
#[derive(Debug, Serialize)]
struct CloseData {}

impl From<Addon> for AddonData {
    fn from(addon: Addon) -> AddonData {
        AddonData { credit_type: addon.credit_type, amount: addon.amount }
    }
}

impl From<MemberLimit> for MemberLimitData {
    fn from(limit: MemberLimit) -> MemberLimitData {
        let user = limit.user.map(|user| user.to_string());
        MemberLimitData { credit_type: limit.credit_type, amount: limit.amount, user }
    }
}

impl From<Overage> for OverageData {
    fn from(overage: Overage) -> OverageData {
        match overage {
            Overage::Reject => OverageData::Name("reject"),
            Overage::Cap => OverageData::Name("cap"),
            Overage::Allow { limit: None } => OverageData::Name("allow"),
            Overage::Allow { limit: Some(limit) } => OverageData::Limited { allow: LimitData { limit } },
        }
    }
}

fn texts(thresholds: &[Threshold]) -> Vec<String> {
    thresholds.iter().map(Threshold::to_string).collect()
}

#[derive(Serialize)]
struct Shown<'a> {
    account: &'a str,
    version: u64,
    #[serde(flatten)]
    config: AccountData,
    /// What waits for the renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<AccountData>,
    life: &'static str,
    cycle: CycleShown,
    grants: Vec<GrantShown<'a>>,
    /// Closed cycles to which late use is still charged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    closed: Vec<CycleShown>,
}

#[derive(Serialize)]
struct GrantShown<'a> {
    kind: &'static str,
    credit_type: &'a str,
    /// `null`: unlimited.
    amount: Option<Credits>,
    #[serde(flatten)]
    lot: Option<LotShown<'a>>,
}

/// A top-up or promo; `amount` is then what is left of it.
#[derive(Serialize)]
struct LotShown<'a> {
    command_id: &'a str,
    priority: u32,
    effective_at: String,
    /// `null`: the end of the cycle in which it begins.
    expires_at: Option<String>,
    begun: bool,
}

impl<'a> From<&'a Lot> for GrantShown<'a> {
    fn from(lot: &'a Lot) -> GrantShown<'a> {
        let shown = LotShown {
            command_id: &lot.command_id,
            priority: lot.priority,
            effective_at: output::time(lot.effective_ms),
            expires_at: lot.expires_ms.map(output::time),
            begun: lot.begun,
        };
        let (kind, credit_type) = (lot.kind.name(), lot.credit_type.as_str());
        GrantShown { kind, credit_type, amount: Some(lot.left), lot: Some(shown) }
    }
}

/// What plan, add-ons and adjustments gave in the open cycle, and what came from the one before.
fn pools(view: &AccountView) -> impl Iterator<Item = GrantShown<'_>> {
    let given = view.pools.iter().flat_map(|(credit_type, pool)| {
        GrantKind::ALL.into_iter().map(move |kind| (credit_type, kind, pool.granted.of(kind)))
    });
    given.filter_map(|(credit_type, kind, amount)| {
        let lot = matches!(kind, GrantKind::Topup | GrantKind::Promo);
        let amount = match amount {
            Amount::Limited(Credits::ZERO) => return None,
            Amount::Limited(amount) => Some(amount),
            Amount::Unlimited => None,
        };
        (!lot).then_some(GrantShown { kind: kind.name(), credit_type, amount, lot: None })
    })
}

impl From<&AccountConfig> for AccountData {
    fn from(config: &AccountConfig) -> AccountData {
        AccountData {
            plan: config.plan.clone(),
            anchor: config.anchor,
            interval: config.interval.map(Interval::name),
            timezone: Some(config.timezone.name()),
            addons: config.addons.iter().cloned().map(AddonData::from).collect(),
            thresholds: config.thresholds.as_deref().map(texts),
            overage: config.overage.map(OverageData::from),
            member_limits: config.member_limits.iter().cloned().map(MemberLimitData::from).collect(),
        }
    }
}

pub fn closed_cycle(number: i32, closed: &ClosedCycle) -> Cycle {
    Cycle { number, start_ms: closed.start_ms, end_ms: closed.end_ms }
}

/// What a renewal changes of what decides of cycles and grants.
fn brought(now: &AccountData, next: &AccountData) -> String {
    let shown = |config: &AccountData| {
        [
            format!("plan {}", config.plan),
            format!("anchor {}", config.anchor),
            format!("interval {}", config.interval.unwrap_or("of the plan")),
            format!("time zone {}", config.timezone.unwrap_or("UTC")),
        ]
    };
    let differ = shown(next).into_iter().zip(shown(now)).filter(|(next, now)| next != now);
    let differ: Vec<String> = differ.map(|(next, _)| next).collect();
    if differ.is_empty() { "other add-ons or policies".to_owned() } else { differ.join(", ") }
}

impl<'a> Shown<'a> {
    fn of(account: &'a str, view: &'a AccountView) -> Shown<'a> {
        Shown {
            account,
            version: view.version,
            config: AccountData::from(&view.config),
            next: view.next.as_ref().map(AccountData::from),
            life: view.life.name(),
            cycle: view.cycle.into(),
            grants: pools(view).chain(view.lots.values().map(GrantShown::from)).collect(),
            closed: view.closed.iter().map(|(number, closed)| closed_cycle(*number, closed).into()).collect(),
        }
    }

    fn text(&self) -> String {
        let config = &self.config;
        let mut lines = vec![
            format!("account   {} (version {})", self.account, self.version),
            format!("plan      {}", config.plan),
            format!("anchor    {}, {}", config.anchor, config.timezone.unwrap_or("UTC")),
            format!("cycle     {}: {} to {}", self.cycle.number, self.cycle.start, self.cycle.end),
        ];
        if self.life != Life::Open.name() {
            lines.push(format!("closed    {}", self.cycle.end));
        }
        lines.extend(self.next.as_ref().map(|next| format!("renewal   brings {}", brought(config, next))));
        lines.extend(config.interval.map(|interval| format!("interval  {interval}")));
        lines.extend(config.addons.iter().map(|addon| format!("addon     {} {}", addon.credit_type, addon.amount)));
        lines.extend(config.thresholds.as_ref().map(|all| format!("alerts    {}", all.join(", "))));
        lines.extend(config.overage.as_ref().map(|overage| match overage {
            OverageData::Name(name) => format!("overage   {name}"),
            OverageData::Limited { allow } => format!("overage   allow up to {}", allow.limit),
        }));
        lines.extend(config.member_limits.iter().map(|limit| {
            let member = limit.user.as_ref().map_or("each".to_owned(), |user| format!("member {user}"));
            format!("limit     {} {} for {member} in a cycle", limit.credit_type, limit.amount)
        }));
        lines.extend(self.grants.iter().map(|grant| {
            let amount = grant.amount.map_or("unlimited".to_owned(), |amount| amount.to_string());
            let lot = grant.lot.as_ref();
            let from = lot.filter(|lot| !lot.begun).map_or(String::new(), |lot| format!(" from {}", lot.effective_at));
            let until = lot.and_then(|lot| lot.expires_at.as_ref());
            let until = until.map_or(String::new(), |until| format!(" until {until}"));
            let command = lot.map_or(String::new(), |lot| format!(" by {}", lot.command_id));
            format!("grant     {} {} {amount}{from}{until}{command}", grant.kind, grant.credit_type)
        }));
        let closed = self.closed.iter();
        lines.extend(closed.map(|cycle| format!("late use  still counts in cycle {}, to {}", cycle.number, cycle.end)));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::AccountConfig;

    #[test]
    fn amounts_are_written_as_exact_numbers() {
        let data = AccountData {
            plan: "basic".into(),
            anchor: "2026-01-31".parse().unwrap(),
            interval: None,
            timezone: Some("Europe/Paris"),
            addons: vec![AddonData { credit_type: "email".into(), amount: Credits::from_thousandths(500_001) }],
            thresholds: Some(vec!["80%".into()]),
            overage: Some(Overage::Allow { limit: Some(Credits::whole(5000)) }.into()),
            member_limits: ["email=50", "email:ada=0.5"].map(|text| values::member_limit(text).unwrap().into()).into(),
        };
        let json = r#"{"plan":"basic","anchor":"2026-01-31","timezone":"Europe/Paris","addons":[{"credit_type":"email","amount":500.001}],"thresholds":["80%"],"overage":{"allow":{"limit":5000}},"member_limits":[{"credit_type":"email","amount":50},{"credit_type":"email","amount":0.5,"user":"ada"}]}"#;
        assert_eq!(serde_json::to_string(&data).unwrap(), json);
    }

    #[test]
    fn an_account_is_shown_in_credits() {
        let config = AccountConfig {
            plan: "basic".into(),
            anchor: "2026-01-31".parse().unwrap(),
            interval: None,
            timezone: Tz::UTC,
            addons: vec![],
            thresholds: None,
            overage: Some(Overage::Allow { limit: None }),
            member_limits: Default::default(),
        };
        let lot = Lot {
            kind: GrantKind::Topup,
            credit_type: "email".into(),
            left: Credits::from_thousandths(1500),
            used: Default::default(),
            priority: 100,
            effective_ms: 1_772_236_800_000,
            expires_ms: None,
            begun: true,
            command_id: "c-1".into(),
        };
        let view = AccountView {
            version: 2,
            config,
            next: None,
            life: Life::Open,
            since_ms: 1_772_236_800_000,
            cycle: Cycle { number: 1, start_ms: 1_772_236_800_000, end_ms: 1_774_915_200_000 },
            pools: Default::default(),
            lots: [(7, lot)].into_iter().collect(),
            closed: Default::default(),
            days: Default::default(),
            marks: Default::default(),
        };
        let json = concat!(
            r#"{"account":"team-1","version":2,"plan":"basic","anchor":"2026-01-31","timezone":"UTC","overage":"allow","#,
            r#""life":"open","cycle":{"number":1,"start":"2026-02-28T00:00:00Z","end":"2026-03-31T00:00:00Z"},"#,
            r#""grants":[{"kind":"topup","credit_type":"email","amount":1.5,"command_id":"c-1","priority":100,"#,
            r#""effective_at":"2026-02-28T00:00:00Z","expires_at":null,"begun":true}]}"#
        );
        assert_eq!(serde_json::to_string(&Shown::of("team-1", &view)).unwrap(), json);

        let brings = |change: fn(&mut AccountConfig)| {
            let mut next = view.config.clone();
            change(&mut next);
            let text = Shown::of("team-1", &AccountView { next: Some(next), ..view.clone() }).text();
            text.lines().find_map(|line| line.strip_prefix("renewal   brings ")).map(str::to_owned)
        };
        assert_eq!(brings(|next| next.plan = "free".into()).as_deref(), Some("plan free"));
        let moved = brings(|next| {
            next.anchor = "2026-02-15".parse().unwrap();
            next.timezone = Tz::Europe__Paris;
        });
        assert_eq!(moved.as_deref(), Some("anchor 2026-02-15, time zone Europe/Paris"));
        assert_eq!(brings(|next| next.overage = None).as_deref(), Some("other add-ons or policies"));
    }
}
