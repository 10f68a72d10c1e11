//! Devices that come to a running domain, and go.
//!
//! Law: a device is in the domain's record from before its nodes appear until
//! after they are gone, and both change under the devices' lock. So a restarted
//! domain has the devices that it had, and an image is never given away while a
//! back end may write to it.

use std::time::Duration;

use guest_abi::addr::DomId;
use uuid::Uuid;

use super::{
    devices::{
        Device, Kind,
        detach::{self, Outcome},
        images, medium, nodes, patience, process,
        sharing::{self, Claims},
        wait::{self, Awaited},
    },
    host::{Domain, Host},
    life::LifeError,
    record::Record,
};
use crate::{
    config::{disk::Disk, vif::Vif},
    xenstore::client::Client as Store,
};

/// How long a guest that is about to lose a device by force may take to agree.
const POLITE: Duration = Duration::from_secs(2);

/// Why a device can't come or go.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The domain runs no more.
    #[error("domain {0} has shut down; its devices can't be changed")]
    Over(String),
    /// Nothing is known of how the domain was made.
    #[error("domain {0} was not made by this xm: its record is missing")]
    NoRecord(String),
    /// There is one.
    #[error("domain {domain} has {label} already; detach it first")]
    Exists {
        /// The domain.
        domain: String,
        /// The device.
        label: String,
    },
    /// There is none.
    #[error("domain {domain} has no {label}; '{list}' shows what it has")]
    Missing {
        /// The domain.
        domain: String,
        /// The device.
        label: String,
        /// How to see them.
        list: String,
    },
    /// The guest does not let go.
    #[error("{}", held(domain, label, *state, *paused, *waited))]
    Held {
        /// The domain.
        domain: String,
        /// The device.
        label: String,
        /// The guest's half.
        state: guest_abi::xenbus::XenbusState,
        /// Whether the domain is paused.
        paused: bool,
        /// How long it was waited for.
        waited: Duration,
    },
}

fn held(
    domain: &str,
    label: &str,
    state: guest_abi::xenbus::XenbusState,
    paused: bool,
    waited: Duration,
) -> String {
    use guest_abi::xenbus::XenbusState as S;
    let waited = waited.as_secs_f64();
    let why = match state {
        _ if paused => format!("it is paused; 'xm unpause {domain}' lets it react"),
        S::Connected => "something in it uses the device: unmount it there".to_owned(),
        S::Unknown | S::Initialising => "no driver in it has taken the device".to_owned(),
        other => format!("its half of the device is in the state {other:?}"),
    };
    format!(
        "domain {domain} has not let go of {label} within {waited} s: {why}. The device goes as soon as the guest lets \
         it; '-f' takes it away now"
    )
}

/// The device of a disk in a domain.
#[must_use]
pub fn disk_device(dom: DomId, disk: &Disk) -> Device {
    Device::new(dom, Kind::Vbd, disk.vdev.number)
}

/// What to call a disk.
#[must_use]
pub fn disk_label(disk: &Disk) -> String {
    format!("disk {}", disk.vdev.name)
}

/// What to call an interface.
#[must_use]
pub fn vif_label(index: u32) -> String {
    format!("network interface {index}")
}

/// All devices of a record, to be waited for.
#[must_use]
pub fn awaited(record: &Record) -> Vec<Awaited> {
    let (dom, config) = (record.dom(), &record.config);
    let disks = config.disks.iter().map(|disk| Awaited {
        device: disk_device(dom, disk),
        label: disk_label(disk),
    });
    let vifs = (0..).zip(&config.vifs).map(|(index, vif)| {
        let index = vif.devid.unwrap_or(index);
        Awaited {
            device: Device::new(dom, Kind::Vif, index),
            label: vif_label(index),
        }
    });
    disks.chain(vifs).collect()
}

/// Writes a new domain's record, when all its disks can be had.
///
/// # Errors
/// A disk is another's.
pub fn claim(host: &Host, record: &Record) -> Result<(), LifeError> {
    let _lock = sharing::lock()?;
    look(host, record.config.name.as_str(), &record.config.disks)?;
    record.save().map_err(LifeError::Record)
}

fn living(host: &Host) -> Result<Vec<Record>, LifeError> {
    let guests = host.guests().map_err(|source| LifeError::Hypervisor {
        what: "list the domains",
        source,
    })?;
    let lives = |r: &Record| guests.iter().any(|i| i.dom == r.dom && i.uuid == r.uuid);
    Ok(Record::all().into_iter().filter(lives).collect())
}

/// Whether the disks can be had beside those of all living domains: for the
/// moment, unless the devices' lock is held.
///
/// # Errors
/// A disk is another's.
pub fn look(host: &Host, name: &str, disks: &[Disk]) -> Result<(), LifeError> {
    let records = living(host)?;
    let claims: Vec<Claims<'_>> = records
        .iter()
        .map(|r| Claims {
            domain: r.config.name.as_str(),
            disks: &r.config.disks,
        })
        .collect();
    let new = Claims {
        domain: name,
        disks,
    };
    Ok(sharing::check(new, &claims)?)
}

fn record_of(domain: &Domain) -> Result<Record, LifeError> {
    if domain.info.shutdown.is_some() || domain.info.dying {
        return Err(HotplugError::Over(domain.name.clone()).into());
    }
    Record::load(domain.id())
        .filter(|r| r.uuid == domain.info.uuid)
        .ok_or_else(|| HotplugError::NoRecord(domain.name.clone()).into())
}

/// Gives a running domain a disk. Gives what should be said about its image.
///
/// # Errors
/// See [`LifeError`]; the domain is as before then.
pub fn attach_disk(
    host: &mut Host,
    domain: &Domain,
    disk: &Disk,
) -> Result<Option<String>, LifeError> {
    let warning = images::check(disk)?;
    process::find_programs(&[Kind::Vbd])?;
    let device = disk_device(domain.id(), disk);
    {
        let _lock = sharing::lock()?;
        let mut record = record_of(domain)?;
        let there = record
            .config
            .disks
            .iter()
            .any(|d| d.vdev.number == device.id);
        refuse_twin(host, domain, &device, there, disk_label(disk))?;
        look(host, &domain.name, std::slice::from_ref(disk))?;
        record.config.disks.push(disk.clone());
        record.save().map_err(LifeError::Record)?;
        host.store
            .transaction(|t| nodes::publish_disk(t, domain.id(), disk))?;
    }
    wait_or_take_back(host, domain, &device, disk_label(disk))?;
    Ok(warning)
}

/// Puts another medium, or none, into a drive that a running domain has.
///
/// # Errors
/// See [`LifeError`]. A medium that can't be had leaves the one that is there;
/// one that the back end refuses leaves the drive empty.
pub fn change_medium(
    host: &mut Host,
    domain: &Domain,
    new: &Disk,
) -> Result<Option<String>, LifeError> {
    let warning = images::check(new)?;
    let device = disk_device(domain.id(), new);
    let attention = medium::listen(&mut host.store, &device)?;
    {
        let _lock = sharing::lock()?;
        let mut record = record_of(domain)?;
        look(host, &domain.name, std::slice::from_ref(new))?;
        let disks = &mut record.config.disks;
        let Some(drive) = disks.iter_mut().find(|d| d.vdev.number == device.id) else {
            return Err(missing(domain, Kind::Vbd, disk_label(new)).into());
        };
        *drive = new.clone();
        record.save().map_err(LifeError::Record)?;
        host.store
            .transaction(|t| medium::publish(t, &device, new))?;
    }
    let taken = medium::wait(
        &mut host.store,
        &attention,
        &domain.name,
        disk_label(new),
        patience(),
    );
    if taken.is_err() && new.target.is_some() {
        let empty = Disk {
            target: None,
            ..new.clone()
        };
        change_medium(host, domain, &empty)?;
    }
    taken?;
    Ok(warning)
}

/// Gives a running domain a network interface; its index.
///
/// # Errors
/// See [`LifeError`]; the domain is as before then.
pub fn attach_vif(host: &mut Host, domain: &Domain, vif: &Vif) -> Result<u32, LifeError> {
    images::check_vif(vif)?;
    process::find_programs(&[Kind::Vif])?;
    let (device, index) = {
        let _lock = sharing::lock()?;
        let mut record = record_of(domain)?;
        let index = free_index(host, &record)?;
        let mut vif = vif.clone();
        vif.devid = Some(index);
        if let Some(mac) = vif.mac
            && record
                .config
                .vifs
                .iter()
                .any(|other| other.mac == Some(mac))
        {
            let (domain, label) = (domain.name.clone(), format!("an interface {mac}"));
            return Err(HotplugError::Exists { domain, label }.into());
        }
        record.config.vifs.push(vif.clone());
        record.save().map_err(LifeError::Record)?;
        let device = host
            .store
            .transaction(|t| nodes::publish_vif(t, domain.id(), index, &vif))?;
        (device, index)
    };
    wait_or_take_back(host, domain, &device, vif_label(index))?;
    Ok(index)
}

fn refuse_twin(
    host: &mut Host,
    domain: &Domain,
    device: &Device,
    recorded: bool,
    label: String,
) -> Result<(), LifeError> {
    if recorded || device.back_state(&mut host.store)?.is_some() {
        let domain = domain.name.clone();
        return Err(HotplugError::Exists { domain, label }.into());
    }
    Ok(())
}

fn free_index(host: &mut Host, record: &Record) -> Result<u32, LifeError> {
    let there = Device::all(&mut host.store, record.dom(), Kind::Vif)?;
    let taken = |index: u32| {
        there.iter().any(|d| d.id == index)
            || record.config.vifs.iter().any(|v| v.devid == Some(index))
    };
    Ok((0..).find(|index| !taken(*index)).unwrap_or(u32::MAX))
}

fn wait_or_take_back(
    host: &mut Host,
    domain: &Domain,
    device: &Device,
    label: String,
) -> Result<(), LifeError> {
    let device = *device;
    let all = [Awaited { device, label }];
    let waited = wait::until_ready(&mut host.store, &domain.name, &all, patience(), |_| {
        Ok(true)
    });
    if waited.is_err() {
        detach::force(&mut host.store, &device)?;
        forget(&mut host.store, domain.id(), domain.info.uuid, &device)?;
    }
    Ok(waited?)
}

/// Takes a device from a running domain.
///
/// # Errors
/// The guest does not let go, and `forced` is not set.
pub fn detach(
    host: &mut Host,
    domain: &Domain,
    device: &Device,
    label: &str,
    forced: bool,
) -> Result<(), LifeError> {
    if !detach::request(&mut host.store, device)? {
        return Err(missing(domain, device.kind, label.to_owned()).into());
    }
    let patience = if forced { POLITE } else { patience() };
    match detach::wait_closed(&mut host.store, device, patience)? {
        Outcome::Closed => {}
        Outcome::Held(_) if forced => detach::force(&mut host.store, device)?,
        Outcome::Held(state) => {
            return Err(HotplugError::Held {
                domain: domain.name.clone(),
                label: label.to_owned(),
                state,
                paused: domain.info.paused,
                waited: patience,
            }
            .into());
        }
    }
    forget(&mut host.store, domain.id(), domain.info.uuid, device)
}

/// That a domain has no such device.
#[must_use]
pub fn missing(domain: &Domain, kind: Kind, label: String) -> HotplugError {
    let command = match kind {
        Kind::Vbd => "block-list",
        Kind::Vif => "network-list",
    };
    HotplugError::Missing {
        domain: domain.name.clone(),
        label,
        list: format!("xm {command} {}", domain.name),
    }
}

/// Removes a device that nobody uses any more from store and record.
fn forget(store: &mut Store, dom: DomId, uuid: Uuid, device: &Device) -> Result<(), LifeError> {
    let _lock = sharing::lock()?;
    store.transaction(|t| nodes::remove(t, device))?;
    strike(dom, uuid, device)
}

/// Removes devices that the guest has let go of after nobody waited any more.
/// Gives which.
///
/// # Errors
/// The store's, or the record's.
pub fn reap(store: &mut Store, dom: DomId, uuid: Uuid) -> Result<Vec<Device>, LifeError> {
    let mut gone = Vec::new();
    for kind in Kind::ALL {
        for device in Device::all(store, dom, kind)? {
            if device.back_state(store)? != Some(guest_abi::xenbus::XenbusState::Closed) {
                continue;
            }
            let _lock = sharing::lock()?;
            if detach::reap(store, &device)? {
                strike(dom, uuid, &device)?;
                gone.push(device);
            }
        }
    }
    Ok(gone)
}

/// The record without the device. The lock is held.
fn strike(dom: DomId, uuid: Uuid, device: &Device) -> Result<(), LifeError> {
    let Some(mut record) = Record::load(dom).filter(|r| r.uuid == uuid) else {
        return Ok(());
    };
    let config = &mut record.config;
    match device.kind {
        Kind::Vbd => config.disks.retain(|d| d.vdev.number != device.id),
        Kind::Vif => config.vifs.retain(|v| v.devid != Some(device.id)),
    }
    record.save().map_err(LifeError::Record)
}
