//! What makes a bootstrapped tree a machine: names, file systems, network,
//! logins, and entries for the boot loader.

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::{ImageCommandError, error::at, password};
use crate::{bootloader::kernels::compare, builder::KernelImage};

/// The device that the image is attached as.
pub const DEVICE: &str = "xvda";

/// The kernel's options, from where the hook below takes them too.
const CMDLINE: &str = "root=/dev/xvda ro console=hvc0 net.ifnames=0 quiet";

const INTERFACES: &str = "auto lo
iface lo inet loopback

# Comes up when the domain has a network interface.
allow-hotplug eth0
iface eth0 inet dhcp
";

/// Where traps are slow, or the host has much to do, a start takes minutes.
const PATIENCE: &str = "[Manager]\nDefaultTimeoutStartSec=10min\nDefaultDeviceTimeoutSec=10min\n";

/// Run by the kernel's package with the version, and the image's path.
const HOOK: &str = r#"#!/bin/sh
# Keeps one entry for each kernel in /boot/loader/entries, which the boot
# loader of Domus (bootloader = "pygrub") reads, as /etc/kernel/cmdline says.
set -e
version=$1
[ -n "$version" ] || exit 0
dir=/boot/loader/entries
entry=$dir/debian-$version.conf
case $0 in
*/postrm.d/*)
    rm -f "$entry"
    exit 0
    ;;
esac
mkdir -p "$dir"
{
    echo "title Debian GNU/Linux, with Linux $version"
    echo "version $version"
    echo "linux /boot/vmlinuz-$version"
    if [ -e "/boot/initrd.img-$version" ]; then
        echo "initrd /boot/initrd.img-$version"
    fi
    echo "options $(cat /etc/kernel/cmdline)"
} >"$entry.new"
mv "$entry.new" "$entry"
"#;

/// Host keys are made at the first start, so that clones do not share them.
const SSH_KEYS: &str = "[Unit]
Description=Make this machine's SSH keys
Before=ssh.service ssh.socket
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
";

/// What is to be known of the machine.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Its name.
    pub hostname: &'a str,
    /// Lines of sources.list.
    pub sources: &'a [String],
    /// Root's password; none: there is no login by one.
    pub password: Option<&'a str>,
    /// Root's `authorized_keys`.
    pub ssh_key: Option<&'a str>,
    /// The kernel's package, for messages.
    pub kernel: &'a str,
}

/// Files that were removed from a tree. As long as they are held no new file has
/// their numbers: fakeroot goes by these, and would take it for the old one.
#[derive(Debug, Default)]
#[must_use = "hold it until the image is made"]
pub struct Removed(RefCell<Vec<File>>);

/// Makes a tree a machine.
///
/// # Errors
/// The file system's; the kernel is not one for a PV domain.
pub fn furnish(root: &Path, machine: &Machine<'_>) -> Result<Removed, ImageCommandError> {
    let tree = Files::new(root);
    tree.write("etc/hostname", &format!("{}\n", machine.hostname))?;
    tree.write("etc/hosts", &hosts(machine.hostname))?;
    tree.write(
        "etc/fstab",
        &format!("/dev/{DEVICE} / ext4 errors=remount-ro 0 1\n"),
    )?;
    tree.write("etc/network/interfaces", INTERFACES)?;
    let sources: String = machine
        .sources
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    tree.write("etc/apt/sources.list", &sources)?;
    // Each machine has a number of its own, made at its first start.
    tree.write("etc/machine-id", "")?;
    tree.replace("etc/resolv.conf", "")?;
    for ours in [
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    ] {
        tree.remove(ours)?;
    }
    tree.write("etc/systemd/system.conf.d/domus.conf", PATIENCE)?;
    // Looks for LVM snapshots at each start; there is no LVM.
    tree.remove("etc/systemd/system/multi-user.target.wants/e2scrub_reap.service")?;
    logins(&tree, machine)?;
    tree.write("etc/kernel/cmdline", &format!("{CMDLINE}\n"))?;
    for dir in ["postinst.d", "postrm.d"] {
        let path = format!("etc/kernel/{dir}/zz-domus-boot");
        tree.write(&path, HOOK)?;
        tree.make_executable(&path)?;
    }
    kernels(&tree, machine)?;
    Ok(tree.removed)
}

fn hosts(name: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n")
}

fn logins(tree: &Files<'_>, machine: &Machine<'_>) -> Result<(), ImageCommandError> {
    if let Some(password) = machine.password {
        let hash = password::hash(password).map_err(at("/dev/urandom"))?;
        let shadow = tree.read("etc/shadow")?;
        tree.write("etc/shadow", &password::with_root(&shadow, &hash))?;
    }
    if let Some(key) = machine.ssh_key {
        tree.write("root/.ssh/authorized_keys", key)?;
        tree.set_mode("root/.ssh", 0o700)?;
        tree.set_mode("root/.ssh/authorized_keys", 0o600)?;
    }
    if !tree.path("etc/ssh").exists() {
        return Ok(());
    }
    for name in tree
        .names("etc/ssh")?
        .iter()
        .filter(|n| n.starts_with("ssh_host_"))
    {
        tree.remove(&format!("etc/ssh/{name}"))?;
    }
    let unit = "etc/systemd/system/domus-ssh-keys.service";
    tree.write(unit, SSH_KEYS)?;
    let wants = tree.path("etc/systemd/system/multi-user.target.wants/domus-ssh-keys.service");
    tree.make_parent(&wants)?;
    symlink(format!("/{unit}"), &wants).map_err(at(&wants))
}

/// Checks the kernels, and writes what [`HOOK`] would have written.
fn kernels(tree: &Files<'_>, machine: &Machine<'_>) -> Result<(), ImageCommandError> {
    let names = tree.names("boot")?;
    let mut versions: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_prefix("vmlinuz-"))
        .collect();
    versions.sort_by(|a, b| compare(a, b));
    let Some(newest) = versions.last() else {
        return Err(ImageCommandError::NoKernel(machine.kernel.to_owned()));
    };
    let kernel = tree.path(&format!("boot/vmlinuz-{newest}"));
    KernelImage::open(&kernel).map_err(|source| ImageCommandError::Kernel {
        package: machine.kernel.to_owned(),
        source,
    })?;
    for version in versions {
        let has_initrd = names.contains(&format!("initrd.img-{version}"));
        let path = format!("boot/loader/entries/debian-{version}.conf");
        tree.write(&path, &entry(version, has_initrd))?;
    }
    Ok(())
}

fn entry(version: &str, has_initrd: bool) -> String {
    let initrd = match has_initrd {
        true => format!("initrd /boot/initrd.img-{version}\n"),
        false => String::new(),
    };
    format!(
        "title Debian GNU/Linux, with Linux {version}\nversion {version}\nlinux /boot/vmlinuz-{version}\n{initrd}\
         options {CMDLINE}\n"
    )
}

/// Files of the tree. Its links may lead out of it, so none is followed for
/// the last part of a path.
struct Files<'a> {
    root: &'a Path,
    removed: Removed,
}

impl<'a> Files<'a> {
    fn new(root: &'a Path) -> Self {
        let removed = Removed::default();
        Self { root, removed }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn make_parent(&self, path: &Path) -> Result<(), ImageCommandError> {
        let dir = path.parent().unwrap_or(self.root);
        fs::create_dir_all(dir).map_err(at(dir))
    }

    /// Writes into a file that is there, keeping owner and mode, or a new one.
    fn write(&self, path: &str, text: &str) -> Result<(), ImageCommandError> {
        let path = self.path(path);
        self.make_parent(&path)?;
        if path.is_symlink() {
            self.bury(&path).map_err(at(&path))?;
        }
        fs::write(&path, text).map_err(at(&path))
    }

    fn replace(&self, path: &str, text: &str) -> Result<(), ImageCommandError> {
        self.remove(path)?;
        self.write(path, text)
    }

    fn remove(&self, path: &str) -> Result<(), ImageCommandError> {
        let path = self.path(path);
        match self.bury(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a file, or a link, and keeps its number.
    fn bury(&self, path: &Path) -> io::Result<()> {
        let mut options = File::options();
        let options = options.read(true);
        let file = options.custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
        self.removed.0.borrow_mut().push(file.open(path)?);
        fs::remove_file(path)
    }

    fn read(&self, path: &str) -> Result<String, ImageCommandError> {
        let path = self.path(path);
        fs::read_to_string(&path).map_err(at(&path))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, ImageCommandError> {
        let path = self.path(path);
        let entries = fs::read_dir(&path).map_err(at(&path))?;
        Ok(entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect())
    }

    fn make_executable(&self, path: &str) -> Result<(), ImageCommandError> {
        self.set_mode(path, 0o755)
    }

    fn set_mode(&self, path: &str, mode: u32) -> Result<(), ImageCommandError> {
        let path = self.path(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(at(&path))
    }
}

#[cfg(test)]
mod tests {

    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// On ext4 a new file mostly has the number that was given back last.
    #[test]
    fn a_removed_links_number_is_not_used_again() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let tree = Files::new(dir.path());
        let number = |name: &str| {
            let file = fs::symlink_metadata(tree.path(name)).expect("it is there");
            file.ino()
        };
        let mut old = Vec::new();
        for n in 0..20 {
            let (link, file) = (format!("etc/link{n}"), format!("etc/file{n}"));
            tree.make_parent(&tree.path(&link)).expect("room");
            symlink("/nowhere", tree.path(&link)).expect("a link");
            old.push(number(&link));
            match n % 2 {
                0 => tree.remove(&link).expect("ours"),
                _ => tree.write(&link, "a file now").expect("ours"),
            }
            tree.write(&file, "new").expect("room");
            assert!(!old.contains(&number(&file)), "{n}");
        }
        tree.remove("etc/nothing").expect("none is no error");
    }

    /// The hook's text and the entry that is written here are one.
    #[test]
    fn the_hook_writes_the_same_entry() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let root = dir.path().to_str().expect("UTF-8");
        for path in ["boot", "etc/kernel/postinst.d", "etc/kernel/postrm.d"] {
            fs::create_dir_all(dir.path().join(path)).expect("a directory");
        }
        fs::write(dir.path().join("boot/initrd.img-6.1"), "x").expect("a file");
        fs::write(dir.path().join("etc/kernel/cmdline"), CMDLINE).expect("a file");
        let hook = HOOK.replace("/boot/loader", &format!("{root}/boot/loader"));
        let hook = hook.replace("-e \"/boot", &format!("-e \"{root}/boot"));
        let hook = hook.replace("cat /etc", &format!("cat {root}/etc"));
        let run = |place: &str, version: &str| {
            let path = dir.path().join(place);
            fs::write(&path, &hook).expect("a hook");
            let status = std::process::Command::new("sh")
                .arg(&path)
                .arg(version)
                .status();
            assert!(status.expect("sh").success());
        };
        let written = dir.path().join("boot/loader/entries/debian-6.1.conf");
        run("etc/kernel/postinst.d/zz", "6.1");
        assert_eq!(
            fs::read_to_string(&written).expect("an entry"),
            entry("6.1", true)
        );
        run("etc/kernel/postinst.d/zz", "6.2");
        let other = dir.path().join("boot/loader/entries/debian-6.2.conf");
        assert_eq!(
            fs::read_to_string(other).expect("an entry"),
            entry("6.2", false)
        );
        run("etc/kernel/postrm.d/zz", "6.1");
        assert!(!written.exists());
    }
}
