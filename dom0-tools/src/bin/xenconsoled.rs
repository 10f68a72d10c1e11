//! xenconsoled: serves the PV consoles of all domains.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Parser;
use dom0_tools::{
    background,
    console::daemon::{Daemon, DaemonError},
    paths,
};
use domus_privcmd::{
    client::Client,
    pidfile::{PidFile, PidFileError},
};
use tracing_subscriber::EnvFilter;

/// Serves the PV consoles of all domains: each gets a pseudo-terminal, named
/// by /local/domain/N/console/tty in xenstore, and a log file.
///
/// SIGHUP opens the log files again. The environment variable DOMUS_LOG (as
/// RUST_LOG elsewhere) sets what the service itself reports, e.g. "debug".
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Stay in the foreground and report to standard error.
    #[arg(short = 'i', short_alias = 'f', long, alias = "interactive")]
    foreground: bool,

    /// Where the consoles' logs go.
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,

    /// The file that holds this service's process id.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Say "ready" on standard output, then go into the background.
    #[arg(long, hide = true)]
    ready_on_stdout: bool,
}

/// What made the service fail.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Pid(#[from] PidFileError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("cannot go into the background: {0}")]
    Background(io::Error),
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.foreground && !options.ready_on_stdout {
        return match background::launch() {
            Ok(code) => code,
            Err(error) => fail(&Failure::Background(error)),
        };
    }
    let filter = EnvFilter::try_from_env("DOMUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("xenconsoled: {failure}");
    ExitCode::FAILURE
}

fn serve(options: Options) -> Result<(), Failure> {
    let pid_file = options
        .pid_file
        .unwrap_or_else(|| paths::pid_file("xenconsoled"));
    let _only_one = PidFile::acquire(&pid_file)?;
    let log_dir = options.log_dir.unwrap_or_else(paths::log_dir);
    let client = Client::connect(&paths::privcmd_socket()).map_err(DaemonError::from)?;
    let mut daemon = Daemon::start(client, log_dir.join("console"))?;
    if options.ready_on_stdout {
        background::detach(&log_dir.join("xenconsoled.log")).map_err(Failure::Background)?;
    }
    Ok(daemon.run()?)
}
