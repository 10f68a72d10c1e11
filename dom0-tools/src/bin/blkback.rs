//! blkback: serves the disks of one domain.

use std::{io, process::ExitCode, time::Duration};

use clap::Parser;
use dom0_tools::{
    backend::{Service, ServiceError, only_one},
    blkback::{Choice, Vbd},
    paths,
};
use domus_privcmd::{client::Client, pidfile::PidFileError};
use guest_abi::addr::DomId;
use tracing_subscriber::EnvFilter;

/// How long a predecessor may take to finish the I/O that it was killed in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the disks of one domain: all below /local/domain/0/backend/vbd/N.
///
/// It may be killed and started again at any time; the guest goes on. The
/// environment variable DOMUS_LOG (as RUST_LOG elsewhere) sets what it
/// reports to standard error, e.g. "debug".
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The domain's number.
    #[arg(long, value_name = "N")]
    domain: u16,

    /// How to do I/O on raw images.
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: Choice,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("DOMUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("blkback: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What made the service fail.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Pid(#[from] PidFileError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

fn serve(options: &Options) -> Result<(), Failure> {
    let _only_one = only_one("blkback", options.domain, PATIENCE)?;
    let client = Client::connect(&paths::privcmd_socket()).map_err(ServiceError::from)?;
    let vbd = Vbd {
        engine: options.engine,
    };
    Ok(Service::start(vbd, client, DomId(options.domain))?.run()?)
}
