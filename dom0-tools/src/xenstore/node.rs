//! One node of the tree, shared between snapshots.
//!
//! Law: a node that an `Arc` outside the live tree can see is never changed;
//! a change copies the way from the root down to it (`Arc::make_mut`).
//! Nothing here recurses: a guest chooses how deep its tree is.

use std::{collections::BTreeMap, sync::Arc};

use guest_abi::addr::DomId;

use super::{path::Path, perms::Perms};

/// Estimated bytes of a node's bookkeeping.
const NODE_OVERHEAD: usize = 160;

/// A value, its permissions and the nodes below.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Arc<[u8]>,
    /// Who may do what.
    pub perms: Perms,
    /// The nodes below, by name.
    pub children: BTreeMap<Arc<str>, Arc<Node>>,
    /// Rises with each change of the value, the permissions or the set of
    /// children.
    pub generation: u64,
    /// Who made the last such change.
    pub changed_by: DomId,
}

impl Node {
    /// A node without value and children.
    #[must_use]
    pub fn new(perms: Perms) -> Node {
        Node {
            value: Arc::new([]),
            perms,
            children: BTreeMap::new(),
            generation: 0,
            changed_by: DomId::DOM0,
        }
    }

    /// The node at `path` below this one, if it exists.
    #[must_use]
    pub fn find<'a>(self: &'a Arc<Node>, path: &Path) -> Option<&'a Arc<Node>> {
        path.names()
            .try_fold(self, |node, name| node.children.get(name))
    }

    /// The last node that exists on the way to `path`, and how many names
    /// beyond it are missing.
    #[must_use]
    pub fn deepest<'a>(self: &'a Arc<Node>, path: &Path) -> (&'a Arc<Node>, usize) {
        let mut node = self;
        let mut names = path.names();
        while let Some(name) = names.next() {
            match node.children.get(name) {
                Some(child) => node = child,
                None => return (node, 1 + names.count()),
            }
        }
        (node, 0)
    }

    /// The node and all below it, parents first, with their paths.
    #[must_use]
    pub fn walk<'a>(self: &'a Arc<Node>, path: &Path) -> Walk<'a> {
        let base = match path.as_str() {
            "/" => String::new(),
            text => text.to_owned(),
        };
        Walk {
            stack: vec![(base, self)],
        }
    }

    /// What it counts for, as the child of this name.
    #[must_use]
    pub fn bytes(&self, name: &str) -> usize {
        NODE_OVERHEAD + name.len() + self.value.len() + self.perms.entries().len() * 4
    }
}

impl Drop for Node {
    /// Takes the subtree apart level by level, so that depth costs no stack.
    fn drop(&mut self) {
        let mut orphans: Vec<Arc<Node>> =
            std::mem::take(&mut self.children).into_values().collect();
        while let Some(orphan) = orphans.pop() {
            if let Some(mut node) = Arc::into_inner(orphan) {
                orphans.extend(std::mem::take(&mut node.children).into_values());
            }
        }
    }
}

/// See [`Node::walk`]. Yields each node with its spelling; the root's is the
/// empty string.
pub struct Walk<'a> {
    stack: Vec<(String, &'a Arc<Node>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (String, &'a Arc<Node>);

    fn next(&mut self) -> Option<Self::Item> {
        let (path, node) = self.stack.pop()?;
        let below = node.children.iter().rev();
        self.stack
            .extend(below.map(|(name, child)| (format!("{path}/{name}"), child)));
        Some((path, node))
    }
}
