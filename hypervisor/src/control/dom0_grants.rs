//! Domid 0's grants: what other domains grant to its processes.
//!
//! Law: a batch is mapped or unmapped as a whole. A mapping belongs to the
//! connection that made it, and ends with it.
//!
//! A process reaches a granted frame by mapping the granting domain's memory
//! file at the frame's place, so what it is given is a descriptor of the whole
//! file. Between a guest and its back end stands the back end's own care;
//! between the back end and the granting domain's other pages, nothing. (Copies
//! need no descriptor.)

use super::{Result, failure, no_domain};
use crate::{
    domain::Domain,
    grants::{GrantError, MapReply, MapRequest, read_grant, write_grant},
    hypervisor::Hypervisor,
    memory::BASE_MFN,
    privcmd::{Answer, Session},
};
use domus_privcmd::protocol::{
    CopyElement, CopyWhat, Failure, MAX_COPY_BYTES, MAX_GRANT_BATCH, Reply,
};
use guest_abi::{
    addr::{DomId, GrantRef},
    errno::Errno,
    grant_table::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GNTST_OKAY},
};
use std::os::fd::OwnedFd;

fn grant_failure(error: &GrantError) -> Failure {
    failure(error.errno(), error.to_string())
}

pub(super) fn check_batch(count: usize) -> Result<()> {
    if count <= MAX_GRANT_BATCH {
        return Ok(());
    }
    let why = format!("{count} grants at once are more than {MAX_GRANT_BATCH}");
    Err(failure(Errno::E2BIG, why))
}

impl Hypervisor {
    pub(super) fn map_grants(
        &self,
        session: &Session,
        dom: u16,
        refs: &[u32],
        write: bool,
        has_file: Option<u64>,
    ) -> Result<Answer> {
        check_batch(refs.len())?;
        let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
        let file = if has_file == Some(domain.generation) {
            None
        } else {
            Some(memory_file(&domain, write)?)
        };
        let grants = map_each(session, &domain, refs, write)?;
        let reply = Reply::Grants {
            generation: domain.generation,
            base_mfn: BASE_MFN.0,
            grants,
        };
        Ok(Answer {
            reply,
            fds: file.into_iter().collect(),
        })
    }

    pub(super) fn copy_grants(&self, dom: u16, copies: &[CopyElement]) -> Result<Answer> {
        check_batch(copies.len())?;
        let bytes: usize = copies.iter().map(CopyElement::bytes).sum();
        if bytes > MAX_COPY_BYTES {
            let why = format!("{bytes} bytes at once are more than {MAX_COPY_BYTES}");
            return Err(failure(Errno::E2BIG, why));
        }
        let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
        let copied = copies.iter().map(|copy| match copy_one(&domain, copy) {
            Ok(bytes) => (GNTST_OKAY, bytes),
            Err(error) => {
                tracing::debug!(dom, %error, "copy for domain 0 refused");
                (error.status(), Vec::new())
            }
        });
        Ok(Reply::Copied(copied.collect()).into())
    }
}

/// The descriptor of a domain's memory that goes with a mapping.
fn memory_file(domain: &Domain, write: bool) -> Result<OwnedFd> {
    let memory = &domain.space.memory;
    let fd = if write {
        memory.ram_fd().try_clone_to_owned()
    } else {
        memory.ram_fd_read_only()
    };
    fd.map_err(|error| failure(Errno::ENFILE, format!("no descriptor: {error}")))
}

/// A handle and a frame for each grant; if one is refused none is mapped.
fn map_each(
    session: &Session,
    domain: &Domain,
    refs: &[u32],
    write: bool,
) -> Result<Vec<(u32, u64)>> {
    let flags = if write { 0 } else { GNTMAP_READONLY };
    let mut grants = Vec::with_capacity(refs.len());
    for gref in refs {
        let request = MapRequest {
            flags: GNTMAP_HOST_MAP | flags,
            gref: GrantRef(*gref),
            host_addr: 0,
        };
        match session.maps().map(&domain.grants, request) {
            Ok(MapReply { handle, frame, .. }) => grants.push((handle, frame.0)),
            Err(error) => {
                for (handle, _) in grants {
                    let _ = session.maps().release(handle);
                }
                return Err(grant_failure(&error));
            }
        }
    }
    Ok(grants)
}

pub(super) fn unmap(session: &Session, handles: &[u32]) -> Result<Answer> {
    check_batch(handles.len())?;
    let released = session.maps().release_each(handles);
    released
        .map(|()| Answer::DONE)
        .map_err(|error| grant_failure(&error))
}

fn copy_one(domain: &Domain, copy: &CopyElement) -> std::result::Result<Vec<u8>, GrantError> {
    let gref = GrantRef(copy.gref);
    match &copy.what {
        CopyWhat::Read(len) => {
            let mut bytes = vec![0; usize::from(*len)];
            read_grant(&domain.grants, DomId::DOM0, gref, copy.offset, &mut bytes)?;
            Ok(bytes)
        }
        CopyWhat::Write(bytes) => {
            write_grant(&domain.grants, DomId::DOM0, gref, copy.offset, bytes)?;
            Ok(Vec::new())
        }
    }
}
