//! Names, sizes, configuration files; programs that fail or are interrupted.
//! Whole images are made by the system tests.

use std::{fs, process::Command};

use nix::sys::signal::{Signal, raise};
use tempfile::TempDir;

use super::{
    ImageCommandError,
    create::{parse_size, publish},
    filesystem::to_qcow2,
    job::Job,
    store::Place,
    workshop::Workshop,
};
use crate::{
    config::{self, disk::Format},
    image::{self, Mode},
    xm::{progress::Progress, signals::Held},
};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn sizes() {
    assert_eq!(parse_size("1024"), Ok(1 << 30));
    assert_eq!(parse_size("600m"), Ok(600 << 20));
    assert_eq!(parse_size("8G"), Ok(8 << 30));
    for wrong in ["", "G", "8X", "-1G", "99999999999999T", "1M", "é", "17T"] {
        parse_size(wrong).expect_err(wrong);
    }
}

/// The file that is written is one that `xm create` takes, whatever the path.
#[test]
fn the_configuration_file_is_valid() {
    let dir = TempDir::new().expect("a directory");
    let dir = dir.path().join("a \"strange\", place\\");
    fs::create_dir(&dir).expect("a directory");
    let finished = dir.join("finished");
    fs::write(&finished, "x").expect("a file");
    let place = Place::new("web1", Some(&dir.join("web1.qcow2")), Format::Qcow2).expect("a place");
    publish(&finished, &place, 256, "systemd.hostname=web1").expect("published");
    let text = fs::read_to_string(place.config()).expect("readable");
    let config = config::load("web1.cfg", &text, &[]).expect("valid").config;
    assert_eq!(config.disks[0].target, Some(place.image.clone()));
    assert_eq!(config.disks[0].format, Format::Qcow2);
    assert!(config.bootloader.is_some());
    assert_eq!(config.cmdline, "systemd.hostname=web1");
    // Nothing is overwritten, and a name that is taken is told.
    let again = Place::new("web1", Some(&place.image), Format::Qcow2);
    assert!(matches!(again, Err(ImageCommandError::Exists { .. })));
    let half = publish(&finished, &place, 256, "").expect_err("taken");
    assert!(half.to_string().contains("File exists"), "{half}");
}

#[test]
fn names_are_names() {
    for wrong in ["", ".", "../x", "a b", "-x", "é", "a/b"] {
        let place = Place::new(wrong, None, Format::Raw);
        assert!(matches!(place, Err(ImageCommandError::Name(_))), "{wrong}");
    }
}

#[test]
fn data_and_holes_survive_the_way_to_qcow2() {
    const MIB: u64 = 1 << 20;
    let dir = TempDir::new().expect("a directory");
    let (raw, qcow2) = (dir.path().join("raw"), dir.path().join("qcow2"));
    image::create_raw(&raw, 64 * MIB).expect("an image");
    let mode = Mode {
        write: true,
        direct: false,
    };
    let source = image::open(&raw, Format::Raw, mode).expect("it opens");
    for offset in [0, 5 * MIB + 4096, 64 * MIB - 512] {
        source
            .write([7u8; 512].as_slice(), offset)
            .expect("a write");
    }
    drop(source);
    let (progress, held) = (Progress::silent(), Held::hold());
    let job = Job {
        progress: &progress,
        held: &held,
    };
    to_qcow2(&raw, &qcow2, job).expect("copied");
    let copy = image::open(&qcow2, Format::Qcow2, Mode::default()).expect("it opens");
    assert_eq!(copy.size(), 64 * MIB);
    let mut bytes = vec![0; 1024];
    copy.read(bytes.as_mut_slice(), 5 * MIB + 4096)
        .expect("a read");
    assert_eq!(
        (&bytes[..512], &bytes[512..]),
        (&[7; 512][..], &[0; 512][..])
    );
    assert!(fs::metadata(&qcow2).expect("there").len() < 4 * MIB);
}

#[test]
fn a_program_that_fails_is_told_with_its_last_words_and_a_remedy() {
    let (progress, held) = (Progress::silent(), Held::hold());
    let job = Job {
        progress: &progress,
        held: &held,
    };
    let error = job.run(
        "x",
        shell("echo out; echo 'write: No space left on device' >&2; exit 3"),
    );
    let error = error.expect_err("it fails").to_string();
    assert!(
        error.contains("exit status: 3") && error.contains("free some space"),
        "{error}"
    );
    assert!(error.contains("\nout"), "{error}");
    job.run_all("x", vec![shell("echo a"), shell("read x && [ $x = a ]")])
        .expect("a pipe");
    let broken = job
        .run_all("x", vec![shell("exit 4"), shell("cat")])
        .expect_err("it fails");
    assert!(broken.to_string().contains("exit status: 4"), "{broken}");
    let missing = job
        .run("x", Command::new("/nonexistent/program"))
        .expect_err("none");
    assert!(missing.to_string().contains("can't be run"), "{missing}");
}

/// Ctrl+C ends the program and all that it has started, and the directory goes.
#[test]
fn an_interrupted_build_leaves_nothing() {
    let dir = TempDir::new().expect("a directory");
    let output = dir.path().join("x.img");
    let (progress, held) = (Progress::silent(), Held::hold());
    let job = Job {
        progress: &progress,
        held: &held,
    };
    let shop = Workshop::open(&output).expect("a workshop");
    assert!(matches!(
        Workshop::open(&output),
        Err(ImageCommandError::Busy(_))
    ));
    fs::write(shop.path("file"), "x").expect("a file");
    let pid = shop.path("pid");
    // Blocked in this thread, so it waits for who asks.
    raise(Signal::SIGTERM).expect("a signal");
    let script = format!("sleep 300 & echo $! >{}; wait", pid.display());
    let interrupted = job.run("x", shell(&script));
    assert!(matches!(interrupted, Err(ImageCommandError::Interrupted)));
    let pid = fs::read_to_string(pid).unwrap_or_default();
    drop(shop);
    let left: Vec<_> = fs::read_dir(dir.path())
        .expect("readable")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    if let Ok(pid) = pid.trim().parse::<u32>() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
    }
    // The signal must not reach the test itself when it is let through.
    std::mem::forget(held);
}
