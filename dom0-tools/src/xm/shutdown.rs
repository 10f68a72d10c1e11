//! `xm shutdown` and `xm reboot`: ask the guest to end by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

use super::{
    Session,
    error::XmError,
    host::{Domain, Host},
    nodes, output,
    record::Record,
    table::Subcommand,
};
use crate::{config::action::Action, xenstore::client::Nodes};

const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// How long after the end of the old domain the new one may take to appear.
const REBIRTH: Duration = Duration::from_secs(30);

/// Shutdown a domain.
#[derive(Debug, Parser)]
#[command(
    after_help = "The guest's kernel is asked to end, as by its own 'poweroff'. A guest that does not listen goes
on; 'xm destroy' ends it. What happens afterwards the domain's on_poweroff and on_reboot say.

Examples:
  xm shutdown web1        ask, and return at once
  xm shutdown -w web1     ask, and wait until it is gone
  xm shutdown -a -w       all domains
  xm shutdown -R web1     reboot, as 'xm reboot'"
)]
pub struct Shutdown {
    #[arg(value_name = "Domain", required_unless_present = "all")]
    domain: Option<String>,
    /// Shutdown all domains
    #[arg(short, long, conflicts_with = "domain")]
    all: bool,
    /// Wait for shutdown to complete
    #[arg(short, long)]
    wait: bool,
    /// Shutdown without reboot
    #[arg(short = 'H', long, conflicts_with = "reboot")]
    halt: bool,
    /// Shutdown and reboot
    #[arg(short = 'R', long)]
    reboot: bool,
}

impl Subcommand for Shutdown {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let request = match (self.halt, self.reboot) {
            (true, _) => Request::Halt,
            (_, true) => Request::Reboot,
            _ => Request::Poweroff,
        };
        shut_down(self.domain.as_deref(), request, self.wait)
    }
}

/// Reboot a domain.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm reboot web1
  xm reboot -w web1       wait until it has been started again")]
pub struct Reboot {
    #[arg(value_name = "Domain", required_unless_present = "all")]
    domain: Option<String>,
    /// Reboot all domains
    #[arg(short, long, conflicts_with = "domain")]
    all: bool,
    /// Wait for reboot to complete
    #[arg(short, long)]
    wait: bool,
}

impl Subcommand for Reboot {
    fn run(self, _: &Session) -> Result<(), XmError> {
        shut_down(self.domain.as_deref(), Request::Reboot, self.wait)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Poweroff,
    Halt,
    Reboot,
}

impl Request {
    /// What the guest reads in `control/shutdown`.
    fn word(self) -> &'static str {
        match self {
            Request::Poweroff => "poweroff",
            Request::Halt => "halt",
            Request::Reboot => "reboot",
        }
    }
}

/// `who` or, without it, all guests.
fn shut_down(who: Option<&str>, request: Request, wait: bool) -> Result<(), XmError> {
    let mut host = Host::connect()?;
    let domains = match who {
        Some(who) => vec![host.find_guest(who, "shutdown")?],
        None => host
            .domains()?
            .into_iter()
            .filter(|d| !d.is_dom0())
            .collect(),
    };
    for domain in &domains {
        ask(&mut host, domain, request)?;
    }
    match (wait, request) {
        (false, _) => Ok(()),
        (true, Request::Reboot) => wait_for_reboot(&mut host, domains),
        (true, _) => wait_for_end(&mut host, domains),
    }
}

fn ask(host: &mut Host, domain: &Domain, request: Request) -> Result<(), XmError> {
    if domain.info.shutdown.is_some() {
        return Ok(());
    }
    if domain.info.paused {
        eprintln!(
            "Warning: {} is paused and will not react before 'xm unpause {}'.",
            domain.name, domain.name
        );
    }
    if request == Request::Reboot {
        nodes::note_reboot_request(&mut host.store, domain.info.uuid)?;
    }
    let path = format!("{}/control/shutdown", nodes::home(domain.id()));
    host.store.write(&path, request.word())?;
    Ok(())
}

fn wait_for_end(host: &mut Host, mut domains: Vec<Domain>) -> Result<(), XmError> {
    while !domains.is_empty() {
        let alive = host.guests()?;
        let mut left = Vec::new();
        for domain in domains {
            let now = alive.iter().find(|i| is_same(&domain, i));
            if now.is_none_or(|info| info.shutdown.is_some() && stays(&domain)) {
                output::line(&format!("Domain {} terminated", domain.name))?;
            } else {
                left.push(domain);
            }
        }
        domains = left;
        if !domains.is_empty() {
            thread::sleep(BETWEEN_LOOKS);
        }
    }
    output::line("All domains terminated")
}

/// Whether the domain is preserved after its end: waiting for more is vain.
fn stays(domain: &Domain) -> bool {
    Record::load(domain.id()).is_some_and(|r| r.config.on_poweroff == Action::Preserve)
}

fn is_same(domain: &Domain, info: &domus_privcmd::protocol::DomainInfo) -> bool {
    domain.info.dom == info.dom && domain.info.uuid == info.uuid
}

fn wait_for_reboot(host: &mut Host, domains: Vec<Domain>) -> Result<(), XmError> {
    let mut waiting: Vec<(Domain, Option<Instant>)> =
        domains.into_iter().map(|d| (d, None)).collect();
    while !waiting.is_empty() {
        let all = host.domains()?;
        let mut left = Vec::new();
        for (domain, gone_since) in waiting {
            if all.iter().any(|d| is_same(&domain, &d.info)) {
                left.push((domain, None));
            } else if all.iter().any(|d| d.name == domain.name && !d.info.paused) {
                output::line(&format!("Domain {} rebooted", domain.name))?;
            } else if gone_since.is_some_and(|since: Instant| since.elapsed() > REBIRTH) {
                output::line(&format!(
                    "Domain {} destroyed for failed in rebooting",
                    domain.name
                ))?;
            } else {
                left.push((domain, gone_since.or_else(|| Some(Instant::now()))));
            }
        }
        waiting = left;
        if !waiting.is_empty() {
            thread::sleep(BETWEEN_LOOKS);
        }
    }
    output::line("All domains rebooted")
}
