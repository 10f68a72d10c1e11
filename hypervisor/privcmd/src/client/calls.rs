//! One method for each [`Request`].
//!
//! All of them fail with [`ClientError::Failed`] and Xen's error number for
//! the operation, or with what broke the connection.
#![allow(clippy::missing_errors_doc)] // said once, above

use std::os::fd::OwnedFd;

use guest_abi::addr::{DomId, Mfn, Pfn, Port, VcpuId};

use super::{Client, ClientError};
use crate::debug;
use crate::protocol::{
    CreateDomain, DomainInfo, Engine, HostInfo, PortState, Reply, Request, VcpuInfo,
};
use crate::trace::Batch;

/// A domain's memory, as [`Client::map_memory`] gives it.
#[derive(Debug)]
pub struct Memory {
    /// The file: map what is needed of it, shared.
    pub fd: OwnedFd,
    /// The frame at the file's byte 0.
    pub base_mfn: Mfn,
    /// The file's length in pages.
    pub pages: u64,
}

impl Memory {
    /// Where a frame lies in the file, or `None` if it does not.
    #[must_use]
    pub const fn offset_of(&self, mfn: Mfn) -> Option<u64> {
        match mfn.checked_offset_from(self.base_mfn) {
            Some(index) if index < self.pages => index.checked_mul(guest_abi::addr::PAGE_SIZE),
            _ => None,
        }
    }
}

/// Sends `$request` and takes the reply's content out of `$pattern`.
macro_rules! ask {
    ($client:expr, $request:expr, $pattern:pat => $value:expr) => {{
        let request = $request;
        match $client.call(&request)? {
            ($pattern, _) => Ok($value),
            (reply, _) => Err(ClientError::unexpected(&request, &reply)),
        }
    }};
}

impl Client {
    /// The pseudo-physical numbers of `count` frames from `first` on; `None` for
    /// one that the domain does not have.
    pub fn pfns(
        &self,
        dom: DomId,
        first: Mfn,
        count: u32,
    ) -> Result<Vec<Option<Pfn>>, ClientError> {
        let request = Request::GetPfns {
            dom: dom.0,
            first_mfn: first.0,
            count,
        };
        let words = ask!(self, request, Reply::Words(words) => words)?;
        let known = |word: u64| (word != u64::MAX).then_some(Pfn(word));
        Ok(words.into_iter().map(known).collect())
    }

    /// A copy of the domain's shared info page.
    pub fn shared_info(&self, dom: DomId) -> Result<Vec<u8>, ClientError> {
        ask!(self, Request::GetSharedInfo { dom: dom.0 }, Reply::Bytes(bytes) => bytes)
    }

    /// A debugger's call that asks nothing.
    pub fn debug(&self, call: debug::Call) -> Result<(), ClientError> {
        ask!(self, Request::Debug(call), Reply::Done => ())
    }

    /// Memory of the domain that is debugged.
    pub fn debug_read(
        &self,
        vcpu: VcpuId,
        address: u64,
        length: u32,
    ) -> Result<Vec<u8>, ClientError> {
        let call = debug::Call::Read {
            vcpu: vcpu.0,
            address,
            length,
        };
        ask!(self, Request::Debug(call), Reply::Debug(debug::Answer::Bytes(bytes)) => bytes)
    }

    /// Why the domain that is debugged has stopped, waiting up to `patience_ms`
    /// for it.
    pub fn debug_wait(&self, patience_ms: u32) -> Result<Option<debug::Stop>, ClientError> {
        let call = debug::Call::Wait { patience_ms };
        ask!(self, Request::Debug(call), Reply::Debug(debug::Answer::Stop(stop)) => stop)
    }

    /// Starts the trace of a domain: `kinds` are bits of [`trace::kind`](crate::trace::kind).
    pub fn trace_start(&self, dom: DomId, kinds: u32) -> Result<(), ClientError> {
        ask!(self, Request::TraceStart { dom: dom.0, kinds }, Reply::Done => ())
    }

    /// The next records of the trace, waiting up to `patience_ms` for them.
    pub fn trace_read(&self, patience_ms: u32) -> Result<Batch, ClientError> {
        ask!(self, Request::TraceRead { patience_ms }, Reply::Trace(batch) => batch)
    }

    /// What the host offers.
    pub fn host_info(&self) -> Result<HostInfo, ClientError> {
        ask!(self, Request::HostInfo, Reply::HostInfo(info) => info)
    }

    /// The hypervisor's console ring from byte `from` on: the number of the
    /// first byte, and the bytes.
    pub fn read_console(&self, from: u64, clear: bool) -> Result<(u64, Vec<u8>), ClientError> {
        ask!(self, Request::ReadConsole { from, clear },
            Reply::Console { start, bytes } => (start, bytes))
    }

    /// What executes a domain's code; with `change`, from now on.
    pub fn engine(&self, dom: DomId, change: Option<Engine>) -> Result<Engine, ClientError> {
        ask!(self, Request::Engine { dom: dom.0, change }, Reply::Engine(engine) => engine)
    }

    /// Makes a domain: paused, without memory.
    pub fn create_domain(&self, wish: CreateDomain) -> Result<DomId, ClientError> {
        ask!(self, Request::CreateDomain(wish), Reply::Domain(dom) => DomId(dom))
    }

    /// Ends a domain and frees all that it had.
    pub fn destroy_domain(&self, dom: DomId) -> Result<(), ClientError> {
        ask!(self, Request::DestroyDomain { dom: dom.0 }, Reply::Done => ())
    }

    /// Pauses a domain, once more.
    pub fn pause_domain(&self, dom: DomId) -> Result<(), ClientError> {
        ask!(self, Request::PauseDomain { dom: dom.0 }, Reply::Done => ())
    }

    /// Takes one pause back.
    pub fn unpause_domain(&self, dom: DomId) -> Result<(), ClientError> {
        ask!(self, Request::UnpauseDomain { dom: dom.0 }, Reply::Done => ())
    }

    /// Shuts a domain down from outside, for a `SHUTDOWN_*` reason.
    pub fn shutdown_domain(&self, dom: DomId, reason: u32) -> Result<(), ClientError> {
        ask!(self, Request::ShutdownDomain { dom: dom.0, reason }, Reply::Done => ())
    }

    /// A domain's state.
    pub fn domain_info(&self, dom: DomId) -> Result<DomainInfo, ClientError> {
        ask!(self, Request::GetDomainInfo { dom: dom.0 }, Reply::DomainInfo(info) => info)
    }

    /// The states of at most `max` domains, from domid `first` on.
    pub fn list_domains(&self, first: DomId, max: u32) -> Result<Vec<DomainInfo>, ClientError> {
        ask!(self, Request::ListDomains { first: first.0, max }, Reply::DomainList(list) => list)
    }

    /// Sets the most pages that a domain may have.
    pub fn set_max_mem(&self, dom: DomId, pages: u64) -> Result<(), ClientError> {
        ask!(self, Request::SetMaxMem { dom: dom.0, pages }, Reply::Done => ())
    }

    /// A vCPU's state.
    pub fn vcpu_info(&self, dom: DomId, vcpu: VcpuId) -> Result<VcpuInfo, ClientError> {
        ask!(self, Request::GetVcpuInfo { dom: dom.0, vcpu: vcpu.0 },
            Reply::VcpuInfo(info) => info)
    }

    /// Ties a vCPU to host CPUs; none = any.
    pub fn set_vcpu_affinity(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        cpus: Vec<u32>,
    ) -> Result<(), ClientError> {
        ask!(self, Request::SetVcpuAffinity { dom: dom.0, vcpu: vcpu.0, cpus }, Reply::Done => ())
    }

    /// Sets a vCPU's registers: the bytes of a `vcpu_guest_context`.
    pub fn set_vcpu_context(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        context: Vec<u8>,
    ) -> Result<(), ClientError> {
        ask!(self, Request::SetVcpuContext { dom: dom.0, vcpu: vcpu.0, context }, Reply::Done => ())
    }

    /// A vCPU's registers: the bytes of a `vcpu_guest_context`.
    pub fn vcpu_context(&self, dom: DomId, vcpu: VcpuId) -> Result<Vec<u8>, ClientError> {
        ask!(self, Request::GetVcpuContext { dom: dom.0, vcpu: vcpu.0 },
            Reply::VcpuContext(bytes) => bytes)
    }

    /// Gives a domain frames for `count` pseudo-physical frames from
    /// `first_pfn` on; the extents `(first mfn, count)` in their order.
    pub fn populate_physmap(
        &self,
        dom: DomId,
        first_pfn: Pfn,
        count: u64,
    ) -> Result<Vec<(Mfn, u64)>, ClientError> {
        let request = Request::PopulatePhysmap {
            dom: dom.0,
            first_pfn: first_pfn.0,
            count,
        };
        ask!(self, request, Reply::Frames(extents) => {
            extents.into_iter().map(|(mfn, count)| (Mfn(mfn), count)).collect()
        })
    }

    /// A descriptor of a domain's memory.
    pub fn map_memory(&self, dom: DomId) -> Result<Memory, ClientError> {
        let request = Request::MapMemory { dom: dom.0 };
        match self.call_for_fd(&request)? {
            (Reply::Memory { base_mfn, pages }, fd) => Ok(Memory {
                fd,
                base_mfn: Mfn(base_mfn),
                pages,
            }),
            (reply, _) => Err(ClientError::unexpected(&request, &reply)),
        }
    }

    /// Pins a frame of a domain as a page table of `level` 1 to 4.
    pub fn pin_table(&self, dom: DomId, level: u8, mfn: Mfn) -> Result<(), ClientError> {
        ask!(self, Request::PinTable { dom: dom.0, level, mfn: mfn.0 }, Reply::Done => ())
    }

    /// Makes a port of `dom` for `remote` to bind to.
    pub fn evtchn_alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port, ClientError> {
        ask!(self, Request::EvtchnAllocUnbound { dom: dom.0, remote: remote.0 },
            Reply::Port(port) => Port(port))
    }

    /// Binds to a domain's unbound port: our port, and an eventfd that counts
    /// its notifications.
    pub fn evtchn_bind_interdomain(
        &self,
        remote_dom: DomId,
        remote_port: Port,
    ) -> Result<(Port, OwnedFd), ClientError> {
        self.bind(&Request::EvtchnBindInterdomain {
            remote_dom: remote_dom.0,
            remote_port: remote_port.0,
        })
    }

    /// Binds a virtual interrupt of domid 0: as
    /// [`evtchn_bind_interdomain`](Self::evtchn_bind_interdomain).
    pub fn evtchn_bind_virq(&self, virq: u32) -> Result<(Port, OwnedFd), ClientError> {
        self.bind(&Request::EvtchnBindVirq { virq })
    }

    /// Notifies the other end of one of our ports.
    pub fn evtchn_notify(&self, port: Port) -> Result<(), ClientError> {
        ask!(self, Request::EvtchnNotify { port: port.0 }, Reply::Done => ())
    }

    /// Notifies the other end of one of our ports, without waiting for the
    /// hypervisor; with `soon`, without interrupting a guest that runs. What
    /// goes wrong there is not told.
    pub fn evtchn_signal(&self, port: Port, soon: bool) -> Result<(), ClientError> {
        self.tell(&Request::EvtchnSignal { port: port.0, soon })
    }

    /// Gives one of our ports back.
    pub fn evtchn_close(&self, port: Port) -> Result<(), ClientError> {
        ask!(self, Request::EvtchnClose { port: port.0 }, Reply::Done => ())
    }

    /// What a port of any domain is bound to, and the vCPU that it notifies.
    pub fn evtchn_status(
        &self,
        dom: DomId,
        port: Port,
    ) -> Result<(PortState, VcpuId), ClientError> {
        ask!(self, Request::EvtchnStatus { dom: dom.0, port: port.0 },
            Reply::EvtchnStatus { state, vcpu } => (state, VcpuId(vcpu)))
    }

    /// What a domain's vCPUs did since it began: the counters that are not
    /// zero, by name, as in the log line at its end.
    pub fn domain_counters(&self, dom: DomId) -> Result<Vec<(String, u64)>, ClientError> {
        ask!(self, Request::GetDomainCounters { dom: dom.0 }, Reply::Counters(list) => list)
    }

    fn bind(&self, request: &Request) -> Result<(Port, OwnedFd), ClientError> {
        match self.call_for_fd(request)? {
            (Reply::Port(port), eventfd) => Ok((Port(port), eventfd)),
            (reply, _) => Err(ClientError::unexpected(request, &reply)),
        }
    }

    /// A call whose reply carries one descriptor.
    fn call_for_fd(&self, request: &Request) -> Result<(Reply, OwnedFd), ClientError> {
        let (reply, fds) = self.call(request)?;
        match fds.into_iter().next() {
            Some(fd) => Ok((reply, fd)),
            None => Err(ClientError::unexpected(request, &reply)),
        }
    }
}
