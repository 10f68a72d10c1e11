//! netback: serves the network interfaces of one domain.

use std::{io, process::ExitCode, time::Duration};

use clap::Parser;
use dom0_tools::{
    backend::{Service, ServiceError, only_one},
    netback::Vif,
    paths,
};
use domus_privcmd::{client::Client, pidfile::PidFileError};
use guest_abi::addr::DomId;
use tracing_subscriber::EnvFilter;

/// How long a predecessor may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the network interfaces of one domain: all below
/// /local/domain/0/backend/vif/N.
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
}

/// What made the service fail.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Pid(#[from] PidFileError),
    #[error(transparent)]
    Service(#[from] ServiceError),
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
            eprintln!("netback: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Failure> {
    let _only_one = only_one("netback", options.domain, PATIENCE)?;
    let client = Client::connect(&paths::privcmd_socket()).map_err(ServiceError::from)?;
    let dom = DomId(options.domain);
    client.restrict(dom).map_err(ServiceError::from)?;
    Ok(Service::start(Vif, client, dom)?.run()?)
}
