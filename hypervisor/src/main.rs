//! The hypervisor's process: opens `/dev/kvm`, if it is to use it, and the
//! privcmd socket, and serves until it is told to stop.

use clap::Parser;
use hypervisor::{
    engine::EngineChoice,
    hypervisor::{Hypervisor, RunAheadChoice},
    populate::PopulateChoice,
    privcmd::{Limits, Server},
};
use nix::sys::signal::{SigSet, Signal};
use std::{path::PathBuf, process::ExitCode, sync::Arc};

/// Runs Xen PV guests on this host.
///
/// `xm` starts this program when it needs it. It needs its socket and, to be
/// quick, /dev/kvm, and nothing else. SIGTERM ends it, and all domains with it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the control domain's processes connect
    #[arg(long, value_name = "PATH", default_value = "/run/domus/privcmd.sock")]
    socket: PathBuf,

    /// What executes the guests' code: KVM, or this process itself
    #[arg(
        long,
        value_enum,
        value_name = "ENGINE",
        default_value = "auto",
        env = "DOMUS_ENGINE"
    )]
    engine: EngineChoice,

    /// After a trap on KVM, interpret the guest's next instructions in this process
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        env = "DOMUS_RUN_AHEAD"
    )]
    run_ahead: RunAheadChoice,

    /// Touch a new domain's memory before it does, which quickens its start
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        env = "DOMUS_POPULATE"
    )]
    populate: PopulateChoice,

    /// For debugging: at every so many entries on KVM, execute a stretch also in
    /// this process, compare, and tell of differences in `xm dmesg`
    #[arg(long, value_name = "ENTRIES", default_value_t = 0, env = "DOMUS_CHECK")]
    check_every: u64,
}

fn main() -> ExitCode {
    settle_heap();
    let arguments = Arguments::parse();
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("DOMUS_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("domus-hypervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One heap for all threads, grown in large steps.
///
/// Each change of the process's mappings is told to every VM of it, so a heap
/// that grows page by page makes the work of creating a domain rise with the
/// number of domains.
fn settle_heap() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TOP_PAD, 1 << 20),
        (libc::M_TRIM_THRESHOLD, 64 << 20),
    ] {
        // SAFETY: sets a number of the allocator's; called before any thread.
        unsafe { libc::mallopt(parameter, value) };
    }
}

fn serve(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Blocked before any thread exists, so that only this one takes them.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let hypervisor = Arc::new(Hypervisor::new(arguments.engine, arguments.run_ahead)?);
    hypervisor.host.set_check_every(arguments.check_every);
    if arguments.populate == PopulateChoice::Off {
        hypervisor.host.populator.turn_off();
    }
    let server = Server::start(
        &arguments.socket,
        Arc::clone(&hypervisor) as _,
        Limits::default(),
    )?;
    let signal = signals.wait()?;
    tracing::info!(%signal, "stopping");
    server.stop();
    for domain in hypervisor.domains() {
        hypervisor.destroy(domain.id);
    }
    Ok(())
}
