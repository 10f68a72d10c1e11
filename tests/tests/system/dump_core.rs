//! Core dumps of domains.
//!
//! **Mechanism.** `xm dump-core` writes an ELF file whose program headers lead
//! from the kernel's virtual addresses to the domain's pages.
//!
//! **Scenario.** A kernel is dumped before its first instruction, and one after
//! it has crashed; its own code is looked for in the file, at the address where
//! its image says that it is.
//!
//! **Limits.** That `crash` reads it was not tried here: it wants a Linux kernel
//! with debugging symbols.

use std::{fs, path::Path};

use domus_tests::harness::{Config, Installation, PATIENCE, Programs, eventually, kvm_is_usable};

struct Elf(Vec<u8>);

/// A program header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u64,
    offset: u64,
    virt: u64,
    bytes: u64,
}

impl Elf {
    fn read(path: &Path) -> Self {
        Elf(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn number(&self, at: u64, bytes: usize) -> u64 {
        let at = usize::try_from(at).expect("small");
        let bytes = self.0[at..at + bytes].iter().rev();
        bytes.fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    fn segments(&self) -> Vec<Segment> {
        let (table, count) = (self.number(32, 8), self.number(56, 2));
        let header = |index| {
            let at = table + index * 56;
            Segment {
                kind: self.number(at, 4),
                offset: self.number(at + 8, 8),
                virt: self.number(at + 16, 8),
                bytes: self.number(at + 32, 8),
            }
        };
        (0..count).map(header).collect()
    }

    /// What is at a virtual address.
    fn memory(&self, virt: u64, count: usize) -> Option<&[u8]> {
        let segment = self.segments().into_iter().find(|it| {
            it.kind == 1 && it.virt <= virt && virt + count as u64 <= it.virt + it.bytes
        })?;
        let at = usize::try_from(segment.offset + virt - segment.virt).ok()?;
        self.0.get(at..at + count)
    }
}

/// That a dump of a kernel holds its code.
fn assert_holds(core: &Path, kernel: &str) {
    let core = Elf::read(core);
    assert_eq!(&core.0[..4], b"\x7fELF");
    assert_eq!(core.number(16, 2), 4, "ET_CORE");
    let image = Elf::read(&Programs::get().kernel(kernel));
    let entry = image.number(24, 8);
    let code = image.memory(entry, 64).expect("its entry point");
    assert_eq!(core.memory(entry, 64), Some(code));
}

#[test]
fn a_dump_holds_the_kernel_at_its_virtual_address() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let file = Config::test_kernel("hello").write(&domus);
    let file = file.to_str().expect("a path of ours");
    domus.xm(&["create", "-p", file]).ok();
    let core = domus.path("hello.core");
    let path = core.to_str().expect("a path of ours");
    domus.xm(&["dump-core", "hello", path]).ok();
    assert_holds(&core, "hello");
    domus
        .xm(&["dump-core", "hello", path])
        .fails(1, "there is such a file");
    domus
        .xm(&["dump-core", "nobody"])
        .fails(3, "Domain 'nobody' does not exist");
    domus
        .xm(&["dump-core", "hello", "/dev/full/x"])
        .fails(1, "nothing is left of the dump");
    // It is still paused, and no more than before.
    domus.xm(&["unpause", "hello"]).ok();
    eventually("hello says goodbye", PATIENCE, || {
        let said = domus.xm(&["dmesg"]).output();
        said.contains("goodbye").then_some(())
    });
}

#[test]
fn a_crash_dumps_core_if_the_configuration_says_so() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let config = Config::test_kernel("early-crash").line("on_crash = \"coredump-destroy\"");
    let file = config.write(&domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
    let dir = domus.path("log/dump");
    let core = eventually("a dump and the domain's end", PATIENCE, || {
        let gone = domus.xm(&["list"]).output().lines().count() == 2;
        let core = fs::read_dir(&dir).ok()?.flatten().next()?.path();
        gone.then_some(core)
    });
    assert_holds(&core, "early-crash");
}
