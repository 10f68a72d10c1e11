//! A guest's interfaces, each through its life: made when the tools have
//! written its nodes, connected when the front end is ready, gone with it.
//!
//! Law: the interface on the host's side is there from [`Driver::open`] on,
//! with no carrier until a front end is connected. Each queue has a thread and
//! a connection to the hypervisor of its own, so that queues don't wait for
//! each other.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use domus_privcmd::client::{Client, ClientError, GrantMapping};
use guest_abi::{
    addr::{self, DomId},
    netif::{NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE},
};
use tracing::{info, warn};

use super::{
    credit::{Credit, RateError},
    features::{self, FeatureError, MOST_QUEUES, Wishes},
    grants::GuestPages,
    hotplug::{Hotplug, HotplugError},
    queue::{Queue, QueueError},
    serve::{self, Ports},
    tap::{Tap, TapError},
    user::{self, UserError, UserNet},
    wire::Wire,
};
use crate::{
    backend::{
        Attach, Attention, BackRing, Bus, BusError, Driver, Port, RingError, SharedMemory, Worker,
    },
    config::forward::{self, ForwardError},
    paths,
};

/// Why an interface can't be served.
#[derive(Debug, thiserror::Error)]
pub enum VifError {
    /// Its nodes.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// What the front end asks for.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The tap device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The user-mode network.
    #[error(transparent)]
    User(#[from] UserError),
    /// Setting it up.
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
    /// The ports that lead to the guest.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Its rate.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// Buffers.
    #[error("no buffers for packets: {0}")]
    Buffers(QueueError),
    /// A ring.
    #[error("the {which} ring: {source}")]
    Ring {
        /// Which of the two.
        which: &'static str,
        /// What is wrong with it.
        source: RingError,
    },
    /// Grants or ports.
    #[error("{what}: {source}")]
    Hypervisor {
        /// What was tried.
        what: String,
        /// The answer.
        source: ClientError,
    },
    /// No such mode.
    #[error("'{0}' is no mode of an interface: tap and user are")]
    Mode(String),
    /// The system.
    #[error("cannot start to serve: {0}")]
    Io(#[from] io::Error),
    /// A queue's thread ended.
    #[error("{0}")]
    Queue(String),
}

/// What serves interfaces.
#[derive(Debug, Default)]
pub struct Vif;

/// The host's side of an interface.
#[derive(Debug)]
enum Host {
    Tap {
        tap: Tap,
        hotplug: Hotplug,
    },
    User {
        /// `None` while a queue has it.
        net: Option<UserNet>,
        plan: user::Plan,
    },
}

impl Host {
    fn most_queues(&self) -> u32 {
        match self {
            Self::Tap { .. } => {
                let processors = std::thread::available_parallelism();
                let processors = processors.map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
                processors.min(MOST_QUEUES)
            }
            // It has one stream.
            Self::User { .. } => 1,
        }
    }
}

/// An interface.
#[derive(Debug)]
pub struct Device {
    host: Host,
    workers: Vec<Worker>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.workers.clear();
        if let Host::Tap { hotplug, .. } = &self.host {
            hotplug.offline();
        }
    }
}

impl Driver for Vif {
    const KIND: &'static str = "vif";
    type Device = Device;
    type Error = VifError;

    fn open(&mut self, bus: &mut Bus<'_>) -> Result<Device, VifError> {
        let mode = bus.find("mode")?.unwrap_or_default();
        let host = match mode.trim() {
            "" | "tap" => open_tap(bus)?,
            "user" => {
                let plan = user_plan(bus)?;
                Host::User {
                    net: Some(UserNet::start(&plan)?),
                    plan,
                }
            }
            other => return Err(VifError::Mode(other.into())),
        };
        // Looked at here, so that a wrong one is told of when it is given.
        credit(bus)?;
        let segments = matches!(host, Host::Tap { .. });
        features::offer(bus, segments, host.most_queues())?;
        bus.write("hotplug-status", "connected")?;
        Ok(Device {
            host,
            workers: Vec::new(),
            failure: Arc::default(),
        })
    }

    fn connect(
        &mut self,
        device: &mut Device,
        bus: &mut Bus<'_>,
        how: Attach,
    ) -> Result<(), VifError> {
        let wishes = Wishes::read(bus, device.host.most_queues())?;
        let wires = device.wires(&wishes)?;
        for (n, (directory, wire)) in wishes.directories().iter().zip(wires).enumerate() {
            let connection = connection(bus.dom())?;
            let plan = Plan {
                wire,
                chains: wishes.chains,
                credit: credit(bus)?,
                how,
            };
            let begun = begin(bus, directory, connection, plan)?;
            let name = format!("vif{}.{} q{n}", bus.dom(), bus.device());
            let worker = spawn(&name, begun, Arc::clone(&device.failure), bus.attention())?;
            device.workers.push(worker);
        }
        info!(device = bus.device(), ?wishes, ?how, "connected");
        Ok(())
    }

    fn disconnect(&mut self, device: &mut Device) {
        for worker in &device.workers {
            worker.ask_to_stop();
        }
        device.workers.clear();
        *device.failure() = None;
        if let Host::Tap { tap, .. } = &mut device.host {
            tap.set_carrier(false);
        }
    }

    fn check(&mut self, device: &mut Device, _: &mut Bus<'_>) -> Result<(), VifError> {
        match device.failure().take() {
            Some(failure) => Err(VifError::Queue(failure)),
            None if device.workers.iter().any(Worker::has_ended) => Err(VifError::Queue(
                "a queue's thread has ended; see the log".into(),
            )),
            None => Ok(()),
        }
    }
}

impl Device {
    fn failure(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A wire for each queue.
    fn wires(&mut self, wishes: &Wishes) -> Result<Vec<Box<dyn Wire>>, VifError> {
        let tap = match &mut self.host {
            Host::User { net, plan } => {
                let net = net.take().map_or_else(|| UserNet::start(plan), Ok)?;
                return Ok(vec![Box::new(net)]);
            }
            Host::Tap { tap, .. } => tap,
        };
        tap.set_takes(wishes.takes)?;
        let mut wires: Vec<Box<dyn Wire>> = vec![Box::new(tap.try_clone()?)];
        for _ in 1..wishes.queues.unwrap_or(1) {
            let mut more = Tap::open(tap.name(), false)?;
            more.set_takes(wishes.takes)?;
            wires.push(Box::new(more));
        }
        tap.set_carrier(true);
        Ok(wires)
    }
}

/// Makes the interface and has it set up.
fn open_tap(bus: &mut Bus<'_>) -> Result<Host, VifError> {
    let name = match bus.find("vifname")?.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => format!("vif{}.{}", bus.dom(), bus.device()),
    };
    let tap = Tap::open(&name, true)?;
    let (script, bridge) = (bus.find("script")?, bus.find("bridge")?);
    let path = format!("backend/vif/{}/{}", bus.dom(), bus.device());
    let hotplug = Hotplug::new(script.as_deref(), bridge.as_deref(), &name, &path)?;
    let wanted = bus.find_front_number("mtu").ok().flatten();
    let said = |bus: &mut Bus<'_>| bus.find("hotplug-error").ok().flatten();
    let mtu = hotplug.online(wanted, || said(bus))?;
    bus.write("vifname", &name)?;
    let front = format!("{}/mtu", bus.frontend());
    bus.store().write(&front, &mtu.to_string())?;
    Ok(Host::Tap { tap, hotplug })
}

/// What a user-mode network is to know.
fn user_plan(bus: &mut Bus<'_>) -> Result<user::Plan, VifError> {
    let ports = bus.find("forward")?.filter(|text| !text.is_empty());
    let ports = ports.map(|text| forward::parse_all(&text)).transpose()?;
    // One that can't be read is no reason to be without network.
    let mac = bus.find("mac")?.and_then(|mac| mac.parse().ok());
    Ok(user::Plan {
        forward: ports.unwrap_or_default(),
        mac,
    })
}

fn credit(bus: &mut Bus<'_>) -> Result<Credit, VifError> {
    Ok(match bus.find("rate")?.filter(|rate| !rate.is_empty()) {
        Some(rate) => Credit::parse(&rate, Instant::now())?,
        None => Credit::unlimited(),
    })
}

/// A connection that reaches this domain only.
fn connection(dom: DomId) -> Result<Arc<Client>, VifError> {
    let failed = |source| VifError::Hypervisor {
        what: "a connection for a queue".into(),
        source,
    };
    let client = Client::connect(&paths::privcmd_socket()).map_err(failed)?;
    client.restrict(dom).map_err(failed)?;
    Ok(Arc::new(client))
}

/// A granted ring, mapped.
#[derive(Debug)]
struct Mapped(GrantMapping);

// SAFETY: the mapping stays where it is until it is dropped, and gives out no
// references to its bytes.
unsafe impl SharedMemory for Mapped {
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// How a queue is to be served.
struct Plan {
    wire: Box<dyn Wire>,
    chains: bool,
    credit: Credit,
    how: Attach,
}

/// A queue that can be served.
struct Begun {
    queue: Queue<Mapped, GuestPages, Box<dyn Wire>>,
    ports: Ports,
}

/// Maps the rings and binds the ports that the front end's nodes in
/// `directory` name.
fn begin(
    bus: &mut Bus<'_>,
    directory: &str,
    client: Arc<Client>,
    plan: Plan,
) -> Result<Begun, VifError> {
    let dom = bus.dom();
    let mut ring = |node: &str, which: &'static str, slot_size| {
        let gref: u32 = bus.read_front_number(&format!("{directory}{node}"))?;
        let mapped = client.map_grants(dom.0, &[gref], true);
        let mapped = mapped.map_err(|source| VifError::Hypervisor {
            what: format!("the {which} ring's grant {gref}"),
            source,
        })?;
        BackRing::attach(Mapped(mapped), slot_size)
            .map_err(|source| VifError::Ring { which, source })
    };
    let tx = ring("tx-ring-ref", "transmit", NETIF_TX_SLOT_SIZE)?;
    let rx = ring("rx-ring-ref", "receive", NETIF_RX_SLOT_SIZE)?;
    let ports = bind(bus, directory, &client)?;
    if plan.how == Attach::Again {
        ports.notify_all();
    }
    let pages = GuestPages::new(client, dom);
    let queue = Queue::new(tx, rx, pages, plan.wire, plan.credit, plan.chains);
    let queue = queue.map_err(VifError::Buffers)?;
    Ok(Begun { queue, ports })
}

fn bind(bus: &mut Bus<'_>, directory: &str, client: &Arc<Client>) -> Result<Ports, VifError> {
    let dom = bus.dom();
    let port = |number: u32| {
        Port::bind(client, dom, addr::Port(number)).map_err(|source| VifError::Hypervisor {
            what: format!("the front end's port {number}"),
            source,
        })
    };
    // With one port for both rings its node has the plain name.
    if let Some(both) = bus.find_front_number(&format!("{directory}event-channel"))? {
        return Ok(Ports {
            tx: port(both)?,
            rx: None,
        });
    }
    let tx = bus.read_front_number(&format!("{directory}event-channel-tx"))?;
    let rx = bus.read_front_number(&format!("{directory}event-channel-rx"))?;
    Ok(Ports {
        tx: port(tx)?,
        rx: Some(port(rx)?),
    })
}

fn spawn(
    name: &str,
    begun: Begun,
    failure: Arc<Mutex<Option<String>>>,
    attention: Attention,
) -> io::Result<Worker> {
    let Begun { mut queue, ports } = begun;
    let shown = name.to_owned();
    Worker::spawn(name, move |stop| {
        let served = serve::serve(&mut queue, &ports, stop);
        info!(queue = shown, counts = ?queue.counts, "no longer served");
        if let Err(error) = served {
            warn!(queue = shown, %error, "given up");
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            attention.call();
        }
    })
}
