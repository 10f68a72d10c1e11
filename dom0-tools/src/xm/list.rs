//! `xm list`.

use clap::Parser;
use serde_json::{Value, json};

use super::{
    Session, block, columns,
    devices::{
        Kind,
        describe::{self, Shown},
    },
    error::XmError,
    host::{Domain, Host},
    output,
    record::Record,
    table::Subcommand,
};
use crate::config::{disk::Disk, vif::Vif};

/// List information about all/some domains.
#[derive(Debug, Parser)]
#[command(after_help = "State is six letters, '-' where it is not so:
  r running  b blocked (waits for events)  p paused
  s shut down  c crashed  d dying

Examples:
  xm list              all domains
  xm list web1 3       these two
  xm list -l web1      all that is known of one, as JSON
  xm list --json       the table, as JSON")]
pub struct List {
    /// Only these
    #[arg(value_name = "Domain")]
    domains: Vec<String>,
    /// All details, as JSON
    #[arg(short, long)]
    long: bool,
    /// The table as JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for List {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domains = chosen(&mut host, &self.domains)?;
        if self.long {
            let all: Result<Vec<Value>, XmError> =
                domains.iter().map(|d| details(&mut host, d)).collect();
            return output::json(&all?);
        }
        if self.json {
            return output::json(&domains.iter().map(brief).collect::<Vec<_>>());
        }
        let rows = domains.iter().map(row);
        let lines: Vec<String> = std::iter::once(columns::list_header())
            .chain(rows)
            .collect();
        output::lines(&lines)
    }
}

/// The named domains in the order named, or all.
///
/// # Errors
/// One does not exist.
pub fn chosen(host: &mut Host, names: &[String]) -> Result<Vec<Domain>, XmError> {
    if names.is_empty() {
        return host.domains();
    }
    names.iter().map(|name| host.find(name)).collect()
}

fn row(domain: &Domain) -> String {
    let info = &domain.info;
    columns::list_row(
        &domain.name,
        info.dom,
        columns::mib(info.tot_pages),
        info.nr_online_vcpus,
        &columns::state_letters(info),
        columns::seconds(info.cpu_time_ns),
    )
}

fn brief(domain: &Domain) -> Value {
    let info = &domain.info;
    json!({
        "name": domain.name,
        "domid": info.dom,
        "uuid": info.uuid,
        "memory_mib": columns::mib(info.tot_pages),
        "maxmem_mib": columns::mib(info.max_pages),
        "vcpus": info.nr_online_vcpus,
        "state": columns::state_letters(info),
        "shutdown_reason": info.shutdown,
        "cpu_time_s": columns::seconds(info.cpu_time_ns),
    })
}

/// As xl prints it: `domid` and the configuration by libxl's names.
fn details(host: &mut Host, domain: &Domain) -> Result<Value, XmError> {
    let info = &domain.info;
    let record = Record::load(domain.id()).filter(|r| r.uuid == info.uuid);
    let mut config = json!({
        "c_info": { "type": "pv", "name": domain.name, "uuid": info.uuid, "run_hotplug_scripts": "True" },
        "b_info": {
            "max_vcpus": info.max_vcpu_id.saturating_add(1),
            "max_memkb": info.max_pages.saturating_mul(4),
            "target_memkb": info.tot_pages.saturating_mul(4),
            "type.pv": {},
        },
    });
    if let Some(record) = record {
        add_record(&mut config, &record);
        let disks = block::shown_of(host, domain.id(), Kind::Vbd)?;
        let nics = block::shown_of(host, domain.id(), Kind::Vif)?;
        add_devices(&mut config, &record, &disks, &nics);
    }
    Ok(json!({ "domid": info.dom, "config": config, "state": brief(domain) }))
}

fn add_devices(config: &mut Value, record: &Record, disks: &[Shown], nics: &[Shown]) {
    let find = |all: &[Shown], id: Option<u32>| all.iter().find(|s| Some(s.id()) == id).cloned();
    let disk = |d: &Disk| describe::disk(d, find(disks, Some(d.vdev.number)).as_ref());
    let nic = |v: &Vif| describe::nic(v, find(nics, v.devid).as_ref());
    config["disks"] = record.config.disks.iter().map(disk).collect();
    config["nics"] = record.config.vifs.iter().map(nic).collect();
}

fn add_record(config: &mut Value, record: &Record) {
    let from = &record.config;
    let build = &mut config["b_info"];
    build["avail_vcpus"] = json!((0..from.vcpus).collect::<Vec<_>>());
    build["max_memkb"] = json!(from.maxmem_mib * 1024);
    build["target_memkb"] = json!(from.memory_mib * 1024);
    build["kernel"] = json!(from.kernel);
    build["ramdisk"] = json!(from.ramdisk);
    build["cmdline"] = json!(from.cmdline);
    build["sched_params"] = json!({ "weight": from.cpu_weight, "cap": from.cpu_cap });
    config["on_poweroff"] = json!(from.on_poweroff);
    config["on_reboot"] = json!(from.on_reboot);
    config["on_crash"] = json!(from.on_crash);
}
