//! A guest whose front ends lie: `tests/guests/examples/hostile-front.rs`.
//!
//! **Mechanism.** The kernel attacks the processes of its own back ends through their
//! rings and through xenstore, and checks what it gets back.
//!
//! **Scenario.** A disk and an interface; see the kernel. At the end the very processes
//! that were started are alive, hold no more than a well-behaved guest's would, and
//! nothing but the guest's own disk was written.
//!
//! **Limits.** One guest. That a neighbour's pages can't be reached at all is the
//! restricted connection's doing, and tested with it.

use std::{fs, time::Duration};

use domus_tests::harness::{
    Config, Installation, PATIENCE, Process, domains_can_run, eventually, in_a_network,
};

const LONG: Duration = Duration::from_secs(300);
const DISK: u8 = 0xD5;
const BYTES: usize = 4 << 20;
/// A back end's own memory, at most: the buffers of its queues.
const MOST_KIB: u64 = 48 * 1024;

fn back_ends(domus: &Installation) -> Option<[Process; 2]> {
    let all = domus.processes();
    let find = |name: &str| all.iter().find(|p| p.command.contains(name)).cloned();
    Some([find("/blkback ")?, find("/netback ")?])
}

#[test]
fn back_ends_outlive_a_hostile_guest() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        let domus = Installation::new();
        let (disk, beside) = (domus.path("disk.img"), domus.path("beside.img"));
        for image in [&disk, &beside] {
            fs::write(image, vec![DISK; BYTES]).expect("room for an image");
        }
        let config = Config::test_kernel("hostile-front")
            .line(&format!("disk = [ 'file:{},xvda,w' ]", disk.display()))
            .line("vif = [ '' ]")
            .line("on_poweroff = 'preserve'");
        let file = config.write(&domus);
        domus.xm(&["create".as_ref(), file.as_os_str()]).ok();
        let before = eventually("the back ends", PATIENCE, || back_ends(&domus));

        let (verdict, dmesg) = eventually("the kernel's verdict", LONG, || {
            let dmesg = domus.xm(&["dmesg"]).output();
            let verdict = dmesg.lines().find(|line| line.contains("DOMUS-TEST: "))?;
            Some((verdict.to_owned(), dmesg.clone()))
        });
        for process in &before {
            assert!(process.lives(), "{process:?}\n{}", domus.logs());
            let holds = process.footprint();
            assert!(holds.anonymous_kib < MOST_KIB, "{process:?}: {holds:?}");
            assert!(holds.threads < 16 && holds.descriptors < 64, "{holds:?}");
        }
        assert!(
            verdict.contains("SUCCESS"),
            "{verdict}\n{dmesg}\n{}",
            domus.logs()
        );
        let length = fs::metadata(&disk).expect("the image").len();
        assert_eq!(length, BYTES as u64);
        let beside = fs::read(&beside).expect("the image beside");
        assert!(beside.iter().all(|byte| *byte == DISK));
        domus.xm(&["destroy", "hostile-front"]).ok();
        domus.assert_no_domain();
    });
}
