//! Links the program as a PV kernel: static, at fixed addresses, without C's
//! start-up files. The linker script `xen-pv.ld` comes from guest-abi.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none,--no-eh-frame-hdr",
        "-Wl,-z,max-page-size=4096,-z,norelro",
        "-Txen-pv.ld",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
