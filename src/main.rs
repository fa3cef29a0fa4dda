//! The entry: arguments, configuration, logging, then the command.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use credit_meter::cli::{Cli, Ended};
use credit_meter::config::{Config, ConfigError, Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Events are allocated by the thread that reads and freed by the one that judges: the system's allocator is slow at
/// that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::from_args(&std::env::args_os().collect::<Vec<_>>());
    let config = Config::from_process(cli.global.config.as_deref(), &cli.global.set);
    let ended = start_logging(&cli, config.as_ref().ok()).and_then(|()| run(cli, config));
    match ended {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Badly) => ExitCode::FAILURE,
        Err(error) => match error.downcast_ref::<clap::Error>() {
            // Arguments that only the account shows to be wrong.
            Some(usage) => usage.exit(),
            None => {
                eprintln!("credit-meter: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(cli: Cli, config: Result<Config, ConfigError>) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(cli.run(config));
    // What still runs reads stdin or waits for a broker: nobody needs it any more.
    runtime.shutdown_background();
    ended
}

/// Logs go to stderr: stdout is for data.
fn start_logging(cli: &Cli, config: Option<&Config>) -> anyhow::Result<()> {
    let config = config.cloned().unwrap_or_default();
    let filter = cli.log_filter(&config);
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("log.filter `{filter}` is no tracing filter"))?;
    let mut logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if !std::io::stderr().is_terminal() {
        // On a terminal NO_COLOR decides.
        logging = logging.with_ansi(false);
    }
    match config.log {
        Log { format: LogFormat::Text, .. } => logging.init(),
        Log { format: LogFormat::Json, .. } => logging.json().init(),
    }
    Ok(())
}
