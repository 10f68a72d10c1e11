//! What a crashed domain leaves to be read: registers and a symbolised stack.

use std::{fmt::Write, path::Path};

use domus_privcmd::{client::Client, protocol::DomainInfo};
use guest_abi::{
    addr::{DomId, VcpuId},
    arch_x86::VcpuGuestContext,
};
use zerocopy::FromBytes;

use crate::builder::KernelImage;

/// The registers of each vCPU, with the kernel's symbols where it has some.
#[must_use]
pub fn report(hypervisor: &Client, info: &DomainInfo, kernel: &Path) -> String {
    let image = KernelImage::open(kernel).ok();
    let mut text = String::from("registers at the crash:");
    for vcpu in 0..=info.max_vcpu_id {
        let vcpu = VcpuId(vcpu);
        let context = hypervisor
            .vcpu_context(DomId(info.dom), vcpu)
            .map_err(|e| e.to_string())
            .and_then(|bytes| {
                VcpuGuestContext::read_from_bytes(&bytes).map_err(|_| "of a wrong size".to_owned())
            });
        match context {
            Ok(context) => write_vcpu(&mut text, vcpu, &context, image.as_ref()),
            Err(why) => {
                let _ = write!(text, "\n  vCPU {vcpu}: not available: {why}");
            }
        }
    }
    text
}

fn write_vcpu(
    text: &mut String,
    vcpu: VcpuId,
    context: &VcpuGuestContext,
    image: Option<&KernelImage>,
) {
    let regs = &context.user_regs;
    let place = image
        .and_then(|image| image.symbolise(regs.rip))
        .map_or_else(String::new, |(name, offset)| format!(" {name}+{offset:#x}"));
    // Writing to a String can't fail.
    let _ = write!(
        text,
        "\n  vCPU {vcpu}: rip {:#018x}{place}\n    rsp {:016x} rflags {:08x} cs {:04x} ss {:04x} cr2 {:016x} cr3 \
         {:016x}\n    rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n    rsi {:016x} rdi {:016x} rbp {:016x} r8  \
         {:016x}\n    r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n    r13 {:016x} r14 {:016x} r15 {:016x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.cs,
        regs.ss,
        context.ctrlreg[2],
        context.ctrlreg[3],
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
    );
}
