//! A kernel of your own: says hello, counts three seconds, powers off.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{
    addr::{Port, VcpuId},
    errno::Errno,
    kernel::{
        Boot, event, sched, time,
        xenstore::{Tx, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
    xen::VIRQ_TIMER,
};

// The entry point, the ELF notes, the panic handler.
guest_abi::pv_kernel!(main, name = "my-kernel");

fn main(boot: &'static Boot) -> ! {
    // Console, traps, events. A refusal here is the hypervisor's, with its errno.
    boot.init().expect("the usual set-up");
    kprintln!("hello from a kernel of my own");
    kprintln!("I have {} pages of memory", boot.start_info().nr_pages);
    if let Ok(mut store) = Xenstore::connect(boot) {
        match store.read_text::<64>(Tx::NONE, &"name") {
            Ok(name) => kprintln!("xenstore says that my name is {name}"),
            Err(error) => kprintln!("my name: {error}"),
        }
    }
    count_seconds(3).expect("timers work");
    kprintln!("goodbye");
    sched::shutdown(SHUTDOWN_POWEROFF)
}

static TICKS: AtomicU32 = AtomicU32::new(0);

/// Called where the kernel lets events in: inside [`event::block`].
fn on_timer(_port: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

fn count_seconds(count: u32) -> Result<(), Errno> {
    time::stop_periodic_timer()?;
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0))?;
    event::listen(port, on_timer)?;
    for second in 1..=count {
        time::set_singleshot_timer(time::system_time() + 1_000_000_000, 0)?;
        while TICKS.load(Ordering::Relaxed) < second {
            event::block();
        }
        kprintln!("second {second}");
    }
    event::close(port)
}
