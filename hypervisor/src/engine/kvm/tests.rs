//! The engine on the real `/dev/kvm`, with hand-made ring-3 code.

use super::{KvmVcpu, KvmVm, install_monitor};
use crate::{
    cpu::{Context, Trap, reg},
    emulate::CpuidPolicy,
    engine::{Entry, TableWrite, TableWrites, install_kick_signal, kick_signal},
    memory::{BASE_MFN, MachineMemory},
};
use guest_abi::addr::{GuestVirt, MachineAddr, Mfn};
use kvm_ioctls::Kvm;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

const PRESENT_WRITE_USER: u64 = 7;
const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x40_1000;
const STACK_TOP: u64 = 0x40_3000;

/// L4, L3, L2, L1, then code, data and stack pages, then spare ones.
struct TinyGuest {
    memory: Arc<MachineMemory>,
    _vm: KvmVm,
    vcpu: KvmVcpu,
    context: Context,
    writes: TableWrites,
    flush: bool,
}

fn frame(index: u64) -> Mfn {
    Mfn(BASE_MFN.0 + index)
}

fn word(index: u64, entry: u64) -> MachineAddr {
    MachineAddr(frame(index).addr().unwrap().0 + entry * 8)
}

impl TinyGuest {
    fn new(code: &[u8]) -> Self {
        let memory = Arc::new(MachineMemory::new(64).unwrap());
        let kvm = Kvm::new().expect("/dev/kvm must work for this test");
        let cpuid = CpuidPolicy::new(&KvmVm::supported_cpuid(&kvm).unwrap(), (4, 17), 1_000_000);
        let slots = install_monitor(&memory, 1).unwrap();
        let vm = KvmVm::new(&kvm, Arc::clone(&memory), &cpuid).unwrap();
        for (table, entry) in [(0, 0), (1, 0), (2, 2)] {
            memory.store(
                word(table, entry),
                frame(table + 1).addr().unwrap().0 | PRESENT_WRITE_USER,
            );
        }
        for (page, entry) in (4..7).zip(0..) {
            memory.store(
                word(3, entry),
                frame(page).addr().unwrap().0 | PRESENT_WRITE_USER,
            );
        }
        for (slot, value) in (256..272).zip(&slots) {
            memory.store(word(0, slot), *value);
        }
        memory.write(frame(4).addr().unwrap(), code).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        install_kick_signal().unwrap();
        vcpu.adopt_thread();
        let mut context = Context {
            rip: CODE,
            rflags: 0x202,
            ..Context::default()
        };
        context.gpr[reg::RSP] = STACK_TOP;
        TinyGuest {
            memory,
            _vm: vm,
            vcpu,
            context,
            writes: TableWrites::default(),
            flush: true,
        }
    }

    fn run(&mut self) -> Trap {
        let flush = std::mem::take(&mut self.flush);
        let mut entry = Entry {
            context: &mut self.context,
            root: frame(0),
            flush,
            writes: &mut self.writes,
        };
        self.vcpu.run(&mut entry).unwrap()
    }

    /// Changes the entry that maps [`DATA`], as a hypercall would.
    fn map_data(&mut self, page: u64) {
        let addr = word(3, 1);
        self.memory
            .store(addr, frame(page).addr().unwrap().0 | PRESENT_WRITE_USER);
        self.writes.push(TableWrite {
            addr,
            forget_frame: false,
        });
        self.flush = true;
    }
}

#[test]
fn syscall_traps_with_registers_and_goes_on() {
    // mov $5, %eax; syscall; inc %rax; syscall
    let mut guest = TinyGuest::new(&[0xb8, 5, 0, 0, 0, 0x0f, 0x05, 0x48, 0xff, 0xc0, 0x0f, 0x05]);
    assert_eq!(guest.run(), Trap::Syscall);
    assert_eq!(
        (guest.context.gpr[reg::RAX], guest.context.rip),
        (5, CODE + 7)
    );
    assert_eq!(guest.context.gpr[reg::RSP], STACK_TOP);
    guest.context.gpr[reg::RAX] = 41;
    assert_eq!(guest.run(), Trap::Syscall);
    assert_eq!(
        (guest.context.gpr[reg::RAX], guest.context.rip),
        (42, CODE + 12)
    );
}

#[test]
fn exceptions_tell_vector_error_and_address() {
    // ud2 ... ; mov (%rbx), %rax
    let mut guest = TinyGuest::new(&[0x0f, 0x0b, 0x48, 0x8b, 0x03, 0xf4]);
    assert_eq!(
        guest.run(),
        Trap::Exception {
            vector: 6,
            error: 0,
            cr2: GuestVirt(0)
        }
    );
    assert_eq!(guest.context.rip, CODE);
    guest.context.rip = CODE + 2;
    guest.context.gpr[reg::RBX] = 0x1234_5678;
    let Trap::Exception {
        vector: 14,
        error,
        cr2,
    } = guest.run()
    else {
        panic!("no page fault")
    };
    assert_eq!((error & 7, cr2), (4, GuestVirt(0x1234_5678)));
    assert_eq!(
        (guest.context.rip, guest.context.gpr[reg::RSP]),
        (CODE + 2, STACK_TOP)
    );
    guest.context.rip = CODE + 5; // hlt in ring 3
    assert!(matches!(
        guest.run(),
        Trap::Exception {
            vector: 13,
            error: 0,
            ..
        }
    ));
}

#[test]
fn ring_3_cannot_reach_the_monitor_or_the_alias() {
    for address in [
        super::layout::MONITOR,
        super::layout::ALIAS + (BASE_MFN.0 << 12),
        super::layout::GDT,
    ] {
        // mov (%rbx), %rax
        let mut guest = TinyGuest::new(&[0x48, 0x8b, 0x03]);
        guest.context.gpr[reg::RBX] = address;
        let Trap::Exception {
            vector: 14, cr2, ..
        } = guest.run()
        else {
            panic!("{address:#x} readable")
        };
        assert_eq!(cr2, GuestVirt(address));
    }
    // The table of slot 257 is readable and no more: mov %rax, (%rbx)
    let mut guest = TinyGuest::new(&[0x48, 0x89, 0x03]);
    guest.context.gpr[reg::RBX] = super::layout::M2P;
    assert!(matches!(
        guest.run(),
        Trap::Exception {
            vector: 14,
            error: 7,
            ..
        }
    ));
}

#[test]
fn the_port_of_the_syscall_page_is_a_fault_elsewhere() {
    let mut guest = TinyGuest::new(&[0x90, 0xe6, super::layout::PORT_SYSCALL, 0x0f, 0x0b]);
    assert!(matches!(guest.run(), Trap::Exception { vector: 13, .. }));
    assert_eq!(guest.context.rip, CODE + 1);
}

#[test]
fn a_changed_entry_is_seen_at_once() {
    // loop: mov (%rbx), %rax; syscall; jmp loop
    let mut guest = TinyGuest::new(&[0x48, 0x8b, 0x03, 0x0f, 0x05, 0xeb, 0xf9]);
    for page in 5..60 {
        guest.memory.store(word(page, 0), page).unwrap();
    }
    guest.context.gpr[reg::RBX] = DATA;
    for page in 5..60 {
        guest.map_data(page);
        assert_eq!(guest.run(), Trap::Syscall);
        assert_eq!(guest.context.gpr[reg::RAX], page);
    }
}

#[test]
fn more_writes_than_a_list_holds_are_all_done() {
    let mut guest = TinyGuest::new(&[0x48, 0x8b, 0x03, 0x0f, 0x05, 0xeb, 0xf9]);
    guest.memory.store(word(9, 0), 99).unwrap();
    guest.context.gpr[reg::RBX] = DATA;
    assert_eq!(guest.run(), Trap::Syscall);
    for round in 0..1300 {
        guest.writes.push(TableWrite {
            addr: word(10 + round / 200, round % 200),
            forget_frame: false,
        });
    }
    guest.map_data(9);
    assert_eq!(guest.run(), Trap::Syscall);
    assert_eq!(guest.context.gpr[reg::RAX], 99);
    assert!(guest.writes.is_empty());
    assert!(guest.vcpu.counts().table_writes > 1300);
}

#[test]
fn a_table_that_changed_as_a_whole_is_forgotten_by_one_write() {
    let mut guest = TinyGuest::new(&[0x48, 0x8b, 0x03, 0x0f, 0x05, 0xeb, 0xf9]);
    for page in 5..30 {
        guest.memory.store(word(page, 0), page).unwrap();
    }
    guest.context.gpr[reg::RBX] = DATA;
    for page in 5..30 {
        let before = guest.vcpu.counts().table_writes;
        guest.map_data(page);
        for index in 0..512 {
            guest.writes.push(TableWrite {
                addr: word(3, index),
                forget_frame: false,
            });
        }
        assert_eq!(guest.run(), Trap::Syscall);
        assert_eq!(guest.context.gpr[reg::RAX], page);
        assert_eq!(guest.vcpu.counts().table_writes, before + 1);
    }
}

/// Words 0 and 1 of a frame are repeated, or the frame is forgotten, while another
/// thread counts in them.
#[test]
fn a_repeated_word_undoes_no_change_that_comes_in_between() {
    let mut guest = TinyGuest::new(&[0x0f, 0x05, 0xeb, 0xfc]); // syscall; jmp -4
    let (memory, stop) = (Arc::clone(&guest.memory), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&stop);
    let counter = std::thread::spawn(move || {
        let mut count = 0u64;
        while !ended.load(Ordering::Relaxed) {
            for index in [0, 1] {
                let add = |word: &AtomicU64| word.fetch_add(1 << 8, Ordering::SeqCst);
                memory.atomic(word(10, index), add).unwrap();
            }
            count += 1 << 8;
        }
        count
    });
    for round in 0..1500 {
        guest.writes.push(TableWrite {
            addr: word(10, round % 2),
            forget_frame: round % 3 == 0,
        });
        assert_eq!(guest.run(), Trap::Syscall);
    }
    stop.store(true, Ordering::Relaxed);
    let count = counter.join().unwrap();
    let seen = [0, 1].map(|index| guest.memory.load(word(10, index)).unwrap());
    assert_eq!(seen, [count; 2]);
}

#[test]
fn a_kick_takes_a_spinning_guest_out() {
    let mut guest = TinyGuest::new(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]); // inc %rax; jmp -5
    let thread = nix::sys::pthread::pthread_self();
    let start = guest.context.gpr[reg::RAX];
    for _ in 0..20 {
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2));
            nix::sys::pthread::pthread_kill(thread, kick_signal()).unwrap();
        });
        assert_eq!(guest.run(), Trap::Kick);
        kicker.join().unwrap();
    }
    // On a busy host a kick may come before the guest has begun.
    assert!(guest.context.gpr[reg::RAX] > start);
}

#[test]
fn costs_are_printed() {
    let mut guest = TinyGuest::new(&[0x0f, 0x05, 0xeb, 0xfc]);
    guest.run();
    let per = |count: u32, start: Instant| start.elapsed() / count;
    let start = Instant::now();
    (0..2000).for_each(|_| assert_eq!(guest.run(), Trap::Syscall));
    println!("syscall trap: {:?}", per(2000, start));
    let start = Instant::now();
    for page in 0..2000 {
        guest.map_data(5 + page % 50);
        guest.run();
    }
    println!(
        "syscall trap with one table write and a flush: {:?}",
        per(2000, start)
    );
    let mut guest = TinyGuest::new(&[0x0f, 0x0b]);
    guest.run();
    let start = Instant::now();
    (0..2000).for_each(|_| assert!(matches!(guest.run(), Trap::Exception { vector: 6, .. })));
    println!("#UD trap: {:?}", per(2000, start));
}

#[test]
fn cpuid_in_ring_3_shows_no_more_than_the_table() {
    // cpuid; mov %rcx, %r8; syscall
    let mut guest = TinyGuest::new(&[0x0f, 0xa2, 0x49, 0x89, 0xc8, 0x0f, 0x05]);
    guest.context.gpr[reg::RAX] = 1;
    match guest.run() {
        // It faults, and is answered from the table by who handles the fault.
        Trap::Exception {
            vector: 13,
            error: 0,
            ..
        } => assert_eq!(guest.context.rip, CODE),
        // KVM answered, from the table that it was given.
        trap => {
            assert_eq!(trap, Trap::Syscall);
            let kvm = Kvm::new().unwrap();
            let host = KvmVm::supported_cpuid(&kvm).unwrap();
            let shown = CpuidPolicy::new(&host, (4, 17), 1).lookup(1, 0);
            assert_eq!(guest.context.gpr[reg::R8] & !u64::from(shown.ecx), 0);
        }
    }
}

#[test]
fn vector_registers_move_between_kvm_and_the_process() {
    // movq %rax, %xmm3; fld1; syscall; movq %xmm3, %rax; syscall
    let code = [
        0x66, 0x48, 0x0f, 0x6e, 0xd8, 0xd9, 0xe8, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xd8, 0x0f,
        0x05,
    ];
    let mut guest = TinyGuest::new(&code);
    guest.context.gpr[reg::RAX] = 0x1122_3344_5566_7788;
    assert_eq!(guest.run(), Trap::Syscall);
    let mut state = guest.vcpu.fpu().unwrap();
    assert_eq!(state.ymm(3)[..2], [0x88, 0x77]);
    assert_eq!(
        state.x87_u16(crate::fpu::at::TAGS),
        0x80,
        "one x87 register is used"
    );
    state.set_ymm(3, &[0x5a; 32]);
    guest.vcpu.set_fpu(&state).unwrap();
    assert_eq!(guest.run(), Trap::Syscall);
    assert_eq!(guest.context.gpr[reg::RAX], 0x5a5a_5a5a_5a5a_5a5a);
    let after = guest.vcpu.fpu().unwrap();
    assert_eq!((after.ymm(3), after.in_use()), ([0x5a; 32], 7));
    let start = Instant::now();
    for _ in 0..1000 {
        guest.vcpu.set_fpu(&state).unwrap();
        state = guest.vcpu.fpu().unwrap();
    }
    println!(
        "KVM_SET_XSAVE and KVM_GET_XSAVE: {:?}",
        start.elapsed() / 1000
    );
}
