//! Interrupts are events: the number of an interrupt is its port.

use core::sync::atomic::{AtomicUsize, Ordering};

use axplat::irq::{HandlerTable, IpiTarget, IrqHandler, IrqIf};
use guest_abi::{
    addr::{Port, VcpuId},
    kernel::{event, time},
    xen::VIRQ_TIMER,
};
use xen_pv_cpu::irq::{self, PORTS};

static HANDLERS: HandlerTable<PORTS> = HandlerTable::new();
/// The port that `VIRQ_TIMER` is bound to.
static TIMER: AtomicUsize = AtomicUsize::new(0);

/// Binds the timer.
pub fn init() {
    // Xen may start a vCPU with a periodic one.
    time::stop_periodic_timer().expect("the vCPU's own timer");
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0)).expect("a port for the timer");
    TIMER.store(port.0 as usize, Ordering::Relaxed);
}

/// The number of the timer's interrupt.
pub fn timer() -> usize {
    TIMER.load(Ordering::Relaxed)
}

fn port(irq: usize) -> Option<Port> {
    (irq < PORTS).then_some(Port(irq as u32))
}

struct Irq;

#[impl_plat_interface]
impl IrqIf for Irq {
    fn set_enable(irq: usize, enabled: bool) {
        let Some(port) = port(irq) else { return };
        let done = if enabled {
            irq::listen(port)
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
        let done = port(irq).is_some() && HANDLERS.register_handler(irq, handler);
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

    /// There is one vCPU: it has nobody to interrupt.
    fn send_ipi(_irq_num: usize, _target: IpiTarget) {}
}
