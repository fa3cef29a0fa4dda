//! The price list: whether a file is good, and what it says at a date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::output::{Output, time};
use super::source::now_ms;
use super::{Ended, values};
use crate::config::{Config, ConfigError, at_line, read_catalogue_file};
use crate::ledger::catalogue::{Action, Amount, Catalogue, ChargeOnce, Entitlement, Plan, Price, entitled, in_force};
use crate::ledger::credits::Credits;

#[derive(Debug, Subcommand)]
pub enum CatalogueCommand {
    /// Check a price list, and whether it only adds to an older one
    Check(CheckArgs),
    /// Show what each action costs, per plan, at a date
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file; without it the one that catalogue.path names
    pub file: Option<PathBuf>,
    /// Refuse what changes a price of this file by which events may have been judged
    #[arg(long, value_name = "OLD")]
    pub against: Option<PathBuf>,
    /// With --against: events dated up to this time may have been judged [default: now]
    #[arg(long, value_name = "TIME", value_parser = values::time, requires = "against")]
    pub priced_up_to: Option<i64>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The file; without it the one that catalogue.path names
    pub file: Option<PathBuf>,
    /// A date like 2027-01-01 or a time like 2027-01-01T12:00:00Z [default: now]
    #[arg(long, value_name = "DATE", value_parser = values::time)]
    pub at: Option<i64>,
    /// Only this plan
    #[arg(long)]
    pub plan: Option<String>,
}

pub fn run(command: CatalogueCommand, config: &Config, output: Output) -> anyhow::Result<Ended> {
    match command {
        CatalogueCommand::Check(args) => check(args, config, output),
        CatalogueCommand::Show(args) => show(args, config, output),
    }
}

#[derive(Serialize)]
struct CheckShown<'a> {
    file: String,
    good: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    /// When the first thing changes that the older file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_change: Option<String>,
}

fn check(args: CheckArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let file = args.file.as_deref().unwrap_or(&config.catalogue.path);
    let read = match read_grown(file, &args) {
        Ok(read) => read,
        Err(refused) if output.json => {
            let (file, reason) = (file.display().to_string(), Some(refused.to_string()));
            let shown = CheckShown { file, good: false, reason, version: None, hash: None, first_change: None };
            output.answer(&shown, String::new)?;
            return Ok(Ended::Badly);
        }
        Err(refused) => return Err(refused.into()),
    };
    let (catalogue, starts_ms) = read;
    let shown = CheckShown {
        file: file.display().to_string(),
        good: true,
        reason: None,
        version: Some(catalogue.id.version),
        hash: Some(&catalogue.id.hash),
        first_change: starts_ms.map(time),
    };
    let text = || {
        let (version, actions, plans) = (catalogue.id.version, catalogue.actions.len(), catalogue.plans.len());
        let head = format!("{} is good: version {version}, {actions} actions, {plans} plans", file.display());
        match (&args.against, &shown.first_change) {
            (None, _) => head,
            (Some(old), None) => format!("{head}; it changes nothing that {} prices", old.display()),
            (Some(old), Some(first)) => format!("{head}; it differs from {} from {first} on", old.display()),
        }
    };
    output.answer(&shown, text)?;
    Ok(Ended::Well)
}

/// The file, and from when on it differs from the older one.
fn read_grown(file: &Path, args: &CheckArgs) -> Result<(Catalogue, Option<i64>), ConfigError> {
    let catalogue = read_catalogue_file(file)?;
    let Some(old) = &args.against else { return Ok((catalogue, None)) };
    let growth = catalogue.grows_from(&read_catalogue_file(old)?);
    let checked = growth
        .and_then(|growth| growth.check_in_time(args.priced_up_to.unwrap_or_else(now_ms)).map(|()| growth.starts_ms()));
    let refused = |error: crate::ledger::catalogue::CatalogueError| ConfigError::Refused {
        place: at_line(file, error.line),
        reason: error.reason,
    };
    checked.map(|starts_ms| (catalogue, starts_ms)).map_err(refused)
}

#[derive(Serialize)]
struct Shown<'a> {
    version: u32,
    hash: &'a str,
    at: String,
    actions: BTreeMap<&'a str, ActionShown<'a>>,
    plans: BTreeMap<&'a str, PlanShown<'a>>,
}

#[derive(Serialize)]
struct ActionShown<'a> {
    credit_type: &'a str,
    free_outcomes: &'a [String],
    /// Of several events for the same contact, or company, within a cycle one is charged. `null`: each is.
    charge_once_by: Option<&'static str>,
    /// What was charged can be given back.
    voidable: bool,
    /// What plans pay that have no price of their own.
    prices: Vec<PriceShown<'a>>,
    /// Prices that are announced.
    later: Vec<PriceShown<'a>>,
}

#[derive(Clone, PartialEq, Serialize)]
struct PriceShown<'a> {
    credits: Credits,
    when: BTreeMap<&'static str, &'a str>,
    /// `null`: the beginning.
    since: Option<String>,
}

#[derive(Serialize)]
struct PlanShown<'a> {
    interval: &'static str,
    allowance: BTreeMap<&'a str, AmountShown>,
    allowance_since: Option<String>,
    later_allowances: Vec<AllowanceShown<'a>>,
    carry_over_max: &'a BTreeMap<String, Credits>,
    overage: String,
    thresholds: Vec<String>,
    /// What it is entitled to, with its prices, the first that holds counts.
    actions: BTreeMap<&'a str, Vec<PriceShown<'a>>>,
    /// Prices of its own that are announced.
    later: BTreeMap<&'a str, Vec<PriceShown<'a>>>,
    later_entitlements: Vec<EntitlementShown<'a>>,
}

/// A change that is announced.
#[derive(Serialize)]
struct EntitlementShown<'a> {
    since: String,
    action: &'a str,
    entitled: bool,
}

#[derive(Serialize)]
struct AllowanceShown<'a> {
    since: Option<String>,
    amounts: BTreeMap<&'a str, AmountShown>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AmountShown {
    Limited(Credits),
    Unlimited(&'static str),
}

impl std::fmt::Display for AmountShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AmountShown::Limited(credits) => credits.fmt(f),
            AmountShown::Unlimited(word) => f.write_str(word),
        }
    }
}

fn show(args: ShowArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let catalogue = read_catalogue_file(args.file.as_deref().unwrap_or(&config.catalogue.path))?;
    if let Some(plan) = args.plan.as_ref().filter(|plan| !catalogue.plans.contains_key(*plan)) {
        let known: Vec<&str> = catalogue.plans.keys().map(String::as_str).collect();
        bail!("plan {plan} is none of {}", known.join(", "));
    }
    let shown = Shown::of(&catalogue, args.at.unwrap_or_else(now_ms), args.plan.as_deref());
    output.answer(&shown, || shown.text())?;
    Ok(Ended::Well)
}

impl<'a> Shown<'a> {
    fn of(catalogue: &'a Catalogue, at_ms: i64, plan: Option<&str>) -> Shown<'a> {
        let plans = catalogue.plans.iter().filter(|(name, _)| plan.is_none_or(|plan| plan == *name));
        let plans: BTreeMap<_, _> =
            plans.map(|(name, plan)| (name.as_str(), PlanShown::of(catalogue, plan, at_ms))).collect();
        let entitled = |name: &str| plan.is_none() || plans.values().any(|plan| plan.actions.contains_key(name));
        let actions = catalogue.actions.iter().filter(|(name, _)| entitled(name));
        let actions = actions.map(|(name, action)| (name.as_str(), ActionShown::of(action, at_ms)));
        Shown {
            version: catalogue.id.version,
            hash: &catalogue.id.hash,
            at: time(at_ms),
            actions: actions.collect(),
            plans,
        }
    }

    fn text(&self) -> String {
        let head = format!("catalogue version {} at {}", self.version, self.at);
        let later = self.later();
        let later = if later.is_empty() { String::new() } else { format!("\n\nlater\n{}", later.join("\n")) };
        format!("{head}\n\n{}\n\n{}{later}", self.prices(), self.plans())
    }

    /// A row for each price, with the plans that pay it.
    fn prices(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "action",
            "plans",
            "credits",
            "price",
            "when",
            "since",
            "charged once by",
            "voidable",
            "free outcomes",
        ]);
        for (name, action) in &self.actions {
            let mut payers: Vec<(Vec<&str>, &[PriceShown])> = Vec::new();
            for (plan, prices) in self.plans.iter().filter_map(|(plan, shown)| Some((plan, shown.actions.get(name)?))) {
                match payers.iter_mut().find(|(_, own)| own == prices) {
                    Some((plans, _)) => plans.push(plan),
                    None => payers.push((vec![plan], prices)),
                }
            }
            if payers.is_empty() {
                payers.push((vec!["none"], &action.prices));
            }
            for (plans, prices) in payers {
                for price in prices {
                    table.add_row([
                        (*name).to_owned(),
                        plans.join(", "),
                        action.credit_type.to_owned(),
                        price.credits.to_string(),
                        price.condition(),
                        price.since.clone().unwrap_or_default(),
                        action.charge_once_by.unwrap_or_default().to_owned(),
                        if action.voidable { "yes" } else { "" }.to_owned(),
                        action.free_outcomes.join(", "),
                    ]);
                }
            }
        }
        right(&mut table, 3);
        table
    }

    fn plans(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["plan", "interval", "allowance", "since", "carries over", "overage", "thresholds"]);
        for (name, plan) in &self.plans {
            let carried = plan.carry_over_max.iter().map(|(credit_type, max)| format!("{credit_type} {max}"));
            table.add_row([
                (*name).to_owned(),
                plan.interval.to_owned(),
                amounts(&plan.allowance),
                plan.allowance_since.clone().unwrap_or_default(),
                carried.collect::<Vec<_>>().join(", "),
                plan.overage.clone(),
                plan.thresholds.join(", "),
            ]);
        }
        table
    }

    /// What is announced, in the order of time.
    fn later(&self) -> Vec<String> {
        let mut lines = BTreeSet::new();
        let mut add = |since: &Option<String>, what: String| {
            lines.insert(format!("{}  {what}", since.as_deref().unwrap_or_default()));
        };
        let price = |name: &str, price: &PriceShown| {
            let condition = if price.when.is_empty() { String::new() } else { format!(" when {}", price.condition()) };
            format!("{name} costs {}{condition}", price.credits)
        };
        for (name, action) in &self.actions {
            action.later.iter().for_each(|each| add(&each.since, price(name, each)));
        }
        for (plan, shown) in &self.plans {
            for (name, prices) in &shown.later {
                prices.iter().for_each(|each| add(&each.since, format!("plan {plan}: {}", price(name, each))));
            }
            for EntitlementShown { since, action, entitled } in &shown.later_entitlements {
                let what = if *entitled { "entitled to" } else { "no longer entitled to" };
                add(&Some(since.clone()), format!("plan {plan}: {what} {action}"));
            }
            for each in &shown.later_allowances {
                add(&each.since, format!("plan {plan}: allowance {}", amounts(&each.amounts)));
            }
        }
        lines.into_iter().collect()
    }
}

impl<'a> ActionShown<'a> {
    fn of(action: &'a Action, at_ms: i64) -> ActionShown<'a> {
        ActionShown {
            credit_type: &action.credit_type,
            free_outcomes: &action.free_outcomes,
            charge_once_by: action.charge_once.map(ChargeOnce::name),
            voidable: action.voidable,
            prices: shown(in_force(&action.prices, at_ms)),
            later: later(&action.prices, at_ms),
        }
    }
}

impl<'a> PlanShown<'a> {
    fn of(catalogue: &'a Catalogue, plan: &'a Plan, at_ms: i64) -> PlanShown<'a> {
        let prices = |name: &'a str| (name, shown(paid(&catalogue.actions[name], plan.prices.get(name), at_ms)));
        let starts = |from_ms: Option<i64>| from_ms.filter(|from_ms| *from_ms <= at_ms);
        let announced = plan.allowances.iter().filter(|each| each.from_ms.is_some_and(|from_ms| from_ms > at_ms));
        let announced = announced
            .map(|each| AllowanceShown { since: each.from_ms.map(time), amounts: amounts_shown(&each.amounts) })
            .collect();
        PlanShown {
            interval: plan.interval.name(),
            allowance: amounts_shown(plan.allowance_at(at_ms)),
            allowance_since: plan.allowances.iter().filter_map(|each| starts(each.from_ms)).next_back().map(time),
            later_allowances: announced,
            carry_over_max: &plan.carry_over_max,
            overage: plan.overage.to_string(),
            thresholds: plan.thresholds.iter().map(ToString::to_string).collect(),
            actions: plan.entitled_at(at_ms).map(prices).collect(),
            later: plan.prices.iter().map(|(name, prices)| (name.as_str(), later(prices, at_ms))).collect(),
            later_entitlements: later_entitlements(plan, at_ms),
        }
    }
}

/// What a plan pays for an action: its own prices, and the general ones for what those leave open.
fn paid<'a>(action: &'a Action, own: Option<&'a Vec<Price>>, at_ms: i64) -> Vec<&'a Price> {
    let mut paid = own.map(|own| in_force(own, at_ms)).unwrap_or_default();
    if paid.iter().all(|price| !price.when.is_empty()) {
        let general = in_force(&action.prices, at_ms).into_iter();
        let open: Vec<_> = general.filter(|price| paid.iter().all(|own| own.when != price.when)).collect();
        paid.extend(open);
    }
    paid
}

fn later_entitlements(plan: &Plan, at_ms: i64) -> Vec<EntitlementShown<'_>> {
    let mut changes: Vec<(i64, EntitlementShown)> = Vec::new();
    for (action, when) in &plan.actions {
        let bounds = when.iter().flat_map(Entitlement::bounds).filter(|bound_ms| *bound_ms > at_ms);
        let changing = bounds.filter(|bound_ms| entitled(when, *bound_ms) != entitled(when, *bound_ms - 1));
        changes.extend(changing.map(|bound_ms| {
            (bound_ms, EntitlementShown { since: time(bound_ms), action, entitled: entitled(when, bound_ms) })
        }));
    }
    changes.sort_by_key(|(bound_ms, change)| (*bound_ms, change.action));
    changes.into_iter().map(|(_, change)| change).collect()
}

fn later(prices: &[Price], at_ms: i64) -> Vec<PriceShown<'_>> {
    let announced = prices.iter().filter(|price| price.from_ms.is_some_and(|from_ms| from_ms > at_ms));
    let mut announced: Vec<&Price> = announced.collect();
    announced.sort_by_key(|price| price.from_ms);
    shown(announced)
}

fn shown(prices: Vec<&Price>) -> Vec<PriceShown<'_>> {
    prices.into_iter().map(PriceShown::of).collect()
}

impl PriceShown<'_> {
    fn of(price: &Price) -> PriceShown<'_> {
        PriceShown {
            credits: price.credits,
            when: price.when.fields().map(|(field, value)| (field.name(), value)).collect(),
            since: price.from_ms.map(time),
        }
    }

    fn condition(&self) -> String {
        let fields: Vec<_> = self.when.iter().map(|(field, value)| format!("{field} = {value}")).collect();
        fields.join(", ")
    }
}

fn amounts_shown(amounts: &BTreeMap<String, Amount>) -> BTreeMap<&str, AmountShown> {
    let one = |amount: &Amount| match amount {
        Amount::Limited(credits) => AmountShown::Limited(*credits),
        Amount::Unlimited => AmountShown::Unlimited("unlimited"),
    };
    amounts.iter().map(|(credit_type, amount)| (credit_type.as_str(), one(amount))).collect()
}

fn amounts(amounts: &BTreeMap<&str, AmountShown>) -> String {
    amounts.iter().map(|(credit_type, amount)| format!("{credit_type} {amount}")).collect::<Vec<_>>().join(", ")
}

fn right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        version = 3
        [credit_types.email]
        [credit_types.phone]
        [actions.reveal_email]
        prices = [{ credit_type = "email", credits = 1 }]
        free_outcomes = ["not_found"]
        [actions.reveal_phone]
        prices = [
          { credit_type = "phone", credits = 1 },
          { credit_type = "phone", credits = 1.5, effective_from = "2027-01-01T00:00:00Z" },
          { credit_type = "phone", credits = 3, when = { source = "premium" } },
        ]
        charge_once = { by = "contact" }
        [plans.basic]
        interval = "monthly"
        actions = ["reveal_email", "reveal_phone"]
        [[plans.basic.allowance]]
        email = 1000
        [[plans.basic.allowance]]
        effective_from = "2027-02-01T00:00:00Z"
        email = "unlimited"
        [plans.organization]
        interval = "annual"
        allowance = { phone = 12 }
        actions = [
          "reveal_phone",
          { action = "reveal_email", effective_from = "2027-04-01T00:00:00Z", effective_until = "2027-05-01T00:00:00Z" },
          { action = "reveal_email", effective_from = "2027-05-01T00:00:00Z", effective_until = "2027-06-01T00:00:00Z" },
        ]
        prices = { reveal_phone = 0.8 }
    "#;

    fn shown_at(date: &str, plan: Option<&str>) -> serde_json::Value {
        let catalogue = Catalogue::parse(TEXT).unwrap();
        serde_json::to_value(Shown::of(&catalogue, values::time(date).unwrap(), plan)).unwrap()
    }

    #[test]
    fn what_counts_at_a_date_is_shown_per_plan() {
        let now = shown_at("2026-06-01", None);
        let premium = serde_json::json!({"credits": 3, "when": {"source": "premium"}, "since": null});
        let usual = serde_json::json!({"credits": 1, "when": {}, "since": null});
        assert_eq!(now["plans"]["basic"]["actions"]["reveal_phone"], serde_json::json!([premium, usual]));
        let own = serde_json::json!([{"credits": 0.8, "when": {}, "since": null}]);
        assert_eq!(now["plans"]["organization"]["actions"]["reveal_phone"], own);
        assert_eq!(now["plans"]["basic"]["allowance"], serde_json::json!({"email": 1000}));
        assert_eq!(now["actions"]["reveal_phone"]["later"][0]["credits"], 1.5);
        assert_eq!(now["actions"]["reveal_phone"]["charge_once_by"], "contact");
        assert_eq!(now["actions"]["reveal_email"]["charge_once_by"], serde_json::Value::Null);

        let later = shown_at("2027-02-01T00:00:00Z", Some("basic"));
        let dearer = serde_json::json!({"credits": 1.5, "when": {}, "since": "2027-01-01T00:00:00Z"});
        assert_eq!(later["plans"]["basic"]["actions"]["reveal_phone"], serde_json::json!([premium, dearer]));
        assert_eq!(later["plans"]["basic"]["allowance"], serde_json::json!({"email": "unlimited"}));
        assert_eq!(later["plans"]["basic"]["allowance_since"], "2027-02-01T00:00:00Z");
        assert!(later["plans"].get("organization").is_none());
        let actions = |date: &str| shown_at(date, Some("organization"))["actions"].as_object().unwrap().len();
        assert_eq!(["2026-06-01", "2027-04-01", "2027-06-01"].map(actions), [1, 2, 1]);
        let changes = serde_json::json!([
            {"since": "2027-04-01T00:00:00Z", "action": "reveal_email", "entitled": true},
            {"since": "2027-06-01T00:00:00Z", "action": "reveal_email", "entitled": false},
        ]);
        assert_eq!(shown_at("2026-06-01", None)["plans"]["organization"]["later_entitlements"], changes);
        let last = &shown_at("2027-04-01", None)["plans"]["organization"]["later_entitlements"];
        assert_eq!(*last, serde_json::json!([changes[1]]));
    }

    #[test]
    fn the_text_has_a_row_for_each_price_and_what_comes_later() {
        let catalogue = Catalogue::parse(TEXT).unwrap();
        let text = Shown::of(&catalogue, values::time("2026-06-01").unwrap(), None).text();
        let row = |cells: &[&str]| {
            let line = text.lines().find(|line| cells.iter().all(|cell| line.contains(cell)));
            assert!(line.is_some(), "no row with {cells:?} in\n{text}");
        };
        row(&["reveal_email", "basic", "email", "1", "not_found"]);
        row(&["reveal_phone", "basic", "phone", "3", "source = premium"]);
        row(&["reveal_phone", "organization", "phone", "0.8", "contact"]);
        row(&["2027-01-01T00:00:00Z", "reveal_phone costs 1.5"]);
        row(&["2027-02-01T00:00:00Z", "plan basic: allowance email unlimited"]);
        row(&["2027-04-01T00:00:00Z", "plan organization: entitled to reveal_email"]);
        row(&["2027-06-01T00:00:00Z", "plan organization: no longer entitled to reveal_email"]);
    }
}
