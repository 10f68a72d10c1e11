//! The block back end: serves one guest's disks from files and block devices
//! of the host.
//!
//! ```text
//!  main thread                       one thread for each ring
//!  +-----------------+   +--------------------------------------------------+
//!  | driver          |   | queue                                            |
//!  |  spec   (nodes) |   |  request   a slot's copy, checked                |
//!  |  lock   (image) |-->|  pages     granted pages, mapped; some are kept  |
//!  |  source (file)  |   |  throttle  bytes and operations in a second      |
//!  +-----------------+   |  engine    uring | threads ----> the file        |
//!                        +--------------------------------------------------+
//! ```
//!
//! Law:
//! - A request's slot is copied once, and only the copy is looked at. What is
//!   not within the disk, the ring and the protocol's limits is answered with
//!   an error and touches nothing.
//! - A response is given when the effect is there: data of a write are in the
//!   file (in the host's page cache or beyond), a flush that is answered is on
//!   the disk. Responses go out in the order of the requests, so whatever
//!   happens to this process, the unanswered requests are done again by the
//!   next one, and doing them twice does no harm.
//! - Data of raw images pass between the guest's pages and the file directly;
//!   those of qcow2 images through buffers of ours. No byte of such a buffer
//!   reaches a guest that was not read from its image.
//! - Memory is bounded: by the ring's slots, the segments of a request, and
//!   the number of pages kept mapped.

mod driver;
mod engine;
mod error;
mod lock;
mod pages;
mod queue;
mod request;
mod source;
mod spec;
mod throttle;

pub use driver::{Choice, Vbd};
pub use error::BlkError;
