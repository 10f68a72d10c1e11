//! `public/io/xs_wire.h`: the xenstore protocol.
//!
//! Over the ring of a guest as over the daemon's socket goes the same stream
//! of messages: a header of 16 bytes and up to 4096 bytes of payload. A reply
//! carries the request's `req_id`; a watch event comes unasked with
//! [`XS_WATCH_EVENT`]; a failure is [`XS_ERROR`] with an errno's name as payload.
//!
//! In the shared page each side writes its own two indices only: the guest
//! `req_prod` and `rsp_cons`, the daemon `req_cons` and `rsp_prod`. They run
//! freely and are masked on use; `prod - cons` is the number of bytes in the
//! ring and more than [`XENSTORE_RING_SIZE`] is a broken peer.
//!
//! ```
//! use guest_abi::xs_wire::{XS_READ, XsdSockmsg};
//!
//! let path = b"name\0";
//! let head = XsdSockmsg {
//!     kind: XS_READ,
//!     req_id: 1,
//!     len: path.len() as u32,
//!     ..Default::default()
//! };
//! assert_eq!(size_of_val(&head), 16);
//! ```

use crate::layout::layout;

/// Control of the daemon.
pub const XS_CONTROL: u32 = 0;
/// Names of a node's children.
pub const XS_DIRECTORY: u32 = 1;
/// A node's value.
pub const XS_READ: u32 = 2;
/// A node's permissions.
pub const XS_GET_PERMS: u32 = 3;
/// Asks for events about a node and those below.
pub const XS_WATCH: u32 = 4;
/// Ends a watch.
pub const XS_UNWATCH: u32 = 5;
/// Starts a transaction.
pub const XS_TRANSACTION_START: u32 = 6;
/// Commits (`T`) or drops (`F`) it.
pub const XS_TRANSACTION_END: u32 = 7;
/// Tells the daemon of a new domain's ring.
pub const XS_INTRODUCE: u32 = 8;
/// Tells it to let the ring go.
pub const XS_RELEASE: u32 = 9;
/// `/local/domain/<domid>`.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Sets a node's value, making the node where it is missing.
pub const XS_WRITE: u32 = 11;
/// Makes a node.
pub const XS_MKDIR: u32 = 12;
/// Removes a node and those below.
pub const XS_RM: u32 = 13;
/// Sets a node's permissions.
pub const XS_SET_PERMS: u32 = 14;
/// A watched node changed (from the daemon only).
pub const XS_WATCH_EVENT: u32 = 15;
/// A request failed (from the daemon only).
pub const XS_ERROR: u32 = 16;
/// Whether a domain was introduced.
pub const XS_IS_DOMAIN_INTRODUCED: u32 = 17;
/// A domain resumed after a shutdown.
pub const XS_RESUME: u32 = 18;
/// Gives a domain the rights of another.
pub const XS_SET_TARGET: u32 = 19;
/// Ends all of a domain's watches and transactions.
pub const XS_RESET_WATCHES: u32 = 21;
/// [`XS_DIRECTORY`] in parts.
pub const XS_DIRECTORY_PART: u32 = 22;
/// One more than the last type.
pub const XS_TYPE_COUNT: u32 = 23;
/// No type at all.
pub const XS_INVALID: u32 = 0xffff;

/// Errnos as [`XS_ERROR`] names them.
pub const XSD_ERRORS: [(&str, u16); 16] = [
    ("EINVAL", 22),
    ("EACCES", 13),
    ("EEXIST", 17),
    ("EISDIR", 21),
    ("ENOENT", 2),
    ("ENOMEM", 12),
    ("ENOSPC", 28),
    ("EIO", 5),
    ("ENOTEMPTY", 39),
    ("ENOSYS", 38),
    ("EROFS", 30),
    ("EBUSY", 16),
    ("EAGAIN", 11),
    ("EISCONN", 106),
    ("E2BIG", 7),
    ("EPERM", 1),
];

/// Bytes of each half of the ring.
pub const XENSTORE_RING_SIZE: usize = 1024;
/// The largest payload.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// The longest absolute path.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// The longest relative path.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// [`XenstoreDomainInterface::server_features`]: the guest may reconnect.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// [`XenstoreDomainInterface::server_features`]: `error` is used.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// [`XenstoreDomainInterface::connection`]: in use.
pub const XENSTORE_CONNECTED: u32 = 0;
/// [`XenstoreDomainInterface::connection`]: the guest asks to start anew.
pub const XENSTORE_RECONNECT: u32 = 1;
/// [`XenstoreDomainInterface::error`]: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// [`XenstoreDomainInterface::error`]: communication problem.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// [`XenstoreDomainInterface::error`]: an index was wrong.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// [`XenstoreDomainInterface::error`]: the payload was wrong.
pub const XENSTORE_ERROR_PROTO: u32 = 3;

layout! {
    /// The header of a message (`xsd_sockmsg`).
    struct XsdSockmsg [16] {
        /// `XS_*`.
        0 => kind: u32,
        /// The sender's number for the request; repeated in the reply.
        4 => req_id: u32,
        /// The transaction; 0 = none.
        8 => tx_id: u32,
        /// Bytes of the payload.
        12 => len: u32,
    }

    /// The shared page of a guest's connection.
    struct XenstoreDomainInterface [2076] {
        /// From the guest to the daemon.
        0 => req: [u8; 1024],
        /// From the daemon to the guest.
        1024 => rsp: [u8; 1024],
        /// Written by the daemon.
        2048 => req_cons: u32,
        /// Written by the guest.
        2052 => req_prod: u32,
        /// Written by the guest.
        2056 => rsp_cons: u32,
        /// Written by the daemon.
        2060 => rsp_prod: u32,
        /// `XENSTORE_SERVER_FEATURE_*`; written by the daemon.
        2064 => server_features: u32,
        /// [`XENSTORE_CONNECTED`] or [`XENSTORE_RECONNECT`].
        2068 => connection: u32,
        /// `XENSTORE_ERROR_*`; written by the daemon.
        2072 => error: u32,
    }
}
