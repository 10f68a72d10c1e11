//! Whether a test can run here.
//!
//! Law: a test that could not run has not passed. Without `/dev/kvm`, and with
//! `DOMUS_ENGINE=soft`, domains run on the software engine, and so do tests. A
//! test that needs KVM itself says `SKIP` there, on the terminal and in the file
//! `$DOMUS_SKIPPED` (which `tests/run` shows at its end). Where
//! `DOMUS_REQUIRE_KVM=1` is set, or there is a `/dev/kvm` that can't be used,
//! that is a failure.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
};

const KVM: &str = "/dev/kvm";

/// Whether the tests' domains are on the software engine.
#[must_use]
pub fn engine_is_soft() -> bool {
    match env::var("DOMUS_ENGINE").as_deref() {
        Ok("soft") => true,
        Ok("kvm") => false,
        _ => !std::path::Path::new(KVM).exists() && !kvm_is_required(),
    }
}

fn kvm_is_required() -> bool {
    env::var_os("DOMUS_REQUIRE_KVM").is_some_and(|v| v == "1")
}

/// Whether domains can run, on whatever engine.
///
/// # Panics
/// When they should be able to.
#[must_use]
pub fn domains_can_run() -> bool {
    engine_is_soft() || kvm_is_usable()
}

/// Whether domains can run on KVM. Says `SKIP` with the test's name when not.
///
/// # Panics
/// When they should be able to.
#[must_use]
pub fn kvm_is_usable() -> bool {
    match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => true,
        Err(error) if may_be_missing(&error) => {
            skip(&format!("{KVM} is missing"));
            false
        }
        Err(error) => panic!("{KVM}: {error} (and a test that can't run has not passed)"),
    }
}

/// Whether a program is installed. Says `SKIP` with the test's name when not.
///
/// # Panics
/// When it should be: where tests are required to run (`DOMUS_REQUIRE_KVM=1`).
#[must_use]
pub fn is_installed(program: &str, package: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        return true;
    }
    let why = format!("{program} is missing (apt install {package})");
    assert!(
        !kvm_is_required(),
        "{why}: a test that can't run has not passed"
    );
    skip(&why);
    false
}

fn may_be_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && !kvm_is_required()
}

/// A line that `cargo test` does not swallow, and one in the file.
fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP {}: {why}\n", thread.name().unwrap_or("a test"));
    // Not eprint!, which a test run captures.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(path) = env::var_os("DOMUS_SKIPPED") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
