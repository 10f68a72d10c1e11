//! Images that can't be had, by the real programs.
//!
//! **Mechanism.** `xm` looks at an image before anything exists; what only the back
//! end can find (a damaged table, another program's lock) it says in xenstore, and
//! `xm create` prints it.
//!
//! **Scenario.** Images that are missing, empty, cut off, of another format, in use
//! by another domain, by another installation, and on a file system that is mounted
//! read-only. Each is told of with its path; nothing is left; and a domain that uses
//! one properly goes on meanwhile.
//!
//! **Limits.** An image that is cut off, or for which there is no room, while a guest
//! uses it: `disks.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dom0_tools::image::create_qcow2;
use domus_tests::harness::{Config, Installation, domains_can_run, in_private_mounts, mount};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

fn raw(path: &Path, bytes: u64) {
    let file = fs::File::create(path).expect("room");
    file.set_len(bytes).expect("room for a hole");
}

fn config(name: &str, disk: &str) -> Config {
    let mut config = Config::test_kernel("spin-masked").line(&format!("disk = [ '{disk}' ]"));
    config.name = name.into();
    config
}

#[track_caller]
fn refused(domus: &Installation, disk: &str, words: &[&str]) {
    let file = config("second", disk).write(domus);
    let said = domus.xm(&["create", text(&file)]);
    for word in words {
        said.fails(1, word);
    }
    assert!(!domus.xm(&["list"]).output().contains("second"), "{said}");
}

#[test]
fn an_image_that_cannot_be_had_is_told_of() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let at = |name: &str| domus.path(name);
    raw(&at("used"), 1 << 20);
    let first = config("first", &format!("{},raw,xvda,rw", at("used").display()));
    let file = first.write(&domus);
    domus.xm(&["create", text(&file)]).ok();
    let log = at("log/blkback-first.log");
    assert!(log.exists(), "no {}", log.display());

    let missing = format!("{},raw,xvda,rw", at("missing").display());
    refused(&domus, &missing, &["there is no", text(&at("missing"))]);

    raw(&at("empty"), 0);
    let empty = format!("{},raw,xvda,rw", at("empty").display());
    refused(&domus, &empty, &["is empty", text(&at("empty"))]);
    raw(&at("short"), 511);
    let short = format!("{},raw,xvda,rw", at("short").display());
    refused(&domus, &short, &["511 bytes", text(&at("short"))]);
    cut_off(&domus, &at("cut.qcow2"));

    for access in ["r", "rw"] {
        let busy = format!("{},raw,xvda,{access}", at("used").display());
        refused(&domus, &busy, &["is disk xvda of domain first already"]);
    }
    another_installation(&domus, &at("used"));
    read_only_on_the_host(&domus);

    assert!(domus.xm(&["list"]).output().contains("first"));
    domus.xm(&["destroy", "first"]).ok();
    domus.assert_no_domain();
}

/// A qcow2 image at each of some lengths: it is refused with its path, until all
/// tables are there.
fn cut_off(domus: &Installation, path: &PathBuf) {
    create_qcow2(path, 1 << 30, None).expect("room");
    let whole = fs::read(path).expect("made just now");
    let disk = format!("{},qcow2,xvda,rw", path.display());
    for length in [3, 60, 104] {
        fs::write(path, &whole[..length]).expect("room");
        refused(domus, &disk, &[text(path)]);
    }
    // A base that is not there any more.
    let base = path.with_extension("base");
    raw(&base, 1 << 20);
    let backing = dom0_tools::image::Backing {
        path: base.clone(),
        format: dom0_tools::config::disk::Format::Raw,
    };
    fs::remove_file(path).expect("our own");
    dom0_tools::image::create::create_child(&backing, path).expect("room");
    fs::remove_file(&base).expect("our own");
    refused(domus, &disk, &[text(&base)]);
}

/// Whose domains `xm` here knows nothing of.
fn another_installation(domus: &Installation, used: &Path) {
    let other = Installation::new();
    for access in ["r", "rw"] {
        let disk = format!("{},raw,xvda,{access}", used.display());
        let file = config("second", &disk).write(&other);
        let said = other.xm(&["create", text(&file)]);
        said.fails(1, "is busy: another program has it open");
        said.fails(1, text(used));
    }
    // `w!` is for xm, which can look; a lock of another's is kept to.
    other.assert_no_domain();
    assert!(domus.xm(&["list"]).output().contains("first"));
}

fn read_only_on_the_host(domus: &Installation) {
    let dir = domus.path("ro");
    fs::create_dir(&dir).expect("a directory");
    in_private_mounts(|| {
        mount(&["-t", "tmpfs", "tmpfs", text(&dir)]);
        raw(&dir.join("image"), 1 << 20);
        mount(&["-o", "remount,ro", text(&dir)]);
        let disk = |access: &str| format!("{}/image,raw,xvda,{access}", dir.display());
        refused(
            domus,
            &disk("rw"),
            &["Read-only file system", "Make the disk read-only"],
        );
        let file = config("second", &disk("r")).write(domus);
        domus.xm(&["create", text(&file)]).ok();
        domus.xm(&["destroy", "second"]).ok();
    });
}
