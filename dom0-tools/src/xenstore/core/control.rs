//! `CONTROL`: questions and settings for the daemon itself.

use guest_abi::{addr::DomId, errno::Errno};

use super::Core;
use crate::xenstore::{change::Change, peers::PeerId, perms::parse_decimal, wire::strings};

impl Core {
    /// Does a control command and gives the reply's payload.
    pub(super) fn control(&mut self, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let parts = strings(payload)?;
        let words: Result<Vec<&str>, _> = parts.into_iter().map(std::str::from_utf8).collect();
        let words = words.map_err(|_| Errno::EINVAL)?;
        let text = match words[..] {
            ["help"] => "check\nhelp\nlog on|off\nquota [<domid>|set <name> <value>]\n".to_owned(),
            ["check"] => self.self_check()?,
            ["log", "on"] => self.set_logging(true),
            ["log", "off"] => self.set_logging(false),
            ["quota"] => self.show_limits(),
            ["quota", "set", name, value] => self.set_limit(name, value)?,
            ["quota", dom] => self.show_usage(DomId(parse_decimal(dom.as_bytes())?)),
            _ => return Err(Errno::EINVAL),
        };
        Ok(format!("{text}\0").into_bytes())
    }

    fn self_check(&self) -> Result<String, Errno> {
        if self.tree.check() {
            Ok("OK".to_owned())
        } else {
            tracing::error!("the accounts of nodes differ from a recount");
            Err(Errno::EIO)
        }
    }

    fn set_logging(&mut self, on: bool) -> String {
        self.log_requests = on;
        "OK".to_owned()
    }

    fn show_limits(&self) -> String {
        let lines = self.limits.list().into_iter();
        lines
            .map(|(name, value)| format!("{name:<22}{value}\n"))
            .collect()
    }

    fn set_limit(&mut self, name: &str, value: &str) -> Result<String, Errno> {
        let value = parse_decimal(value.as_bytes())?;
        *self.limits.by_name(name).ok_or(Errno::EINVAL)? = value;
        self.changes.push(Change::Limit {
            name: name.into(),
            value,
        });
        Ok("OK".to_owned())
    }

    fn show_usage(&self, dom: DomId) -> String {
        let peer = PeerId::Guest(dom);
        let nodes = self.tree.accounts().of(dom);
        let watches = self.watches.usage(peer);
        let state = self.peers.get(&peer);
        let transactions = state.map_or(0, |state| state.transactions.len());
        let outstanding = state.map_or(0, |state| state.outbox.replies());
        let bytes = state.map_or(0, |state| state.transaction_bytes());
        let memory = nodes.bytes + watches.bytes + bytes;
        format!(
            "{:<22}{}\n{:<22}{}\n{:<22}{transactions}\n{:<22}{outstanding}\n{:<22}{memory}\n",
            "nodes", nodes.nodes, "watches", watches.count, "transactions", "outstanding", "memory",
        )
    }
}
