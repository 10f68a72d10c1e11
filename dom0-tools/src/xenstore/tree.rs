//! The tree of nodes, and what can be asked of it.
//!
//! Law: a [`Tree`] is a value. Cloning one is a snapshot that no later change
//! of the other can touch. [`Tree::apply`] either does all of a request or
//! leaves the tree as it was. The accounts always equal what a recount gives
//! ([`Tree::check`]).

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use guest_abi::{addr::DomId, errno::Errno};

use super::{
    node::Node,
    path::Path,
    perms::{Access, Perms, Who},
    quota::{Accounts, Limits, within},
};

/// A request that concerns the tree alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A value.
    Read,
    /// The children's names.
    List,
    /// The permissions.
    GetPerms,
    /// Sets a value, creating the node where needed.
    Write(Arc<[u8]>),
    /// Creates the node where needed.
    Mkdir,
    /// Removes the node and all below.
    Remove,
    /// Sets the permissions.
    SetPerms(Perms),
}

impl Request {
    /// Whether it may change the tree.
    #[must_use]
    pub fn is_change(&self) -> bool {
        !matches!(self, Request::Read | Request::List | Request::GetPerms)
    }

    /// Bytes that it takes to keep.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Request::Write(value) => value.len(),
            Request::SetPerms(perms) => perms.entries().len() * 4,
            _ => 0,
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// The value.
    Value(Arc<[u8]>),
    /// The children's names, each with a NUL behind, and the node's
    /// generation.
    Names {
        /// The names.
        list: Vec<u8>,
        /// Equal numbers mean equal lists.
        generation: u64,
    },
    /// The permissions.
    Perms(Perms),
}

/// A number that stands for an answer: different answers, different numbers.
/// Generations don't count, as the same list may have several.
#[must_use]
pub fn digest(outcome: &Result<Reply, Errno>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match outcome {
        Ok(Reply::Done) => 0u8.hash(&mut hasher),
        Ok(Reply::Value(value)) => (1u8, value).hash(&mut hasher),
        Ok(Reply::Names { list, .. }) => (2u8, list).hash(&mut hasher),
        Ok(Reply::Perms(perms)) => (3u8, perms).hash(&mut hasher),
        Err(errno) => (4u8, errno).hash(&mut hasher),
    }
    hasher.finish()
}

/// What a change did, for watches and for the journal.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Where.
    pub path: Path,
    /// What.
    pub kind: EffectKind,
}

/// See [`Effect`].
#[derive(Clone, Debug)]
pub enum EffectKind {
    /// The node is new, made on the way to another one: no event of its own.
    CreatedOnTheWay,
    /// The node is new or has got a value.
    Written,
    /// The node has got other permissions; these were the old ones.
    Perms(Perms),
    /// The node is gone, with all below it: this was it. `parent` gives the
    /// permissions of the node above.
    Removed {
        /// The subtree.
        node: Arc<Node>,
        /// Permissions of the node above it.
        parent: Perms,
    },
}

/// The whole tree.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Node>,
    accounts: Accounts,
    generation: u64,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// A tree of the root alone, which only Dom0 may touch.
    #[must_use]
    pub fn new() -> Tree {
        let perms = Perms::private(DomId::DOM0);
        let root = Arc::new(Node::new(perms));
        let mut accounts = Accounts::default();
        accounts.add(DomId::DOM0, root.bytes(""));
        Tree {
            root,
            accounts,
            generation: 0,
        }
    }

    /// Goes on counting generations from here, so that those of a daemon and
    /// of the one before it are never taken for each other.
    pub fn skip_generations_to(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }

    /// The root node.
    #[must_use]
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The node at `path`, if it exists.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&Arc<Node>> {
        self.root.find(path)
    }

    /// What each domain's nodes amount to.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Rises with each change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Who last changed what stands at `path`, or above it if nothing does,
    /// if that was after the tree had this generation.
    #[must_use]
    pub fn changed_since(&self, path: &Path, generation: u64) -> Option<DomId> {
        let (node, _) = self.root.deepest(path);
        (node.generation > generation).then_some(node.changed_by)
    }

    /// Answers a request, and tells what it changed.
    ///
    /// # Errors
    /// Xen's error for the cause; the tree is as it was then.
    pub fn apply(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        request: &Request,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Errno> {
        match request {
            Request::Read => {
                let node = self.get(who, path, Access::Read)?;
                return Ok(Reply::Value(node.value.clone()));
            }
            Request::List => return self.names(who, path),
            Request::GetPerms => {
                let node = self.get(who, path, Access::Read)?;
                return Ok(Reply::Perms(node.perms.clone()));
            }
            Request::Write(value) => self.write(who, limits, path, value, effects)?,
            Request::Mkdir => self.mkdir(who, limits, path, effects)?,
            Request::Remove => self.remove(who, path, effects)?,
            Request::SetPerms(perms) => self.set_perms(who, limits, path, perms, effects)?,
        }
        Ok(Reply::Done)
    }

    fn names(&self, who: &Who, path: &Path) -> Result<Reply, Errno> {
        let node = self.get(who, path, Access::Read)?;
        let mut list = Vec::new();
        for name in node.children.keys() {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(Reply::Names {
            list,
            generation: node.generation,
        })
    }

    /// The node, if `who` may do `wanted` with it. A missing node reads
    /// `EACCES` where `who` may not even do `wanted` above it, so that nobody
    /// learns names by probing.
    fn get(&self, who: &Who, path: &Path, wanted: Access) -> Result<&Arc<Node>, Errno> {
        let (node, missing) = self.root.deepest(path);
        if !node.perms.allows(who, wanted) {
            return Err(Errno::EACCES);
        }
        if missing == 0 {
            Ok(node)
        } else {
            Err(Errno::ENOENT)
        }
    }

    fn write(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        value: &Arc<[u8]>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Errno> {
        if !who.is_privileged() {
            limits.check_value(value.len())?;
        }
        match self.get(who, path, Access::Write) {
            Ok(node) if !who.is_privileged() => {
                let growth = value.len().saturating_sub(node.value.len());
                let account = self.accounts.of(node.perms.owner());
                limits.check_nodes(account, 0, growth)?;
            }
            Err(Errno::ENOENT) => self.create(who, limits, path, value.len(), effects)?,
            found => drop(found?),
        }
        self.edit(who, path, |node| node.value = value.clone());
        effects.push(Effect {
            path: path.clone(),
            kind: EffectKind::Written,
        });
        Ok(())
    }

    fn mkdir(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Errno> {
        match self.get(who, path, Access::Write) {
            Err(Errno::ENOENT) => self.create(who, limits, path, 0, effects)?,
            found => return found.map(drop),
        }
        effects.push(Effect {
            path: path.clone(),
            kind: EffectKind::Written,
        });
        Ok(())
    }

    /// Makes the missing nodes on the way to `path` and the one there, with
    /// the permissions of the last one that exists. The quota covers a value
    /// of `value_len` bytes as well.
    fn create(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        value_len: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Errno> {
        let (parent, missing) = self.root.deepest(path);
        let inherited = parent.perms.clone();
        let perms = if who.is_privileged() {
            inherited
        } else {
            inherited.owned_by(who.dom)
        };
        let mut made: Vec<Path> = path.ancestry().take(missing).collect();
        made.reverse();
        let node = Node::new(perms.clone());
        let bytes = |path: &Path| node.bytes(path.name().unwrap_or(""));
        if !who.is_privileged() {
            let bytes: usize = made.iter().map(bytes).sum();
            limits.check_nodes(self.accounts.of(who.dom), missing, bytes + value_len)?;
        }
        for path in made {
            self.insert(who, &path, Node::new(perms.clone()));
            effects.push(Effect {
                path,
                kind: EffectKind::CreatedOnTheWay,
            });
        }
        Ok(())
    }

    fn remove(&mut self, who: &Who, path: &Path, effects: &mut Vec<Effect>) -> Result<(), Errno> {
        let above = path.parent().ok_or(Errno::EINVAL)?;
        match self.get(who, path, Access::Write) {
            Ok(_) => effects.extend(self.detach(who, path)),
            Err(Errno::ENOENT) if self.find(&above).is_some() => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn set_perms(
        &mut self,
        who: &Who,
        limits: &Limits,
        path: &Path,
        perms: &Perms,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Errno> {
        let node = self.get(who, path, Access::Write)?;
        if !node.perms.is_owner(who) {
            return Err(Errno::EACCES);
        }
        if !who.is_privileged() {
            within(
                perms.entries().len(),
                limits.node_permissions,
                Errno::ENOSPC,
            )?;
            if perms.owner() != node.perms.owner() {
                return Err(Errno::EPERM);
            }
        }
        let old = node.perms.clone();
        self.edit(who, path, |node| node.perms = perms.clone());
        effects.push(Effect {
            path: path.clone(),
            kind: EffectKind::Perms(old),
        });
        Ok(())
    }

    /// Changes the node at `path`, which must exist, and books the difference.
    fn edit(&mut self, who: &Who, path: &Path, change: impl FnOnce(&mut Node)) {
        let name = path.name().unwrap_or("").to_owned();
        self.generation += 1;
        let generation = self.generation;
        let Some(node) = descend(&mut self.root, path) else {
            return;
        };
        self.accounts.remove(node.perms.owner(), node.bytes(&name));
        change(node);
        node.generation = generation;
        node.changed_by = who.dom;
        self.accounts.add(node.perms.owner(), node.bytes(&name));
    }

    /// Puts a childless node at `path`, whose parent must exist and hold no
    /// child of this name.
    fn insert(&mut self, who: &Who, path: &Path, mut node: Node) {
        let (Some(above), Some(name)) = (path.parent(), path.name()) else {
            return;
        };
        self.generation += 1;
        let generation = self.generation;
        let Some(parent) = descend(&mut self.root, &above) else {
            return;
        };
        for changed in [&mut *parent, &mut node] {
            changed.generation = generation;
            changed.changed_by = who.dom;
        }
        self.accounts.add(node.perms.owner(), node.bytes(name));
        parent.children.insert(name.into(), Arc::new(node));
    }

    /// Takes the subtree at `path` out, if it exists.
    fn detach(&mut self, who: &Who, path: &Path) -> Option<Effect> {
        let name = path.name()?;
        self.generation += 1;
        let generation = self.generation;
        let parent = descend(&mut self.root, &path.parent()?)?;
        let node = parent.children.remove(name)?;
        parent.generation = generation;
        parent.changed_by = who.dom;
        let above = parent.perms.clone();
        for (spelling, gone) in node.walk(path) {
            let name = spelling.rsplit('/').next().unwrap_or("");
            self.accounts.remove(gone.perms.owner(), gone.bytes(name));
        }
        Some(Effect {
            path: path.clone(),
            kind: EffectKind::Removed {
                node,
                parent: above,
            },
        })
    }

    /// Forgets a domain that is gone, so that the next one of its number
    /// inherits nothing (XSA-322, XSA-417): its nodes go, with all below them
    /// (XSA-419: handing them to Dom0 would let guests pile up nodes that
    /// count for nobody), and no entry names it any more.
    pub fn scrub(&mut self, dom: DomId) -> Vec<Effect> {
        let mut effects = Vec::new();
        for path in self.paths_where(|node| node.perms.owner() == dom) {
            effects.extend(self.detach(&Who::DOM0, &path));
        }
        for path in self.paths_where(|node| node.perms.names(dom)) {
            let Some(old) = self.find(&path).map(|node| node.perms.clone()) else {
                continue;
            };
            let perms = old.retain(|named| named != dom);
            self.edit(&Who::DOM0, &path, |node| node.perms = perms);
            effects.push(Effect {
                path,
                kind: EffectKind::Perms(old),
            });
        }
        effects
    }

    fn paths_where(&self, wanted: impl Fn(&Node) -> bool) -> Vec<Path> {
        let nodes = self.root.walk(&Path::root());
        let found = nodes.filter(|(path, node)| !path.is_empty() && wanted(node));
        found
            .filter_map(|(path, _)| Path::absolute(&path).ok())
            .collect()
    }

    /// Sets a node as the journal remembers it. Its parent must exist.
    ///
    /// # Errors
    /// `ENOENT` if it does not.
    pub fn restore(&mut self, path: &Path, value: Arc<[u8]>, perms: Perms) -> Result<(), Errno> {
        if self.find(path).is_none() {
            let above = path.parent().and_then(|above| self.find(&above));
            above.ok_or(Errno::ENOENT)?;
            self.insert(&Who::DOM0, path, Node::new(perms.clone()));
        }
        self.edit(&Who::DOM0, path, |node| {
            node.value = value;
            node.perms = perms;
        });
        Ok(())
    }

    /// Removes a subtree as the journal remembers it.
    pub fn forget(&mut self, path: &Path) {
        self.detach(&Who::DOM0, path);
    }

    /// Recounts, and tells whether the accounts agree.
    #[must_use]
    pub fn check(&self) -> bool {
        let mut recount = Accounts::default();
        for (path, node) in self.root.walk(&Path::root()) {
            let name = path.rsplit('/').next().unwrap_or("");
            recount.add(node.perms.owner(), node.bytes(name));
        }
        recount == self.accounts
    }

    /// All nodes as plain values, for tests and for comparing two trees.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<String, (Vec<u8>, String)> {
        let nodes = self.root.walk(&Path::root());
        nodes
            .map(|(path, node)| (path, (node.value.to_vec(), node.perms.to_string())))
            .collect()
    }
}

/// The node at `path` for changing, copied out of snapshots on the way.
fn descend<'a>(root: &'a mut Arc<Node>, path: &Path) -> Option<&'a mut Node> {
    let mut node = Arc::make_mut(root);
    for name in path.names() {
        node = Arc::make_mut(node.children.get_mut(name)?);
    }
    Some(node)
}
