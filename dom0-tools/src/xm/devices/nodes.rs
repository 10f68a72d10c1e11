//! A device's nodes, as libxl writes them.
//!
//! ```text
//!   /local/domain/0/backend/vbd/N/51712      Dom0's, the guest reads
//!     frontend frontend-id online removable bootable state=1 dev type=qdisk
//!     params=FORMAT:/path mode device-type discard-enable [throttle]
//!   /local/domain/N/device/vbd/51712         the guest's, Dom0 reads
//!     backend backend-id state=1 virtual-device device-type
//!   /local/domain/0/backend/vif/N/0
//!     frontend frontend-id online state=1 script mac handle type=vif mode
//!     [bridge] [ip] [vifname] [rate=BYTES,MICROSECONDS] [forward]
//!   /local/domain/N/device/vif/0
//!     backend backend-id state=1 handle mac mtu
//! ```
//!
//! Law: both halves appear in one transaction. What an earlier device of the
//! same number left is removed in it.

use guest_abi::{addr::DomId, xenbus::XenbusState};

use super::{Device, Kind};
use crate::{
    config::{
        DomainConfig,
        disk::{Access, Disk},
        forward,
        vif::Vif,
    },
    xenstore::{
        client::{Error, Nodes},
        perms::{Access as Grant, Perm},
    },
};

/// The longest packet where the configuration says nothing.
const MTU: u16 = 1500;
/// Where scripts are that are named without a directory.
const SCRIPTS: &str = "/etc/xen/scripts";

/// Writes the nodes of all devices in a configuration.
///
/// # Errors
/// The store's.
pub fn publish_all(
    t: &mut (impl Nodes + Sized),
    dom: DomId,
    config: &DomainConfig,
) -> Result<(), Error> {
    for disk in &config.disks {
        publish_disk(t, dom, disk)?;
    }
    for (index, vif) in (0..).zip(&config.vifs) {
        publish_vif(t, dom, vif.devid.unwrap_or(index), vif)?;
    }
    Ok(())
}

/// Writes the nodes of a disk.
///
/// # Errors
/// The store's.
pub fn publish_disk(
    t: &mut (impl Nodes + Sized),
    dom: DomId,
    disk: &Disk,
) -> Result<Device, Error> {
    let device = Device::new(dom, Kind::Vbd, disk.vdev.number);
    let device_type = if disk.cdrom { "cdrom" } else { "disk" };
    let (mode, writes) = match disk.access {
        Access::ReadOnly => ("r", false),
        Access::ReadWrite => ("w", true),
        Access::SharedWrite => ("w!", true),
    };
    let mut back = vec![
        ("removable", flag(disk.cdrom)),
        ("bootable", flag(true)),
        ("dev", disk.vdev.name.clone()),
        ("type", "qdisk".to_owned()),
        ("params", params(disk)),
        ("mode", mode.to_owned()),
        ("device-type", device_type.to_owned()),
        ("discard-enable", flag(disk.discard.unwrap_or(writes))),
    ];
    back.extend(disk.throttle.node().map(|limits| ("throttle", limits)));
    let front = [
        ("virtual-device", device.id.to_string()),
        ("device-type", device_type.to_owned()),
    ];
    publish(t, &device, &back, &front)?;
    Ok(device)
}

/// `FORMAT:/path`; nothing for an empty drive.
#[must_use]
pub fn params(disk: &Disk) -> String {
    let path = disk.target.as_ref();
    path.map(|path| format!("{}:{}", disk.format.word(), path.display()))
        .unwrap_or_default()
}

/// Writes the nodes of a network interface.
///
/// # Errors
/// The store's.
pub fn publish_vif(
    t: &mut (impl Nodes + Sized),
    dom: DomId,
    index: u32,
    vif: &Vif,
) -> Result<Device, Error> {
    let device = Device::new(dom, Kind::Vif, index);
    let mac = vif.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let mut back = vec![
        ("script", script(vif)),
        ("mac", mac.clone()),
        ("handle", index.to_string()),
        ("type", "vif".to_owned()),
        ("mode", vif.mode.word().to_owned()),
    ];
    let rate = vif.rate.map(|rate| {
        let bytes = rate.bytes_per_interval();
        format!("{bytes},{}", rate.interval_us)
    });
    let optional = [
        ("bridge", vif.bridge.clone()),
        ("ip", vif.ip.clone()),
        ("vifname", vif.vifname.clone()),
        ("rate", rate),
        ("forward", vif.forward.as_deref().map(forward::join)),
    ];
    back.extend(optional.into_iter().filter_map(|(k, v)| Some((k, v?))));
    let front = [
        ("handle", index.to_string()),
        ("mac", mac),
        ("mtu", vif.mtu.unwrap_or(MTU).to_string()),
    ];
    publish(t, &device, &back, &front)?;
    Ok(device)
}

/// The script's absolute path; empty where none is wanted.
fn script(vif: &Vif) -> String {
    match vif.script.as_deref() {
        None | Some("") => String::new(),
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(name) => format!("{SCRIPTS}/{name}"),
    }
}

fn publish(
    t: &mut (impl Nodes + Sized),
    device: &Device,
    back: &[(&str, String)],
    front: &[(&str, String)],
) -> Result<(), Error> {
    remove(t, device)?;
    let dom = device.dom;
    let state = XenbusState::Initialising.number().to_string();
    let (back_dir, front_dir) = (device.back(), device.front());
    directory(t, &front_dir, dom, DomId::DOM0)?;
    directory(t, &back_dir, DomId::DOM0, dom)?;
    let links = [
        (format!("{back_dir}/frontend"), front_dir.clone()),
        (format!("{back_dir}/frontend-id"), dom.to_string()),
        (format!("{back_dir}/online"), flag(true)),
        (format!("{front_dir}/backend"), back_dir.clone()),
        (format!("{front_dir}/backend-id"), DomId::DOM0.to_string()),
    ];
    for (path, value) in links {
        t.write(&path, value)?;
    }
    for (dir, values) in [(&back_dir, back), (&front_dir, front)] {
        for (key, value) in values {
            t.write(&format!("{dir}/{key}"), value)?;
        }
        t.write(&format!("{dir}/state"), &state)?;
    }
    Ok(())
}

/// Removes all nodes of a device. It need not have any.
///
/// # Errors
/// The store's.
pub fn remove(t: &mut impl Nodes, device: &Device) -> Result<(), Error> {
    for path in [device.back(), device.front(), device.error()] {
        remove_tree(t, &path)?;
    }
    Ok(())
}

/// Removes all that Dom0's part of the store says of a domain's devices.
///
/// # Errors
/// The store's.
pub fn remove_back_halves(t: &mut impl Nodes, dom: DomId) -> Result<(), Error> {
    for kind in Kind::ALL {
        remove_tree(t, &kind.back_dir(dom))?;
        remove_tree(t, &kind.error_dir(dom))?;
    }
    Ok(())
}

/// A missing tree is as good as a removed one.
fn remove_tree(t: &mut impl Nodes, path: &str) -> Result<(), Error> {
    if t.exists(path)? {
        t.rm(path)?;
    }
    Ok(())
}

fn directory(
    t: &mut (impl Nodes + Sized),
    path: &str,
    owner: DomId,
    reader: DomId,
) -> Result<(), Error> {
    t.mkdir(path)?;
    t.set_perms(
        path,
        &[
            Perm::new(Grant::None, owner),
            Perm::new(Grant::Read, reader),
        ],
    )
}

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}
