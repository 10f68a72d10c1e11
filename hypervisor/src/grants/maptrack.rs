//! The using side: mappings of other domains' grants, by handle.
//!
//! A guest has one [`MapTrack`]: its mappings are entries of its page tables
//! ([`MapTarget`]). A Dom0 process has one for each of its connections
//! ([`ProcessTarget`]), which ends with the connection, and with it every
//! mapping that it held.
//!
//! Laws:
//! - A mapping is published under its handle after all of it is there, and
//!   is taken out before any of it goes. In between nobody else finds it.
//! - What an unmap has ended ([`Ended`]) still holds the grant, and is dropped
//!   when no CPU has a translation of it any more.

use super::{Access, GrantError, GrantTable, Granted, Use};
use guest_abi::{
    addr::{DomId, GrantRef, Mfn},
    grant_table::{GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP, GNTMAP_READONLY},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a user's host mappings are put: the page tables of a guest.
pub trait MapTarget {
    /// Maps the frame of `granted` as `request` says. Called with no lock of
    /// this module held.
    ///
    /// # Errors
    /// The `GNTST_*` status; then nothing is mapped.
    fn install(&self, request: &MapRequest, granted: &Arc<Granted>) -> Result<Installed, i16>;

    /// Ends the mapping of `frame`, as [`Installed`] named it, that `request`
    /// made, at `unmap.host_addr`; puts the mapping of `unmap.new_addr` there
    /// unless that is 0. CPUs may have a translation of it for a while: the
    /// caller sees to that, and then drops the [`Ended`].
    ///
    /// # Errors
    /// The `GNTST_*` status; then the mapping stands.
    fn remove(&self, request: &MapRequest, unmap: &UnmapRequest, frame: Mfn) -> Result<(), i16>;
}

/// A host mapping, as its target made it.
pub struct Installed {
    /// The frame, as the user knows it.
    pub frame: Mfn,
    /// What ends with the mapping, before the use of the grant does.
    pub place: Option<Box<dyn Send + Sync>>,
}

/// The target of a Dom0 process: it maps the granting domain's memory file
/// itself, so there are no page tables to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessTarget;

impl MapTarget for ProcessTarget {
    fn install(&self, _: &MapRequest, granted: &Arc<Granted>) -> Result<Installed, i16> {
        Ok(Installed {
            frame: granted.frame(),
            place: None,
        })
    }
    fn remove(&self, _: &MapRequest, _: &UnmapRequest, _: Mfn) -> Result<(), i16> {
        Ok(())
    }
}

/// What `GNTTABOP_map_grant_ref` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRequest {
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The grant.
    pub gref: GrantRef,
    /// Virtual address, or machine address of the page-table entry.
    pub host_addr: u64,
}

impl MapRequest {
    fn asks_for(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn access(&self, how: Use) -> Access {
        Access {
            how,
            write: !self.asks_for(GNTMAP_READONLY),
        }
    }
}

/// What a map gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapReply {
    /// Names the mapping for its end.
    pub handle: u32,
    /// The frame: in the user's machine memory if it is a guest, else in the
    /// granting domain's.
    pub frame: Mfn,
    /// Whether it may be written.
    pub writable: bool,
}

/// What `GNTTABOP_unmap_grant_ref` and `unmap_and_replace` ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnmapRequest {
    /// Which mapping.
    pub handle: u32,
    /// As when mapping; 0 leaves the host mapping.
    pub host_addr: u64,
    /// The frame's address; 0 leaves the device mapping.
    pub dev_bus_addr: u64,
    /// What takes the host mapping's place; 0 for nothing.
    pub new_addr: u64,
}

/// A host mapping in force. Dropped, first its place goes, then the use.
struct HostMapping {
    _place: Option<Box<dyn Send + Sync>>,
    _granted: Arc<Granted>,
}

struct Mapping {
    request: MapRequest,
    frame: Mfn,
    host: Option<HostMapping>,
    device: Option<Granted>,
}

/// What an unmap has ended: to be dropped when no CPU has a translation of it,
/// with no lock held.
#[must_use]
pub struct Ended {
    _host: Option<HostMapping>,
    _device: Option<Granted>,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ended")
    }
}

enum Slot {
    Free,
    /// Being made or ended by somebody.
    Taken,
    Mapped(Box<Mapping>),
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    closed: bool,
}

impl Slots {
    fn get_mut(&mut self, handle: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(handle).ok()?)
    }
}

/// The mappings of one user.
pub struct MapTrack {
    dom: DomId,
    limit: u32,
    slots: Mutex<Slots>,
}

impl std::fmt::Debug for MapTrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} mappings of {:?}",
            self.len(),
            self.limit,
            self.dom
        )
    }
}

impl MapTrack {
    /// No mappings; at most `limit`. With a limit of 0 the user can map
    /// nothing and is told so as a Xen domain with `max_maptrack_frames=0` is.
    #[must_use]
    pub fn new(dom: DomId, limit: u32) -> Self {
        MapTrack {
            dom,
            limit,
            slots: Mutex::default(),
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many mappings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let slots = self.slots();
        slots.slots.len() - slots.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// [`map_with`](Self::map_with) for a Dom0 process.
    ///
    /// # Errors
    /// A [`GrantError`]; then nothing is mapped and nothing held.
    pub fn map(
        &self,
        granter: &Arc<GrantTable>,
        request: MapRequest,
    ) -> Result<MapReply, GrantError> {
        self.map_with(&ProcessTarget, granter, request)
    }

    /// `GNTTABOP_map_grant_ref` of a grant of `granter`'s.
    ///
    /// # Errors
    /// A [`GrantError`]; then nothing is mapped and nothing held.
    pub fn map_with(
        &self,
        target: &dyn MapTarget,
        granter: &Arc<GrantTable>,
        request: MapRequest,
    ) -> Result<MapReply, GrantError> {
        if !request.asks_for(GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP) {
            return Err(GrantError::NoMapping(request.flags));
        }
        let handle = self.reserve()?;
        match self.make(target, granter, request) {
            Ok(mapping) => {
                let reply = MapReply {
                    handle,
                    frame: mapping.frame,
                    writable: !request.asks_for(GNTMAP_READONLY),
                };
                self.put(handle, Slot::Mapped(Box::new(mapping)));
                Ok(reply)
            }
            Err(error) => {
                self.put(handle, Slot::Free);
                Err(error)
            }
        }
    }

    fn make(
        &self,
        target: &dyn MapTarget,
        granter: &Arc<GrantTable>,
        request: MapRequest,
    ) -> Result<Mapping, GrantError> {
        let acquire = |flag, how| {
            let wanted = request.asks_for(flag);
            let grant = || granter.acquire(request.gref, self.dom, request.access(how));
            wanted.then(grant).transpose()
        };
        let device = acquire(GNTMAP_DEVICE_MAP, Use::Device)?;
        let host = acquire(GNTMAP_HOST_MAP, Use::Host)?;
        let mut frame = device.as_ref().map_or(Mfn::INVALID, Granted::frame);
        let mut mapped = None;
        if let Some(granted) = host.map(Arc::new) {
            let addr = request.host_addr;
            let installed = target
                .install(&request, &granted)
                .map_err(|status| GrantError::Target { addr, status })?;
            frame = installed.frame;
            mapped = Some(HostMapping {
                _place: installed.place,
                _granted: granted,
            });
        }
        Ok(Mapping {
            request,
            frame,
            host: mapped,
            device,
        })
    }

    /// `GNTTABOP_unmap_grant_ref` and `GNTTABOP_unmap_and_replace`. The handle
    /// is free when neither mapping is left.
    ///
    /// # Errors
    /// A [`GrantError`]; then the mapping is as before.
    pub fn unmap_with(
        &self,
        target: &dyn MapTarget,
        unmap: UnmapRequest,
    ) -> Result<Ended, GrantError> {
        let mut mapping = self.take(unmap.handle)?;
        let ended = Self::end(target, &mut mapping, unmap);
        let left = mapping.host.is_some() || mapping.device.is_some();
        let slot = if left {
            Slot::Mapped(mapping)
        } else {
            Slot::Free
        };
        self.put(unmap.handle, slot);
        ended
    }

    /// Takes the uses that `unmap` ends out of `mapping`.
    fn end(
        target: &dyn MapTarget,
        mapping: &mut Mapping,
        unmap: UnmapRequest,
    ) -> Result<Ended, GrantError> {
        let real = mapping.frame.addr().map_or(0, |at| at.0);
        if unmap.dev_bus_addr != 0 && unmap.dev_bus_addr != real {
            return Err(GrantError::BadBusAddress {
                told: unmap.dev_bus_addr,
                real,
            });
        }
        let mut host = None;
        if unmap.host_addr != 0 && mapping.host.is_some() {
            target
                .remove(&mapping.request, &unmap, mapping.frame)
                .map_err(|status| GrantError::Target {
                    addr: unmap.host_addr,
                    status,
                })?;
            host = mapping.host.take();
        }
        let device = if unmap.dev_bus_addr != 0 {
            mapping.device.take()
        } else {
            None
        };
        Ok(Ended {
            _host: host,
            _device: device,
        })
    }

    /// Ends a mapping of a Dom0 process, whatever it consists of.
    ///
    /// # Errors
    /// [`GrantError::BadHandle`].
    pub fn release(&self, handle: u32) -> Result<(), GrantError> {
        let mapping = self.take(handle)?;
        self.put(handle, Slot::Free);
        drop(mapping);
        Ok(())
    }

    /// Ends mappings of a Dom0 process, all of `handles` or none.
    ///
    /// # Errors
    /// [`GrantError::BadHandle`] with the first that names no mapping, or one
    /// that stands in the list twice.
    pub fn release_each(&self, handles: &[u32]) -> Result<(), GrantError> {
        let mut taken = Vec::with_capacity(handles.len());
        for handle in handles {
            match self.take(*handle) {
                Ok(mapping) => taken.push((*handle, mapping)),
                Err(error) => {
                    for (handle, mapping) in taken {
                        self.put(handle, Slot::Mapped(mapping));
                    }
                    return Err(error);
                }
            }
        }
        for (handle, mapping) in taken {
            self.put(handle, Slot::Free);
            drop(mapping);
        }
        Ok(())
    }

    /// Ends all mappings for ever, as the user is gone: a guest's page tables
    /// are no longer run, a process no longer lives.
    pub fn release_all(&self) {
        let closed = Slots {
            closed: true,
            ..Slots::default()
        };
        let held = std::mem::replace(&mut *self.slots(), closed);
        drop(held);
    }

    fn reserve(&self) -> Result<u32, GrantError> {
        let mut slots = self.slots();
        let handle = u32::try_from(slots.slots.len()).unwrap_or(u32::MAX);
        if let Some(handle) = slots.free.pop() {
            if let Some(slot) = slots.get_mut(handle) {
                *slot = Slot::Taken;
            }
            return Ok(handle);
        }
        if handle >= self.limit || slots.closed {
            return Err(GrantError::NoHandle(self.limit));
        }
        slots.slots.push(Slot::Taken);
        Ok(handle)
    }

    fn take(&self, handle: u32) -> Result<Box<Mapping>, GrantError> {
        let mut slots = self.slots();
        let slot = slots
            .get_mut(handle)
            .filter(|slot| matches!(slot, Slot::Mapped(_)));
        match slot.map(|slot| std::mem::replace(slot, Slot::Taken)) {
            Some(Slot::Mapped(mapping)) => Ok(mapping),
            _ => Err(GrantError::BadHandle(handle)),
        }
    }

    /// Gives a taken handle its content back. A mapping that came too late for
    /// `release_all` ends here.
    fn put(&self, handle: u32, mut slot: Slot) {
        let mut slots = self.slots();
        if let Some(place) = slots.get_mut(handle) {
            std::mem::swap(place, &mut slot);
            if matches!(place, Slot::Free) {
                slots.free.push(handle);
            }
        }
        drop(slots);
        drop(slot);
    }
}
