//! `xm stop-services`: not xm's, but something must end what xm starts.

use clap::Parser;
use domus_privcmd::client::Client;

use super::{Session, error::XmError, host::Host, life, output, table::Subcommand};
use crate::{
    paths,
    services::{self, Service},
};

/// Stop the hypervisor and the other services of Dom0.
#[derive(Debug, Parser)]
#[command(
    after_help = "They start again by themselves when a command needs them.

Examples:
  xm shutdown -a -w; xm stop-services
  xm stop-services --force      destroys all domains"
)]
pub struct StopServices {
    /// Destroy domains that run, and kill services that don't end
    #[arg(short, long)]
    force: bool,
}

impl Subcommand for StopServices {
    fn run(self, session: &Session) -> Result<(), XmError> {
        // Without a hypervisor there is nobody to start one for.
        if Client::connect(&paths::privcmd_socket()).is_ok() {
            self.end_domains(session)?;
        }
        let stopped: Vec<&str> = services::stop(self.force)?
            .into_iter()
            .map(Service::program)
            .collect();
        if stopped.is_empty() {
            return output::line("No service was running.");
        }
        output::line(&format!("Stopped {}.", stopped.join(", ")))
    }
}

impl StopServices {
    fn end_domains(&self, session: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let guests: Vec<_> = host
            .domains()?
            .into_iter()
            .filter(|d| !d.is_dom0())
            .collect();
        if guests.is_empty() {
            return Ok(());
        }
        if !self.force {
            let names: Vec<_> = guests.iter().map(|d| d.name.as_str()).collect();
            return Err(XmError::Failed(format!(
                "these domains run: {}. End them first ({} shutdown -a -w), or let '--force' destroy them.",
                names.join(", "),
                session.program
            )));
        }
        for guest in guests {
            life::destroy(&mut host, guest.id(), guest.info.uuid)?;
        }
        Ok(())
    }
}
