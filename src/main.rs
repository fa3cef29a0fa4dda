//! The entry: arguments, configuration, logging, then the command.

use std::process::ExitCode;

use credit_meter::cli::{Cli, Ended};
use credit_meter::config::{Config, ConfigError};
use credit_meter::{log, note};

/// Events are allocated by the thread that reads and freed by the one that judges: the system's allocator is slow at
/// that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::from_args(&std::env::args_os().collect::<Vec<_>>());
    let config = Config::from_process(cli.global.config.as_deref(), &cli.global.set);
    match logged(cli, config) {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Badly) => ExitCode::FAILURE,
        Err(error) => match error.downcast_ref::<clap::Error>() {
            // Arguments that only the account shows to be wrong.
            Some(usage) => usage.exit(),
            None => {
                note!("credit-meter: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Logs go to stderr: stdout is for data.
fn logged(cli: Cli, config: Result<Config, ConfigError>) -> anyhow::Result<Ended> {
    let settings = config.as_ref().cloned().unwrap_or_default();
    log::start(&settings.log, &cli.log_filter(&settings))?;
    let ended = run(cli, config);
    log::flush();
    ended
}

fn run(cli: Cli, config: Result<Config, ConfigError>) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(cli.run(config));
    // What still runs reads stdin or waits for a broker: nobody needs it any more.
    runtime.shutdown_background();
    ended
}
