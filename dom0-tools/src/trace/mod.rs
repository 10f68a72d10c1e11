//! Traces of domains, made readable: `xm trace`.
//!
//! ```text
//! Record (privcmd) --decode--> Line --text----> a line as strace prints it
//!                                   \-summary-> a table: calls, errors, time
//!                                   \-chrome--> a file for a trace viewer
//! ```
//!
//! Law: a record's bytes are the guest's: whatever they hold, decoding gives
//! some text, with control characters escaped, and never fails.

pub mod chrome;
mod decode;
mod ops;
pub mod summary;

pub use decode::{Line, Ports, decode};
