//! Privileged instructions: what a PV kernel does in their place.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter};

/// A privileged instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileged {
    /// As an assembler reads it.
    pub text: String,
    /// What to do instead.
    pub remedy: &'static str,
    /// Kernels try it out and expect the fault: reading a model-specific
    /// register.
    pub probe: bool,
}

/// What the bytes at `rip` are, if that is privileged.
#[must_use]
pub fn privileged(bytes: &[u8], rip: u64) -> Option<Privileged> {
    let insn = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    if insn.is_invalid() {
        return None;
    }
    let remedy = remedy(&insn)?;
    let mut text = String::new();
    NasmFormatter::new().format(&insn, &mut text);
    Some(Privileged {
        text,
        remedy,
        probe: matches!(insn.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Wrmsr),
    })
}

fn remedy(insn: &Instruction) -> Option<&'static str> {
    Some(match insn.mnemonic() {
        Mnemonic::Hlt => "wait for an event by sched_op(SCHEDOP_block)",
        Mnemonic::Lgdt => "install the GDT's frames by set_gdt",
        Mnemonic::Lidt => "a guest has no IDT: name the handlers by set_trap_table",
        Mnemonic::Lldt => "install the LDT by mmuext_op(MMUEXT_SET_LDT)",
        Mnemonic::Ltr => {
            "a guest has no TSS: name the kernel stack by stack_switch, the handlers by set_trap_table"
        }
        Mnemonic::Invlpg | Mnemonic::Invpcid => {
            "flush by mmuext_op(MMUEXT_INVLPG_LOCAL), or with update_va_mapping's flags"
        }
        Mnemonic::Swapgs => {
            "the hypervisor swaps the GS bases between user and kernel mode; set them by set_segment_base"
        }
        Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            "return to user mode by the hypercall iret"
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => "return by the hypercall iret",
        Mnemonic::Rdmsr | Mnemonic::Wrmsr => {
            "there is no such register for a guest: set bases by set_segment_base, the entry of user mode's syscall by callback_op"
        }
        Mnemonic::Mov if touches_cr3(insn) => {
            "change the root by mmuext_op(MMUEXT_NEW_BASEPTR), with the MFN of a pinned L4 table"
        }
        _ if insn.is_privileged() => {
            "a PV kernel runs in ring 3: ask by a hypercall (docs/reference lists them)"
        }
        _ => return None,
    })
}

fn touches_cr3(insn: &Instruction) -> bool {
    [insn.op0_register(), insn.op1_register()].contains(&iced_x86::Register::CR3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_instructions_are_named_with_a_remedy() {
        for (bytes, text, remedy) in [
            (&[0xf4][..], "hlt", "SCHEDOP_block"),
            (&[0x0f, 0x22, 0xd8], "mov cr3,rax", "NEW_BASEPTR"),
            (&[0x0f, 0x01, 0xf8], "swapgs", "set_segment_base"),
            (&[0x0f, 0x01, 0x18], "lidt [rax]", "set_trap_table"),
            (&[0x0f, 0x22, 0xc0], "mov cr0,rax", "hypercall"),
            (&[0x0f, 0x01, 0x38], "invlpg [rax]", "INVLPG"),
        ] {
            let found = privileged(bytes, 0x1000).unwrap();
            assert_eq!(found.text, text);
            assert!(found.remedy.contains(remedy), "{found:?}");
            assert!(!found.probe);
        }
        assert!(privileged(&[0x0f, 0x32], 0).unwrap().probe);
    }

    #[test]
    fn ordinary_ones_and_rubbish_are_not() {
        for bytes in [&[0x90][..], &[0x48, 0x89, 0xc3], &[0x0f], &[], &[0x06]] {
            assert_eq!(privileged(bytes, 0), None, "{bytes:x?}");
        }
    }
}
