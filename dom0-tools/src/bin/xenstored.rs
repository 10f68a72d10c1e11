//! `xenstored`: the xenstore daemon. See [`dom0_tools::xenstore`].

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use dom0_tools::{
    paths,
    xenstore::server::{Config, Server, ServerError},
};
use domus_privcmd::pidfile::{PidFile, PidFileError};
use tracing_subscriber::EnvFilter;

/// Serves xenstore to Dom0 and to guests until it gets SIGTERM. It stays in
/// the foreground and logs to stderr (RUST_LOG sets how much). Killed and
/// started again, it goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "xenstored", version)]
struct Options {
    /// The socket for clients [default: $XENSTORED_PATH, else
    /// $XENSTORED_RUNDIR/socket, else $DOMUS_RUN_DIR/xenstored/socket, else
    /// /var/run/xenstored/socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Stay in the foreground: always so, accepted for the scripts of Xen
    #[arg(short = 'N', long)]
    no_fork: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("another xenstored serves this installation: {0}")]
    Running(PidFileError),
    #[error(transparent)]
    PidFile(PidFileError),
    #[error("cannot make {}: {source}", path.display())]
    RunDir {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Server(#[from] ServerError),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xenstored: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Failure> {
    let run_dir = paths::run_dir();
    std::fs::create_dir_all(&run_dir).map_err(|source| Failure::RunDir {
        path: run_dir.clone(),
        source,
    })?;
    let _lock = PidFile::acquire(&paths::pid_file("xenstored")).map_err(|error| match error {
        held @ PidFileError::Held { .. } => Failure::Running(held),
        other @ PidFileError::Io { .. } => Failure::PidFile(other),
    })?;
    let config = Config {
        socket: options
            .socket
            .clone()
            .unwrap_or_else(paths::xenstored_socket),
        journal: run_dir.join("xenstored.journal"),
        privcmd: paths::privcmd_socket(),
    };
    let mut server = Server::open(&config)?;
    tracing::info!(socket = %config.socket.display(), "serving");
    server.run()?;
    // Ours still, as long as the lock is.
    let _ = std::fs::remove_file(&config.socket);
    tracing::info!("stopped by a signal");
    Ok(())
}
