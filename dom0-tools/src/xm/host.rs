//! The running installation, as a subcommand sees it: the hypervisor, the
//! store, and the domains that both know.
//!
//! Law: which domains exist is the hypervisor's word. Their names are the
//! store's. What the store knows of a domain that the hypervisor does not is
//! stale, and is cleaned away when the hypervisor has been lost.

use std::fs;

use domus_privcmd::{
    client::{Client, ClientError},
    protocol::DomainInfo,
};
use guest_abi::addr::DomId;
use uuid::Uuid;

use super::{devices::detach, error::XmError, life, monitor, nodes, record::Record};
use crate::{
    config::name::DOM0_NAME,
    paths,
    services::{self, Ensured, Service},
    xenstore::client::Client as Store,
};

/// Domains asked for at once.
const BATCH: u32 = 256;

/// Connections to the services.
#[derive(Debug)]
pub struct Host {
    /// The hypervisor.
    pub hypervisor: Client,
    /// The xenstore daemon.
    pub store: Store,
}

/// A domain and its name.
#[derive(Debug, Clone)]
pub struct Domain {
    /// `(null)` where the store has none.
    pub name: String,
    /// What the hypervisor says.
    pub info: DomainInfo,
}

impl Domain {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> DomId {
        DomId(self.info.dom)
    }

    /// Whether it is the control domain.
    #[must_use]
    pub fn is_dom0(&self) -> bool {
        self.id() == DomId::DOM0
    }
}

impl Host {
    /// Connects, starting the services if need be.
    ///
    /// # Errors
    /// A service can't be had.
    pub fn connect() -> Result<Self, XmError> {
        let ensured = services::ensure()?;
        let mut host = Self {
            hypervisor: Client::connect(&paths::privcmd_socket())?,
            store: Store::connect()?,
        };
        host.recover(&ensured)?;
        host.replace_lost_monitors()?;
        Ok(host)
    }

    /// Says what was lost, and brings the store in line with what exists.
    fn recover(&mut self, ensured: &Ensured) -> Result<(), XmError> {
        for (service, pid) in &ensured.lost {
            let name = service.program();
            eprintln!(
                "Warning: {name} (process {pid}) had ended unexpectedly; it was started again."
            );
        }
        let fresh_hypervisor = ensured.started.contains(&Service::Hypervisor);
        if fresh_hypervisor {
            self.forget_lost_domains()?;
        }
        if ensured.started.contains(&Service::Xenstored) && !fresh_hypervisor {
            self.restore_nodes()?;
        }
        if ensured.started.contains(&Service::Xenstored) {
            nodes::write_dom0(&mut self.store)?;
        }
        Ok(())
    }

    /// After the hypervisor was lost: its domains are gone, what tells of
    /// them goes too.
    fn forget_lost_domains(&mut self) -> Result<(), XmError> {
        let alive = self.guests()?;
        let lives = |dom: DomId, uuid: Uuid| alive.iter().any(|i| i.dom == dom.0 && i.uuid == uuid);
        let mut lost = Vec::new();
        for record in Record::all() {
            if !lives(record.dom(), record.uuid) {
                lost.push(format!("{} ({})", record.config.name, record.dom));
                life::release_devices(&mut self.store, record.dom(), record.uuid)?;
                nodes::remove(&mut self.store, record.dom(), record.uuid)?;
                record.remove();
            }
        }
        for dom in nodes::domains(&mut self.store)? {
            if !alive.iter().any(|i| i.dom == dom.0) && dom != DomId::DOM0 {
                detach::release(&mut self.store, dom)?;
                nodes::remove_unrecorded(&mut self.store, dom)?;
            }
        }
        if !lost.is_empty() {
            eprintln!(
                "Warning: the hypervisor was gone, and these domains with it: {}. What they left was cleaned away; \
                 'xm create' starts them again.",
                lost.join(", ")
            );
        }
        Ok(())
    }

    /// After the store was lost: what names the living domains is written
    /// anew. Their kernels' watches are lost with the store.
    fn restore_nodes(&mut self) -> Result<(), XmError> {
        for info in self.guests()? {
            let record = Record::all()
                .into_iter()
                .find(|r| r.dom == info.dom && r.uuid == info.uuid);
            let Some(record) = record else { continue };
            if !nodes::known(&mut self.store, record.dom())? {
                nodes::write_all(&mut self.store, &record)?;
                eprintln!(
                    "Warning: xenstored had lost {}; its nodes were written again, but the guest must be restarted \
                     to be shut down from here.",
                    record.config.name
                );
            }
        }
        Ok(())
    }

    /// A domain without its monitor would end and nothing would follow.
    fn replace_lost_monitors(&self) -> Result<(), XmError> {
        let alone = |r: &Record| !r.kept && !r.has_monitor();
        let alone: Vec<Record> = Record::all().into_iter().filter(alone).collect();
        if alone.is_empty() {
            return Ok(());
        }
        let alive = self.guests()?;
        for record in alone {
            if alive
                .iter()
                .any(|i| i.dom == record.dom && i.uuid == record.uuid)
            {
                monitor::start(&record)?;
            }
        }
        Ok(())
    }

    /// What the hypervisor says of all domains but the control domain.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn guests(&self) -> Result<Vec<DomainInfo>, ClientError> {
        let mut all: Vec<DomainInfo> = Vec::new();
        let mut first = DomId(1);
        loop {
            let some = self.hypervisor.list_domains(first, BATCH)?;
            let Some(last) = some.last().map(|i| i.dom) else {
                return Ok(all);
            };
            all.extend(some.into_iter().filter(|i| i.dom != 0));
            match DomId(last).checked_add(1) {
                Some(next) if next > first => first = next,
                _ => return Ok(all),
            }
        }
    }

    /// All domains, the control domain first.
    ///
    /// # Errors
    /// The hypervisor's or the store's.
    pub fn domains(&mut self) -> Result<Vec<Domain>, XmError> {
        let infos = self.guests()?;
        let mut all = vec![self.dom0(&infos)?];
        for info in infos {
            let name = nodes::name_of(&mut self.store, DomId(info.dom))?;
            all.push(Domain {
                name: name.unwrap_or_else(|| "(null)".to_owned()),
                info,
            });
        }
        Ok(all)
    }

    /// The domain of this name, or else of this number.
    ///
    /// # Errors
    /// [`XmError::NoDomain`].
    pub fn find(&mut self, who: &str) -> Result<Domain, XmError> {
        let all = self.domains()?;
        let number = who.parse::<u16>().ok();
        all.iter()
            .find(|d| d.name == who)
            .or_else(|| all.iter().find(|d| Some(d.info.dom) == number))
            .cloned()
            .ok_or_else(|| XmError::NoDomain(who.to_owned()))
    }

    /// As [`Host::find`], but not the control domain.
    ///
    /// # Errors
    /// [`XmError::NoDomain`], or that nobody does this to Domain-0.
    pub fn find_guest(&mut self, who: &str, verb: &str) -> Result<Domain, XmError> {
        let domain = self.find(who)?;
        if domain.is_dom0() {
            return Err(XmError::Failed(format!(
                "Cannot {verb} privileged domain {DOM0_NAME}."
            )));
        }
        Ok(domain)
    }

    /// The control domain is the host's own user space.
    fn dom0(&self, guests: &[DomainInfo]) -> Result<Domain, XmError> {
        let host = self.hypervisor.host_info()?;
        let taken: u64 = guests.iter().map(|i| i.tot_pages).sum();
        let own = host
            .total_pages
            .saturating_sub(host.free_pages.saturating_add(taken));
        Ok(Domain {
            name: DOM0_NAME.to_owned(),
            info: DomainInfo {
                dom: 0,
                uuid: Uuid::nil(),
                running: true,
                blocked: false,
                paused: false,
                shutdown: None,
                dying: false,
                tot_pages: own,
                max_pages: host.total_pages,
                cpu_time_ns: host_cpu_time_ns(),
                nr_online_vcpus: host.nr_cpus,
                max_vcpu_id: host.nr_cpus.saturating_sub(1),
                shared_info_frame: 0,
                generation: 0,
            },
        })
    }
}

/// CPU time of the whole host since its start.
fn host_cpu_time_ns() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = text.lines().find_map(|l| l.strip_prefix("cpu ")) else {
        return 0;
    };
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: all but idle, iowait
    // and steal, in ticks of 10 ms.
    let used: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    used.saturating_mul(10_000_000)
}
