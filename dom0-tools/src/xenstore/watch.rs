//! Watches: who wants to know of which change.
//!
//! Law: a watch never tells a guest of a node that the guest could not have
//! read (XSA-115). The check is made for each event and each watch, with the
//! permissions that the node has now, had before the change, or, where it is
//! gone, had last; its parent's count too, as the parent's list of children is
//! what the guest may read.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use guest_abi::errno::Errno;

use super::{
    node::Node,
    path::{Path, WatchPath},
    peers::PeerId,
    perms::{Access, Perms, Who},
    tree::{Effect, EffectKind, Tree},
};

/// A watch's number, never used twice.
pub type WatchId = u64;

/// Estimated bytes of a watch's bookkeeping.
const WATCH_OVERHEAD: usize = 128;

/// One watch.
#[derive(Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its number.
    pub id: WatchId,
    /// Whose it is.
    pub peer: PeerId,
    /// What it names.
    pub path: WatchPath,
    /// How many levels below it looks; `None` for all.
    pub depth: Option<usize>,
    /// What the client wants to hear along with the event.
    pub token: Arc<[u8]>,
}

impl Watch {
    /// Bytes that it takes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        WATCH_OVERHEAD + self.path.full.len() + self.token.len()
    }
}

/// What one peer's watches amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub count: usize,
    /// Bytes that they take, estimated.
    pub bytes: usize,
}

/// All watches, by what they name.
#[derive(Debug, Default)]
pub struct Watches {
    by_path: BTreeMap<Arc<str>, Vec<Arc<Watch>>>,
    usage: HashMap<PeerId, Usage>,
    last_id: WatchId,
}

/// An event for one watch.
pub struct Fired {
    /// The watch.
    pub watch: Arc<Watch>,
    /// The changed path.
    pub path: Arc<str>,
}

impl Watches {
    /// Adds a watch.
    ///
    /// # Errors
    /// `EEXIST` if the peer has one of this path and token.
    pub fn add(
        &mut self,
        peer: PeerId,
        path: WatchPath,
        depth: Option<usize>,
        token: Arc<[u8]>,
    ) -> Result<Arc<Watch>, Errno> {
        if self.find(peer, &path.full, &token).is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(self.restore(Watch {
            id: self.last_id + 1,
            peer,
            path,
            depth,
            token,
        }))
    }

    /// Adds a watch that has its number already.
    pub fn restore(&mut self, watch: Watch) -> Arc<Watch> {
        let watch = Arc::new(watch);
        self.last_id = self.last_id.max(watch.id);
        let peer = watch.peer;
        let usage = self.usage.entry(peer).or_default();
        usage.count += 1;
        usage.bytes += watch.bytes();
        let same_path = self.by_path.entry(watch.path.full.clone()).or_default();
        same_path.push(watch.clone());
        watch
    }

    fn find(&self, peer: PeerId, path: &str, token: &[u8]) -> Option<&Arc<Watch>> {
        let same_path = self.by_path.get(path)?;
        same_path
            .iter()
            .find(|watch| watch.peer == peer && *watch.token == *token)
    }

    /// Takes a watch back.
    ///
    /// # Errors
    /// `ENOENT` if the peer has none of this path and token.
    pub fn remove(
        &mut self,
        peer: PeerId,
        path: &WatchPath,
        token: &[u8],
    ) -> Result<Arc<Watch>, Errno> {
        let found = self.find(peer, &path.full, token).cloned();
        let watch = found.ok_or(Errno::ENOENT)?;
        self.drop_where(&path.full, |other| other.id == watch.id);
        Ok(watch)
    }

    /// Takes all watches of a peer back.
    pub fn remove_all(&mut self, peer: PeerId) {
        if !self.usage.contains_key(&peer) {
            return;
        }
        let paths: Vec<Arc<str>> = self.by_path.keys().cloned().collect();
        for path in paths {
            self.drop_where(&path, |watch| watch.peer == peer);
        }
    }

    fn drop_where(&mut self, path: &str, unwanted: impl Fn(&Watch) -> bool) {
        let Some(same_path) = self.by_path.get_mut(path) else {
            return;
        };
        for gone in same_path.extract_if(.., |watch| unwanted(watch)) {
            if let Some(usage) = self.usage.get_mut(&gone.peer) {
                usage.count -= 1;
                usage.bytes -= gone.bytes();
                if usage.count == 0 {
                    self.usage.remove(&gone.peer);
                }
            }
        }
        if same_path.is_empty() {
            self.by_path.remove(path);
        }
    }

    /// What a peer's watches amount to.
    #[must_use]
    pub fn usage(&self, peer: PeerId) -> Usage {
        self.usage.get(&peer).copied().unwrap_or_default()
    }

    /// All watches of one peer, in no particular order.
    pub fn of(&self, peer: PeerId) -> impl Iterator<Item = &Arc<Watch>> {
        self.by_path
            .values()
            .flatten()
            .filter(move |watch| watch.peer == peer)
    }

    /// The watches that name exactly `special`.
    pub fn on_special(&self, special: &str) -> impl Iterator<Item = &Arc<Watch>> {
        self.by_path.get(special).into_iter().flatten()
    }

    /// Who hears of `effect`, which has led to `tree`.
    pub fn fired(&self, effect: &Effect, tree: &Tree, who: impl Fn(PeerId) -> Who) -> Vec<Fired> {
        let mut fired = Vec::new();
        if matches!(effect.kind, EffectKind::CreatedOnTheWay) {
            return fired;
        }
        let readable = Readable::of(effect, tree);
        for (levels, above) in effect.path.ancestry().enumerate() {
            for watch in self.on_special(above.as_str()) {
                let deep_enough = watch.depth.is_none_or(|depth| levels <= depth);
                if deep_enough && readable.by(&who(watch.peer)) {
                    fired.push(Fired {
                        watch: watch.clone(),
                        path: effect.path.as_str().into(),
                    });
                }
            }
        }
        if let EffectKind::Removed { node, .. } = &effect.kind {
            self.fire_below(&effect.path, node, who, &mut fired);
        }
        fired
    }

    /// The watches on nodes of a removed subtree fire with their own path.
    fn fire_below(
        &self,
        top: &Path,
        node: &Arc<Node>,
        who: impl Fn(PeerId) -> Who,
        fired: &mut Vec<Fired>,
    ) {
        let prefix = format!("{top}/");
        let below = self
            .by_path
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        for (path, watches) in below.take_while(|(path, _)| path.starts_with(&prefix)) {
            let inner = Path::absolute(&format!("/{}", &path[prefix.len()..]));
            let Some(perms) = inner.ok().and_then(|inner| perms_below(node, &inner)) else {
                continue;
            };
            for watch in watches {
                if perms.by(&who(watch.peer)) {
                    fired.push(Fired {
                        watch: watch.clone(),
                        path: path.clone(),
                    });
                }
            }
        }
    }
}

fn perms_below(top: &Arc<Node>, inner: &Path) -> Option<Readable> {
    let node = top.find(inner)?.perms.clone();
    let above = inner.parent().and_then(|above| top.find(&above).cloned());
    Some(Readable(
        above
            .map(|above| above.perms.clone())
            .into_iter()
            .chain([node])
            .collect(),
    ))
}

/// Permissions of which one must allow reading for an event to be told.
struct Readable(Vec<Perms>);

impl Readable {
    fn of(effect: &Effect, tree: &Tree) -> Readable {
        let perms_at = |path: Path| tree.find(&path).map(|node| node.perms.clone());
        let mut perms: Vec<Perms> = Vec::new();
        perms.extend(perms_at(effect.path.clone()));
        perms.extend(effect.path.parent().and_then(perms_at));
        match &effect.kind {
            EffectKind::Perms(old) => perms.push(old.clone()),
            EffectKind::Removed { node, parent } => {
                perms.extend([node.perms.clone(), parent.clone()]);
            }
            EffectKind::Written | EffectKind::CreatedOnTheWay => {}
        }
        Readable(perms)
    }

    fn by(&self, who: &Who) -> bool {
        self.0.iter().any(|perms| perms.allows(who, Access::Read))
    }
}
