//! A hypercall that does nothing, against the bare exit of this host's KVM.
//!
//! Baseline: the engine alone, `syscall` in ring 3 to this process and back,
//! nothing looked at. Measured: `xen_version(XENVER_version)` of a running
//! domain, whose vCPU thread dispatches it, looks for events and arms timers.
//! Run-ahead is off: it would answer without an exit. Prints the ratio.

use domus_privcmd::protocol::GrantLimits;
use guest_abi::{
    addr::{Mfn, VcpuId},
    arch_x86::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext},
};
use hypervisor::{
    engine::{EngineChoice, kvm::probe},
    hypercall::install_context,
    hypervisor::{Hypervisor, RunAheadChoice},
    paging::Level,
};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;

const CALLS: u32 = 20_000;
const ROUNDS: usize = 5;
const CODE: u64 = 0x40_0000;

/// `CALLS` times `xen_version(0)`, then `sched_op(SHUTDOWN, poweroff)`.
fn program() -> Vec<u8> {
    let mut code = vec![0xbb]; // mov $CALLS, %ebx
    code.extend(CALLS.to_le_bytes());
    let again = code.len();
    code.extend([0xb8, 17, 0, 0, 0, 0x31, 0xff, 0x31, 0xf6, 0x0f, 0x05]); // mov $17,%eax; xor; xor; syscall
    code.extend([0xff, 0xcb, 0x75]); // dec %ebx; jnz again
    let next = code.len() + 1;
    code.push(u8::try_from(again as i64 - next as i64 + 256).expect("a short jump"));
    code.extend([0xb8, 29, 0, 0, 0, 0xbf, 2, 0, 0, 0]); // mov $29,%eax; mov $2,%edi
    code.extend([0xbe]);
    code.extend(u32::try_from(CODE + 0x800).expect("low").to_le_bytes()); // mov $reason,%esi
    code.extend([0x0f, 0x05]);
    code
}

/// One domain that runs the program to its end.
fn run_domain(hypervisor: &Hypervisor) -> Duration {
    let domain = hypervisor
        .create(None, uuid::Uuid::nil(), 1, 16, GrantLimits::default())
        .expect("a domain");
    let mut mm = domain.space.lock_mm();
    let frames: Vec<Mfn> = (0..6).map(|_| mm.allocate(0).expect("a frame")).collect();
    drop(mm);
    let memory = &domain.space.memory;
    let word = |frame: usize, entry: u64| {
        guest_abi::addr::MachineAddr((frames[frame].0 << 12) + entry * 8)
    };
    // L4, L3, L2, L1, code; tables are mapped by nobody.
    for (table, entry) in [(0, 0), (1, 0), (2, 2)] {
        memory.store(word(table, entry), frames[table + 1].0 << 12 | 0x67);
    }
    memory.store(word(3, 0), frames[4].0 << 12 | 0x67);
    memory.write(word(4, 0), &program()).expect("RAM");
    let pinned = domain
        .space
        .foreign_try(|mm, tables| mm.pin_table(tables, Level::L4, frames[0]));
    pinned.expect("valid tables");
    let mut context = Box::new(VcpuGuestContext::new_zeroed());
    context.flags = VGCF_IN_KERNEL | VGCF_ONLINE;
    context.user_regs.rip = CODE;
    context.user_regs.rsp = CODE + 0x1000;
    context.user_regs.rflags = 0x202;
    context.ctrlreg[3] = frames[0].0 << 12;
    install_context(&domain, VcpuId(0), context).expect("a context");
    domain.vcpus[0].set_online(true);
    let start = Instant::now();
    domain.unpause().expect("paused");
    while domain.lock_life().shutdown.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = start.elapsed();
    assert_eq!(
        domain.lock_life().shutdown,
        Some(0),
        "the program did not reach its end"
    );
    hypervisor.destroy(domain.id);
    time / CALLS
}

fn main() {
    let hypervisor = match Hypervisor::new(EngineChoice::Kvm, RunAheadChoice::Off) {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            println!("SKIP null_hypercall: {error}");
            return;
        }
    };
    let kvm = &hypervisor.host.kvm().expect("KVM was asked for").device;
    let cpuid = hypervisor.host.cpuid();
    let exit = || probe(kvm, &cpuid).expect("a trial").average;
    let (mut call, mut bare) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        bare = bare.min(exit());
        call = call.min(run_domain(&hypervisor));
    }
    let ratio = call.as_secs_f64() / bare.as_secs_f64();
    println!(
        "null hypercall {call:?}, bare exit {bare:?}: ratio {ratio:.2} (target: at most 1.15)"
    );
}
