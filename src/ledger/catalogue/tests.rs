//! What is read, what is refused and where, which price counts, and what a higher version may change.

use super::*;
use crate::ledger::account::{AccountConfig, AccountView};
use crate::ledger::cycle::Cycle;
use crate::ledger::event::{Identity, Judge, UsageEvent, price};
use crate::ledger::outcome::DeadReason;

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

/// With everything that a catalogue can say.
const RICH: &str = r#"version = 7
[credit_types.phone]
[credit_types.enrichment]
[actions.reveal_phone]
prices = [
  { credit_type = "phone", credits = 1 },
  { credit_type = "phone", credits = 1.5, effective_from = "2027-01-01T00:00:00Z" },
  { credit_type = "phone", credits = 2, effective_from = 2028-01-01T00:00:00+01:00 },
]
[actions.enrich]
prices = [
  { credit_type = "enrichment", credits = 3, when = { source = "premium" } },
  { credit_type = "enrichment", credits = 1 },
  { credit_type = "enrichment", credits = 2, when = { channel = "api" } },
  { credit_type = "enrichment", credits = 5, when = { source = "premium", channel = "api" } },
  { credit_type = "enrichment", credits = 4, when = { source = "premium" }, effective_from = "2027-01-01T00:00:00Z" },
  { credit_type = "enrichment", credits = 0, when = { outcome = "cached" } , effective_from = "2027-06-01T00:00:00Z" },
]
free_outcomes = ["not_found"]
[plans.basic]
interval = "monthly"
actions = ["reveal_phone", "enrich"]
[[plans.basic.allowance]]
phone = 100
[[plans.basic.allowance]]
effective_from = "2027-03-01T00:00:00Z"
phone = 120
enrichment = "unlimited"
[plans.organization]
interval = "annual"
allowance = { phone = 1200 }
actions = ["reveal_phone", "enrich"]
prices.reveal_phone = 0.8
prices.enrich = [{ credits = 0.7, effective_from = "2027-02-01T00:00:00Z" }]
carry_over_max = { phone = 10.5 }
[plans.trial]
interval = "monthly"
allowance = { phone = 100 }
actions = [
  "reveal_phone",
  { action = "enrich", effective_from = "2029-03-01T00:00:00Z", effective_until = "2029-04-01T00:00:00Z" },
  { action = "enrich", effective_from = "2029-06-01T00:00:00Z" },
]
"#;

fn parse(text: &str) -> Catalogue {
    Catalogue::parse(text).expect("it is good")
}

fn ms(time: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(time).expect("a time").timestamp_millis()
}

/// One part of a text replaced.
fn change(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn a_good_catalogue_is_read() {
    let catalogue = parse(GOOD);
    assert_eq!(catalogue.actions["reveal_phone"].prices[0].credits, Credits::from_thousandths(1500));
    let basic = &catalogue.plans["basic"];
    assert_eq!(basic.allowance_at(0)["email"], Amount::Limited(Credits::whole(1000)));
    assert_eq!(basic.allowance_at(i64::MAX)["phone"], Amount::Unlimited);
    assert_eq!(basic.overage, Overage::Allow { limit: Some(Credits::whole(50)) });
    assert_eq!(basic.thresholds[1], Threshold::Remaining(Credits::from_thousandths(2500)));
    assert!(catalogue.conditions().ask_nothing_of("reveal_phone"));
    let organization = &parse(RICH).plans["organization"];
    assert_eq!(organization.carry_over_max["phone"], Credits::from_thousandths(10_500));
}

#[test]
fn the_hash_is_of_the_content() {
    let hash = |text: &str| parse(text).id.hash;
    assert_eq!(hash(GOOD), hash(&change(GOOD, "version = 1", "# priced by sales\nversion = 1")));
    let thresholds = "[\"80%\", \"remaining 2.5\", \"100%\"]";
    assert_eq!(hash(GOOD), hash(&change(GOOD, thresholds, "[\"100%\", \"80%\", \"remaining 2.5\"]")));
    assert_ne!(hash(GOOD), hash(&change(GOOD, "1.5", "1.6")));
    // Stored in every shard: a program that hashes the same file otherwise refuses to start.
    assert_eq!(hash(GOOD), "49d7341f7fd95e34b9855b24d71b38da");
    for (from, to) in [
        ("credits = 1.5, ", "credits = 1.6, "),
        ("2028-01-01T00:00:00+01:00", "2028-01-01T00:00:00Z"),
        ("\"cached\"", "\"known\""),
        ("phone = 120", "phone = 121"),
        ("2027-03-01", "2027-03-02"),
        ("= 0.8", "= 0.9"),
        ("credits = 0.7", "credits = 0.9"),
        ("10.5", "10.6"),
        ("2029-03", "2029-02"),
        ("2029-04", "2029-05"),
        ("2029-06", "2029-07"),
    ] {
        assert_ne!(hash(RICH), hash(&change(RICH, from, to)), "{to}");
    }
    let moved = change(RICH, "  { credit_type = \"enrichment\", credits = 1 },\n", "");
    let moved = change(
        &moved,
        "enrich]\nprices = [\n",
        "enrich]\nprices = [\n  { credit_type = \"enrichment\", credits = 1 },\n",
    );
    assert_eq!(hash(RICH), hash(&moved), "the order of prices does not count");
}

#[test]
fn a_plan_is_entitled_to_an_action_for_a_time() {
    let catalogue = parse(RICH);
    let check = |time: &str, expected: Judge| {
        let event = event("enrich", ms(time), 1);
        let class = price(&catalogue, &account("trial"), &event).expect("it has a price");
        assert_eq!(class.judge, expected, "{time}");
        assert_eq!(catalogue.plans["trial"].is_entitled("enrich", ms(time)), expected == Judge::Charge, "{time}");
    };
    check("2029-02-28T23:59:59.999Z", Judge::NotEntitled);
    check("2029-03-01T00:00:00Z", Judge::Charge);
    check("2029-03-31T23:59:59.999Z", Judge::Charge);
    check("2029-04-01T00:00:00Z", Judge::NotEntitled);
    check("2029-06-01T00:00:00Z", Judge::Charge);
    check("2099-01-01T00:00:00Z", Judge::Charge);
    let [before, within, after] = ["2029-02-28T00:00:00Z", "2029-03-01T00:00:00Z", "2029-04-01T00:00:00Z"].map(ms);
    let periods = [before, within, after].map(|at_ms| catalogue.period_at(at_ms));
    assert!(periods[0] < periods[1] && periods[1] < periods[2], "{periods:?}");

    // From a plan to one that allows as much, at the time of the change.
    let (basic, trial) = (&catalogue.plans["basic"], &catalogue.plans["trial"]);
    let allows = |at_ms: i64| trial.allows_all_of(basic, ms("2026-01-01T00:00:00Z"), at_ms);
    assert_eq!([before, within, after].map(allows), [false, true, false]);
}

/// The sum of what an event costs, and how it is judged, by plan, date and data.
#[test]
fn the_most_specific_price_counts_then_the_latest_and_a_plans_price_beats_the_general() {
    let catalogue = parse(RICH);
    let check = |plan: &str, action: &str, time: &str, fields: &[(Field, &str)], thousandths: i64| {
        let of = |name: Field| fields.iter().find(|(own, _)| *own == name).map(|(_, value)| Arc::<str>::from(*value));
        let further = fields.iter().filter(|(name, _)| *name != Field::Outcome);
        let event = UsageEvent {
            outcome: of(Field::Outcome),
            user: of(Field::User),
            fields: further.map(|(name, value)| (*name, Arc::from(*value))).collect(),
            ..event(action, ms(time), 2)
        };
        let class = price(&catalogue, &account(plan), &event).expect("it has a price");
        let judge = if thousandths == 0 { Judge::Free } else { Judge::Charge };
        let expected = (Credits::from_thousandths(2 * thousandths), judge);
        assert_eq!((class.cost, class.judge), expected, "{plan} {action} {time} {fields:?}");
    };
    use Field::{Channel, Outcome, Source};
    // plan, action, dated, data | of one unit
    check("basic", "reveal_phone", "1990-01-01T00:00:00Z", &[], 1000);
    check("basic", "reveal_phone", "2026-12-31T23:59:59.999Z", &[], 1000);
    check("basic", "reveal_phone", "2027-01-01T00:00:00Z", &[], 1500);
    check("basic", "reveal_phone", "2027-12-31T22:59:59Z", &[], 1500);
    check("basic", "reveal_phone", "2027-12-31T23:00:00Z", &[], 2000);
    check("organization", "reveal_phone", "2026-01-01T00:00:00Z", &[], 800);
    check("organization", "reveal_phone", "2030-01-01T00:00:00Z", &[], 800);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[], 1000);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[(Source, "standard")], 1000);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[(Source, "premium")], 3000);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[(Channel, "premium")], 1000);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[(Channel, "api")], 2000);
    check("basic", "enrich", "2026-01-01T00:00:00Z", &[(Channel, "api"), (Source, "premium")], 5000);
    check("basic", "enrich", "2027-01-01T00:00:00Z", &[(Source, "premium")], 4000);
    check("basic", "enrich", "2027-01-01T00:00:00Z", &[(Channel, "api"), (Source, "premium")], 5000);
    check("basic", "enrich", "2027-05-31T00:00:00Z", &[(Outcome, "cached")], 1000);
    check("basic", "enrich", "2027-06-01T00:00:00Z", &[(Outcome, "cached")], 0);
    check("basic", "enrich", "2027-06-01T00:00:00Z", &[(Outcome, "not_found")], 0);
    check("organization", "enrich", "2027-01-31T00:00:00Z", &[(Source, "premium")], 4000);
    check("organization", "enrich", "2027-02-01T00:00:00Z", &[(Source, "premium")], 700);
}

fn event(action: &str, dated_ms: i64, quantity: u64) -> UsageEvent {
    UsageEvent {
        account: "acme".into(),
        source: "s".into(),
        id: "1".into(),
        time_ms: 0,
        dated_ms,
        action: action.into(),
        quantity,
        outcome: None,
        user: None,
        fields: Box::default(),
        once: None,
        voids: None,
        identity: Identity::of("s", "1"),
    }
}

fn account(plan: &str) -> AccountView {
    let config = AccountConfig {
        plan: plan.into(),
        anchor: "2026-01-01".parse().expect("a date"),
        interval: None,
        timezone: chrono_tz::UTC,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits: Default::default(),
    };
    AccountView::opened(config, Cycle { number: 0, start_ms: 0, end_ms: i64::MAX })
}

#[test]
fn what_one_price_makes_too_dear_another_does_not() {
    let catalogue = parse(RICH);
    let event = event("reveal_phone", 0, 110_000_000);
    assert_eq!(price(&catalogue, &account("basic"), &event), Err(DeadReason::CostTooLarge));
    let class = price(&catalogue, &account("organization"), &event).expect("it is cheaper");
    assert_eq!(class.cost, Credits::whole(88_000_000));
}

#[test]
fn only_an_event_that_would_be_charged_asks_whether_it_was_before() {
    let text = change(GOOD, "free_outcomes", "charge_once = { by = \"contact\" }\nfree_outcomes");
    let catalogue =
        parse(&change(&text, "actions = [\"reveal_email\"]", "actions = [\"reveal_email\", \"reveal_phone\"]"));
    let check = |action: &str, contact: Option<&str>, outcome: Option<&str>, once: bool| {
        let event = UsageEvent {
            outcome: outcome.map(Arc::from),
            once: contact.map(|contact| Identity::of(action, contact)),
            ..event(action, 0, 1)
        };
        let class = price(&catalogue, &account("basic"), &event).expect("it has a price");
        assert_eq!(class.once, once, "{action} {contact:?} {outcome:?}");
    };
    check("reveal_phone", Some("c"), None, true);
    check("reveal_phone", None, None, false);
    check("reveal_phone", Some("c"), Some("not_found"), false);
    check("reveal_email", Some("c"), None, false);
}

#[test]
fn an_allowance_counts_from_its_date_on() {
    let basic = &parse(RICH).plans["basic"];
    let check = |time: &str, phone: i64, enrichment: Option<Amount>| {
        let amounts = basic.allowance_at(ms(time));
        assert_eq!(amounts["phone"], Amount::Limited(Credits::whole(phone)), "{time}");
        assert_eq!(amounts.get("enrichment").copied(), enrichment, "{time}");
    };
    check("1990-01-01T00:00:00Z", 100, None);
    check("2027-02-28T23:59:59Z", 100, None);
    check("2027-03-01T00:00:00Z", 120, Some(Amount::Unlimited));
}

#[test]
fn what_prices_depend_on_is_known() {
    let catalogue = parse(RICH);
    let conditions = catalogue.conditions();
    let of = |field: Field, value: &'static str| {
        let kept = conditions.of_event(|own| (own == field).then_some(value.into()));
        kept.iter().map(|(field, value)| (*field, value.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(of(Field::Source, "premium"), [(Field::Source, "premium".to_owned())]);
    assert_eq!(of(Field::Source, "standard"), []);
    assert_eq!(of(Field::Channel, "premium"), []);
    assert_eq!(of(Field::Outcome, "cached"), [], "an outcome is kept anyway");
    assert!(conditions.hold(&parse(GOOD).conditions()) && !parse(GOOD).conditions().hold(&conditions));
    let more = parse(&RICH.replace("channel = \"api\"", "channel = \"app\""));
    assert!(!conditions.hold(&more.conditions()));
    // The field by which an action is charged once; other actions do not ask for it.
    let once = |by: &str| parse(&change(GOOD, "free_outcomes", &format!("charge_once = {by}\nfree_outcomes")));
    let (contact, company) = (once("{ by = \"contact\" }"), once("{ by = \"company\" }"));
    let (by_contact, by_company) = (contact.conditions(), company.conditions());
    assert_eq!((by_contact.once("reveal_phone"), by_contact.once("reveal_email")), (Some(Field::Contact), None));
    assert_eq!(by_company.once("reveal_phone"), Some(Field::Company));
    assert!(!by_contact.ask_nothing_of("reveal_phone") && by_contact.ask_nothing_of("reveal_email"));
    assert!(by_contact.hold(&parse(GOOD).conditions()) && !parse(GOOD).conditions().hold(&by_contact));
    assert!(!by_contact.hold(&by_company));
    assert!(contact.id.hash != company.id.hash && contact.id.hash != parse(GOOD).id.hash);
    let periods: Vec<usize> = ["2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z", "2029-01-01T00:00:00Z"]
        .map(|time| catalogue.period_at(ms(time)))
        .to_vec();
    assert_eq!(periods, [0, 1, 4]);
}

#[test]
fn a_bad_catalogue_is_refused_with_line_and_reason() {
    let check_in = |good: &str, from: &str, to: &str, line: usize, reason: &str| {
        let error = Catalogue::parse(&change(good, from, to)).expect_err(to);
        assert!(error.line == line && error.reason.contains(reason), "{to}: {error}");
    };
    let check = |from: &str, to: &str, line: usize, reason: &str| check_in(GOOD, from, to, line, reason);
    check("version = 1", "version = 0", 1, "from 1 to 4294967295");
    check("version = 1", "version = 4294967296", 1, "from 1 to 4294967295");
    check("version = 1", "", 1, "missing field `version`");
    check("[credit_types.phone]", "[credit_types.Phone]", 3, "a-z");
    check("[credit_types.phone]", "[credit_types.effective_from]", 3, "the name of a field");
    check("\"email\", credits = 1 ", "\"mail\", credits = 1 ", 5, "credit type `mail` is not defined");
    check("credits = 1.5", "credits = 1.5555", 7, "more than three decimals");
    check("credits = 1.5", "credits = -1", 7, "not negative");
    check("credits = 1.5", "credits = 1e2", 7, "not a plain decimal");
    check("credits = 1.5", "credits = \"x\"", 7, "not an amount");
    check("credits = 1.5", "credits = 100000001", 7, "at most 100000000");
    check("[{ credit_type = \"phone\", credits = 1.5 }]", "[]", 7, "needs a price");
    check("free_outcomes", "free_outcome", 8, "unknown field `free_outcome`");
    check("free_outcomes", "charge_once = { by = \"user\" }\nfree_outcomes", 8, "by contact or company");
    check("monthly", "weekly", 10, "none of monthly");
    check("1_000", "true", 11, "not an amount");
    check("email = 1_000", "mail = 1_000", 11, "credit type `mail` is not defined");
    check("{ email = 1_000, phone = \"unlimited\" }", "1000", 11, "amounts by credit type");
    check("[\"reveal_email\"]", "[\"reveal_mail\"]", 12, "action `reveal_mail` is not defined");
    check("{ allow = { limit = 50 } }", "\"refuse\"", 13, "overage is");
    check("{ allow = { limit = 50 } }", "7", 13, "\"reject\", \"cap\", \"allow\" or");
    check("{ limit = 50 }", "{ limit = -1 }", 13, "not negative");
    check("{ limit = 50 }", "{ limit = 1e3 }", 13, "not a plain decimal");
    check("{ limit = 50 }", "{ limit = 49.9999999999999999999 }", 13, "more than three decimals");
    check("{ limit = 50 }", "{ limit = nan }", 13, "not a plain decimal");
    check("80%", "180%", 14, "threshold `180%`");
    check("interval = \"monthly\"", "interval = ", 10, "");
    check("interval", "prices = { reveal_phone = 1 }\ninterval", 10, "not entitled");
    check("interval", "prices = { reveal_email = 1.0001 }\ninterval", 10, "more than three decimals");
    check("interval", "prices = { reveal_email = 100_000_001 }\ninterval", 10, "at most 100000000");
    check("interval", "prices = { reveal_email = \"x\" }\ninterval", 10, "an amount of credits, or a list of prices");
    check("interval", "prices = { reveal_email = [] }\ninterval", 10, "needs a price");
    check("interval", "carry_over_max = { mail = 1 }\ninterval", 10, "credit type `mail` is not defined");
    check("interval", "carry_over_max = { email = -1 }\ninterval", 10, "not negative");

    let check = |from: &str, to: &str, line: usize, reason: &str| check_in(RICH, from, to, line, reason);
    check("\"2027-01-01T00:00:00Z\"", "\"2027-01-01\"", 7, "no RFC 3339 time");
    check("\"2027-01-01T00:00:00Z\"", "7", 7, "no RFC 3339 time");
    check("2028-01-01T00:00:00+01:00", "2028-01-01T00:00:00", 8, "no RFC 3339 time");
    check("2028-01-01T00:00:00+01:00", "\"2027-01-01T00:00:00Z\"", 8, "two prices for the same");
    check("credits = 1 },\n", "credits = 1, effective_from = \"2026-01-01T00:00:00Z\" },\n", 5, "from the beginning");
    check("\"phone\", credits = 1.5", "\"enrichment\", credits = 1.5", 7, "two actions");
    check("source = \"premium\" }", "colour = \"red\" }", 12, "`colour`, which is none of user, channel");
    check("source = \"premium\" }", "source = 7 }", 12, "a text of 1 to 256 bytes");
    check("source = \"premium\" }", "source = \"\" }", 12, "a text of 1 to 256 bytes");
    check(
        "premium\", channel = \"api\"",
        "other\", channel = \"api\"",
        14,
        "none is more specific: add one for when = { channel",
    );
    check("source = \"premium\" }", "sources = \"premium\" }", 12, "`sources`, which is none");
    check(
        "{ credit_type = \"enrichment\", credits = 1 }",
        "{ credit_type = \"enrichment\", credit = 1 }",
        13,
        "credit",
    );
    check("phone = 100\n", "phone = 100\neffective_from = \"2027-01-01T00:00:00Z\"\n", 23, "from the beginning");
    check("effective_from = \"2027-03-01T00:00:00Z\"\n", "", 25, "two allowances");
    check("phone = 120", "mail = 120", 27, "credit type `mail` is not defined");
    check("credits = 0.7, ", "credits = 0.7, price = 1, ", 34, "unknown field `price`");
    check("credits = 0.7, ", "credits = 0.7123, ", 34, "more than three decimals");
    check("action = \"enrich\"", "action = \"enriched\"", 41, "action `enriched` is not defined");
    check("action = \"enrich\"", "actions = \"enrich\"", 41, "unknown field `actions`");
    check("\"2029-03-01T00:00:00Z\"", "\"2029-03\"", 41, "effective_from `2029-03` is no RFC 3339 time");
    check("\"2029-04-01T00:00:00Z\"", "2029-04-01", 41, "effective_until `2029-04-01` is no RFC 3339 time");
    check("\"2029-04-01T00:00:00Z\"", "\"2029-03-01T00:00:00Z\"", 41, "`enrich`: effective_until is not after");
    check("\"2029-04-01T00:00:00Z\"", "\"2029-06-02T00:00:00Z\"", 42, "`enrich` is listed twice for the same time");
    check("  \"reveal_phone\",\n", "  \"reveal_phone\", \"reveal_phone\",\n", 40, "`reveal_phone` is listed twice");
    check("  \"reveal_phone\",\n", "  7,\n", 40, "the name of an action, or {");
}

#[test]
fn a_higher_version_only_grows() {
    let old = parse(RICH);
    let priced_up_to_ms = ms("2026-11-25T00:00:00Z");
    let grown = |from: &str, to: &str| parse(&change(&change(RICH, from, to), "version = 7", "version = 8"));
    let allowed = |from: &str, to: &str, starts: Option<&str>| {
        let growth = grown(from, to).grows_from(&old).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(growth.starts_ms(), starts.map(ms), "{to}");
        assert_eq!(growth.check(priced_up_to_ms), Ok(()), "{to}");
    };
    // What is not there yet, what starts later, and what has not started.
    allowed("[credit_types.phone]", "[credit_types.email]\n[credit_types.phone]", None);
    allowed(
        "[plans.basic]",
        "[actions.more]\nprices = [{ credit_type = \"phone\", credits = 1 }]\n[plans.basic]",
        None,
    );
    allowed("[plans.basic]", "[plans.new]\ninterval = \"monthly\"\nallowance = {}\nactions = []\n[plans.basic]", None);
    allowed("allowance = {", "thresholds = [\"80%\"]\nallowance = {", None);
    let added = ",\n  { credit_type = \"phone\", credits = 3, effective_from = \"2027-05-01T00:00:00Z\" },\n]\n[actions.enrich]";
    allowed(",\n]\n[actions.enrich]", added, Some("2027-05-01T00:00:00Z"));
    allowed("credits = 1.5,", "credits = 1.6,", Some("2027-01-01T00:00:00Z"));
    allowed("\"2027-01-01T00:00:00Z\"", "\"2026-12-01T00:00:00Z\"", Some("2026-12-01T00:00:00Z"));
    allowed(
        "\"2029-06-01T00:00:00Z\" },\n]",
        "\"2029-06-01T00:00:00Z\", effective_until = \"2030-01-01T00:00:00Z\" },\n]",
        Some("2030-01-01T00:00:00Z"),
    );
    allowed("effective_from = \"2029-03-01", "effective_from = \"2027-03-01", Some("2027-03-01T00:00:00Z"));
    allowed("\"2029-04-01T00:00:00Z\" },\n", "\"2029-06-01T00:00:00Z\" },\n", Some("2029-04-01T00:00:00Z"));
    allowed("phone = 120", "phone = 130", Some("2027-03-01T00:00:00Z"));
    allowed(
        "credits = 0.7, effective_from = \"2027-02-01",
        "credits = 0.7, effective_from = \"2029-02-01",
        Some("2027-02-01T00:00:00Z"),
    );
    // Workers need a minute to have it.
    let soon = grown("phone = 120", "phone = 130").grows_from(&old).unwrap();
    let start_ms = soon.starts_ms().unwrap();
    assert_eq!(soon.check_in_time(start_ms - 60_001), Ok(()));
    let told = soon.check_in_time(start_ms - 60_000).unwrap_err().reason;
    assert!(told.contains("less than a minute after"), "{told}");
    let told = soon.check_in_time(start_ms).unwrap_err().reason;
    assert!(told.contains("priced already"), "{told}");
    // An action that is new was never judged.
    let action = "[actions.more]\nprices = [{ credit_type = \"phone\", credits = 1 }]\n[plans.basic]";
    let more = change(&change(RICH, "[plans.basic]", action), "version = 7", "version = 8");
    let priced = change(&more, "[plans.basic]", "[plans.basic]\nprices = { more = 2 }");
    let everywhere = parse(&priced.replace("actions = [", "actions = [\"more\", "));
    assert_eq!(everywhere.grows_from(&old).unwrap().starts_ms(), None);
    let only_in = |plan: &str, entry: &str| {
        let (head, tail) = more.split_once(plan).expect("the plan is there");
        parse(&format!("{head}{plan}{}", tail.replacen("actions = [", &format!("actions = [{entry}, "), 1)))
    };
    // No other plan allows as much; but whoever changed from the second one to another was upgraded.
    assert_eq!(only_in("[plans.organization]", "\"more\"").grows_from(&old).unwrap().starts_ms(), None);
    let told = only_in("[plans.basic]", "\"more\"").grows_from(&old).unwrap_err();
    assert!(told.line == 22 && told.reason.contains("plan `basic`: it has a new action from the beginning"), "{told}");
    let dated = only_in("[plans.basic]", "{ action = \"more\", effective_from = \"2027-03-01T00:00:00Z\" }");
    assert_eq!(dated.grows_from(&old).unwrap().starts_ms(), Some(ms("2027-03-01T00:00:00Z")));
    assert_eq!(old.grows_from(&old), Ok(Growth::default()));

    let refused = |from: &str, to: &str, line: usize, reason: &str| {
        let grown = grown(from, to);
        let growth = grown.grows_from(&old).and_then(|growth| growth.check(priced_up_to_ms));
        let error = growth.expect_err(to);
        assert!(error.line == line && error.reason.contains(reason), "{to}: {error}");
    };
    refused(
        "credits = 1 },\n",
        "credits = 1.1 },\n",
        6,
        "action `reveal_phone`: a price that counts from the beginning",
    );
    refused("credits = 3, when", "credits = 3.5, when", 12, "action `enrich`: a price that counts from the beginning");
    refused("\"2027-01-01T00:00:00Z\"", "\"2026-11-25T00:00:00Z\"", 7, "dated up to 2026-11-25T00:00:00Z were priced");
    refused("\"2027-01-01T00:00:00Z\"", "\"2020-01-01T00:00:00Z\"", 7, "from 2020-01-01T00:00:00Z on");
    refused("[\"not_found\"]", "[\"not_found\", \"bounced\"]", 10, "free_outcomes");
    refused("phone = 100\n", "phone = 101\n", 23, "plan `basic`: an allowance");
    refused("prices.reveal_phone = 0.8\n", "", 29, "plan `organization`, price of `reveal_phone`");
    refused("= 0.8", "= 0.9", 33, "plan `organization`, price of `reveal_phone`");
    refused("interval = \"annual\"", "interval = \"monthly\"", 29, "interval");
    refused("interval = \"annual\"", "overage = \"cap\"\ninterval = \"annual\"", 29, "overage");
    refused("10.5", "11", 29, "carry_over_max");
    refused(
        "actions = [\"reveal_phone\", \"enrich\"]\n[[",
        "actions = [\"reveal_phone\"]\n[[",
        20,
        "end it with effective_until",
    );
    let ended = |until: &str| {
        format!("actions = [\"reveal_phone\",\n{{ action = \"enrich\", effective_until = \"{until}\" }}]\n[[")
    };
    refused(
        "actions = [\"reveal_phone\", \"enrich\"]\n[[",
        &ended("2026-11-25T00:00:00Z"),
        23,
        "from 2026-11-25T00:00:00Z on",
    );
    allowed(
        "actions = [\"reveal_phone\", \"enrich\"]\n[[",
        &ended("2027-01-01T00:00:00Z"),
        Some("2027-01-01T00:00:00Z"),
    );
    refused("effective_from = \"2029-03-01T00:00:00Z\", ", "", 36, "from the beginning, here `enrich`");
    refused("effective_from = \"2029-03", "effective_from = \"2026-03", 41, "from 2026-03-01T00:00:00Z on");
    refused("[plans.organization]", "[plans.enterprise]", 1, "plan `organization` is gone");

    let version = |text: &str| parse(&change(text, "version = 7", "version = 6")).grows_from(&old);
    assert!(version(RICH).expect_err("lower").reason.contains("lower than 7"));
    let same = parse(&change(RICH, "phone = 120", "phone = 130")).grows_from(&old);
    assert!(same.expect_err("the same").reason.contains("raise it above 7"));
    let without_enrich = parse(&change(GOOD, "version = 1", "version = 8")).grows_from(&old).expect_err("another list");
    assert_eq!((without_enrich.line, without_enrich.reason.contains("credit type `enrichment` is gone")), (1, true));
}
