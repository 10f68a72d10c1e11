//! The devices of one guest, and what is to be done with each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use domus_privcmd::client::Client;
use guest_abi::{addr::DomId, xenbus::XenbusState};
use tracing::{error, info, warn};

use super::Driver;
use crate::backend::{
    bus::{Attention, Bus, BusError, Store},
    machine::{self, Step, View},
};

/// Until a device in use whose file can't be opened again is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// More steps than any change of states needs: a guard, not a limit.
const STEPS: usize = 16;

pub struct Table<D: Driver> {
    driver: D,
    dom: DomId,
    devices: BTreeMap<String, Entry<D::Device>>,
    dirty: BTreeSet<String>,
    scan: bool,
    calls: bool,
}

struct Entry<T> {
    frontend: String,
    device: Option<T>,
    attached: bool,
    failed: bool,
    retry_at: Option<Instant>,
}

impl<T> Entry<T> {
    fn new(frontend: String) -> Self {
        Self {
            frontend,
            device: None,
            attached: false,
            failed: false,
            retry_at: None,
        }
    }
}

/// What the main thread has at hand.
struct Hands<'a> {
    store: &'a mut dyn Store,
    client: Option<&'a Arc<Client>>,
    attention: &'a Attention,
}

impl<D: Driver> Table<D> {
    pub fn new(driver: D, dom: DomId) -> Self {
        Self {
            driver,
            dom,
            devices: BTreeMap::new(),
            dirty: BTreeSet::new(),
            scan: true,
            calls: false,
        }
    }

    /// Where the guest's devices of this kind are.
    pub fn directory(&self) -> String {
        format!("/local/domain/0/backend/{}/{}", D::KIND, self.dom)
    }

    /// A watch has fired.
    pub fn note(&mut self, token: &str, path: &str) {
        if let Some(device) = token.strip_prefix("front/") {
            self.dirty.insert(device.to_owned());
            return;
        }
        let below = path.strip_prefix(&self.directory()).unwrap_or("");
        match below.split('/').nth(1) {
            Some(device) => self.dirty.insert(device.to_owned()),
            None => std::mem::replace(&mut self.scan, true),
        };
    }

    /// A thread has called.
    pub fn note_calls(&mut self) {
        self.calls = true;
    }

    /// When to look again, though nothing changes.
    pub fn retry_in(&self, now: Instant) -> Option<Duration> {
        let times = self.devices.values().filter_map(|entry| entry.retry_at);
        times.min().map(|at| at.saturating_duration_since(now))
    }

    /// Does all that is to be done now.
    ///
    /// # Errors
    /// When the store is lost.
    pub fn settle(
        &mut self,
        store: &mut dyn Store,
        client: Option<&Arc<Client>>,
        attention: &Attention,
    ) -> Result<(), BusError> {
        let mut hands = Hands {
            store,
            client,
            attention,
        };
        if std::mem::take(&mut self.scan) {
            self.dirty.extend(hands.store.children(&self.directory())?);
            self.dirty.extend(self.devices.keys().cloned());
        }
        let now = Instant::now();
        let due = |entry: &Entry<_>| entry.retry_at.is_some_and(|at| at <= now);
        let again = self.devices.iter().filter(|(_, entry)| due(entry));
        self.dirty.extend(again.map(|(name, _)| name.clone()));
        if std::mem::take(&mut self.calls) {
            self.check_all(&mut hands)?;
        }
        for name in std::mem::take(&mut self.dirty) {
            survivable(&name, self.update(&name, &mut hands))?;
        }
        Ok(())
    }

    /// The guest is gone: all is given back, and nobody waits for states.
    pub fn end(&mut self) {
        self.stop();
        self.devices.clear();
    }

    /// Stops serving, as if killed, but with nothing in flight.
    pub fn stop(&mut self) {
        for entry in self.devices.values_mut() {
            if let Some(device) = entry.device.as_mut().filter(|_| entry.attached) {
                self.driver.disconnect(device);
            }
            entry.attached = false;
        }
    }

    fn check_all(&mut self, hands: &mut Hands<'_>) -> Result<(), BusError> {
        for (name, entry) in &mut self.devices {
            let mut bus = bus::<D>(self.dom, name, &entry.frontend, hands);
            let Some(device) = entry.device.as_mut().filter(|_| entry.attached) else {
                continue;
            };
            let Err(error) = self.driver.check(device, &mut bus) else {
                continue;
            };
            self.driver.disconnect(device);
            entry.attached = false;
            survivable(name, fail(&mut bus, &mut entry.failed, &error))?;
        }
        Ok(())
    }

    fn update(&mut self, name: &str, hands: &mut Hands<'_>) -> Result<(), BusError> {
        let directory = format!("{}/{name}", self.directory());
        let Some(frontend) = hands.store.find(&format!("{directory}/frontend"))? else {
            return self.forget(name, hands);
        };
        if !self.devices.contains_key(name) {
            info!(device = name, "found");
            hands
                .store
                .watch(&format!("{frontend}/state"), &format!("front/{name}"))?;
            self.devices.insert(name.into(), Entry::new(frontend));
        }
        let entry = self.devices.get_mut(name).expect("inserted above");
        // What we report fires our own watch: that is no reason to hurry.
        if entry.retry_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        entry.retry_at = None;
        let mut bus = bus::<D>(self.dom, name, &entry.frontend, hands);
        if let Some(device) = &mut entry.device
            && let Err(error) = self.driver.changed(device, &mut bus)
        {
            return fail(&mut bus, &mut entry.failed, &error);
        }
        for _ in 0..STEPS {
            let Some(step) = next_step(entry, &mut bus)? else {
                return Ok(());
            };
            if !do_step(&mut self.driver, entry, &mut bus, step)? {
                return Ok(());
            }
        }
        warn!(device = name, "its states do not settle");
        Ok(())
    }

    /// The tools have removed the device.
    fn forget(&mut self, name: &str, hands: &mut Hands<'_>) -> Result<(), BusError> {
        let Some(mut entry) = self.devices.remove(name) else {
            return Ok(());
        };
        info!(device = name, "removed");
        if let Some(device) = entry.device.as_mut().filter(|_| entry.attached) {
            self.driver.disconnect(device);
        }
        let path = format!("{}/state", entry.frontend);
        hands.store.unwatch(&path, &format!("front/{name}"))
    }
}

fn bus<'a, D: Driver>(
    dom: DomId,
    name: &'a str,
    frontend: &str,
    hands: &'a mut Hands<'_>,
) -> Bus<'a> {
    Bus {
        store: &mut *hands.store,
        client: hands.client,
        attention: hands.attention,
        dom,
        kind: D::KIND,
        device: name,
        backend: format!("/local/domain/0/backend/{}/{dom}/{name}", D::KIND),
        frontend: frontend.to_owned(),
    }
}

fn next_step<T>(entry: &mut Entry<T>, bus: &mut Bus<'_>) -> Result<Option<Step>, BusError> {
    let theirs = bus.theirs()?;
    if matches!(theirs, XenbusState::Closed | XenbusState::Unknown) {
        entry.failed = false;
    }
    let view = View {
        mine: bus.mine()?,
        theirs,
        online: bus.find("online")?.is_some_and(|text| text.trim() == "1"),
        open: entry.device.is_some(),
        attached: entry.attached,
        failed: entry.failed,
    };
    Ok(machine::next(&view))
}

/// Does one step; whether to go on.
fn do_step<D: Driver>(
    driver: &mut D,
    entry: &mut Entry<D::Device>,
    bus: &mut Bus<'_>,
    step: Step,
) -> Result<bool, BusError> {
    let in_use = matches!(bus.mine()?, XenbusState::Connected);
    let outcome = match (step, &mut entry.device) {
        (Step::Say(state), _) => {
            info!(device = bus.device(), state = ?state, "says");
            bus.set_state(state)?;
            return Ok(true);
        }
        (Step::Release, _) => {
            entry.device = None;
            return Ok(true);
        }
        (Step::Open, _) => {
            bus.clear_report()?;
            driver.open(bus).map(|device| entry.device = Some(device))
        }
        (Step::Connect(how), Some(device)) => match driver.may_connect(device, bus) {
            Ok(false) => return Ok(false),
            Ok(true) => driver.connect(device, bus, how).map(|()| {
                info!(device = bus.device(), ?how, "connected");
                entry.attached = true;
            }),
            Err(error) => Err(error),
        },
        (Step::Disconnect, Some(device)) => {
            driver.disconnect(device);
            info!(device = bus.device(), "disconnected");
            entry.attached = false;
            return Ok(true);
        }
        (Step::Connect(_) | Step::Disconnect, None) => return Ok(false),
    };
    match outcome {
        Ok(()) => Ok(true),
        // A guest that uses the device shall not lose it to a back end that
        // was restarted a moment too early.
        Err(error) if step == Step::Open && in_use => {
            warn!(device = bus.device(), %error, "in use, but can't be opened again; trying on");
            bus.report(&error)?;
            entry.retry_at = Some(Instant::now() + RETRY);
            Ok(false)
        }
        Err(error) => {
            fail(bus, &mut entry.failed, &error)?;
            Ok(true)
        }
    }
}

/// Reports an error and asks the front end to close.
fn fail(bus: &mut Bus<'_>, failed: &mut bool, error: &dyn Display) -> Result<(), BusError> {
    error!(device = bus.device(), %error, "failed");
    *failed = true;
    bus.report(error)?;
    bus.set_state(XenbusState::Closing)
}

/// Passes on only the loss of the store itself.
fn survivable(name: &str, outcome: Result<(), BusError>) -> Result<(), BusError> {
    match outcome {
        Err(error) if error.is_lost() => Err(error),
        Err(error) => {
            warn!(device = name, %error, "left as it is");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
