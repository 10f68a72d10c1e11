//! The operations that a hypercall has, and the fields of their arguments.

use guest_abi::{
    callback::*, event_channel::*, grant_table::*, memory::*, physdev::*, sched::*, vcpu::*,
    version::*, xen::*,
};
use std::mem::offset_of;

/// How a field is read and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// A number.
    U16,
    /// A number with a sign: a status.
    I16,
    /// A number.
    U32,
    /// A number.
    U64,
    /// An address, a frame, flags.
    Hex,
    /// An event channel of the guest's.
    Port,
    /// `DOMID_SELF` or a number.
    Dom,
    /// A `VIRQ_*`.
    Virq,
    /// A `SHUTDOWN_*`.
    Shutdown,
}

/// A field of an argument structure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) offset: usize,
    pub(super) shown: Shown,
}

/// An operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

macro_rules! ops {
    ($($number:ident $name:literal $($struct:ident { $($field:ident: $shown:ident),* })?;)*) => {
        &[$(Op {
            number: $number as u32,
            name: $name,
            fields: &[$($(Field {
                name: stringify!($field),
                offset: offset_of!($struct, $field),
                shown: Shown::$shown,
            }),*)?],
        }),*]
    };
}

const EVENT_CHANNEL: &[Op] = ops! {
    EVTCHNOP_SEND "send" EvtchnSend { port: Port };
    EVTCHNOP_ALLOC_UNBOUND "alloc_unbound" EvtchnAllocUnbound { dom: Dom, remote_dom: Dom, port: Port };
    EVTCHNOP_BIND_INTERDOMAIN "bind_interdomain"
        EvtchnBindInterdomain { remote_dom: Dom, remote_port: U32, local_port: Port };
    EVTCHNOP_BIND_VIRQ "bind_virq" EvtchnBindVirq { virq: Virq, vcpu: U32, port: Port };
    EVTCHNOP_BIND_PIRQ "bind_pirq" EvtchnBindPirq { pirq: U32, flags: Hex, port: Port };
    EVTCHNOP_BIND_IPI "bind_ipi" EvtchnBindIpi { vcpu: U32, port: Port };
    EVTCHNOP_CLOSE "close" EvtchnClose { port: Port };
    EVTCHNOP_STATUS "status" EvtchnStatus { dom: Dom, port: Port, status: U32, vcpu: U32 };
    EVTCHNOP_BIND_VCPU "bind_vcpu" EvtchnBindVcpu { port: Port, vcpu: U32 };
    EVTCHNOP_UNMASK "unmask" EvtchnUnmask { port: Port };
    EVTCHNOP_RESET "reset" EvtchnReset { dom: Dom };
    EVTCHNOP_INIT_CONTROL "init_control" EvtchnInitControl { control_gfn: Hex, offset: U32, vcpu: U32 };
    EVTCHNOP_EXPAND_ARRAY "expand_array" EvtchnExpandArray { array_gfn: Hex };
    EVTCHNOP_SET_PRIORITY "set_priority" EvtchnSetPriority { port: Port, priority: U32 };
};

const SCHED: &[Op] = ops! {
    SCHEDOP_YIELD "yield";
    SCHEDOP_BLOCK "block";
    SCHEDOP_SHUTDOWN "shutdown" SchedShutdown { reason: Shutdown };
    SCHEDOP_POLL "poll" SchedPoll { ports: Hex, nr_ports: U32, timeout: U64 };
    SCHEDOP_REMOTE_SHUTDOWN "remote_shutdown" SchedRemoteShutdown { domain_id: Dom, reason: Shutdown };
    SCHEDOP_SHUTDOWN_CODE "shutdown_code" SchedShutdown { reason: Shutdown };
    SCHEDOP_WATCHDOG "watchdog" SchedWatchdog { id: U32, timeout: U32 };
    SCHEDOP_PIN_OVERRIDE "pin_override";
};

const VCPU: &[Op] = ops! {
    VCPUOP_INITIALISE "initialise";
    VCPUOP_UP "up";
    VCPUOP_DOWN "down";
    VCPUOP_IS_UP "is_up";
    VCPUOP_GET_RUNSTATE_INFO "get_runstate_info";
    VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA "register_runstate_memory_area"
        VcpuRegisterMemoryArea { addr: Hex };
    VCPUOP_SET_PERIODIC_TIMER "set_periodic_timer" VcpuSetPeriodicTimer { period_ns: U64 };
    VCPUOP_STOP_PERIODIC_TIMER "stop_periodic_timer";
    VCPUOP_SET_SINGLESHOT_TIMER "set_singleshot_timer"
        VcpuSetSingleshotTimer { timeout_abs_ns: U64, flags: Hex };
    VCPUOP_STOP_SINGLESHOT_TIMER "stop_singleshot_timer";
    VCPUOP_REGISTER_VCPU_INFO "register_vcpu_info" VcpuRegisterVcpuInfo { mfn: Hex, offset: Hex };
    VCPUOP_SEND_NMI "send_nmi";
    VCPUOP_GET_PHYSID "get_physid";
    VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA "register_vcpu_time_memory_area"
        VcpuRegisterMemoryArea { addr: Hex };
};

const MEMORY: &[Op] = ops! {
    XENMEM_INCREASE_RESERVATION "increase_reservation"
        MemoryReservation { nr_extents: U64, extent_order: U32, domid: Dom };
    XENMEM_DECREASE_RESERVATION "decrease_reservation"
        MemoryReservation { nr_extents: U64, extent_order: U32, domid: Dom };
    XENMEM_POPULATE_PHYSMAP "populate_physmap"
        MemoryReservation { nr_extents: U64, extent_order: U32, domid: Dom };
    XENMEM_MAXIMUM_RAM_PAGE "maximum_ram_page";
    XENMEM_CURRENT_RESERVATION "current_reservation" MemoryDomain { domid: Dom };
    XENMEM_MAXIMUM_RESERVATION "maximum_reservation" MemoryDomain { domid: Dom };
    XENMEM_MAXIMUM_GPFN "maximum_gpfn" MemoryDomain { domid: Dom };
    XENMEM_MACHPHYS_MFN_LIST "machphys_mfn_list";
    XENMEM_MACHPHYS_MAPPING "machphys_mapping" MachphysMapping { v_start: Hex, v_end: Hex, max_mfn: Hex };
    XENMEM_ADD_TO_PHYSMAP "add_to_physmap" AddToPhysmap { domid: Dom, space: U32, idx: Hex, gpfn: Hex };
    XENMEM_REMOVE_FROM_PHYSMAP "remove_from_physmap" RemoveFromPhysmap { domid: Dom, gpfn: Hex };
    XENMEM_MEMORY_MAP "memory_map" MemoryMap { nr_entries: U32, buffer: Hex };
    XENMEM_MACHINE_MEMORY_MAP "machine_memory_map" MemoryMap { nr_entries: U32, buffer: Hex };
    XENMEM_SET_MEMORY_MAP "set_memory_map";
    XENMEM_EXCHANGE "exchange";
};

const GRANT_TABLE: &[Op] = ops! {
    GNTTABOP_MAP_GRANT_REF "map_grant_ref"
        GnttabMapGrantRef { dom: Dom, gref: U32, host_addr: Hex, flags: Hex, handle: U32, status: I16 };
    GNTTABOP_UNMAP_GRANT_REF "unmap_grant_ref"
        GnttabUnmapGrantRef { handle: U32, host_addr: Hex, status: I16 };
    GNTTABOP_SETUP_TABLE "setup_table" GnttabSetupTable { dom: Dom, nr_frames: U32, status: I16 };
    GNTTABOP_TRANSFER "transfer";
    GNTTABOP_COPY "copy" GnttabCopy { len: U16, flags: Hex, status: I16 };
    GNTTABOP_QUERY_SIZE "query_size"
        GnttabQuerySize { dom: Dom, nr_frames: U32, max_nr_frames: U32, status: I16 };
    GNTTABOP_UNMAP_AND_REPLACE "unmap_and_replace";
    GNTTABOP_SET_VERSION "set_version" GnttabSetVersion { version: U32 };
    GNTTABOP_GET_STATUS_FRAMES "get_status_frames";
    GNTTABOP_GET_VERSION "get_version";
    GNTTABOP_SWAP_GRANT_REF "swap_grant_ref";
    GNTTABOP_CACHE_FLUSH "cache_flush";
};

const PHYSDEV: &[Op] = ops! {
    PHYSDEVOP_SET_IOPL "set_iopl" PhysdevSetIopl { iopl: U32 };
    PHYSDEVOP_SET_IOBITMAP "set_iobitmap" PhysdevSetIobitmap { bitmap: Hex, nr_ports: U32 };
    PHYSDEVOP_EOI "eoi" PhysdevEoi { irq: U32 };
    PHYSDEVOP_APIC_READ "apic_read";
    PHYSDEVOP_APIC_WRITE "apic_write";
    PHYSDEVOP_PIRQ_EOI_GMFN_V1 "pirq_eoi_gmfn_v1";
    PHYSDEVOP_PIRQ_EOI_GMFN_V2 "pirq_eoi_gmfn_v2";
    PHYSDEVOP_IRQ_STATUS_QUERY "irq_status_query";
    PHYSDEVOP_GET_FREE_PIRQ "get_free_pirq";
};

const CALLBACK: &[Op] = ops! {
    CALLBACKOP_REGISTER "register" CallbackRegister { kind: U16, flags: Hex, address: Hex };
    CALLBACKOP_UNREGISTER "unregister" CallbackUnregister { kind: U16 };
};

const VERSION: &[Op] = ops! {
    XENVER_VERSION "version";
    XENVER_EXTRAVERSION "extraversion";
    XENVER_COMPILE_INFO "compile_info";
    XENVER_CAPABILITIES "capabilities";
    XENVER_CHANGESET "changeset";
    XENVER_PLATFORM_PARAMETERS "platform_parameters";
    XENVER_GET_FEATURES "get_features";
    XENVER_PAGESIZE "pagesize";
    XENVER_GUEST_HANDLE "guest_handle";
    XENVER_COMMANDLINE "commandline";
    XENVER_BUILD_ID "build_id";
};

const CONSOLE: &[Op] = ops! {
    CONSOLEIO_WRITE "write";
    CONSOLEIO_READ "read";
};

/// The MMU's extended operations: each element of the list has its own.
pub(super) const MMUEXT: &[Op] = ops! {
    MMUEXT_PIN_L1_TABLE "PIN_L1_TABLE";
    MMUEXT_PIN_L2_TABLE "PIN_L2_TABLE";
    MMUEXT_PIN_L3_TABLE "PIN_L3_TABLE";
    MMUEXT_PIN_L4_TABLE "PIN_L4_TABLE";
    MMUEXT_UNPIN_TABLE "UNPIN_TABLE";
    MMUEXT_NEW_BASEPTR "NEW_BASEPTR";
    MMUEXT_TLB_FLUSH_LOCAL "TLB_FLUSH_LOCAL";
    MMUEXT_INVLPG_LOCAL "INVLPG_LOCAL";
    MMUEXT_TLB_FLUSH_MULTI "TLB_FLUSH_MULTI";
    MMUEXT_INVLPG_MULTI "INVLPG_MULTI";
    MMUEXT_TLB_FLUSH_ALL "TLB_FLUSH_ALL";
    MMUEXT_INVLPG_ALL "INVLPG_ALL";
    MMUEXT_FLUSH_CACHE "FLUSH_CACHE";
    MMUEXT_SET_LDT "SET_LDT";
    MMUEXT_NEW_USER_BASEPTR "NEW_USER_BASEPTR";
    MMUEXT_CLEAR_PAGE "CLEAR_PAGE";
    MMUEXT_COPY_PAGE "COPY_PAGE";
    MMUEXT_FLUSH_CACHE_GLOBAL "FLUSH_CACHE_GLOBAL";
    MMUEXT_MARK_SUPER "MARK_SUPER";
    MMUEXT_UNMARK_SUPER "UNMARK_SUPER";
};

/// The operations of a hypercall whose first argument chooses one.
pub(super) const fn of(number: u64) -> Option<&'static [Op]> {
    Some(match number {
        HYPERVISOR_EVENT_CHANNEL_OP => EVENT_CHANNEL,
        HYPERVISOR_SCHED_OP => SCHED,
        HYPERVISOR_VCPU_OP => VCPU,
        HYPERVISOR_MEMORY_OP => MEMORY,
        HYPERVISOR_GRANT_TABLE_OP => GRANT_TABLE,
        HYPERVISOR_PHYSDEV_OP => PHYSDEV,
        HYPERVISOR_CALLBACK_OP => CALLBACK,
        HYPERVISOR_XEN_VERSION => VERSION,
        HYPERVISOR_CONSOLE_IO => CONSOLE,
        _ => return None,
    })
}

/// The operation of this number among `ops`.
pub(super) fn find(ops: &'static [Op], number: u32) -> Option<&'static Op> {
    ops.iter().find(|op| op.number == number)
}
