//! The page of hypercall stubs that a kernel without its own may call into:
//! stub `n` at `n * 32`.

use guest_abi::xen::{HYPERCALL_PAGE_STUB_SIZE as STUB, HYPERVISOR_IRET};

/// A page of them.
pub const SIZE: usize = 4096;

const PUSH_RCX: &[u8] = &[0x51];
const PUSH_R11: &[u8] = &[0x41, 0x53];
const PUSH_RAX: &[u8] = &[0x50];
const MOV_EAX: &[u8] = &[0xb8];
const SYSCALL: &[u8] = &[0x0f, 0x05];
const POP_R11: &[u8] = &[0x41, 0x5b];
const POP_RCX: &[u8] = &[0x59];
const RET: &[u8] = &[0xc3];
/// `int3`, where no code is.
const FILL: u8 = 0xcc;

/// The page's content.
#[must_use]
pub fn content() -> [u8; SIZE] {
    let mut page = [FILL; SIZE];
    for (number, stub) in (0..).zip(page.chunks_exact_mut(STUB)) {
        let code = if number == HYPERVISOR_IRET {
            iret()
        } else {
            call(number)
        };
        stub[..code.len()].copy_from_slice(&code);
    }
    page
}

/// `syscall` destroys rcx and r11: they are kept on the stack.
fn call(number: u64) -> Vec<u8> {
    [
        PUSH_RCX,
        PUSH_R11,
        MOV_EAX,
        &number.to_le_bytes()[..4],
        SYSCALL,
        POP_R11,
        POP_RCX,
        RET,
    ]
    .concat()
}

/// `iret` is jumped to, with the return frame on the stack; the stub completes
/// the frame (rcx, r11, rax) and does not come back.
fn iret() -> Vec<u8> {
    [
        PUSH_RCX,
        PUSH_R11,
        PUSH_RAX,
        MOV_EAX,
        &HYPERVISOR_IRET.to_le_bytes()[..4],
        SYSCALL,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_are_those_of_xen() {
        let page = content();
        assert_eq!(
            page[17 * 32..17 * 32 + 15],
            [
                0x51, 0x41, 0x53, 0xb8, 17, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, 0xcc
            ]
        );
        assert_eq!(
            page[23 * 32..23 * 32 + 12],
            [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc]
        );
    }
}
