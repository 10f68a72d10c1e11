//! Descriptor tables.

use super::*;
use crate::paging::descriptor::checked_descriptor;

const CODE64: u64 = 0x00af_9b00_0000_ffff; // level 0
const CODE64_RING3: u64 = 0x00af_fb00_0000_ffff;
const DATA_RING3: u64 = 0x00cf_f300_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;
const GATE: u64 = 0x0000_ec00_0033_1000; // to 0x33

#[test]
fn segments_are_made_ring_3() {
    assert_eq!(checked_descriptor(0), Some(0));
    assert_eq!(checked_descriptor(CODE64), Some(CODE64_RING3));
    assert_eq!(checked_descriptor(DATA_RING3), Some(DATA_RING3));
    let absent = TSS & !(1 << 47);
    assert_eq!(checked_descriptor(absent), Some(absent));
}

#[test]
fn system_segments_and_gates_are_refused() {
    for kind in (1..16).filter(|kind| *kind != 0xc) {
        let system = (TSS & !(0xf << 40)) | (kind << 40);
        assert_eq!(checked_descriptor(system), None, "type {kind:#x}");
        let ring3 = system | (3 << 45);
        assert_eq!(checked_descriptor(ring3), None, "type {kind:#x}");
    }
}

#[test]
fn call_gates_trap_and_enter_guest_code_only() {
    assert_eq!(checked_descriptor(GATE), Some(GATE & !(3 << 45)));
    let xen_cs = (GATE & !(0xffff << 16)) | (0xe033 << 16);
    assert!(checked_descriptor(xen_cs).is_some());
    let reserved = (GATE & !(0xffff << 16)) | (0xe008 << 16);
    assert_eq!(checked_descriptor(reserved), None);
    assert_eq!(checked_descriptor(GATE | (1 << 32)), None);
}

#[test]
fn set_gdt_takes_checked_frames() {
    let mut d = Domain::with_tree(8);
    d.poke(5, 2, Pte(CODE64));
    d.paging
        .set_gdt(&d.memory, V0, &[mfn(5), mfn(6)], 600)
        .unwrap();
    assert_eq!(d.pte(5, 2), Pte(CODE64_RING3));
    assert_eq!(d.frame_type(5), (FrameType::SegDesc, 1));
    let (frames, entries) = d.paging.gdt(V0).unwrap();
    assert_eq!((frames, entries), (&[mfn(5), mfn(6)][..], 600));
    d.audit();
    d.refuses(Errno::EBUSY, |d| d.update(3, 9, maps(5, RW)));
    d.update(3, 9, maps(5, RO)).unwrap();
    // The same frame for another vCPU, then both are released.
    d.paging
        .set_gdt(&d.memory, VcpuId(1), &[mfn(5)], 1)
        .unwrap();
    d.paging.set_gdt(&d.memory, V0, &[], 0).unwrap();
    assert_eq!(d.frame_type(5), (FrameType::SegDesc, 1));
    d.paging.set_gdt(&d.memory, VcpuId(1), &[], 0).unwrap();
    d.update(3, 9, maps(5, RW)).unwrap();
    d.audit();
}

#[test]
fn set_gdt_refuses_as_a_whole() {
    let mut d = Domain::with_tree(8);
    d.paging.set_gdt(&d.memory, V0, &[mfn(7)], 512).unwrap();
    d.poke(6, 511, Pte(TSS));
    d.poke(5, 0, Pte(CODE64));
    let set = |frames: &'static [u64], entries| {
        move |d: &mut Domain| {
            let frames: Vec<Mfn> = frames.iter().map(|f| mfn(*f)).collect();
            d.paging.set_gdt(&d.memory, V0, &frames, entries)
        }
    };
    d.refuses(Errno::EINVAL, set(&[5, 6], 1024)); // an unsafe descriptor
    d.refuses(Errno::EINVAL, set(&[5, 3], 1024)); // a page table
    d.refuses(Errno::EINVAL, set(&[5, 4], 1024)); // mapped writable
    d.refuses(Errno::EINVAL, set(&[5, 99], 1024));
    d.refuses(Errno::EINVAL, set(&[5], 1024));
    d.refuses(Errno::EINVAL, set(&[5], 7169));
    d.refuses(Errno::EINVAL, set(&[], u32::MAX));
    assert_eq!(d.paging.gdt(V0).unwrap().0, &[mfn(7)]);
    assert_eq!(d.pte(6, 511), Pte(TSS), "a refused frame is left alone");
}

#[test]
fn update_descriptor_checks_where_and_what() {
    let mut d = Domain::with_tree(8);
    d.paging.set_gdt(&d.memory, V0, &[mfn(5)], 512).unwrap();
    d.paging
        .update_descriptor(&d.memory, entry(5, 3), CODE64)
        .unwrap();
    assert_eq!(d.pte(5, 3), Pte(CODE64_RING3));
    d.paging
        .update_descriptor(&d.memory, entry(4, 3), DATA_RING3)
        .unwrap(); // plain data
    let at = |at, value| move |d: &mut Domain| d.paging.update_descriptor(&d.memory, at, value);
    d.refuses(Errno::EINVAL, at(entry(5, 3), TSS));
    d.refuses(Errno::EINVAL, at(entry(3, 3), 0)); // a page table
    d.refuses(Errno::EINVAL, at(MachineAddr(entry(5, 3).0 + 4), 0));
    d.refuses(Errno::EINVAL, at(entry(99, 3), 0));
}

#[test]
fn ldt_pages_are_taken_at_their_first_use() {
    let mut d = Domain::with_tree(8);
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.paging.set_ldt(&d.memory, V0, va(6), 600).unwrap();
    d.refuses(Errno::EINVAL, |d| d.paging.ldt_frame(&d.memory, V0, 0));
    d.update(3, 6, maps(6, RO)).unwrap();
    d.update(3, 7, maps(4, RO)).unwrap();
    assert_eq!(d.paging.ldt_frame(&d.memory, V0, 0), Ok(mfn(6)));
    assert_eq!(d.frame_type(6), (FrameType::SegDesc, 1));
    d.refuses(Errno::EINVAL, |d| d.paging.ldt_frame(&d.memory, V0, 1)); // writable
    d.refuses(Errno::EINVAL, |d| d.paging.ldt_frame(&d.memory, V0, 2));
    assert_eq!(d.paging.ldt(V0).unwrap(), (va(6), 600));
    // The same LDT again keeps its pages; another one gives them back.
    d.paging.set_ldt(&d.memory, V0, va(6), 600).unwrap();
    assert_eq!(d.frame_type(6).1, 1);
    d.paging.set_ldt(&d.memory, V0, va(6), 601).unwrap();
    assert_eq!(d.frame_type(6).1, 0);
    d.paging.ldt_frame(&d.memory, V0, 0).unwrap();
    // The same root again changes nothing; under another one the pages are
    // found anew.
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    assert_eq!(d.frame_type(6).1, 1);
    d.paging.new_baseptr(&d.memory, V0, mfn(5)).unwrap();
    assert_eq!(d.frame_type(6).1, 0);
    d.audit();
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.paging.ldt_frame(&d.memory, V0, 0).unwrap();
    d.paging.release_vcpu(&d.memory, V0).unwrap();
    assert_eq!(d.frame_type(6).1, 0);
    d.audit();
}

#[test]
fn an_ldt_has_a_sane_place_and_size() {
    let mut d = Domain::with_tree(8);
    let set = |base, entries| {
        move |d: &mut Domain| d.paging.set_ldt(&d.memory, V0, GuestVirt(base), entries)
    };
    d.refuses(Errno::EINVAL, set(0x1008, 1));
    d.refuses(Errno::EINVAL, set(0xffff_8000_0000_0000, 1));
    d.refuses(Errno::EINVAL, set(0x8000_0000_0000_0000, 1));
    d.refuses(Errno::EINVAL, set(0x1000, 8193));
    set(0x1008, 0)(&mut d).unwrap();
    assert_eq!(d.paging.ldt(V0).unwrap(), (GuestVirt(0), 0));
}
