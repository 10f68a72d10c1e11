//! The typed configuration of a domain.
//!
//! Law: whatever a [`DomainConfig`] holds has been checked as far as text can
//! be. What needs the host (does the kernel exist, is there memory enough) is
//! `xm create`'s to ask.

use std::path::PathBuf;

use domus_privcmd::protocol::GrantLimits;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    action::Action,
    cpus,
    disk::Disk,
    keys::{self, Leftover},
    name::DomainName,
    settings::{Placed, Settings},
    source::Diagnostic,
    vif::Vif,
};
use crate::bootloader::{
    Bootloader, Choice,
    config::{ArgumentError, is_built_in},
};

/// The keys that mean something here.
pub const KEYS: &[&str] = &[
    "name",
    "kernel",
    "ramdisk",
    "memory",
    "maxmem",
    "vcpus",
    "maxvcpus",
    "cpus",
    "cpu",
    "cpu_weight",
    "cpu_cap",
    "cap",
    "weight",
    "uuid",
    "features",
    "bootloader",
    "bootargs",
    "bootentry",
    "bootloader_args",
    "root",
    "extra",
    "cmdline",
    "ip",
    "netmask",
    "gateway",
    "hostname",
    "interface",
    "dhcp",
    "nfs_server",
    "nfs_root",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "disk",
    "vif",
    "builder",
    "type",
    "nics",
    "max_grant_frames",
    "max_maptrack_frames",
];

/// Less than this no kernel can do anything with.
pub const MIN_MEMORY_MIB: u64 = 2;
/// More than this is a slip of the pen: 16 TiB.
pub const MAX_MEMORY_MIB: u64 = 16 << 20;
/// As many as fit in the shared info page.
pub const MAX_VCPUS: u64 = 32;
/// The room for the command line in `start_info`, without its NUL.
pub const MAX_CMDLINE: usize = 1023;

/// What `xm create` is asked to build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// Its name.
    pub name: DomainName,
    /// Its handle; none asks for a random one.
    pub uuid: Option<Uuid>,
    /// The kernel's image; none: the boot loader's to find.
    pub kernel: Option<PathBuf>,
    /// The boot loader, where there is no kernel.
    #[serde(default)]
    pub bootloader: Option<Bootloader>,
    /// The initial ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line, put together from `root`, `ip` and `extra`.
    pub cmdline: String,
    /// Required or forbidden kernel features, as `features` gives them.
    pub features: Option<String>,
    /// Memory at start.
    pub memory_mib: u64,
    /// The most memory that it may have.
    pub maxmem_mib: u64,
    /// vCPUs at start.
    pub vcpus: u32,
    /// The most vCPUs that it may have.
    pub max_vcpus: u32,
    /// Host CPUs for each vCPU, the last entry for all further ones; none,
    /// or an empty entry, means any.
    pub cpus: Vec<Vec<u32>>,
    /// Its share of the CPUs: 1 to 65535.
    pub cpu_weight: u32,
    /// The most CPU time that it gets, in % of one CPU; 0 = no limit.
    pub cpu_cap: u32,
    /// What to do when it has powered off.
    pub on_poweroff: Action,
    /// What to do when it wants to reboot.
    pub on_reboot: Action,
    /// What to do when it has crashed.
    pub on_crash: Action,
    /// What it may grant and map of others' grants.
    #[serde(default)]
    pub grants: GrantLimits,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
}

/// A configuration and what should be said about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: DomainConfig,
    /// Keys that are ignored, and the like.
    pub warnings: Vec<Diagnostic>,
}

/// Parses and checks a configuration: the text of `file`, then the overrides
/// `key=value`.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn load(file: &str, text: &str, overrides: &[String]) -> Result<Loaded, Diagnostic> {
    let mut settings = Settings::parse(file, text, overrides)?;
    pv_only(&mut settings)?;
    let mut warnings = Vec::new();
    let config = build(&mut settings, file, &mut warnings)?;
    for (key, at) in settings.left() {
        match keys::leftover(key) {
            Leftover::Refused(why) if settings.is_on(key) => {
                return Err(settings.error_at(at, format!("'{key}': {why}")));
            }
            Leftover::Refused(_) => {}
            Leftover::HvmOnly => warnings.push(settings.error_at(
                at,
                format!("ignored: '{key}' is for HVM domains, and this is a PV domain"),
            )),
            Leftover::NoEffect => {
                warnings
                    .push(settings.error_at(at, format!("ignored: '{key}' has no effect here")));
            }
            Leftover::Unknown => {
                let hint = keys::similar(key).map(|k| format!("; did you mean '{k}'?"));
                let message = format!("ignored: unknown key '{key}'{}", hint.unwrap_or_default());
                warnings.push(settings.error_at(at, message));
            }
        }
    }
    Ok(Loaded { config, warnings })
}

/// HVM domains are refused before anything else is complained about.
fn pv_only(settings: &mut Settings) -> Result<(), Diagnostic> {
    for key in ["builder", "type"] {
        let value = settings.text(key)?.unwrap_or_default();
        if !matches!(value.as_str(), "" | "linux" | "generic" | "pv") {
            return Err(settings.error_with(
                key,
                format!("'{key}' is \"{value}\": only PV domains can run here"),
                "A PV domain boots its kernel directly: set kernel = \"...\" and remove this line.",
            ));
        }
    }
    // "nics = 2" was always there in generated files, next to vif.
    settings.number("nics")?;
    Ok(())
}

fn build(
    settings: &mut Settings,
    file: &str,
    warnings: &mut Vec<Diagnostic>,
) -> Result<DomainConfig, Diagnostic> {
    let (memory_mib, maxmem_mib) = memory(settings)?;
    let (vcpus, max_vcpus) = vcpus(settings)?;
    let (kernel, bootloader, options) = booting(settings, warnings)?;
    Ok(DomainConfig {
        name: name(settings, file)?,
        uuid: uuid(settings)?,
        kernel,
        bootloader,
        ramdisk: path(settings, "ramdisk")?,
        cmdline: cmdline(settings, options)?,
        features: settings.text("features")?,
        memory_mib,
        maxmem_mib,
        vcpus,
        max_vcpus,
        cpus: affinity(settings)?,
        cpu_weight: share(settings, ["cpu_weight", "weight"], 256, 1, 65535)?,
        cpu_cap: share(settings, ["cpu_cap", "cap"], 0, 0, 100 * 1024)?,
        on_poweroff: action(settings, "on_poweroff", Action::Destroy)?,
        on_reboot: action(settings, "on_reboot", Action::Restart)?,
        on_crash: action(settings, "on_crash", Action::Restart)?,
        grants: grant_limits(settings)?,
        disks: disks(settings)?,
        vifs: vifs(settings)?,
    })
}

/// Without `name` the file's own name is the domain's, as for xm.
fn name(settings: &mut Settings, file: &str) -> Result<DomainName, Diagnostic> {
    let remedy = "Set name = \"...\" in the file, or name=... on the command line.";
    if let Some(name) = settings.text("name")? {
        return DomainName::new(name).map_err(|e| settings.error("name", e.to_string()));
    }
    let base = file.rsplit('/').next().unwrap_or(file);
    DomainName::new(base).map_err(|_| {
        let message = format!("'name' is not set, and '{base}' can't serve as one");
        settings.error_with("name", message, remedy)
    })
}

fn uuid(settings: &mut Settings) -> Result<Option<Uuid>, Diagnostic> {
    let Some(text) = settings.text("uuid")? else {
        return Ok(None);
    };
    match Uuid::parse_str(&text) {
        Ok(uuid) if !uuid.is_nil() => Ok(Some(uuid)),
        Ok(_) => Err(settings.error("uuid", "'uuid' can't be all zeroes: that is Domain-0's")),
        Err(_) => Err(settings.error_with(
            "uuid",
            format!("'{text}' is no UUID"),
            "Write it as 01234567-89ab-cdef-0123-456789abcdef, or leave the key out.",
        )),
    }
}

/// What is booted, one way or the other, and the boot loader's `--args`.
type Booting = (Option<PathBuf>, Option<Bootloader>, Option<String>);

fn booting(settings: &mut Settings, warnings: &mut Vec<Diagnostic>) -> Result<Booting, Diagnostic> {
    let kernel = path(settings, "kernel")?;
    let name = settings.text("bootloader")?.filter(|name| !name.is_empty());
    let entry = settings.text("bootentry")?;
    let mut args = Vec::new();
    // "bootargs" is what xm called it first.
    for key in ["bootargs", "bootloader_args"] {
        let given = settings.list(key)?;
        let words = given.iter().flat_map(|one| one.text.split_whitespace());
        args.extend(words.map(str::to_owned));
    }
    match (kernel, name) {
        (Some(kernel), name) => {
            if let Some(name) = name {
                let message = format!("ignored: the boot loader '{name}', since 'kernel' is set");
                warnings.push(settings.error("bootloader", message));
            }
            Ok((Some(kernel), None, None))
        }
        (None, Some(name)) => {
            let (loader, options) = bootloader(settings, name, entry, args)?;
            Ok((None, Some(loader), options))
        }
        (None, None) => Err(settings.error_with(
            "kernel",
            "'kernel' is not set",
            "Set kernel = \"/path/to/vmlinuz\", or bootloader = \"pygrub\" for the kernel in the domain's own disk.",
        )),
    }
}

fn bootloader(
    settings: &Settings,
    name: String,
    entry: Option<String>,
    args: Vec<String>,
) -> Result<(Bootloader, Option<String>), Diagnostic> {
    if !is_built_in(&name) {
        if !name.starts_with('/') {
            return Err(settings.error_with(
                "bootloader",
                format!("'{name}' is no boot loader that is known"),
                "Write \"pygrub\" for the one that is built in, or the absolute path of a program.",
            ));
        }
        let loader = Bootloader {
            program: Some(PathBuf::from(name)),
            choice: Choice::default(),
            args,
        };
        return Ok((loader, None));
    }
    let wrong = |e: ArgumentError| settings.error("bootloader_args", e.to_string());
    let (mut choice, options) = Choice::parse(&args).map_err(wrong)?;
    choice.entry = entry.or(choice.entry);
    let loader = Bootloader {
        program: None,
        choice,
        args,
    };
    Ok((loader, options))
}

fn path(settings: &mut Settings, key: &str) -> Result<Option<PathBuf>, Diagnostic> {
    let text = settings.text(key)?;
    if text
        .as_ref()
        .is_some_and(|t| t.chars().any(char::is_control))
    {
        return Err(settings.error(key, format!("'{key}' holds a control character")));
    }
    Ok(text.map(PathBuf::from))
}

fn memory(settings: &mut Settings) -> Result<(u64, u64), Diagnostic> {
    let memory = mib(settings, "memory")?.unwrap_or(128);
    let maxmem = mib(settings, "maxmem")?.unwrap_or(memory);
    if maxmem < memory {
        return Err(settings.error(
            "maxmem",
            format!("'maxmem' ({maxmem} MiB) is less than 'memory' ({memory} MiB)"),
        ));
    }
    Ok((memory, maxmem))
}

fn mib(settings: &mut Settings, key: &str) -> Result<Option<u64>, Diagnostic> {
    let value = settings.number(key)?;
    match value {
        Some(0) if key == "maxmem" => Ok(None),
        Some(mib) if mib < MIN_MEMORY_MIB => Err(settings.error_with(
            key,
            format!("'{key}' is {mib} MiB: a domain needs at least {MIN_MEMORY_MIB} MiB"),
            "The number counts MiB; a Linux kernel wants 64 or more.",
        )),
        Some(mib) if mib > MAX_MEMORY_MIB => Err(settings.error_with(
            key,
            format!("'{key}' is {mib} MiB, more than any domain can have"),
            format!("The number counts MiB; the most is {MAX_MEMORY_MIB}."),
        )),
        value => Ok(value),
    }
}

fn vcpus(settings: &mut Settings) -> Result<(u32, u32), Diagnostic> {
    let mut count = |key: &str| -> Result<Option<u64>, Diagnostic> {
        match settings.number(key)? {
            Some(n) if !(1..=MAX_VCPUS).contains(&n) => Err(settings.error(
                key,
                format!("'{key}' is {n}: a domain has 1 to {MAX_VCPUS} vCPUs"),
            )),
            n => Ok(n),
        }
    };
    let vcpus = count("vcpus")?;
    let maxvcpus = count("maxvcpus")?;
    let most = maxvcpus.or(vcpus).unwrap_or(1);
    let vcpus = vcpus.unwrap_or(most);
    if vcpus > most {
        let message = format!("'maxvcpus' ({most}) is less than 'vcpus' ({vcpus})");
        return Err(settings.error("maxvcpus", message));
    }
    // Both are in 1..=MAX_VCPUS.
    let narrow = |n: u64| u32::try_from(n).unwrap_or(1);
    Ok((narrow(vcpus), narrow(most)))
}

fn grant_limits(settings: &mut Settings) -> Result<GrantLimits, Diagnostic> {
    let (usual, most) = (GrantLimits::default(), GrantLimits::MOST.into());
    let mut frames = |key, usual, least| share(settings, [key, key], usual, least, most);
    Ok(GrantLimits {
        frames: frames("max_grant_frames", usual.frames, 1)?,
        maptrack_frames: frames("max_maptrack_frames", usual.maptrack_frames, 0)?,
    })
}

/// `cpus` as a string is for all vCPUs, as a list one entry for each. `cpu`
/// is the old key, for one CPU.
fn affinity(settings: &mut Settings) -> Result<Vec<Vec<u32>>, Diagnostic> {
    let single = settings.list("cpu")?;
    let mut given = settings.list("cpus")?;
    if given.is_empty() {
        given = single;
    }
    let parse =
        |one: &Placed| cpus::parse(&one.text).map_err(|e| settings.error_at(one.at, e.to_string()));
    given.iter().map(parse).collect()
}

fn share(
    settings: &mut Settings,
    keys: [&str; 2],
    default: u32,
    least: u64,
    most: u64,
) -> Result<u32, Diagnostic> {
    let mut value = None;
    for key in keys {
        let Some(n) = settings.number(key)? else {
            continue;
        };
        if !(least..=most).contains(&n) {
            let message = format!("'{key}' is {n}: it must be from {least} to {most}");
            return Err(settings.error(key, message));
        }
        value = value.or(u32::try_from(n).ok());
    }
    Ok(value.unwrap_or(default))
}

fn action(settings: &mut Settings, key: &str, default: Action) -> Result<Action, Diagnostic> {
    let Some(text) = settings.text(key)? else {
        return Ok(default);
    };
    let with_coredump = key == "on_crash";
    Action::named(&text)
        .filter(|action| with_coredump || !action.dumps_core())
        .ok_or_else(|| {
            let choices = Action::choices(with_coredump);
            settings.error(
                key,
                format!("'{key}' is \"{text}\": it must be one of {choices}"),
            )
        })
}

fn disks(settings: &mut Settings) -> Result<Vec<Disk>, Diagnostic> {
    let mut disks: Vec<Disk> = Vec::new();
    for one in settings.list("disk")? {
        let disk = Disk::parse(&one.text).map_err(|e| settings.error_at(one.at, e.to_string()))?;
        if let Some(twin) = disks.iter().find(|d| d.vdev.number == disk.vdev.number) {
            let (name, other) = (&disk.vdev.name, &twin.vdev.name);
            let message = format!("two disks are the same device: '{name}' and '{other}'");
            return Err(settings.error_at(one.at, message));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn vifs(settings: &mut Settings) -> Result<Vec<Vif>, Diagnostic> {
    let mut vifs: Vec<Vif> = Vec::new();
    for one in settings.list("vif")? {
        let vif = Vif::parse(&one.text).map_err(|e| settings.error_at(one.at, e.to_string()))?;
        if vif.mac.is_some() && vifs.iter().any(|other| other.mac == vif.mac) {
            return Err(settings.error_at(one.at, "two vifs have the same MAC address"));
        }
        vifs.push(vif);
    }
    Ok(vifs)
}

/// The kernel's command line: `ip=` and `root=` from their keys, then `extra`
/// (the last word is the user's), then the boot loader's `--args`. xl's `cmdline` stands for all of it.
fn cmdline(settings: &mut Settings, options: Option<String>) -> Result<String, Diagnostic> {
    let root = settings.text("root")?;
    let extra = settings.text("extra")?.unwrap_or_default();
    let ip = ip_option(settings)?;
    let nfs = nfs_option(settings)?;
    let whole = settings.text("cmdline")?;
    let line = whole.unwrap_or_else(|| {
        let root = root.map(|r| match r.starts_with("root=") {
            true => r,
            false => format!("root={r}"),
        });
        let parts = [ip, root, nfs, Some(extra), options];
        let parts = parts.into_iter().flatten().filter(|p| !p.is_empty());
        parts.collect::<Vec<_>>().join(" ")
    });
    if line.len() > MAX_CMDLINE {
        let message = format!(
            "the kernel's command line has {} bytes; there is room for {MAX_CMDLINE}",
            line.len()
        );
        return Err(settings.error("extra", message));
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(settings.error(
            "extra",
            "the kernel's command line holds a control character",
        ));
    }
    Ok(line)
}

/// `ip=client:server:gateway:netmask:hostname:interface:dhcp`, if asked for.
fn ip_option(settings: &mut Settings) -> Result<Option<String>, Diagnostic> {
    let dhcp = settings.text("dhcp")?.unwrap_or_else(|| "off".to_owned());
    let ip = settings.text("ip")?;
    let mut part = |key: &str| Ok::<_, Diagnostic>(settings.text(key)?.unwrap_or_default());
    let (gateway, netmask, hostname) = (part("gateway")?, part("netmask")?, part("hostname")?);
    let interface = match part("interface")? {
        none if none.is_empty() => "eth0".to_owned(),
        interface => interface,
    };
    let server = match nfs_server(settings) {
        Some(server) => server,
        // No server at all would make the kernel ask for one.
        None => "127.0.255.255".to_owned(),
    };
    if ip.is_none() && matches!(dhcp.as_str(), "off" | "0") {
        return Ok(None);
    }
    let ip = ip.unwrap_or_default();
    Ok(Some(format!(
        "ip={ip}:{server}:{gateway}:{netmask}:{hostname}:{interface}:{dhcp}"
    )))
}

/// Looks without taking: two options use it.
fn nfs_server(settings: &Settings) -> Option<String> {
    settings.peek_text("nfs_server").filter(|s| !s.is_empty())
}

fn nfs_option(settings: &mut Settings) -> Result<Option<String>, Diagnostic> {
    let server = settings.text("nfs_server")?;
    match (settings.text("nfs_root")?, server) {
        (None, _) => Ok(None),
        (Some(root), Some(server)) => Ok(Some(format!("nfsroot={server}:{root}"))),
        (Some(_), None) => Err(settings.error("nfs_root", "'nfs_root' needs 'nfs_server' too")),
    }
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
