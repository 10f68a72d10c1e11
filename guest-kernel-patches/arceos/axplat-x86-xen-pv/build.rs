//! Puts the linker script where the linker looks.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=arceos-xen-pv.ld");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::copy("arceos-xen-pv.ld", out.join("arceos-xen-pv.ld"))?;
    println!("cargo:rustc-link-search={}", out.display());
    Ok(())
}
