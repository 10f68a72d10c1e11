//! Waiting until the back end has taken a device.
//!
//! Law: a device is ready when its back half waits for the guest's or is
//! connected to it; an interface's script must have run too. What the back end
//! says went wrong is what the user is told.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use guest_abi::xenbus::XenbusState;

use super::{Device, Kind, process};
use crate::xenstore::client::{Error, Nodes};

const BETWEEN_LOOKS: Duration = Duration::from_millis(30);

/// Why a device did not come.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The back end says why.
    #[error("{label}: {why}")]
    Failed {
        /// The device, for people.
        label: String,
        /// The back end's words.
        why: String,
    },
    /// The back end says nothing.
    #[error(
        "{label}: {program} has not taken it within {} s; its log is {}. A slow host may need a longer \
         DOMUS_DEVICE_TIMEOUT",
        waited.as_secs_f64(), log.display()
    )]
    Silent {
        /// The device, for people.
        label: String,
        /// The back end.
        program: &'static str,
        /// How long.
        waited: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// It was removed meanwhile.
    #[error("{0} was removed while it was being attached")]
    Gone(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] Error),
    /// Whoever waits is told to stop.
    #[error("interrupted")]
    Interrupted,
}

/// A device to wait for, and what to call it.
#[derive(Debug, Clone)]
pub struct Awaited {
    /// The device.
    pub device: Device,
    /// "disk xvda".
    pub label: String,
}

/// Waits for all of them. `go_on` is asked between the looks.
///
/// # Errors
/// See [`WaitError`].
pub fn until_ready<S: Nodes>(
    store: &mut S,
    domain: &str,
    all: &[Awaited],
    patience: Duration,
    mut go_on: impl FnMut(&mut S) -> Result<bool, Error>,
) -> Result<(), WaitError> {
    let give_up = Instant::now() + patience;
    for one in all {
        while !is_ready(store, one)? {
            if Instant::now() >= give_up {
                return Err(timed_out(store, domain, one, patience)?);
            }
            if !go_on(store)? {
                return Err(WaitError::Interrupted);
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }
    Ok(())
}

fn is_ready(store: &mut impl Nodes, one: &Awaited) -> Result<bool, WaitError> {
    let back = one.device.back();
    let Some(state) = one.device.back_state(store)? else {
        return Err(WaitError::Gone(one.label.clone()));
    };
    let status = store.find(&format!("{back}/hotplug-status"))?;
    if status.as_deref() == Some("error") {
        let why = said(store, one)?.unwrap_or_else(|| "the back end failed".to_owned());
        return Err(WaitError::Failed {
            label: one.label.clone(),
            why,
        });
    }
    let up = matches!(
        state,
        XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected
    );
    Ok(up && (one.device.kind == Kind::Vbd || status.as_deref() == Some("connected")))
}

/// What the back end says went wrong.
fn said(store: &mut impl Nodes, one: &Awaited) -> Result<Option<String>, Error> {
    for path in [
        format!("{}/hotplug-error", one.device.back()),
        format!("{}/error", one.device.error()),
    ] {
        if let Some(text) = store.find(&path)?.filter(|t| !t.is_empty()) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn timed_out(
    store: &mut impl Nodes,
    domain: &str,
    one: &Awaited,
    waited: Duration,
) -> Result<WaitError, Error> {
    let label = one.label.clone();
    Ok(match said(store, one)? {
        Some(why) => WaitError::Failed { label, why },
        None => WaitError::Silent {
            label,
            program: one.device.kind.program(),
            waited,
            log: process::log_of(one.device.kind, domain),
        },
    })
}
