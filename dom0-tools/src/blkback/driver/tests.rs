use std::path::Path;

use super::*;
use crate::backend::testing::{FakeStore, attention};

const BACK: &str = "/local/domain/0/backend/vbd/3/51712";

/// A store with one disk, and what a driver makes of it.
struct World {
    store: FakeStore,
    attention: Attention,
    vbd: Vbd,
}

impl World {
    fn new(nodes: &[(&str, &str)]) -> Self {
        let mut world = Self {
            store: FakeStore::default(),
            attention: attention(),
            vbd: Vbd::default(),
        };
        for (node, value) in nodes {
            world.set(node, value);
        }
        world
    }
    fn set(&mut self, node: &str, value: &str) {
        self.store.set(&format!("{BACK}/{node}"), value);
    }
    fn get(&self, node: &str) -> &str {
        let path = format!("{BACK}/{node}");
        self.store.get(&path).unwrap_or("(none)")
    }
    fn open(&mut self) -> Result<Device, String> {
        let mut bus = self.store.bus(&self.attention, "vbd", "51712");
        self.vbd.open(&mut bus).map_err(|error| error.to_string())
    }
    fn changed(&mut self, device: &mut Device) {
        let mut bus = self.store.bus(&self.attention, "vbd", "51712");
        self.vbd.changed(device, &mut bus).unwrap();
    }
}

fn image(dir: &Path, name: &str, bytes: u64) -> String {
    let path = dir.join(name);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    format!("raw:{}", path.display())
}

#[test]
fn a_disk_says_what_it_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let params = image(dir.path(), "disk", 1 << 20);
    let mut world = World::new(&[("params", &params), ("mode", "w"), ("discard-enable", "1")]);
    world.open().unwrap();
    for (node, value) in [
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("feature-discard", "1"),
        ("feature-persistent", "1"),
        ("hotplug-status", "connected"),
    ] {
        assert_eq!(world.get(node), value, "{node}");
    }
    world.set("mode", "r");
    world.open().unwrap();
    assert_eq!(
        (world.get("info"), world.get("feature-discard")),
        ("4", "0")
    );
}

#[test]
fn a_cd_is_changed_in_its_drive() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = [("params", ""), ("mode", "r"), ("device-type", "cdrom")];
    let mut world = World::new(&nodes);
    let mut device = world.open().unwrap();
    assert_eq!((world.get("sectors"), world.get("info")), ("0", "5"));
    world.set("params", &image(dir.path(), "cd", 8192));
    world.changed(&mut device);
    assert_eq!(world.get("sectors"), "16");
    world.set("params", "raw:/nowhere/cd");
    world.changed(&mut device);
    assert_eq!(world.get("sectors"), "0");
    assert!(world.get("hotplug-error").contains("/nowhere/cd"));
    world.set("params", "");
    world.changed(&mut device);
    assert!(device.disk.source.is_none());
}

#[test]
fn a_busy_image_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let params = image(dir.path(), "disk", 1 << 20);
    let nodes = [("params", params.as_str()), ("mode", "w")];
    let mut first = World::new(&nodes);
    let _held = first.open().unwrap();
    let mut second = World::new(&nodes);
    let error = second.open().err().unwrap();
    assert!(error.contains("another program"), "{error}");
    let other = "/local/domain/0/backend/vbd/7/51728/params";
    second.store.set(other, &params);
    second.store.set("/local/domain/7/name", "web");
    let error = second.open().err().unwrap();
    assert!(error.contains("domain 7 (web)"), "{error}");
}

#[test]
fn a_raw_image_has_two_writers_if_the_second_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let params = image(dir.path(), "disk", 1 << 20);
    let nodes = |mode| [("params", params.as_str()), ("mode", mode)];
    let first = World::new(&nodes("w")).open().unwrap();
    assert!(World::new(&nodes("w")).open().is_err());
    let _second = World::new(&nodes("w!")).open().unwrap();
    // The first one's successor finds nobody in its way.
    drop(first);
    World::new(&nodes("w")).open().unwrap();
}

#[test]
fn limits_change_while_the_disk_is_open_and_nonsense_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let params = image(dir.path(), "disk", 1 << 20);
    let mut world = World::new(&[("params", &params), ("mode", "w")]);
    let mut device = world.open().unwrap();
    world.set("throttle", "bps=0,iops=7");
    world.changed(&mut device);
    assert_eq!(device.spec.limits.operations, Some(7));
    world.set("throttle", "fast");
    world.changed(&mut device);
    assert_eq!(device.spec.limits.operations, Some(7));
}
