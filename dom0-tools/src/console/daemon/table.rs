//! Which domains have a console, and how each comes and goes.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::addr::{DomId, Mfn, Port};
use tracing::{debug, info, warn};

use super::{super::ring::MapError, ending::Ending};
use crate::console::{
    domain::{Bell, Console, Interest, Line},
    log::Log,
    pty::Pty,
    ring::Ring,
    sayings::Sayings,
    store::Store,
};

const LIST_STEP: u32 = 256;
const INTRODUCE: &str = "@introduceDomain";
const RELEASE: &str = "@releaseDomain";

/// All consoles.
pub struct Table {
    log_dir: PathBuf,
    domains: BTreeMap<DomId, Domain>,
    ending: Ending,
    sayings: Sayings,
}

/// A domain that exists, with a console or not yet.
struct Domain {
    generation: u64,
    watched: bool,
    name: String,
    /// Which ring the console has.
    at: Option<(Mfn, Port)>,
    console: Option<Console>,
}

/// Why a domain's console could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("ring-ref {0} is no frame of the domain")]
    NoSuchFrame(Mfn),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Table {
    pub fn new(log_dir: PathBuf, sayings: Sayings) -> Self {
        Self {
            log_dir,
            domains: BTreeMap::new(),
            ending: Ending::default(),
            sayings,
        }
    }

    /// After the store's connection was lost: its watches are gone.
    pub fn forget_watches(&mut self) {
        for domain in self.domains.values_mut() {
            domain.watched = false;
        }
    }

    /// Asks the store to tell of new and ended domains.
    pub fn watch_domains(&self, store: &mut Store) -> io::Result<()> {
        store.watch(INTRODUCE, INTRODUCE)?;
        store.watch(RELEASE, RELEASE)
    }

    /// Takes in all that the store has to tell.
    pub fn serve_store(
        &mut self,
        client: &Client,
        store: &mut Store,
        now: Instant,
    ) -> io::Result<()> {
        // Requests made on the way bring events too: until none is left.
        while self.serve_events(client, store, now)? {}
        Ok(())
    }

    /// Whether there were any.
    fn serve_events(
        &mut self,
        client: &Client,
        store: &mut Store,
        now: Instant,
    ) -> io::Result<bool> {
        let (mut any, mut scan) = (false, false);
        while let Some(token) = store.next_event()? {
            any = true;
            match token.parse().map(DomId) {
                Ok(dom) => self.look(client, store, dom, now)?,
                Err(_) => scan = true,
            }
        }
        if scan {
            self.scan(client, store, now)?;
        }
        Ok(any)
    }

    /// Compares with the domains that the hypervisor has.
    pub fn scan(&mut self, client: &Client, store: &mut Store, now: Instant) -> io::Result<()> {
        let living = match living_domains(client) {
            Ok(living) => living,
            Err(error) => {
                warn!(%error, "cannot list the domains");
                return Ok(());
            }
        };
        // All that was said of those that are gone was said before they went.
        self.hear(client);
        let known = std::mem::take(&mut self.domains);
        let is_same = |dom: &DomId, domain: &Domain| living.get(dom) == Some(&domain.generation);
        let (same, ended): (BTreeMap<_, _>, BTreeMap<_, _>) = known
            .into_iter()
            .partition(|(dom, domain)| is_same(dom, domain));
        self.domains = same;
        for (dom, domain) in ended {
            self.end(client, store, dom, domain, now)?;
        }
        for (dom, generation) in living {
            self.domains
                .entry(dom)
                .or_insert_with(|| Domain::new(generation));
            self.look(client, store, dom, now)?;
        }
        Ok(())
    }

    /// Compares one domain with what the store says of it.
    fn look(
        &mut self,
        client: &Client,
        store: &mut Store,
        dom: DomId,
        now: Instant,
    ) -> io::Result<()> {
        let Some(domain) = self.domains.get_mut(&dom) else {
            return Ok(());
        };
        if !domain.watched {
            store.watch(&format!("{}/console", home(dom)), &dom.to_string())?;
            store.watch(&format!("{}/name", home(dom)), &dom.to_string())?;
            domain.watched = true;
        }
        domain.follow_name(store, dom, &self.log_dir)?;
        let Some(at) = ring_of(store, dom)? else {
            return Ok(());
        };
        if domain.at == Some(at) {
            return Ok(());
        }
        match domain.open(client, dom, at, &self.log_dir, now) {
            Ok(()) => {
                domain.announce(store, dom)?;
                self.show_sayings(client);
                Ok(())
            }
            Err(error) => {
                warn!(%dom, %error, "no console");
                Ok(())
            }
        }
    }

    fn end(
        &mut self,
        client: &Client,
        store: &mut Store,
        dom: DomId,
        domain: Domain,
        now: Instant,
    ) -> io::Result<()> {
        info!(%dom, name = domain.name, "domain ended");
        let said = self.sayings.forget(dom);
        if let Some(mut console) = domain.console {
            console.take_last_words(&Silent);
            said.iter().for_each(|text| console.say(text));
            // It may be gone with the domain already.
            let _ = client.evtchn_close(console.port());
            self.ending.push(console, now);
        } else if let Some(text) = said
            && !domain.name.is_empty()
        {
            Log::open(&self.log_dir, &domain.name).write(text.as_bytes());
        }
        if domain.watched {
            store.unwatch(&format!("{}/console", home(dom)), &dom.to_string())?;
            store.unwatch(&format!("{}/name", home(dom)), &dom.to_string())?;
        }
        Ok(())
    }

    /// The hypervisor is gone and all guests with it: saves their last words.
    pub fn end_all(&mut self, now: Instant) {
        for domain in std::mem::take(&mut self.domains).into_values() {
            if let Some(mut console) = domain.console {
                console.take_last_words(&Silent);
                self.ending.push(console, now);
            }
        }
        let mut now = now;
        while let Some(again) = self.ending.again() {
            std::thread::sleep(again);
            now += again;
            self.ending.serve(now);
        }
    }

    /// What each console waits for, and when to look again at the latest.
    pub fn interests(&mut self, now: Instant) -> (Vec<(DomId, Interest)>, Option<Duration>) {
        let interests: Vec<_> = self
            .domains
            .iter_mut()
            .filter_map(|(dom, domain)| Some((*dom, domain.console.as_mut()?.interest(now))))
            .collect();
        let pauses = interests.iter().filter_map(|(_, interest)| interest.again);
        let again = pauses.chain(self.ending.again()).min();
        (interests, again)
    }

    /// The descriptors of a domain that [`interests`](Self::interests) named.
    pub fn fds(&self, dom: DomId) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        self.domains[&dom]
            .console
            .as_ref()
            .expect("only domains with a console are interested")
            .fds()
    }

    pub fn serve_guest(&mut self, dom: DomId, bell: &dyn Bell) {
        self.with(dom, |console| {
            console.serve_guest(bell);
            console.serve_screen()
        });
    }

    pub fn serve_keys(&mut self, dom: DomId, bell: &dyn Bell) {
        self.with(dom, |console| {
            console.serve_keys(bell)?;
            console.serve_screen()
        });
    }

    /// Readable when the hypervisor has said something of a domain.
    pub fn sayings_fd(&self) -> BorrowedFd<'_> {
        self.sayings.as_fd()
    }

    /// Takes in what the hypervisor says of domains.
    pub fn hear(&mut self, client: &Client) {
        if let Err(error) = self.sayings.hear(client) {
            debug!(%error, "cannot read the hypervisor's console");
        }
        self.show_sayings(client);
    }

    /// Shows it on the consoles that are open; for others it waits.
    fn show_sayings(&mut self, bell: &dyn Bell) {
        let domains = &mut self.domains;
        self.sayings.deliver(|dom, text| {
            let console = domains.get_mut(&dom).and_then(|it| it.console.as_mut());
            let Some(console) = console else {
                return false;
            };
            // The guest's own words came before.
            console.take_last_words(bell);
            console.say(text);
            let _ = console.serve_screen();
            true
        });
    }

    /// Consoles of ended guests.
    pub fn serve_screens(&mut self, now: Instant) {
        self.ending.serve(now);
    }

    pub fn reopen_logs(&mut self) {
        for console in self.domains.values_mut().filter_map(|d| d.console.as_mut()) {
            console.reopen_log();
        }
    }

    /// Does something with a domain's console, if it still has one.
    fn with(&mut self, dom: DomId, serve: impl FnOnce(&mut Console) -> io::Result<()>) {
        let Some(domain) = self.domains.get_mut(&dom) else {
            return;
        };
        if let Some(console) = &mut domain.console
            && let Err(error) = serve(console)
        {
            warn!(%dom, %error, "the console's terminal failed");
        }
    }
}

impl Domain {
    fn new(generation: u64) -> Self {
        Self {
            generation,
            watched: false,
            name: String::new(),
            at: None,
            console: None,
        }
    }

    /// The log bears the domain's name, also after it was given another.
    fn follow_name(&mut self, store: &mut Store, dom: DomId, log_dir: &Path) -> io::Result<()> {
        let name = store.read(&format!("{}/name", home(dom)))?;
        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None if self.name.is_empty() => format!("domain-{dom}"),
            // The nodes go before the domain does: its last words are its own.
            None => return Ok(()),
        };
        if name != self.name {
            if let Some(console) = &mut self.console {
                console.set_log(Log::open(log_dir, &name));
            }
            self.name = name;
        }
        Ok(())
    }

    /// Opens the console, or moves it to another ring.
    fn open(
        &mut self,
        client: &Client,
        dom: DomId,
        at: (Mfn, Port),
        log_dir: &Path,
        now: Instant,
    ) -> Result<(), OpenError> {
        if let Some(console) = &self.console {
            self.at = None;
            let _ = client.evtchn_close(console.port());
        }
        let line = connect(client, dom, at)?;
        match &mut self.console {
            Some(console) => console.set_line(line),
            none => {
                let log = Log::open(log_dir, &self.name);
                *none = Some(Console::new(line, Pty::new()?, log, now));
            }
        }
        self.at = Some(at);
        Ok(())
    }

    /// Tells people where the terminal is.
    fn announce(&mut self, store: &mut Store, dom: DomId) -> io::Result<()> {
        let Some(console) = &self.console else {
            return Ok(());
        };
        let tty = console.tty().to_string_lossy().into_owned();
        info!(%dom, name = self.name, tty, "console open");
        store.write(&format!("{}/console/tty", home(dom)), &tty)
    }
}

/// For a guest that no longer listens.
struct Silent;

impl Bell for Silent {
    fn ring(&self, _port: Port) {}
}

fn home(dom: DomId) -> String {
    format!("/local/domain/{dom}")
}

/// The domains that are not being destroyed, with their generations.
fn living_domains(client: &Client) -> Result<BTreeMap<DomId, u64>, ClientError> {
    let mut living = BTreeMap::new();
    let mut first = DomId(1);
    loop {
        let list = client.list_domains(first, LIST_STEP)?;
        for info in list.iter().filter(|info| !info.dying && info.dom != 0) {
            living.insert(DomId(info.dom), info.generation);
        }
        match list.last().and_then(|info| DomId(info.dom).checked_add(1)) {
            Some(next) if next > first => first = next,
            _ => return Ok(living),
        }
    }
}

/// Where the store says that a domain's console ring is.
fn ring_of(store: &mut Store, dom: DomId) -> io::Result<Option<(Mfn, Port)>> {
    let mut node = |name: &str| store.read(&format!("{}/console/{name}", home(dom)));
    if node("type")?.is_some_and(|kind| kind != "xenconsoled") {
        return Ok(None);
    }
    let (ring_ref, port) = (node("ring-ref")?, node("port")?);
    let mfn = ring_ref.and_then(|text| text.trim().parse().ok()).map(Mfn);
    let port = port.and_then(|text| text.trim().parse().ok()).map(Port);
    Ok(mfn.zip(port))
}

fn connect(client: &Client, dom: DomId, (mfn, port): (Mfn, Port)) -> Result<Line, OpenError> {
    let memory = client.map_memory(dom)?;
    let offset = memory.offset_of(mfn).ok_or(OpenError::NoSuchFrame(mfn))?;
    let ring = Ring::map(memory.fd, offset)?;
    let (port, event) = client.evtchn_bind_interdomain(dom, port)?;
    debug!(%dom, %mfn, %port, "console connected");
    Ok(Line { ring, port, event })
}
