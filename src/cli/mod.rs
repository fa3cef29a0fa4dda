//! The commands. What they answer goes to stdout, what they say meanwhile to stderr.

/// Commands to accounts, and what an account is.
pub mod account;
/// Add-ons of an account.
pub mod addon;
/// Edges of balances, as they come.
pub mod alerts;
/// Whether Redis holds what the log comes to.
pub mod audit;
/// What a file of events comes to under a price list.
pub mod backtest;
/// What a team has left.
pub mod balance;
/// The price list.
pub mod catalogue;
/// Whether all that the meter needs is there.
pub mod check;
/// Records that could not be judged.
pub mod dead_letters;
/// What a team has used, event by event.
pub mod events;
/// A program for each alert.
mod exec;
/// Made-up usage.
pub mod generate;
/// Top-ups, promos and corrections.
pub mod grant;
/// Events of the past into Kafka.
mod history;
/// Events from a file into Kafka.
pub mod load;
/// Texts and JSON on stdout.
mod output;
/// From an emptied or older Redis to what the log comes to.
pub mod rebuild;
/// Sends a command and waits for its answer.
mod request;
/// Where a follower is, in a file.
mod resume;
/// JSON Schema of messages.
pub mod schema;
/// Events to load, read ahead.
mod source;
/// What a team was granted and has used, cycle by cycle.
pub mod statement;
/// What meters do, as it happens.
pub mod top;
/// What a team has used, by day, member and action.
pub mod usage;
/// Arguments from their texts.
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigError, StartFrom};
use crate::failpoint;
use output::Output;

/// Counts what a team's reveals and enrichments cost.
///
/// Settings come from config/meter.toml, then CREDIT_METER__SECTION__KEY in the environment, then --set.
#[derive(Debug, Parser)]
#[command(name = "credit-meter", version)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Read this file instead of config/meter.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, for instance kafka.brokers=localhost:9092; repeatable
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = values::setting)]
    pub set: Vec<(String, String)>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on stderr; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where a first start begins to read usage: earliest, latest, a date (in UTC) or a time like 2026-01-31T12:00:00Z
    #[arg(long)]
    start_from: Option<StartFrom>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the meter
    Serve(ServeArgs),
    /// Run everything in this process for a while: nothing else is needed
    Demo(DemoArgs),
    /// Check settings, Kafka, Redis and the state; with --create-topics make what is missing
    Check(check::CheckArgs),
    /// Make an emptied or older Redis what the log comes to
    Rebuild(rebuild::RebuildArgs),
    /// Send events from a file, from stdin or made up
    Load(load::LoadArgs),
    /// Create, change or show an account
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Give credits to an account: bought ones (top-up) or a gift (promo)
    Grant(grant::GrantArgs),
    /// Take back what is left of a grant
    VoidGrant(grant::VoidGrantArgs),
    /// Correct an account's open cycle by some credits
    Adjust(grant::AdjustArgs),
    /// Set or remove an account's add-ons, all else unchanged
    #[command(subcommand)]
    Addon(addon::AddonCommand),
    /// Show what an account has left
    Balance(balance::BalanceArgs),
    /// Show what an account was granted and has used, cycle by cycle
    Statement(statement::StatementArgs),
    /// Show what an account has used, by day, member and action
    Usage(usage::UsageArgs),
    /// Show each event of an account with its outcome and cost
    Events(events::EventsArgs),
    /// Print the alerts: balances that ran low, ran out or recovered; --follow goes on
    Alerts(alerts::AlertsArgs),
    /// Records that could not be judged: list them, show one, send them again
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Watch one or several meters: lag, outcomes, call time, the hottest accounts and those in alarm
    Top(top::TopArgs),
    /// Check or show the price list
    #[command(subcommand)]
    Catalogue(catalogue::CatalogueCommand),
    /// Fold the log again and compare every account with Redis; the meter may go on meanwhile
    Audit(audit::AuditArgs),
    /// What a file of events comes to under a price list, cycle by cycle, without Kafka or Redis
    Backtest(backtest::BacktestArgs),
    /// List the types of messages, or print the JSON Schema of one, or of all
    Schema(schema::SchemaArgs),
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How long to run
    #[arg(long = "for", value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub duration: Duration,
    /// Makes the same events again
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How a command ended that has said all that there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Well,
    Badly,
}

impl Cli {
    /// Reads the arguments; ends the process where they are wrong or ask for help.
    pub fn from_args(args: &[OsString]) -> Cli {
        Cli::try_from_args(args).unwrap_or_else(|error| error.exit())
    }

    fn try_from_args(args: &[OsString]) -> Result<Cli, clap::Error> {
        let mut cli = Cli::try_parse_from(args)?;
        cli.global.set = settings(args);
        // What no single argument shows.
        match &cli.command {
            Command::Usage(args) => args.check()?,
            Command::Events(args) => args.check()?,
            _ => {}
        }
        Ok(cli)
    }

    /// What is logged: the meter says what it does, the other commands only answer.
    pub fn log_filter(&self, config: &Config) -> String {
        let chosen = &config.log.filter;
        let is_meter = matches!(self.command, Command::Serve(_));
        let asked_for = *chosen != Config::default().log.filter;
        match self.global.verbose {
            0 if is_meter || asked_for => chosen.clone(),
            0 => "error,librdkafka=off,rdkafka=off".to_owned(),
            1 if is_meter => format!("{chosen},credit_meter=debug"),
            1 => chosen.clone(),
            _ => "debug".to_owned(),
        }
    }

    pub async fn run(self, config: Result<Config, ConfigError>) -> anyhow::Result<Ended> {
        let output = Output { json: self.global.json };
        // A bad configuration is one of the things that `check` tells.
        if let Command::Check(args) = self.command {
            return check::run(args, config, output).await;
        }
        // It depends on none.
        if let Command::Schema(args) = self.command {
            return schema::run(args, output);
        }
        let config = config.context("the configuration is not valid")?;
        if let Some(place) = &config.debug.failpoint {
            failpoint::arm(place)?;
        }
        match self.command {
            Command::Serve(args) => {
                let mut config = config;
                config.kafka.start_from = args.start_from.unwrap_or(config.kafka.start_from);
                crate::app::serve(config).await.map(|()| Ended::Well)
            }
            Command::Demo(args) => demo(args, output).await,
            Command::Rebuild(args) => rebuild::run(args, &config, output).await,
            Command::Load(args) => load::run(args, &config, output).await,
            Command::Account(account::AccountCommand::Put(args)) => account::put(args, &config, output).await,
            Command::Account(account::AccountCommand::Get(args)) => account::get(args, &config, output).await,
            Command::Account(account::AccountCommand::Close(args)) => account::close(args, &config, output).await,
            Command::Grant(args) => grant::grant(args, &config, output).await,
            Command::VoidGrant(args) => grant::void(args, &config, output).await,
            Command::Adjust(args) => grant::adjust(args, &config, output).await,
            Command::Addon(command) => addon::run(command, &config, output).await,
            Command::Balance(args) => balance::run(args, &config, output).await,
            Command::Statement(args) => statement::run(args, &config, output).await,
            Command::Usage(args) => usage::run(args, &config, output).await,
            Command::Events(args) => events::run(args, &config, output).await,
            Command::Alerts(args) => alerts::run(args, &config, output).await,
            Command::DeadLetters(command) => dead_letters::run(command, &config, output).await,
            Command::Top(args) => top::run(args, &config, output).await,
            Command::Audit(args) => audit::run(args, &config, output).await,
            Command::Catalogue(command) => catalogue::run(command, &config, output),
            Command::Backtest(args) => backtest::run(args, &config, output).await,
            Command::Check(_) | Command::Schema(_) => unreachable!("it has run above"),
        }
    }
}

/// Arguments that do not go together, said and ended as clap does with its own. Those that only the account shows to be
/// wrong reach `main` inside of an error.
fn usage_error(command: &str, message: String) -> clap::Error {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(command).expect("a command of this program");
    command.error(clap::error::ErrorKind::ValueValidation, message)
}

/// Two ends of a time that is asked for.
fn in_order<T: PartialOrd>(command: &str, from: T, to: T, shown: fn(T) -> String) -> Result<(), clap::Error> {
    if from <= to {
        return Ok(());
    }
    Err(usage_error(command, format!("--from {} is after --to {}", shown(from), shown(to))))
}

/// The values of `--set`, before and after the command. Clap keeps only those after it where both are given. The
/// arguments are valid, so that no other option's value looks like this one.
fn settings(args: &[OsString]) -> Vec<(String, String)> {
    let mut args = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    let mut settings = Vec::new();
    while let Some(arg) = args.next() {
        let setting = match arg.strip_prefix("--set=") {
            Some(setting) => Some(setting.to_owned()),
            None if arg == "--set" => args.next().map(|setting| setting.into_owned()),
            None => None,
        };
        settings.extend(setting.and_then(|setting| values::setting(&setting).ok()));
    }
    settings
}

async fn demo(args: DemoArgs, output: Output) -> anyhow::Result<Ended> {
    let options = crate::demo::DemoOptions { for_: args.duration, seed: args.seed };
    crate::demo::run(options, |document, text| output.answer(document, || text)).await.map(|()| Ended::Well)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let args: Vec<OsString> = ["credit-meter"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
        Cli::try_from_args(&args)
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = parse("--json balance team-1 --set kafka.brokers=k:1 --set redis.url=redis://r/ -v").unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.verbose, 1);
    }

    #[test]
    fn settings_before_and_after_the_command_add_up() {
        let line = "credit-meter --set kafka.brokers=k:1 --json check --set=redis.url=redis://r/?a=b --set a=b";
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = [pair("kafka.brokers", "k:1"), pair("redis.url", "redis://r/?a=b"), pair("a", "b")];
        assert_eq!(Cli::from_args(&args).global.set, expected);
    }

    #[test]
    fn usage_errors_are_told_apart_from_failures() {
        let check = |line: &str, kind: ErrorKind| {
            let error = parse(line).expect_err(line);
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}: {error}");
        };
        check("check --set kafka.brokers", ErrorKind::ValueValidation);
        check("load", ErrorKind::MissingRequiredArgument);
        check("dead-letters replay", ErrorKind::MissingRequiredArgument);
        check("dead-letters list --reason unknown_acount", ErrorKind::ValueValidation);
        check("load events.ndjson --generate 10", ErrorKind::ArgumentConflict);
        check("load events.ndjson --seed 3", ErrorKind::ArgumentConflict);
        check("load --generate 10 --topic commands", ErrorKind::ArgumentConflict);
        check("load --generate 10 --accounts 0", ErrorKind::ValueValidation);
        check("account put team-1 --plan basic", ErrorKind::MissingRequiredArgument);
        check("account put team-1 --plan basic --anchor 2026-02-30", ErrorKind::ValueValidation);
        check("account put team-1 --plan basic --anchor 2026-02-01 --addon email", ErrorKind::ValueValidation);
        check("account put team-1 --plan basic --anchor 2026-02-01 --threshold 101%", ErrorKind::ValueValidation);
        check("account put team-1 --plan basic --anchor 2026-02-01 --overage allow:x", ErrorKind::ValueValidation);
        check("grant team-1 --type email --amount 0", ErrorKind::ValueValidation);
        check("grant team-1 --type email --amount -5", ErrorKind::ValueValidation);
        check("grant team-1 --type email --amount 1 --kind gift", ErrorKind::ValueValidation);
        check("grant team-1 --type email --amount 1 --priority 1001", ErrorKind::ValueValidation);
        check("grant team-1 --type email --amount 1 --expires-at 2026-02-01", ErrorKind::ValueValidation);
        check("void-grant team-1", ErrorKind::MissingRequiredArgument);
        check("adjust team-1 --type email --amount -5", ErrorKind::MissingRequiredArgument);
        check("adjust team-1 --type email --amount 0 --reason import", ErrorKind::ValueValidation);
        check("addon set team-1 email", ErrorKind::ValueValidation);
        check("addon set team-1 email=0", ErrorKind::ValueValidation);
        check("addon remove team-1", ErrorKind::MissingRequiredArgument);
        check("account close", ErrorKind::MissingRequiredArgument);
        check("statement team-1 --cycle last", ErrorKind::ValueValidation);
        check("schema credits.usage.v2", ErrorKind::ValueValidation);
        check("schema credits.usage.v1 --all", ErrorKind::ArgumentConflict);
        check("demo --for soon", ErrorKind::ValueValidation);
        check("alerts --from yesterday", ErrorKind::ValueValidation);
        check("alerts --account", ErrorKind::InvalidValue);
        check("top --every 1ms", ErrorKind::ValueValidation);
        check("top --url https://meter-1:9464", ErrorKind::ValueValidation);
        check("events", ErrorKind::MissingRequiredArgument);
        check("events team-1 --to tomorrow", ErrorKind::ValueValidation);
        check("events team-1 --csv --json", ErrorKind::ArgumentConflict);
        check("events team-1 --from 2026-02-02 --to 2026-02-01", ErrorKind::ValueValidation);
        check("events team-1 --from 2026-02-01 --to 2026-02-01T00:00:00Z", ErrorKind::ValueValidation);
        check("usage team-1 --from 2026-02-02 --to 2026-02-01", ErrorKind::ValueValidation);
        check("catalogue show --at soon", ErrorKind::ValueValidation);
        check("catalogue check new.toml --priced-up-to 2027-01-01", ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn ends_the_wrong_way_round_are_told_in_the_same_words() {
        let check = |line: &str, expected: &str| {
            let told = parse(line).expect_err(line).to_string();
            assert!(told.starts_with(&format!("error: {expected}\n\nUsage: credit-meter ")), "{line}: {told}");
        };
        check("usage a --from 2026-02-02 --to 2026-02-01", "--from 2026-02-02 is after --to 2026-02-01");
        check(
            "events a --from 2026-02-02 --to 2026-02-01",
            "--from 2026-02-02T00:00:00Z is after --to 2026-02-01T00:00:00Z",
        );
        parse("events a --from 2026-02-02 --to 2026-02-02T00:00:00.5Z").expect("half a second");
        parse("usage a --from 2026-02-01 --to 2026-02-01").expect("a day");
        parse("events a --from 2026-02-01 --to 2026-02-02").expect("a day");
    }

    #[test]
    fn numbers_may_be_negative() {
        parse("adjust team-1 --type email --amount -0.5 --reason import").unwrap();
        parse("adjust team-1 --type email --amount +5 --reason import").unwrap();
        parse("statement team-1 --cycle -1").unwrap();
    }

    #[test]
    fn only_the_meter_logs_unasked() {
        let mut config = Config::default();
        let filter = |line: &str, config: &Config| parse(line).unwrap().log_filter(config);
        assert_eq!(filter("serve", &config), "info");
        assert_eq!(filter("serve -v", &config), "info,credit_meter=debug");
        assert!(filter("balance team-1", &config).contains("librdkafka=off"));
        assert!(filter("demo", &config).contains("librdkafka=off"));
        assert_eq!(filter("balance team-1 -v", &config), "info");
        config.log.filter = "trace".into();
        assert_eq!(filter("balance team-1", &config), "trace");
    }
}
