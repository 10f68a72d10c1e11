//! What changed in the daemon's state, as the journal keeps it.
//!
//! Law: a change carries results, not requests. Applying it again needs no
//! check and cannot fail on sound data, so that what was answered before a
//! restart is exactly what stands after it.

use std::sync::Arc;

use guest_abi::addr::{DomId, Mfn, Port};

use super::{
    path::{Path, WatchPath},
    peers::Item,
    perms::Perms,
    ring::Stream,
    watch::WatchId,
};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node has this value and these permissions, made if it was not there.
    Node {
        /// Where.
        path: Path,
        /// Its value.
        value: Arc<[u8]>,
        /// Its permissions.
        perms: Perms,
    },
    /// A node is gone, with all below it.
    Removed(Path),
    /// The permissions of `@introduceDomain` and the like.
    Special {
        /// The name.
        name: Arc<str>,
        /// The permissions.
        perms: Perms,
    },
    /// A domain of this generation has been named.
    Seen {
        /// The domain.
        dom: DomId,
        /// The hypervisor's count for it.
        generation: u64,
    },
    /// A domain is gone: its connection, and everything known of it.
    Gone(DomId),
    /// A domain is connected, with nothing in flight and no watches.
    Introduced {
        /// The domain.
        dom: DomId,
        /// Its ring's frame.
        mfn: Mfn,
        /// Its end of the event channel.
        port: Port,
    },
    /// A domain is not connected any more, but still there.
    Disconnected(DomId),
    /// A domain acts for another one.
    Target {
        /// The domain.
        dom: DomId,
        /// The other one.
        target: DomId,
    },
    /// Whether a domain's shutdown has been told.
    Shutdown {
        /// The domain.
        dom: DomId,
        /// Told.
        told: bool,
    },
    /// A limit has been set.
    Limit {
        /// Its name.
        name: Arc<str>,
        /// Its value.
        value: usize,
    },
    /// A guest's watch.
    Watched {
        /// The guest.
        dom: DomId,
        /// The watch's number.
        id: WatchId,
        /// What it names.
        path: WatchPath,
        /// How far below it looks; `None` for any depth.
        depth: Option<usize>,
        /// Its token.
        token: Arc<[u8]>,
    },
    /// A guest's watch is gone.
    Unwatched {
        /// The guest.
        dom: DomId,
        /// What it named.
        path: WatchPath,
        /// Its token.
        token: Arc<[u8]>,
    },
    /// A guest has opened a transaction.
    Started {
        /// The guest.
        dom: DomId,
        /// The transaction.
        id: u32,
    },
    /// A guest's transaction is over.
    Ended {
        /// The guest.
        dom: DomId,
        /// The transaction.
        id: u32,
    },
    /// A guest has no watches and transactions any more.
    Reset(DomId),
    /// A message waits for a guest.
    Queued {
        /// The guest.
        dom: DomId,
        /// The message.
        item: Item,
    },
    /// The oldest waiting messages are next to go into the ring.
    Staged {
        /// The guest.
        dom: DomId,
        /// How many.
        count: usize,
    },
    /// A guest's requests have been taken up to here.
    Progress {
        /// The guest.
        dom: DomId,
        /// The position in its stream.
        req_cons: u32,
        /// Bytes before it that belong to a request that is not whole yet.
        input: Vec<u8>,
    },
    /// The state of a guest's ring, in whole.
    Ring {
        /// The guest.
        dom: DomId,
        /// The state.
        stream: Stream,
    },
    /// Waiting messages have been dropped.
    Dropped {
        /// The guest.
        dom: DomId,
        /// Their numbers, rising.
        seqs: Vec<u64>,
    },
}
