//! `xm console`.

use std::io::{self, IsTerminal};

use clap::Parser;
use guest_abi::addr::DomId;

use super::{Session, error::XmError, host::Host, table::Subcommand};
use crate::console::attach::{DomainConsole, End, attach};

/// Attach to <Domain>'s console.
#[derive(Debug, Parser)]
#[command(
    after_help = "Ctrl+] leaves the console; it ends by itself when the domain does.

Examples:
  xm console web1
  xm console web1 < commands.txt > output.txt"
)]
pub struct Console {
    #[arg(value_name = "Domain")]
    domain: String,
    /// Do not print an error message if the domain does not exist
    #[arg(short, long)]
    quiet: bool,
}

impl Subcommand for Console {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        match host.find(&self.domain) {
            Err(XmError::NoDomain(_)) if self.quiet => Err(XmError::Quiet(3)),
            Err(error) => Err(error),
            Ok(domain) if domain.is_dom0() => Err(XmError::Failed(
                "Domain-0 is this host: it has no console here.".to_owned(),
            )),
            Ok(domain) => stay(&mut host, domain.id()),
        }
    }
}

/// Stays at a domain's console until somebody leaves it or the domain ends.
///
/// # Errors
/// There is no console, or it breaks.
pub fn stay(host: &mut Host, dom: DomId) -> Result<(), XmError> {
    let mut console = DomainConsole::new(&host.hypervisor, &mut host.store, dom)?;
    let end = attach(&mut console)?;
    if io::stdin().is_terminal() {
        eprintln!();
    }
    match end {
        End::Detached | End::GuestEnded => Ok(()),
        End::Signal(number) => Err(XmError::Quiet(u8::try_from(128 + number).unwrap_or(1))),
    }
}
