//! A domain may end before the console daemon has opened its console: a kernel
//! that makes a mistake in its first lines lives a few milliseconds.
//!
//! Law: what it wrote until then, and what the hypervisor said of it, is kept:
//! the daemon reads the ring as long as it has it, and it has it once it has
//! named the terminal. A daemon that is away or stuck delays the end by
//! [`PATIENCE`] at most.

use std::{
    thread,
    time::{Duration, Instant},
};

use domus_privcmd::pidfile;
use guest_abi::addr::DomId;

use crate::{
    paths,
    xenstore::client::{Client, Nodes},
};

const PATIENCE: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// Waits until the console of a domain that has shut down is open.
pub fn wait_for_console(store: &mut Client, dom: DomId) {
    let node = format!("/local/domain/{dom}/console/tty");
    let is_served = pidfile::holder(&paths::pid_file("xenconsoled")).is_some();
    let give_up = Instant::now() + PATIENCE;
    while is_served && Instant::now() < give_up {
        // A store that is away has nothing to tell the daemon either.
        let Ok(None) = store.find(&node) else { return };
        thread::sleep(BETWEEN_LOOKS);
    }
}
