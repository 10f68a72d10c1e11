//! Disks and network interfaces as `xm` leads them, with the real xenstored, a
//! stand-in for the hypervisor and programs that play the back ends. The test
//! itself plays the guest's half, in the store.

mod common;

use std::{fs, process::Command};

use common::{Installation, back_ends, kill, monitors, parent_of, tree, wait_until};
use dom0_tools::xenstore::{
    client::{Client, Nodes},
    perms::{Access, Perm},
};
use guest_abi::addr::DomId;

const POWEROFF: u32 = 0;
const REBOOT: u32 = 1;
const CRASH: u32 = 3;

const XVDA: &str = "51712";
const XVDB: &str = "51728";

fn image(installation: &Installation, name: &str) -> String {
    installation.file(name, &"x".repeat(4096));
    installation.path(name)
}

/// A domain web1 with a disk and an interface; the disk's image.
fn create(installation: &Installation, more: &str) -> String {
    let image = image(installation, "a.img");
    let config = installation.config(
        "web1",
        &format!("disk=['{image},raw,xvda,w']\nvif=['mac=00:16:3e:01:02:03,bridge=br0']\n{more}"),
    );
    installation.xm(&["create", &config]).ok();
    image
}

fn back(kind: &str, dom: u16, id: &str) -> String {
    format!("/local/domain/0/backend/{kind}/{dom}/{id}")
}

fn front(kind: &str, dom: u16, id: &str) -> String {
    format!("/local/domain/{dom}/device/{kind}/{id}")
}

fn value(store: &mut Client, dir: &str, key: &str) -> Option<String> {
    store.find(&format!("{dir}/{key}")).expect("text")
}

#[track_caller]
fn has(store: &mut Client, dir: &str, expected: &[(&str, &str)]) {
    for (key, expected) in expected {
        let found = value(store, dir, key);
        assert_eq!(found.as_deref(), Some(*expected), "{dir}/{key}");
    }
}

/// The guest's driver takes the device.
fn connect_front(store: &mut Client, kind: &str, dom: u16, id: &str) {
    let (back, front) = (back(kind, dom, id), front(kind, dom, id));
    for (key, value) in [("ring-ref", "11"), ("event-channel", "9"), ("state", "4")] {
        store
            .write(&format!("{front}/{key}"), value)
            .expect("write");
    }
    wait_until("the back half to connect", || {
        value(store, &back, "state").as_deref() == Some("4")
    });
}

/// Nothing tells of any domain but Domain-0, and nothing runs for one.
#[track_caller]
fn nothing_left(installation: &Installation) {
    let run_dir = installation.run_dir();
    wait_until("the monitors to end", || monitors(&run_dir).is_empty());
    assert_eq!(back_ends(&run_dir), [0; 0]);
    let mut store = installation.store();
    for path in ["/local/domain/0/backend", "/local/domain/0/error", "/vm"] {
        let nodes = tree(&mut store, path);
        let of_domains: Vec<_> = nodes
            .iter()
            .filter(|(path, _)| {
                path.split('/')
                    .any(|p| p.parse::<u32>().is_ok_and(|n| n > 0))
            })
            .collect();
        assert!(of_domains.is_empty(), "{of_domains:?}");
    }
    let homes = store.list("/local/domain").unwrap_or_default();
    assert!(homes.iter().all(|d| d == "0"), "{homes:?}");
    let records = fs::read_dir(run_dir.join("domains")).into_iter().flatten();
    assert_eq!(records.count(), 0);
    assert_eq!(installation.hypervisor.domains(), [0; 0]);
}

fn pid_of(installation: &Installation, program: &str) -> Option<u32> {
    let line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    back_ends(&installation.run_dir())
        .into_iter()
        .find(|pid| String::from_utf8_lossy(&line(pid)).contains(program))
}

/// How many children a process has, dead ones too.
fn children(parent: u32) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).count()
}

#[test]
fn create_publishes_devices_as_xens_tools_do() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "");
    let mut store = installation.store();
    let (disk, vif) = (back("vbd", 1, XVDA), back("vif", 1, "0"));
    has(
        &mut store,
        &disk,
        &[
            ("frontend", &front("vbd", 1, XVDA)),
            ("frontend-id", "1"),
            ("online", "1"),
            ("removable", "0"),
            ("bootable", "1"),
            ("dev", "xvda"),
            ("type", "qdisk"),
            ("params", &format!("raw:{image}")),
            ("mode", "w"),
            ("device-type", "disk"),
            ("discard-enable", "1"),
            ("hotplug-status", "connected"),
            ("state", "2"),
        ],
    );
    has(
        &mut store,
        &vif,
        &[
            ("frontend", &front("vif", 1, "0")),
            ("mac", "00:16:3e:01:02:03"),
            ("bridge", "br0"),
            ("handle", "0"),
            ("script", ""),
            ("type", "vif"),
            ("mode", "tap"),
            ("state", "2"),
        ],
    );
    let (disk_front, vif_front) = (front("vbd", 1, XVDA), front("vif", 1, "0"));
    has(
        &mut store,
        &disk_front,
        &[
            ("backend", &disk),
            ("backend-id", "0"),
            ("virtual-device", XVDA),
            ("device-type", "disk"),
            ("state", "1"),
        ],
    );
    has(
        &mut store,
        &vif_front,
        &[
            ("backend", &vif),
            ("mac", "00:16:3e:01:02:03"),
            ("mtu", "1500"),
        ],
    );
    let (dom0, guest) = (DomId(0), DomId(1));
    for (path, owner, reader) in [
        (&disk, dom0, guest),
        (&vif, dom0, guest),
        (&disk_front, guest, dom0),
        (&vif_front, guest, dom0),
    ] {
        let expected = [
            Perm::new(Access::None, owner),
            Perm::new(Access::Read, reader),
        ];
        for path in [path.clone(), format!("{path}/state")] {
            assert_eq!(store.perms(&path).expect("perms"), expected, "{path}");
        }
    }

    connect_front(&mut store, "vbd", 1, XVDA);
    assert_eq!(
        installation.xm(&["block-list", "web1"]).ok(),
        format!(
            "Vdev  BE handle state evt-ch ring-ref BE-path\n\
             51712  0    0     4      9      11    {disk}  \n"
        )
    );
    assert_eq!(
        installation.xm(&["network-list", "web1"]).ok(),
        format!(
            "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path\n\
             0   0  00:16:3e:01:02:03    0     1      -1    -1   /-1      {vif:<30}  \n"
        )
    );
    let json = installation.xm(&["list", "-l", "web1"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let config = &json[0]["config"];
    assert_eq!(config["disks"][0]["pdev_path"], *image);
    assert_eq!(config["disks"][0]["vdev"], "xvda");
    assert_eq!(config["disks"][0]["state"], 4);
    assert_eq!(config["nics"][0]["mac"], "00:16:3e:01:02:03");
    assert_eq!(config["nics"][0]["backend_state"], 2);

    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn a_disk_that_cannot_be_had_creates_nothing() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "");
    let requests = installation.hypervisor.requests().len();
    let missing = installation.path("missing.img");
    for (disk, message) in [
        (format!("{missing},raw,xvda,w"), "Make it"),
        (format!("{image},qcow2,xvda,w"), "is no qcow2 image"),
        (
            format!("{image},raw,xvda,w"),
            "is disk xvda of domain web1 already, which may write to it",
        ),
        (
            format!("{image},raw,xvda,r"),
            "is disk xvda of domain web1 already",
        ),
    ] {
        let config = installation.config("web2", &format!("disk=['{disk}']"));
        let said = installation.xm(&["create", &config]);
        assert_eq!(said.code, Some(1), "{disk}");
        assert!(said.err.contains(message), "{disk}: {}", said.err);
    }
    let new = installation.hypervisor.requests().split_off(requests);
    assert!(!new.contains(&"CreateDomain"), "{new:?}");
    let config = installation.config("web2", &format!("disk=['{image},raw,xvda,w!']"));
    installation.xm(&["create", &config]).ok();
    for name in ["web1", "web2"] {
        installation.xm(&["destroy", name]).ok();
    }
    nothing_left(&installation);
}

#[test]
fn a_back_end_that_refuses_takes_the_domain_down() {
    let installation = Installation::with_back_ends();
    fs::write(installation.run_dir().join("refuse-vbd"), "no room on Mars").expect("write");
    let image = image(&installation, "a.img");
    let config = installation.config("web1", &format!("disk=['{image},raw,xvda,w']"));
    let said = installation.xm(&["create", &config]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err, "Error: disk xvda: no room on Mars\n");
    nothing_left(&installation);

    // One that ends each time it is started does not make anybody wait long.
    fs::write(installation.run_dir().join("crash-vbd"), "").expect("write");
    let said = installation.xm(&["create", &config]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("blkback ends each time"), "{}", said.err);
    nothing_left(&installation);
    let log = installation.log("xm-web1.log");
    assert!(log.contains("ended with code 7"), "{log}");
}

#[test]
fn without_the_program_nothing_is_created() {
    let installation = Installation::with_back_ends();
    fs::remove_file(installation.dir.path().join("bin/netback")).expect("remove");
    let config = installation.config("web1", "vif=['']");
    let said = installation
        .command(&["create", &config])
        .env("PATH", "/nonexistent")
        .output()
        .expect("xm");
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(err.contains("can't find the program 'netback'"), "{err}");
    assert_eq!(installation.hypervisor.domains(), [0; 0]);
}

#[test]
fn killed_back_ends_and_monitors_are_replaced() {
    let installation = Installation::with_back_ends();
    create(&installation, "");
    let run_dir = installation.run_dir();
    let first = pid_of(&installation, "blkback").expect("blkback");
    let other = pid_of(&installation, "netback").expect("netback");
    kill(first);
    wait_until("another blkback", || {
        pid_of(&installation, "blkback").is_some_and(|pid| pid != first)
    });
    let log = installation.log("xm-web1.log");
    assert!(
        log.contains(&format!("blkback (process {first}) was killed by signal 9")),
        "{log}"
    );
    assert_eq!(pid_of(&installation, "netback"), Some(other));

    // The back ends outlive a monitor, and the next one takes them over.
    let mut second = None;
    wait_until("blkback's pid", || {
        second = pid_of(&installation, "blkback");
        second.is_some()
    });
    let monitor = monitors(&run_dir)[0];
    kill(monitor);
    wait_until("the monitor to end", || monitors(&run_dir).is_empty());
    installation.xm(&["list"]).ok();
    assert_eq!(monitors(&run_dir).len(), 1);
    wait_until("the monitor to look around", || {
        installation.log("xm-web1.log").contains("runs already")
    });
    assert_eq!(pid_of(&installation, "blkback"), second);
    assert_eq!(back_ends(&run_dir).len(), 2);
    kill(second.expect("blkback"));
    wait_until("another blkback", || {
        pid_of(&installation, "blkback").is_some_and(|pid| Some(pid) != second)
    });
    installation.hypervisor.shut_down(1, POWEROFF);
    nothing_left(&installation);
}

#[test]
fn disks_come_and_go() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "");
    let second = self::image(&installation, "b.img");
    let attach = [
        "block-attach",
        "web1",
        &format!("file:{second}"),
        "xvdb",
        "r",
    ];
    assert_eq!(installation.xm(&attach).ok(), "");
    let mut store = installation.store();
    let disk = back("vbd", 1, XVDB);
    has(
        &mut store,
        &disk,
        &[
            ("params", &format!("raw:{second}")),
            ("mode", "r"),
            ("state", "2"),
        ],
    );
    let rows = installation.xm(&["block-list", "web1"]).ok();
    assert_eq!(rows.lines().count(), 3, "{rows}");

    for (args, message) in [
        (&attach[..], "has disk xvdb already"),
        (
            &["block-attach", "web1", &image, "raw", "xvdc", "w"][..],
            "is disk xvda of domain web1 already",
        ),
        (&["block-detach", "web1", "xvdz"], "has no disk xvdz"),
        (
            &["block-detach", "web1", "nonsense"],
            "is no virtual device",
        ),
        (
            &["block-attach", "0", &second, "raw", "xvdc", "r"],
            "Domain-0",
        ),
    ] {
        let said = installation.xm(args);
        assert_eq!(said.code, Some(1), "{args:?}");
        assert!(said.err.contains(message), "{args:?}: {}", said.err);
    }
    assert_eq!(installation.xm(&["block-list", "none"]).code, Some(3));

    // No driver has taken it: it goes at once.
    assert_eq!(installation.xm(&["vbd-destroy", "web1", "xvdb"]).ok(), "");
    assert!(!store.exists(&disk).expect("store"));
    assert!(!store.exists(&front("vbd", 1, XVDB)).expect("store"));

    // A guest that uses it keeps it, until it lets go.
    installation.xm(&attach).ok();
    connect_front(&mut store, "vbd", 1, XVDB);
    let detach = ["block-detach", "web1", XVDB];
    let output = installation
        .command(&detach)
        .env("DOMUS_DEVICE_TIMEOUT", "0.3")
        .output()
        .expect("xm");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        err.contains("has not let go of disk 51728 within 0.3 s: something in it uses the device"),
        "{err}"
    );
    assert!(err.contains("'-f' takes it away"), "{err}");
    has(&mut store, &disk, &[("online", "0"), ("state", "5")]);
    let state = format!("{}/state", front("vbd", 1, XVDB));
    store.write(&state, "6").expect("write");
    wait_until("the device to go", || !store.exists(&disk).expect("store"));
    wait_until("the log to say so", || {
        installation
            .log("xm-web1.log")
            .contains("vbd 51728 has been let go of")
    });

    // By force.
    installation.xm(&attach).ok();
    connect_front(&mut store, "vbd", 1, XVDB);
    installation
        .xm(&["block-detach", "-f", "web1", "xvdb"])
        .ok();
    assert!(!store.exists(&disk).expect("store"));

    // A back end that refuses leaves the domain as it was.
    fs::write(installation.run_dir().join("refuse-vbd"), "not this one").expect("write");
    let said = installation.xm(&attach);
    assert_eq!(said.err, "Error: disk xvdb: not this one\n");
    assert!(!store.exists(&disk).expect("store"));
    fs::remove_file(installation.run_dir().join("refuse-vbd")).expect("remove");
    installation.xm(&attach).ok();
    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn interfaces_come_and_go() {
    let installation = Installation::with_back_ends();
    create(&installation, "");
    let attach = ["network-attach", "web1", "mode=user", "rate=10MB/s@50ms"];
    assert_eq!(installation.xm(&attach).ok(), "");
    let mut store = installation.store();
    let vif = back("vif", 1, "1");
    has(
        &mut store,
        &vif,
        &[("mode", "user"), ("rate", "500000,50000"), ("handle", "1")],
    );
    let mac = value(&mut store, &vif, "mac").expect("mac");
    assert!(mac.starts_with("00:16:3e:"), "{mac}");
    let json = installation.xm(&["network-list", "--json", "web1"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[1]["mac"], *mac);
    assert_eq!(json[1]["hotplug_status"], "connected");

    let said = installation.xm(&["network-attach", "web1", "mac=00:16:3e:01:02:03"]);
    assert!(
        said.err
            .contains("has an interface 00:16:3e:01:02:03 already"),
        "{}",
        said.err
    );
    // The first one that is free is taken.
    installation
        .xm(&["network-detach", "web1", "00:16:3e:01:02:03"])
        .ok();
    assert!(!store.exists(&back("vif", 1, "0")).expect("store"));
    installation.xm(&["network-attach", "web1"]).ok();
    assert!(store.exists(&back("vif", 1, "0")).expect("store"));
    let said = installation.xm(&["network-detach", "web1", "7"]);
    assert!(
        said.err.contains("has no network interface 7"),
        "{}",
        said.err
    );
    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn a_rebooted_domain_has_the_devices_that_it_had() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "");
    let second = self::image(&installation, "b.img");
    let attach = ["block-attach", "web1", &format!("{second},raw,xvdb,w")];
    installation.xm(&attach).ok();
    installation.xm(&["network-detach", "web1", "0"]).ok();
    installation
        .xm(&["network-attach", "web1", "mode=user"])
        .ok();
    let mut store = installation.store();
    connect_front(&mut store, "vbd", 1, XVDA);
    let mac = value(&mut store, &back("vif", 1, "0"), "mac");
    installation.hypervisor.shut_down(1, REBOOT);
    wait_until("the new domain", || {
        installation.hypervisor.domains() == [2] && !installation.hypervisor.info(2).paused
    });
    has(
        &mut store,
        &back("vbd", 2, XVDA),
        &[
            ("params", &format!("raw:{image}")),
            ("hotplug-status", "connected"),
        ],
    );
    has(
        &mut store,
        &back("vbd", 2, XVDB),
        &[
            ("params", &format!("raw:{second}")),
            ("hotplug-status", "connected"),
        ],
    );
    assert_eq!(value(&mut store, &back("vif", 2, "0"), "mac"), mac);
    assert_eq!(tree(&mut store, "/local/domain/0/backend/vbd/1"), []);
    assert_eq!(back_ends(&installation.run_dir()).len(), 2);
    // Those of the old domain have ended, and the monitor knows.
    let monitor = monitors(&installation.run_dir())[0];
    assert_eq!(children(monitor), 2);

    // One whose disk has gone meanwhile can't be made again.
    fs::remove_file(&image).expect("remove");
    // Asked for, since the last restart was just now.
    installation.xm(&["reboot", "web1"]).ok();
    installation.hypervisor.shut_down(2, REBOOT);
    nothing_left(&installation);
    let log = installation.log("xm-web1.log");
    assert!(
        log.contains(&format!("there is no {image}. Make it")),
        "{log}"
    );
}

#[test]
fn a_kept_domain_gives_its_disks_back() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "on_crash='preserve'");
    installation.hypervisor.shut_down(1, CRASH);
    wait_until("the monitor to end", || {
        monitors(&installation.run_dir()).is_empty()
    });
    assert_eq!(back_ends(&installation.run_dir()), [0; 0]);
    let said = installation.xm(&["block-attach", "web1", &image, "raw", "xvdb", "r"]);
    assert!(said.err.contains("has shut down"), "{}", said.err);
    let config = installation.config("web2", &format!("disk=['{image},raw,xvda,w']"));
    installation.xm(&["create", &config]).ok();
    installation.xm(&["destroy", "web1"]).ok();
    installation.xm(&["destroy", "web2"]).ok();
    nothing_left(&installation);
}

#[test]
fn another_cd_is_put_in() {
    let installation = Installation::with_back_ends();
    let config = installation.config("web1", "disk=[',raw,hdc,cdrom']");
    installation.xm(&["create", &config]).ok();
    let mut store = installation.store();
    let drive = back("vbd", 1, "5632");
    has(
        &mut store,
        &drive,
        &[
            ("params", ""),
            ("device-type", "cdrom"),
            ("removable", "1"),
            ("mode", "r"),
        ],
    );
    connect_front(&mut store, "vbd", 1, "5632");
    let cd = image(&installation, "cd.iso");
    installation.xm(&["cd-insert", "web1", "hdc", &cd]).ok();
    // The drive stays while its medium changes.
    has(
        &mut store,
        &drive,
        &[("params", &format!("raw:{cd}")), ("state", "4")],
    );
    installation.xm(&["cd-eject", "web1", "hdc"]).ok();
    has(&mut store, &drive, &[("params", ""), ("state", "4")]);
    let other = image(&installation, "other.iso");
    let target = format!("file:{other}");
    let configure = ["block-configure", "web1", &target, "hdc:cdrom", "r"];
    installation.xm(&configure).ok();
    has(&mut store, &drive, &[("params", &format!("raw:{other}"))]);

    // One that can't be had leaves the one that is there.
    let missing = installation.path("missing.iso");
    let said = installation.xm(&["block-configure", "web1", &missing, "raw", "hdc:cdrom", "r"]);
    assert!(said.err.contains("missing.iso. Make it"), "{}", said.err);
    has(&mut store, &drive, &[("params", &format!("raw:{other}"))]);
    // One that the back end can't read leaves the drive empty, and says so.
    fs::write(installation.run_dir().join("refuse-medium"), "scratched").expect("write");
    let said = installation.xm(&["cd-insert", "web1", "hdc", &cd]);
    assert_eq!(said.err, "Error: disk hdc: scratched\n");
    has(&mut store, &drive, &[("params", "")]);
    let json = installation.xm(&["list", "-l", "web1"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json[0]["config"]["disks"][0]["pdev_path"].is_null());
    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn a_disk_gets_another_mode() {
    let installation = Installation::with_back_ends();
    let image = create(&installation, "");
    let mut store = installation.store();
    let disk = back("vbd", 1, XVDA);
    let target = format!("phy:{image}");
    let configure = ["block-configure", "web1", &target, "xvda", "r"];
    installation.xm(&configure).ok();
    has(&mut store, &disk, &[("mode", "r"), ("state", "2")]);
    // What can't be had costs nothing that is there.
    let missing = format!("phy:{}", installation.path("missing"));
    let said = installation.xm(&["block-configure", "web1", &missing, "xvda", "r"]);
    assert!(said.err.contains("Make it"), "{}", said.err);
    has(&mut store, &disk, &[("mode", "r"), ("state", "2")]);
    let said = installation.xm(&["block-configure", "web1", &target, "xvdb", "r"]);
    assert!(said.err.contains("has no disk 51728"), "{}", said.err);
    let said = installation.xm(&["cd-eject", "web1", "xvda"]);
    assert!(said.err.contains("is no CD drive"), "{}", said.err);
    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn two_creates_at_once_do_not_share_a_disk() {
    let installation = Installation::with_back_ends();
    installation.xm(&["list"]).ok();
    let image = image(&installation, "a.img");
    let configs: Vec<String> = (0..4)
        .map(|n| installation.config(&format!("web{n}"), &format!("disk=['{image},raw,xvda,w']")))
        .collect();
    let children: Vec<_> = configs
        .iter()
        .map(|config| {
            let mut command: Command = installation.command(&["create", "-q", config]);
            command.stderr(std::process::Stdio::null());
            command.spawn().expect("xm")
        })
        .collect();
    let made = children
        .into_iter()
        .map(|mut child| child.wait().expect("wait"))
        .filter(std::process::ExitStatus::success)
        .count();
    assert_eq!(made, 1);
    assert_eq!(installation.hypervisor.domains().len(), 1);
    let name = installation.xm(&["list"]).ok();
    let name = name
        .lines()
        .nth(2)
        .and_then(|l| l.split(' ').next())
        .expect("name");
    installation.xm(&["destroy", name]).ok();
    nothing_left(&installation);
}
