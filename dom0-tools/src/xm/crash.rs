//! What a crashed domain leaves to be read: registers, stack and calls of each
//! vCPU, by the kernel's symbols.

use domus_privcmd::{client::Client, protocol::DomainInfo};
use guest_abi::addr::{DomId, VcpuId};

use super::boot;
use crate::{builder::crash_report_of, config::DomainConfig};

/// The report of each vCPU. What can't be had is said in its place.
#[must_use]
pub fn report(hypervisor: &Client, info: &DomainInfo, config: &DomainConfig) -> String {
    // The file may have been replaced since: then symbols are wrong or
    // missing, and the numbers still are right.
    let image = boot::kernel_of(config);
    let dom = DomId(info.dom);
    let vcpus = (0..=info.max_vcpu_id).map(VcpuId);
    let reports = vcpus.map(|vcpu| {
        crash_report_of(hypervisor, dom, vcpu, image.as_ref())
            .unwrap_or_else(|error| format!("vCPU {vcpu}: no crash report: {error}\n"))
    });
    format!("crash report\n{}", reports.collect::<String>())
}
