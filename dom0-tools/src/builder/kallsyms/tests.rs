use proptest::prelude::*;

use super::*;

const BASE: u64 = 0xffff_ffff_8100_0000;
const COUNT: u64 = 1500;

/// The two orders of the arrays.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Age {
    /// Until 6.1.
    Old,
    /// 6.2 and 6.3.
    WithOrder,
    /// Since 6.4.
    New,
}

fn name(number: u64) -> String {
    format!("function_{number}")
}

/// What the kernel's build makes of so many functions, 16 bytes each: one
/// token for "function_", and the letters.
fn arrays(age: Age, per_cpu: bool) -> Vec<u8> {
    let mut out = vec![0x90; 1003];
    let (mut offsets, mut names, mut markers) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..COUNT {
        if number % 256 == 0 {
            markers.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        }
        let digits = number.to_string();
        names.push(u8::try_from(digits.len() + 2).unwrap());
        names.push(b't');
        names.push(0x80);
        names.extend(digits.bytes());
        let offset = u32::try_from(number * 16).unwrap();
        offsets.extend(if per_cpu { !offset } else { offset }.to_le_bytes());
    }
    let (mut table, mut index) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        index.extend(u16::try_from(table.len()).unwrap().to_le_bytes());
        match token {
            0x80 => table.extend(b"function_"),
            b'0'..=b'9' | b'a'..=b'z' => table.push(token),
            _ => table.extend(b"other"),
        }
        table.push(0);
    }
    let count = u32::try_from(COUNT).unwrap().to_le_bytes().to_vec();
    let addresses = [offsets, BASE.to_le_bytes().to_vec()];
    let order = vec![0x55; 3 * usize::try_from(COUNT).unwrap()];
    let head = [count, names, markers];
    let tail = [table, index];
    let parts: Vec<Vec<u8>> = match age {
        Age::Old => [&addresses[..], &head, &tail].concat(),
        Age::WithOrder => [&addresses[..], &head, &[order], &tail].concat(),
        Age::New => [&head[..], &tail, &addresses, &[order]].concat(),
    };
    for part in parts {
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(part);
    }
    out.resize(out.len() + 100, 0xcc);
    out
}

#[test]
fn tables_of_every_age_are_found() {
    for age in [Age::Old, Age::WithOrder, Age::New] {
        for per_cpu in [false, true] {
            let found = in_data(&arrays(age, per_cpu)).expect("a table");
            assert_eq!(found.len() as u64, COUNT);
            for number in [0, 1, 255, 256, 1499] {
                let address = BASE + number * 16 + 7;
                let symbol = found.lookup(address).unwrap();
                assert_eq!((symbol.name, symbol.offset), (&*name(number), 7));
                assert_eq!(symbol.kind, Kind::Code);
            }
        }
    }
}

#[test]
fn there_is_none_in_other_data() {
    assert!(in_data(&[]).is_none());
    assert!(in_data(DIGITS).is_none());
    assert!(in_data(&DIGITS.repeat(100)).is_none());
    assert!(in_data(&vec![0; 1 << 20]).is_none());
}

/// With a real kernel, if one is named: `DOMUS_TEST_KERNEL=/boot/vmlinuz-...`.
#[test]
fn a_real_kernels_table() {
    let Some(path) = std::env::var_os("DOMUS_TEST_KERNEL") else {
        eprintln!("skipped: DOMUS_TEST_KERNEL names no kernel");
        return;
    };
    let image = crate::builder::KernelImage::open(path.as_ref()).unwrap();
    let table = find(image.segments()).expect("a kernel with CONFIG_KALLSYMS");
    assert!(table.len() > 10_000);
    let symbol = table.lookup(image.placement().entry).unwrap();
    assert_eq!((symbol.name, symbol.offset), ("startup_xen", 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_tables_do_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
        cut in any::<prop::sample::Index>(),
        age in prop::sample::select(vec![Age::Old, Age::WithOrder, Age::New]),
    ) {
        let mut data = arrays(age, true);
        for (at, value) in damage {
            let at = at.index(data.len());
            data[at] = value;
        }
        data.truncate(data.len() - cut.index(data.len()) / 8);
        if let Some(table) = in_data(&data) {
            prop_assert!(table.len() as u64 <= COUNT + 1);
        }
    }
}
