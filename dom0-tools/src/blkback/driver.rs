//! A disk's life on the main thread: open it, tell the front end about it,
//! connect its rings, change its medium.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use guest_abi::{
    addr::Port as PortNumber,
    blkif::{BLKIF_SLOT_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE},
};
use tracing::{error, info};

pub use super::engine::Choice;
use super::{
    BlkError,
    engine::engine,
    pages::{GuestGrants, Mapped, Pages},
    queue::Queue,
    request::MAX_INDIRECT_SEGMENTS,
    source::{Disk, is_same_file, path_of},
    spec::Spec,
    throttle::Throttle,
};
use crate::backend::{Attach, Attention, BackRing, Bus, Driver, Port, SharedMemory, Worker};

/// Pages of a ring, as a power of two.
const MAX_RING_ORDER: u32 = 4;
/// More rings than processors that could serve them help nobody.
const MAX_QUEUES: usize = 4;

/// The driver of disks.
#[derive(Default)]
pub struct Vbd {
    /// Which engine to use.
    pub engine: Choice,
}

/// An open disk and the threads that serve its rings.
pub struct Device {
    spec: Spec,
    disk: Arc<Disk>,
    workers: Vec<Worker>,
    /// Why a worker ended.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Driver for Vbd {
    const KIND: &'static str = "vbd";
    type Device = Device;
    type Error = BlkError;

    fn open(&mut self, bus: &mut Bus<'_>) -> Result<Device, BlkError> {
        let spec = Spec::read(bus)?;
        let disk = Arc::new(open_disk(&spec, bus)?);
        offer(&spec, &disk, bus)?;
        Ok(Device {
            spec,
            disk,
            workers: Vec::new(),
            trouble: Arc::default(),
        })
    }

    fn connect(
        &mut self,
        device: &mut Device,
        bus: &mut Bus<'_>,
        _how: Attach,
    ) -> Result<(), BlkError> {
        describe(&device.spec, &device.disk, bus)?;
        let workers = self.start(device, bus)?;
        device.workers = workers;
        Ok(())
    }

    fn disconnect(&mut self, device: &mut Device) {
        device.workers.iter().for_each(Worker::ask_to_stop);
        device.workers.clear();
    }

    fn changed(&mut self, device: &mut Device, bus: &mut Bus<'_>) -> Result<(), BlkError> {
        let spec = match Spec::read(bus) {
            Ok(spec) => spec,
            Err(why @ (BlkError::Params(_) | BlkError::Limits(_))) => {
                // A disk in use is not lost over a mistyped change.
                error!(device = bus.device(), error = %why, "not changed");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if spec.limits != device.spec.limits {
            info!(device = bus.device(), limits = ?spec.limits, "new limits");
            let mut throttle = device.disk.throttle.lock();
            let throttle = throttle.as_mut().unwrap_or_else(|poison| poison.get_mut());
            **throttle = Throttle::new(spec.limits, Instant::now());
            device.spec.limits = spec.limits;
        }
        if spec.image != device.spec.image && device.spec.cdrom {
            self.change_medium(device, spec, bus)?;
        }
        Ok(())
    }

    fn check(&mut self, device: &mut Device, _: &mut Bus<'_>) -> Result<(), BlkError> {
        let trouble = device.trouble.lock();
        let trouble = trouble.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(why) = trouble {
            return Err(BlkError::Queue(why));
        }
        Ok(())
    }
}

impl Vbd {
    /// Starts a thread for each ring.
    fn start(&self, device: &Device, bus: &mut Bus<'_>) -> Result<Vec<Worker>, BlkError> {
        if let Some(protocol) = bus.find_front("protocol")?
            && protocol != "x86_64-abi"
        {
            return Err(BlkError::Protocol(protocol.chars().take(40).collect()));
        }
        let persistent = bus.find_front_number::<u32>("feature-persistent")? == Some(1);
        let queues = within(bus, "multi-queue-num-queues", 1, queues_offered())?;
        let order = within(bus, "ring-page-order", 0, MAX_RING_ORDER)?;
        let several = bus.find_front("multi-queue-num-queues")?.is_some();
        (0..queues.max(1))
            .map(|queue| {
                let prefix = match several && queues > 1 {
                    true => format!("queue-{queue}/"),
                    false => String::new(),
                };
                let name = format!("{}q{queue}", bus.device());
                self.start_queue(device, bus, &prefix, order, persistent, &name)
            })
            .collect()
    }

    fn start_queue(
        &self,
        device: &Device,
        bus: &mut Bus<'_>,
        prefix: &str,
        order: u32,
        persistent: bool,
        name: &str,
    ) -> Result<Worker, BlkError> {
        let refs = ring_refs(bus, prefix, order)?;
        let port = bus.read_front_number(&format!("{prefix}event-channel"))?;
        let grants = GuestGrants {
            client: bus.client().clone(),
            dom: bus.dom(),
        };
        let memory = bus.client().map_grants(bus.dom().0, &refs, true)?;
        let memory: Arc<dyn SharedMemory> = Arc::new(Mapped(memory));
        let ring = BackRing::attach(memory, BLKIF_SLOT_SIZE)?;
        let bell = Port::bind(bus.client(), bus.dom(), PortNumber(port))?;
        let pages = Pages::new(Box::new(grants), persistent);
        let (disk, choice) = (device.disk.clone(), self.engine);
        let ending = Ending {
            trouble: device.trouble.clone(),
            attention: bus.attention(),
        };
        let worker = Worker::spawn(name, move |stop| {
            let outcome = engine(&disk, ring.slots(), choice)
                .map_err(Into::into)
                .and_then(|engine| Queue::new(ring, Box::new(bell), pages, engine, disk).run(stop));
            if let Err(error) = outcome {
                ending.report(error.to_string());
            }
        });
        worker.map_err(|source| BlkError::System {
            what: "cannot start a ring's thread",
            source,
        })
    }

    /// Another CD, or none. The guest's requests wait in the ring meanwhile.
    fn change_medium(
        &self,
        device: &mut Device,
        spec: Spec,
        bus: &mut Bus<'_>,
    ) -> Result<(), BlkError> {
        let served = !device.workers.is_empty();
        device.workers.clear();
        let disk = match open_disk(&spec, bus) {
            Ok(disk) => disk,
            Err(why) => {
                error!(device = bus.device(), error = %why, "the drive stays empty");
                bus.write("hotplug-error", &why)?;
                let empty = Spec {
                    image: None,
                    ..spec.clone()
                };
                open_disk(&empty, bus)?
            }
        };
        (device.spec, device.disk) = (spec, Arc::new(disk));
        describe(&device.spec, &device.disk, bus)?;
        if served {
            device.workers = self.start(device, bus)?;
            // A front end that is connected reads the size again when it sees
            // the state written.
            bus.write("state", 4)?;
        }
        Ok(())
    }
}

/// Tells the main thread when a ring's thread ends for a reason of its own, be
/// it a panic.
struct Ending {
    trouble: Arc<Mutex<Option<String>>>,
    attention: Attention,
}

impl Ending {
    fn report(&self, why: String) {
        error!(why, "a ring is given up");
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = Some(why);
        self.attention.call();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report("its thread has died; the log says where".into());
        }
    }
}

fn queues_offered() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(processors.min(MAX_QUEUES)).unwrap_or(1)
}

/// A number of the front end's that may not be more than what we offered.
fn within(
    bus: &mut Bus<'_>,
    node: &'static str,
    default: u32,
    limit: u32,
) -> Result<u32, BlkError> {
    let value = bus.find_front_number(node)?.unwrap_or(default);
    match value <= limit {
        true => Ok(value),
        false => Err(BlkError::TooMuch { node, value, limit }),
    }
}

/// The grants of a ring: `ring-ref` of a single page, or `ring-ref0` and on.
fn ring_refs(bus: &mut Bus<'_>, prefix: &str, order: u32) -> Result<Vec<u32>, BlkError> {
    if order == 0
        && let Some(single) = bus.find_front_number(&format!("{prefix}ring-ref"))?
    {
        return Ok(vec![single]);
    }
    let read = |page| Ok(bus.read_front_number(&format!("{prefix}ring-ref{page}"))?);
    (0..1_u32 << order).map(read).collect()
}

/// Says what the disk can do: for front ends that are not connected yet.
fn offer(spec: &Spec, disk: &Disk, bus: &mut Bus<'_>) -> Result<(), BlkError> {
    bus.write("feature-flush-cache", u32::from(spec.write))?;
    bus.write("feature-barrier", u32::from(spec.write))?;
    bus.write("feature-discard", u32::from(spec.discard))?;
    if spec.discard {
        bus.write("discard-granularity", 4096)?;
        bus.write("discard-alignment", 0)?;
        bus.write("discard-secure", 0)?;
    }
    bus.write("feature-persistent", 1)?;
    bus.write("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS)?;
    bus.write("multi-queue-max-queues", queues_offered())?;
    bus.write("max-ring-page-order", MAX_RING_ORDER)?;
    describe(spec, disk, bus)?;
    bus.write("hotplug-status", "connected")?;
    Ok(())
}

/// Says how large the disk is: what a front end reads when it is connected.
fn describe(spec: &Spec, disk: &Disk, bus: &mut Bus<'_>) -> Result<(), BlkError> {
    let mut info = 0;
    if spec.cdrom {
        info |= VDISK_CDROM;
    }
    if spec.removable {
        info |= VDISK_REMOVABLE;
    }
    if !spec.write {
        info |= VDISK_READONLY;
    }
    bus.write("sectors", disk.rules.sectors)?;
    bus.write("sector-size", 512)?;
    bus.write("physical-sector-size", disk.physical_sector)?;
    bus.write("info", info)?;
    Ok(())
}

fn open_disk(spec: &Spec, bus: &mut Bus<'_>) -> Result<Disk, BlkError> {
    match Disk::open(spec, Instant::now()) {
        Err(BlkError::Busy { path, .. }) => {
            let holder = holder(spec, bus);
            Err(BlkError::Busy { path, holder })
        }
        other => other,
    }
}

/// Which guest has the image, by what xenstore says of all disks.
fn holder(spec: &Spec, bus: &mut Bus<'_>) -> String {
    const DISKS: &str = "/local/domain/0/backend/vbd";
    let own = bus.backend().to_owned();
    let Some(path) = path_of(spec).cloned() else {
        return String::new();
    };
    let store = bus.store();
    for dom in store.children(DISKS).unwrap_or_default() {
        for device in store
            .children(&format!("{DISKS}/{dom}"))
            .unwrap_or_default()
        {
            let disk = format!("{DISKS}/{dom}/{device}");
            let params = store.find(&format!("{disk}/params")).ok().flatten();
            let theirs = params.as_deref().and_then(|text| text.split_once(':'));
            let same = theirs.is_some_and(|(_, theirs)| is_same_file(theirs.as_ref(), &path));
            if !same || disk == own {
                continue;
            }
            let name = store.find(&format!("/local/domain/{dom}/name"));
            let name = name.ok().flatten().unwrap_or_else(|| "?".into());
            return format!("domain {dom} ({name}) uses it as its disk {device}");
        }
    }
    "another program has it open (QEMU, qemu-img, another back end)".into()
}

#[cfg(test)]
mod tests;
