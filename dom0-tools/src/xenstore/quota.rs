//! What one domain may take of the daemon.
//!
//! Law: every resource that a guest can make the daemon hold has a limit here.
//! Domid 0 is counted but never refused.

use std::{collections::BTreeMap, sync::Arc};

use guest_abi::{addr::DomId, errno::Errno};

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident = $default:expr, $name:literal;)*) => {
        /// The limits, each for one unprivileged domain.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits { $($(#[$doc])* pub $field: usize,)* }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($field: $default,)* }
            }
        }

        impl Limits {
            /// Each limit with the name that `CONTROL quota` knows it by.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, usize)> {
                vec![$(($name, self.$field),)*]
            }

            /// The limit of this name.
            pub fn by_name(&mut self, name: &str) -> Option<&mut usize> {
                match name { $($name => Some(&mut self.$field),)* _ => None }
            }
        }
    };
}

limits! {
    /// Nodes owned.
    nodes = 1000, "nodes";
    /// Bytes of one node's value.
    node_size = 2048, "node-size";
    /// Entries in one node's permissions.
    node_permissions = 5, "node-permissions";
    /// Watches.
    watches = 128, "watches";
    /// Transactions open at once.
    transactions = 10, "transactions";
    /// Requests within one transaction.
    transaction_requests = 1024, "transaction-requests";
    /// Replies that the domain has not taken yet. At this many, its further
    /// requests stay where they are until it reads.
    outstanding = 20, "outstanding";
    /// Bytes of watch events that the domain has not taken yet. Over this,
    /// the events of one watch become a single one.
    event_bytes = 512 * 1024, "event-bytes";
    /// Bytes of nodes, watches and transactions together.
    memory = 2560 * 1024, "memory";
}

/// What a domain's nodes amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Nodes owned.
    pub nodes: usize,
    /// Bytes that they take, estimated.
    pub bytes: usize,
}

/// All domains' accounts. Cloning is cheap, as a snapshot needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(Arc<BTreeMap<DomId, Account>>);

impl Accounts {
    /// One domain's account.
    #[must_use]
    pub fn of(&self, dom: DomId) -> Account {
        self.0.get(&dom).copied().unwrap_or_default()
    }

    /// Books a node of this size.
    pub fn add(&mut self, owner: DomId, bytes: usize) {
        let account = Arc::make_mut(&mut self.0).entry(owner).or_default();
        account.nodes += 1;
        account.bytes += bytes;
    }

    /// Books a node of this size out.
    pub fn remove(&mut self, owner: DomId, bytes: usize) {
        let accounts = Arc::make_mut(&mut self.0);
        let Some(account) = accounts.get_mut(&owner) else {
            return;
        };
        account.nodes = account.nodes.saturating_sub(1);
        account.bytes = account.bytes.saturating_sub(bytes);
        if account.nodes == 0 {
            accounts.remove(&owner);
        }
    }
}

impl Limits {
    /// `ENOSPC` if a value of `len` bytes is too large.
    ///
    /// # Errors
    /// See above.
    pub fn check_value(&self, len: usize) -> Result<(), Errno> {
        within(len, self.node_size, Errno::ENOSPC)
    }

    /// Whether the account has room for `more_nodes` and `more_bytes`.
    ///
    /// # Errors
    /// `ENOSPC` for the nodes, `ENOMEM` for the bytes.
    pub fn check_nodes(
        &self,
        account: Account,
        more_nodes: usize,
        more_bytes: usize,
    ) -> Result<(), Errno> {
        if more_nodes > 0 {
            within(account.nodes + more_nodes, self.nodes, Errno::ENOSPC)?;
        }
        if more_bytes > 0 {
            within(account.bytes + more_bytes, self.memory, Errno::ENOMEM)?;
        }
        Ok(())
    }
}

/// `error` if `value` is over `limit`.
///
/// # Errors
/// See above.
pub fn within(value: usize, limit: usize, error: Errno) -> Result<(), Errno> {
    if value > limit { Err(error) } else { Ok(()) }
}
