//! `xm network-attach`, `network-detach` and `network-list`.

use clap::Parser;

use super::{
    Session, block, create,
    devices::{
        Device, Kind,
        describe::{self, Shown},
    },
    error::XmError,
    host::{Domain, Host},
    hotplug,
    life::LifeError,
    output,
    table::Subcommand,
};
use crate::{
    config::vif::{Mac, Vif},
    xenstore::client::Nodes,
};

/// Create a new virtual network device.
#[derive(Debug, Parser)]
#[command(
    after_help = "An interface is written as in 'vif' of a configuration file; its settings may be arguments of their own.

Examples:
  xm network-attach web1
  xm network-attach web1 bridge=br0 mac=00:16:3e:01:02:03
  xm network-attach web1 bridge=br0 rate=10MB/s@50ms
  xm network-attach web1 mode=user"
)]
pub struct NetworkAttach {
    #[arg(value_name = "Domain")]
    domain: String,
    /// mac= bridge= ip= script= vifname= rate= mtu= mode= backend=
    #[arg(value_name = "key=value")]
    settings: Vec<String>,
}

impl Subcommand for NetworkAttach {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut vif =
            Vif::parse(&self.settings.join(",")).map_err(|e| XmError::Failed(e.to_string()))?;
        vif.mac = vif.mac.or_else(|| Some(create::random_mac()));
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "attach a network interface to")?;
        hotplug::attach_vif(&mut host, &domain, &vif)?;
        Ok(())
    }
}

/// Destroy a domain's virtual network device.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm network-detach web1 0
  xm network-detach web1 00:16:3e:01:02:03
  xm network-detach -f web1 0    although the guest does not let go")]
pub struct NetworkDetach {
    #[arg(value_name = "Domain")]
    domain: String,
    /// The interface's index or address
    #[arg(value_name = "DevId|MAC")]
    device: String,
    /// Take it away although the guest does not let go
    #[arg(short, long)]
    force: bool,
}

impl Subcommand for NetworkDetach {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "detach a network interface from")?;
        let device = find(&mut host, &domain, &self.device)?;
        let label = hotplug::vif_label(device.id);
        Ok(hotplug::detach(
            &mut host, &domain, &device, &label, self.force,
        )?)
    }
}

/// The interface of this index or address.
fn find(host: &mut Host, domain: &Domain, what: &str) -> Result<Device, XmError> {
    if let Ok(index) = what.parse() {
        return Ok(Device::new(domain.id(), Kind::Vif, index));
    }
    let mac: Mac = what.parse().map_err(|_| {
        XmError::Failed(format!(
            "'{what}' is neither the index of an interface nor its MAC address"
        ))
    })?;
    for device in Device::all(&mut host.store, domain.id(), Kind::Vif)? {
        let own = host.store.find(&format!("{}/mac", device.back()))?;
        if own.is_some_and(|own| own.parse() == Ok(mac)) {
            return Ok(device);
        }
    }
    let missing = hotplug::missing(domain, Kind::Vif, format!("network interface {mac}"));
    Err(LifeError::Hotplug(missing).into())
}

/// List virtual network interfaces for a domain.
#[derive(Debug, Parser)]
#[command(
    after_help = "State is that of the guest's half: 1 initialising, 2 waiting, 3 initialised, 4 connected, 5 closing,
6 closed. -1 stands for what is not known yet.

Examples:
  xm network-list web1
  xm network-list --json web1"
)]
pub struct NetworkList {
    #[arg(value_name = "Domain", required = true)]
    domains: Vec<String>,
    /// All details, as JSON
    #[arg(short, long)]
    long: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for NetworkList {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let all = block::shown(&mut host, &self.domains, Kind::Vif)?;
        if self.json || self.long {
            return output::json(&all.iter().map(Shown::json).collect::<Vec<_>>());
        }
        block::table(describe::NETWORK_HEADER, all.iter().map(Shown::network_row))
    }
}
