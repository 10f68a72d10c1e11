//! The configuration fragment for Linux is one that makes sense.
//!
//! **Mechanism.** `guest-kernel-patches/linux/xen-pv.config` is laid over Linux'
//! `tinyconfig`. An option that does not exist is dropped there without a word.
//!
//! **Scenario.** Each line is an option with a reason above it (of its own, or of
//! the group that it stands in). Each exists in Debian's kernel, by the
//! configuration in its package, and what a PV guest needs is switched on there
//! too.
//!
//! **Limits.** No kernel is built: that takes too long for CI. `build` and `boot`
//! beside the fragment do it by hand, and README.md there says what came of it.

use std::{collections::BTreeMap, fs, path::Path};

/// An option's value; `None` for one that is not set.
type Options = BTreeMap<String, Option<String>>;

fn option(line: &str) -> Option<(String, Option<String>)> {
    if let Some(name) = line.strip_prefix("# CONFIG_") {
        let name = name.strip_suffix(" is not set")?;
        return Some((name.to_owned(), None));
    }
    let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    Some((name.to_owned(), Some(value.to_owned())))
}

fn fragment() -> String {
    let path = "../guest-kernel-patches/linux/xen-pv.config";
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

#[test]
fn each_option_has_its_reason_and_stands_once() {
    let mut seen = Options::new();
    let mut reason = false;
    for line in fragment().lines() {
        match option(line) {
            Some((name, value)) => {
                assert!(reason, "{line}: no reason above it");
                assert!(seen.insert(name, value).is_none(), "{line}: twice");
            }
            None if line.is_empty() => reason = false,
            None => {
                assert!(line.starts_with("# ") || line.starts_with("## "), "{line}");
                reason = true;
            }
        }
    }
    assert!(seen.len() > 50, "{}", seen.len());
}

#[test]
fn each_option_is_one_of_linux() {
    let guest = domus_tests::guest::prepare().expect("Debian's kernel");
    let boot = guest.kernel.parent().expect("a directory");
    let config = fs::read_dir(boot)
        .expect("boot")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("config-")
        });
    let Some(config) = config else {
        // Another kernel may come without one.
        let other = ["DOMUS_KERNEL", "DOMUS_KERNEL_PACKAGE"];
        let other = other.iter().any(|name| std::env::var_os(name).is_some());
        assert!(other, "no config in {}", boot.display());
        return;
    };
    let debian: Options = fs::read_to_string(config)
        .expect("config")
        .lines()
        .filter_map(option)
        .collect();
    // It depends on IP_PNP, which Debian leaves out.
    let hidden = ["IP_PNP_DHCP"];
    let mut wrong = Vec::new();
    for (name, value) in fragment().lines().filter_map(option) {
        match (debian.get(&name), value) {
            (None, _) if !hidden.contains(&&*name) => wrong.push(format!("{name}: unknown")),
            // What a guest needs, Debian's, which is one, has too.
            (Some(None), Some(_)) if name.contains("XEN") || name.contains("PARAVIRT") => {
                wrong.push(format!("{name}: Debian's PV kernel does without"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
