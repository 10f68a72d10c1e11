//! A web server that is its own operating system: one page, read from the
//! disk by blkfront, sent over TCP by smoltcp and netfront; `PUT` writes another.
//!
//! The disk holds 8 bytes `DOMUSWEB`, the page's length as a little-endian
//! `u64`, and from byte 512 on the page. The command line has the address:
//! `ip=10.0.0.2/24`. Each request reads the disk again, so that what was
//! written there in the meantime is what comes.
//!
//! ```text
//!   curl -> bridge -> tap -> netback -> rings -> netfront -> smoltcp -> Server
//!                                       disk <- blkback <- rings <- blkfront <-+
//! ```
//!
//! Disk and interface have two rings each, if their back ends have; disk requests
//! are of up to 128 KiB, and packets that come in of up to 64 KiB.
#![no_std]
#![no_main]

mod server;
mod wire;

use core::fmt::Display;

use guest_abi::{
    kernel::{
        Boot,
        blkfront::{self, Blkfront, Disk},
        grant::Grants,
        netfront::{self, Netfront, Offer},
        page::PagePool,
        sched,
        static_cell::StaticCell,
        time,
        xenbus::{Bus, Device},
        xenstore::{Tx, Watch, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};
use smoltcp::{
    iface::{Config, Interface, SocketSet, SocketStorage},
    socket::tcp,
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr},
};

use server::{PIECE, Server};
use wire::{FRAME, Wire};

guest_abi::pv_kernel!(main, name = "web");

/// Rings of each device.
const RINGS: usize = 2;
/// Requests of the disk that are under way in a ring, and the pages of each.
const REQUESTS: usize = 4;
const SEGMENTS: usize = 32;
/// Pages to receive into and to send from, of a queue.
const RX: usize = 32;
const TX: usize = 16;

type Net = Netfront<RX, TX, RINGS>;
type Blk = Blkfront<REQUESTS, SEGMENTS, RINGS>;

/// The grant table, and for each ring of the two devices its own pages.
const PAGES_OF_DISK: usize = RINGS * (1 + REQUESTS * (SEGMENTS + 1));
const PAGES_OF_NET: usize = RINGS * (2 + RX + TX);
static PAGES: PagePool<{ 1 + PAGES_OF_DISK + PAGES_OF_NET }> = PagePool::new();

/// Connections at once.
const CONNECTIONS: usize = 4;

/// What a connection needs; too large for the stack.
struct Buffers {
    receive: [u8; 64 * 1024],
    send: [u8; 64 * 1024],
    piece: [u8; PIECE],
}

static BUFFERS: StaticCell<[Buffers; CONNECTIONS]> = StaticCell::new(
    [const {
        Buffers {
            receive: [0; 64 * 1024],
            send: [0; 64 * 1024],
            piece: [0; PIECE],
        }
    }; CONNECTIONS],
);
static INCOMING: StaticCell<[u8; FRAME]> = StaticCell::new([0; FRAME]);

/// How long devices may take to come, in ns.
const PATIENCE: u64 = 30_000_000_000;

fn main(boot: &'static Boot) -> ! {
    boot.init()
        .expect("the hypervisor refuses the usual set-up");
    let store = or_crash(Xenstore::connect(boot));
    let grants = or_crash(Grants::set_up([PAGES.take().expect("taken once")]));
    let mut bus = Bus { store, grants };
    let shutdown = or_crash(bus.store.watch(&"control/shutdown"));
    let disk = open_disk(&mut bus);
    let net = open_net(&mut bus);
    let mac = EthernetAddress(net.mac());
    let mut wire = Wire::new(net, INCOMING.take().expect("taken once"));
    let config = Config::new(HardwareAddress::Ethernet(mac));
    let mut interface = Interface::new(config, &mut wire, now());
    let address = address(boot);
    interface.update_ip_addrs(|list| list.push(IpCidr::Ipv4(address)).expect("the first"));
    kprintln!("web: {mac} at {address}");
    serve(bus, &shutdown, disk, wire, interface)
}

fn open_disk(bus: &mut Bus) -> Blk {
    let id = or_crash(Device::find(&mut bus.store, "vbd", 0));
    let queues = [(); RINGS].map(|()| blkfront::QueuePages {
        ring: PAGES.take().expect("enough"),
        buffers: PAGES.take_grid().expect("enough"),
        lists: PAGES.take_many(),
    });
    let mut disk = or_crash(Blk::open_queues(bus, id, queues));
    let Disk { sectors, .. } = or_crash(disk.connect(bus, time::system_time() + PATIENCE));
    let (rings, reach) = (disk.rings(), disk.reach() / 1024);
    kprintln!("web: a disk of {sectors} sectors, rings {rings}, requests of {reach} KiB");
    disk
}

fn open_net(bus: &mut Bus) -> Net {
    let offer = Offer {
        blank_checksum: true,
        scatter_gather: true,
        gso: true,
    };
    let queues = [(); RINGS].map(|()| netfront::QueuePages {
        rings: PAGES.take_many().expect("enough"),
        rx: PAGES.take_many().expect("enough"),
        tx: PAGES.take_many().expect("enough"),
    });
    let mut net = or_crash(Net::open_queues(bus, 0, queues, offer));
    or_crash(net.connect(bus, time::system_time() + PATIENCE));
    kprintln!("web: an interface, queues {}", net.queues());
    net
}

/// `ip=` of the command line.
fn address(boot: &Boot) -> Ipv4Cidr {
    let mut words = boot.command_line().split_whitespace();
    let text = words.find_map(|word| word.strip_prefix("ip="));
    let address = text.and_then(|text| text.parse().ok());
    address.expect("ip=ADDRESS/BITS on the command line")
}

fn serve(
    mut bus: Bus,
    shutdown: &Watch,
    mut disk: Blk,
    mut wire: Wire,
    mut interface: Interface,
) -> ! {
    let buffers = BUFFERS.take().expect("taken once");
    let mut storage = [const { SocketStorage::EMPTY }; CONNECTIONS];
    let mut sockets = SocketSet::new(&mut storage[..]);
    let mut servers = buffers.each_mut().map(|buffers| {
        let receive = tcp::SocketBuffer::new(&mut buffers.receive[..]);
        let send = tcp::SocketBuffer::new(&mut buffers.send[..]);
        let socket = sockets.add(tcp::Socket::new(receive, send));
        Server::new(socket, &mut buffers.piece)
    });
    kprintln!("web: ready");
    loop {
        or_crash(wire.net.poll(&mut bus));
        interface.poll(now(), &mut wire, &mut sockets);
        for server in &mut servers {
            server.go_on(sockets.get_mut(server.socket), &mut bus, &mut disk);
        }
        interface.poll(now(), &mut wire, &mut sockets);
        or_crash(wire.net.poll(&mut bus));
        or_crash(disk.poll(&mut bus));
        if asked_to_end(&mut bus, shutdown) {
            let large = wire.large;
            kprintln!("web: goodbye; {large} packets were larger than a frame");
            sched::shutdown(SHUTDOWN_POWEROFF)
        }
        let delay = interface.poll_delay(now(), &sockets);
        let delay = delay.map_or(1_000_000, |delay| delay.total_micros());
        if delay > 0 {
            let until = time::system_time() + delay * 1000;
            let [one, two] = wire.net.ports();
            let [three, four] = disk.ports();
            or_crash(bus.wait(&[one, two, three, four], until));
        }
    }
}

/// Whether `xm shutdown` was said.
fn asked_to_end(bus: &mut Bus, watch: &Watch) -> bool {
    let path = &"control/shutdown";
    or_crash(bus.store.fired(watch))
        && bus
            .store
            .read(Tx::NONE, path)
            .is_ok_and(|word| word == b"poweroff" || word == b"halt")
}

fn now() -> Instant {
    let micros = i64::try_from(time::system_time() / 1000);
    Instant::from_micros(micros.unwrap_or(i64::MAX))
}

fn or_crash<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| sched::crash(&error))
}
