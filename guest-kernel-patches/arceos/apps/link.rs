//! Links each of the programs as a PV kernel: static, at fixed addresses, without C's
//! start-up files. The linker script `arceos-xen-pv.ld` comes from
//! axplat-x86-xen-pv.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none,--no-eh-frame-hdr",
        "-Wl,-z,max-page-size=4096,-z,norelro",
        "-Tarceos-xen-pv.ld",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=../link.rs");
}
