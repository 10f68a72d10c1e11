//! Programs for a guest's user space: one file each in `tests/guests/user`,
//! without any crate, built static, so that they run in any guest and here.

use std::{fs, path::PathBuf, process::Command};

use super::Programs;

/// Builds such a program; where it is.
///
/// # Panics
/// When it can't be built.
#[must_use]
pub fn user_program(name: &str) -> PathBuf {
    let source = format!("{}/guests/user/{name}.rs", env!("CARGO_MANIFEST_DIR"));
    let to = Programs::get().program(name);
    // Tests build the same one side by side: each in a directory of its own,
    // for rustc's intermediate files, too.
    let room = tempfile::tempdir_in(to.parent().expect("a directory")).expect("room to build");
    let fresh = room.path().join(name);
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition=2024", "-O", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", &source, "-o"])
        .arg(&fresh)
        .output()
        .expect("rustc runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    fs::rename(&fresh, &to).expect("on the same file system");
    to
}
