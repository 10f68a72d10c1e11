//! `xm image create`.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;
use nix::sys::statvfs::statvfs;

use super::{
    ImageCommandError, apt,
    bootstrap::{self, Tool, Wish},
    error::at,
    filesystem, guest_config,
    job::Job,
    password,
    store::Place,
    tree::{self, Machine},
    workshop::Workshop,
};
use crate::{
    config::disk::Format,
    xm::{error::XmError, output, progress::Progress, signals::Held},
};

const MIB: u64 = 1 << 20;
/// A Debian with a kernel, twice: as files and in the image.
const ROOM_MIB: u64 = 2048;

/// Make a bootable Debian in an ext4 image, without mounting anything.
#[derive(Debug, Args)]
pub struct Create {
    /// The image's name; its host name, too
    #[arg(value_name = "NAME")]
    name: String,
    /// The file [default: NAME.img or NAME.qcow2 in the directory of images]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The size of the disk that the guest sees: 4096M, 8G
    #[arg(short, long, value_name = "SIZE", default_value = "4G", value_parser = parse_size)]
    size: u64,
    /// A qcow2 image, not a raw one
    #[arg(long)]
    qcow2: bool,
    /// The release of Debian
    #[arg(long, value_name = "SUITE", default_value = apt::DEFAULT_SUITE)]
    suite: String,
    /// Where packages are fetched from [default: as the host's apt does]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// The kernel's package
    #[arg(
        long,
        value_name = "PACKAGE",
        default_value = "linux-image-cloud-amd64"
    )]
    kernel: String,
    /// More packages, with commas between
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
    packages: Vec<String>,
    /// With openssh-server
    #[arg(long)]
    ssh: bool,
    /// A public key that logs in as root; with openssh-server
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Root's password, in the first line of FILE ('-': standard input) [default: a random one, which is shown]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// No login by password
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
    /// The domain's memory, in MiB, for the configuration file
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// The program that installs [default: mmdebstrap if it is there, else debootstrap]
    #[arg(long, value_enum, value_name = "PROGRAM")]
    with: Option<Tool>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl Create {
    /// Does it.
    ///
    /// # Errors
    /// See [`ImageCommandError`].
    pub fn run(self) -> Result<(), XmError> {
        let progress = Progress::new(self.quiet);
        let (place, generated) = self.make(&progress)?;
        progress.end();
        if self.quiet {
            return Ok(());
        }
        if let Some(password) = generated {
            output::line(&format!("Root's password: {password}"))?;
        }
        output::line(&format!("Made {}", place.image.display()))?;
        output::line(&format!(
            "Start it with: xm create -c {}",
            place.config().display()
        ))
    }

    /// The image, and a password that was made up.
    fn make(&self, progress: &Progress) -> Result<(Place, Option<String>), ImageCommandError> {
        let tool = bootstrap::choose(self.with)?;
        let format = if self.qcow2 {
            Format::Qcow2
        } else {
            Format::Raw
        };
        let place = Place::new(&self.name, self.output.as_deref(), format)?;
        let (password, generated) = self.password()?;
        let ssh_key = self.ssh_key()?;
        let dir = place.image.parent().unwrap_or(Path::new("/")).to_owned();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        check_room(&dir)?;
        let held = Held::hold();
        let job = Job {
            progress,
            held: &held,
        };
        let wish = self.wish();
        let shop = Workshop::open(&place.image)?;
        let tree = bootstrap::run(tool, &wish, &shop, job)?;
        progress.step("Configuring");
        let machine = Machine {
            hostname: &self.name,
            sources: &wish.sources,
            password: password.as_deref(),
            ssh_key: ssh_key.as_deref(),
            kernel: &self.kernel,
        };
        let removed = tree::furnish(&tree.root, &machine)?;
        job.go_on()?;
        let raw = shop.path("raw");
        filesystem::make_ext4(&tree, &raw, self.size, job)?;
        drop(removed);
        let finished = match format {
            Format::Qcow2 => {
                progress.step("Writing the qcow2 image");
                let qcow2 = shop.path("qcow2");
                filesystem::to_qcow2(&raw, &qcow2, job)?;
                qcow2
            }
            _ => raw,
        };
        job.go_on()?;
        publish(&finished, &place, self.memory, "")?;
        Ok((place, generated))
    }

    fn wish(&self) -> Wish {
        let mut packages = self.packages.clone();
        if self.ssh || self.ssh_key.is_some() {
            packages.push("openssh-server".to_owned());
        }
        Wish {
            suite: self.suite.clone(),
            sources: apt::sources(&self.suite, self.mirror.as_deref()),
            kernel: self.kernel.clone(),
            packages,
        }
    }

    fn password(&self) -> Result<(Option<String>, Option<String>), ImageCommandError> {
        if self.no_password {
            return Ok((None, None));
        }
        let Some(path) = &self.password_file else {
            let made = password::random().map_err(at("/dev/urandom"))?;
            return Ok((Some(made.clone()), Some(made)));
        };
        let text = read_small(path).map_err(at(path))?;
        let line = text.lines().next().unwrap_or_default().to_owned();
        if line.is_empty() || line.contains(char::is_control) {
            return Err(at(path)(io::Error::other("the first line is no password")));
        }
        Ok((Some(line), None))
    }

    fn ssh_key(&self) -> Result<Option<String>, ImageCommandError> {
        let Some(path) = &self.ssh_key else {
            return Ok(None);
        };
        let text = read_small(path).map_err(at(path))?;
        if text.contains("PRIVATE KEY") {
            return Err(at(path)(io::Error::other(
                "this is a private key; give the public one, whose name ends in .pub",
            )));
        }
        Ok(Some(text))
    }
}

/// Puts image and configuration file where they belong, or neither.
///
/// # Errors
/// One exists, or the file system's.
pub fn publish(
    finished: &Path,
    place: &Place,
    memory: u64,
    extra: &str,
) -> Result<(), ImageCommandError> {
    guest_config::write(place, memory, extra)?;
    let done = filesystem::publish(finished, &place.image);
    if done.is_err() {
        // Ours, and of no use alone.
        let _ = fs::remove_file(place.config());
    }
    done
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().take(65536).read_to_string(&mut text)?;
    } else {
        fs::File::open(path)?
            .take(65536)
            .read_to_string(&mut text)?;
    }
    Ok(text)
}

fn check_room(dir: &Path) -> Result<(), ImageCommandError> {
    let stat = statvfs(dir).map_err(|errno| at(dir)(errno.into()))?;
    let free_mib = stat.blocks_available().saturating_mul(stat.fragment_size()) / MIB;
    if free_mib < ROOM_MIB {
        return Err(ImageCommandError::Room {
            dir: dir.to_owned(),
            free_mib,
            wanted_mib: ROOM_MIB,
        });
    }
    Ok(())
}

/// `4096M`, `8G`, `1T`; a bare number counts MiB, as in configuration files.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit.to_ascii_uppercase()),
        _ => (text, 'M'),
    };
    let factor = match unit {
        'M' => MIB,
        'G' => MIB << 10,
        'T' => MIB << 20,
        _ => return Err(format!("'{text}' is no size: write 4096M, 8G or 1T")),
    };
    let size = number
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor));
    match size {
        Some(size) if (512 * MIB..=MIB << 24).contains(&size) => Ok(size),
        Some(_) => Err(format!("'{text}' is not between 512M and 16T")),
        None => Err(format!("'{text}' is no size: write 4096M, 8G or 1T")),
    }
}
