//! The layouts against an independent witness.
//!
//! The numbers below did not come from this crate: a C compiler printed
//! `sizeof` and `offsetof` of Xen 4.17's public headers for x86-64
//! (`__XEN_INTERFACE_VERSION__` 0x00040e00), structure by structure. The
//! crate's own assertions were written by hand from the headers' text; this
//! table would show a slip of the hand.

use guest_abi::*;

macro_rules! witness {
    ($($module:ident::$name:ident [$size:literal] { $($field:ident: $offset:literal,)* })*) => {
        #[test]
        fn layouts_are_those_of_the_c_headers() {
            $({
                type Layout = $module::$name;
                assert_eq!(size_of::<Layout>(), $size, "size of {}", stringify!($name));
                $(assert_eq!(
                    core::mem::offset_of!(Layout, $field),
                    $offset,
                    "{}.{}", stringify!($name), stringify!($field)
                );)*
            })*
        }
    };
}

witness! {
    xen::MmuUpdate [16] { ptr: 0, val: 8, }
    xen::MmuextOp [24] { cmd: 0, arg1: 8, arg2: 16, }
    xen::MulticallEntry [64] { op: 0, result: 8, args: 16, }
    xen::VcpuTimeInfo [32] { version: 0, tsc_timestamp: 8, system_time: 16, tsc_to_system_mul: 24, tsc_shift: 28, flags: 29, }
    xen::VcpuInfo [64] { evtchn_upcall_pending: 0, evtchn_upcall_mask: 1, evtchn_pending_sel: 8, arch: 16, time: 32, }
    xen::SharedInfo [3136] { vcpu_info: 0, evtchn_pending: 2048, evtchn_mask: 2560, wc_version: 3072, wc_sec: 3076, wc_nsec: 3080, wc_sec_hi: 3084, arch: 3088, }
    xen::StartInfo [1168] { magic: 0, nr_pages: 32, shared_info: 40, flags: 48, store_mfn: 56, store_evtchn: 64, console_mfn: 72, console_evtchn: 80, pt_base: 88, nr_pt_frames: 96, mfn_list: 104, mod_start: 112, mod_len: 120, cmd_line: 128, first_p2m_pfn: 1152, nr_p2m_frames: 1160, }
    arch_x86_64::IretContext [72] { rax: 0, r11: 8, rcx: 16, flags: 24, rip: 32, cs: 40, rflags: 48, rsp: 56, ss: 64, }
    arch_x86_64::CpuUserRegs [200] { r15: 0, r14: 8, r13: 16, r12: 24, rbp: 32, rbx: 40, r11: 48, r10: 56, r9: 64, r8: 72, rax: 80, rcx: 88, rdx: 96, rsi: 104, rdi: 112, error_code: 120, entry_vector: 124, rip: 128, cs: 136, saved_upcall_mask: 140, rflags: 144, rsp: 152, ss: 160, es: 168, ds: 176, fs: 184, gs: 192, }
    arch_x86_64::ArchVcpuInfo [16] { cr2: 0, }
    arch_x86::TrapInfo [16] { vector: 0, flags: 1, cs: 2, address: 8, }
    arch_x86::VcpuGuestContext [5168] { fpu_ctxt: 0, flags: 512, user_regs: 520, trap_ctxt: 720, ldt_base: 4816, ldt_ents: 4824, gdt_frames: 4832, gdt_ents: 4960, kernel_ss: 4968, kernel_sp: 4976, ctrlreg: 4984, debugreg: 5048, event_callback_eip: 5112, failsafe_callback_eip: 5120, syscall_callback_eip: 5128, vm_assist: 5136, fs_base: 5144, gs_base_kernel: 5152, gs_base_user: 5160, }
    arch_x86::ArchSharedInfo [48] { max_pfn: 0, pfn_to_mfn_frame_list_list: 8, nmi_reason: 16, p2m_cr3: 24, p2m_vaddr: 32, p2m_generation: 40, }
    arch_x86::XenCpuidLeaf [24] { leaf: 0, subleaf: 4, a: 8, b: 12, c: 16, d: 20, }
    sched::SchedShutdown [4] { reason: 0, }
    sched::SchedPoll [24] { ports: 0, nr_ports: 8, timeout: 16, }
    sched::SchedRemoteShutdown [8] { domain_id: 0, reason: 4, }
    sched::SchedWatchdog [8] { id: 0, timeout: 4, }
    sched::SchedPinOverride [4] { pcpu: 0, }
    vcpu::VcpuRunstateInfo [48] { state: 0, state_entry_time: 8, time: 16, }
    vcpu::VcpuRegisterMemoryArea [8] { addr: 0, }
    vcpu::VcpuSetPeriodicTimer [8] { period_ns: 0, }
    vcpu::VcpuSetSingleshotTimer [16] { timeout_abs_ns: 0, flags: 8, }
    vcpu::VcpuRegisterVcpuInfo [16] { mfn: 0, offset: 8, rsvd: 12, }
    vcpu::VcpuGetPhysid [8] { phys_id: 0, }
    event_channel::EvtchnAllocUnbound [8] { dom: 0, remote_dom: 2, port: 4, }
    event_channel::EvtchnBindInterdomain [12] { remote_dom: 0, remote_port: 4, local_port: 8, }
    event_channel::EvtchnBindVirq [12] { virq: 0, vcpu: 4, port: 8, }
    event_channel::EvtchnBindPirq [12] { pirq: 0, flags: 4, port: 8, }
    event_channel::EvtchnBindIpi [8] { vcpu: 0, port: 4, }
    event_channel::EvtchnClose [4] { port: 0, }
    event_channel::EvtchnSend [4] { port: 0, }
    event_channel::EvtchnStatus [24] { dom: 0, port: 4, status: 8, vcpu: 12, u: 16, u_port: 20, }
    event_channel::EvtchnBindVcpu [8] { port: 0, vcpu: 4, }
    event_channel::EvtchnUnmask [4] { port: 0, }
    event_channel::EvtchnReset [2] { dom: 0, }
    event_channel::EvtchnInitControl [24] { control_gfn: 0, offset: 8, vcpu: 12, link_bits: 16, }
    event_channel::EvtchnExpandArray [8] { array_gfn: 0, }
    event_channel::EvtchnSetPriority [8] { port: 0, priority: 4, }
    event_channel::EvtchnOp [28] { cmd: 0, u: 4, }
    memory::MemoryReservation [32] { extent_start: 0, nr_extents: 8, extent_order: 16, mem_flags: 20, domid: 24, }
    memory::MemoryExchange [72] { input: 0, output: 32, nr_exchanged: 64, }
    memory::MemoryDomain [2] { domid: 0, }
    memory::MachphysMfnList [24] { max_extents: 0, extent_start: 8, nr_extents: 16, }
    memory::MachphysMapping [24] { v_start: 0, v_end: 8, max_mfn: 16, }
    memory::AddToPhysmap [24] { domid: 0, size: 2, space: 4, idx: 8, gpfn: 16, }
    memory::AddToPhysmapBatch [32] { domid: 0, space: 2, size: 4, foreign_domid: 6, idxs: 8, gpfns: 16, errs: 24, }
    memory::RemoveFromPhysmap [16] { domid: 0, gpfn: 8, }
    memory::MemoryMap [16] { nr_entries: 0, buffer: 8, }
    memory::ForeignMemoryMap [24] { domid: 0, map: 8, }
    grant_table::GrantEntryV1 [8] { flags: 0, domid: 2, frame: 4, }
    grant_table::GrantEntryV2FullPage [16] { flags: 0, domid: 2, frame: 8, }
    grant_table::GrantEntryV2SubPage [16] { flags: 0, domid: 2, page_off: 4, length: 6, frame: 8, }
    grant_table::GrantEntryV2Transitive [16] { flags: 0, domid: 2, trans_domid: 4, gref: 8, }
    grant_table::GnttabMapGrantRef [32] { host_addr: 0, flags: 8, gref: 12, dom: 16, status: 18, handle: 20, dev_bus_addr: 24, }
    grant_table::GnttabUnmapGrantRef [24] { host_addr: 0, dev_bus_addr: 8, handle: 16, status: 20, }
    grant_table::GnttabSetupTable [24] { dom: 0, nr_frames: 4, status: 8, frame_list: 16, }
    grant_table::GnttabDumpTable [4] { dom: 0, status: 2, }
    grant_table::GnttabTransfer [24] { mfn: 0, domid: 8, gref: 12, status: 16, }
    grant_table::GnttabCopy [40] { source: 0, dest: 16, len: 32, flags: 34, status: 36, }
    grant_table::GnttabCopyPtr [16] { u: 0, domid: 8, offset: 10, }
    grant_table::GnttabQuerySize [16] { dom: 0, nr_frames: 4, max_nr_frames: 8, status: 12, }
    grant_table::GnttabUnmapAndReplace [24] { host_addr: 0, new_addr: 8, handle: 16, status: 20, }
    grant_table::GnttabSetVersion [4] { version: 0, }
    grant_table::GnttabGetStatusFrames [16] { nr_frames: 0, dom: 4, status: 6, frame_list: 8, }
    grant_table::GnttabGetVersion [8] { dom: 0, version: 4, }
    grant_table::GnttabSwapGrantRef [12] { ref_a: 0, ref_b: 4, status: 8, }
    grant_table::GnttabCacheFlush [16] { a: 0, offset: 8, length: 10, op: 12, }
    physdev::PhysdevEoi [4] { irq: 0, }
    physdev::PhysdevPirqEoiGmfn [8] { gmfn: 0, }
    physdev::PhysdevIrqStatusQuery [8] { irq: 0, flags: 4, }
    physdev::PhysdevSetIopl [4] { iopl: 0, }
    physdev::PhysdevSetIobitmap [16] { bitmap: 0, nr_ports: 8, }
    physdev::PhysdevApic [16] { apic_physbase: 0, reg: 8, value: 12, }
    callback::CallbackRegister [16] { kind: 0, flags: 2, address: 8, }
    callback::CallbackUnregister [4] { kind: 0, }
    version::CompileInfo [144] { compiler: 0, compile_by: 64, compile_domain: 80, compile_date: 112, }
    version::PlatformParameters [8] { virt_start: 0, }
    version::FeatureInfo [8] { submap_idx: 0, submap: 4, }
    nmi::XennmiCallback [16] { handler_address: 0, }
    xs_wire::XsdSockmsg [16] { kind: 0, req_id: 4, tx_id: 8, len: 12, }
    xs_wire::XenstoreDomainInterface [2076] { req: 0, rsp: 1024, req_cons: 2048, req_prod: 2052, rsp_cons: 2056, rsp_prod: 2060, server_features: 2064, connection: 2068, error: 2072, }
    console::XenconsInterface [3088] { input: 0, output: 1024, in_cons: 3072, in_prod: 3076, out_cons: 3080, out_prod: 3084, }
    blkif::BlkifRequestSegment [8] { gref: 0, first_sect: 4, last_sect: 5, }
    blkif::BlkifRequest [112] { operation: 0, nr_segments: 1, handle: 2, id: 8, sector_number: 16, seg: 24, }
    blkif::BlkifRequestDiscard [32] { operation: 0, flag: 1, handle: 2, id: 8, sector_number: 16, nr_sectors: 24, }
    blkif::BlkifRequestIndirect [64] { operation: 0, indirect_op: 1, nr_segments: 2, id: 8, sector_number: 16, handle: 24, indirect_grefs: 28, }
    blkif::BlkifResponse [16] { id: 0, operation: 8, status: 10, }
    netif::NetifTxRequest [12] { gref: 0, offset: 4, flags: 6, id: 8, size: 10, }
    netif::NetifTxResponse [4] { id: 0, status: 2, }
    netif::NetifRxRequest [8] { id: 0, gref: 4, }
    netif::NetifRxResponse [8] { id: 0, offset: 2, flags: 4, status: 6, }
    netif::NetifExtraInfo [8] { kind: 0, flags: 1, u: 2, }
    ring::SringHeader [64] { req_prod: 0, req_event: 4, rsp_prod: 8, rsp_event: 12, }
}
