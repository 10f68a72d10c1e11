//! What the back end offers, and what a front end asks for, in xenstore.
//!
//! | node of the back end | value |
//! |---|---|
//! | `feature-sg` | 1: packets in several slots |
//! | `feature-gso-tcpv4`, `-tcpv6` | 1 with a tap device: large TCP packets |
//! | `feature-ipv6-csum-offload` | 1: IPv6 packets without checksum |
//! | `feature-rx-copy`, `feature-rx-flip` | 1, 0: packets are copied into posted pages |
//! | `feature-split-event-channels` | 1: a port for each ring |
//! | `multi-queue-max-queues` | the host's processors, at most 8 |
//!
//! Not offered, and so not used by any front end: multicast control, the
//! control ring, dynamic multicast, head room for XDP, static grants.

use super::tap::Takes;
use crate::backend::{Bus, BusError};

/// The most queues of an interface.
pub const MOST_QUEUES: u32 = 8;

/// Why a front end can't be served.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// Its nodes.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// It wants its pages exchanged instead of filled.
    #[error("the front end does not take copied packets (request-rx-copy is not 1)")]
    NoCopy,
    /// Too many queues, or none.
    #[error("the front end asks for {wanted} queues; 1 to {most} are offered")]
    Queues {
        /// What it asks for.
        wanted: u32,
        /// What is offered.
        most: u32,
    },
}

/// Writes what is offered.
///
/// # Errors
/// The store's.
pub fn offer(bus: &mut Bus<'_>, segments: bool, queues: u32) -> Result<(), BusError> {
    for node in ["feature-gso-tcpv4", "feature-gso-tcpv6"] {
        bus.write(node, u8::from(segments))?;
    }
    for node in [
        "feature-sg",
        "feature-ipv6-csum-offload",
        "feature-rx-copy",
        "feature-split-event-channels",
    ] {
        bus.write(node, 1)?;
    }
    bus.write("feature-rx-flip", 0)?;
    bus.write("multi-queue-max-queues", queues)
}

/// What a front end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Whether it takes packets in several slots.
    pub chains: bool,
    /// What it takes undone.
    pub takes: Takes,
    /// How many queues it has; `None` if their nodes are not in directories.
    pub queues: Option<u32>,
}

impl Wishes {
    /// Reads the front end's nodes.
    ///
    /// # Errors
    /// See [`FeatureError`].
    pub fn read(bus: &mut Bus<'_>, most: u32) -> Result<Self, FeatureError> {
        let mut flag = |node| -> Result<bool, BusError> {
            Ok(bus.find_front_number::<u32>(node)?.unwrap_or(0) != 0)
        };
        if !flag("request-rx-copy")? {
            return Err(FeatureError::NoCopy);
        }
        let chains = flag("feature-sg")?;
        let takes = Takes {
            blank_v4: !flag("feature-no-csum-offload")?,
            blank_v6: flag("feature-ipv6-csum-offload")?,
            tso_v4: chains && flag("feature-gso-tcpv4")?,
            tso_v6: chains && flag("feature-gso-tcpv6")?,
        };
        let queues = bus.find_front_number("multi-queue-num-queues")?;
        if let Some(wanted) = queues.filter(|wanted| !(1..=most).contains(wanted)) {
            return Err(FeatureError::Queues { wanted, most });
        }
        Ok(Self {
            chains,
            takes,
            queues,
        })
    }

    /// Where the nodes of each queue are, below the front end's directory.
    #[must_use]
    pub fn directories(&self) -> Vec<String> {
        match self.queues {
            // One queue's lie in the directory itself, as ever.
            None | Some(1) => vec![String::new()],
            Some(count) => (0..count).map(|n| format!("queue-{n}/")).collect(),
        }
    }
}
