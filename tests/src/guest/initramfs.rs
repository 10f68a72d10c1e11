//! The guest's small user space: busybox and a few lines of configuration.
//!
//! ```text
//! /init           busybox init: starts rcS, then a shell on hvc0, for ever
//! /etc/init.d/rcS mounts, then prints READY
//! /etc/init.d/rcK unmounts what can be unmounted
//! /sbin/poweroff  what the kernel runs for control/shutdown = "poweroff"
//! /sbin/reboot    ... and for "reboot"
//! ```

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::cpio::{Archive, Entry};

/// The line that the guest prints when its user space is up.
pub const READY: &str = "Domus guest ready";

/// What the guest's shell asks with.
pub const PROMPT: &str = "domus# ";

const INITTAB: &str = "\
::sysinit:/etc/init.d/rcS
hvc0::respawn:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/init.d/rcK
";

const RCK: &str = "#!/bin/sh\nsync\numount -a -r 2>/dev/null\n";
const PASSWD: &str = "root::0:0:root:/root:/bin/sh\n";
const GROUP: &str = "root:x:0:\n";

const DIRECTORIES: [&str; 17] = [
    "bin",
    "dev",
    "etc",
    "etc/init.d",
    "lib",
    "mnt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
    "var/log",
];

/// Programs that the kernel or scripts expect in `/sbin`.
const IN_SBIN: [&str; 8] = [
    "halt", "ifconfig", "init", "insmod", "modprobe", "poweroff", "reboot", "route",
];

/// A gzipped initramfs with this busybox, whose programs are `applets`, and
/// with modules that are loaded in this order: file names and contents.
///
/// # Errors
/// None in practice: it compresses in memory.
pub fn build(
    busybox: &[u8],
    applets: &[&str],
    modules: &[(String, Vec<u8>)],
) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(directory, Entry::Directory);
    }
    // The kernel opens it for init before anything is mounted.
    archive.add("dev/console", Entry::Device(5, 1));
    archive.add("dev/null", Entry::Device(1, 3));
    archive.add("bin/busybox", Entry::File(0o755, busybox));
    for applet in applets.iter().filter(|name| **name != "busybox") {
        let dir = if IN_SBIN.contains(applet) {
            "sbin"
        } else {
            "bin"
        };
        archive.add(&format!("{dir}/{applet}"), Entry::Link("/bin/busybox"));
    }
    archive.add("init", Entry::Link("/sbin/init"));
    archive.add("etc/inittab", Entry::File(0o644, INITTAB.as_bytes()));
    archive.add("etc/passwd", Entry::File(0o644, PASSWD.as_bytes()));
    archive.add("etc/group", Entry::File(0o644, GROUP.as_bytes()));
    archive.add("etc/profile", Entry::File(0o644, profile().as_bytes()));
    archive.add("etc/init.d/rcS", Entry::File(0o755, rc().as_bytes()));
    archive.add("etc/init.d/rcK", Entry::File(0o755, RCK.as_bytes()));
    archive.add("lib/drivers", Entry::Directory);
    for (index, (name, content)) in modules.iter().enumerate() {
        let path = format!("lib/drivers/{index}-{name}");
        archive.add(&path, Entry::File(0o644, content));
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&archive.finish())?;
    gzip.finish()
}

fn rc() -> String {
    format!(
        "\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
hostname domus
ifconfig lo 127.0.0.1 up
for driver in /lib/drivers/*; do
    [ -e $driver ] && insmod $driver
done
echo '{READY}'
"
    )
}

fn profile() -> String {
    format!("export HOME=/root PATH=/bin:/sbin:/usr/bin:/usr/sbin PS1='{PROMPT}'\ncd\n")
}
