//! Threads that map, copy, unmap and scribble at once, for a bounded time.

use super::*;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_millis(300);

#[test]
fn users_and_a_scribbling_granter() {
    let (a, b) = (Granter::new(3), Granter::new(4));
    let world = World::of(&[&a, &b]);
    let maps = [dom0(), MapTrack::new(DomId(4), 64)];
    let end = Instant::now() + LONG;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u32.. {
                if Instant::now() > end {
                    break;
                }
                let frame = 9 + u64::from(round % 4);
                a.grant(
                    1,
                    GTF_PERMIT_ACCESS,
                    u16::try_from(round % 2 * 4).unwrap(),
                    frame,
                );
                a.revoke(1);
            }
        });
        for user in &maps {
            for _ in 0..2 {
                scope.spawn(|| {
                    while Instant::now() < end {
                        let flags = GNTMAP_DEVICE_MAP;
                        if let Ok(reply) = user.map(&a.table, host(1, flags)) {
                            let bus = reply.frame.0 * PAGE_SIZE;
                            let half = UnmapRequest {
                                handle: reply.handle,
                                host_addr: 0,
                                dev_bus_addr: bus,
                                new_addr: 0,
                            };
                            drop(user.unmap_with(&ProcessTarget, half).unwrap());
                            user.release(reply.handle).unwrap();
                        }
                    }
                });
            }
        }
        scope.spawn(|| {
            let source = GnttabCopyPtr {
                u: 1,
                domid: 3,
                offset: 0,
                _pad: 0,
            };
            let dest = GnttabCopyPtr {
                u: 12,
                domid: DomId::SELF.0,
                offset: 0,
                _pad: 0,
            };
            let flags = GNTCOPY_SOURCE_GREF;
            let op = GnttabCopy {
                source,
                dest,
                len: 64,
                flags,
                status: 0,
                _pad: 0,
            };
            while Instant::now() < end {
                let _ = copy(&b.table, &world, &op);
            }
        });
    });
    assert_eq!(a.table.in_use() + maps[0].len() + maps[1].len(), 0);
    for granter in [&a, &b] {
        assert!((0..PAGES).all(|frame| granter.memory.refs(frame) == (0, 0)));
    }
}

/// While a user holds a grant by the rules, the granting domain cannot take it
/// back by the rules: whoever wins the race, both agree.
#[test]
fn a_grant_is_either_revoked_or_used() {
    let a = Granter::new(3);
    for _ in 0..2000 {
        a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
        let maps = dom0();
        let (mapped, revoked) = std::thread::scope(|scope| {
            let map = scope.spawn(|| maps.map(&a.table, host(1, 0)).is_ok());
            let revoke = scope.spawn(|| a.revoke(1));
            (map.join().unwrap(), revoke.join().unwrap())
        });
        assert!(!(mapped && revoked), "in use and taken back");
        assert!(mapped || revoked || a.flags(1) == GTF_PERMIT_ACCESS);
    }
}

#[test]
fn two_unmaps_of_one_handle_end_it_once() {
    let a = Granter::new(3);
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let maps = dom0();
    for _ in 0..2000 {
        let handle = maps.map(&a.table, host(1, 0)).unwrap().handle;
        let ended = std::thread::scope(|scope| {
            let one = scope.spawn(|| maps.release(handle).is_ok());
            let other = scope.spawn(|| maps.release(handle).is_ok());
            u32::from(one.join().unwrap()) + u32::from(other.join().unwrap())
        });
        assert_eq!((ended, a.memory.refs(10)), (1, (0, 0)));
    }
}

#[test]
fn the_end_of_a_user_in_the_middle_of_a_map() {
    let a = Granter::new(3);
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    for _ in 0..500 {
        let maps = dom0();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..8).for_each(|_| drop(maps.map(&a.table, host(1, 0)))));
            scope.spawn(|| maps.release_all());
        });
        assert_eq!(
            (maps.len(), a.memory.refs(10), a.table.in_use()),
            (0, (0, 0), 0)
        );
    }
}
