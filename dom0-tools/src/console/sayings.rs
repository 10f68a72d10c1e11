//! What the hypervisor says of domains: lines of its console (`xm dmesg`) that
//! belong on a domain's own.
//!
//! ```text
//! (XEN) d3v0: mmu_update was refused ...      the hypervisor, of domain 3
//! (d3) hello                                  what domain 3 wrote itself
//! ```
//!
//! Law: a guest can't write lines of the first kind. At most [`MOST`] bytes wait
//! for a domain whose console is not open yet, of [`DOMAINS`] domains at most.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::{addr::DomId, xen::VIRQ_CON_RING};

const PREFIX: &str = "(XEN) d";
/// Bytes that wait for one domain's console.
const MOST: usize = 32 << 10;
/// Domains for which lines wait.
const DOMAINS: usize = 256;

/// The hypervisor's console, read from where the daemon started.
#[derive(Debug)]
pub struct Sayings {
    event: OwnedFd,
    from: u64,
    /// The beginning of a line whose end was not read yet.
    begun: Vec<u8>,
    waiting: Waiting,
}

/// Lines for domains, in order.
#[derive(Debug, Default)]
struct Waiting(BTreeMap<DomId, String>);

impl Sayings {
    /// Listens from now on.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn listen(client: &Client) -> Result<Self, ClientError> {
        let (_, event) = client.evtchn_bind_virq(VIRQ_CON_RING)?;
        // What was said before is in `xm dmesg`.
        let (from, _) = client.read_console(u64::MAX, false)?;
        Ok(Self {
            event,
            from,
            begun: Vec::new(),
            waiting: Waiting::default(),
        })
    }

    /// Takes in what was said since the last time.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn hear(&mut self, client: &Client) -> Result<(), ClientError> {
        // Emptied first: what comes later notifies again.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
        loop {
            let (start, bytes) = client.read_console(self.from, false)?;
            if bytes.is_empty() {
                self.from = start;
                return Ok(());
            }
            if start != self.from {
                // The ring went on without us: the line's end is lost.
                self.begun.clear();
            }
            self.from = start.saturating_add(bytes.len() as u64);
            self.take(&bytes);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend(part);
            if self.begun.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                if let Some((dom, text)) = said_of(&line) {
                    self.waiting.add(dom, &text);
                }
            }
        }
    }

    /// Gives what waits to `deliver`, which says whether it could use it.
    pub fn deliver(&mut self, mut deliver: impl FnMut(DomId, &str) -> bool) {
        self.waiting.0.retain(|dom, text| !deliver(*dom, text));
    }

    /// Takes what waits for a domain that is gone.
    pub fn forget(&mut self, dom: DomId) -> Option<String> {
        self.waiting.0.remove(&dom)
    }
}

impl AsFd for Sayings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Waiting {
    fn add(&mut self, dom: DomId, text: &str) {
        if self.0.len() >= DOMAINS && !self.0.contains_key(&dom) {
            self.0.pop_first();
        }
        let waiting = self.0.entry(dom).or_default();
        if waiting.len() + text.len() <= MOST {
            waiting.push_str(text);
        }
    }
}

/// The domain of which a line tells, and the line as a terminal shows it.
fn said_of(line: &[u8]) -> Option<(DomId, String)> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let rest = text.strip_prefix(PREFIX)?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let dom = rest[..digits].parse().ok()?;
    let rest = rest[digits..]
        .strip_prefix('v')
        .map_or(&rest[digits..], |vcpu| {
            vcpu.trim_start_matches(|c: char| c.is_ascii_digit())
        });
    rest.starts_with(": ")
        .then(|| (DomId(dom), format!("{text}\r\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hypervisors_lines_of_a_domain_are_taken() {
        let line = "(XEN) d12v1: wrong. Remedy: right\n";
        let (dom, text) = said_of(line.as_bytes()).unwrap();
        assert_eq!(dom, DomId(12));
        assert_eq!(text, "(XEN) d12v1: wrong. Remedy: right\r\n");
        assert_eq!(said_of(b"(XEN) d3: wrong\n").unwrap().0, DomId(3));
        for other in [
            "(d12) (XEN) d12v1: forged\n",
            "(XEN) Domus 0.1\n",
            "(XEN) domain 3 vCPU 0 crashed: x\n",
            "(XEN) d: x\n",
            "(XEN) d99999: x\n",
            "(XEN) d3 said: x\n",
            "",
        ] {
            assert_eq!(said_of(other.as_bytes()), None, "{other}");
        }
        assert_eq!(said_of(b"(XEN) d3: \xff\n"), None);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        for dom in 1..2000 {
            waiting.add(DomId(dom), "a line\r\n");
        }
        assert_eq!(waiting.0.len(), DOMAINS);
        for _ in 0..100_000 {
            waiting.add(DomId(1999), "a line\r\n");
        }
        assert!(waiting.0[&DomId(1999)].len() <= MOST);
    }
}
