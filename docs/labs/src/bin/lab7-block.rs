//! Lab 7: a block request by hand on the ring.
#![no_std]
#![no_main]

use guest_abi::{
    blkif::{BLKIF_OP_READ, BLKIF_SLOT_SIZE, BlkifRequest, BlkifRequestSegment, BlkifResponse},
    kernel::{
        Boot,
        doorbell::{Doorbell, EventBell},
        front_ring::FrontRing,
        grant::Grants,
        page::PagePool,
        sched,
        xenbus::{Bus, BusError, Device},
        xenstore::{Tx, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
    xenbus::XenbusState,
};

guest_abi::pv_kernel!(main, name = "lab7");

static PAGES: PagePool<3> = PagePool::new();

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    match request(boot) {
        Ok(()) => sched::shutdown(SHUTDOWN_POWEROFF),
        Err(error) => sched::crash(&error),
    }
}

fn request(boot: &Boot) -> Result<(), BusError> {
    let [table, ring, data] = PAGES.take_many().expect("taken once");
    let grants = Grants::set_up([table])?;
    let mut bus = Bus {
        store: Xenstore::connect(boot)?,
        grants,
    };
    let id = Device::find(&mut bus.store, "vbd", 0)?;
    let device = Device::open(&mut bus.store, "vbd", id)?;
    let deadline = bus.store.now() + 20_000_000_000;

    // 1. The back end is ready; we say where the ring is and how to wake us.
    device.wait_for(&mut bus.store, &[XenbusState::InitWait], deadline)?;
    let mut ring = FrontRing::new(ring, BLKIF_SLOT_SIZE);
    let port = device.open_port()?;
    let gref = device.grant(&bus.grants, ring.page())?;
    device.tell(&mut bus.store, Tx::NONE, "ring-ref", &gref)?;
    device.tell(&mut bus.store, Tx::NONE, "event-channel", &port)?;
    device.tell(&mut bus.store, Tx::NONE, "protocol", &"x86_64-abi")?;
    device.set_state(&mut bus.store, XenbusState::Initialised)?;

    // 2. It maps the ring, and we are connected.
    device.wait_for(&mut bus.store, &[XenbusState::Connected], deadline)?;
    device.set_state(&mut bus.store, XenbusState::Connected)?;
    let sectors = device.told(&mut bus.store, "sectors", 0)?;
    kprintln!("lab7: a disk of {sectors} sectors");

    // 3. One request for sector 0, one segment of one sector.
    let mut request = BlkifRequest {
        operation: BLKIF_OP_READ,
        nr_segments: 1,
        id: 42,
        sector_number: 0,
        ..Default::default()
    };
    request.seg[0] = BlkifRequestSegment {
        gref: device.grant(&bus.grants, &data)?.0,
        first_sect: 0,
        last_sect: 0,
        ..Default::default()
    };
    ring.push(&request).expect("an empty ring");
    let bell = EventBell(port);
    if ring.publish() {
        bell.ring();
    }

    // 4. The response lies in the same ring; the data is in our page.
    let response = loop {
        match ring.pop::<BlkifResponse>() {
            Ok(Some(response)) => break response,
            Ok(None) if !ring.arm() => bell.wait(deadline),
            Ok(None) => {}
            Err(broken) => sched::crash(&broken),
        }
    };
    let mut text = [0; 16];
    data.read(0, &mut text).expect("in the page");
    let text = core::str::from_utf8(&text).unwrap_or("?");
    kprintln!(
        "lab7: response {} status {}: {text}",
        response.id,
        response.status
    );
    Ok(())
}
