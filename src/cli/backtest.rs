//! What a file of events comes to under a price list, cycle by cycle. Needs neither Kafka nor Redis.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{Output, quoted};
use super::{Ended, values};
use crate::backtest::lines::{Lines, Timed};
use crate::backtest::statement::{Shown, Statement, columns, rows};
use crate::backtest::tally::{Reason, Tally};
use crate::backtest::{Fold, Settings};
use crate::config::{Config, read_catalogue};
use crate::ingest::decode;
use crate::note;

/// Blocks of records that wait between reading and folding: reading stays ahead, and memory stays small.
const BLOCKS_WAITING: usize = 4;

#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// A file with one CloudEvent in JSON on each line, commands and usage mixed, in their order; `-` reads stdin
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Judge by this price list instead of catalogue.path
    #[arg(long, value_name = "FILE")]
    pub catalogue: Option<PathBuf>,
    /// Let time pass to this moment, and leave out what is dated after it [default: the latest event]
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub until: Option<i64>,
    /// How late an event may come, by the times of those before it [default: events.late_after]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub late_after: Option<Duration>,
    /// A line for each cycle and credit type, with commas
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Exit with 1 if anything could not be judged or was refused
    #[arg(long)]
    pub strict: bool,
}

pub async fn run(args: BacktestArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let mut config = config.clone();
    config.catalogue.path = args.catalogue.clone().unwrap_or(config.catalogue.path);
    let catalogue = read_catalogue(&config)?;
    let late_after = args.late_after.unwrap_or(config.events.late_after);
    let settings = Settings {
        late_after_ms: i64::try_from(late_after.as_millis()).context("--late-after is beyond all times")?,
        restamp_tolerance_ms: config.events.restamp_tolerance.as_millis() as i64,
        until_ms: args.until,
    };
    let (input, bytes) = open(&args.file)?;
    let bar = progress_bar(bytes);
    let conditions = Arc::new(catalogue.conditions());
    let lines = Lines::new(input, decode::Settings::of(&config.events), conditions);
    let blocks = read_ahead(lines, bar.clone());
    let folded = tokio::task::block_in_place(|| fold(Fold::new(catalogue, settings), blocks));
    bar.finish_and_clear();
    let Folded { statements, tally, seconds } =
        folded.with_context(|| format!("cannot read {}", args.file.display()))?;
    if args.csv {
        output.lines(&csv(&statements))?;
    } else {
        let report = Report::of(&statements, &tally, seconds);
        output.answer(&report, || text(&statements))?;
    }
    note!("{}", told(&tally, seconds));
    if !tally.read_any() {
        note!("no line of {} could be judged", args.file.display());
    }
    let well = tally.read_any() && (!args.strict || tally.is_clean());
    Ok(if well { Ended::Well } else { Ended::Badly })
}

struct Folded {
    statements: Vec<Statement>,
    tally: Tally,
    seconds: f64,
}

type Block = std::io::Result<Vec<Timed>>;

/// Reads and decodes on a thread of its own.
fn read_ahead(mut lines: Lines<Box<dyn Read + Send>>, bar: ProgressBar) -> Receiver<Block> {
    let (sender, receiver) = sync_channel(BLOCKS_WAITING);
    std::thread::spawn(move || {
        while let Some(block) = lines.next_block().transpose() {
            let block = block.map(|(bytes, records)| {
                bar.inc(bytes as u64);
                records
            });
            let failed = block.is_err();
            if sender.send(block).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

fn fold(mut fold: Fold, blocks: Receiver<Block>) -> std::io::Result<Folded> {
    let started = Instant::now();
    for block in blocks {
        block?.into_iter().for_each(|timed| fold.record(timed));
    }
    let (statements, tally) = fold.finish();
    Ok(Folded { statements, tally, seconds: started.elapsed().as_secs_f64() })
}

/// The input, and how long it is where that is known.
fn open(file: &PathBuf) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let bytes = opened.metadata().ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
    Ok((Box::new(opened), bytes))
}

/// On stderr, and only where a person looks.
fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = |template| ProgressStyle::with_template(template).expect("the template is a constant that is valid");
    match bytes {
        Some(bytes) => {
            ProgressBar::new(bytes).with_style(style("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left"))
        }
        None => ProgressBar::new_spinner().with_style(style("{spinner} {bytes} {bytes_per_sec} {elapsed}")),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    statements: Vec<Shown<'a>>,
    #[serde(flatten)]
    tally: &'a Tally,
    seconds: f64,
    records_per_second: u64,
}

impl<'a> Report<'a> {
    fn of(statements: &'a [Statement], tally: &'a Tally, seconds: f64) -> Report<'a> {
        Report {
            statements: statements.iter().map(Shown::of).collect(),
            tally,
            seconds: (seconds * 1000.0).round() / 1000.0,
            records_per_second: per_second(tally, seconds),
        }
    }
}

fn per_second(tally: &Tally, seconds: f64) -> u64 {
    (tally.records as f64 / seconds.max(f64::EPSILON)).round() as u64
}

fn text(statements: &[Statement]) -> String {
    let columns = columns();
    let is_shown = |place: &usize| !columns[*place].starts_with("granted_");
    let places: Vec<usize> = (0..columns.len()).filter(is_shown).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(places.iter().map(|place| columns[*place].replace('_', " ")));
    for row in statements.iter().flat_map(rows) {
        table.add_row(places.iter().map(|place| &row[*place]));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if index == 2 || index > 6 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn csv(statements: &[Statement]) -> Vec<String> {
    let line = |cells: &[&str]| cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",");
    let mut lines = vec![columns().join(",")];
    for row in statements.iter().flat_map(rows) {
        lines.push(line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    lines
}

/// What became of the records.
fn told(tally: &Tally, seconds: f64) -> String {
    let mut lines =
        vec![format!("{} records in {seconds:.3} s ({} a second)", tally.records, per_second(tally, seconds))];
    for (name, counts) in [("usage", &tally.usage), ("commands", &tally.commands)] {
        let counts: Vec<String> = counts.iter().map(|(outcome, records)| format!("{records} {outcome}")).collect();
        if !counts.is_empty() {
            lines.push(format!("{name}: {}", counts.join(", ")));
        }
    }
    for (what, reasons) in [("not judged", &tally.not_judged), ("refused", &tally.refused)] {
        for (reason, Reason { records, first_line, first }) in reasons {
            lines.push(format!("{what}: {records} {reason}, first in line {first_line}: {first}"));
        }
    }
    if tally.after_until > 0 {
        lines.push(format!("left out: {} dated after --until", tally.after_until));
    }
    lines.join("\n")
}
