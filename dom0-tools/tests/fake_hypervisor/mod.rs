//! A hypervisor without guests behind it: domains that are a piece of memory
//! each, ports that are eventfds. The test plays the guest.
//!
//! It speaks the real protocol on a real socket, so what it serves are the
//! real programs.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use domus_privcmd::{
    protocol::{DomainInfo, Failure, PortState, Reply, Request, Response},
    wire::{Channel, Patience},
};
use guest_abi::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The frame at byte 0 of every domain's memory.
pub const BASE_MFN: u64 = 0x1000;
/// Pages of every domain.
pub const PAGES: u64 = 16;

const VIRQ_DOM_EXC: u32 = 3;

/// The hypervisor.
#[derive(Clone, Default)]
pub struct FakeHypervisor {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<u16, FakeDomain>,
    ports: BTreeMap<u32, FakePort>,
    last_port: u32,
    last_generation: u64,
    streams: Vec<UnixStream>,
}

struct FakeDomain {
    generation: u64,
    memory: Arc<File>,
    /// Notifications from Dom0, by the guest's port.
    notified: BTreeMap<u32, u64>,
}

struct FakePort {
    /// The guest's end, or `None` for a virtual interrupt.
    remote: Option<(u16, u32)>,
    virq: Option<u32>,
    event: EventFd,
}

impl FakeHypervisor {
    /// Serves on a socket until [`stop`](Self::stop).
    pub fn listen(path: &Path) -> Self {
        let fake = Self::default();
        let listener = UnixListener::bind(path).unwrap();
        let serving = fake.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let connection = serving.clone();
                let copy = stream.try_clone().unwrap();
                connection.state().streams.push(copy);
                thread::spawn(move || connection.serve(&stream));
            }
        });
        fake
    }

    /// Hangs up on everybody, as a hypervisor that has died.
    pub fn hang_up(&self) {
        for stream in self.state().streams.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Makes a domain; its memory.
    pub fn create(&self, dom: u16) -> Arc<File> {
        let fd = nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let memory = Arc::new(File::from(fd.unwrap()));
        memory.set_len(PAGES * 4096).unwrap();
        let mut state = self.state();
        state.last_generation += 1;
        let domain = FakeDomain {
            generation: state.last_generation,
            memory: Arc::clone(&memory),
            notified: BTreeMap::new(),
        };
        assert!(state.domains.insert(dom, domain).is_none());
        memory
    }

    /// Ends a domain.
    pub fn destroy(&self, dom: u16) {
        let mut state = self.state();
        state.domains.remove(&dom).unwrap();
        for port in state.ports.values() {
            if port.virq == Some(VIRQ_DOM_EXC) {
                port.event.write(1).unwrap();
            }
        }
    }

    /// The guest notifies Dom0 through its port.
    pub fn notify(&self, dom: u16, port: u32) {
        let state = self.state();
        let bound = state.ports.values().find(|p| p.remote == Some((dom, port)));
        if let Some(bound) = bound {
            bound.event.write(1).unwrap();
        }
    }

    /// How often Dom0 has notified a guest's port.
    pub fn notified(&self, dom: u16, port: u32) -> u64 {
        let state = self.state();
        let domain = state.domains.get(&dom);
        domain.map_or(0, |d| d.notified.get(&port).copied().unwrap_or(0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self, stream: &UnixStream) {
        let channel = Channel::over(stream, Patience::default());
        let mut held = Vec::new();
        while let Ok(Some((request, _))) = channel.receive::<Request>(0) {
            let is_one_way = request.is_one_way();
            let (response, fd) = match self.answer(request, &mut held) {
                Ok((reply, fd)) => (Ok(reply), fd),
                Err(failure) => (Err(failure), None),
            };
            if is_one_way {
                continue;
            }
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            if channel.send::<Response>(&response, &fds).is_err() {
                break;
            }
        }
        let mut state = self.state();
        for port in held {
            state.ports.remove(&port);
        }
    }

    fn answer(
        &self,
        request: Request,
        held: &mut Vec<u32>,
    ) -> Result<(Reply, Option<OwnedFd>), Failure> {
        let mut state = self.state();
        let plain = |reply| Ok((reply, None));
        match request {
            Request::Hello { .. } => plain(Reply::Done),
            Request::ListDomains { first, max } => {
                let max = usize::try_from(max).unwrap();
                let list = state.domains.range(first..).take(max);
                plain(Reply::DomainList(list.map(info).collect()))
            }
            Request::GetDomainInfo { dom } => {
                let domain = state.find(dom)?;
                plain(Reply::DomainInfo(info((&dom, domain))))
            }
            Request::MapMemory { dom } => {
                let fd = state.find(dom)?.memory.as_fd().try_clone_to_owned();
                let reply = Reply::Memory {
                    base_mfn: BASE_MFN,
                    pages: PAGES,
                };
                Ok((reply, Some(fd.unwrap())))
            }
            Request::EvtchnBindInterdomain {
                remote_dom,
                remote_port,
            } => {
                state.find(remote_dom)?;
                let remote = Some((remote_dom, remote_port));
                if state.ports.values().any(|port| port.remote == remote) {
                    return Err(Failure::new(Errno::EINVAL, "bound already"));
                }
                Ok(state.bind(remote, None, held))
            }
            Request::EvtchnBindVirq { virq } => Ok(state.bind(None, Some(virq), held)),
            Request::EvtchnNotify { port } | Request::EvtchnSignal { port, .. } => {
                let remote = state.ports.get(&port).and_then(|port| port.remote);
                let (dom, port) = remote.ok_or_else(|| no(port))?;
                let domain = state.domains.get_mut(&dom).ok_or_else(|| no(port))?;
                *domain.notified.entry(port).or_default() += 1;
                plain(Reply::Done)
            }
            Request::EvtchnClose { port } => {
                state.ports.remove(&port).ok_or_else(|| no(port))?;
                held.retain(|one| *one != port);
                plain(Reply::Done)
            }
            Request::ReadConsole { .. } => plain(Reply::Console {
                start: 0,
                bytes: Vec::new(),
            }),
            Request::EvtchnStatus { .. } => plain(Reply::EvtchnStatus {
                state: PortState::Closed,
                vcpu: 0,
            }),
            other => Err(Failure::new(Errno::ENOSYS, other.name())),
        }
    }
}

impl State {
    fn find(&self, dom: u16) -> Result<&FakeDomain, Failure> {
        let missing = || Failure::new(Errno::ESRCH, format!("no domain {dom}"));
        self.domains.get(&dom).ok_or_else(missing)
    }

    fn bind(
        &mut self,
        remote: Option<(u16, u32)>,
        virq: Option<u32>,
        held: &mut Vec<u32>,
    ) -> (Reply, Option<OwnedFd>) {
        self.last_port += 1;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).unwrap();
        let fd = event.as_fd().try_clone_to_owned().unwrap();
        let port = FakePort {
            remote,
            virq,
            event,
        };
        self.ports.insert(self.last_port, port);
        held.push(self.last_port);
        (Reply::Port(self.last_port), Some(fd))
    }
}

fn no(port: u32) -> Failure {
    Failure::new(Errno::EINVAL, format!("no port {port}"))
}

fn info((dom, domain): (&u16, &FakeDomain)) -> DomainInfo {
    DomainInfo {
        dom: *dom,
        uuid: Default::default(),
        running: false,
        blocked: true,
        paused: false,
        shutdown: None,
        dying: false,
        tot_pages: PAGES,
        max_pages: PAGES,
        cpu_time_ns: 0,
        nr_online_vcpus: 1,
        max_vcpu_id: 0,
        shared_info_frame: 1,
        generation: domain.generation,
    }
}

/// The guest's side of a console ring in page `page` of its memory.
pub struct GuestConsole {
    memory: Arc<File>,
    base: u64,
}

impl GuestConsole {
    pub fn new(memory: &Arc<File>, page: u64) -> Self {
        Self {
            memory: Arc::clone(memory),
            base: page * 4096,
        }
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory
            .read_exact_at(&mut bytes, self.base + at)
            .unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set(&self, at: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.memory.write_all_at(&bytes, self.base + at).unwrap();
    }

    /// Puts as much as fits into the output ring; how much that was.
    pub fn print(&self, text: &[u8]) -> usize {
        let (cons, mut prod) = (self.word(3080), self.word(3084));
        let room = 2048u32.saturating_sub(prod.wrapping_sub(cons));
        let text = &text[..text.len().min(usize::try_from(room).unwrap())];
        for byte in text {
            let at = self.base + 1024 + u64::from(prod % 2048);
            self.memory.write_all_at(&[*byte], at).unwrap();
            prod = prod.wrapping_add(1);
        }
        self.set(3084, prod);
        text.len()
    }

    /// Takes what was typed.
    pub fn typed(&self) -> Vec<u8> {
        let (mut cons, prod) = (self.word(3072), self.word(3076));
        let mut text = Vec::new();
        while cons != prod {
            let mut byte = [0];
            let at = self.base + u64::from(cons % 1024);
            self.memory.read_exact_at(&mut byte, at).unwrap();
            text.extend(byte);
            cons = cons.wrapping_add(1);
        }
        self.set(3072, cons);
        text
    }
}
