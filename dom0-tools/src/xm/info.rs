//! `xm info`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::Parser;
use domus_privcmd::protocol::HostInfo;
use serde_json::{Map, Value, json};

use super::{Session, columns, error::XmError, host::Host, output, table::Subcommand};

/// Get information about the host.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm info
  xm info -n                  with the topology of CPUs and memory nodes
  xm info --json | jq .free_memory")]
pub struct Info {
    /// List host NUMA topology information
    #[arg(short, long)]
    numa: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Info {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let host = Host::connect()?;
        let info = host.hypervisor.host_info()?;
        let cpus = Cpu::all(info.nr_cpus);
        let rows = rows(&info, &cpus)?;
        if self.json {
            return output::json(&as_json(&rows, &cpus, self.numa));
        }
        let mut lines: Vec<String> = rows.iter().map(|(k, v)| columns::info_row(k, v)).collect();
        if self.numa {
            // Before the last row but as xm had it, behind `free_cpus`.
            let at = rows
                .iter()
                .position(|(k, _)| *k == "xen_major")
                .unwrap_or(rows.len());
            lines.splice(at..at, topology(&cpus));
        }
        output::lines(&lines)
    }
}

/// A host CPU's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cpu {
    number: u32,
    core: u32,
    socket: u32,
    node: u32,
}

impl Cpu {
    fn all(count: u32) -> Vec<Cpu> {
        (0..count).map(Cpu::read).collect()
    }

    fn read(number: u32) -> Cpu {
        let dir = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}"));
        let value = |file: &str| {
            let text = fs::read_to_string(dir.join("topology").join(file)).ok()?;
            text.trim().parse().ok()
        };
        let node = (0..64).find(|n| dir.join(format!("node{n}")).exists());
        Cpu {
            number,
            core: value("core_id").unwrap_or(number),
            socket: value("physical_package_id").unwrap_or(0),
            node: node.unwrap_or(0),
        }
    }
}

fn count<T: Ord>(of: impl Iterator<Item = T>) -> usize {
    of.collect::<BTreeSet<_>>().len().max(1)
}

fn rows(info: &HostInfo, cpus: &[Cpu]) -> Result<Vec<(&'static str, String)>, XmError> {
    let uname = nix::sys::utsname::uname()
        .map_err(|e| XmError::Failed(format!("can't ask the host's kernel for its name: {e}")))?;
    let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
    let sockets = count(cpus.iter().map(|c| c.socket));
    let cores = count(cpus.iter().map(|c| (c.socket, c.core)));
    let [compiler, by, domain, date] = info.compile_info.clone();
    Ok(vec![
        ("host", text(uname.nodename())),
        ("release", text(uname.release())),
        ("version", text(uname.version())),
        ("machine", text(uname.machine())),
        ("nr_cpus", info.nr_cpus.to_string()),
        ("nr_nodes", count(cpus.iter().map(|c| c.node)).to_string()),
        ("cores_per_socket", (cores / sockets).max(1).to_string()),
        ("threads_per_core", (cpus.len() / cores).max(1).to_string()),
        ("cpu_mhz", (info.cpu_khz / 1000).to_string()),
        ("hw_caps", hw_caps()),
        ("virt_caps", "pv".to_owned()),
        ("total_memory", columns::mib(info.total_pages).to_string()),
        ("free_memory", columns::mib(info.free_pages).to_string()),
        ("free_cpus", "0".to_owned()),
        ("xen_major", info.xen_version.0.to_string()),
        ("xen_minor", info.xen_version.1.to_string()),
        ("xen_extra", info.extra_version.clone()),
        ("xen_caps", info.capabilities.clone()),
        ("xen_scheduler", "credit".to_owned()),
        ("xen_pagesize", "4096".to_owned()),
        (
            "platform_params",
            format!("virt_start={:#x}", info.virt_start),
        ),
        ("xen_changeset", info.changeset.clone()),
        ("xen_commandline", info.command_line.clone()),
        ("cc_compiler", compiler),
        ("cc_compile_by", by),
        ("cc_compile_domain", domain),
        ("cc_compile_date", date),
        ("xend_config_format", "4".to_owned()),
        ("engine", info.engine.clone()),
    ])
}

/// The host CPU's feature words, in the order in which Xen shows them.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)] // safe in newer compilers
fn hw_caps() -> String {
    use std::arch::x86_64::__cpuid_count;
    // SAFETY: every x86-64 CPU has the instruction; a leaf beyond the highest
    // gives some other leaf's values and harms nothing.
    let leaf = |number, sub| unsafe { __cpuid_count(number, sub) };
    let (basic, extended) = (leaf(1, 0), leaf(0x8000_0001, 0));
    let (seven, power) = (leaf(7, 0), leaf(0x8000_0007, 0));
    let words = [
        basic.edx,
        basic.ecx,
        extended.edx,
        extended.ecx,
        leaf(0xd, 1).eax,
        seven.ebx,
        seven.ecx,
        power.edx,
    ];
    words.map(|word| format!("{word:08x}")).join(":")
}

fn topology(cpus: &[Cpu]) -> Vec<String> {
    let mut lines = vec![
        columns::info_row("cpu_topology", "").trim_end().to_owned(),
        "cpu:    core    socket     node".to_owned(),
    ];
    lines.extend(cpus.iter().map(|c| {
        format!(
            "{:>3}:    {:>4}     {:>4}     {:>4}",
            c.number, c.core, c.socket, c.node
        )
    }));
    lines.push(columns::info_row("numa_info", "").trim_end().to_owned());
    lines.push("node:    memsize    memfree    distances".to_owned());
    let nodes: BTreeSet<u32> = cpus.iter().map(|c| c.node).collect();
    for node in nodes {
        let (size, free) = node_memory(node);
        let distances = node_file(node, "distance").unwrap_or_else(|| "10".to_owned());
        let distances = distances.split_whitespace().collect::<Vec<_>>().join(",");
        lines.push(format!(
            "{node:>4}:    {size:>7}    {free:>7}      {distances}"
        ));
    }
    lines
}

/// Total and free memory of a node, in MiB.
fn node_memory(node: u32) -> (u64, u64) {
    let of_node = node_file(node, "meminfo");
    let text = of_node.or_else(|| fs::read_to_string("/proc/meminfo").ok());
    let text = text.unwrap_or_default();
    let find = |key: &str| {
        let line = text.lines().find(|l| l.contains(key))?;
        let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
        Some(kib / 1024)
    };
    (
        find("MemTotal:").unwrap_or(0),
        find("MemFree:").unwrap_or(0),
    )
}

fn node_file(node: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/devices/system/node/node{node}/{file}")).ok()
}

/// Numbers as numbers.
fn as_json(rows: &[(&'static str, String)], cpus: &[Cpu], numa: bool) -> Value {
    let mut all = Map::new();
    for (key, value) in rows {
        let number = value.parse::<u64>().ok().map(Value::from);
        all.insert((*key).to_owned(), number.unwrap_or_else(|| json!(value)));
    }
    if numa {
        let place = |c: &Cpu| json!({ "cpu": c.number, "core": c.core, "socket": c.socket, "node": c.node });
        all.insert("cpu_topology".to_owned(), cpus.iter().map(place).collect());
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostInfo {
        HostInfo {
            xen_version: (4, 17),
            extra_version: ".0-domus".into(),
            capabilities: "xen-3.0-x86_64".into(),
            changeset: "unavailable".into(),
            command_line: String::new(),
            compile_info: ["rustc", "me", "example", "today"].map(String::from),
            virt_start: 0xffff_8000_0000_0000,
            nr_cpus: 4,
            cpu_khz: 2_400_123,
            total_pages: 256 * 1024,
            free_pages: 256 * 512 + 255,
            engine: "kvm".into(),
            pid: 1,
            uptime_ns: 0,
        }
    }

    #[test]
    fn rows_are_in_xms_order() {
        let cpu = |number| Cpu {
            number,
            core: number / 2,
            socket: 0,
            node: 0,
        };
        let cpus: Vec<Cpu> = (0..4).map(cpu).collect();
        let rows = rows(&host(), &cpus).expect("rows");
        let keys: Vec<_> = rows.iter().map(|(k, _)| *k).collect();
        let order = "host release version machine nr_cpus nr_nodes cores_per_socket threads_per_core cpu_mhz hw_caps \
                     virt_caps total_memory free_memory free_cpus xen_major xen_minor xen_extra xen_caps \
                     xen_scheduler xen_pagesize platform_params xen_changeset xen_commandline cc_compiler \
                     cc_compile_by cc_compile_domain cc_compile_date xend_config_format engine";
        assert_eq!(keys, order.split_whitespace().collect::<Vec<_>>());
        let value = |key| {
            rows.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.as_str())
        };
        assert_eq!(value("cores_per_socket"), Some("2"));
        assert_eq!(value("threads_per_core"), Some("2"));
        assert_eq!(value("cpu_mhz"), Some("2400"));
        assert_eq!(
            (value("total_memory"), value("free_memory")),
            (Some("1024"), Some("512"))
        );
        assert_eq!(
            value("platform_params"),
            Some("virt_start=0xffff800000000000")
        );
        assert_eq!(as_json(&rows, &cpus, true)["nr_cpus"], 4);
    }
}
