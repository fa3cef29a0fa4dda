//! Whether Redis holds what the log comes to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use chrono::NaiveDate;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::output::{self, Output};
use super::{Ended, values};
use crate::audit::report::{Difference, Named, Report};
use crate::audit::{self, Options, Watch};
use crate::config::{Config, read_catalogue};
use crate::http::{self, Check, Health};
use crate::ingest::clock;
use crate::note;
use crate::report::state;
use crate::{app, metrics};

/// Differences that are shown to people; JSON has more.
const SHOWN_MAX: usize = 50;

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// What folded records and accounts may take; with less, the log is read more often
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = values::bytes)]
    pub memory: u64,
    /// Go on from a saved point: usage below it is not read
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Save a point for later audits to go on from, if there is no difference; with --follow each goes on from the last
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// First day whose usage by member is compared, where usage.breakdown was turned on later [default: the first that is kept]
    #[arg(long, value_name = "DATE", value_parser = values::date)]
    pub usage_from: Option<NaiveDate>,
    /// Audit again and again, and serve /metrics on http.listen
    #[arg(long)]
    pub follow: bool,
    /// How long to wait between two audits
    #[arg(long, value_name = "DURATION", default_value = "10min", value_parser = values::duration)]
    pub every: Duration,
}

pub async fn run(args: AuditArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let stop = CancellationToken::new();
    clock::watched(audit(args, config, output, stop.clone()), stop, clock::START_AGAIN).await
}

async fn audit(args: AuditArgs, config: &Config, output: Output, stop: CancellationToken) -> anyhow::Result<Ended> {
    if args.follow {
        return follow(args, config, output, stop).await;
    }
    let report = once(&args, args.from.clone(), config).await?;
    output.answer(&report, || text(&report))?;
    tell_saved(&args, &report);
    Ok(if report.mismatches == 0 && report.save_fault.is_none() { Ended::Well } else { Ended::Badly })
}

/// Says what became of `--save`.
fn tell_saved(args: &AuditArgs, report: &Report) {
    let Some(path) = args.save.as_deref().map(Path::display) else { return };
    match (report.saved, &report.save_fault) {
        (Some(records), _) => note!("saved to {path}: {records} usage records need not be read again"),
        (None, Some(fault)) => note!("not saved to {path}: {fault}"),
        (None, None) => note!(
            "not saved to {path}: a point must be without differences, this audit found {}; mend them and audit again",
            report.mismatches
        ),
    }
}

async fn once(args: &AuditArgs, from: Option<PathBuf>, config: &Config) -> anyhow::Result<Report> {
    let catalogue = read_catalogue(config)?;
    let (store, root) = state::open_with_root(config).await?;
    let mut progress = Progress { bar: output::progress(0) };
    let options = Options { memory_bytes: args.memory, from, save: args.save.clone(), usage_from: args.usage_from };
    let audited = audit::run(config, &catalogue, &store, &root, &options, &mut progress).await;
    progress.bar.finish_and_clear();
    Ok(audited?)
}

/// Audits until a signal stops it. It is ready while audits come to a result, whatever that is.
async fn follow(args: AuditArgs, config: &Config, output: Output, stop: CancellationToken) -> anyhow::Result<Ended> {
    let listener = TcpListener::bind(&config.http.listen)
        .await
        .with_context(|| format!("http.listen = {}: is a meter running here?", config.http.listen))?;
    let health = Arc::new(Health::new());
    tokio::spawn(app::stop_on_signal(stop.clone()));
    let connections_max = config.http.connections_max;
    let serving = tokio::spawn(http::serve(listener, health.clone(), None, connections_max, stop.clone()));
    // Started again, it goes on from what it has saved.
    let mut from = args.from.clone().or(args.save.clone().filter(|path| path.exists()));
    loop {
        let audited = tokio::select! {
            audited = once(&args, from.clone(), config) => audited,
            () = stop.cancelled() => break,
        };
        match &audited {
            Ok(report) => {
                let Report { accounts_checked, mismatches, lag_records, .. } = *report;
                let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                metrics::record_audit(accounts_checked, mismatches, lag_records, ended);
                // A disk that is full ends no watch: the result is in the metrics, too.
                if let Err(error) = output.answer(report, || text(report)) {
                    note!("{error:#}");
                }
                tell_saved(&args, report);
                from = args.save.clone().filter(|_| report.saved.is_some()).or(from);
            }
            Err(error) => {
                metrics::record_audit_failure();
                note!("no result: {error:#}");
            }
        }
        for check in Check::ALL {
            health.set(check, audited.as_ref().map(|_| ()).map_err(|error| format!("{error:#}")));
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            () = stop.cancelled() => break,
        }
    }
    serving.await.context("the http server")?;
    Ok(Ended::Well)
}

/// Records read, of those that are there.
pub struct Progress {
    pub bar: ProgressBar,
}

impl Watch for Progress {
    fn read(&mut self, records: u64, of: u64) {
        self.bar.set_length(of.max(records));
        self.bar.set_position(records);
    }
}

fn text(report: &Report) -> String {
    let Report { accounts_checked, mismatches, records, ambiguous, collisions, usage_days, passes, seconds, .. } =
        report;
    let mut outcomes: Vec<String> =
        report.outcomes.iter().map(|(outcome, records)| format!("{records} {outcome}")).collect();
    let known: u64 = report.outcomes.values().sum();
    if known < *records {
        outcomes.push(format!("{} one or another", records - known));
    }
    let mut lines = vec![
        format!("{records} usage records: {}", outcomes.join(", ")),
        format!(
            "{accounts_checked} accounts checked in {seconds} s, the log read {passes} times: {mismatches} mismatches"
        ),
    ];
    lines.push(match usage_days {
        0 => "no usage by day and member to compare".to_owned(),
        days => format!("usage by member compared on {days} days of accounts"),
    });
    if *ambiguous > 0 {
        lines.push(format!(
            "{ambiguous} events have attempts at different prices, or were priced by one of several plans: any was accepted"
        ));
    }
    if *collisions > 0 {
        lines.push(format!("{collisions} events were taken for others whose 64-bit identity is the same"));
    }
    if !report.differences.is_empty() {
        lines.push(table(&report.differences).to_string());
    }
    let more = mismatches - report.differences.len().min(SHOWN_MAX) as u64;
    if more > 0 {
        lines.push(format!("and {more} more; --json names up to 1000"));
    }
    lines.join("\n")
}

fn table(differences: &[Difference]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["account", "shard", "what", "by the log", "in redis", "explained by"]);
    for difference in differences.iter().take(SHOWN_MAX) {
        let (whose, shard) =
            (difference.account.clone().unwrap_or_else(|| "-".to_owned()), difference.shard.to_string());
        let records: Vec<String> = difference.records.iter().map(named).collect();
        let Difference { what, expected, found, .. } = difference.clone();
        table.add_row([whose, shard, what, expected, found, records.join("\n")]);
    }
    for column in table.column_iter_mut().skip(3).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn named(record: &Named) -> String {
    let Named { topic, partition, offset, outcome, cost } = record;
    let cost = cost.map(|cost| format!(" {cost}")).unwrap_or_default();
    format!("{topic}/{partition}@{offset} {outcome}{cost}")
}
