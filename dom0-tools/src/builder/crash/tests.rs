use std::path::Path;

use guest_abi::addr::{MachineAddr, Port};

use super::*;
use crate::builder::{
    BuildSpec, Reading, build,
    testing::{Box0, Elf, Machine, Order, VIRT_BASE},
};

const CODE: u64 = VIRT_BASE + 0x10_0000;

fn image() -> KernelImage {
    let mut elf = Elf::pv();
    elf.symbols = vec![
        (CODE, "startup_xen".into()),
        (CODE + 0x200, "start_kernel".into()),
        (CODE + 0x400, "panic\x1b[31m".into()),
    ];
    KernelImage::from_bytes(Path::new("vmlinux"), &elf.build(), &mut Reading::default()).unwrap()
}

/// A built domain whose kernel has pushed some words.
fn crashed(image: &KernelImage, words: &[u64]) -> (Machine, VcpuGuestContext) {
    let hypervisor = Box0::new(Order::Descending);
    let spec = BuildSpec {
        memory_pages: 4096,
        ramdisk: None,
        cmdline: String::new(),
        flags: 0,
        store_port: Port(1),
        console_port: Port(2),
    };
    let built = build(&hypervisor, DomId(3), image, &spec).unwrap();
    let mut context = hypervisor.context.get().unwrap();
    context.user_regs.rsp -= 8 * words.len() as u64;
    let stack = built.layout.boot_stack;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut machine = hypervisor.machine.clone();
    let frame = 0x1000 + (4096 - 1 - stack.0);
    let at = (frame << 12) + (4096 - bytes.len() as u64);
    machine.write(MachineAddr(at), &bytes).unwrap();
    (machine, context)
}

#[test]
fn the_report_names_the_calls_on_the_stack() {
    let image = image();
    let words = [7, CODE + 0x210, VIRT_BASE + 0x1000, CODE + 0x33];
    let (machine, mut context) = crashed(&image, &words);
    context.user_regs.rip = CODE + 0x1f0;
    let stack = read_stack(&machine, &context);
    assert_eq!(
        stack.len(),
        STACK_BYTES,
        "the boot stack and what follows it"
    );
    let report = crash_report(&context, Some(&image), &stack);
    assert!(
        report.contains("e033:ffffffff801001f0  startup_xen+0x1f0"),
        "{report}"
    );
    let calls: Vec<&str> = report
        .lines()
        .skip_while(|l| !l.contains("calls,"))
        .collect();
    assert_eq!(
        calls[1..],
        [
            "    ffffffff80100210  start_kernel+0x10",
            "    ffffffff80100033  startup_xen+0x33"
        ]
    );
    assert!(
        report.contains(" 0000000000000007 ffffffff80100210 "),
        "{report}"
    );
}

#[test]
fn a_return_address_behind_a_functions_end_is_that_functions() {
    let image = image();
    let (machine, context) = crashed(&image, &[CODE + 0x200, CODE]);
    let report = crash_report(&context, Some(&image), &read_stack(&machine, &context));
    assert!(report.contains("  startup_xen+0x200\n"), "{report}");
    assert!(!report.contains("start_kernel"), "{report}");
}

#[test]
fn without_an_image_there_are_still_registers_and_words() {
    let (machine, context) = crashed(&image(), &[0xdead_beef]);
    let report = crash_report(&context, None, &read_stack(&machine, &context));
    assert!(report.contains("00000000deadbeef"));
    assert!(!report.contains("calls"));
}

#[test]
fn a_stack_pointer_that_leads_nowhere_is_said_to() {
    let image = image();
    let (machine, mut context) = crashed(&image, &[]);
    for rsp in [0, 8, 0x8000_0000_0000, u64::MAX - 3, 0xffff_8800_0000_0000] {
        context.user_regs.rsp = rsp;
        context.user_regs.rip = rsp;
        let stack = read_stack(&machine, &context);
        assert!(stack.is_empty());
        let report = crash_report(&context, Some(&image), &stack);
        assert!(report.contains("the stack is not mapped"));
        assert!(report.contains("(not in the kernel's code)"));
    }
}

#[test]
fn page_tables_that_lie_are_followed_in_bounds() {
    let image = image();
    let (machine, mut context) = crashed(&image, &[]);
    for root in [0, 1, u64::MAX >> 12, 0xf_ffff_ffff_ffff] {
        context.ctrlreg[3] = root << 12;
        assert!(read_stack(&machine, &context).is_empty());
    }
}

#[test]
fn names_have_no_control_characters() {
    let (_, context) = crashed(&image(), &[]);
    let stack = (CODE + 0x404).to_le_bytes();
    let report = crash_report(&context, Some(&image()), &stack);
    assert!(!report.contains('\x1b'));
}
