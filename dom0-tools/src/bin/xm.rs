//! xm.
fn main() {}
