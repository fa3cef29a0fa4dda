//! What was measured: for people as tables, for programs as one line of JSON.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

/// One contender's turn in one round.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub events: u64,
    pub seconds: f64,
    /// Processor seconds of the process that reads.
    pub cpu_seconds: f64,
    /// Processor seconds of Redis meanwhile.
    pub redis_seconds: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.events as f64
    }

    fn redis_us(&self) -> f64 {
        self.redis_seconds * 1e6 / self.events as f64
    }
}

/// One round: everyone's turn, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub consume: Run,
    pub parse: Run,
    pub obvious: Run,
    pub pipelined: Run,
    pub meter: Run,
    pub bytes_per_event: f64,
    pub bytes_per_account: f64,
    pub rss_mb: f64,
}

type Contender = (&'static str, &'static str, fn(&Round) -> Run);

const CONTENDERS: [Contender; 5] = [
    ("consume", "poll only, payload untouched", |round| round.consume),
    ("parse", "poll and parse, one thread", |round| round.parse),
    ("obvious", "a script call an event", |round| round.obvious),
    ("pipelined", "the same, 500 in a pipeline", |round| round.pipelined),
    ("meter", "credit-meter serve", |round| round.meter),
];

/// Smallest, middle and largest.
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of<R>(rounds: &[R], value: impl Fn(&R) -> f64) -> Spread {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { min: values[0], median, max: values[values.len() - 1] }
    }

    fn json(&self, decimals: i32) -> Value {
        json!([round(self.min, decimals), round(self.median, decimals), round(self.max, decimals)])
    }
}

/// Ratios are taken within each round, so that what slows all down slows none against another.
/// Takes one figure out of a round.
type Figure = fn(&Round) -> f64;

const RATIOS: [(&str, Figure); 2] = [
    ("meter_over_parse", |round| round.meter.rate() / round.parse.rate()),
    ("meter_over_obvious", |round| round.meter.rate() / round.obvious.rate()),
];

const SIZES: [(&str, &str, Figure); 3] = [
    ("redis_bytes_per_event", "bytes of Redis an event", |round| round.bytes_per_event),
    ("redis_bytes_per_account", "bytes of Redis an account", |round| round.bytes_per_account),
    ("worker_rss_mb", "worker's peak memory, MB", |round| round.rss_mb),
];

fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (value * scale).round() / scale
}

/// One line: medians by name, and the spread of each under `spread` as smallest, middle, largest.
pub fn json(rounds: &[Round], facts: &[(&'static str, Value)]) -> String {
    let (mut fields, mut spread) = (Map::new(), Map::new());
    let mut add = |name: String, values: Spread, decimals: i32| {
        fields.insert(name.clone(), json!(round(values.median, decimals)));
        spread.insert(name, values.json(decimals));
    };
    for (name, _, run) in CONTENDERS {
        add(name.to_owned(), Spread::of(rounds, |round| run(round).rate()), 0);
    }
    for (name, ratio) in RATIOS {
        add(name.to_owned(), Spread::of(rounds, ratio), 3);
    }
    for (name, _, size) in SIZES {
        add(name.to_owned(), Spread::of(rounds, size), 1);
    }
    for (name, _, run) in CONTENDERS {
        add(format!("{name}_cpu_us"), Spread::of(rounds, |round| run(round).cpu_us()), 3);
        add(format!("{name}_redis_cpu_us"), Spread::of(rounds, |round| run(round).redis_us()), 3);
    }
    fields.insert("spread".to_owned(), Value::Object(spread));
    for (name, value) in facts {
        fields.insert((*name).to_owned(), value.clone());
    }
    Value::Object(fields).to_string()
}

pub fn text(rounds: &[Round], facts: &[(&'static str, Value)]) -> String {
    let mut rates = table(&["", "", "min", "median", "max", "CPU µs", "Redis µs"]);
    for (name, what, run) in CONTENDERS {
        let rate = Spread::of(rounds, |round| run(round).rate());
        let mut row = vec![Cell::new(name), Cell::new(what)];
        row.extend([rate.min, rate.median, rate.max].map(|rate| right(&thousands(rate))));
        row.push(right(&format!("{:.2}", Spread::of(rounds, |round| run(round).cpu_us()).median)));
        row.push(right(&format!("{:.2}", Spread::of(rounds, |round| run(round).redis_us()).median)));
        rates.add_row(row);
    }
    let mut others = table(&["", "min", "median", "max"]);
    let mut add = |name: &str, values: Spread, decimals: usize| {
        let mut row = vec![Cell::new(name)];
        row.extend([values.min, values.median, values.max].map(|value| right(&format!("{value:.decimals$}"))));
        others.add_row(row);
    };
    for (name, ratio) in RATIOS {
        add(&name.replace('_', " "), Spread::of(rounds, ratio), 2);
    }
    for (_, what, size) in SIZES {
        add(what, Spread::of(rounds, size), 1);
    }
    let facts = measured_on(facts);
    format!("events/s, and processor time an event of the reader and of Redis\n{rates}\n\n{others}\n\n{facts}")
}

/// A row a delay: its rate, and that over the first delay's of the same round.
fn by_delay(delays: &[u64], rounds: &[Vec<Run>]) -> Vec<(u64, Spread, Spread)> {
    let of = |(nth, &delay_ms): (usize, &u64)| {
        let rate = Spread::of(rounds, |round| round[nth].rate());
        (delay_ms, rate, Spread::of(rounds, |round| round[nth].rate() / round[0].rate()))
    };
    delays.iter().enumerate().map(of).collect()
}

pub fn delays_json(delays: &[u64], rounds: &[Vec<Run>], facts: &[(&'static str, Value)]) -> String {
    let rows = by_delay(delays, rounds).into_iter().map(|(delay_ms, rate, ratio)| {
        json!({ "redis_delay_ms": delay_ms, "meter": rate.json(0), "over_first": ratio.json(3) })
    });
    let mut fields = Map::from_iter([("delays".to_owned(), rows.collect())]);
    fields.extend(facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Value::Object(fields).to_string()
}

pub fn delays_text(delays: &[u64], rounds: &[Vec<Run>], facts: &[(&'static str, Value)]) -> String {
    let mut rates = table(&["ms to Redis, each way", "events/s", "over the first: min", "median", "max"]);
    for (delay_ms, rate, ratio) in by_delay(delays, rounds) {
        let mut row = vec![right(&delay_ms.to_string()), right(&thousands(rate.median))];
        row.extend([ratio.min, ratio.median, ratio.max].map(|ratio| right(&format!("{ratio:.2}"))));
        rates.add_row(row);
    }
    format!("credit-meter serve on a backlog, by how far Redis is away\n{rates}\n\n{}", measured_on(facts))
}

/// What the figures were taken on, a line each.
fn measured_on(facts: &[(&'static str, Value)]) -> String {
    let line = |(name, value): &(&str, Value)| {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{:<14} {shown}\n", name.replace('_', " "))
    };
    facts.iter().map(line).collect()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// `1234567` as `1,234,567`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
