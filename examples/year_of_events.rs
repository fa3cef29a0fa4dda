//! A year of made-up events for `credit-meter backtest`, on stdout: commands that create the accounts, then usage in
//! the order of its time.
//!
//! ```console
//! $ cargo run --release --example year_of_events -- 3000000 10000 > year.ndjson
//! $ credit-meter backtest year.ndjson --csv > statements.csv
//! ```

use std::io::{BufWriter, Write};

use chrono::{DateTime, SecondsFormat};
use credit_meter::cli::generate::{Generator, Usage, account_name};
use credit_meter::ledger::catalogue::Catalogue;
use serde_json::json;

/// 2026-01-01T00:00:00Z.
const START_MS: i64 = 1_767_225_600_000;
const YEAR_MS: i64 = 365 * 86_400_000;
const PLANS: [&str; 4] = ["free", "basic", "professional", "organization"];
const ZONES: [&str; 4] = ["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata"];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let events: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let accounts: u32 = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let text = include_str!("../config/catalogue.toml");
    let catalogue = Catalogue::parse(text)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for number in 1..=accounts {
        let index = number as usize;
        let time = DateTime::from_timestamp_millis(START_MS).expect("a time");
        let put = json!({
            "specversion": "1.0", "id": format!("put-{number}"), "source": "example", "type": "credits.account.put.v1",
            "subject": account_name(number), "time": time.to_rfc3339_opts(SecondsFormat::Secs, true),
            "data": {
                "plan": PLANS[index % 4], "timezone": ZONES[index / 4 % 4],
                "anchor": format!("2025-12-{:02}", 1 + index % 31),
                "addons": [{"credit_type": "email", "amount": 500}],
            },
        });
        writeln!(out, "{put}")?;
    }
    let mut made = 0;
    let clock = || {
        made += 1;
        START_MS + (i128::from(made) * i128::from(YEAR_MS) / i128::from(events + 1)) as i64
    };
    let generator = Generator::new(Usage { events, accounts, seed: 1 }, &catalogue.actions, clock);
    for event in generator.expect("there are accounts and actions") {
        out.write_all(&event.value)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
