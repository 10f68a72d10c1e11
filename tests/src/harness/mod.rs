//! What a whole-system test is made of.
//!
//! ```text
//!   Installation   a DOMUS_RUN_DIR of its own; xm starts the services in it
//!     Guest        a domain in it, driven over its console
//!       Terminal   a program on a pseudo-terminal: `xm console`
//!   Programs       what cargo built: xm, the services, the test kernels
//! ```
//!
//! Law: an installation ends what it started, finds it by the environment that
//! only its processes have, and fails the test if anything is left. Waiting is
//! always for something that can be seen, with a deadline that a slow and busy
//! machine keeps; what was seen until then is in the failure's message.

mod checked;
mod domain;
mod installation;
mod isolated;
mod mounts;
mod namespace;
mod network;
mod outcome;
mod processes;
mod program32;
mod programs;
mod terminal;
mod user_program;
mod wait;

pub use checked::Checked;
pub use domain::{Config, Guest};
pub use installation::{Installation, Said};
pub use mounts::{in_private_mounts, mount};
pub use namespace::Namespace;
pub use network::{Child, in_a_network, ip, uplink};
pub use outcome::{domains_can_run, engine_is_soft, is_installed, kvm_is_usable};
pub use processes::{Footprint, Process};
pub use program32::program32;
pub use programs::Programs;
pub use terminal::Terminal;
pub use user_program::user_program;
pub use wait::{PATIENCE, eventually};
