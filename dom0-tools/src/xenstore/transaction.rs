//! Transactions: work on a snapshot, then the same again on the live tree.
//!
//! Law: a commit repeats all requests of the transaction on the tree as it is
//! now. If each one gets the very answer that the client saw, the client can
//! not tell that anything happened in between, and the result stands; if one
//! differs, nothing happens and the client hears `EAGAIN`. So transactions
//! that touch different nodes never fail each other, and what is committed is
//! as if all had run one after the other. Permissions, quotas and domains that
//! died meanwhile are checked by the same repetition (XSA-417).

use guest_abi::{addr::DomId, errno::Errno};

use super::{
    path::Path,
    perms::Who,
    quota::{Limits, within},
    tree::{Effect, Reply, Request, Tree, digest},
};

/// Estimated bytes of one remembered request.
const ENTRY_OVERHEAD: usize = 96;

/// An open transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    tree: Tree,
    /// The live tree's generation at the start.
    base: u64,
    log: Vec<Entry>,
    bytes: usize,
    doomed: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    path: Path,
    request: Request,
    outcome: u64,
}

/// Why a commit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// What this domain did in the meantime was in the way.
    With(DomId),
    /// Nobody changed the node that the answer differs for: the client's own
    /// quota or permissions are others than before.
    Own,
    /// The transaction was open over a restart of the daemon, or names a
    /// domain that is gone.
    Lost,
}

/// What a successful commit leaves.
#[derive(Debug)]
pub struct Commit {
    /// The new live tree.
    pub tree: Tree,
    /// What changed.
    pub effects: Vec<Effect>,
}

impl Transaction {
    /// A transaction on what `tree` is now.
    #[must_use]
    pub fn new(tree: &Tree) -> Transaction {
        Transaction {
            tree: tree.clone(),
            base: tree.generation(),
            log: Vec::new(),
            bytes: 0,
            doomed: false,
        }
    }

    /// A transaction that was open when the daemon ended. It answers from the
    /// present tree, so that its client gets to the end, and fails there.
    #[must_use]
    pub fn lost(tree: &Tree) -> Transaction {
        Transaction {
            doomed: true,
            ..Transaction::new(tree)
        }
    }

    /// `dom` is gone: a commit must not put its name into permissions again,
    /// for the next domain of that number to find.
    pub fn doom_if_naming(&mut self, dom: DomId) {
        self.doomed |= self.log.iter().any(|entry| match &entry.request {
            Request::SetPerms(perms) => perms.owner() == dom || perms.names(dom),
            _ => false,
        });
    }

    /// Bytes that the log of requests takes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Answers a request within the transaction.
    ///
    /// # Errors
    /// As [`Tree::apply`], and `ENOSPC` for too many requests.
    pub fn apply(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        request: Request,
    ) -> Result<Reply, Errno> {
        if !who.is_privileged() {
            let requests = self.log.len() + 1;
            within(requests, limits.transaction_requests, Errno::ENOSPC)?;
        }
        let outcome = self
            .tree
            .apply(who, limits, path, &request, &mut Vec::new());
        self.bytes += ENTRY_OVERHEAD + path.as_str().len() + request.bytes();
        self.log.push(Entry {
            path: path.clone(),
            request,
            outcome: digest(&outcome),
        });
        outcome
    }

    /// What the live tree becomes. A transaction that only read succeeds as of
    /// its start.
    ///
    /// # Errors
    /// [`Conflict`], when the client has to try again.
    pub fn commit(&self, live: &Tree, who: &Who, limits: &Limits) -> Result<Commit, Conflict> {
        if self.doomed {
            return Err(Conflict::Lost);
        }
        let mut tree = live.clone();
        let mut effects = Vec::new();
        if self.log.iter().any(|entry| entry.request.is_change()) {
            for entry in &self.log {
                let again = tree.apply(who, limits, &entry.path, &entry.request, &mut effects);
                if digest(&again) != entry.outcome {
                    let who = live.changed_since(&entry.path, self.base);
                    return Err(who.map_or(Conflict::Own, Conflict::With));
                }
            }
        }
        Ok(Commit { tree, effects })
    }
}
