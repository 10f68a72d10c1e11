//! The hypervisor's process.
fn main() {}
