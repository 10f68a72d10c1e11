//! `xm vcpu-list`.

use std::fs;

use clap::Parser;
use domus_privcmd::protocol::VcpuInfo;
use guest_abi::addr::VcpuId;
use serde_json::{Value, json};

use super::{
    Session, columns,
    error::XmError,
    host::{Domain, Host},
    list, output,
    table::Subcommand,
};
use crate::config::cpus;

/// List the VCPUs for all/some domains.
#[derive(Debug, Parser)]
#[command(after_help = "State is three letters: r running, b blocked, p not up.

Example:
  xm vcpu-list web1")]
pub struct VcpuList {
    /// Only these
    #[arg(value_name = "Domain")]
    domains: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for VcpuList {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let nr_cpus = host.hypervisor.host_info()?.nr_cpus;
        let mut rows = Vec::new();
        let mut values = Vec::new();
        for domain in list::chosen(&mut host, &self.domains)? {
            for (number, vcpu) in vcpus(&host, &domain)? {
                rows.push(row(&domain, number, &vcpu, nr_cpus));
                values.push(value(&domain, number, &vcpu));
            }
        }
        if self.json {
            return output::json(&values);
        }
        rows.insert(0, columns::vcpu_header());
        output::lines(&rows)
    }
}

fn vcpus(host: &Host, domain: &Domain) -> Result<Vec<(u32, VcpuInfo)>, XmError> {
    let numbers = 0..=domain.info.max_vcpu_id;
    if domain.is_dom0() {
        return Ok(numbers.map(|n| (n, host_cpu(n))).collect());
    }
    let mut all = Vec::new();
    for number in numbers {
        match host.hypervisor.vcpu_info(domain.id(), VcpuId(number)) {
            Ok(vcpu) => all.push((number, vcpu)),
            // Ended between the list and now.
            Err(error) if error.is_no_such_domain() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Dom0 has the host's CPUs, one vCPU on each.
fn host_cpu(number: u32) -> VcpuInfo {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let prefix = format!("cpu{number} ");
    let line = text.lines().find_map(|l| l.strip_prefix(&prefix));
    let ticks: Vec<u64> = line
        .into_iter()
        .flat_map(str::split_whitespace)
        .map_while(|n| n.parse().ok())
        .collect();
    let used: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    VcpuInfo {
        online: line.is_some(),
        blocked: false,
        running: true,
        cpu_time_ns: used.saturating_mul(10_000_000),
        cpu: number,
        affinity: Vec::new(),
    }
}

fn state(vcpu: &VcpuInfo) -> String {
    if !vcpu.online {
        return "--p".to_owned();
    }
    let letter = |is: bool, letter| if is { letter } else { '-' };
    [letter(vcpu.running, 'r'), letter(vcpu.blocked, 'b'), '-']
        .iter()
        .collect()
}

fn row(domain: &Domain, number: u32, vcpu: &VcpuInfo, nr_cpus: u32) -> String {
    let cpu = if vcpu.online {
        vcpu.cpu.to_string()
    } else {
        "-".to_owned()
    };
    columns::vcpu_row(
        &domain.name,
        domain.info.dom,
        number,
        &cpu,
        &state(vcpu),
        columns::seconds(vcpu.cpu_time_ns),
        &cpus::format(&vcpu.affinity, nr_cpus),
    )
}

fn value(domain: &Domain, number: u32, vcpu: &VcpuInfo) -> Value {
    json!({
        "name": domain.name,
        "domid": domain.info.dom,
        "vcpu": number,
        "cpu": vcpu.online.then_some(vcpu.cpu),
        "state": state(vcpu),
        "cpu_time_s": columns::seconds(vcpu.cpu_time_ns),
        "affinity": vcpu.affinity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let vcpu = |online, running, blocked| VcpuInfo {
            online,
            blocked,
            running,
            cpu_time_ns: 0,
            cpu: 0,
            affinity: vec![],
        };
        assert_eq!(state(&vcpu(true, true, false)), "r--");
        assert_eq!(state(&vcpu(true, false, true)), "-b-");
        assert_eq!(state(&vcpu(false, false, false)), "--p");
    }
}
