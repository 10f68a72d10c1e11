//! A domain that is there, as the source of a dump.

use super::{PAGE, Source, XenVersion};
use domus_privcmd::client::{Client, ClientError, Memory};
use guest_abi::{
    addr::{DomId, Mfn, Pfn, VcpuId},
    arch_x86::VcpuGuestContext,
};
use std::{fs::File, io, os::unix::fs::FileExt};
use zerocopy::FromBytes;

/// Machine-to-phys entries asked for at once.
const CHUNK: u32 = 1 << 16;

/// A domain's memory and registers. They are those of the moment only if the
/// domain does not run meanwhile.
#[derive(Debug)]
pub struct Living {
    vcpus: Vec<Box<VcpuGuestContext>>,
    shared_info: Vec<u8>,
    frames: Vec<(Mfn, Pfn)>,
    version: XenVersion,
    file: File,
    base: Mfn,
}

impl Living {
    /// Takes the registers, and makes the memory readable.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn open(hypervisor: &Client, dom: DomId) -> Result<Self, ClientError> {
        let info = hypervisor.domain_info(dom)?;
        let contexts = (0..=info.max_vcpu_id)
            // One that was never brought up has no registers.
            .filter_map(|vcpu| hypervisor.vcpu_context(dom, VcpuId(vcpu)).ok())
            .filter_map(|bytes| VcpuGuestContext::read_from_bytes(&bytes).ok());
        let vcpus = contexts.map(Box::new).collect();
        let Memory {
            fd,
            base_mfn,
            pages,
        } = hypervisor.map_memory(dom)?;
        Ok(Living {
            vcpus,
            shared_info: hypervisor.shared_info(dom)?,
            frames: frames(hypervisor, dom, base_mfn, pages)?,
            version: version(hypervisor)?,
            file: File::from(fd),
            base: base_mfn,
        })
    }
}

fn frames(
    hypervisor: &Client,
    dom: DomId,
    base: Mfn,
    pages: u64,
) -> Result<Vec<(Mfn, Pfn)>, ClientError> {
    let mut frames = Vec::new();
    let mut done = 0;
    while done < pages {
        let count = u32::try_from(pages - done).unwrap_or(CHUNK).min(CHUNK);
        let first = Mfn(base.0 + done);
        let pfns = hypervisor.pfns(dom, first, count)?;
        let known = (first.0..).map(Mfn).zip(pfns);
        frames.extend(known.filter_map(|(mfn, pfn)| Some((mfn, pfn?))));
        done += u64::from(count);
    }
    // As Xen's tools write them: crash looks for a PFN by halving. And what the
    // kernel maps in one piece is in one piece then.
    frames.sort_by_key(|(mfn, pfn)| (*pfn, *mfn));
    Ok(frames)
}

fn version(hypervisor: &Client) -> Result<XenVersion, ClientError> {
    let host = hypervisor.host_info()?;
    Ok(XenVersion {
        major: host.xen_version.0.into(),
        minor: host.xen_version.1.into(),
        extra: host.extra_version,
        capabilities: host.capabilities,
        changeset: host.changeset,
        compile_info: host.compile_info,
        virt_start: host.virt_start,
    })
}

impl Source for Living {
    fn vcpus(&self) -> &[Box<VcpuGuestContext>] {
        &self.vcpus
    }

    fn shared_info(&self) -> &[u8] {
        &self.shared_info
    }

    fn frames(&self) -> &[(Mfn, Pfn)] {
        &self.frames
    }

    fn version(&self) -> &XenVersion {
        &self.version
    }

    fn read(&self, mfn: Mfn, page: &mut [u8; PAGE]) -> io::Result<()> {
        let offset = mfn
            .checked_offset_from(self.base)
            .and_then(|index| index.checked_mul(PAGE as u64))
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.file.read_exact_at(page, offset)
    }
}
