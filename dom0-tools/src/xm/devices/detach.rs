//! Taking devices away.
//!
//! ```text
//!   back half   online=0, state=Closing           ours
//!   front half  Closing, Closed                   the guest's, if it reacts
//!   back half   Closed                            the back end's, all is written
//!   both halves removed                           ours
//! ```
//!
//! Law: a device's nodes go only after its back end has let go of it, or by
//! force. A domain that has ended has no say: its front halves go first, which
//! every back end takes for the end, and back ends that don't end are killed
//! before the image counts as free.

use std::{
    thread,
    time::{Duration, Instant},
};

use guest_abi::{addr::DomId, xenbus::XenbusState};

use super::{
    Device, Kind, nodes,
    process::{self, BackEnd},
};
use crate::xenstore::client::{Client, Error, Nodes};

const BETWEEN_LOOKS: Duration = Duration::from_millis(30);
/// How long a back end may take to write what it has, once the guest is gone.
const LAST_WRITES: Duration = Duration::from_secs(20);

/// How a request to let go of a device went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both halves have let go.
    Closed,
    /// The guest's half, in this state, has not.
    Held(XenbusState),
}

/// Tells both halves that the device is to go. `false`: there is none.
///
/// # Errors
/// The store's.
pub fn request(store: &mut Client, device: &Device) -> Result<bool, Error> {
    store.transaction(|t| ask(t, device))
}

fn ask(t: &mut (impl Nodes + Sized), device: &Device) -> Result<bool, Error> {
    let Some(state) = device.back_state(t)? else {
        return Ok(false);
    };
    t.write(&format!("{}/online", device.back()), "0")?;
    if !matches!(state, XenbusState::Closing | XenbusState::Closed) {
        let closing = XenbusState::Closing.number().to_string();
        t.write(&format!("{}/state", device.back()), closing)?;
    }
    Ok(true)
}

/// Waits until both halves have let go.
///
/// # Errors
/// The store's.
pub fn wait_closed(
    store: &mut Client,
    device: &Device,
    patience: Duration,
) -> Result<Outcome, Error> {
    let give_up = Instant::now() + patience;
    loop {
        match device.back_state(store)? {
            None | Some(XenbusState::Closed) => return Ok(Outcome::Closed),
            Some(_) if Instant::now() >= give_up => {
                return Ok(Outcome::Held(device.front_state(store)?));
            }
            Some(_) => thread::sleep(BETWEEN_LOOKS),
        }
    }
}

/// Takes the device from a guest that does not let go: its half is removed,
/// and the back end may finish what it has begun.
///
/// # Errors
/// The store's.
pub fn force(store: &mut Client, device: &Device) -> Result<(), Error> {
    store.transaction(|t| cut(t, device))?;
    wait_closed(store, device, LAST_WRITES)?;
    store.transaction(|t| nodes::remove(t, device))
}

fn cut(t: &mut (impl Nodes + Sized), device: &Device) -> Result<(), Error> {
    if ask(t, device)? && t.exists(&device.front())? {
        t.rm(&device.front())?;
    }
    Ok(())
}

/// Removes a device that has been closed for good. `false`: it is not that.
///
/// # Errors
/// The store's.
pub fn reap(store: &mut Client, device: &Device) -> Result<bool, Error> {
    store.transaction(|t| {
        let online = t.find(&format!("{}/online", device.back()))?;
        let closed = device.back_state(t)? == Some(XenbusState::Closed);
        let over = closed && online.as_deref() == Some("0");
        if over {
            nodes::remove(t, device)?;
        }
        Ok(over)
    })
}

/// Takes all devices of a domain that runs no more; its back ends end.
///
/// # Errors
/// The store's.
pub fn release(store: &mut Client, dom: DomId) -> Result<(), Error> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        all.extend(Device::all(store, dom, kind)?);
    }
    if !all.is_empty() {
        store.transaction(|t| all.iter().try_for_each(|device| cut(t, device)))?;
    }
    let mut back_ends: Vec<BackEnd> = Kind::ALL
        .into_iter()
        .flat_map(|kind| BackEnd::find(kind, dom))
        .collect();
    let give_up = Instant::now() + LAST_WRITES;
    while Instant::now() < give_up
        && !back_ends.iter().all(|b| b.ends_within(Duration::ZERO))
        && !all_closed(store, &all)?
    {
        thread::sleep(BETWEEN_LOOKS);
    }
    back_ends.iter_mut().for_each(BackEnd::stop);
    process::forget(dom);
    store.transaction(|t| nodes::remove_back_halves(t, dom))
}

fn all_closed(store: &mut Client, devices: &[Device]) -> Result<bool, Error> {
    for device in devices {
        let state = device.back_state(store)?;
        if !matches!(state, None | Some(XenbusState::Closed)) {
            return Ok(false);
        }
    }
    Ok(true)
}
