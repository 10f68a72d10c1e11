use std::{
    fs,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;

use super::*;
use crate::{
    blkback::{
        pages::{Pages, tests::FakeGrants},
        spec::Spec,
    },
    config::disk::Format,
    image,
};

fn disk(path: &Path, format: Format) -> Arc<Disk> {
    let spec = Spec {
        image: Some((format, path.into())),
        write: true,
        shared: false,
        cdrom: false,
        removable: false,
        discard: true,
        limits: Default::default(),
    };
    Arc::new(Disk::open(&spec, Instant::now()).unwrap())
}

fn page(grants: &FakeGrants, gref: u32) -> Page {
    let mut pages = Pages::new(Box::new(grants.clone()), false);
    pages.get(&[gref], true).unwrap().remove(0)
}

fn job(tag: u64, action: Action, offset: u64, page: Option<(&Page, usize, usize)>) -> Job {
    let part = page.map(|(page, at, len)| iovec {
        iov_base: page.part(at, len).cast(),
        iov_len: len,
    });
    Job {
        tag,
        action,
        offset,
        parts: part.into_iter().collect(),
        pages: page.map(|(page, ..)| page.clone()).into_iter().collect(),
    }
}

/// Does jobs and gives their results in the order of their tags.
fn run(engine: &mut dyn Engine, jobs: Vec<Job>) -> Vec<io::Result<()>> {
    let quiet = EventFd::new().unwrap();
    let mut left = jobs.len();
    let mut results: Vec<_> = jobs.iter().map(|_| Ok(())).collect();
    for (tag, mut job) in (0..).zip(jobs) {
        job.tag = tag;
        engine.submit(job);
    }
    while left > 0 {
        engine
            .wait(1, [quiet.as_fd(), quiet.as_fd()], None)
            .unwrap();
        while let Some(done) = engine.done() {
            results[usize::try_from(done.job.tag).unwrap()] = done.result;
            left -= 1;
        }
    }
    results
}

fn exercise(engine: &mut dyn Engine, bytes: &dyn Fn(u64, usize) -> Vec<u8>) {
    let grants = FakeGrants::default();
    let pages: Vec<Page> = (0..32).map(|gref| page(&grants, gref)).collect();
    let fill = |byte: u8| {
        pages[usize::from(byte)].write(0, &[byte + 1; 4096]);
        &pages[usize::from(byte)]
    };
    let writes = (0..32_u8).map(|n| {
        let page = fill(n);
        job(0, Action::Write, u64::from(n) * 4096, Some((page, 0, 4096)))
    });
    let results = run(engine, writes.collect());
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(run(engine, vec![job(0, Action::Flush, 0, None)])[0].is_ok());
    assert_eq!(bytes(31 * 4096, 4096), [32; 4096]);
    // Less than a sector of the host, at an odd place.
    let odd = job(0, Action::Read, 4096 + 512, Some((&pages[9], 1024, 512)));
    assert!(run(engine, vec![odd])[0].is_ok());
    let mut buf = [0; 2048];
    pages[9].read(512, &mut buf);
    assert_eq!((buf[511], buf[512], buf[1023], buf[1024]), (10, 2, 2, 10));
    let results = run(engine, vec![job(0, Action::Discard(65536), 0, None)]);
    assert!(results[0].is_ok(), "{results:?}");
    assert_eq!(bytes(0, 65536), vec![0; 65536]);
    assert_eq!(bytes(65536, 1), [17]);
}

#[test]
fn both_engines_do_all_actions_on_a_raw_file() {
    for choice in [Choice::Auto, Choice::Threads] {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = disk(file.path(), Format::Raw);
        let mut engine = engine(&disk, 32, choice).unwrap();
        exercise(engine.as_mut(), &|offset, len| {
            let all = fs::read(file.path()).unwrap();
            let offset = usize::try_from(offset).unwrap();
            all[offset..offset + len].to_vec()
        });
    }
}

#[test]
fn threads_do_all_actions_on_a_qcow2_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image::create_qcow2(&path, 1 << 20, None).unwrap();
    let disk = disk(&path, Format::Qcow2);
    let mut engine = engine(&disk, 32, Choice::Auto).unwrap();
    exercise(engine.as_mut(), &|offset, len| {
        let image = image::open(&path, Format::Qcow2, image::Mode::default()).unwrap();
        let mut buf = vec![0; len];
        image.read(&mut buf, offset).unwrap();
        buf
    });
}

#[test]
fn a_file_that_was_cut_short_gives_errors() {
    for choice in [Choice::Auto, Choice::Threads] {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = disk(file.path(), Format::Raw);
        let mut engine = engine(&disk, 4, choice).unwrap();
        file.as_file().set_len(4096).unwrap();
        let page = page(&FakeGrants::default(), 0);
        let read = job(0, Action::Read, 8192, Some((&page, 0, 4096)));
        assert!(run(engine.as_mut(), vec![read])[0].is_err());
    }
}

#[test]
fn waiting_ends_by_an_event_and_by_time() {
    let file = tempfile::NamedTempFile::new_in(".").unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let disk = disk(file.path(), Format::Raw);
    for choice in [Choice::Auto, Choice::Threads] {
        let mut engine = engine(&disk, 4, choice).unwrap();
        let (quiet, event) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let start = Instant::now();
        let short = Some(Duration::from_millis(20));
        engine
            .wait(1, [event.as_fd(), quiet.as_fd()], short)
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(15));
        event.write(1).unwrap();
        let (say, heard) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            // Fails instead of hanging.
            scope.spawn(move || {
                let late = heard.recv_timeout(Duration::from_secs(20));
                assert_ne!(late, Err(mpsc::RecvTimeoutError::Timeout));
            });
            engine
                .wait(1, [event.as_fd(), quiet.as_fd()], None)
                .unwrap();
            say.send(()).unwrap();
        });
    }
}

#[test]
fn parts_are_used_up_from_the_front() {
    let base = 0x1000 as *mut nix::libc::c_void;
    let part = |at: usize, iov_len| iovec {
        iov_base: base.wrapping_byte_add(at),
        iov_len,
    };
    let mut parts = vec![part(0, 512), part(512, 512), part(4096, 512)];
    advance(&mut parts, 700);
    assert_eq!((parts.len(), parts[0].iov_len), (2, 324));
    assert_eq!(parts[0].iov_base, base.wrapping_byte_add(700));
    advance(&mut parts, 836);
    assert!(parts.is_empty());
}
