//! Interrupts are events: the number of an interrupt is its port.
//!
//! Except for the timers and the interrupts between vCPUs: each vCPU has ports of
//! its own for these, and ArceOS one number for all of a kind. A timer's number
//! is the port of the first vCPU's; [`IPI_IRQ`] is no port.

use core::sync::atomic::{AtomicU32, Ordering};

use axplat::irq::{HandlerTable, IpiTarget, IrqHandler, IrqIf};
use guest_abi::{
    addr::{Port, VcpuId},
    kernel::{event, smp, time},
    xen::{VIRQ_TIMER, XEN_LEGACY_MAX_VCPUS},
};
use xen_pv_cpu::irq::{self, PORTS};

/// The number of the interrupts that vCPUs send each other; `axconfig.toml` has
/// it too.
pub const IPI_IRQ: usize = PORTS;

static HANDLERS: HandlerTable<{ PORTS + 1 }> = HandlerTable::new();
/// The ports that `VIRQ_TIMER` is bound to, by vCPU.
static TIMERS: Ports = Ports::new();
/// The ports by which a vCPU is interrupted.
static IPIS: Ports = Ports::new();

/// A port of each vCPU.
struct Ports([AtomicU32; XEN_LEGACY_MAX_VCPUS]);

impl Ports {
    const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; XEN_LEGACY_MAX_VCPUS])
    }

    fn set(&self, vcpu: VcpuId, port: Port) {
        self.0[vcpu.0 as usize].store(port.0, Ordering::Release);
    }

    /// `None` where the vCPU has none.
    fn get(&self, vcpu: VcpuId) -> Option<Port> {
        let port = self.0.get(vcpu.0 as usize)?.load(Ordering::Acquire);
        (port != 0).then_some(Port(port))
    }
}

fn current() -> VcpuId {
    VcpuId(smp::current())
}

/// Binds this vCPU's timer, and what other vCPUs interrupt it by.
pub fn init() {
    let vcpu = current();
    // Xen may start a vCPU with a periodic one.
    time::stop_periodic_timer().expect("the vCPU's own timer");
    let clock = event::bind_virq(VIRQ_TIMER, vcpu).expect("a port for the timer");
    let bell = event::bind_ipi(vcpu).expect("a port for other vCPUs");
    TIMERS.set(vcpu, clock);
    IPIS.set(vcpu, bell);
    irq::number(clock, timer()).expect("a low port");
    irq::number(bell, IPI_IRQ).expect("a low port");
    if vcpu.0 != 0 {
        // The first vCPU's are opened when somebody registers for them.
        irq::listen(clock, vcpu).expect("an open port");
        irq::listen(bell, vcpu).expect("an open port");
    }
}

/// The number of the timers' interrupt.
pub fn timer() -> usize {
    TIMERS.get(VcpuId(0)).map_or(0, |port| port.0 as usize)
}

/// Where an interrupt comes from, and to whom.
fn source(irq: usize) -> Option<(Port, VcpuId)> {
    let vcpu = current();
    if irq == IPI_IRQ {
        return Some((IPIS.get(vcpu)?, vcpu));
    }
    if irq == timer() {
        return Some((TIMERS.get(vcpu)?, vcpu));
    }
    let port = u32::try_from(irq).ok()?;
    (irq < PORTS).then_some((Port(port), VcpuId(0)))
}

struct Irq;

#[impl_plat_interface]
impl IrqIf for Irq {
    fn set_enable(irq: usize, enabled: bool) {
        let Some((port, vcpu)) = source(irq) else {
            return;
        };
        let done = if enabled {
            irq::listen(port, vcpu)
        } else {
            irq::ignore(port)
        };
        done.expect("an open port");
        if enabled && irq == timer() {
            // ArceOS sets the timer again each time that it went off.
            time::set_singleshot_timer(time::system_time(), 0).expect("a timer is set");
        }
    }

    fn register(irq: usize, handler: IrqHandler) -> bool {
        let done = source(irq).is_some() && HANDLERS.register_handler(irq, handler);
        if done {
            Self::set_enable(irq, true);
        }
        done
    }

    fn unregister(irq: usize) -> Option<IrqHandler> {
        Self::set_enable(irq, false);
        HANDLERS.unregister_handler(irq)
    }

    fn handle(irq: usize) -> Option<usize> {
        HANDLERS.handle(irq).then_some(irq)
    }

    /// Rings the ports of the vCPUs meant. Each takes the interrupt where it takes
    /// any: when it turns interrupts on, or waits.
    fn send_ipi(irq_num: usize, target: IpiTarget) {
        if irq_num != IPI_IRQ {
            return;
        }
        match target {
            IpiTarget::Current { cpu_id } | IpiTarget::Other { cpu_id } => ring(cpu_id),
            IpiTarget::AllExceptCurrent { cpu_id, cpu_num } => {
                (0..cpu_num).filter(|&other| other != cpu_id).for_each(ring);
            }
        }
    }
}

fn ring(cpu_id: usize) {
    let vcpu = u32::try_from(cpu_id).map(VcpuId).ok();
    if let Some(port) = vcpu.and_then(|vcpu| IPIS.get(vcpu)) {
        event::send(port).expect("an open port");
    }
}
