//! Another CD in a drive.
//!
//! ```text
//!   params = FORMAT:/other    ours, or empty
//!   hotplug-error             the back end's, if it can't be read
//!   sectors                   the back end's, last: the drive has been changed
//! ```
//!
//! Law: the drive's own state does not change; the guest reads the new size.

use std::time::{Duration, Instant};

use super::{
    Device, Kind, nodes, process,
    wait::{Awaited, WaitError},
};
use crate::{
    config::disk::Disk,
    xenstore::client::{Client, Error, Nodes},
};

/// A watch on what the back end writes when it has changed the medium.
#[derive(Debug)]
pub struct Attention {
    device: Device,
    path: String,
}

const TOKEN: &str = "medium";

/// Begins to listen, before anything is changed.
///
/// # Errors
/// The store's.
pub fn listen(store: &mut Client, device: &Device) -> Result<Attention, Error> {
    let path = format!("{}/sectors", device.back());
    store.watch(&path, TOKEN)?;
    // The first event says only that the watch is there.
    store.next_event(None)?;
    Ok(Attention {
        device: *device,
        path,
    })
}

/// Writes what is to be in the drive.
///
/// # Errors
/// The store's.
pub fn publish(t: &mut (impl Nodes + Sized), device: &Device, disk: &Disk) -> Result<(), Error> {
    let back = device.back();
    t.rm(&format!("{back}/hotplug-error"))?;
    match disk.throttle.node() {
        Some(limits) => t.write(&format!("{back}/throttle"), limits)?,
        None => t.rm(&format!("{back}/throttle"))?,
    }
    t.write(&format!("{back}/params"), nodes::params(disk))
}

/// Waits until the back end has changed the medium.
///
/// # Errors
/// It can't read the new one, or does not react.
pub fn wait(
    store: &mut Client,
    attention: &Attention,
    domain: &str,
    label: String,
    patience: Duration,
) -> Result<(), WaitError> {
    let give_up = Instant::now() + patience;
    let changed = loop {
        let left = give_up.saturating_duration_since(Instant::now());
        match store.next_event(Some(left))? {
            Some(event) if event.path == attention.path => break true,
            Some(_) => {}
            None => break false,
        }
    };
    store.unwatch(&attention.path, TOKEN)?;
    let one = Awaited {
        device: attention.device,
        label,
    };
    let error = store.find(&format!("{}/hotplug-error", one.device.back()))?;
    match error.filter(|text| !text.is_empty()) {
        Some(why) => Err(WaitError::Failed {
            label: one.label,
            why,
        }),
        None if changed => Ok(()),
        None => Err(WaitError::Silent {
            label: one.label,
            program: Kind::Vbd.program(),
            waited: patience,
            log: process::log_of(Kind::Vbd, domain),
        }),
    }
}
