//! What a team has used, event by event: how each ended and what it took, from the log and the recorded decisions.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::audit::Progress;
use super::output::{self, Output, quoted};
use super::{Ended, in_order, usage_error, values};
use crate::audit::events::{self, Dated, Told};
use crate::config::{Config, read_catalogue};
use crate::ledger::credits::Credits;
use crate::ledger::outcome::Outcome;
use crate::note;
use crate::report::{state, unknown};

/// Beyond all times that events may bear.
const NO_END_MS: i64 = i64::MAX;

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
    /// Events that count from this time on, a date (in UTC) or a time like 2027-01-01T12:00:00Z [default: the begin of
    /// the open cycle]
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub from: Option<i64>,
    /// And before this one [default: all]
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub to: Option<i64>,
    /// Answer in CSV; price is that of the whole event (of a unit times quantity), cost what was charged of it
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

impl EventsArgs {
    pub fn check(&self) -> Result<(), clap::Error> {
        let Some((from_ms, to_ms)) = self.from.zip(self.to) else { return Ok(()) };
        in_order("events", from_ms, to_ms, output::time)?;
        if from_ms == to_ms {
            let from = output::time(from_ms);
            return Err(usage_error("events", format!("--from {from} is --to, and what is shown comes before --to")));
        }
        Ok(())
    }
}

pub async fn run(args: EventsArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let catalogue = read_catalogue(config)?;
    let (store, root) = state::open_with_root(config).await?;
    let account = store.account(&args.account).await?.with_context(|| unknown(&args.account))?;
    let from_ms = args.from.unwrap_or(account.view.cycle.start_ms);
    let dated = Dated { from_ms, to_ms: args.to.unwrap_or(NO_END_MS) };
    if dated.from_ms >= dated.to_ms {
        // `--from` is not given: with both, the arguments were refused before.
        let (begins, to) = (output::time(dated.from_ms), output::time(dated.to_ms));
        let told = format!("the open cycle begins at {begins}, not before --to {to}: name --from");
        return Err(usage_error("events", told).into());
    }
    let mut progress = Progress { bar: output::progress(0) };
    let told = events::of_account(config, &catalogue, &store, &root, &args.account, dated, &mut progress).await;
    progress.bar.finish_and_clear();
    let told = told?;
    if let Some(begins_ms) = told.log_begins_ms {
        let begins = output::time(begins_ms);
        note!("the log no longer reaches back to {}: it begins at {begins}", output::time(from_ms));
    }
    let shown = Shown::of(&args.account, dated, &told.events);
    if args.csv {
        output.lines(&shown.csv())?;
    } else {
        output.answer(&shown, || shown.text())?;
    }
    Ok(Ended::Well)
}

#[derive(Serialize)]
struct Shown<'a> {
    account: &'a str,
    from: String,
    to: Option<String>,
    /// How many ended how.
    outcomes: BTreeMap<&'static str, u64>,
    /// What they took, less what voids gave back, by credit type.
    used: BTreeMap<&'a str, Credits>,
    events: Vec<EventShown<'a>>,
}

#[derive(Serialize)]
struct EventShown<'a> {
    time: String,
    source: Option<&'a str>,
    id: Option<&'a str>,
    action: Option<&'a str>,
    quantity: Option<u64>,
    user: Option<&'a str>,
    /// As in `credit_meter_events_total`, or `pending`: not decided so far, or `unexplained`: ask the audit.
    outcome: &'static str,
    /// Why it was denied or dead-lettered.
    reason: Option<&'static str>,
    credit_type: Option<&'a str>,
    /// What was charged; `null`: not known so far.
    cost: Option<Credits>,
    /// What the whole event costs, a unit's price times its quantity, also where it was not charged.
    price: Option<Credits>,
    cycle: Option<i32>,
    /// `false`: which of some events in different partitions came first is not known, so that it may be the other way
    /// round.
    certain: bool,
    partition: i32,
    offset: i64,
    /// The event that a void takes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    voids: Option<VoidedShown<'a>>,
}

#[derive(Serialize)]
struct VoidedShown<'a> {
    source: &'a str,
    id: &'a str,
}

const PENDING: &str = "pending";
const UNEXPLAINED: &str = "unexplained";
const COLUMNS: [&str; 17] = [
    "time",
    "source",
    "id",
    "action",
    "quantity",
    "user",
    "outcome",
    "reason",
    "credit_type",
    "cost",
    "price",
    "cycle",
    "certain",
    "partition",
    "offset",
    "voids_source",
    "voids_id",
];

fn event(told: &Told) -> EventShown<'_> {
    let (event, voids) = (told.event.as_deref(), told.voids.as_ref());
    let mut shown = EventShown {
        time: output::time(event.map_or(told.append_ms, |event| event.time_ms)),
        source: event.map(|event| &*event.source).or(told.called.source.as_deref()),
        id: event.map(|event| &*event.id).or(told.called.id.as_deref()),
        action: event.map(|event| &*event.action),
        // A void takes back what was charged, whatever it says of quantity.
        quantity: event.filter(|event| event.voids.is_none()).map(|event| event.quantity),
        user: event.and_then(|event| event.user.as_deref()).or(voids.and_then(|voids| voids.user.as_deref())),
        outcome: UNEXPLAINED,
        reason: None,
        credit_type: None,
        cost: None,
        price: None,
        cycle: None,
        certain: true,
        partition: told.partition,
        offset: told.offset,
        voids: voids.map(|voids| VoidedShown { source: &voids.source, id: &voids.id }),
    };
    match &told.ended {
        events::Ended::Pending => shown.outcome = PENDING,
        events::Ended::Unexplained => {}
        events::Ended::DeadLettered(reason) => {
            shown.outcome = Outcome::DeadLettered.name();
            (shown.reason, shown.cost) = (Some(reason.name()), Some(Credits::ZERO));
        }
        events::Ended::Decided(decided) => {
            shown.outcome = decided.outcome.name();
            shown.reason = decided.denial.map(|denial| denial.name());
            shown.credit_type = Some(&decided.credit_type);
            (shown.cost, shown.price) = (Some(decided.cost), Some(decided.price));
            (shown.cycle, shown.certain) = (Some(decided.cycle), decided.certain);
        }
    }
    shown
}

impl<'a> Shown<'a> {
    fn of(account: &'a str, dated: Dated, told: &'a [Told]) -> Shown<'a> {
        let events: Vec<EventShown> = told.iter().map(event).collect();
        let (mut outcomes, mut used) = (BTreeMap::new(), BTreeMap::new());
        for event in &events {
            *outcomes.entry(event.outcome).or_default() += 1;
            if let (Some(credit_type), Some(cost)) = (event.credit_type, event.cost)
                && cost != Credits::ZERO
            {
                *used.entry(credit_type).or_default() += cost;
            }
        }
        let to = (dated.to_ms != NO_END_MS).then(|| output::time(dated.to_ms));
        Shown { account, from: output::time(dated.from_ms), to, outcomes, used, events }
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let any_void = self.events.iter().any(|event| event.voids.is_some());
        let header = ["time", "id", "action", "quantity", "user", "outcome", "cost", "credits", "reason"];
        table.set_header(header.into_iter().chain(any_void.then_some("voids")));
        for event in &self.events {
            let certain = if event.certain { "" } else { "?" };
            let row = [
                event.time.clone(),
                event.id.unwrap_or("-").to_owned(),
                event.action.unwrap_or("-").to_owned(),
                event.quantity.map_or("-".to_owned(), |quantity| quantity.to_string()),
                event.user.unwrap_or("-").to_owned(),
                format!("{}{certain}", event.outcome),
                event.cost.map_or("-".to_owned(), |cost| cost.to_string()),
                event.credit_type.unwrap_or("-").to_owned(),
                event.reason.unwrap_or("").to_owned(),
            ];
            let voids = || event.voids.as_ref().map(|voids| voids.id.to_owned()).unwrap_or_default();
            table.add_row(row.into_iter().chain(any_void.then(voids)));
        }
        for column in [3, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let outcomes = self.outcomes.iter().map(|(outcome, events)| format!("{events} {outcome}"));
        let used = self.used.iter().map(|(credit_type, cost)| format!("{cost} {credit_type}"));
        let list = |texts: Vec<String>| if texts.is_empty() { "nothing".to_owned() } else { texts.join(", ") };
        let (account, from) = (self.account, &self.from);
        let to = self.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
        let sums = format!(
            "{account} from {from}{to}: {} events: {}; used: {}",
            self.events.len(),
            list(outcomes.collect()),
            list(used.collect())
        );
        if self.events.is_empty() { sums } else { format!("{table}\n{sums}") }
    }

    fn csv(&self) -> Vec<String> {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let amount = |credits: Option<Credits>| credits.map(|credits| credits.to_string()).unwrap_or_default();
        let row = |event: &EventShown| {
            let cells: [String; COLUMNS.len()] = [
                event.time.clone(),
                text(event.source),
                text(event.id),
                text(event.action),
                event.quantity.map(|quantity| quantity.to_string()).unwrap_or_default(),
                text(event.user),
                event.outcome.to_owned(),
                text(event.reason),
                text(event.credit_type),
                amount(event.cost),
                amount(event.price),
                event.cycle.map(|cycle| cycle.to_string()).unwrap_or_default(),
                event.certain.to_string(),
                event.partition.to_string(),
                event.offset.to_string(),
                text(event.voids.as_ref().map(|voids| voids.source)),
                text(event.voids.as_ref().map(|voids| voids.id)),
            ];
            cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",")
        };
        [COLUMNS.join(",")].into_iter().chain(self.events.iter().map(row)).collect()
    }
}
