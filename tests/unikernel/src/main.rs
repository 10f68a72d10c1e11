//! A web server that is its own operating system: one page, read from the
//! disk by blkfront, sent over TCP by smoltcp and netfront.
//!
//! The disk holds 8 bytes `DOMUSWEB`, the page's length as a little-endian
//! `u64`, and from byte 512 on the page. The command line has the address:
//! `ip=10.0.0.2/24`. Each request reads the disk again, so that what was
//! written there in the meantime is what comes.
//!
//! ```text
//!   curl -> bridge -> tap -> netback -> ring -> netfront -> smoltcp -> Server
//!                                      disk <- blkback <- ring <- blkfront <-+
//! ```
#![no_std]
#![no_main]

use core::fmt::{Display, Write};

use guest_abi::{
    kernel::{
        Boot,
        blkfront::{Blkfront, Disk, SECTOR},
        grant::Grants,
        netfront::{MAX_FRAME, Netfront, Offer, Transmit},
        page::PagePool,
        sched,
        static_cell::StaticCell,
        text::Text,
        time,
        xenbus::Bus,
        xenstore::{Tx, Watch, Xenstore},
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage},
    phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr},
};

guest_abi::pv_kernel!(main, name = "web");

type Net = Netfront<64, 32>;
type Blk = Blkfront<4, 4>;

/// Table, rings, and the pages of the two types.
static PAGES: PagePool<{ 1 + 1 + 16 + 2 + 64 + 32 }> = PagePool::new();

/// Connections at once.
const CONNECTIONS: usize = 4;
/// What a connection receives into and sends from.
type Buffers = ([u8; 2048], [u8; 16 * 1024]);
/// Too large for the stack.
static BUFFERS: StaticCell<[Buffers; CONNECTIONS]> =
    StaticCell::new([([0; 2048], [0; 16 * 1024]); CONNECTIONS]);

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
    let mut wire = Wire {
        net,
        frame: [0; MAX_FRAME],
    };
    let config = Config::new(HardwareAddress::Ethernet(mac));
    let mut interface = Interface::new(config, &mut wire, now());
    let address = address(boot);
    interface.update_ip_addrs(|list| list.push(IpCidr::Ipv4(address)).expect("the first"));
    kprintln!("web: {mac} at {address}");
    serve(bus, &shutdown, disk, wire, interface)
}

fn open_disk(bus: &mut Bus) -> Blk {
    let pages = (PAGES.take(), PAGES.take_grid());
    let (ring, buffers) = (pages.0.expect("enough"), pages.1.expect("enough"));
    let mut disk = or_crash(Blk::open(bus, 0, ring, buffers));
    let Disk { sectors, .. } = or_crash(disk.connect(bus, time::system_time() + PATIENCE));
    kprintln!("web: a disk of {sectors} sectors");
    disk
}

fn open_net(bus: &mut Bus) -> Net {
    let rings = PAGES.take_many().expect("enough");
    let (rx, tx) = (PAGES.take_many(), PAGES.take_many());
    let offer = Offer {
        blank_checksum: true,
        ..Offer::default()
    };
    let (rx, tx) = (rx.expect("enough"), tx.expect("enough"));
    let mut net = or_crash(Net::open(bus, 0, rings, rx, tx, offer));
    or_crash(net.connect(bus, time::system_time() + PATIENCE));
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
    let mut servers = buffers.each_mut().map(|(rx, tx)| {
        let (rx, tx) = (&mut rx[..], &mut tx[..]);
        let (rx, tx) = (tcp::SocketBuffer::new(rx), tcp::SocketBuffer::new(tx));
        Server::new(sockets.add(tcp::Socket::new(rx, tx)))
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
            kprintln!("web: goodbye");
            sched::shutdown(SHUTDOWN_POWEROFF)
        }
        let delay = interface.poll_delay(now(), &sockets);
        let delay = delay.map_or(1_000_000, |delay| delay.total_micros());
        if delay > 0 {
            let until = time::system_time() + delay * 1000;
            or_crash(bus.wait(&[wire.net.port(), disk.port()], until));
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

/// One connection at a time on one socket.
struct Server {
    socket: SocketHandle,
    /// The last bytes of the request: where its end is looked for.
    last: [u8; 4],
    answer: Option<Answer>,
}

/// What is being sent.
struct Answer {
    head: Text<160>,
    head_sent: usize,
    length: u64,
    sent: u64,
}

impl Server {
    fn new(socket: SocketHandle) -> Self {
        Self {
            socket,
            last: [0; 4],
            answer: None,
        }
    }

    fn go_on(&mut self, socket: &mut tcp::Socket<'_>, bus: &mut Bus, disk: &mut Blk) {
        if !socket.is_open() {
            (self.last, self.answer) = ([0; 4], None);
            socket.listen(80).expect("80 is a port");
        }
        while self.answer.is_none() && socket.can_recv() {
            let mut byte = [0];
            if socket.recv_slice(&mut byte) != Ok(1) {
                break;
            }
            self.last = [self.last[1], self.last[2], self.last[3], byte[0]];
            if &self.last == b"\r\n\r\n" {
                self.answer = Some(Answer::new(bus, disk));
            }
        }
        if let Some(answer) = &mut self.answer {
            if answer.go_on(socket, bus, disk) {
                socket.close();
            }
        } else if !socket.may_recv() && socket.may_send() {
            socket.close();
        }
    }
}

impl Answer {
    /// Reads the page's length from the disk.
    fn new(bus: &mut Bus, disk: &mut Blk) -> Self {
        let mut sector = [0; SECTOR];
        let read = disk.read(bus, 0, &mut sector);
        let (status, length) = match (read, sector.split_first_chunk()) {
            (Ok(()), Some((b"DOMUSWEB", rest))) => {
                let length = rest.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
                ("200 OK", length.unwrap_or(0))
            }
            (Ok(()), _) => ("404 Not Found", 0),
            (Err(error), _) => {
                kprintln!("web: {error}");
                ("500 Internal Server Error", 0)
            }
        };
        let mut head = Text::new();
        let _ = write!(
            head,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        Self {
            head,
            head_sent: 0,
            length,
            sent: 0,
        }
    }

    /// Sends what there is room for. `true`: all is sent.
    fn go_on(&mut self, socket: &mut tcp::Socket<'_>, bus: &mut Bus, disk: &mut Blk) -> bool {
        if !socket.may_send() {
            return true;
        }
        let rest = &self.head.as_bytes()[self.head_sent..];
        self.head_sent += socket.send_slice(rest).unwrap_or(0);
        let mut piece = [0; 8 * SECTOR];
        while self.head_sent == self.head.len() && self.sent < self.length {
            let room = socket.send_capacity() - socket.send_queue();
            // Whole pieces only, so that each sector is read once.
            let here = (self.length - self.sent).min(piece.len() as u64);
            if (room as u64) < here {
                return false;
            }
            let first = 1 + self.sent / SECTOR as u64;
            if let Err(error) = disk.read(bus, first, &mut piece) {
                kprintln!("web: {error}");
                socket.abort();
                return true;
            }
            let whole = usize::try_from(here).unwrap_or(0);
            let sent = socket.send_slice(&piece[..whole]).unwrap_or(0);
            self.sent += sent as u64;
        }
        self.head_sent == self.head.len()
    }
}

/// The interface, as smoltcp wants it.
struct Wire {
    net: Net,
    frame: [u8; MAX_FRAME],
}

struct Incoming<'a>(&'a [u8]);
struct Outgoing<'a>(&'a mut Net);

impl Device for Wire {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        // A frame may be answered at once: only with room for that.
        if !self.net.can_send() {
            return None;
        }
        let received = or_crash(self.net.receive(&mut self.frame))?;
        let frame = &self.frame[..received.length];
        Some((Incoming(frame), Outgoing(&mut self.net)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.net.can_send().then_some(Outgoing(&mut self.net))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Frames of the host's own come with a blank checksum.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.net.mtu()).min(1500) + 14;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = [0; MAX_FRAME];
        let result = fill(&mut frame[..length]);
        // A frame that can't go now is a frame lost: TCP sends it again.
        let _ = self.0.send(&frame[..length], Transmit::default());
        result
    }
}

fn now() -> Instant {
    let micros = i64::try_from(time::system_time() / 1000);
    Instant::from_micros(micros.unwrap_or(i64::MAX))
}

fn or_crash<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| sched::crash(&error))
}
