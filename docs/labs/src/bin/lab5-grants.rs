//! Lab 5: a shared page by grant. `peer=N` grants to domain N, `of=N` uses,
//! and is to be started first.
#![no_std]
#![no_main]

use guest_abi::{
    addr::{DomId, GrantRef, GuestVirt},
    kernel::{
        Boot, foreign,
        grant::{Access, Grants},
        guard,
        page::PagePool,
        sched,
        text::Text,
        time,
        xenstore::{Tx, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab5");

static PAGES: PagePool<2> = PagePool::new();

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    let mut store = Xenstore::connect(boot).expect("a store");
    let number = |key| {
        let mut words = boot.command_line().split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    match (number("peer="), number("of=")) {
        (Some(peer), _) => give(&mut store, DomId(peer)),
        (_, Some(of)) => take(&mut store, DomId(of)),
        _ => kprintln!("lab5: who am I? peer=N or of=N"),
    }
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn give(store: &mut Xenstore, peer: DomId) {
    let [table, page] = PAGES.take_many().expect("taken once");
    let grants = Grants::set_up([table]).expect("a grant table");
    page.write(0, b"written by the granter").expect("it fits");
    let gref = grants
        .give(peer, page.mfn(), Access::ReadOnly)
        .expect("room");
    let own: u16 = store.read_number(Tx::NONE, &"domid").expect("a number");
    let words = [
        Text::<8>::format(&format_args!("n{own}")),
        Text::format(&format_args!("r{peer}")),
    ];
    let words = words.map(Option::unwrap_or_default);
    store.write(Tx::NONE, &"data/lab", &gref).expect("our home");
    store
        .set_permissions(Tx::NONE, &"data/lab", &[&words[0], &words[1]])
        .expect("our node");
    while !grants.in_use(gref) {
        pause();
    }
    kprintln!(
        "lab5: in use; taking it back now: {:?}",
        grants.take_back(gref)
    );
    while grants.take_back(gref).is_err() {
        pause();
    }
    kprintln!("lab5: taken back");
}

fn take(store: &mut Xenstore, of: DomId) {
    let path = format_args!("/local/domain/{of}/data/lab");
    let gref = loop {
        match store.read_number(Tx::NONE, &path) {
            Ok(gref) => break GrantRef(gref),
            Err(_) => pause(),
        }
    };
    let page = PAGES.take().expect("taken once");
    let at = page.address();
    // SAFETY: the page's own memory is given up for the mapping.
    let answer = unsafe { foreign::map(of, gref, at, false) }.map(drop);
    kprintln!("lab5: mapping it writable: {answer:?}");
    // SAFETY: as above.
    let mapping = unsafe { foreign::map(of, gref, at, true) }.expect("a grant to read");
    let mut text = [0; 22];
    page.read(0, &mut text).expect("it fits");
    kprintln!("lab5: read: {}", core::str::from_utf8(&text).unwrap_or("?"));
    // SAFETY: it faults.
    let fault = unsafe { guard::write(GuestVirt(at.0), 1) };
    kprintln!("lab5: writing to it faults: {}", fault.is_err());
    for _ in 0..10 {
        pause();
    }
    foreign::unmap(&mapping).expect("it is mapped");
}

fn pause() {
    sched::poll(&[], time::system_time() + 50_000_000).expect("a time");
}
