//! `xm uptime`.

use std::fs;

use clap::Parser;
use nix::libc;
use serde_json::json;

use super::{
    Session, columns,
    error::XmError,
    host::{Domain, Host},
    life, list, output,
    table::Subcommand,
};
use crate::xenstore::client::Nodes;

/// Print uptime for all/some domains.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm uptime
  xm uptime -s web1      in one line, as uptime(1)")]
pub struct Uptime {
    /// Only these
    #[arg(value_name = "Domain")]
    domains: Vec<String>,
    /// In the form of uptime(1)
    #[arg(short, long)]
    short: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Uptime {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let mut all = Vec::new();
        for domain in list::chosen(&mut host, &self.domains)? {
            let seconds = seconds_up(&mut host, &domain)?;
            all.push((domain.name, domain.info.dom, seconds));
        }
        if self.json {
            let entry = |(name, dom, up): &(String, u16, u64)| json!({ "name": name, "domid": dom, "uptime_s": up });
            return output::json(&all.iter().map(entry).collect::<Vec<_>>());
        }
        let now = time_of_day();
        let rows = all.iter().map(|(name, dom, seconds)| {
            if self.short {
                columns::uptime_short(name, *dom, *seconds, &now)
            } else {
                columns::uptime_row(name, *dom, *seconds)
            }
        });
        let header = (!self.short).then(columns::uptime_header);
        output::lines(&header.into_iter().chain(rows).collect::<Vec<_>>())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds, not negative
fn seconds_up(host: &mut Host, domain: &Domain) -> Result<u64, XmError> {
    if domain.is_dom0() {
        let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let up = text.split('.').next().and_then(|n| n.parse().ok());
        return Ok(up.unwrap_or(0));
    }
    let path = format!("/vm/{}/start_time", domain.info.uuid);
    let start = host
        .store
        .find(&path)?
        .and_then(|text| text.parse::<f64>().ok());
    Ok(start.map_or(0, |start| (life::now() - start).max(0.0).round() as u64))
}

/// `12:34:56`, local.
fn time_of_day() -> String {
    // SAFETY: `time` takes a null pointer; `localtime_r` reads the time given
    // and writes the structure given, and both live here.
    let local = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut local);
        local
    };
    format!(
        "{:02}:{:02}:{:02}",
        local.tm_hour, local.tm_min, local.tm_sec
    )
}
