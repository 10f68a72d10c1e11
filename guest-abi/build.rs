//! Link arguments for PV kernels (feature `kernel`).
//!
//! The linker script goes where the linker looks, also for crates that depend
//! on this one: their own build script passes the same arguments as below, by
//! `cargo:rustc-link-arg-bins`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// Static, at fixed addresses, without the C start-up files and library.
const LINK_ARGS: [&str; 6] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,--no-eh-frame-hdr",
    "-Wl,-z,max-page-size=4096,-z,norelro",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/kernel/xen-pv.ld");
    if env::var_os("CARGO_FEATURE_KERNEL").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::copy("src/kernel/xen-pv.ld", out.join("xen-pv.ld"))?;
    println!("cargo:rustc-link-search={}", out.display());
    // The published package is without its example.
    if !Path::new("examples").is_dir() {
        return Ok(());
    }
    for arg in LINK_ARGS {
        println!("cargo:rustc-link-arg-examples={arg}");
    }
    println!("cargo:rustc-link-arg-examples=-Txen-pv.ld");
    Ok(())
}
