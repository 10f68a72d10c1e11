//! `xm engine`: what executes a domain's code.

use clap::{Parser, ValueEnum};
use domus_privcmd::protocol;

use super::{Session, error::XmError, host::Host, output, table::Subcommand};

/// Show or change what executes a domain's code.
#[derive(Debug, Parser)]
#[command(
    after_help = "The domain goes on where it is, on the other engine, and does not notice.
With kvm its code runs on the processor, in a KVM virtual machine. With soft
the hypervisor's process interprets it: slower, but it needs no /dev/kvm.

Examples:
  xm engine web1
  xm engine web1 soft"
)]
pub struct Engine {
    #[arg(value_name = "Domain")]
    domain: String,

    /// The engine that it shall have
    #[arg(value_enum, value_name = "Engine")]
    engine: Option<Name>,
}

/// An engine's name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    Kvm,
    Soft,
}

impl Subcommand for Engine {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "change the engine of")?;
        let change = self.engine.map(|name| match name {
            Name::Kvm => protocol::Engine::Kvm,
            Name::Soft => protocol::Engine::Soft,
        });
        let engine = host.hypervisor.engine(domain.id(), change)?;
        if change.is_some() {
            return Ok(());
        }
        output::line(match engine {
            protocol::Engine::Kvm => "kvm",
            protocol::Engine::Soft => "soft",
        })
    }
}
