//! netback: the back half of virtual network interfaces.
//!
//! ```text
//!   guest              this process                                 host
//!   xen-netfront
//!     tx ring  ------> tx ---> buffer ---> offload ---> wire -----> tap, bridge
//!     rx ring  <------ rx <--- buffer <--- offload <--- wire <----- or passt
//!                      \___ queue, one thread ___/
//! ```
//!
//! Read in this order: [`queue`] (a packet's way, both ways), [`tx`] and
//! [`rx`] (slots), [`offload`] and [`packet`] (checksums, large packets),
//! [`wire`], [`tap`] and [`user`] (the host's side), [`serve`] (when to
//! sleep), [`device`] and [`features`] (xenstore), [`hotplug`] and [`link`]
//! (setting an interface up).
//!
//! Law: a guest can do to others no more than a machine at the end of a cable.
//! What it writes is copied before it is looked at ([`grants`]); what it sends
//! is bounded by buffers that never grow; what it breaks is its own interface.

pub mod child;
pub mod credit;
pub mod device;
pub mod features;
pub mod frames;
pub mod grants;
pub mod hotplug;
pub mod link;
pub mod offload;
pub mod packet;
pub mod queue;
pub mod rx;
pub mod serve;
pub mod tap;
pub mod tx;
pub mod user;
pub mod wire;

pub use device::Vif;
