//! The hypervisor's stand-in: answers on the privcmd socket, keeps the books.
//!
//! A test can make any request fail, let a domain shut down, and ask whether
//! anything is left.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use domus_privcmd::{
    protocol::{DomainInfo, Failure, HostInfo, PortState, Reply, Request, Response, VcpuInfo},
    wire::{Channel, Patience},
};
use guest_abi::errno::Errno;
use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    memfd::{MFdFlags, memfd_create},
};

const BASE_MFN: u64 = 0x1000;
const VIRQ_DOM_EXC: u32 = 3;
/// As the hypervisor's own: who reads one that is empty goes on.
const FLAGS: EfdFlags = EfdFlags::EFD_CLOEXEC.union(EfdFlags::EFD_NONBLOCK);
/// 64 MiB, so that a test can ask for too much.
const HOST_PAGES: u64 = 16384;

struct Domain {
    info: DomainInfo,
    memory: File,
    max_vcpus: u32,
    ports: u32,
    affinity: HashMap<u32, Vec<u32>>,
    context_set: bool,
    pauses: u32,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<u16, Domain>,
    last_dom: u16,
    generation: u64,
    /// By connection.
    changed: HashMap<u64, Vec<EventFd>>,
    others: HashMap<u64, Vec<EventFd>>,
    fail: Option<(&'static str, u16)>,
    requests: Vec<&'static str>,
    connections: Vec<UnixStream>,
}

/// See the module's text.
pub struct FakeHypervisor {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
}

impl FakeHypervisor {
    pub fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("bind");
        let state = Arc::new(Mutex::new(State::default()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&state), Arc::clone(&stopping));
        thread::spawn(move || {
            for (id, stream) in (0..).zip(listener.incoming()) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.expect("accept");
                let copy = stream.try_clone().expect("clone");
                shared.lock().expect("lock").connections.push(copy);
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(id, stream, &shared));
            }
        });
        Self {
            path: path.into(),
            state,
            stopping,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    /// From now on requests of this name fail.
    pub fn fail(&self, request: &'static str, errno: Errno) {
        self.state().fail = Some((request, errno.0));
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.state().fail = None;
    }

    /// The domids that exist.
    pub fn domains(&self) -> Vec<u16> {
        self.state().domains.keys().copied().collect()
    }

    /// What is known of a domain.
    pub fn info(&self, dom: u16) -> DomainInfo {
        self.state().domains[&dom].info.clone()
    }

    /// Host CPUs that a vCPU was tied to.
    pub fn affinity(&self, dom: u16, vcpu: u32) -> Vec<u32> {
        let state = self.state();
        state.domains[&dom]
            .affinity
            .get(&vcpu)
            .cloned()
            .unwrap_or_default()
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<&'static str> {
        self.state().requests.clone()
    }

    /// The guest shuts itself down.
    pub fn shut_down(&self, dom: u16, reason: u32) {
        let mut state = self.state();
        let domain = state.domains.get_mut(&dom).expect("domain");
        domain.info.shutdown = Some(reason);
        domain.info.running = false;
        tell(&state);
    }

    /// All connections end and no new one is taken: as after `kill -9`.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_file(&self.path);
        for stream in self.state().connections.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Raises VIRQ_DOM_EXC.
fn tell(state: &State) {
    for event in state.changed.values().flatten() {
        event.write(1).expect("eventfd");
    }
}

fn serve(id: u64, stream: UnixStream, state: &Mutex<State>) {
    let channel = Channel::over(stream, Patience::default());
    while let Ok(Some((request, _))) = channel.receive::<Request>(4) {
        if request.is_one_way() {
            state.lock().expect("lock").requests.push(request.name());
            continue;
        }
        let (response, fd) = {
            let mut state = state.lock().expect("lock");
            state.requests.push(request.name());
            match state.fail {
                Some((name, errno)) if name == request.name() => {
                    (Err(Failure::new(Errno(errno), "made to fail")), None)
                }
                _ => split(answer(id, &mut state, request)),
            }
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        if channel.send(&response, &fds).is_err() {
            break;
        }
    }
    let mut state = state.lock().expect("lock");
    state.changed.remove(&id);
    state.others.remove(&id);
}

type Answer = Result<(Reply, Option<OwnedFd>), Failure>;

fn split(answer: Answer) -> (Response, Option<OwnedFd>) {
    match answer {
        Ok((reply, fd)) => (Ok(reply), fd),
        Err(failure) => (Err(failure), None),
    }
}

fn answer(id: u64, state: &mut State, request: Request) -> Answer {
    let done = Ok((Reply::Done, None));
    let plain = |reply| Ok((reply, None));
    match request {
        Request::Hello { .. } => done,
        Request::HostInfo => plain(Reply::HostInfo(host_info(state))),
        Request::ReadConsole { from, .. } => {
            let all = b"(XEN) hello\n";
            let start = usize::try_from(from).expect("small").min(all.len());
            plain(Reply::Console {
                start: start as u64,
                bytes: all[start..].to_vec(),
            })
        }
        Request::CreateDomain(wish) => {
            state.last_dom += 1;
            state.generation += 1;
            let dom = state.last_dom;
            let domain = new_domain(dom, state.generation, &wish);
            state.domains.insert(dom, domain);
            plain(Reply::Domain(dom))
        }
        Request::DestroyDomain { dom } => {
            state.domains.remove(&dom).ok_or_else(|| no_domain(dom))?;
            tell(state);
            done
        }
        Request::ListDomains { first, max } => {
            let some = state.domains.range(first..).map(|(_, d)| d.info.clone());
            let max = usize::try_from(max).expect("small");
            plain(Reply::DomainList(some.take(max).collect()))
        }
        Request::EvtchnBindVirq { virq } => {
            let event = EventFd::from_flags(FLAGS).expect("eventfd");
            let fd = event.as_fd().try_clone_to_owned().expect("dup");
            let list = if virq == VIRQ_DOM_EXC {
                &mut state.changed
            } else {
                &mut state.others
            };
            list.entry(id).or_default().push(event);
            Ok((Reply::Port(1), Some(fd)))
        }
        Request::EvtchnBindInterdomain { .. } => {
            let event = EventFd::from_flags(FLAGS).expect("eventfd");
            let fd = event.as_fd().try_clone_to_owned().expect("dup");
            state.others.entry(id).or_default().push(event);
            Ok((Reply::Port(2), Some(fd)))
        }
        Request::EvtchnNotify { .. } | Request::EvtchnClose { .. } => done,
        of_domain => about_domain(state, of_domain),
    }
}

fn about_domain(state: &mut State, request: Request) -> Answer {
    let done = Ok((Reply::Done, None));
    let plain = |reply| Ok((reply, None));
    let dom = match &request {
        Request::PauseDomain { dom }
        | Request::UnpauseDomain { dom }
        | Request::ShutdownDomain { dom, .. }
        | Request::GetDomainInfo { dom }
        | Request::SetMaxMem { dom, .. }
        | Request::GetVcpuInfo { dom, .. }
        | Request::SetVcpuAffinity { dom, .. }
        | Request::SetVcpuContext { dom, .. }
        | Request::GetVcpuContext { dom, .. }
        | Request::PopulatePhysmap { dom, .. }
        | Request::MapMemory { dom }
        | Request::PinTable { dom, .. }
        | Request::EvtchnAllocUnbound { dom, .. }
        | Request::EvtchnStatus { dom, .. } => *dom,
        other => return Err(Failure::new(Errno::ENOSYS, format!("{other:?}"))),
    };
    let domain = state.domains.get_mut(&dom).ok_or_else(|| no_domain(dom))?;
    match request {
        Request::PauseDomain { .. } => {
            domain.pauses += 1;
            domain.info.paused = true;
            done
        }
        Request::UnpauseDomain { .. } => {
            assert!(domain.context_set, "unpaused without registers");
            domain.pauses = domain.pauses.checked_sub(1).expect("paused");
            domain.info.paused = domain.pauses > 0;
            domain.info.blocked = !domain.info.paused;
            done
        }
        Request::GetDomainInfo { .. } => plain(Reply::DomainInfo(domain.info.clone())),
        Request::GetVcpuInfo { vcpu, .. } => plain(Reply::VcpuInfo(VcpuInfo {
            online: vcpu == 0,
            blocked: true,
            running: false,
            cpu_time_ns: 1_500_000_000,
            cpu: 1,
            affinity: domain.affinity.get(&vcpu).cloned().unwrap_or_default(),
        })),
        Request::SetVcpuAffinity { vcpu, cpus, .. } => {
            domain.affinity.insert(vcpu, cpus);
            done
        }
        Request::SetVcpuContext { .. } => {
            domain.context_set = true;
            done
        }
        Request::GetVcpuContext { .. } => {
            let bytes = std::mem::size_of::<guest_abi::arch_x86::VcpuGuestContext>();
            plain(Reply::VcpuContext(vec![0; bytes]))
        }
        Request::PopulatePhysmap { count, .. } => {
            domain.info.tot_pages = count;
            domain.memory.set_len(count * 4096).expect("memory");
            plain(Reply::Frames(vec![(BASE_MFN, count)]))
        }
        Request::MapMemory { .. } => {
            let fd = domain.memory.try_clone().expect("dup");
            let reply = Reply::Memory {
                base_mfn: BASE_MFN,
                pages: domain.info.tot_pages,
            };
            Ok((reply, Some(fd.into())))
        }
        Request::PinTable { .. } => done,
        Request::EvtchnAllocUnbound { .. } => {
            domain.ports += 1;
            plain(Reply::Port(domain.ports))
        }
        Request::EvtchnStatus { .. } => plain(Reply::EvtchnStatus {
            state: PortState::Unbound { remote: 0 },
            vcpu: 0,
        }),
        other => Err(Failure::new(Errno::ENOSYS, format!("{other:?}"))),
    }
}

fn no_domain(dom: u16) -> Failure {
    Failure::new(Errno::ESRCH, format!("there is no domain {dom}"))
}

fn new_domain(dom: u16, generation: u64, wish: &domus_privcmd::protocol::CreateDomain) -> Domain {
    let memory = memfd_create("domain", MFdFlags::MFD_CLOEXEC).expect("memfd");
    Domain {
        info: DomainInfo {
            dom,
            uuid: wish.uuid,
            running: false,
            blocked: false,
            paused: true,
            shutdown: None,
            dying: false,
            tot_pages: 0,
            max_pages: wish.max_pages,
            cpu_time_ns: 2_300_000_000,
            nr_online_vcpus: 1,
            max_vcpu_id: wish.max_vcpus - 1,
            shared_info_frame: 7,
            generation,
        },
        memory: memory.into(),
        max_vcpus: wish.max_vcpus,
        ports: 0,
        affinity: HashMap::new(),
        context_set: false,
        pauses: 1,
    }
}

fn host_info(state: &State) -> HostInfo {
    let used: u64 = state.domains.values().map(|d| d.info.tot_pages).sum();
    HostInfo {
        xen_version: (4, 17),
        extra_version: ".0".into(),
        capabilities: "xen-3.0-x86_64".into(),
        changeset: "none".into(),
        command_line: String::new(),
        compile_info: ["rustc", "me", "here", "today"].map(String::from),
        virt_start: 0xffff_8000_0000_0000,
        nr_cpus: 4,
        cpu_khz: 2_000_000,
        total_pages: HOST_PAGES,
        free_pages: HOST_PAGES - used,
        engine: "none".into(),
        pid: std::process::id(),
        uptime_ns: 1,
    }
}
