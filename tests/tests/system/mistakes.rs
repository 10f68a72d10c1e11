//! The message names the mistake.
//!
//! **Mechanism.** What the builder can see, `xm create` refuses. What a running
//! kernel does wrong, the hypervisor tells of in one line, which comes into
//! `xm dmesg` and, through `xenconsoled`, onto the domain's console and its log.
//!
//! **Scenario.** A kernel of the labs makes one mistake at a time; a working
//! image is spoilt in one place at a time. The table here is the one of
//! `docs/labs/mistakes.md`.
//!
//! **Limits.** That a stock kernel is told of nothing is a check of `boot.rs`.

use std::{fs, path::Path};

use domus_tests::harness::{
    Config, Installation, PATIENCE, Programs, Said, domains_can_run, eventually,
};

/// A mistake of `docs/labs/src/bin/mistakes.rs`, what is told, and of the
/// remedy so much that no other has it.
const RUNNING: [(&str, &str, &str); 24] = [
    (
        "no-trap-table",
        "crashed: #PF reading 0x0, which is not mapped, and no handler is set for vector 14",
        "set_trap_table",
    ),
    (
        "null-call",
        "crashed: #PF executing 0x0, which is not mapped, and no handler",
        "the entry point returned",
    ),
    (
        "hlt-untrapped",
        "crashed: #GP at `hlt`, which is privileged, and no handler is set for vector 13",
        "SCHEDOP_block",
    ),
    (
        "no-event-callback",
        "crashed: an event came, and no event callback is registered",
        "CALLBACKTYPE_event",
    ),
    (
        "event-masked",
        "it sleeps (SCHEDOP_block) without a timer, while port",
        "EVTCHNOP_unmask",
    ),
    (
        "no-stack",
        "crashed: #UD, and no frame for its handler can be pushed: the stack can't be written at 0xff",
        "rsp points to the upper end",
    ),
    (
        "handler-faults",
        "exceptions, each in the handler of the one before, filled the stack; the last: #PF executing 0x",
        "a handler faults itself",
    ),
    ("fault-again", "#UD came 4096 times on end", "move rip on"),
    (
        "error-code-left",
        "crashed: #PF executing 0x0, which is not mapped",
        "was the error code left on the stack?",
    ),
    (
        "iret-nowhere",
        "crashed: iret: the frame can't be read",
        "rsp points to the frame",
    ),
    (
        "iret-no-user",
        "crashed: iret: there is no page-table root for user mode",
        "MMUEXT_NEW_USER_BASEPTR",
    ),
    ("hlt", "`hlt` is privileged (#GP)", "SCHEDOP_block"),
    ("mov-cr3", "`mov cr3,", "MMUEXT_NEW_BASEPTR"),
    (
        "plain-store",
        "a store to the page table at 0x",
        "mapped read-only",
    ),
    (
        "pfn-for-mfn",
        "update_va_mapping was refused (E",
        "translate the PFN",
    ),
    (
        "table-writable",
        "update_va_mapping was refused (EBUSY): entry",
        "mapped read-only (without bit 1, RW)",
    ),
    (
        "table-not-readonly",
        "mmuext_op was refused (EINVAL): Mfn(",
        "make every mapping of it read-only",
    ),
    (
        "not-pinned",
        "is not pinned",
        "MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE",
    ),
    (
        "entry-unaligned",
        "is not a multiple of 8",
        "an entry has 8 bytes",
    ),
    (
        "info-unaligned",
        "vcpu_op was refused (EINVAL): a vcpu_info at offset 0x4",
        "an alignment of 64 bytes",
    ),
    (
        "unknown-hypercall",
        "there is no hypercall 0x63",
        "the number goes into rax",
    ),
    (
        "bad-pointer",
        "console_io got a bad pointer (EFAULT)",
        "virtual addresses that are mapped",
    ),
    (
        "bad-grant",
        "grant_table_op was refused (in the operation's status): grant 17",
        "GTF_permit_access last",
    ),
    (
        "port-unbound",
        "event_channel_op was refused (EINVAL): ",
        "bind the port first",
    ),
];

fn create(domus: &Installation, name: &str, more: &str) -> Said {
    let labs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/labs");
    let kernel = Programs::get().kernel_of(&labs, "mistakes");
    let config = Config::own_kernel(name, &kernel).memory(16);
    let config = config.line("on_crash = \"destroy\"").line(more);
    let file = config.write(domus);
    domus.xm(&[Path::new("create"), &file])
}

/// What the console daemon kept of a domain's console.
fn console_log(domus: &Installation, name: &str) -> String {
    let path = domus.path(&format!("log/console/{name}.log"));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[test]
fn each_mistake_of_a_running_kernel_is_named_in_both_places() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    for (number, (name, _, _)) in (1..).zip(RUNNING) {
        create(&domus, name, &format!("extra = \"{name}\"")).ok();
        let told = format!("(XEN) d{number}v0: ");
        eventually(&format!("a line about {name}"), PATIENCE, || {
            console_log(&domus, name).contains(&told).then_some(())
        });
        // These two never end by themselves; one of them keeps a CPU busy.
        if ["event-masked", "fault-again"].contains(&name) {
            domus.xm(&["destroy", name]).ok();
        }
    }
    let dmesg = domus.xm(&["dmesg"]).output();
    for (number, (name, what, remedy)) in (1..).zip(RUNNING) {
        let told = format!("(XEN) d{number}v0: ");
        let mut lines = dmesg.lines().filter(|line| line.starts_with(&told));
        let line = lines.find(|line| line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{name}: no {what:?} in {dmesg}"));
        assert!(line.contains(remedy), "{name}: no {remedy:?} in {line}");
        assert!(
            line.contains("; at rip ffffffff") || name == "null-call" || name == "error-code-left",
            "{line}"
        );
        let log = console_log(&domus, name);
        assert!(log.contains(line), "{name}: {line} is not in {log}");
        assert!(log.contains(&format!("mistakes: {name}")), "{log}");
    }
    eventually("all others end by themselves", PATIENCE, || {
        (domus.xm(&["list"]).output().lines().count() == 2).then_some(())
    });
    domus.assert_no_domain();
}

/// A domain that makes thousands of mistakes is told of some, and the daemon and
/// the ring hold no more.
#[test]
fn a_flood_of_mistakes_is_bounded() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let file = Config::test_kernel("paging-attacks").write(&domus);
    domus.xm(&[Path::new("create"), &file]).ok();
    eventually("the kernel ends", PATIENCE, || {
        (domus.xm(&["list"]).output().lines().count() == 2).then_some(())
    });
    let dmesg = domus.xm(&["dmesg"]).output();
    let told = dmesg.lines().filter(|line| line.starts_with("(XEN) d1v"));
    let count = told.count();
    assert!((1..=64).contains(&count), "{count} lines: {dmesg}");
    // What a guest writes itself does not pass for the hypervisor's.
    assert!(
        dmesg
            .lines()
            .all(|line| line.starts_with("(XEN) ") || line.starts_with("(d1) "))
    );
}

/// An image with the value of one of its Xen notes changed.
fn with_note(image: &[u8], kind: u32, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut image = image.to_vec();
    let head = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("4 bytes"));
    let at = (0..image.len() - 16)
        .step_by(4)
        .find(|at| head(*at) == 4 && head(at + 8) == kind && &image[at + 12..at + 16] == b"Xen\0")
        .expect("the note");
    let len = usize::try_from(head(at + 4)).expect("small");
    change(&mut image[at + 16..at + 16 + len]);
    image
}

#[test]
fn each_mistake_in_an_image_is_named_by_xm_create() {
    if !domains_can_run() {
        return;
    }
    /// `XEN_ELFNOTE_*`.
    const ENTRY: u32 = 1;
    const HYPERCALL_PAGE: u32 = 2;
    const VIRT_BASE: u32 = 3;
    const XEN_VERSION: u32 = 5;
    let domus = Installation::new();
    let good = fs::read(Programs::get().kernel("hello")).expect("a kernel");
    let mut no_notes = good.clone();
    let mut magic = good.clone();
    magic[..4].copy_from_slice(b"\x7fELG");
    for at in 0..no_notes.len() - 3 {
        if &no_notes[at..at + 4] == b"Xen\0" {
            no_notes[at] = b'x';
        }
    }
    let number = |image: &[u8], kind, value: u64| {
        with_note(image, kind, |note| {
            note.copy_from_slice(&value.to_le_bytes()[..note.len()])
        })
    };
    let cases = [
        (
            "wrong-magic",
            magic,
            "not a kernel: neither a bzImage nor an ELF file",
        ),
        (
            "no-note",
            no_notes,
            "no Xen PV notes: this kernel was built without",
        ),
        (
            "entry-outside",
            number(&good, ENTRY, 0xffff_ffff_c000_0000),
            "entry point 0xffffffffc0000000 lies outside the kernel",
        ),
        (
            "hypercall-page",
            number(&good, HYPERCALL_PAGE, 0xffff_ffff_8000_0008),
            "HYPERCALL_PAGE 0xffffffff80000008",
        ),
        (
            "virt-base",
            number(&good, VIRT_BASE, 0xffff_8000_0000_0000),
            "the hypervisor has 0xffff800000000000",
        ),
        (
            "xen-version",
            with_note(&good, XEN_VERSION, |note| note[4] = b'9'),
            "XEN_VERSION is \"xen-9.0\": only kernels for \"xen-3.0\"",
        ),
    ];
    for (name, image, told) in cases {
        let kernel = domus.path(&format!("{name}.image"));
        fs::write(&kernel, image).expect("the test's directory can be written");
        let file = Config::own_kernel(name, &kernel).write(&domus);
        let said = domus.xm(&[Path::new("create"), &file]);
        println!("{name}: {}", said.err.trim_end());
        said.fails(1, told);
    }
    let small = Config::test_kernel("hello").memory(1).write(&domus);
    domus
        .xm(&[Path::new("create"), &small])
        .fails(1, "a domain needs at least 2 MiB");
    let ramdisk = domus.path("ramdisk");
    fs::write(&ramdisk, vec![0; 4 << 20]).expect("room for a ramdisk");
    let mut laden = Config::test_kernel("hello").memory(2);
    laden.ramdisk = Some(ramdisk);
    let laden = laden.write(&domus);
    domus
        .xm(&[Path::new("create"), &laden])
        .fails(1, "give it more (memory = ");
    domus.assert_no_domain();
}
