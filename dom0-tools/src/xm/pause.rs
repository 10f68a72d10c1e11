//! `xm pause`, `unpause` and `destroy`.

use clap::Parser;

use super::{Session, error::XmError, host::Host, life, table::Subcommand};

/// Pause execution of a domain.
#[derive(Debug, Parser)]
#[command(
    after_help = "The domain keeps its memory and gets no CPU until it is unpaused.

Example:
  xm pause web1"
)]
pub struct Pause {
    #[arg(value_name = "Domain")]
    domain: String,
}

impl Subcommand for Pause {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "pause")?;
        // Pauses are counted, people's are not.
        if !domain.info.paused {
            host.hypervisor.pause_domain(domain.id())?;
        }
        Ok(())
    }
}

/// Unpause a paused domain.
#[derive(Debug, Parser)]
#[command(after_help = "Example:
  xm unpause web1")]
pub struct Unpause {
    #[arg(value_name = "Domain")]
    domain: String,
}

impl Subcommand for Unpause {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "unpause")?;
        if domain.info.paused {
            host.hypervisor.unpause_domain(domain.id())?;
        }
        Ok(())
    }
}

/// Terminate a domain immediately.
#[derive(Debug, Parser)]
#[command(
    after_help = "The domain gets no chance to put anything away: this is pulling the plug.
'xm shutdown' asks it to end by itself.

Example:
  xm destroy web1"
)]
pub struct Destroy {
    #[arg(value_name = "Domain")]
    domain: String,
}

impl Subcommand for Destroy {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "destroy")?;
        life::destroy(&mut host, domain.id(), domain.info.uuid)?;
        Ok(())
    }
}
