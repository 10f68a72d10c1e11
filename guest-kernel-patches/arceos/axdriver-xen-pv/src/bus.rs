//! What both drivers share: the connection to xenstore and the grant table.
//!
//! Whoever uses it also looks whether `xm shutdown` was said: ArceOS knows no
//! such wish, so the domain ends there and then, as by ArceOS' own exit.

use guest_abi::{
    kernel::{
        grant::Grants,
        page::PagePool,
        sched, time,
        xenbus::Bus,
        xenstore::{StoreError, Tx, Watch, Xenstore},
    },
    sched::SHUTDOWN_POWEROFF,
};
use log::warn;
use spin::Mutex;

/// How long a back end may take to come, in ns.
const PATIENCE: u64 = 30_000_000_000;

/// The grant table; what the disk and the network take, see there.
pub static PAGES: PagePool<{ 1 + crate::blk::PAGES + crate::net::PAGES }> = PagePool::new();

static BUS: Mutex<Option<Connected>> = Mutex::new(None);

struct Connected {
    bus: Bus,
    shutdown: Watch,
}

/// Does something with the bus, which is set up first if need be. `None` if a
/// domain has none, as the first of a Xen.
pub fn with<T>(what: impl FnOnce(&mut Bus) -> T) -> Option<T> {
    let mut connected = BUS.lock();
    if connected.is_none() {
        *connected = connect();
    }
    let Connected { bus, shutdown } = connected.as_mut()?;
    let result = what(bus);
    if asked_to_end(&mut bus.store, shutdown).unwrap_or(false) {
        sched::shutdown(SHUTDOWN_POWEROFF);
    }
    Some(result)
}

fn asked_to_end(store: &mut Xenstore, watch: &Watch) -> Result<bool, StoreError> {
    if !store.fired(watch)? {
        return Ok(false);
    }
    let word = store.read(Tx::NONE, &"control/shutdown")?;
    Ok(word == b"poweroff" || word == b"halt")
}

fn connect() -> Option<Connected> {
    let store = Xenstore::connect(xen_pv_cpu::boot()?);
    let mut store = store
        .inspect_err(|error| warn!("no xenstore: {error}"))
        .ok()?;
    let shutdown = store.watch(&"control/shutdown").ok()?;
    let grants = Grants::set_up([PAGES.take()?]);
    let grants = grants
        .inspect_err(|error| warn!("no grant table: {error}"))
        .ok()?;
    let bus = Bus { store, grants };
    Some(Connected { bus, shutdown })
}

/// When to give up waiting.
pub fn deadline() -> u64 {
    time::system_time() + PATIENCE
}
