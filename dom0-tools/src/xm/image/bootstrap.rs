//! A Debian in a directory: by mmdebstrap or debootstrap.
//!
//! Root's programs run in a mount and process namespace of their own, so that
//! nothing that they mount or start outlives them. Without root mmdebstrap uses
//! a user namespace and gives an archive, which is unpacked under fakeroot: that
//! keeps the owners for `mke2fs -d`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;

use super::{ImageCommandError, apt, error::at, job::Job, workshop::Workshop};

/// What every image has: it starts, has a network, and can be worked with.
const PACKAGES: [&str; 13] = [
    "systemd-sysv",
    "udev",
    "kmod",
    "login",
    "passwd",
    "e2fsprogs",
    "initramfs-tools",
    "ifupdown",
    "isc-dhcp-client",
    "iproute2",
    "iputils-ping",
    "netbase",
    "procps",
];

/// The program that fetches and unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// Faster, takes the security archive too, works without root.
    Mmdebstrap,
    /// Debian's first one.
    Debootstrap,
}

/// What to put there.
#[derive(Debug)]
pub struct Wish {
    /// The release.
    pub suite: String,
    /// Lines of sources.list.
    pub sources: Vec<String>,
    /// The kernel's package.
    pub kernel: String,
    /// More packages.
    pub packages: Vec<String>,
}

/// A tree of files, and how to run a program that shall see its owners.
#[derive(Debug)]
pub struct Tree {
    /// Its root.
    pub root: PathBuf,
    /// fakeroot's notes; none: the owners are the files' own.
    pub owners: Option<PathBuf>,
}

impl Tree {
    /// A program that sees the right owners.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        match &self.owners {
            None => Command::new(program),
            Some(owners) => {
                let mut command = Command::new("fakeroot");
                command.arg("-i").arg(owners).args(["--", program]);
                command
            }
        }
    }
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program that is to be used: the one that was asked for, else the best
/// of those that are there.
///
/// # Errors
/// None is there, or it can't do it.
pub fn choose(asked: Option<Tool>) -> Result<Tool, ImageCommandError> {
    let root = is_root();
    let tool = match asked {
        Some(tool) => tool,
        None if has("mmdebstrap") => Tool::Mmdebstrap,
        None if has("debootstrap") => Tool::Debootstrap,
        None => return Err(ImageCommandError::NoBootstrap { root }),
    };
    let (program, package) = match tool {
        Tool::Mmdebstrap => ("mmdebstrap", "mmdebstrap"),
        Tool::Debootstrap => ("debootstrap", "debootstrap"),
    };
    need(program, package)?;
    need("mke2fs", "e2fsprogs")?;
    match (root, tool) {
        (false, Tool::Debootstrap) => return Err(ImageCommandError::NotRoot),
        (false, Tool::Mmdebstrap) => need("fakeroot", "fakeroot")?,
        (true, _) => need("unshare", "util-linux")?,
    }
    Ok(tool)
}

fn need(program: &'static str, package: &'static str) -> Result<(), ImageCommandError> {
    if has(program) {
        return Ok(());
    }
    Err(ImageCommandError::Missing { program, package })
}

/// Whether a program is there, also where only root's PATH leads.
fn has(program: &str) -> bool {
    search_path()
        .split(':')
        .any(|dir| Path::new(dir).join(program).is_file())
}

/// PATH, and the directories of an administrator's programs.
#[must_use]
pub fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Makes the tree.
///
/// # Errors
/// The program's, or an interruption.
pub fn run(
    tool: Tool,
    wish: &Wish,
    shop: &Workshop,
    job: Job<'_>,
) -> Result<Tree, ImageCommandError> {
    let root = shop.path("tree");
    let settings = shop.path("apt.conf");
    fs::write(&settings, apt::settings()).map_err(at(&settings))?;
    let owners = (!is_root()).then(|| shop.path("owners"));
    let commands = match (tool, &owners) {
        (Tool::Mmdebstrap, None) => vec![mmdebstrap(wish, &settings, "--mode=root", &root, true)],
        (Tool::Mmdebstrap, Some(owners)) => {
            fs::create_dir(&root).map_err(at(&root))?;
            vec![
                mmdebstrap(wish, &settings, "--mode=auto", Path::new("-"), false),
                unpack(owners, &root),
            ]
        }
        (Tool::Debootstrap, _) => vec![debootstrap(wish, &root)],
    };
    job.run_all("Installing Debian", commands)?;
    if owners.is_some() {
        make_readable(&root)?;
    }
    Ok(Tree { root, owners })
}

/// Lets us read and write all files, as root may: some are for nobody at all.
/// fakeroot has noted what their modes are in the image.
fn make_readable(root: &Path) -> Result<(), ImageCommandError> {
    let mut directories = vec![root.to_owned()];
    while let Some(dir) = directories.pop() {
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            let meta = path.symlink_metadata().map_err(at(&path))?;
            let wanted = match () {
                () if meta.is_dir() => 0o700,
                () if meta.is_file() => 0o600,
                () => continue,
            };
            let mode = meta.permissions().mode();
            if mode & wanted != wanted {
                let permissions = fs::Permissions::from_mode(mode | wanted);
                fs::set_permissions(&path, permissions).map_err(at(&path))?;
            }
            if meta.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(())
}

fn packages(wish: &Wish) -> String {
    let own = PACKAGES.iter().map(|p| (*p).to_owned());
    let all: Vec<String> = own
        .chain([wish.kernel.clone()])
        .chain(wish.packages.clone())
        .collect();
    all.join(",")
}

/// A program in namespaces that end with it.
fn isolated(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--",
            program,
        ])
        .env("PATH", search_path());
    command
}

fn mmdebstrap(wish: &Wish, settings: &Path, mode: &str, target: &Path, root: bool) -> Command {
    let mut command = match root {
        true => isolated("mmdebstrap"),
        false => Command::new("mmdebstrap"),
    };
    command
        .args([mode, "--variant=minbase"])
        .arg(format!(
            "--format={}",
            if root { "directory" } else { "tar" }
        ))
        .arg(format!("--include={}", packages(wish)))
        .arg(format!("--aptopt={}", settings.display()))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--dpkgopt=force-unsafe-io")
        .arg(&wish.suite)
        .arg(target)
        .args(&wish.sources)
        .env("PATH", search_path());
    command
}

fn unpack(owners: &Path, root: &Path) -> Command {
    let mut command = Command::new("fakeroot");
    command
        .arg("-s")
        .arg(owners)
        .args(["--", "tar", "-x", "-p", "-C"])
        .arg(root);
    command
}

/// debootstrap takes one source; the others are in the image's sources.list.
fn debootstrap(wish: &Wish, root: &Path) -> Command {
    let uri = wish
        .sources
        .first()
        .and_then(|line| line.split_whitespace().nth(1));
    let mut command = isolated("debootstrap");
    command
        .arg("--variant=minbase")
        .arg(format!("--include={},ca-certificates", packages(wish)))
        .arg(&wish.suite)
        .arg(root)
        .arg(uri.unwrap_or(apt::DEFAULT_MIRROR));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_nobody_become_readable() {
        let dir = tempfile::tempdir().expect("room");
        let (inner, file) = (dir.path().join("inner"), dir.path().join("inner/shadow-"));
        fs::create_dir(&inner).expect("room");
        fs::write(&file, "x").expect("room");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set(&file, 0o040).expect("ours");
        set(&inner, 0o500).expect("ours");
        make_readable(dir.path()).expect("ours");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o640));
    }
}
