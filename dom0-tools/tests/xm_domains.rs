//! The life of domains as `xm` leads it, with the real xenstored and
//! xenconsoled, and a stand-in for the hypervisor that can be made to fail.

mod common;

use std::{collections::BTreeMap, fs, time::Duration};

use common::{Installation, monitors, tree, wait_until};
use dom0_tools::xenstore::{
    client::Nodes,
    perms::{Access, Perm},
};
use guest_abi::{addr::DomId, errno::Errno};

const POWEROFF: u32 = 0;
const REBOOT: u32 = 1;
const CRASH: u32 = 3;

/// Nothing tells of any domain but Domain-0.
#[track_caller]
fn nothing_left(installation: &Installation) {
    wait_until("the monitors to end", || {
        monitors(&installation.run_dir()).is_empty()
    });
    let mut store = installation.store();
    let homes = store.list("/local/domain").unwrap_or_default();
    assert!(homes.iter().all(|d| d == "0"), "{homes:?}");
    assert_eq!(store.list("/vm").unwrap_or_default(), [""; 0]);
    let records = fs::read_dir(installation.run_dir().join("domains"));
    let names: Vec<_> = records
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(installation.hypervisor.domains(), [0; 0]);
}

#[test]
fn create_list_destroy() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    let out = installation.xm(&["create", &config]).ok();
    assert_eq!(
        out,
        format!("Using config file \"{config}\".\nStarted domain web1 (id=1)\n")
    );

    let list = installation.xm(&["list"]).ok();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert_eq!(
        lines[0],
        "Name                                        ID   Mem VCPUs      State   Time(s)"
    );
    assert!(
        lines[1].starts_with("Domain-0                                     0 "),
        "{list}"
    );
    assert!(
        lines.iter().all(|l| l.split_whitespace().count() == 6),
        "{list}"
    );
    assert_eq!(
        lines[2],
        "web1                                         1     8     1     -b----      2.3"
    );
    assert_eq!(installation.xm(&["domid", "web1"]).ok(), "1\n");
    assert_eq!(installation.xm(&["domname", "1"]).ok(), "web1\n");
    assert_eq!(installation.xm(&["domstate", "web1"]).ok(), "idle\n");
    assert_eq!(installation.xm(&["list", "1"]).ok().lines().count(), 2);

    assert_eq!(installation.xm(&["destroy", "web1"]).ok(), "");
    nothing_left(&installation);
}

#[test]
fn nodes_are_those_of_xens_tools() {
    let installation = Installation::new();
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let config = installation.config(
        "web1",
        &format!("uuid='{uuid}'\nvcpus=1\nmaxvcpus=2\nmaxmem=16"),
    );
    installation.xm(&["create", &config]).ok();
    let mut store = installation.store();
    let home: BTreeMap<String, String> = tree(&mut store, "/local/domain/1").into_iter().collect();
    let value = |key: &str| {
        home.get(&format!("/local/domain/1/{key}"))
            .map(String::as_str)
    };
    for (key, expected) in [
        ("name", "web1"),
        ("domid", "1"),
        ("vm", &format!("/vm/{uuid}")),
        ("memory/target", "8192"),
        ("memory/static-max", "16384"),
        ("cpu/0/availability", "online"),
        ("cpu/1/availability", "offline"),
        ("console/type", "xenconsoled"),
        ("console/port", "2"),
        ("store/port", "1"),
        ("control/shutdown", ""),
        ("control/platform-feature-xs_reset_watches", "1"),
    ] {
        assert_eq!(value(key), Some(expected), "{key}");
    }
    for key in ["console/ring-ref", "store/ring-ref"] {
        let frame: u64 = value(key).expect(key).parse().expect(key);
        assert!(frame >= 0x1000, "{key} = {frame}");
    }
    let vm: BTreeMap<String, String> = tree(&mut store, &format!("/vm/{uuid}"))
        .into_iter()
        .collect();
    let value = |key: &str| vm.get(&format!("/vm/{uuid}/{key}")).map(String::as_str);
    assert_eq!(value("name"), Some("web1"));
    assert_eq!(value("uuid"), Some(uuid));
    assert_eq!(value("image/ostype"), Some("linux"));
    assert_eq!(value("on_reboot"), Some("restart"));
    assert!(
        value("start_time")
            .expect("start_time")
            .parse::<f64>()
            .is_ok()
    );

    // What Dom0 trusts is Dom0's; what the guest answers in is the guest's.
    let dom = DomId(1);
    let readable = [
        Perm::new(Access::None, DomId(0)),
        Perm::new(Access::Read, dom),
    ];
    for path in [
        "",
        "/name",
        "/domid",
        "/vm",
        "/memory/target",
        "/console/ring-ref",
        "/store/port",
        "/device",
    ] {
        let perms = store.perms(&format!("/local/domain/1{path}")).expect(path);
        assert_eq!(perms, readable, "{path}");
    }
    assert_eq!(
        store.perms(&format!("/vm/{uuid}/name")).expect("vm"),
        readable
    );
    for path in ["control/shutdown", "data", "drivers", "attr"] {
        let perms = store.perms(&format!("/local/domain/1/{path}")).expect(path);
        assert_eq!(perms, [Perm::new(Access::None, dom)], "{path}");
    }
    installation.xm(&["destroy", "web1"]).ok();
    nothing_left(&installation);
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    let installation = Installation::new();
    let config = installation.config("web1", "cpus='0'");
    for request in [
        "HostInfo",
        "CreateDomain",
        "SetVcpuAffinity",
        "EvtchnAllocUnbound",
        "PopulatePhysmap",
        "GetDomainInfo",
        "MapMemory",
        "PinTable",
        "SetVcpuContext",
        "EvtchnBindVirq",
        "UnpauseDomain",
    ] {
        // The services must be up before anything fails.
        installation.xm(&["list"]).ok();
        installation.hypervisor.fail(request, Errno::ENOMEM);
        let said = installation.xm(&["create", &config]);
        installation.hypervisor.heal();
        assert_eq!(said.code, Some(1), "{request}: {said:?}");
        assert!(said.err.starts_with("Error: "), "{request}: {}", said.err);
        assert!(
            installation.hypervisor.requests().contains(&request),
            "{request} never came"
        );
        nothing_left(&installation);
    }
    installation.xm(&["create", &config]).ok();
    installation.xm(&["destroy", "web1"]).ok();
}

#[test]
fn names_are_unique() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    let said = installation.xm(&["create", "-q", &config]);
    assert_eq!(
        (said.code, said.err.as_str()),
        (
            Some(1),
            "Error: VM name 'web1' already exists as domain 1\n"
        )
    );
    let said = installation.xm(&["create", "-q", &config, "name=Domain-0"]);
    assert_eq!(
        said.err,
        "Error: VM name 'Domain-0' already exists as domain 0\n"
    );
    installation
        .xm(&["create", "-q", &config, "name=web2"])
        .ok();
    let said = installation.xm(&["rename", "web2", "web1"]);
    assert_eq!(
        said.err,
        "Error: VM name 'web1' already exists as domain 1\n"
    );
    installation.xm(&["rename", "web2", "web3"]).ok();
    assert_eq!(
        installation.xm(&["domid", "web3"]).ok(),
        installation.xm(&["domid", "2"]).ok()
    );
    assert_eq!(installation.hypervisor.domains(), [1, 2]);
}

#[test]
fn two_at_once_get_one_name_once() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    // They start the services at once, too.
    let mut children: Vec<_> = (0..4)
        .map(|_| {
            installation
                .command(&["create", "-q", &config])
                .spawn()
                .expect("spawn")
        })
        .collect();
    let codes: Vec<_> = children
        .iter_mut()
        .map(|c| c.wait().expect("wait").code())
        .collect();
    assert_eq!(
        codes.iter().filter(|c| **c == Some(0)).count(),
        1,
        "{codes:?}"
    );
    assert_eq!(installation.hypervisor.domains().len(), 1);
}

#[test]
fn no_such_domain_is_exit_code_3() {
    let installation = Installation::new();
    for args in [
        &["destroy", "nobody"][..],
        &["pause", "nobody"],
        &["unpause", "nobody"],
        &["shutdown", "nobody"],
        &["reboot", "nobody"],
        &["rename", "nobody", "x"],
        &["list", "nobody"],
        &["vcpu-list", "nobody"],
        &["uptime", "nobody"],
        &["domid", "nobody"],
        &["domname", "99"],
        &["domstate", "nobody"],
        &["console", "nobody"],
    ] {
        let said = installation.xm(args);
        assert_eq!(said.code, Some(3), "{args:?}: {said:?}");
        assert_eq!(
            said.err,
            format!("Error: Domain '{}' does not exist.\n", args[1]),
            "{args:?}"
        );
        assert_eq!(said.out, "", "{args:?}");
    }
    let said = installation.xm(&["console", "-q", "nobody"]);
    assert_eq!((said.code, said.err.as_str()), (Some(3), ""));
    let said = installation.xm(&["destroy", "Domain-0"]);
    assert_eq!(
        said.err,
        "Error: Cannot destroy privileged domain Domain-0.\n"
    );
}

#[test]
fn too_much_memory_is_said_in_numbers() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    let said = installation.xm(&["create", "-q", &config, "memory=65"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .contains("the domain wants 65 MiB, and of the host's 64 MiB 64 are free"),
        "{}",
        said.err
    );
    nothing_left(&installation);
}

#[test]
fn pause_and_unpause() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", "-p", &config]).ok();
    assert_eq!(installation.xm(&["domstate", "web1"]).ok(), "paused\n");
    for (command, paused) in [
        ("unpause", false),
        ("unpause", false),
        ("pause", true),
        ("pause", true),
        ("unpause", false),
    ] {
        installation.xm(&[command, "web1"]).ok();
        assert_eq!(installation.hypervisor.info(1).paused, paused, "{command}");
    }
}

#[test]
fn dry_run_starts_nothing() {
    let installation = Installation::new();
    let config = installation.config("web1", "extra='ro'");
    let out = installation
        .xm(&["create", "-n", &config, "memory=16"])
        .ok();
    let shown: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(shown["name"], "web1");
    assert_eq!(shown["memory_mib"], 16);
    assert_eq!(shown["cmdline"], "ro");
    assert_eq!(installation.service("xenstored"), None);
    assert_eq!(installation.hypervisor.requests(), [""; 0]);
}

#[test]
fn the_monitor_destroys_and_restarts() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    let uuid = installation.hypervisor.info(1).uuid;
    installation.hypervisor.shut_down(1, REBOOT);
    wait_until("the domain to come back", || {
        installation.hypervisor.domains() == [2] && !installation.hypervisor.info(2).paused
    });
    assert_eq!(installation.hypervisor.info(2).uuid, uuid);
    assert_eq!(installation.xm(&["domid", "web1"]).ok(), "2\n");
    // Its second restart within ten seconds is one too many.
    installation.hypervisor.shut_down(2, REBOOT);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
    let log = installation.log("xm-web1.log");
    assert!(log.contains("refusing to restart to avoid loops"), "{log}");

    installation.xm(&["create", "-q", &config]).ok();
    installation.hypervisor.shut_down(3, POWEROFF);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
}

#[test]
fn actions_are_those_of_the_configuration() {
    let installation = Installation::new();
    let actions = "on_poweroff='preserve'\non_reboot='destroy'\non_crash='rename-restart'";
    let config = installation.config("web1", actions);
    installation.xm(&["create", "-q", &config]).ok();
    installation.hypervisor.shut_down(1, POWEROFF);
    wait_until("the monitor to end", || {
        monitors(&installation.run_dir()).is_empty()
    });
    let list = installation.xm(&["list", "web1"]).ok();
    assert!(list.contains(" ---s-- "), "{list}");
    assert_eq!(
        installation.xm(&["shutdown", "-w", "web1"]).ok(),
        "Domain web1 terminated\nAll domains terminated\n"
    );
    installation.xm(&["destroy", "web1"]).ok();

    installation.xm(&["create", "-q", &config]).ok();
    installation.hypervisor.shut_down(2, CRASH);
    wait_until("the new domain", || {
        installation.hypervisor.domains() == [2, 3] && !installation.hypervisor.info(3).paused
    });
    assert_eq!(installation.xm(&["domname", "2"]).ok(), "web1-1\n");
    assert_eq!(installation.xm(&["domname", "3"]).ok(), "web1\n");
    let list = installation.xm(&["list", "web1-1"]).ok();
    assert!(list.contains(" ----c- "), "{list}");
    assert!(installation.log("xm-web1.log").contains("crash report"));
    installation.xm(&["list"]).ok();
    assert_eq!(
        monitors(&installation.run_dir()).len(),
        1,
        "a kept domain has none"
    );
    installation.xm(&["destroy", "web1-1"]).ok();

    installation.hypervisor.shut_down(3, REBOOT);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
}

#[test]
fn a_core_that_cannot_be_dumped_is_told_in_the_log_and_the_rest_is_done() {
    let installation = Installation::new();
    let config = installation.config("web1", "on_crash='coredump-destroy'");
    installation.xm(&["create", "-q", &config]).ok();
    installation.hypervisor.shut_down(1, CRASH);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
    assert!(installation.log("xm-web1.log").contains("no core dumped: "));
}

#[test]
fn shutdown_asks_the_guest_and_waits() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    for (args, word) in [
        (&["shutdown", "web1"][..], "poweroff"),
        (&["shutdown", "-H", "web1"], "halt"),
        (&["shutdown", "-R", "web1"], "reboot"),
        (&["reboot", "web1"], "reboot"),
        (&["shutdown", "-a"], "poweroff"),
    ] {
        assert_eq!(installation.xm(args).ok(), "", "{args:?}");
        let asked = installation
            .store()
            .find("/local/domain/1/control/shutdown");
        assert_eq!(asked.expect("read").as_deref(), Some(word), "{args:?}");
    }
    let waiting = installation
        .command(&["reboot", "-w", "web1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("spawn");
    std::thread::sleep(Duration::from_millis(500));
    installation.hypervisor.shut_down(1, REBOOT);
    let output = waiting.wait_with_output().expect("wait");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Domain web1 rebooted\nAll domains rebooted\n"
    );
    // However soon: who asks for a reboot gets it.
    installation.xm(&["reboot", "web1"]).ok();
    installation.hypervisor.shut_down(2, REBOOT);
    wait_until("the second reboot", || {
        installation.hypervisor.domains() == [3] && !installation.hypervisor.info(3).paused
    });
    let waiting = installation
        .command(&["shutdown", "-a", "-w"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("spawn");
    std::thread::sleep(Duration::from_millis(500));
    installation.hypervisor.shut_down(3, POWEROFF);
    let output = waiting.wait_with_output().expect("wait");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Domain web1 terminated\nAll domains terminated\n"
    );
    nothing_left(&installation);
}

#[test]
fn looking_at_domains() {
    let installation = Installation::new();
    let config = installation.config("web1", "vcpus=2\ncpus=['0', '1-2']");
    installation.xm(&["create", "-q", &config]).ok();
    assert_eq!(installation.hypervisor.affinity(1, 1), [1, 2]);
    assert_eq!(
        installation.xm(&["vcpu-list", "web1"]).ok(),
        "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity\n\
         web1                                 1     0     1   -b-       1.5 0\n\
         web1                                 1     1     -   --p       1.5 1-2\n"
    );
    let uptime = installation.xm(&["uptime", "web1"]).ok();
    let start = "Name                                ID Uptime\nweb1                                 1  0:00:";
    assert!(uptime.starts_with(start), "{uptime}");
    let short = installation.xm(&["uptime", "-s", "web1"]).ok();
    assert!(short.ends_with(" up  0:00, web1 (1)\n"), "{short}");
    assert_eq!(installation.xm(&["dmesg"]).ok(), "(XEN) hello\n");
    let info = installation.xm(&["info"]).ok();
    assert!(info.contains("\nfree_memory            : 56\n"), "{info}");
    for args in [
        &["list", "--json"][..],
        &["list", "-l", "web1"],
        &["vcpu-list", "--json"],
        &["uptime", "--json"],
        &["info", "--json"],
        &["info", "-n", "--json"],
        &["dmesg", "--json"],
        &["domid", "--json", "web1"],
        &["domname", "--json", "1"],
        &["domstate", "--json", "1"],
    ] {
        let out = installation.xm(args).ok();
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert!(!value.is_null(), "{args:?}");
    }
    let long: serde_json::Value =
        serde_json::from_str(&installation.xm(&["list", "-l", "web1"]).ok()).expect("JSON");
    assert_eq!(long[0]["domid"], 1);
    assert_eq!(long[0]["config"]["c_info"]["name"], "web1");
    assert_eq!(long[0]["config"]["b_info"]["target_memkb"], 8192);
}

#[test]
fn a_killed_service_is_started_again() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    for name in ["xenstored", "xenconsoled"] {
        let old = installation.service(name);
        installation.kill(name);
        let said = installation.xm(&["list", "web1"]);
        assert!(
            said.err.contains(&format!("{name} (process")),
            "{}",
            said.err
        );
        assert!(said.ok().contains("web1 "), "{name}");
        assert!(
            installation
                .service(name)
                .is_some_and(|new| Some(new) != old),
            "{name}"
        );
        let said = installation.xm(&["list", "web1"]);
        assert_eq!(said.err, "", "said once");
    }
    // And the domain still ends in order.
    installation.hypervisor.shut_down(1, POWEROFF);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
}

#[test]
fn a_killed_monitor_is_replaced() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    let [old] = monitors(&installation.run_dir())[..] else {
        panic!("one monitor")
    };
    let pid = nix::unistd::Pid::from_raw(i32::try_from(old).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    wait_until("its end", || monitors(&installation.run_dir()).is_empty());
    installation.xm(&["list"]).ok();
    assert!(matches!(monitors(&installation.run_dir())[..], [new] if new != old));
    installation.xm(&["list"]).ok();
    assert_eq!(monitors(&installation.run_dir()).len(), 1);
    installation.hypervisor.shut_down(1, POWEROFF);
    wait_until("the domain to go", || {
        installation.hypervisor.domains().is_empty()
    });
    nothing_left(&installation);
}

#[test]
fn uuids_are_unique() {
    let installation = Installation::new();
    let config = installation.config("web1", "uuid='01234567-89ab-cdef-0123-456789abcdef'");
    installation.xm(&["create", "-q", &config]).ok();
    let said = installation.xm(&["create", "-q", &config, "name=web2"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("domain 1 has the UUID 01234567"),
        "{}",
        said.err
    );
    assert_eq!(installation.hypervisor.domains(), [1]);
}

#[test]
fn stop_services_spares_domains_unless_forced() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["create", "-q", &config]).ok();
    let said = installation.xm(&["stop-services"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with("Error: these domains run: web1."),
        "{}",
        said.err
    );
    let out = installation.xm(&["stop-services", "--force"]).ok();
    assert_eq!(out, "Stopped xenconsoled, xenstored.\n");
    assert_eq!(installation.hypervisor.domains(), [0; 0]);
    assert_eq!(
        (
            installation.service("xenstored"),
            installation.service("xenconsoled")
        ),
        (None, None)
    );
    wait_until("the monitors to end", || {
        monitors(&installation.run_dir()).is_empty()
    });
}

#[test]
fn an_interrupted_create_leaves_nothing() {
    let installation = Installation::new();
    let config = installation.config("web1", "");
    installation.xm(&["list"]).ok();
    for delay_ms in [0, 5, 10, 15, 20, 30, 40] {
        let mut child = installation
            .command(&["create", "-q", &config])
            .spawn()
            .expect("spawn");
        std::thread::sleep(Duration::from_millis(delay_ms));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("kill");
        if child.wait().expect("wait").success() {
            installation.xm(&["destroy", "web1"]).ok();
        }
        let listed = installation.xm(&["list"]).ok();
        // Either it was complete before the signal came, or it is gone.
        if listed.contains("web1") {
            installation.xm(&["destroy", "web1"]).ok();
        }
        nothing_left(&installation);
    }
}
