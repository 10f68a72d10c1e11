//! A whole Debian on a disk, with an ssh server, made once by `xm image create` and kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{cache_dir, lock};
use crate::harness::Programs;

/// Root's password in it.
pub const PASSWORD: &str = "domus-test";

/// Rises when what `xm image create` makes changes, so that an old one is not
/// used.
const NAME: &str = "debian-3";

/// The image: a raw one, to be cloned and never to be written to.
///
/// # Panics
/// When it can't be made.
#[must_use]
pub fn debian() -> PathBuf {
    let dir = cache_dir();
    fs::create_dir_all(&dir).expect("the cache can be made");
    let dir = fs::canonicalize(dir).expect("a directory");
    let _one_at_a_time = lock(&dir.join("debian.lock")).expect("a lock");
    let image = dir.join(format!("{NAME}.img"));
    if !image.exists() {
        make(&dir, &image);
    }
    image
}

fn make(dir: &Path, image: &Path) {
    let password = dir.join("debian.password");
    fs::write(&password, format!("{PASSWORD}\n")).expect("a file");
    // From a run that was killed between the two files.
    let _ = fs::remove_file(dir.join(format!("{NAME}.cfg")));
    let made = Command::new(Programs::get().program("xm"))
        .args(["image", "create", NAME, "--size", "2G", "--ssh", "--output"])
        .arg(image)
        .arg("--password-file")
        .arg(&password)
        .stdin(Stdio::null())
        .output()
        .expect("xm can be run");
    assert!(
        made.status.success(),
        "xm image create: {}\n{}",
        made.status,
        String::from_utf8_lossy(&made.stderr)
    );
}
