//! `domus-boot`: what a disk offers to boot, for people; and for other
//! toolstacks, what pygrub does.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, ValueEnum};

use super::{
    config::Choice,
    find::{Booted, Disk, boot, list},
};
use crate::{config::disk::Format, image::create::looks_like};

/// Show or take out the kernel that a guest's disk wants to be booted.
#[derive(Debug, Parser)]
#[command(
    name = "domus-boot",
    version,
    after_help = "Examples:
  domus-boot --list debian.img                  what there is to boot
  domus-boot debian.img                         what is booted by default
  domus-boot --output-directory=/tmp debian.img take kernel and ramdisk out"
)]
struct Arguments {
    /// The disk: an image file or a block device
    disk: PathBuf,
    /// List the entries; '*' marks the default
    #[arg(short, long)]
    list: bool,
    /// The entry: its number, id or title
    #[arg(short, long, value_name = "ENTRY")]
    entry: Option<String>,
    /// A kernel in the disk, instead of the entries
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// The ramdisk that goes with --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    ramdisk: Option<String>,
    /// More kernel options
    #[arg(long, value_name = "OPTIONS", default_value = "")]
    args: String,
    /// The disk's format; by default as its first bytes look, which a guest can forge in a raw disk
    #[arg(long, value_enum)]
    format: Option<DiskFormat>,
    /// What the guest calls the disk
    #[arg(long, value_name = "VDEV", default_value = "xvda")]
    vdev: String,
    /// Write kernel and ramdisk here
    #[arg(long, value_name = "DIR")]
    output_directory: Option<PathBuf>,
    /// Write the answer here, not to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How the answer is written
    #[arg(long, value_enum, default_value = "simple")]
    output_format: Answer,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Nobody is asked anyway
    #[arg(short, long, hide = true)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Answer {
    /// Lines
    Simple,
    /// Ended by NULs
    Simple0,
    /// pygrub's oldest form
    Sxp,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

impl Arguments {
    fn run(&self) -> Result<(), Failure> {
        let format = match self.format {
            Some(DiskFormat::Raw) => Format::Raw,
            Some(DiskFormat::Qcow2) => Format::Qcow2,
            None => looks_like(&self.disk)?,
        };
        let disk = Disk {
            path: &self.disk,
            format,
            vdev: &self.vdev,
        };
        if self.list {
            return self.list(&disk);
        }
        let choice = Choice {
            entry: self.entry.clone(),
            kernel: self.kernel.clone(),
            ramdisk: self.ramdisk.clone(),
        };
        let mut booted = boot(&disk, &choice)?;
        booted.entry.options = format!("{} {}", booted.entry.options, self.args)
            .trim()
            .to_owned();
        match &self.output_directory {
            Some(dir) => self.answer(&take_out(&booted, dir)?),
            None => self.show(&booted),
        }
    }

    fn list(&self, disk: &Disk<'_>) -> Result<(), Failure> {
        let listing = list(disk)?;
        if self.json {
            return self.write(&serde_json::to_vec_pretty(&listing)?);
        }
        let mut text = format!("{}\n", listing.menu.source);
        for (number, entry) in listing.menu.entries.iter().enumerate() {
            let mark = if number == listing.menu.default {
                '*'
            } else {
                ' '
            };
            text.push_str(&format!("{mark}{number:>3}  {}\n", printable(&entry.title)));
        }
        self.write(text.as_bytes())
    }

    fn show(&self, booted: &Booted) -> Result<(), Failure> {
        if self.json {
            return self.write(&serde_json::to_vec_pretty(&booted.entry)?);
        }
        let entry = &booted.entry;
        let text = format!(
            "source   {}\ntitle    {}\nkernel   {} ({} bytes)\nramdisk  {} ({} bytes)\noptions  {}\n",
            booted.source,
            entry.title,
            entry.kernel,
            booted.kernel.len(),
            entry.ramdisks.join(" "),
            booted.ramdisk.as_ref().map_or(0, Vec::len),
            entry.options,
        );
        self.write(printable(&text).as_bytes())
    }

    fn answer(&self, taken: &Taken) -> Result<(), Failure> {
        let kernel = taken.kernel.display();
        let ramdisk = taken.ramdisk.as_ref().map(|path| path.display());
        let lines = |end: char| {
            let ramdisk = ramdisk.as_ref().map(|r| format!("ramdisk {r}{end}"));
            format!(
                "kernel {kernel}{end}{}args {}{end}",
                ramdisk.unwrap_or_default(),
                taken.options
            )
        };
        let text = match self.output_format {
            Answer::Simple => lines('\n'),
            Answer::Simple0 => lines('\0'),
            Answer::Sxp => {
                let ramdisk = ramdisk
                    .map(|r| format!("(ramdisk {r})"))
                    .unwrap_or_default();
                let options = taken.options.replace('"', "");
                format!("linux (kernel {kernel}){ramdisk}(args \"{options}\")")
            }
        };
        self.write(text.as_bytes())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        match &self.output {
            Some(path) => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?
                .write_all(bytes)?,
            None => io::stdout().write_all(bytes)?,
        }
        Ok(())
    }
}

struct Taken {
    kernel: PathBuf,
    ramdisk: Option<PathBuf>,
    options: String,
}

/// Writes kernel and ramdisk to new files.
fn take_out(booted: &Booted, dir: &Path) -> io::Result<Taken> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(format!("{name}.{}", std::process::id()));
        fs::File::create_new(&path)?.write_all(bytes)?;
        Ok::<_, io::Error>(path)
    };
    let ramdisk = booted.ramdisk.as_ref();
    Ok(Taken {
        kernel: write("boot_kernel", &booted.kernel)?,
        ramdisk: ramdisk
            .map(|bytes| write("boot_ramdisk", bytes))
            .transpose()?,
        options: printable(&booted.entry.options),
    })
}

/// A guest's text must not steer the terminal, nor add a line to an answer.
fn printable(text: &str) -> String {
    let fine = |c: char| !c.is_control() || c == '\n';
    text.chars()
        .map(|c| if fine(c) { c } else { '?' })
        .collect()
}
