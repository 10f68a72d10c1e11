use nix::sys::eventfd::EventFd;

use super::*;
use crate::backend::{Attach, testing::FakeStore};

const BACK: &str = "/local/domain/0/backend/vbd/3/51712";
const FRONT: &str = "/local/domain/3/device/vbd/51712";

/// A driver that writes down what it is asked.
#[derive(Default)]
struct Diary {
    lines: Vec<String>,
    open_fails: bool,
    connect_fails: bool,
    check_fails: bool,
    hold: bool,
}

impl Driver for Diary {
    const KIND: &'static str = "vbd";
    type Device = ();
    type Error = BusError;

    fn open(&mut self, bus: &mut Bus<'_>) -> Result<(), BusError> {
        self.lines.push("open".into());
        fail_if(self.open_fails)?;
        bus.write("feature-flush-cache", 1)
    }
    fn may_connect(&mut self, (): &mut (), _: &mut Bus<'_>) -> Result<bool, BusError> {
        Ok(!self.hold)
    }
    fn connect(&mut self, (): &mut (), _: &mut Bus<'_>, how: Attach) -> Result<(), BusError> {
        self.lines.push(format!("connect {how:?}"));
        fail_if(self.connect_fails)
    }
    fn disconnect(&mut self, (): &mut ()) {
        self.lines.push("disconnect".into());
    }
    fn check(&mut self, (): &mut (), _: &mut Bus<'_>) -> Result<(), BusError> {
        fail_if(self.check_fails)
    }
}

fn fail_if(fails: bool) -> Result<(), BusError> {
    match fails {
        true => Err(BusError::Missing {
            path: "/a/file".into(),
        }),
        false => Ok(()),
    }
}

struct World {
    store: FakeStore,
    table: Table<Diary>,
    attention: Attention,
}

impl World {
    fn new(mine: u32, theirs: u32) -> Self {
        let mut store = FakeStore::default();
        store.set(&format!("{BACK}/frontend"), FRONT);
        store.set(&format!("{BACK}/online"), "1");
        let mut world = Self {
            store,
            table: Table::new(Diary::default(), DomId(3)),
            attention: Attention(Arc::new(EventFd::new().unwrap())),
        };
        world.mine(mine);
        world.theirs(theirs);
        world
    }
    fn mine(&mut self, state: u32) {
        let state = state.to_string();
        self.store.set(&format!("{BACK}/state"), &state);
        self.table.note("devices", &format!("{BACK}/state"));
    }
    fn theirs(&mut self, state: u32) {
        let state = state.to_string();
        self.store.set(&format!("{FRONT}/state"), &state);
        self.table.note("front/51712", &format!("{FRONT}/state"));
    }
    /// What was done, and the state after it.
    fn settle(&mut self) -> (String, &str) {
        self.table
            .settle(&mut self.store, None, &self.attention)
            .unwrap();
        let lines = std::mem::take(&mut self.table.driver.lines).join(", ");
        (lines, self.store.get(&format!("{BACK}/state")).unwrap())
    }
}

#[test]
fn a_device_is_connected_and_closed() {
    let mut world = World::new(1, 1);
    assert_eq!(world.settle(), ("open".into(), "2"));
    world.theirs(3);
    assert_eq!(world.settle(), ("connect Fresh".into(), "4"));
    world.theirs(4);
    assert_eq!(world.settle(), (String::new(), "4"));
    world.theirs(5);
    assert_eq!(world.settle(), (String::new(), "5"));
    world.theirs(6);
    assert_eq!(world.settle(), ("disconnect".into(), "6"));
    world.theirs(1);
    assert_eq!(world.settle(), ("open".into(), "2"));
}

#[test]
fn a_new_process_reattaches() {
    let mut world = World::new(4, 4);
    assert_eq!(world.settle(), ("open, connect Again".into(), "4"));
}

#[test]
fn a_device_that_cannot_be_opened_says_why() {
    let mut world = World::new(1, 1);
    world.table.driver.open_fails = true;
    assert_eq!(world.settle(), ("open".into(), "5"));
    let path = "/local/domain/0/error/backend/vbd/3/51712/error";
    for node in [path.to_owned(), format!("{BACK}/hotplug-error")] {
        assert_eq!(world.store.get(&node), Some("/a/file is missing"));
    }
    // Not tried again before the front end has closed.
    world.theirs(3);
    assert_eq!(world.settle(), (String::new(), "5"));
    world.theirs(6);
    assert_eq!(world.settle(), (String::new(), "6"));
    world.table.driver.open_fails = false;
    world.theirs(1);
    assert_eq!(world.settle(), ("open".into(), "2"));
    assert_eq!(world.store.get(path), None);
}

#[test]
fn a_device_in_use_is_not_given_up_when_it_cannot_be_opened_again() {
    let mut world = World::new(4, 4);
    world.table.driver.open_fails = true;
    assert_eq!(world.settle(), ("open".into(), "4"));
    assert!(world.table.retry_in(Instant::now()).is_some());
    world.table.driver.open_fails = false;
    // Not at once: its own report makes its watch fire.
    world.mine(4);
    assert_eq!(world.settle(), (String::new(), "4"));
    std::thread::sleep(RETRY);
    assert_eq!(world.settle(), ("open, connect Again".into(), "4"));
    assert!(world.table.retry_in(Instant::now()).is_none());
}

#[test]
fn a_front_end_with_a_bad_ring_is_closed() {
    let mut world = World::new(2, 3);
    world.table.driver.connect_fails = true;
    assert_eq!(world.settle(), ("open, connect Fresh".into(), "5"));
    let mut world = World::new(4, 4);
    world.settle();
    world.table.driver.check_fails = true;
    world.table.note_calls();
    assert_eq!(world.settle(), ("disconnect".into(), "5"));
}

#[test]
fn a_driver_may_let_the_front_end_wait() {
    let mut world = World::new(1, 3);
    world.table.driver.hold = true;
    assert_eq!(world.settle(), ("open".into(), "2"));
    world.table.driver.hold = false;
    world.mine(2);
    assert_eq!(world.settle(), ("connect Fresh".into(), "4"));
}

#[test]
fn a_removed_device_is_let_go() {
    let mut world = World::new(4, 4);
    world.settle();
    world.store.remove(BACK).unwrap();
    world.table.note("devices", BACK);
    let attention = world.attention.clone();
    let World { store, table, .. } = &mut world;
    table.settle(store, None, &attention).unwrap();
    assert_eq!(
        (table.driver.lines.pop(), table.devices.len()),
        (Some("disconnect".into()), 0)
    );
}

#[test]
fn a_storm_of_states_ends_where_the_last_one_says() {
    let mut world = World::new(1, 1);
    for round in 0..500 {
        world.theirs([1, 3, 4, 5, 6, 2, 7, 99][round * 7 % 8]);
        world.settle();
    }
    world.theirs(6);
    assert_eq!(world.settle().1, "6");
    let World { table, .. } = &world;
    let entry = &table.devices["51712"];
    assert!(!entry.attached && entry.device.is_none());
}
