use std::path::Path;

use super::*;

fn spec(path: &Path, format: Format, write: bool) -> Spec {
    Spec {
        image: Some((format, path.into())),
        write,
        shared: false,
        cdrom: false,
        removable: false,
        discard: write,
        limits: Default::default(),
    }
}

fn open(path: &Path, format: Format, write: bool) -> Result<Disk, String> {
    Disk::open(&spec(path, format, write), Instant::now()).map_err(|error| error.to_string())
}

#[test]
fn bad_images_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let error = |path: &Path, format| open(path, format, true).err().unwrap();
    assert!(error(&at("missing"), Format::Raw).contains("missing: No such file"));
    assert!(error(dir.path(), Format::Raw).contains("Is a directory"));
    std::fs::write(at("short"), [0; 511]).unwrap();
    assert!(error(&at("short"), Format::Raw).contains("511 bytes"));
    std::fs::write(at("not.qcow2"), [7; 4096]).unwrap();
    assert!(error(&at("not.qcow2"), Format::Qcow2).contains("not.qcow2"));
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(error(&at("pipe"), Format::Raw).contains("neither a file"));
    image::create_qcow2(&at("cut.qcow2"), 1 << 30, None).unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(at("cut.qcow2"))
        .unwrap();
    file.set_len(60).unwrap();
    assert!(error(&at("cut.qcow2"), Format::Qcow2).contains("cut.qcow2"));
}

#[test]
fn an_image_beyond_two_tib_has_all_its_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    File::create(&raw).unwrap().set_len(5 << 40).unwrap();
    let disk = open(&raw, Format::Raw, true).unwrap();
    assert_eq!(disk.rules.sectors, (5 << 40) / 512);
    let qcow2 = dir.path().join("qcow2");
    image::create_qcow2(&qcow2, 5 << 40, None).unwrap();
    let disk = open(&qcow2, Format::Qcow2, true).unwrap();
    assert_eq!(disk.rules.sectors, (5 << 40) / 512);
}

#[test]
fn a_second_writer_is_told_that_it_is_busy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let first = open(file.path(), Format::Raw, true).unwrap();
    assert!(
        open(file.path(), Format::Raw, false)
            .err()
            .unwrap()
            .contains("busy")
    );
    drop(first);
    assert!(open(file.path(), Format::Raw, false).is_ok());
}

#[test]
fn a_qcow2_chain_is_read_written_and_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base"), dir.path().join("child"));
    std::fs::write(&base, vec![0x11; 1 << 20]).unwrap();
    let backing = image::Backing {
        path: base.clone(),
        format: Format::Raw,
    };
    image::create::create_child(&backing, &child).unwrap();
    let disk = open(&child, Format::Qcow2, true).unwrap();
    let Some(Source::Qcow2(image)) = &disk.source else {
        panic!("not qcow2");
    };
    image.write(&[0x22; 512], 4096).unwrap();
    // As a new process sees it, which the first did not tell goodbye.
    let again = image::open(&child, Format::Qcow2, Mode::default()).unwrap();
    let mut buf = [0; 1024];
    again.read(&mut buf[..], 4096).unwrap();
    assert_eq!((buf[0], buf[511], buf[512]), (0x22, 0x22, 0x11));
    image.discard(0, 65536).unwrap();
    image.sync().unwrap();
    image.read(&mut buf, 4096).unwrap();
    assert_eq!(buf, [0; 1024]);
    assert!(
        std::fs::read(&base)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x11)
    );
}
