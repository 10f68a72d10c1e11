//! `xm block-attach`, `block-detach`, `block-configure` and `block-list`.

use std::path::Path;

use clap::Parser;
use guest_abi::addr::DomId;

use super::{
    Session,
    devices::{
        Device, Kind,
        describe::{self, Shown},
        images,
    },
    error::XmError,
    host::{Domain, Host},
    hotplug,
    life::LifeError,
    list, output,
    record::Record,
    table::Subcommand,
};
use crate::config::{
    disk::{Access, Disk},
    vdev::Vdev,
};

/// Create a new virtual block device.
#[derive(Debug, Parser)]
#[command(
    after_help = "A disk is written as in 'disk' of a configuration file; its fields may be arguments of their own.

Examples:
  xm block-attach web1 phy:/dev/vg/data xvdb w
  xm block-attach web1 file:/srv/data.img xvdb r
  xm block-attach web1 /srv/data.qcow2,qcow2,xvdb,rw
  xm block-attach web1 'format=raw, vdev=xvdb, bps=10M, iops=500, target=/srv/data.img'"
)]
pub struct BlockAttach {
    #[arg(value_name = "Domain")]
    domain: String,
    /// Back end, front end, mode: "phy:/dev/vg/data xvdb w"
    #[arg(value_name = "Disk", required = true, num_args = 1.., allow_hyphen_values = true)]
    disk: Vec<String>,
}

impl Subcommand for BlockAttach {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let disk = parse_disk(&self.disk)?;
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "attach a disk to")?;
        warn(hotplug::attach_disk(&mut host, &domain, &disk)?);
        Ok(())
    }
}

fn parse_disk(words: &[String]) -> Result<Disk, XmError> {
    Disk::parse(&words.join(",")).map_err(|e| XmError::Failed(e.to_string()))
}

fn warn(warning: Option<String>) {
    if let Some(warning) = warning {
        eprintln!("Warning: {warning}");
    }
}

/// Destroy a domain's virtual block device.
#[derive(Debug, Parser)]
#[command(
    after_help = "The guest is asked to let go of the device, and what it has written is on the disk afterwards.
With -f a guest that does not react loses the device: what it has not written yet is lost.

Examples:
  xm block-detach web1 xvdb
  xm block-detach web1 51728
  xm block-detach -f web1 xvdb"
)]
pub struct BlockDetach {
    #[arg(value_name = "Domain")]
    domain: String,
    /// The virtual device: its name or number
    #[arg(value_name = "DevId")]
    device: String,
    /// Take it away although the guest does not let go
    #[arg(short, long)]
    force: bool,
}

impl Subcommand for BlockDetach {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let vdev = parse_vdev(&self.device)?;
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "detach a disk from")?;
        detach(&mut host, &domain, &vdev, self.force)
    }
}

fn parse_vdev(text: &str) -> Result<Vdev, XmError> {
    Vdev::parse(text).map_err(|e| XmError::Failed(e.to_string()))
}

fn detach(host: &mut Host, domain: &Domain, vdev: &Vdev, force: bool) -> Result<(), XmError> {
    let device = Device::new(domain.id(), Kind::Vbd, vdev.number);
    let label = format!("disk {}", vdev.name);
    Ok(hotplug::detach(host, domain, &device, &label, force)?)
}

/// Change block device configuration.
#[derive(Debug, Parser)]
#[command(
    after_help = "Gives a disk that the domain has another image, mode or limit. A CD drive stays and gets another CD.
Any other disk goes and comes back in the guest's eyes, so it must not be in use.

Examples:
  xm block-configure web1 file:/srv/cd2.iso hdc:cdrom r
  xm block-configure web1 phy:/dev/vg/data xvdb r"
)]
pub struct BlockConfigure {
    #[arg(value_name = "Domain")]
    domain: String,
    /// Back end, front end, mode: "file:/srv/cd2.iso hdc:cdrom r"
    #[arg(value_name = "Disk", required = true, num_args = 1.., allow_hyphen_values = true)]
    disk: Vec<String>,
}

impl Subcommand for BlockConfigure {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let disk = parse_disk(&self.disk)?;
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "configure a disk of")?;
        replace(&mut host, &domain, &disk)
    }
}

/// `new` comes in the place of a guest's disk of the same number.
fn replace(host: &mut Host, domain: &Domain, new: &Disk) -> Result<(), XmError> {
    // What can be known to be wrong is known before the old one goes.
    images::check(new).map_err(LifeError::Image)?;
    let old = recorded(domain, new.vdev.number)?;
    if old.cdrom && new.cdrom {
        warn(hotplug::change_medium(host, domain, new)?);
        return Ok(());
    }
    detach(host, domain, &new.vdev, false)?;
    match hotplug::attach_disk(host, domain, new) {
        Ok(warning) => {
            warn(warning);
            Ok(())
        }
        Err(error) => {
            hotplug::attach_disk(host, domain, &old)?;
            Err(error.into())
        }
    }
}

fn recorded(domain: &Domain, number: u32) -> Result<Disk, XmError> {
    let record = Record::load(domain.id()).filter(|r| r.uuid == domain.info.uuid);
    let mut disks = record.into_iter().flat_map(|r| r.config.disks);
    disks.find(|d| d.vdev.number == number).ok_or_else(|| {
        let missing = hotplug::missing(domain, Kind::Vbd, format!("disk {number}"));
        XmError::Life(LifeError::Hotplug(missing))
    })
}

/// Insert a CD into a guest's CD drive.
#[derive(Debug, Parser)]
#[command(after_help = "Example:
  xm cd-insert web1 hdc /srv/cd2.iso")]
pub struct CdInsert {
    #[arg(value_name = "Domain")]
    domain: String,
    /// The drive
    #[arg(value_name = "VirtualDevice")]
    device: String,
    /// The CD's image, or a device
    #[arg(value_name = "Path")]
    path: String,
}

impl Subcommand for CdInsert {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let path = Path::new(&self.path)
            .canonicalize()
            .map_err(|e| XmError::Failed(format!("can't use {}: {e}", self.path)))?;
        change_cd(&self.domain, &self.device, Some(&path))
    }
}

/// Eject a CD from a guest's CD drive.
#[derive(Debug, Parser)]
#[command(after_help = "Example:
  xm cd-eject web1 hdc")]
pub struct CdEject {
    #[arg(value_name = "Domain")]
    domain: String,
    /// The drive
    #[arg(value_name = "VirtualDevice")]
    device: String,
}

impl Subcommand for CdEject {
    fn run(self, _: &Session) -> Result<(), XmError> {
        change_cd(&self.domain, &self.device, None)
    }
}

fn change_cd(who: &str, device: &str, path: Option<&Path>) -> Result<(), XmError> {
    let vdev = parse_vdev(device)?;
    let mut host = Host::connect()?;
    let domain = host.find_guest(who, "change a CD of")?;
    let old = recorded(&domain, vdev.number)?;
    if !old.cdrom {
        return Err(XmError::Failed(format!(
            "disk {} of domain {} is no CD drive",
            vdev.name, domain.name
        )));
    }
    let new = Disk {
        target: path.map(Path::to_owned),
        access: Access::ReadOnly,
        ..old
    };
    replace(&mut host, &domain, &new)
}

/// List virtual block devices for a domain.
#[derive(Debug, Parser)]
#[command(
    after_help = "State is that of the guest's half: 1 initialising, 2 waiting, 3 initialised, 4 connected, 5 closing,
6 closed. -1 stands for what is not known yet.

Examples:
  xm block-list web1
  xm block-list --json web1"
)]
pub struct BlockList {
    #[arg(value_name = "Domain", required = true)]
    domains: Vec<String>,
    /// All details, as JSON
    #[arg(short, long)]
    long: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for BlockList {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let all = shown(&mut host, &self.domains, Kind::Vbd)?;
        if self.json || self.long {
            return output::json(&all.iter().map(Shown::json).collect::<Vec<_>>());
        }
        table(describe::BLOCK_HEADER, all.iter().map(Shown::block_row))
    }
}

/// The devices of the named domains.
///
/// # Errors
/// One of the domains does not exist.
pub(super) fn shown(
    host: &mut Host,
    domains: &[String],
    kind: Kind,
) -> Result<Vec<Shown>, XmError> {
    let mut all = Vec::new();
    for domain in list::chosen(host, domains)? {
        all.extend(shown_of(host, domain.id(), kind)?);
    }
    Ok(all)
}

/// The devices of a domain.
///
/// # Errors
/// The store's.
pub(super) fn shown_of(host: &mut Host, dom: DomId, kind: Kind) -> Result<Vec<Shown>, XmError> {
    let mut all = Vec::new();
    for device in Device::all(&mut host.store, dom, kind)? {
        all.push(Shown::of(&mut host.store, device)?);
    }
    Ok(all)
}

/// Rows under a header, which stands only where there is a row.
///
/// # Errors
/// As all output.
pub(super) fn table(header: &str, rows: impl Iterator<Item = String>) -> Result<(), XmError> {
    let rows: Vec<String> = rows.collect();
    let header = (!rows.is_empty()).then(|| header.to_owned());
    output::lines(&header.into_iter().chain(rows).collect::<Vec<_>>())
}
