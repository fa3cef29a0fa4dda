//! The price list: credit types, what each action costs, and what each plan allows.
//!
//! Read from TOML text. A bad catalogue is refused whole, with the line and the reason; the caller adds the file.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use xxhash_rust::xxh3::xxh3_128;

use super::credits::Credits;
use super::cycle::Interval;

/// A call names a credit type with a byte.
const CREDIT_TYPES_MAX: usize = 64;

/// A checked price list.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    pub id: CatalogueId,
    pub credit_types: Vec<String>,
    pub actions: BTreeMap<String, Action>,
    pub plans: BTreeMap<String, Plan>,
}

/// Which price list a worker judges by. Workers with different ones must not write to the same shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueId {
    pub version: u32,
    /// Of the content, not of the text: comments and order do not count.
    pub hash: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub credit_type: String,
    /// What one unit costs.
    pub price: Credits,
    /// Values of the event's `outcome` for which nothing is charged.
    pub free_outcomes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub interval: Interval,
    pub allowance: BTreeMap<String, Amount>,
    /// The actions that the plan is entitled to.
    pub actions: Vec<String>,
    pub overage: Overage,
    pub thresholds: Vec<Threshold>,
}

impl Plan {
    /// Whether nobody loses anything who changes to it from another plan.
    pub fn allows_all_of(&self, other: &Plan) -> bool {
        let at_least = |(credit_type, amount): (&String, &Amount)| match (self.allowance.get(credit_type), amount) {
            (Some(Amount::Unlimited), _) => true,
            (Some(Amount::Limited(own)), Amount::Limited(other)) => own >= other,
            (None, Amount::Limited(other)) => *other == Credits::ZERO,
            (_, Amount::Unlimited) => false,
        };
        other.allowance.iter().all(at_least) && other.actions.iter().all(|action| self.actions.contains(action))
    }
}

/// An amount of a credit type that an account may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Limited(Credits),
    /// Only counted: there is no balance.
    Unlimited,
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Amount::Limited(credits) => credits.fmt(f),
            Amount::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl Amount {
    pub fn plus(self, other: Amount) -> Amount {
        match (self, other) {
            (Amount::Limited(left), Amount::Limited(right)) => Amount::Limited(left + right),
            (Amount::Unlimited, _) | (_, Amount::Unlimited) => Amount::Unlimited,
        }
    }
}

/// What happens to an event that costs more than remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overage {
    /// It is denied.
    Reject,
    /// It takes what is left; the rest is never charged.
    Cap,
    /// It is charged beyond the grants, up to a limit for each credit type.
    Allow { limit: Option<Credits> },
}

/// When a low-balance alert is due. Part of the contract since version 1; judged by the alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Threshold {
    PercentUsed(u8),
    Remaining(Credits),
}

/// Why a catalogue is refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct CatalogueError {
    pub line: usize,
    pub reason: String,
}

impl Catalogue {
    pub fn parse(text: &str) -> Result<Catalogue, CatalogueError> {
        let written: Written = toml::from_str(text).map_err(|error| CatalogueError {
            line: line_of(text, error.span().unwrap_or(0..0)),
            reason: error.message().to_owned(),
        })?;
        Checker { text }.catalogue(written)
    }
}

impl Overage {
    pub fn parse(text: &str) -> Option<Overage> {
        match text {
            "reject" => Some(Overage::Reject),
            "cap" => Some(Overage::Cap),
            "allow" => Some(Overage::Allow { limit: None }),
            _ => None,
        }
    }
}

impl Threshold {
    /// `80%` (of the granted credits used) or `remaining 100` (credits).
    pub fn parse(text: &str) -> Option<Threshold> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u8 = percent.trim().parse().ok()?;
            return (percent <= 100).then_some(Threshold::PercentUsed(percent));
        }
        let credits = Credits::parse(text.strip_prefix("remaining ")?.trim()).ok()?;
        (credits >= Credits::ZERO).then_some(Threshold::Remaining(credits))
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Threshold::PercentUsed(percent) => write!(f, "{percent}%"),
            Threshold::Remaining(credits) => write!(f, "remaining {credits}"),
        }
    }
}

/// The file as it is written. Amounts keep their place, so that they are read from their text, not through a float.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: Spanned<i64>,
    credit_types: BTreeMap<Spanned<String>, WrittenCreditType>,
    actions: BTreeMap<Spanned<String>, WrittenAction>,
    plans: BTreeMap<Spanned<String>, WrittenPlan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCreditType {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAction {
    prices: Spanned<Vec<WrittenPrice>>,
    #[serde(default)]
    free_outcomes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPrice {
    credit_type: Spanned<String>,
    credits: Spanned<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPlan {
    interval: Spanned<String>,
    allowance: BTreeMap<Spanned<String>, Spanned<toml::Value>>,
    actions: Vec<Spanned<String>>,
    #[serde(default)]
    overage: Option<Spanned<WrittenOverage>>,
    #[serde(default)]
    thresholds: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenOverage {
    Name(String),
    Limited(WrittenAllow),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAllow {
    allow: WrittenLimit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimit {
    limit: toml::Value,
}

struct Checker<'a> {
    text: &'a str,
}

impl Checker<'_> {
    fn catalogue(&self, written: Written) -> Result<Catalogue, CatalogueError> {
        let version = u32::try_from(*written.version.get_ref())
            .ok()
            .filter(|version| *version >= 1)
            .ok_or_else(|| self.refuse(&written.version, "version must be a whole number of at least 1"))?;
        let mut credit_types = Vec::new();
        for name in written.credit_types.keys() {
            self.name(name, "credit type")?;
            credit_types.push(name.get_ref().clone());
        }
        credit_types.sort_unstable();
        let mut actions = BTreeMap::new();
        for (name, action) in written.actions {
            self.name(&name, "action")?;
            actions.insert(name.get_ref().clone(), self.action(&name, action, &credit_types)?);
        }
        let mut plans = BTreeMap::new();
        for (name, plan) in written.plans {
            self.name(&name, "plan")?;
            plans.insert(name.get_ref().clone(), self.plan(plan, &credit_types, &actions)?);
        }
        if credit_types.len() > CREDIT_TYPES_MAX {
            let reason = format!("there are {} credit types, at most {CREDIT_TYPES_MAX}", credit_types.len());
            return Err(self.refuse(&written.version, &reason));
        }
        let hash = format!("{:032x}", xxh3_128(canonical(&credit_types, &actions, &plans).as_bytes()));
        Ok(Catalogue { id: CatalogueId { version, hash }, credit_types, actions, plans })
    }

    fn action(
        &self,
        name: &Spanned<String>,
        written: WrittenAction,
        credit_types: &[String],
    ) -> Result<Action, CatalogueError> {
        let [price] = written.prices.get_ref().as_slice() else {
            let reason = format!("action `{}` needs exactly one price", name.get_ref());
            return Err(self.refuse(&written.prices, &reason));
        };
        self.known_credit_type(&price.credit_type, credit_types)?;
        let credits = self.credits(&price.credits)?;
        if credits > Credits::EVENT_MAX {
            let reason = format!("a price is at most {} credits", Credits::EVENT_MAX);
            return Err(self.refuse(&price.credits, &reason));
        }
        Ok(Action {
            credit_type: price.credit_type.get_ref().clone(),
            price: credits,
            free_outcomes: written.free_outcomes,
        })
    }

    fn plan(
        &self,
        written: WrittenPlan,
        credit_types: &[String],
        actions: &BTreeMap<String, Action>,
    ) -> Result<Plan, CatalogueError> {
        let interval = Interval::from_name(written.interval.get_ref()).ok_or_else(|| {
            let reason =
                format!("interval `{}` is none of monthly, quarterly, semi_annual, annual", written.interval.get_ref());
            self.refuse(&written.interval, &reason)
        })?;
        let mut allowance = BTreeMap::new();
        for (credit_type, amount) in &written.allowance {
            self.known_credit_type(credit_type, credit_types)?;
            let amount = match amount.get_ref().as_str() {
                Some("unlimited") => Amount::Unlimited,
                _ => Amount::Limited(self.credits(amount)?),
            };
            allowance.insert(credit_type.get_ref().clone(), amount);
        }
        let mut entitled = Vec::new();
        for action in &written.actions {
            if !actions.contains_key(action.get_ref()) {
                return Err(self.refuse(action, &format!("action `{}` is not defined", action.get_ref())));
            }
            entitled.push(action.get_ref().clone());
        }
        let overage = match &written.overage {
            None => Overage::Reject,
            Some(overage) => self.overage(overage)?,
        };
        let mut thresholds = Vec::new();
        for threshold in &written.thresholds {
            thresholds.push(Threshold::parse(threshold.get_ref()).ok_or_else(|| {
                let reason =
                    format!("threshold `{}` is neither like \"80%\" nor like \"remaining 100\"", threshold.get_ref());
                self.refuse(threshold, &reason)
            })?);
        }
        Ok(Plan { interval, allowance, actions: entitled, overage, thresholds })
    }

    fn overage(&self, written: &Spanned<WrittenOverage>) -> Result<Overage, CatalogueError> {
        let refused = || {
            let reason = "overage is \"reject\", \"cap\", \"allow\" or { allow = { limit = CREDITS } }";
            self.refuse(written, reason)
        };
        match written.get_ref() {
            WrittenOverage::Name(name) => Overage::parse(name).ok_or_else(refused),
            WrittenOverage::Limited(WrittenAllow { allow }) => {
                // An untagged value keeps no place in the text. The shortest text of a float is the one it was read from.
                let is_number = allow.limit.is_integer() || allow.limit.is_float();
                let limit = is_number.then(|| Credits::parse(&allow.limit.to_string()).ok()).flatten();
                let limit = limit.filter(|limit| *limit >= Credits::ZERO).ok_or_else(refused)?;
                Ok(Overage::Allow { limit: Some(limit) })
            }
        }
    }

    /// Names stand in Redis fields and metric labels, so their alphabet is small.
    fn name(&self, name: &Spanned<String>, what: &str) -> Result<(), CatalogueError> {
        let text = name.get_ref();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            let reason = format!("{what} `{text}`: a name is 1 to 64 of a-z, 0-9 and _");
            return Err(self.refuse(name, &reason));
        }
        Ok(())
    }

    fn known_credit_type(&self, name: &Spanned<String>, known: &[String]) -> Result<(), CatalogueError> {
        if known.contains(name.get_ref()) {
            return Ok(());
        }
        Err(self.refuse(name, &format!("credit type `{}` is not defined", name.get_ref())))
    }

    fn credits(&self, value: &Spanned<toml::Value>) -> Result<Credits, CatalogueError> {
        let is_number = value.get_ref().is_integer() || value.get_ref().is_float();
        let text = self.text[value.span()].replace('_', "");
        if !is_number {
            return Err(self.refuse(value, &format!("{text} is not an amount of credits")));
        }
        let credits = Credits::parse(&text).map_err(|error| self.refuse(value, &error.to_string()))?;
        if credits < Credits::ZERO {
            return Err(self.refuse(value, "an amount of credits is not negative"));
        }
        Ok(credits)
    }

    fn refuse<T>(&self, place: &Spanned<T>, reason: &str) -> CatalogueError {
        CatalogueError { line: line_of(self.text, place.span()), reason: reason.to_owned() }
    }
}

/// The content in one spelling, for the hash that shards store: a line each, in the order of names. What a later
/// version adds is left out where a file does not use it, so that the hash of an unchanged file stays.
fn canonical(credit_types: &[String], actions: &BTreeMap<String, Action>, plans: &BTreeMap<String, Plan>) -> String {
    let sorted = |texts: &[String]| {
        let mut texts = texts.to_vec();
        texts.sort_unstable();
        texts.join(",")
    };
    let mut lines = vec![format!("credit_types {}", sorted(credit_types))];
    for (name, action) in actions {
        let Action { credit_type, price, free_outcomes } = action;
        lines.push(format!("action {name} {credit_type} {price} free={:?}", sorted(free_outcomes)));
    }
    for (name, plan) in plans {
        let allowance: Vec<_> =
            plan.allowance.iter().map(|(credit_type, amount)| format!("{credit_type}={amount}")).collect();
        let thresholds: Vec<_> = plan.thresholds.iter().map(Threshold::to_string).collect();
        let overage = match plan.overage {
            Overage::Reject => "reject".to_owned(),
            Overage::Cap => "cap".to_owned(),
            Overage::Allow { limit: None } => "allow".to_owned(),
            Overage::Allow { limit: Some(limit) } => format!("allow {limit}"),
        };
        lines.push(format!(
            "plan {name} {} {} actions={} overage={overage} thresholds={}",
            plan.interval.name(),
            sorted(&allowance),
            sorted(&plan.actions),
            sorted(&thresholds),
        ));
    }
    lines.join("\n")
}

fn line_of(text: &str, span: Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"version = 1
[credit_types.email]
[credit_types.phone]
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1 }]
[actions.reveal_phone]
prices = [{ credit_type = "phone", credits = 1.5 }]
free_outcomes = ["not_found"]
[plans.basic]
interval = "monthly"
allowance = { email = 1_000, phone = "unlimited" }
actions = ["reveal_email"]
overage = { allow = { limit = 50 } }
thresholds = ["80%", "remaining 2.5", "100%"]
"#;

    #[test]
    fn a_good_catalogue_is_read() {
        let catalogue = Catalogue::parse(GOOD).expect("it is good");
        assert_eq!(catalogue.actions["reveal_phone"].price, Credits::from_thousandths(1500));
        let basic = &catalogue.plans["basic"];
        assert_eq!(basic.allowance["email"], Amount::Limited(Credits::whole(1000)));
        assert_eq!(basic.allowance["phone"], Amount::Unlimited);
        assert_eq!(basic.overage, Overage::Allow { limit: Some(Credits::whole(50)) });
        assert_eq!(basic.thresholds[1], Threshold::Remaining(Credits::from_thousandths(2500)));
    }

    #[test]
    fn the_hash_is_of_the_content() {
        let hash = |text: &str| Catalogue::parse(text).expect("it is good").id.hash;
        assert_eq!(hash(GOOD), hash(&GOOD.replace("version = 1", "# priced by sales\nversion = 1")));
        assert_eq!(
            hash(GOOD),
            hash(&GOOD.replace("[\"80%\", \"remaining 2.5\", \"100%\"]", "[\"100%\", \"80%\", \"remaining 2.5\"]"))
        );
        assert_ne!(hash(GOOD), hash(&GOOD.replace("1.5", "1.6")));
        // Stored in every shard: a program that hashes the same file otherwise refuses to start.
        assert_eq!(hash(GOOD), "49d7341f7fd95e34b9855b24d71b38da");
    }

    #[test]
    fn a_bad_catalogue_is_refused_with_line_and_reason() {
        let check = |from: &str, to: &str, line: usize, reason: &str| {
            assert!(GOOD.contains(from), "{from}");
            let error = Catalogue::parse(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.line == line && error.reason.contains(reason), "{to}: {error}");
        };
        check("version = 1", "version = 0", 1, "at least 1");
        check("version = 1", "", 1, "missing field `version`");
        check("[credit_types.phone]", "[credit_types.Phone]", 3, "a-z");
        check("\"email\", credits = 1 ", "\"mail\", credits = 1 ", 5, "credit type `mail` is not defined");
        check("credits = 1.5", "credits = 1.5555", 7, "more than three decimals");
        check("credits = 1.5", "credits = -1", 7, "not negative");
        check("credits = 1.5", "credits = 1e2", 7, "not a plain decimal");
        check("credits = 1.5", "credits = \"x\"", 7, "not an amount");
        check("credits = 1.5", "credits = 100000001", 7, "at most 100000000");
        check("credits = 1.5 }]", "credits = 1 }, { credit_type = \"phone\", credits = 2 }]", 7, "exactly one price");
        check("free_outcomes", "free_outcome", 8, "unknown field `free_outcome`");
        check("monthly", "weekly", 10, "none of monthly");
        check("1_000", "true", 11, "not an amount");
        check("[\"reveal_email\"]", "[\"reveal_mail\"]", 12, "action `reveal_mail` is not defined");
        check("{ allow = { limit = 50 } }", "\"refuse\"", 13, "overage is");
        check("{ limit = 50 }", "{ limit = -1 }", 13, "overage is");
        check("80%", "180%", 14, "threshold `180%`");
        check("interval = \"monthly\"", "interval = ", 10, "");
    }
}
