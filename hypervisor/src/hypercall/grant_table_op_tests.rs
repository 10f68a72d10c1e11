use super::*;
use crate::{
    grants::{
        ProcessTarget,
        tests::{Granter, World},
    },
    hypercall::test_guest::TestGuest,
    shared_words::SharedWords,
};
use zerocopy::Immutable;

const ARG: GuestVirt = GuestVirt(0x100);
const SELF: u16 = DomId::SELF.0;

struct Fixture {
    own: Granter,
    maps: MapTrack,
    world: World,
    guest: TestGuest,
    far: Granter,
}

impl Fixture {
    fn new() -> Self {
        let (own, far) = (Granter::new(4), Granter::new(3));
        let maps = MapTrack::new(DomId(4), 100);
        let world = World::of(&[&own, &far]);
        Fixture {
            own,
            far,
            maps,
            world,
            guest: TestGuest::new(32768),
        }
    }

    fn op(&self, cmd: u32, arg: GuestVirt, count: u32) -> Result<Progress, Errno> {
        let (own, maps, ended) = (&self.own.table, &self.maps, RefCell::default());
        let caller = GrantCaller {
            own,
            maps,
            target: &ProcessTarget,
            domains: &self.world,
            guest: &self.guest,
            ended: &ended,
        };
        grant_table_op(&caller, cmd, arg, count)
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, cmd: u32, arg: T) -> Result<T, Errno> {
        self.guest.write_obj(ARG, &arg).unwrap();
        assert_eq!(self.op(cmd, ARG, 1)?, Progress::Done);
        self.guest.read_obj(ARG)
    }
}

#[test]
fn the_frames_of_a_table_are_told() {
    let f = Fixture::new();
    let setup = |dom, nr_frames, frame_list| {
        let arg = GnttabSetupTable {
            dom,
            nr_frames,
            frame_list,
            ..GnttabSetupTable::default()
        };
        f.call(GNTTABOP_SETUP_TABLE, arg).map(|arg| arg.status)
    };
    assert_eq!(setup(SELF, 2, 0x800), Ok(GNTST_OKAY));
    assert_eq!(
        f.guest.read_obj::<[u64; 3]>(GuestVirt(0x800)),
        Ok([0, 1, 0])
    );
    assert_eq!(setup(4, 5, 0x800), Ok(GNTST_GENERAL_ERROR));
    assert_eq!(setup(3, 1, 0x800), Ok(GNTST_PERMISSION_DENIED));
    assert_eq!(setup(9, 1, 0x800), Ok(GNTST_BAD_DOMAIN));
    assert_eq!(setup(SELF, 1, 32764), Ok(GNTST_BAD_VIRT_ADDR));
    assert_eq!(setup(SELF, 1, 0xffff_8000_0000_0000), Err(Errno::EFAULT));
    assert_eq!(f.op(GNTTABOP_SETUP_TABLE, ARG, 2), Err(Errno::EINVAL));
    let query = |dom| {
        let arg = GnttabQuerySize {
            dom,
            ..GnttabQuerySize::default()
        };
        let told = f.call(GNTTABOP_QUERY_SIZE, arg).unwrap();
        (told.status, told.nr_frames, told.max_nr_frames)
    };
    assert_eq!(query(SELF), (GNTST_OKAY, 2, 4));
    assert_eq!(query(3), (GNTST_PERMISSION_DENIED, 0, 0));
}

#[test]
fn both_versions_are_there() {
    let f = Fixture::new();
    let set = |version| {
        let arg = GnttabSetVersion { version };
        f.call(GNTTABOP_SET_VERSION, arg).map(|arg| arg.version)
    };
    let get = |dom| {
        let arg = GnttabGetVersion {
            dom,
            pad: 0,
            version: 7,
        };
        f.call(GNTTABOP_GET_VERSION, arg).map(|arg| arg.version)
    };
    let status = |nr_frames, frame_list| {
        let arg = GnttabGetStatusFrames {
            nr_frames,
            dom: SELF,
            frame_list,
            ..Default::default()
        };
        f.call(GNTTABOP_GET_STATUS_FRAMES, arg).unwrap().status
    };
    assert_eq!(
        (get(SELF), get(3), get(9)),
        (Ok(1), Err(Errno::EPERM), Err(Errno::ESRCH))
    );
    assert_eq!(
        (status(0, 0x800), status(1, 0x800)),
        (GNTST_OKAY, GNTST_GENERAL_ERROR)
    );
    assert_eq!((set(1), set(3)), (Ok(1), Err(Errno::EINVAL)));
    assert_eq!((set(2), get(SELF), set(2)), (Ok(2), Ok(2), Ok(2)));
    assert_eq!(
        (status(1, 0x800), status(2, 0x800)),
        (GNTST_OKAY, GNTST_GENERAL_ERROR)
    );
    assert_eq!(f.guest.read_obj::<[u64; 2]>(GuestVirt(0x800)), Ok([1, 0]));
    assert_eq!(status(1, 32764), GNTST_BAD_VIRT_ADDR);

    // A grant in use: refused, and the version that there is is told.
    let entry = u64::from(GTF_PERMIT_ACCESS) | 4 << 16;
    f.own.memory.pages.store_u64(MachineAddr(9 * 16 + 8), 10);
    f.own.memory.pages.store_u64(MachineAddr(9 * 16), entry);
    let held = f.own.table.acquire(
        GrantRef(9),
        DomId(4),
        crate::grants::Access {
            how: crate::grants::Use::Host,
            write: true,
        },
    );
    assert_eq!(set(1), Err(Errno::EBUSY));
    assert_eq!(f.guest.read_obj(ARG), Ok(2u32));
    drop(held);
    assert_eq!((set(1), get(SELF)), (Ok(1), Ok(1)));
}

#[test]
fn a_map_and_its_unmap() {
    let f = Fixture::new();
    f.far.grant(9, GTF_PERMIT_ACCESS, 4, 10);
    let arg = GnttabMapGrantRef {
        host_addr: 0x7000,
        flags: GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP,
        gref: 9,
        dom: 3,
        ..GnttabMapGrantRef::default()
    };
    let mapped = f.call(GNTTABOP_MAP_GRANT_REF, arg).unwrap();
    assert_eq!(
        (mapped.status, mapped.dev_bus_addr),
        (GNTST_OKAY, 10 * PAGE_SIZE)
    );
    let own = GnttabMapGrantRef { dom: SELF, ..arg };
    assert_eq!(
        f.call(GNTTABOP_MAP_GRANT_REF, own).unwrap().status,
        GNTST_BAD_DOMAIN
    );
    let replace = GnttabUnmapAndReplace {
        host_addr: 0x7000,
        new_addr: 0x8000,
        handle: mapped.handle,
        ..GnttabUnmapAndReplace::default()
    };
    assert_eq!(
        f.call(GNTTABOP_UNMAP_AND_REPLACE, replace).unwrap().status,
        GNTST_OKAY
    );
    assert_eq!(f.far.memory.refs(10), (1, 1));
    let unmap = GnttabUnmapGrantRef {
        dev_bus_addr: 10 * PAGE_SIZE,
        handle: mapped.handle,
        ..GnttabUnmapGrantRef::default()
    };
    assert_eq!(
        f.call(GNTTABOP_UNMAP_GRANT_REF, unmap).unwrap().status,
        GNTST_OKAY
    );
    assert_eq!(
        f.call(GNTTABOP_UNMAP_GRANT_REF, unmap).unwrap().status,
        GNTST_BAD_HANDLE
    );
    assert_eq!(f.far.memory.refs(10), (0, 0));
}

#[test]
fn each_element_has_its_status_and_a_long_array_continues() {
    let f = Fixture::new();
    f.far.grant(1, GTF_PERMIT_ACCESS, 4, 10);
    let size = size_of::<GnttabCopy>() as u64;
    let count = BATCH + 3;
    for index in 0..u64::from(count) {
        let source = GnttabCopyPtr {
            u: index % 2,
            domid: 3,
            ..GnttabCopyPtr::default()
        };
        let dest = GnttabCopyPtr {
            u: 11,
            domid: SELF,
            ..GnttabCopyPtr::default()
        };
        let (len, flags, status) = (8, GNTCOPY_SOURCE_GREF, 99);
        let op = GnttabCopy {
            source,
            dest,
            len,
            flags,
            status,
            ..GnttabCopy::default()
        };
        f.guest.write_element(ARG, index, &op).unwrap();
    }
    let status = |index| {
        f.guest
            .read_element::<GnttabCopy>(ARG, index)
            .unwrap()
            .status
    };
    let rest = GuestVirt(ARG.0 + u64::from(BATCH) * size);
    let progress = f.op(GNTTABOP_COPY, ARG, count);
    assert_eq!(
        progress,
        Ok(Progress::Continue {
            arg: rest,
            count: 3
        })
    );
    assert_eq!((status(0), status(1)), (GNTST_GENERAL_ERROR, GNTST_OKAY));
    assert_eq!(status(u64::from(BATCH)), 99);
    assert_eq!(f.op(GNTTABOP_COPY, rest, 3), Ok(Progress::Done));
    assert_eq!(status(u64::from(count - 1)), GNTST_GENERAL_ERROR);
}

#[test]
fn transfers_are_refused_element_by_element() {
    let f = Fixture::new();
    let transfer = |mfn| {
        let arg = GnttabTransfer {
            mfn,
            domid: 3,
            ..GnttabTransfer::default()
        };
        f.call(GNTTABOP_TRANSFER, arg).unwrap().status
    };
    assert_eq!(
        (transfer(10), transfer(2)),
        (GNTST_GENERAL_ERROR, GNTST_BAD_PAGE)
    );
    assert_eq!(f.own.memory.refs(10), (0, 0));
}

#[test]
fn swaps_and_cache_flushes() {
    let f = Fixture::new();
    let swap = |ref_a, ref_b| {
        let arg = GnttabSwapGrantRef {
            ref_a,
            ref_b,
            ..GnttabSwapGrantRef::default()
        };
        f.call(GNTTABOP_SWAP_GRANT_REF, arg).unwrap().status
    };
    assert_eq!((swap(1, 2), swap(1, 512)), (GNTST_OKAY, GNTST_BAD_GNTREF));
    let flush = |a, offset, length, op| {
        f.call(
            GNTTABOP_CACHE_FLUSH,
            GnttabCacheFlush {
                a,
                offset,
                length,
                op,
            },
        )
        .map(|_| ())
    };
    let page = 10 * PAGE_SIZE;
    assert_eq!(flush(page, 0, 4096, GNTTAB_CACHE_CLEAN), Ok(()));
    assert_eq!(
        flush(page, 0, 1, GNTTAB_CACHE_INVAL),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        flush(page, 0, 1, GNTTAB_CACHE_SOURCE_GREF),
        Err(Errno::EINVAL)
    );
    assert_eq!(flush(page, 4095, 2, GNTTAB_CACHE_CLEAN), Err(Errno::EINVAL));
    assert_eq!(flush(0, 0, 1, GNTTAB_CACHE_CLEAN), Err(Errno::EINVAL));
    assert_eq!(flush(0, 0, 0, GNTTAB_CACHE_CLEAN), Ok(()));
}

#[test]
fn arguments_that_make_no_sense() {
    let f = Fixture::new();
    assert_eq!(f.op(GNTTABOP_DUMP_TABLE, ARG, 1), Err(Errno::ENOSYS));
    assert_eq!(f.op(13, ARG, 1), Err(Errno::ENOSYS));
    assert_eq!(f.op(GNTTABOP_COPY | 1 << 12, ARG, 1), Err(Errno::EINVAL));
    assert_eq!(f.op(GNTTABOP_COPY, ARG, 1 << 31), Err(Errno::EINVAL));
    assert_eq!(f.op(GNTTABOP_COPY, ARG, 0), Ok(Progress::Done));
    assert_eq!(f.op(GNTTABOP_COPY, GuestVirt(32760), 1), Err(Errno::EFAULT));
    let reserved = GuestVirt(0xffff_8080_0000_0000);
    assert_eq!(f.op(GNTTABOP_COPY, reserved, 1), Err(Errno::EFAULT));
    assert_eq!(
        f.op(GNTTABOP_COPY, GuestVirt(u64::MAX - 8), i32::MAX as u32),
        Err(Errno::EFAULT)
    );
}
