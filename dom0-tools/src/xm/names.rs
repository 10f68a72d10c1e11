//! `xm domid`, `domname`, `domstate` and `rename`.

use clap::Parser;
use serde_json::json;

use super::{
    Session, columns,
    devices::sharing,
    error::XmError,
    host::Host,
    life::{self, LifeError},
    nodes, output,
    record::Record,
    table::Subcommand,
};
use crate::config::name::DomainName;

/// Convert a domain name to domain id.
#[derive(Debug, Parser)]
#[command(after_help = "Example:
  xm domid web1")]
pub struct Domid {
    #[arg(value_name = "DomainName")]
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Domid {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let domain = Host::connect()?.find(&self.name)?;
        if self.json {
            return output::json(&json!(domain.info.dom));
        }
        output::line(&domain.info.dom.to_string())
    }
}

/// Convert a domain id to domain name.
#[derive(Debug, Parser)]
#[command(after_help = "Example:
  xm domname 3")]
pub struct Domname {
    #[arg(value_name = "DomId")]
    id: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Domname {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let domain = Host::connect()?.find(&self.id)?;
        if self.json {
            return output::json(&json!(domain.name));
        }
        output::line(&domain.name)
    }
}

/// Get the state of a domain in one word.
#[derive(Debug, Parser)]
#[command(
    after_help = "The word is one of: running, idle, paused, shutdown, crashed, dying.

Example:
  xm domstate web1"
)]
pub struct Domstate {
    #[arg(value_name = "Domain")]
    domain: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Domstate {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let domain = Host::connect()?.find(&self.domain)?;
        let word = columns::state_word(&domain.info);
        if self.json {
            return output::json(&json!(word));
        }
        output::line(word)
    }
}

/// Rename a domain.
#[derive(Debug, Parser)]
#[command(
    after_help = "A name has letters, digits and _ - . : + in it, and is not a number.

Example:
  xm rename web1 web1-old"
)]
pub struct Rename {
    #[arg(value_name = "Domain")]
    domain: String,
    #[arg(value_name = "NewDomainName")]
    name: String,
}

impl Subcommand for Rename {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let name = DomainName::new(self.name).map_err(|e| XmError::Failed(e.to_string()))?;
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "rename")?;
        let (dom, uuid) = (domain.id(), domain.info.uuid);
        // The record is somebody else's to change meanwhile.
        let _lock = sharing::lock().map_err(LifeError::Sharing)?;
        let Host { hypervisor, store } = &mut host;
        let lives = |other| life::lives(hypervisor, other);
        nodes::rename(store, dom, uuid, name.as_str(), lives).map_err(LifeError::Name)?;
        if let Some(mut record) = Record::load(domain.id()).filter(|r| r.uuid == domain.info.uuid) {
            record.config.name = name;
            record.save().map_err(LifeError::Record)?;
        }
        Ok(())
    }
}
