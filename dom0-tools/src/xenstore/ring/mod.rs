//! A guest's connection: the shared page, and messages through it.
//!
//! Law: every word of the page is the guest's to write at any time. So the
//! daemon keeps its own indices to itself and only shows them; the guest's
//! indices are checked each time they are read; and a byte is taken out of the
//! page once and never looked at there again.

mod page;
mod stream;

pub use page::{PageError, RingPage};
pub use stream::{RingError, Stream};
