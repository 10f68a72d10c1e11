//! Dom0's operations: `domctl`, `sysctl`, and domid 0's event channels, as they
//! come in over the privcmd socket.
//!
//! Law: an operation on a domain that is being destroyed fails with `ESRCH`
//! like one on a domain that does not exist, except those that look.

mod copy_buffer;
mod debug;
mod dom0_grants;
mod restrict;

use crate::{
    domain::{Domain, DomainError},
    engine::{EngineError, EngineKind, kvm::MFN_SHARED_INFO},
    events::{EventError, PortNotifier, PortState as ChannelState, When},
    hypercall::install_context,
    hypervisor::{CreateError, Hypervisor},
    memory::BASE_MFN,
    paging::Level,
    privcmd::{Answer, Dom0Calls, Session},
    version,
};
use domus_privcmd::protocol::{
    CreateDomain, DomainInfo, Engine, Failure, HostInfo, PortState, Reply, Request, VcpuInfo,
};
use guest_abi::{
    addr::{DomId, Mfn, Port, VcpuId},
    arch_x86::VcpuGuestContext,
    arch_x86_64::HYPERVISOR_VIRT_START,
    errno::Errno,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use zerocopy::{FromZeros, IntoBytes};

/// Console bytes in one reply.
const CONSOLE_CHUNK: usize = 64 << 10;
/// Machine-to-phys entries in one reply.
const PFNS_CHUNK: u32 = 1 << 16;
/// Domains in one reply.
const LIST_CHUNK: usize = 1024;
/// How long a vCPU's thread may take to leave the guest.
const CONTEXT_PATIENCE: Duration = Duration::from_secs(2);

fn failure(errno: Errno, why: impl Into<String>) -> Failure {
    Failure {
        errno: errno.0,
        why: why.into(),
    }
}

fn event_failure(error: &EventError) -> Failure {
    failure(error.errno(), error.to_string())
}

type Result<T> = std::result::Result<T, Failure>;

impl Dom0Calls for Hypervisor {
    fn handle(&self, session: &mut Session, request: Request) -> Result<Answer> {
        self.check_restriction(session, &request)?;
        match request {
            Request::Hello { .. } => Err(failure(Errno::EINVAL, "a second Hello")),
            Request::HostInfo => Ok(Reply::HostInfo(self.host_info()).into()),
            Request::ReadConsole { from, clear } => {
                let (start, bytes) = self.host.console.read(from, CONSOLE_CHUNK, clear);
                Ok(Reply::Console { start, bytes }.into())
            }
            Request::CreateDomain(spec) => self.create_domain(&spec),
            Request::DestroyDomain { dom } => {
                self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
                self.destroy(DomId(dom));
                Ok(Answer::DONE)
            }
            Request::ListDomains { first, max } => {
                let max = usize::try_from(max).unwrap_or(LIST_CHUNK).min(LIST_CHUNK);
                let all = self
                    .domains()
                    .into_iter()
                    .filter(|domain| domain.id.0 >= first)
                    .take(max);
                Ok(Reply::DomainList(all.map(|domain| domain_info(&domain)).collect()).into())
            }
            Request::GetDomainInfo { dom } => {
                let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
                Ok(Reply::DomainInfo(domain_info(&domain)).into())
            }
            Request::EvtchnBindInterdomain {
                remote_dom,
                remote_port,
            } => self.bind_interdomain(session, DomId(remote_dom), Port(remote_port)),
            Request::EvtchnBindVirq { virq } => {
                let bound = self.host.dom0_events().bind_virq(virq, VcpuId(0));
                self.attach(session, bound.map_err(|error| event_failure(&error))?)
            }
            Request::EvtchnNotify { port } => {
                held(session, port)?;
                let sent = self.host.dom0_events().send(Port(port));
                sent.map(|()| Answer::DONE)
                    .map_err(|error| event_failure(&error))
            }
            Request::EvtchnSignal { port, soon } => {
                held(session, port)?;
                let when = if soon { When::Soon } else { When::Now };
                let sent = self.host.dom0_events().send_when(Port(port), when);
                sent.map(|()| Answer::DONE)
                    .map_err(|error| event_failure(&error))
            }
            Request::EvtchnClose { port } => {
                held(session, port)?;
                session.forget_port(Port(port));
                let closed = self.host.dom0_events().close(Port(port));
                closed
                    .map(|()| Answer::DONE)
                    .map_err(|error| event_failure(&error))
            }
            Request::Debug(call) => self.debug(session, call),
            Request::TraceStart { dom, kinds } => self.trace_start(session, dom, kinds),
            Request::TraceRead { patience_ms } => trace_read(session, patience_ms),
            Request::EvtchnStatus { dom, port } => self.port_status(DomId(dom), Port(port)),
            Request::GrantMap {
                dom,
                refs,
                write,
                has_file,
            } => self.map_grants(session, dom, &refs, write, has_file),
            Request::GrantUnmap { handles } => dom0_grants::unmap(session, &handles),
            Request::GrantCopy { dom, copies } => self.copy_grants(dom, &copies),
            Request::CopyBuffer { pages } => copy_buffer::make(session, pages),
            Request::CloseCopyBuffer { buffer } => copy_buffer::close(session, buffer),
            Request::GrantCopyBuffer {
                dom,
                buffer,
                at,
                write,
                parts,
            } => self.copy_grants_by_buffer(session, dom, (buffer, at, write), &parts),
            Request::Restrict { dom } => self.restrict(session, dom),
            Request::GetDomainCounters { dom } => {
                let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
                Ok(Reply::Counters(domain.counts.list()).into())
            }
            other => self.handle_domain(other),
        }
    }

    fn release(&self, session: Session) {
        debug::release(&session);
        session.maps().release_all();
        if let Some(tracer) = session.trace() {
            tracer.stop(session.id());
        }
        for port in session.ports() {
            let _ = self.host.dom0_events().close(port);
        }
    }
}

fn held(session: &Session, port: u32) -> Result<()> {
    if session.holds_port(Port(port)) {
        return Ok(());
    }
    Err(failure(
        Errno::EINVAL,
        format!("port {port} was not bound by this connection"),
    ))
}

fn no_domain(dom: u16) -> Failure {
    failure(Errno::ESRCH, format!("domain {dom} does not exist"))
}

/// The longest wait for records.
const TRACE_PATIENCE_MS: u32 = 1000;

fn trace_read(session: &Session, patience_ms: u32) -> Result<Answer> {
    let tracer = session
        .trace()
        .ok_or_else(|| failure(Errno::EINVAL, "this connection traces no domain"))?;
    let patience = Duration::from_millis(patience_ms.min(TRACE_PATIENCE_MS).into());
    let read = tracer.read(session.id(), patience);
    read.map(|batch| Reply::Trace(batch).into())
        .map_err(|errno| failure(errno, "the trace has ended"))
}

impl Hypervisor {
    fn trace_start(&self, session: &mut Session, dom: u16, kinds: u32) -> Result<Answer> {
        let domain = self.living(dom)?;
        let other = session
            .trace()
            .is_some_and(|tracer| !Arc::ptr_eq(tracer, &domain.tracer));
        if other {
            let why = "this connection traces another domain: use one connection for each";
            return Err(failure(Errno::EBUSY, why));
        }
        let started = domain.tracer.start(session.id(), kinds);
        started.map_err(|errno| match errno {
            Errno::EBUSY => failure(errno, format!("somebody else traces domain {dom}")),
            _ => failure(errno, format!("{kinds:#x} are not kinds of records")),
        })?;
        session.hold_trace(Arc::clone(&domain.tracer));
        Ok(Answer::DONE)
    }

    /// Operations on one living domain.
    fn handle_domain(&self, request: Request) -> Result<Answer> {
        match request {
            Request::PauseDomain { dom } => {
                self.living(dom)?.pause();
                Ok(Answer::DONE)
            }
            Request::UnpauseDomain { dom } => {
                let unpaused = self.living(dom)?.unpause();
                unpaused
                    .map(|()| Answer::DONE)
                    .map_err(|errno| failure(errno, format!("domain {dom} is not paused")))
            }
            Request::ShutdownDomain { dom, reason } => {
                self.living(dom)?.shut_down(reason);
                Ok(Answer::DONE)
            }
            Request::SetMaxMem { dom, pages } => self.set_max_mem(dom, pages),
            Request::GetVcpuInfo { dom, vcpu } => self.vcpu_info(dom, vcpu),
            Request::SetVcpuAffinity { dom, vcpu, cpus } => {
                let domain = self.living(dom)?;
                let index = vcpu_index(&domain, vcpu)?;
                domain.vcpus[index].set_affinity(cpus);
                Ok(Answer::DONE)
            }
            Request::SetVcpuContext { dom, vcpu, context } => self.set_context(dom, vcpu, &context),
            Request::GetVcpuContext { dom, vcpu } => self.vcpu_context(dom, vcpu),
            Request::Engine { dom, change } => self.engine(dom, change),
            Request::PopulatePhysmap {
                dom,
                first_pfn,
                count,
            } => self.populate(dom, first_pfn, count),
            Request::MapMemory { dom } => {
                let domain = self.living(dom)?;
                let fd = domain.space.memory.ram_fd().try_clone_to_owned();
                let fd =
                    fd.map_err(|error| failure(Errno::ENFILE, format!("no descriptor: {error}")))?;
                let pages = domain.space.memory.max_pages();
                Ok(Answer::with_fd(
                    Reply::Memory {
                        base_mfn: BASE_MFN.0,
                        pages,
                    },
                    fd,
                ))
            }
            Request::GetPfns {
                dom,
                first_mfn,
                count,
            } => {
                let domain = self.living(dom)?;
                let count = u64::from(count.min(PFNS_CHUNK));
                let pfn = |offset| {
                    let mfn = first_mfn.checked_add(offset).map(Mfn);
                    mfn.and_then(|mfn| domain.space.memory.m2p(mfn))
                        .unwrap_or(u64::MAX)
                };
                Ok(Reply::Words((0..count).map(pfn).collect()).into())
            }
            Request::GetSharedInfo { dom } => {
                let domain = self.living(dom)?;
                let mut page = vec![0; 4096];
                let at = MFN_SHARED_INFO.addr();
                let read = at.and_then(|at| domain.space.memory.read(at, &mut page));
                read.map(|()| Reply::Bytes(page).into())
                    .ok_or_else(|| failure(Errno::EFAULT, "the shared info page can't be read"))
            }
            Request::PinTable { dom, level, mfn } => {
                let domain = self.living(dom)?;
                let level = Level::from_number(level).ok_or_else(|| {
                    failure(
                        Errno::EINVAL,
                        format!("there is no page-table level {level}"),
                    )
                })?;
                let pinned = domain
                    .space
                    .foreign_try(|mm, tables| mm.pin_table(tables, level, Mfn(mfn)));
                pinned.map(|()| Answer::DONE).map_err(|errno| {
                    failure(errno, format!("frame {mfn:#x} of domain {dom} is not a valid level-{level:?} page table"))
                })
            }
            Request::EvtchnAllocUnbound { dom, remote } => {
                let port =
                    self.host
                        .dom0_events()
                        .alloc_unbound(&*self.host, DomId(dom), DomId(remote));
                port.map(|port| Reply::Port(port.0).into())
                    .map_err(|error| event_failure(&error))
            }
            _ => Err(failure(
                Errno::ENOSYS,
                "this hypervisor does not know the request",
            )),
        }
    }

    fn living(&self, dom: u16) -> Result<Arc<Domain>> {
        self.domain(DomId(dom))
            .filter(|domain| !domain.is_dying())
            .ok_or_else(|| no_domain(dom))
    }

    fn create_domain(&self, spec: &CreateDomain) -> Result<Answer> {
        let created = self.create(
            spec.dom.map(DomId),
            spec.uuid,
            spec.max_vcpus,
            spec.max_pages,
            spec.grants,
        );
        let domain = created.map_err(|error| {
            let errno = match &error {
                CreateError::Exists(_) => Errno::EEXIST,
                CreateError::NoFreeId | CreateError::Domain(DomainError::Memory(_)) => {
                    Errno::ENOMEM
                }
                CreateError::BadId(_)
                | CreateError::BadVcpus(_)
                | CreateError::BadGrantLimits(_) => Errno::EINVAL,
                CreateError::Domain(_) => Errno::EIO,
            };
            failure(errno, error.to_string())
        })?;
        Ok(Reply::Domain(domain.id.0).into())
    }

    fn set_max_mem(&self, dom: u16, pages: u64) -> Result<Answer> {
        let domain = self.living(dom)?;
        let most = domain.space.memory.max_pages();
        if pages > most {
            let why = format!("domain {dom} was created for at most {most} pages");
            return Err(failure(Errno::EINVAL, why));
        }
        domain.max_pages.store(pages, Ordering::Relaxed);
        Ok(Answer::DONE)
    }

    fn populate(&self, dom: u16, first_pfn: u64, count: u64) -> Result<Answer> {
        let domain = self.living(dom)?;
        let limit = domain.max_pages.load(Ordering::Relaxed);
        let mut mm = domain.space.lock_mm();
        if mm
            .owned_frames()
            .checked_add(count)
            .is_none_or(|total| total > limit)
        {
            let why = format!("{count} more pages exceed the {limit} that domain {dom} may have");
            return Err(failure(Errno::ENOMEM, why));
        }
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for offset in 0..count {
            let mfn = mm
                .allocate(0)
                .map_err(|errno| failure(errno, "the domain's frames are used up"))?;
            domain
                .space
                .memory
                .set_m2p(mfn, first_pfn.checked_add(offset));
            match extents.last_mut() {
                Some((first, length)) if *first + *length == mfn.0 => *length += 1,
                _ => extents.push((mfn.0, 1)),
            }
        }
        drop(mm);
        for (first, pages) in &extents {
            let space = Arc::downgrade(&domain.space);
            domain.host.populator.add(space, Mfn(*first), *pages);
        }
        Ok(Reply::Frames(extents).into())
    }

    fn set_context(&self, dom: u16, vcpu: u32, bytes: &[u8]) -> Result<Answer> {
        let domain = self.living(dom)?;
        let index = vcpu_index(&domain, vcpu)?;
        let mut context = Box::new(VcpuGuestContext::new_zeroed());
        let expected = context.as_bytes().len();
        if bytes.len() != expected {
            let why = format!(
                "a vcpu_guest_context has {expected} bytes, not {}",
                bytes.len()
            );
            return Err(failure(Errno::EINVAL, why));
        }
        context.as_mut_bytes().copy_from_slice(bytes);
        install_context(&domain, VcpuId(vcpu), context).map_err(|errno| {
            failure(
                errno,
                format!("the context of vCPU {vcpu} of domain {dom} is not acceptable"),
            )
        })?;
        domain.vcpus[index].set_online(true);
        Ok(Answer::DONE)
    }

    fn vcpu_context(&self, dom: u16, vcpu: u32) -> Result<Answer> {
        let domain = self.living(dom)?;
        let index = vcpu_index(&domain, vcpu)?;
        let context = domain.vcpus[index]
            .context(CONTEXT_PATIENCE)
            .ok_or_else(|| {
                let why = format!("vCPU {vcpu} of domain {dom} has no registers to show");
                failure(Errno::ENODATA, why)
            })?;
        Ok(Reply::VcpuContext(context.as_bytes().to_vec()).into())
    }

    fn engine(&self, dom: u16, change: Option<Engine>) -> Result<Answer> {
        let domain = self.living(dom)?;
        if let Some(wanted) = change {
            let kind = match wanted {
                Engine::Kvm => EngineKind::Kvm,
                Engine::Soft => EngineKind::Soft,
            };
            domain.change_engine(kind).map_err(|error| {
                let errno = match error {
                    EngineError::Unavailable(_) => Errno::EOPNOTSUPP,
                    _ => Errno::EIO,
                };
                failure(
                    errno,
                    format!("domain {dom} can't go over to {kind}: {error}"),
                )
            })?;
        }
        let engine = match domain.engines.kind() {
            EngineKind::Kvm => Engine::Kvm,
            EngineKind::Soft => Engine::Soft,
        };
        Ok(Reply::Engine(engine).into())
    }

    fn vcpu_info(&self, dom: u16, vcpu: u32) -> Result<Answer> {
        let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
        let vcpu = &domain.vcpus[vcpu_index(&domain, vcpu)?];
        let info = VcpuInfo {
            online: vcpu.is_online(),
            blocked: vcpu.is_blocked(),
            running: vcpu.is_active(),
            cpu_time_ns: vcpu.cpu_time_ns(),
            cpu: vcpu.affinity().first().copied().unwrap_or(0),
            affinity: vcpu.affinity(),
        };
        Ok(Reply::VcpuInfo(info).into())
    }

    fn bind_interdomain(&self, session: &mut Session, dom: DomId, port: Port) -> Result<Answer> {
        let bound = self
            .host
            .dom0_events()
            .bind_interdomain(&*self.host, dom, port);
        self.attach(session, bound.map_err(|error| event_failure(&error))?)
    }

    /// Gives the caller an eventfd for a port that it has just bound.
    fn attach(&self, session: &mut Session, port: Port) -> Result<Answer> {
        session.hold_port(port);
        let made = notifier().inspect_err(|_| {
            session.forget_port(port);
            let _ = self.host.dom0_events().close(port);
        })?;
        let (notifier, fd) = made;
        self.host.notifiers().attach(port, notifier);
        Ok(Answer::with_fd(Reply::Port(port.0), fd))
    }

    fn port_status(&self, dom: DomId, port: Port) -> Result<Answer> {
        let status = self.host.dom0_events().status(&*self.host, dom, port);
        let status = status.map_err(|error| event_failure(&error))?;
        let state = match status.state {
            ChannelState::Closed => PortState::Closed,
            ChannelState::Unbound { remote } => PortState::Unbound { remote: remote.0 },
            ChannelState::Interdomain { remote, port } => PortState::Interdomain {
                remote: remote.0,
                port: port.0,
            },
            ChannelState::Virq { virq } => PortState::Virq { virq },
            ChannelState::Ipi => PortState::Ipi,
        };
        Ok(Reply::EvtchnStatus {
            state,
            vcpu: status.vcpu.0,
        }
        .into())
    }

    fn host_info(&self) -> HostInfo {
        let (total_pages, free_pages) = host_memory();
        HostInfo {
            xen_version: version::XEN_VERSION,
            extra_version: version::EXTRA_VERSION.into(),
            capabilities: version::CAPABILITIES.into(),
            changeset: version::CHANGESET.into(),
            command_line: String::new(),
            compile_info: version::COMPILE_INFO.map(String::from),
            virt_start: HYPERVISOR_VIRT_START,
            nr_cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
            cpu_khz: self.host.clock.khz(),
            total_pages,
            free_pages,
            engine: self.host.engine(),
            pid: std::process::id(),
            uptime_ns: self.host.clock.now_ns(),
        }
    }
}

/// Writes to an eventfd; a full one is readable anyway.
struct EventFdNotifier(EventFd);

impl PortNotifier for EventFdNotifier {
    fn notify(&self, _port: Port) {
        let _ = self.0.write(1);
    }
}

fn notifier() -> Result<(Arc<dyn PortNotifier>, OwnedFd)> {
    let no_fd = |error: String| failure(Errno::ENFILE, format!("no eventfd: {error}"));
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| no_fd(error.to_string()))?;
    let fd = event
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| no_fd(error.to_string()))?;
    Ok((Arc::new(EventFdNotifier(event)), fd))
}

fn vcpu_index(domain: &Domain, vcpu: u32) -> Result<usize> {
    let index = usize::try_from(vcpu)
        .ok()
        .filter(|index| *index < domain.vcpus.len());
    index.ok_or_else(|| {
        failure(
            Errno::ENOENT,
            format!("domain {} has no vCPU {vcpu}", domain.id),
        )
    })
}

fn domain_info(domain: &Domain) -> DomainInfo {
    let online = || domain.vcpus.iter().filter(|vcpu| vcpu.is_online());
    let life = domain.lock_life();
    let (paused, shutdown, dying) = (life.pauses > 0, life.shutdown, life.dying);
    drop(life);
    DomainInfo {
        dom: domain.id.0,
        uuid: domain.uuid,
        running: online().any(|vcpu| vcpu.is_active()) && !paused && shutdown.is_none(),
        blocked: online().all(|vcpu| vcpu.is_blocked()),
        paused,
        shutdown,
        dying,
        tot_pages: domain.space.tot_pages(),
        max_pages: domain.max_pages.load(Ordering::Relaxed),
        cpu_time_ns: domain.vcpus.iter().map(|vcpu| vcpu.cpu_time_ns()).sum(),
        nr_online_vcpus: u32::try_from(online().count()).unwrap_or(0),
        max_vcpu_id: u32::try_from(domain.vcpus.len())
            .unwrap_or(1)
            .saturating_sub(1),
        shared_info_frame: MFN_SHARED_INFO.0,
        generation: domain.generation,
    }
}

/// The host's memory and what is available of it, in pages.
fn host_memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let pages = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 4)
    };
    (
        pages("MemTotal:").unwrap_or(0),
        pages("MemAvailable:").unwrap_or(0),
    )
}
