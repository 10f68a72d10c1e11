//! Buffers of Dom0 processes that grants are copied to and from.
//!
//! Law: a buffer is a sealed file of its own, which its connection has mapped
//! too: its bytes are copied in and out by value, and are nobody's but that
//! connection's. It ends with it. Each part is a use of the grant of its own,
//! checked like any other.

use super::{Result, dom0_grants::check_batch, failure, no_domain};
use crate::{
    domain::Domain,
    grants::{GrantError, read_grant, write_grant},
    hypervisor::Hypervisor,
    memory::Area,
    privcmd::{Answer, Session},
};
use domus_privcmd::protocol::{GrantPart, MAX_COPY_BUFFER_PAGES, Reply};
use guest_abi::{
    addr::{DomId, GrantRef, PAGE_SIZE},
    errno::Errno,
    grant_table::GNTST_OKAY,
};
use std::os::fd::AsFd;

/// A part lies within a page.
const MOST: usize = 4096;

pub(super) fn make(session: &mut Session, pages: u32) -> Result<Answer> {
    if pages == 0 || pages > MAX_COPY_BUFFER_PAGES {
        let why = format!("a buffer has 1 to {MAX_COPY_BUFFER_PAGES} pages, not {pages}");
        return Err(failure(Errno::E2BIG, why));
    }
    let no_memory = |error: &dyn std::fmt::Display| failure(Errno::ENOMEM, error.to_string());
    let area = Area::new("domus-copy", 0, u64::from(pages) * PAGE_SIZE);
    let area = area.map_err(|error| no_memory(&error))?;
    let fd = area.file().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|error| no_memory(&error))?;
    let id = session.hold_buffer(area).ok_or_else(|| {
        let why = "this connection has as many buffers as it may have";
        failure(Errno::ENOSPC, why)
    })?;
    Ok(Answer::with_fd(Reply::CopyBuffer(id), fd))
}

pub(super) fn close(session: &mut Session, buffer: u32) -> Result<Answer> {
    session
        .forget_buffer(buffer)
        .map(|()| Answer::DONE)
        .ok_or_else(|| no_buffer(buffer))
}

fn no_buffer(buffer: u32) -> domus_privcmd::protocol::Failure {
    failure(Errno::EINVAL, format!("no buffer {buffer}"))
}

impl Hypervisor {
    pub(super) fn copy_grants_by_buffer(
        &self,
        session: &Session,
        dom: u16,
        (buffer, at, write): (u32, u32, bool),
        parts: &[GrantPart],
    ) -> Result<Answer> {
        check_batch(parts.len())?;
        let area = session.buffer(buffer).ok_or_else(|| no_buffer(buffer))?;
        let mut at = u64::from(at);
        let end = at + parts.iter().map(|part| u64::from(part.len)).sum::<u64>();
        if end > area.bytes() {
            let why = format!("the parts reach to byte {end} of {}", area.bytes());
            return Err(failure(Errno::EINVAL, why));
        }
        let domain = self.domain(DomId(dom)).ok_or_else(|| no_domain(dom))?;
        let statuses = parts.iter().map(|part| {
            let copied = copy(&domain, area, at, *part, write);
            at += u64::from(part.len);
            copied.map_or_else(
                |error| {
                    tracing::debug!(dom, %error, "copy for domain 0 refused");
                    error.status()
                },
                |()| GNTST_OKAY,
            )
        });
        Ok(Reply::Statuses(statuses.collect()).into())
    }
}

/// Copies a part, which is within the buffer; one that is not within a page is
/// refused.
fn copy(
    domain: &Domain,
    area: &Area,
    at: u64,
    part: GrantPart,
    write: bool,
) -> std::result::Result<(), GrantError> {
    let GrantPart { gref, offset, len } = part;
    let crosses = GrantError::CrossesPage { offset, len };
    let (gref, grants) = (GrantRef(gref), &domain.grants);
    let mut page = [0; MOST];
    let bytes = page.get_mut(..usize::from(len)).ok_or(crosses.clone())?;
    if write {
        area.read(at, bytes).ok_or(crosses)?;
        write_grant(grants, DomId::DOM0, gref, offset, bytes)
    } else {
        read_grant(grants, DomId::DOM0, gref, offset, bytes)?;
        area.write(at, bytes).ok_or(crosses)
    }
}
