//! A domain's nodes in the store, as Xen's tools write them for a PV domain.
//!
//! ```text
//! /vm/UUID                      owner Dom0, the guest reads
//!   name uuid start_time on_poweroff on_reboot on_crash image/ostype ...
//! /local/domain/N               owner Dom0, the guest reads
//!   vm name domid
//!   memory/{target,static-max}  in KiB
//!   cpu/I/availability
//!   console/{ring-ref,port,limit,type,output}   tty is xenconsoled's
//!   store/{ring-ref,port}
//!   control/{shutdown,sysrq,feature-*}          owner the guest
//!   control/platform-feature-*
//!   device                      owner Dom0, the guest reads; what is below
//!                               it see [`super::devices::nodes`]
//!   data drivers feature attr error             owner the guest
//! ```
//!
//! Law: what Dom0 trusts (name, vm, domid, memory, rings) the guest can read
//! and never write.

use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
};
use uuid::Uuid;

use super::{devices, record::Record};
use crate::{
    config::name::DOM0_NAME,
    xenstore::{
        client::{Client, Error, Nodes, Transaction},
        perms::{Access, Perm},
    },
};

/// How much console output is kept for a reader who is not there, in bytes.
const CONSOLE_LIMIT: u32 = 1 << 20;

/// Why a domain can't have its name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another has it.
    #[error("VM name '{name}' already exists as domain {dom}")]
    Taken {
        /// The name.
        name: String,
        /// Whose it is.
        dom: DomId,
    },
    /// The store's.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The path of a domain's home.
#[must_use]
pub fn home(dom: DomId) -> String {
    format!("/local/domain/{dom}")
}

fn vm_path(uuid: Uuid) -> String {
    format!("/vm/{uuid}")
}

/// The domains that have a home in the store.
///
/// # Errors
/// The store's.
pub fn domains(store: &mut impl Nodes) -> Result<Vec<DomId>, Error> {
    let names = none_if_absent(store.list("/local/domain"))?.unwrap_or_default();
    let mut all: Vec<DomId> = names
        .iter()
        .filter_map(|n| n.parse().ok())
        .map(DomId)
        .collect();
    all.sort();
    Ok(all)
}

/// A domain's name.
///
/// # Errors
/// The store's.
pub fn name_of(store: &mut impl Nodes, dom: DomId) -> Result<Option<String>, Error> {
    let name = store.find(&format!("{}/name", home(dom)))?;
    Ok(name.filter(|n| !n.is_empty()))
}

/// Whether the store knows the domain.
///
/// # Errors
/// The store's.
pub fn known(store: &mut impl Nodes, dom: DomId) -> Result<bool, Error> {
    store.exists(&format!("{}/vm", home(dom)))
}

/// The nodes of the control domain itself.
///
/// # Errors
/// The store's.
pub fn write_dom0(store: &mut Client) -> Result<(), Error> {
    store.transaction(|t| {
        t.write("/local/domain/0/domid", "0")?;
        t.write("/local/domain/0/name", DOM0_NAME)?;
        t.write("/tool/xenstored", "")
    })
}

/// Makes a domain's home with its name, which no other that `lives` may have.
///
/// # Errors
/// See [`NameError`].
pub fn claim(
    store: &mut Client,
    dom: DomId,
    uuid: Uuid,
    name: &str,
    lives: impl Fn(DomId) -> bool,
) -> Result<(), NameError> {
    with_free_name(store, dom, name, lives, |t| {
        // What a domain of the same number may have left.
        remove_tree(t, &home(dom))?;
        devices::nodes::remove_back_halves(t, dom)?;
        make(t, &home(dom), readable(dom))?;
        make(t, &vm_path(uuid), readable(dom))?;
        t.write(&format!("{}/vm", home(dom)), vm_path(uuid))?;
        t.write(&format!("{}/domid", home(dom)), dom.to_string())?;
        t.write(&format!("{}/uuid", vm_path(uuid)), uuid.to_string())?;
        write_name(t, dom, uuid, name)
    })
}

/// Gives a domain another name.
///
/// # Errors
/// See [`NameError`].
pub fn rename(
    store: &mut Client,
    dom: DomId,
    uuid: Uuid,
    name: &str,
    lives: impl Fn(DomId) -> bool,
) -> Result<(), NameError> {
    with_free_name(store, dom, name, lives, |t| write_name(t, dom, uuid, name))
}

/// Does `write` in the transaction that has found `name` free for `dom`.
fn with_free_name(
    store: &mut Client,
    dom: DomId,
    name: &str,
    lives: impl Fn(DomId) -> bool,
    mut write: impl FnMut(&mut Transaction<'_>) -> Result<(), Error>,
) -> Result<(), NameError> {
    let taken = store.transaction(|t| {
        let taken = holder(t, name, dom, &lives)?;
        if taken.is_none() {
            write(t)?;
        }
        Ok(taken)
    })?;
    match taken {
        None => Ok(()),
        Some(dom) => Err(NameError::Taken {
            name: name.to_owned(),
            dom,
        }),
    }
}

fn write_name(
    t: &mut (impl Nodes + Sized),
    dom: DomId,
    uuid: Uuid,
    name: &str,
) -> Result<(), Error> {
    t.write(&format!("{}/name", home(dom)), name)?;
    t.write(&format!("{}/name", vm_path(uuid)), name)
}

/// Another domain that has this name. One that no longer lives has none: its
/// nodes are about to go. It is asked after its name was read, since a domain
/// exists before it has a name.
fn holder(
    store: &mut impl Nodes,
    name: &str,
    but: DomId,
    lives: impl Fn(DomId) -> bool,
) -> Result<Option<DomId>, Error> {
    if name == DOM0_NAME {
        return Ok(Some(DomId::DOM0));
    }
    for dom in domains(store)? {
        if dom != but && name_of(store, dom)?.as_deref() == Some(name) && lives(dom) {
            return Ok(Some(dom));
        }
    }
    Ok(None)
}

/// Writes all other nodes of a domain that has its name.
///
/// # Errors
/// The store's.
pub fn fill(store: &mut Client, record: &Record) -> Result<(), Error> {
    store.transaction(|t| {
        write_vm(t, record)?;
        write_home(t, record)?;
        devices::nodes::publish_all(t, record.dom(), &record.config)
    })
}

/// Writes everything and introduces the domain: after the store was lost.
///
/// # Errors
/// The store's.
pub fn write_all(store: &mut Client, record: &Record) -> Result<(), Error> {
    let name = record.config.name.as_str();
    match claim(store, record.dom(), record.uuid, name, |_| true) {
        Ok(()) | Err(NameError::Taken { .. }) => {}
        Err(NameError::Store(error)) => return Err(error),
    }
    fill(store, record)?;
    introduce(store, record)
}

/// Notes that somebody asked for a reboot: it does not count as one of a loop.
///
/// # Errors
/// The store's.
pub fn note_reboot_request(store: &mut Client, uuid: Uuid) -> Result<(), Error> {
    store.write(&reboot_request(uuid), "1")
}

/// Whether somebody asked for the reboot; the note is taken back.
///
/// # Errors
/// The store's.
pub fn take_reboot_request(store: &mut Client, uuid: Uuid) -> Result<bool, Error> {
    let asked = store.exists(&reboot_request(uuid))?;
    if asked {
        store.rm(&reboot_request(uuid))?;
    }
    Ok(asked)
}

fn reboot_request(uuid: Uuid) -> String {
    format!("{}/xend/reboot_requested", vm_path(uuid))
}

/// Connects the store to the domain's ring.
///
/// # Errors
/// The store's.
pub fn introduce(store: &mut Client, record: &Record) -> Result<(), Error> {
    store.introduce(record.dom(), Mfn(record.store.mfn), Port(record.store.port))
}

fn write_vm(t: &mut (impl Nodes + Sized), record: &Record) -> Result<(), Error> {
    let config = &record.config;
    let vm = vm_path(record.uuid);
    let ramdisk = config.ramdisk.as_ref().map(|p| p.display().to_string());
    let kernel = config.kernel.as_ref().map(|p| p.display().to_string());
    let values = [
        ("start_time", format!("{:.2}", record.start_time)),
        ("memory", config.memory_mib.to_string()),
        ("maxmem", config.maxmem_mib.to_string()),
        ("vcpus", config.max_vcpus.to_string()),
        ("on_poweroff", config.on_poweroff.to_string()),
        ("on_reboot", config.on_reboot.to_string()),
        ("on_crash", config.on_crash.to_string()),
        ("image", "linux".to_owned()),
        ("image/ostype", "linux".to_owned()),
        ("image/kernel", kernel.unwrap_or_default()),
        ("image/ramdisk", ramdisk.unwrap_or_default()),
        ("image/cmdline", config.cmdline.clone()),
        ("xend/restart_count", record.restarts.to_string()),
    ];
    for (key, value) in values {
        t.write(&format!("{vm}/{key}"), value)?;
    }
    Ok(())
}

fn write_home(t: &mut (impl Nodes + Sized), record: &Record) -> Result<(), Error> {
    let (dom, config) = (record.dom(), &record.config);
    let home = home(dom);
    let values = [
        ("memory/target", (config.memory_mib * 1024).to_string()),
        ("memory/static-max", (config.maxmem_mib * 1024).to_string()),
        ("store/ring-ref", record.store.mfn.to_string()),
        ("store/port", record.store.port.to_string()),
        ("console/ring-ref", record.console.mfn.to_string()),
        ("console/port", record.console.port.to_string()),
        ("console/limit", CONSOLE_LIMIT.to_string()),
        ("console/type", "xenconsoled".to_owned()),
        ("console/output", "pty".to_owned()),
        (
            "control/platform-feature-multiprocessor-suspend",
            "1".to_owned(),
        ),
        ("control/platform-feature-xs_reset_watches", "1".to_owned()),
    ];
    for dir in ["memory", "store", "console", "control", "cpu", "device"] {
        make(t, &format!("{home}/{dir}"), readable(dom))?;
    }
    for (key, value) in values {
        t.write(&format!("{home}/{key}"), value)?;
    }
    for cpu in 0..config.max_vcpus {
        let state = if cpu < config.vcpus {
            "online"
        } else {
            "offline"
        };
        t.write(&format!("{home}/cpu/{cpu}/availability"), state)?;
    }
    for own in [
        "control/shutdown",
        "control/sysrq",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ] {
        make(t, &format!("{home}/{own}"), owned(dom))?;
    }
    Ok(())
}

fn make(t: &mut (impl Nodes + Sized), path: &str, perms: Vec<Perm>) -> Result<(), Error> {
    t.mkdir(path)?;
    t.set_perms(path, &perms)
}

fn readable(dom: DomId) -> Vec<Perm> {
    vec![
        Perm::new(Access::None, DomId::DOM0),
        Perm::new(Access::Read, dom),
    ]
}

fn owned(dom: DomId) -> Vec<Perm> {
    vec![Perm::new(Access::None, dom)]
}

/// Whether the store knows the domain by this UUID, or not at all.
///
/// # Errors
/// The store's.
pub fn is_home_of(store: &mut impl Nodes, dom: DomId, uuid: Uuid) -> Result<bool, Error> {
    let vm = store.find(&format!("{}/vm", home(dom)))?;
    Ok(vm.is_none_or(|vm| vm == vm_path(uuid)))
}

/// Removes all that tells of a domain, if the home is still its.
///
/// # Errors
/// The store's.
pub fn remove(store: &mut Client, dom: DomId, uuid: Uuid) -> Result<(), Error> {
    let vm = vm_path(uuid);
    let own = store.find(&format!("{}/vm", home(dom)))?;
    if own.as_deref() == Some(vm.as_str()) {
        forget(store, dom)?;
    }
    store.transaction(|t| {
        if t.find(&format!("{}/vm", home(dom)))?.as_deref() == Some(vm.as_str()) {
            remove_tree(t, &home(dom))?;
            devices::nodes::remove_back_halves(t, dom)?;
        }
        // A restarted domain goes on under the same /vm node.
        for other in domains(t)? {
            if t.find(&format!("{}/vm", home(other)))?.as_deref() == Some(vm.as_str()) {
                return Ok(());
            }
        }
        remove_tree(t, &vm)
    })
}

/// Removes a home of which nothing else is known.
///
/// # Errors
/// The store's.
pub fn remove_unrecorded(store: &mut Client, dom: DomId) -> Result<(), Error> {
    forget(store, dom)?;
    let vm = store.find(&format!("{}/vm", home(dom)))?;
    store.transaction(|t| {
        remove_tree(t, &home(dom))?;
        devices::nodes::remove_back_halves(t, dom)?;
        match vm.as_deref().filter(|vm| vm.starts_with("/vm/")) {
            Some(vm) => remove_tree(t, vm),
            None => Ok(()),
        }
    })
}

/// Disconnects the store from a domain; it need not be connected.
fn forget(store: &mut Client, dom: DomId) -> Result<(), Error> {
    none_if_absent(store.release(dom)).map(drop)
}

fn remove_tree(t: &mut impl Nodes, path: &str) -> Result<(), Error> {
    none_if_absent(t.rm(path)).map(drop)
}

fn none_if_absent<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}
