//! A connection that gave up all but one domain.
//!
//! Law: what a restricted connection may ask for is listed here; every other
//! request, also one that is added later, is refused. The domain is known by
//! its generation: when it is gone the connection is of no more use.

use super::{Result, failure, no_domain};
use crate::{
    events::DomainKey,
    hypervisor::Hypervisor,
    privcmd::{Answer, Session},
};
use domus_privcmd::protocol::Request;
use guest_abi::{addr::DomId, errno::Errno};

/// Whom a request is about.
enum About {
    /// What the connection holds already.
    Own,
    /// One domain.
    Domain(u16),
    /// More than a restricted connection may have.
    More,
}

fn about(request: &Request) -> About {
    match request {
        Request::EvtchnNotify { .. }
        | Request::EvtchnSignal { .. }
        | Request::EvtchnClose { .. }
        | Request::CopyBuffer { .. }
        | Request::CloseCopyBuffer { .. }
        | Request::GrantUnmap { .. } => About::Own,
        Request::GetDomainInfo { dom }
        | Request::GetDomainCounters { dom }
        | Request::EvtchnStatus { dom, .. }
        | Request::GrantMap { dom, .. }
        | Request::GrantCopy { dom, .. }
        | Request::GrantCopyBuffer { dom, .. }
        | Request::Restrict { dom }
        | Request::EvtchnBindInterdomain {
            remote_dom: dom, ..
        } => About::Domain(*dom),
        _ => About::More,
    }
}

impl Hypervisor {
    /// Refuses what a restricted connection may not ask for.
    pub(super) fn check_restriction(&self, session: &Session, request: &Request) -> Result<()> {
        let Some(only) = session.restricted() else {
            return Ok(());
        };
        match about(request) {
            About::Own => Ok(()),
            About::Domain(dom) if dom == only.dom.0 => match self.key_of(dom) {
                Some(key) if key == only => Ok(()),
                _ => Err(no_domain(dom)),
            },
            About::Domain(_) | About::More => {
                let why = format!(
                    "this connection is restricted to domain {}: no {}",
                    only.dom,
                    request.name()
                );
                Err(failure(Errno::EPERM, why))
            }
        }
    }

    pub(super) fn restrict(&self, session: &mut Session, dom: u16) -> Result<Answer> {
        session.restrict(self.key_of(dom).ok_or_else(|| no_domain(dom))?);
        Ok(Answer::DONE)
    }

    fn key_of(&self, dom: u16) -> Option<DomainKey> {
        self.domain(DomId(dom)).map(|domain| domain.grants.key())
    }
}
