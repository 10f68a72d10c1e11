//! References as a multiset (XSA-218, XSA-224): random mappings, ends of
//! mappings and scribbling by the granting domain, against a list of what is
//! held. After each step the marks in the entries and the references on the
//! frames are exactly those of the list.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    /// The guest writes an entry (its marks too, if it likes).
    Write {
        gref: u32,
        flags: u16,
        dom: u16,
        frame: u64,
    },
    /// The guest takes a grant back by the rules.
    Revoke {
        gref: u32,
    },
    Map {
        user: usize,
        gref: u32,
        flags: u32,
    },
    Unmap {
        user: usize,
        handle: u32,
        host: bool,
        device: bool,
    },
    Release {
        user: usize,
        handle: u32,
    },
    Swap {
        a: u32,
        b: u32,
    },
}

const GRANTS: u32 = 4;
const USERS: [u16; 2] = [0, 5];

fn operations() -> impl Strategy<Value = Op> {
    let gref = || 0..GRANTS;
    let user = || 0..USERS.len();
    let handle = || 0u32..5;
    let entry_flags = prop_oneof![
        4 => Just(GTF_PERMIT_ACCESS),
        1 => Just(GTF_PERMIT_ACCESS | GTF_READONLY),
        1 => Just(GTF_ACCEPT_TRANSFER),
        1 => any::<u16>(),
    ];
    let dom = prop_oneof![Just(0u16), Just(5)];
    let map_flags = prop_oneof![
        Just(GNTMAP_HOST_MAP),
        Just(GNTMAP_DEVICE_MAP),
        Just(GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP),
    ];
    let read_only = prop_oneof![Just(0), Just(GNTMAP_READONLY)];
    prop_oneof![
        4 => (gref(), entry_flags, dom, 6u64..14)
            .prop_map(|(gref, flags, dom, frame)| Op::Write { gref, flags, dom, frame }),
        2 => gref().prop_map(|gref| Op::Revoke { gref }),
        8 => (user(), gref(), map_flags, read_only)
            .prop_map(|(user, gref, flags, ro)| Op::Map { user, gref, flags: flags | ro }),
        5 => (user(), handle(), any::<bool>(), any::<bool>())
            .prop_map(|(user, handle, host, device)| Op::Unmap { user, handle, host, device }),
        2 => (user(), handle()).prop_map(|(user, handle)| Op::Release { user, handle }),
        1 => (gref(), gref()).prop_map(|(a, b)| Op::Swap { a, b }),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Held {
    user: usize,
    handle: u32,
    gref: u32,
    frame: u64,
    write: bool,
    host: bool,
    device: bool,
}

impl Held {
    fn refs(self) -> u32 {
        u32::from(self.host) + u32::from(self.device)
    }
}

struct Run {
    a: Granter,
    maps: Vec<MapTrack>,
    held: Vec<Held>,
    /// Marks that the guest wrote itself, per grant.
    forged: BTreeMap<u32, u16>,
}

impl Run {
    fn new() -> Self {
        let maps = USERS.iter().map(|dom| MapTrack::new(DomId(*dom), 5));
        let a = Granter::new(3);
        a.memory.make_table(13);
        Run {
            maps: maps.collect(),
            a,
            held: Vec::new(),
            forged: BTreeMap::new(),
        }
    }

    /// The marks that the uses held call for.
    fn marks(&self, gref: u32) -> u16 {
        let uses = || self.held.iter().filter(|it| it.gref == gref);
        let read = if uses().count() > 0 { GTF_READING } else { 0 };
        let written = if uses().any(|it| it.write) {
            GTF_WRITING
        } else {
            0
        };
        read | written
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write {
                gref,
                flags,
                dom,
                frame,
            } => {
                // A guest that forges or drops marks deceives only itself; the
                // comparison leaves those grants out.
                let marks = GTF_READING | GTF_WRITING;
                let honest = flags & marks == 0;
                self.a.grant(
                    gref,
                    if honest {
                        flags | self.marks(gref)
                    } else {
                        flags
                    },
                    dom,
                    frame,
                );
                if honest {
                    self.forged.remove(&gref);
                } else {
                    self.forged.insert(gref, flags);
                }
            }
            Op::Revoke { gref } => {
                let revoked = self.a.revoke(gref);
                if !self.forged.contains_key(&gref) {
                    assert_eq!(revoked, self.marks(gref) == 0);
                }
            }
            Op::Map { user, gref, flags } => self.map(user, gref, flags),
            Op::Unmap {
                user,
                handle,
                host,
                device,
            } => self.unmap(user, handle, host, device),
            Op::Release { user, handle } => {
                let known = self
                    .held
                    .iter()
                    .position(|it| (it.user, it.handle) == (user, handle));
                assert_eq!(self.maps[user].release(handle).is_ok(), known.is_some());
                known.map(|index| self.held.swap_remove(index));
            }
            Op::Swap { a, b } => {
                let used = self.held.iter().any(|it| it.gref == a || it.gref == b);
                let swapped = self.a.table.swap(GrantRef(a), GrantRef(b));
                assert_eq!(swapped.is_ok(), a == b || !used);
                if swapped.is_ok() {
                    let (fa, fb) = (self.forged.remove(&a), self.forged.remove(&b));
                    fa.map(|flags| self.forged.insert(b, flags));
                    fb.map(|flags| self.forged.insert(a, flags));
                }
            }
        }
    }

    fn map(&mut self, user: usize, gref: u32, flags: u32) {
        let request = MapRequest {
            flags,
            gref: GrantRef(gref),
            host_addr: 0x1000,
        };
        let Ok(reply) = self.maps[user].map(&self.a.table, request) else {
            return;
        };
        let before = self.held.iter().find(|it| it.gref == gref);
        if let Some(before) = before {
            assert_eq!((before.user, before.frame), (user, reply.frame.0));
        }
        assert!(
            !(reply.writable && reply.frame == Mfn(13)),
            "a page table is not written"
        );
        self.held.push(Held {
            user,
            handle: reply.handle,
            gref,
            frame: reply.frame.0,
            write: reply.writable,
            host: flags & GNTMAP_HOST_MAP != 0,
            device: flags & GNTMAP_DEVICE_MAP != 0,
        });
    }

    fn unmap(&mut self, user: usize, handle: u32, host: bool, device: bool) {
        let known = self
            .held
            .iter()
            .position(|it| (it.user, it.handle) == (user, handle));
        let frame = known.map_or(1, |index| self.held[index].frame);
        let request = UnmapRequest {
            handle,
            host_addr: if host { 0x1000 } else { 0 },
            dev_bus_addr: if device { frame * PAGE_SIZE } else { 0 },
            new_addr: 0,
        };
        assert_eq!(
            self.maps[user].unmap_with(&ProcessTarget, request).is_ok(),
            known.is_some()
        );
        let Some(index) = known else { return };
        let it = &mut self.held[index];
        it.host &= !host;
        it.device &= !device;
        if it.refs() == 0 {
            self.held.swap_remove(index);
        }
    }

    fn check(&self) {
        for frame in 0..PAGES {
            let uses = || self.held.iter().filter(|it| it.frame == frame);
            let all = uses().map(|it| it.refs()).sum::<u32>();
            let writes = uses()
                .filter(|it| it.write)
                .map(|it| it.refs())
                .sum::<u32>();
            assert_eq!(self.a.memory.refs(frame), (all, writes), "frame {frame}");
        }
        for gref in (0..GRANTS).filter(|gref| !self.forged.contains_key(gref)) {
            let marks = self.a.flags(gref) & (GTF_READING | GTF_WRITING);
            assert_eq!(marks, self.marks(gref), "grant {gref}");
        }
        for (user, maps) in self.maps.iter().enumerate() {
            assert_eq!(
                maps.len(),
                self.held.iter().filter(|it| it.user == user).count()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn references_are_a_multiset(ops in prop::collection::vec(operations(), 1..80)) {
        let mut run = Run::new();
        for op in &ops {
            run.apply(op);
            run.check();
        }
        run.maps.clear();
        run.held.clear();
        run.check();
        prop_assert_eq!(run.a.table.in_use(), 0);
    }
}
