//! Lab 6: reading xenstore, changing it, being told of changes.
#![no_std]
#![no_main]

use guest_abi::{
    kernel::{
        Boot, sched,
        xenstore::{StoreError, Tx, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab6");

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    let mut store = Xenstore::connect(boot).expect("a store");
    if let Err(error) = look(&mut store) {
        kprintln!("lab6: {error}");
    }
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn look(store: &mut Xenstore) -> Result<(), StoreError> {
    // A path without a slash at its front begins at our home.
    let name = store.read_text::<64>(Tx::NONE, &"name")?;
    let id: u32 = store.read_number(Tx::NONE, &"domid")?;
    kprintln!("lab6: I am {name}, at /local/domain/{id}");
    for child in store.directory(Tx::NONE, &format_args!("/local/domain/{id}"))? {
        kprintln!("lab6:   {child}");
    }
    // A watch fires once at once, then at every change.
    let watch = store.watch(&"data")?;
    kprintln!("lab6: fired: {}", store.fired(&watch)?);
    kprintln!("lab6: fired: {}", store.fired(&watch)?);
    // All of a transaction, or nothing of it.
    store.transaction(|store, tx| {
        store.write(tx, &"data/a", &1)?;
        store.write(tx, &"data/b", &2)
    })?;
    kprintln!("lab6: fired: {}", store.fired(&watch)?);
    let others = store.write(Tx::NONE, &"/local/domain/0/name", &"mine");
    kprintln!("lab6: writing in Dom0's home: {others:?}");
    Ok(())
}
