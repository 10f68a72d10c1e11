//! Lab 4: event channels between two domains.
//!
//! `peer=N` on the command line waits for domain N; `of=N` rings domain N. Start
//! the one that rings first: a permission can only name a domain that exists.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{
    addr::{DomId, Port},
    kernel::{
        Boot, event, sched,
        xenstore::{StoreError, Tx, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab4");

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    let mut store = Xenstore::connect(boot).expect("a store");
    let number = |key| {
        let mut words = boot.command_line().split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    match (number("peer="), number("of=")) {
        (Some(peer), _) => wait(&mut store, DomId(peer)).expect("a store"),
        (_, Some(of)) => ring(&mut store, DomId(of)).expect("a store"),
        _ => kprintln!("lab4: who am I? peer=N or of=N"),
    }
    sched::shutdown(SHUTDOWN_POWEROFF)
}

static RUNG: AtomicU32 = AtomicU32::new(0);

fn on_ring(_: Port) {
    RUNG.fetch_add(1, Ordering::Relaxed);
}

/// Opens a port that only `peer` may bind to, and says which.
fn wait(store: &mut Xenstore, peer: DomId) -> Result<(), StoreError> {
    let port = event::alloc_unbound(peer).expect("a free port");
    event::listen(port, on_ring).expect("our own port");
    store.write(Tx::NONE, &"data/lab", &port)?;
    let reader = guest_abi::kernel::text::Text::<8>::format(&format_args!("r{peer}"));
    let own: u16 = store.read_number(Tx::NONE, &"domid")?;
    let owner = guest_abi::kernel::text::Text::<8>::format(&format_args!("n{own}"));
    let (owner, reader) = (owner.unwrap_or_default(), reader.unwrap_or_default());
    store.set_permissions(Tx::NONE, &"data/lab", &[&owner, &reader])?;
    kprintln!("lab4: waiting");
    while RUNG.load(Ordering::Relaxed) == 0 {
        event::block();
    }
    kprintln!("lab4: it rang");
    Ok(())
}

/// Waits for the port's number, binds to it, rings.
fn ring(store: &mut Xenstore, of: DomId) -> Result<(), StoreError> {
    let path = format_args!("/local/domain/{of}/data/lab");
    let remote: u32 = loop {
        match store.read_number(Tx::NONE, &path) {
            Ok(port) => break port,
            Err(_) => sched::poll(&[], guest_abi::kernel::time::system_time() + 50_000_000)
                .expect("a time"),
        }
    };
    let port = event::bind_interdomain(of, Port(remote)).expect("it waits for us");
    event::send(port).expect("it is bound");
    kprintln!("lab4: rang port {remote} of domain {of}");
    Ok(())
}
