//! A disk.

use alloc::{vec, vec::Vec};

use axdriver_base::{BaseDriverOps, DevError, DevResult, DeviceType};
use axdriver_block::BlockDriverOps;
use guest_abi::kernel::blkfront::{BlkError, Blkfront, Disk, SECTOR};
use log::{info, warn};

use crate::bus;

/// Requests at once, and pages of each.
type Front = Blkfront<4, 8>;
/// The ring, and the pages of the requests.
pub const PAGES: usize = 1 + 4 * 8;

/// Sectors that are read at once: ArceOS' file systems ask for one at a time.
const AHEAD: usize = 64;

/// The first disk of the domain.
pub struct XenBlk {
    front: Front,
    disk: Disk,
    /// The sectors last read, from `cached` on; ours alone, as the disk is.
    ahead: Vec<u8>,
    cached: Option<u64>,
}

// SAFETY: by shared reference only what was told at the start is read.
unsafe impl Sync for XenBlk {}

impl XenBlk {
    /// Finds the disk; `None` if there is none, or its back end does not come.
    #[must_use]
    pub fn probe() -> Option<Self> {
        let (ring, buffers) = (bus::PAGES.take()?, bus::PAGES.take_grid()?);
        let found = bus::with(|bus| {
            let mut front = Front::open(bus, 0, ring, buffers)?;
            let disk = front.connect(bus, bus::deadline())?;
            Ok::<_, BlkError>((front, disk))
        })?;
        let (front, disk) = found.inspect_err(|error| warn!("no disk: {error}")).ok()?;
        if disk.sector_size != SECTOR as u64 {
            warn!("a disk with sectors of {} bytes", disk.sector_size);
            return None;
        }
        info!("xvda: {} sectors", disk.sectors);
        Some(Self {
            front,
            disk,
            ahead: vec![0; AHEAD * SECTOR],
            cached: None,
        })
    }

    /// The sectors around `sector`, as many as there are.
    fn read_ahead(&mut self, sector: u64) -> DevResult<&[u8]> {
        let first = sector - sector % AHEAD as u64;
        let left = self
            .disk
            .sectors
            .checked_sub(first)
            .filter(|&left| left > 0);
        let left = left.ok_or(DevError::InvalidParam)?;
        let length = usize::try_from(left).map_or(AHEAD, |left| left.min(AHEAD)) * SECTOR;
        if self.cached != Some(first) {
            self.cached = None;
            let piece = &mut self.ahead[..length];
            on_bus(|bus| self.front.read(bus, first, piece))?;
            self.cached = Some(first);
        }
        Ok(&self.ahead[..length])
    }
}

/// Says what went wrong, and what ArceOS calls it.
fn on_bus(
    what: impl FnOnce(&mut guest_abi::kernel::xenbus::Bus) -> Result<(), BlkError>,
) -> DevResult {
    let done = bus::with(what).ok_or(DevError::BadState)?;
    done.map_err(|error| {
        warn!("xvda: {error}");
        match error {
            BlkError::OutOfRange { .. } | BlkError::Length(_) => DevError::InvalidParam,
            _ => DevError::Io,
        }
    })
}

impl BaseDriverOps for XenBlk {
    fn device_name(&self) -> &str {
        "xen-pv-blk"
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }
}

impl BlockDriverOps for XenBlk {
    fn num_blocks(&self) -> u64 {
        self.disk.sectors
    }

    fn block_size(&self) -> usize {
        SECTOR
    }

    fn read_block(&mut self, block_id: u64, buf: &mut [u8]) -> DevResult {
        let (sectors, rest) = buf.as_chunks_mut::<SECTOR>();
        if !rest.is_empty() {
            return Err(DevError::InvalidParam);
        }
        for (sector, piece) in (block_id..).zip(sectors) {
            let ahead = self.read_ahead(sector)?;
            let at = (sector % AHEAD as u64) as usize * SECTOR;
            let found = ahead.get(at..at + SECTOR).ok_or(DevError::InvalidParam)?;
            piece.copy_from_slice(found);
        }
        Ok(())
    }

    fn write_block(&mut self, block_id: u64, buf: &[u8]) -> DevResult {
        self.cached = None;
        on_bus(|bus| self.front.write(bus, block_id, buf))
    }

    fn flush(&mut self) -> DevResult {
        on_bus(|bus| self.front.flush(bus))
    }
}
