//! The subcommands, and how a typed word becomes one of them.

use clap::{CommandFactory, Parser};

use super::{Session, error::XmError, usage};

/// A subcommand.
#[derive(Debug)]
pub struct Command {
    /// Its full name.
    pub name: &'static str,
    /// Where help lists it.
    pub group: Group,
    /// What there is of it.
    pub kind: Kind,
}

/// What there is of a subcommand.
#[derive(Debug)]
pub enum Kind {
    /// It works.
    Ready {
        /// Its arguments and help.
        clap: fn() -> clap::Command,
        /// Runs it.
        run: fn(&Session, &'static Command, &[String]) -> Result<(), XmError>,
    },
    /// xm has it, this does not.
    Absent {
        /// Why: the end of "is not supported: ...".
        why: &'static str,
    },
}

/// Where help lists a subcommand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Domains' lives.
    Domains,
    /// Looking at domains.
    Looking,
    /// Domains' disks and network interfaces.
    Devices,
    /// The host and its services.
    Host,
}

/// A subcommand's typed arguments, and what it does with them.
pub trait Subcommand: Parser {
    /// Does it.
    ///
    /// # Errors
    /// Why it could not.
    fn run(self, session: &Session) -> Result<(), XmError>;
}

const fn ready<T: Subcommand>(name: &'static str, group: Group) -> Command {
    Command {
        name,
        group,
        kind: Kind::Ready {
            clap: <T as CommandFactory>::command,
            run: parse_and_run::<T>,
        },
    }
}

fn parse_and_run<T: Subcommand>(
    session: &Session,
    command: &'static Command,
    args: &[String],
) -> Result<(), XmError> {
    match usage::parse::<T>(session, command, args)? {
        Some(parsed) => parsed.run(session),
        None => Ok(()),
    }
}

const fn absent(name: &'static str, why: &'static str) -> Command {
    Command {
        name,
        group: Group::Host,
        kind: Kind::Absent { why },
    }
}

const NOT_YET: &str = "this version has no such function";
const NO_PASSTHROUGH: &str = "devices of the host can't be passed through";
const NO_FLASK: &str = "there is no security policy (FLASK)";
const NO_MANAGED: &str = "there are no managed domains: keep the file and use create";
const NO_POOLS: &str = "there are no CPU pools";
const NO_TMEM: &str = "there is no transcendent memory";
const NO_VTPM: &str = "there are no virtual TPMs";

/// All subcommands, in the order of `xm help`.
pub static COMMANDS: &[Command] = &[
    ready::<super::create::Create>("create", Group::Domains),
    ready::<super::shutdown::Shutdown>("shutdown", Group::Domains),
    ready::<super::shutdown::Reboot>("reboot", Group::Domains),
    ready::<super::pause::Destroy>("destroy", Group::Domains),
    ready::<super::pause::Pause>("pause", Group::Domains),
    ready::<super::pause::Unpause>("unpause", Group::Domains),
    ready::<super::engine::Engine>("engine", Group::Domains),
    ready::<super::names::Rename>("rename", Group::Domains),
    ready::<super::console::Console>("console", Group::Domains),
    ready::<super::list::List>("list", Group::Looking),
    ready::<super::vcpus::VcpuList>("vcpu-list", Group::Looking),
    ready::<super::uptime::Uptime>("uptime", Group::Looking),
    ready::<super::trace::Trace>("trace", Group::Looking),
    ready::<super::gdb::Gdb>("gdb", Group::Looking),
    ready::<super::dump_core::DumpCore>("dump-core", Group::Looking),
    ready::<super::names::Domid>("domid", Group::Looking),
    ready::<super::names::Domname>("domname", Group::Looking),
    ready::<super::names::Domstate>("domstate", Group::Looking),
    ready::<super::block::BlockAttach>("block-attach", Group::Devices),
    ready::<super::block::BlockDetach>("block-detach", Group::Devices),
    ready::<super::block::BlockConfigure>("block-configure", Group::Devices),
    ready::<super::block::BlockList>("block-list", Group::Devices),
    ready::<super::block::CdInsert>("cd-insert", Group::Devices),
    ready::<super::block::CdEject>("cd-eject", Group::Devices),
    ready::<super::network::NetworkAttach>("network-attach", Group::Devices),
    ready::<super::network::NetworkDetach>("network-detach", Group::Devices),
    ready::<super::network::NetworkList>("network-list", Group::Devices),
    ready::<super::image::Image>("image", Group::Host),
    ready::<super::info::Info>("info", Group::Host),
    ready::<super::dmesg::Dmesg>("dmesg", Group::Host),
    ready::<super::stop_services::StopServices>("stop-services", Group::Host),
    ready::<super::help::Help>("help", Group::Host),
    // Not here yet, or never.
    absent("save", NOT_YET),
    absent("restore", NOT_YET),
    absent("migrate", NOT_YET),
    absent("mem-set", NOT_YET),
    absent("mem-max", NOT_YET),
    absent("vcpu-set", NOT_YET),
    absent("vcpu-pin", NOT_YET),
    absent("sched-credit", NOT_YET),
    absent("sched-credit2", "there is one scheduler, credit"),
    absent("sched-sedf", "there is one scheduler, credit"),
    absent("sysrq", NOT_YET),
    absent("trigger", NOT_YET),
    absent("debug-keys", NOT_YET),
    absent("event-monitor", NOT_YET),
    absent("log", NOT_YET),
    absent("top", NOT_YET),
    absent("new", NO_MANAGED),
    absent("delete", NO_MANAGED),
    absent("start", NO_MANAGED),
    absent("suspend", NO_MANAGED),
    absent("resume", NO_MANAGED),
    absent("shell", "use your shell"),
    absent("cpupool-create", NO_POOLS),
    absent("cpupool-destroy", NO_POOLS),
    absent("cpupool-list", NO_POOLS),
    absent("cpupool-new", NO_POOLS),
    absent("cpupool-start", NO_POOLS),
    absent("cpupool-delete", NO_POOLS),
    absent("cpupool-cpu-add", NO_POOLS),
    absent("cpupool-cpu-remove", NO_POOLS),
    absent("cpupool-migrate", NO_POOLS),
    absent("pci-attach", NO_PASSTHROUGH),
    absent("pci-detach", NO_PASSTHROUGH),
    absent("pci-list", NO_PASSTHROUGH),
    absent("pci-list-assignable-devices", NO_PASSTHROUGH),
    absent("scsi-attach", NO_PASSTHROUGH),
    absent("scsi-detach", NO_PASSTHROUGH),
    absent("scsi-list", NO_PASSTHROUGH),
    absent("usb-add", NO_PASSTHROUGH),
    absent("usb-del", NO_PASSTHROUGH),
    absent("usb-attach", NO_PASSTHROUGH),
    absent("usb-detach", NO_PASSTHROUGH),
    absent("usb-list", NO_PASSTHROUGH),
    absent("usb-list-assignable-devices", NO_PASSTHROUGH),
    absent("usb-hc-create", NO_PASSTHROUGH),
    absent("usb-hc-destroy", NO_PASSTHROUGH),
    absent("vtpm-list", NO_VTPM),
    absent("tmem-list", NO_TMEM),
    absent("tmem-thaw", NO_TMEM),
    absent("tmem-freeze", NO_TMEM),
    absent("tmem-flush", NO_TMEM),
    absent("tmem-set", NO_TMEM),
    absent("tmem-freeable-mem", NO_TMEM),
    absent("tmem-shared-auth", NO_TMEM),
    absent("addlabel", NO_FLASK),
    absent("rmlabel", NO_FLASK),
    absent("getlabel", NO_FLASK),
    absent("dry-run", NO_FLASK),
    absent("resources", NO_FLASK),
    absent("dumppolicy", NO_FLASK),
    absent("setpolicy", NO_FLASK),
    absent("resetpolicy", NO_FLASK),
    absent("getpolicy", NO_FLASK),
    absent("labels", NO_FLASK),
    absent("getenforce", NO_FLASK),
    absent("setenforce", NO_FLASK),
];

/// Names that older versions had.
const RENAMED: &[(&str, &str)] = &[
    ("balloon", "mem-set"),
    ("set-vcpus", "vcpu-set"),
    ("vif-list", "network-list"),
    ("vbd-create", "block-attach"),
    ("vbd-destroy", "block-detach"),
    ("vbd-list", "block-list"),
];

/// What a typed word stands for.
#[derive(Debug)]
pub enum Resolved {
    /// A subcommand, by its name or a prefix that only it has.
    Found(&'static Command),
    /// A subcommand, by a name that it had once.
    Renamed {
        /// The subcommand.
        command: &'static Command,
        /// Its old name.
        old: &'static str,
    },
    /// A prefix of several.
    Ambiguous(Vec<&'static str>),
    /// None.
    Unknown,
}

/// The subcommand of exactly this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| c.name == name)
}

/// Finds the subcommand that `word` stands for: its name, its old name, or a
/// prefix of two or more letters that no other has. Those that are not
/// supported count too, so that a prefix keeps its meaning when they come.
#[must_use]
pub fn resolve(word: &str) -> Resolved {
    if let Some(command) = named(word) {
        return Resolved::Found(command);
    }
    if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == word)
        && let Some(command) = named(new)
    {
        return Resolved::Renamed { command, old };
    }
    if word.chars().count() < 2 {
        return Resolved::Unknown;
    }
    let fitting: Vec<_> = COMMANDS
        .iter()
        .filter(|c| c.name.starts_with(word))
        .collect();
    match fitting[..] {
        [] => Resolved::Unknown,
        [one] => Resolved::Found(one),
        _ => Resolved::Ambiguous(fitting.iter().map(|c| c.name).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(word: &str) -> Option<&'static str> {
        match resolve(word) {
            Resolved::Found(command) | Resolved::Renamed { command, .. } => Some(command.name),
            Resolved::Ambiguous(_) | Resolved::Unknown => None,
        }
    }

    #[test]
    fn names_are_unique_and_resolve_to_themselves() {
        for command in COMMANDS {
            let same = COMMANDS.iter().filter(|c| c.name == command.name).count();
            assert_eq!((same, found(command.name)), (1, Some(command.name)));
        }
    }

    #[test]
    fn every_old_name_leads_somewhere() {
        for (old, new) in RENAMED {
            assert!(
                matches!(resolve(old), Resolved::Renamed { command, .. } if command.name == *new)
            );
        }
    }

    #[test]
    fn unique_prefixes_of_two_letters() {
        assert_eq!(found("he"), Some("help"));
        assert_eq!(found("li"), Some("list"));
        assert_eq!(found("des"), Some("destroy"));
        assert_eq!(found("dm"), Some("dmesg"));
        assert_eq!(found("h"), None);
        assert!(matches!(resolve("net"), Resolved::Ambiguous(names) if names.len() == 3));
        assert!(matches!(resolve("zz"), Resolved::Unknown));
        assert!(matches!(resolve(""), Resolved::Unknown));
        assert!(matches!(resolve("é"), Resolved::Unknown));
    }

    #[test]
    fn every_command_has_valid_arguments_and_help() {
        for command in COMMANDS {
            if let Kind::Ready { clap, .. } = command.kind {
                clap().debug_assert();
                assert!(clap().get_about().is_some(), "{}", command.name);
            }
        }
    }
}
