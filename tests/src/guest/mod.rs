//! A guest to test with: Debian's own kernel and a small user space.
//!
//! Law: nothing is installed. Packages are downloaded through apt, unpacked
//! into a cache in the checkout (`.domus/guest`), and never configured; no step
//! needs root. What is in the cache is whole: it is put there by renaming.
//!
//! Environment: `DOMUS_GUEST_DIR` (another cache), `DOMUS_KERNEL_PACKAGE`
//! (instead of `linux-image-amd64`), `DOMUS_KERNEL` (a kernel image of your
//! own).

mod apt;
pub mod cpio;
pub mod debian;
mod drivers;
pub mod initramfs;
mod modules;
mod more_modules;
mod xen;

use std::{
    env, fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use nix::fcntl::{Flock, FlockArg};

use apt::Apt;
pub use drivers::prepare_with_drivers;
pub use initramfs::{PROMPT, READY};
pub use more_modules::{prepare_kvm, prepare_virtio};
pub use xen::xen;

const KERNEL_PACKAGE: &str = "linux-image-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Rises when the user space changes, so that an old one is not used.
const INITRAMFS: &str = "initramfs-3.gz";

/// What a domain's configuration needs.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel image, as Debian ships it.
    pub kernel: PathBuf,
    /// The user space.
    pub initramfs: PathBuf,
    /// The kernel's modules that tests load, as an archive to put behind the
    /// user space; `None` for a kernel that came without its package.
    pub modules: Option<PathBuf>,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file could not be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// Its last words.
        why: String,
    },
    /// A package had not what it should have.
    #[error("{package}: no {what} in it")]
    Missing {
        /// The package.
        package: String,
        /// The file looked for.
        what: &'static str,
    },
}

/// Debian's kernel and a busybox user space, fetched if they are not there.
///
/// # Errors
/// See [`PrepareError`]; without a network it names the apt command that
/// failed.
pub fn prepare() -> Result<Guest, PrepareError> {
    let dir = cache_dir();
    fs::create_dir_all(&dir).map_err(io_error(&dir))?;
    let _one_at_a_time = lock(&dir.join("lock"))?;
    let apt = Apt::new(dir.join("apt"));
    let kernel = match env::var_os("DOMUS_KERNEL") {
        Some(kernel) => kernel.into(),
        None => kernel(&dir, &apt)?,
    };
    let initramfs = dir.join(INITRAMFS);
    if !initramfs.exists() {
        make_initramfs(&dir, &apt, &initramfs, &[])?;
    }
    let modules = modules::prepare(&dir, &kernel)?;
    Ok(Guest {
        kernel,
        initramfs,
        modules,
    })
}

/// Takes the guest's own busybox out of its user space, to run it here.
///
/// # Errors
/// See [`PrepareError`].
pub fn extract_busybox(to: &Path) -> Result<(), PrepareError> {
    let packed = prepare()?.initramfs;
    let mut image = Vec::new();
    let file = fs::File::open(&packed).map_err(io_error(&packed))?;
    let mut unpacked = flate2::read::GzDecoder::new(file);
    io::Read::read_to_end(&mut unpacked, &mut image).map_err(io_error(&packed))?;
    let missing = || PrepareError::Missing {
        package: packed.display().to_string(),
        what: "bin/busybox",
    };
    let program = cpio::find(&image, "bin/busybox").ok_or_else(missing)?;
    fs::write(to, program).map_err(io_error(to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(io_error(to))
}

/// What is fetched and made for guests: `.domus/guest` in the checkout, or `$DOMUS_GUEST_DIR`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    env::var_os("DOMUS_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.domus/guest"),
        PathBuf::from,
    )
}

fn lock(path: &Path) -> Result<Flock<fs::File>, PrepareError> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map_err(io_error(path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io_error(path)(errno.into()))
}

/// The kernel image of the package that is asked for, from the cache if its
/// name is known there.
fn kernel(dir: &Path, apt: &Apt) -> Result<PathBuf, PrepareError> {
    let wanted = env::var("DOMUS_KERNEL_PACKAGE").unwrap_or_else(|_| KERNEL_PACKAGE.into());
    let at = dir.join(&wanted);
    // Other packages may have theirs elsewhere, or compressed.
    let is_whole = wanted != KERNEL_PACKAGE
        || drivers::find_below(&at, "ext4.ko").is_some()
            && find(&at.join("boot"), "config-").is_some();
    if let Some(image) = find(&at.join("boot"), "vmlinuz-").filter(|_| is_whole) {
        return Ok(image);
    }
    kernel_package(dir, apt, &wanted)?;
    find(&at.join("boot"), "vmlinuz-").ok_or(PrepareError::Missing {
        package: wanted,
        what: "/boot/vmlinuz",
    })
}

/// Puts the kernel of a package, its front ends where they are modules, and
/// what Debian's was configured with, into the cache.
fn kernel_package(dir: &Path, apt: &Apt, wanted: &str) -> Result<(), PrepareError> {
    let package = apt.resolve(wanted, "linux-image-")?;
    let part = dir.join(format!("{wanted}.part"));
    let kernel = "./boot/vmlinuz-*";
    let (config, modules): (&[&str], &[&str]) = match wanted {
        KERNEL_PACKAGE => (&["./boot/config-*"], &modules::PATTERNS),
        _ => (&[], &drivers::PATTERNS),
    };
    let all = [&[kernel], config, modules].concat();
    if apt.unpack_all(&package, &all, &part).is_err() {
        // They are built in, as in Ubuntu's.
        apt.unpack(&package, kernel, &part)?;
    }
    let image = find(&part.join("boot"), "vmlinuz-").ok_or(PrepareError::Missing {
        package,
        what: "/boot/vmlinuz",
    })?;
    // Ubuntu's are for root only.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).map_err(io_error(&image))?;
    replace(&part, &dir.join(wanted))
}

fn make_initramfs(
    dir: &Path,
    apt: &Apt,
    to: &Path,
    modules: &[drivers::Module],
) -> Result<(), PrepareError> {
    let part = dir.join("busybox.part");
    apt.unpack(BUSYBOX_PACKAGE, "*bin/busybox", &part)?;
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| part.join(path))
        .into_iter()
        .find(|path| path.exists())
        .ok_or(PrepareError::Missing {
            package: BUSYBOX_PACKAGE.into(),
            what: "bin/busybox",
        })?;
    let applets = output(Command::new(&busybox).arg("--list"))?;
    let applets: Vec<&str> = applets.lines().collect();
    let program = fs::read(&busybox).map_err(io_error(&busybox))?;
    let image = initramfs::build(&program, &applets, modules).map_err(io_error(to))?;
    let fresh = to.with_extension("part");
    fs::write(&fresh, image).map_err(io_error(&fresh))?;
    fs::rename(&fresh, to).map_err(io_error(to))?;
    fs::remove_dir_all(&part).map_err(io_error(&part))
}

/// The file of a directory whose name begins so.
fn find(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let names = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let mut found: Vec<_> = names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop()
}

fn replace(from: &Path, to: &Path) -> Result<(), PrepareError> {
    let _ = fs::remove_dir_all(to);
    fs::rename(from, to).map_err(io_error(to))
}

/// Runs a program and gives what it says.
fn output(command: &mut Command) -> Result<String, PrepareError> {
    let failed = |command: &Command, why: String| PrepareError::Command {
        command: format!("{command:?}").replace('"', ""),
        why,
    };
    match command.output() {
        Err(error) => Err(failed(command, error.to_string())),
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        Ok(out) => {
            let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            Err(failed(command, why))
        }
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> PrepareError + use<> {
    let path = path.to_owned();
    move |source| PrepareError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
