//! Links every example of this crate as a PV kernel; the linker script comes
//! from `guest-abi`, whose build script has the same list.

fn main() {
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none,--no-eh-frame-hdr",
        "-Wl,-z,max-page-size=4096,-z,norelro",
        "-Txen-pv.ld",
    ] {
        println!("cargo:rustc-link-arg-examples={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
