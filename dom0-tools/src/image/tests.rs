//! Images are made, opened, chained, and damaged.

use std::{fs, path::PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::image::create::{create_child, looks_like};

const MIB: u64 = 1 << 20;
const WRITE: Mode = Mode {
    write: true,
    direct: false,
};

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn read(image: &Image, offset: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    image.read(bytes.as_mut_slice(), offset).expect("a read");
    bytes
}

fn backing(path: &Path, format: Format) -> Backing {
    Backing {
        path: path.to_owned(),
        format,
    }
}

#[test]
fn a_child_reads_its_base_and_leaves_it_alone() {
    let dir = Dir::new();
    let (base, child, grandchild) = (dir.path("base"), dir.path("child"), dir.path("grandchild"));
    create_raw(&base, MIB).expect("a raw image");
    let image = open(&base, Format::Raw, WRITE).expect("it opens");
    image.write([1u8; 16].as_slice(), 4096).expect("a write");
    drop(image);
    let size = create_child(&backing(&base, Format::Raw), &child).expect("a child");
    assert_eq!(size, MIB);
    let image = open(&child, Format::Qcow2, WRITE).expect("the child opens");
    assert_eq!((image.size(), read(&image, 4096)), (MIB, [1; 16]));
    image.write([2u8; 16].as_slice(), 4096).expect("a write");
    drop(image);
    create_child(&backing(&child, Format::Qcow2), &grandchild).expect("a grandchild");
    let image = open(&grandchild, Format::Qcow2, Mode::default()).expect("it opens");
    assert_eq!((read(&image, 4096), read(&image, 8192)), ([2; 16], [0; 16]));
    let image = open(&base, Format::Raw, Mode::default()).expect("it opens");
    assert_eq!(read(&image, 4096), [1; 16]);
    assert_eq!(looks_like(&base).expect("readable"), Format::Raw);
    assert_eq!(looks_like(&child).expect("readable"), Format::Qcow2);
}

/// A guest's raw disk with a qcow2 header in it stays a raw disk.
#[test]
fn a_raw_image_is_never_taken_for_another_format() {
    let dir = Dir::new();
    let (secret, image, outer) = (dir.path("secret"), dir.path("image"), dir.path("outer"));
    create_raw(&secret, MIB).expect("a file");
    create_qcow2(&image, MIB, Some(&backing(&secret, Format::Raw))).expect("a header");
    let opened = open(&image, Format::Raw, Mode::default()).expect("it opens");
    assert_eq!(read(&opened, 0)[..4], *b"QFI\xfb");
    create_child(&backing(&image, Format::Raw), &outer).expect("a child");
    let opened = open(&outer, Format::Qcow2, Mode::default()).expect("it opens");
    assert_eq!(read(&opened, 0)[..4], *b"QFI\xfb");
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let dir = Dir::new();
    let (a, b) = (dir.path("a"), dir.path("b"));
    create_raw(&a, MIB).expect("a file");
    create_qcow2(&b, MIB, Some(&backing(&a, Format::Qcow2))).expect("a header");
    fs::remove_file(&a).expect("removed");
    create_qcow2(&a, MIB, Some(&backing(&b, Format::Qcow2))).expect("a header");
    let error = open(&a, Format::Qcow2, Mode::default()).expect_err("a ring");
    assert!(
        error.to_string().contains("leads back to itself"),
        "{error}"
    );
}

#[test]
fn what_is_there_is_not_overwritten() {
    let dir = Dir::new();
    let path = dir.path("precious");
    fs::write(&path, b"precious").expect("a file");
    create_raw(&path, MIB).expect_err("exists");
    create_qcow2(&path, MIB, None).expect_err("exists");
    assert_eq!(fs::read(&path).expect("readable"), b"precious");
}

#[test]
fn what_is_no_image_is_named() {
    let dir = Dir::new();
    let pipe = dir.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for (path, format, what) in [
        (dir.path("missing"), Format::Raw, "No such file"),
        (dir.path(""), Format::Raw, "neither a regular file nor"),
        (pipe, Format::Raw, "neither a regular file nor"),
        (dir.path("zeroes"), Format::Vhd, "qemu-img convert"),
        (dir.path("zeroes"), Format::Qcow2, "Not a qcow2 file"),
    ] {
        let _ = create_raw(&dir.path("zeroes"), MIB);
        let error = open(&path, format, Mode::default()).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    }
}

/// A qcow2 image with some clusters in it.
fn sample(dir: &Dir) -> Vec<u8> {
    let path = dir.path("sample");
    create_qcow2(&path, 4 * MIB, None).expect("an image");
    let image = open(&path, Format::Qcow2, WRITE).expect("it opens");
    for cluster in [0, 3, 9] {
        image
            .write([7u8; 4096].as_slice(), cluster * 65536)
            .expect("a write");
    }
    image.flush().expect("a flush");
    drop(image);
    fs::read(&path).expect("readable")
}

/// At whatever length: what opens has all its data.
#[test]
fn a_qcow2_image_that_was_cut_off_is_refused() {
    let dir = Dir::new();
    let whole = sample(&dir);
    let (path, child) = (dir.path("cut"), dir.path("child"));
    fs::write(&path, &whole).expect("a file");
    create_child(&backing(&path, Format::Qcow2), &child).expect("a child");
    open(&child, Format::Qcow2, Mode::default()).expect("all is there");
    let mut refused = 0;
    for length in (104..whole.len()).rev().step_by(4096) {
        fs::write(&path, &whole[..length]).expect("a file");
        match open(&path, Format::Qcow2, Mode::default()) {
            // The last cluster is there in part, and the file ends in it.
            Ok(image) => {
                assert!(whole.len() - length < 65536, "{length} bytes");
                assert_eq!(
                    (read(&image, 0), read(&image, 3 * 65536)),
                    ([7; 16], [7; 16])
                );
            }
            Err(error) => {
                assert!(error.to_string().contains("cut off"), "{length}: {error}");
                let error = open(&child, Format::Qcow2, Mode::default()).expect_err("its base");
                let text = error.to_string();
                assert!(text.contains("cut off") && text.contains("cut: "), "{text}");
                refused += 1;
            }
        }
    }
    assert!(refused > whole.len() / 65536, "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Damaged, truncated: an error or some bytes, no panic, no huge buffer.
    #[test]
    fn damage_does_no_harm(
        flips in prop::collection::vec((0usize..4 * 65536, any::<u8>()), 1..12),
        head in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
        cut in prop::option::of(0usize..7 * 65536),
    ) {
        let dir = Dir::new();
        let mut bytes = sample(&dir);
        for (at, value) in flips.into_iter().chain(head) {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= value;
            }
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let path = dir.path("damaged");
        fs::write(&path, bytes).expect("a file");
        if let Ok(image) = open(&path, Format::Qcow2, Mode::default()) {
            prop_assert_eq!(image.inner().format(), Driver::Qcow2);
            let mut buffer = vec![0u8; 65536];
            for cluster in 0..10 {
                let _ = contained(|| image.read(buffer.as_mut_slice(), cluster * 65536));
            }
        }
    }
}
