//! Where a domain's kernel comes from: a file of this host, or its own disk.

use std::path::Path;

use super::{life::LifeError, progress::Progress};
use crate::{
    bootloader::{self, BootError, Bootloader, program},
    builder::{self, KeptKernels, KernelError, KernelImage, Ramdisk, Reading},
    config::{DomainConfig, disk::Disk, domain::MAX_CMDLINE},
    paths,
};

/// A kernel, read and checked, and what goes with it.
#[derive(Debug)]
pub struct Loaded {
    /// The kernel.
    pub kernel: KernelImage,
    /// The ramdisk.
    pub ramdisk: Option<Ramdisk>,
    /// Its command line: the boot entry's options, then the configuration's,
    /// so that those have the last word.
    pub cmdline: String,
}

/// Reads what the configuration wants to be booted. The disk is read anew each
/// time: a kernel that was installed in the guest is booted by its next reboot.
///
/// # Errors
/// What would keep the kernel from being started.
pub fn load(config: &DomainConfig, progress: &Progress) -> Result<Loaded, LifeError> {
    match (&config.kernel, &config.bootloader) {
        (Some(kernel), _) => from_files(
            kernel,
            config.ramdisk.as_deref(),
            config.cmdline.clone(),
            progress,
        ),
        (None, Some(loader)) => {
            progress.step("Reading the disk");
            let disk = first_disk(config)?;
            match &loader.program {
                None => from_disk(config, loader, disk, progress),
                Some(program) => from_program(config, program, loader, disk, progress),
            }
        }
        (None, None) => Err(BootError::NoDisk.into()),
    }
}

/// The kernel alone, for its symbols; none if it can't be had any more.
#[must_use]
pub fn kernel_of(config: &DomainConfig) -> Option<KernelImage> {
    load(config, &Progress::silent())
        .ok()
        .map(|loaded| loaded.kernel)
}

fn from_files(
    kernel: &Path,
    ramdisk: Option<&Path>,
    cmdline: String,
    progress: &Progress,
) -> Result<Loaded, LifeError> {
    let kernel = read(progress, |reading| KernelImage::open_with(kernel, reading))?;
    Ok(Loaded {
        kernel,
        ramdisk: ramdisk.map(Ramdisk::open).transpose()?,
        cmdline,
    })
}

fn from_disk(
    config: &DomainConfig,
    loader: &Bootloader,
    disk: &Disk,
    progress: &Progress,
) -> Result<Loaded, LifeError> {
    let path = disk.target.as_deref().ok_or(BootError::NoDisk)?;
    let place = bootloader::Disk {
        path,
        format: disk.format,
        vdev: &disk.vdev.name,
    };
    let booted = bootloader::boot(&place, &loader.choice)?;
    let cmdline = joined(&booted.entry.options, &config.cmdline)?;
    let name = path.join(booted.entry.kernel.trim_start_matches('/'));
    let kernel = read(progress, |reading| {
        KernelImage::from_bytes(&name, &booted.kernel, reading)
    });
    let kernel = kernel.map_err(|fault| KernelError { path: name, fault })?;
    Ok(Loaded {
        kernel,
        ramdisk: booted.ramdisk.and_then(Ramdisk::from_bytes),
        cmdline,
    })
}

fn from_program(
    config: &DomainConfig,
    program: &Path,
    loader: &Bootloader,
    disk: &Disk,
    progress: &Progress,
) -> Result<Loaded, LifeError> {
    let path = disk.target.as_deref().ok_or(BootError::NoDisk)?;
    let failed = |e: std::io::Error| BootError::Program {
        program: program.to_owned(),
        what: format!("can't make a directory for its files: {e}"),
    };
    let room = program::Room::new().map_err(failed)?;
    let answer = program::run(program, &loader.args, &config.cmdline, path, &room)?;
    let cmdline = joined(&answer.options, "")?;
    from_files(&answer.kernel, answer.ramdisk.as_deref(), cmdline, progress)
}

/// pygrub's rule: the first disk is the one that is booted from.
fn first_disk(config: &DomainConfig) -> Result<&Disk, BootError> {
    let mut disks = config.disks.iter();
    disks
        .find(|d| d.target.is_some() && !d.cdrom)
        .ok_or(BootError::NoDisk)
}

fn joined(entry: &str, own: &str) -> Result<String, LifeError> {
    let line = format!("{entry} {own}").trim().to_owned();
    if line.len() > MAX_CMDLINE {
        return Err(LifeError::CommandLine { length: line.len() });
    }
    // It is a guest's: what its own kernel makes of it is its own matter, but
    // it goes through our logs and the store, too.
    Ok(line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect())
}

/// Reads a kernel: tells what takes time, and keeps what was unpacked.
fn read<T>(progress: &Progress, how: impl FnOnce(&mut Reading<'_>) -> T) -> T {
    let kept = KeptKernels::open(paths::cache_dir());
    let mut told = |step| progress.step(&said(&step));
    how(&mut Reading {
        progress: Some(&mut told),
        kept: kept.as_ref(),
    })
}

fn said(step: &builder::Progress) -> String {
    match step {
        builder::Progress::Reading(_) => "Reading the kernel".to_owned(),
        builder::Progress::Decompressing(..) => "Unpacking the kernel".to_owned(),
        builder::Progress::Parsing(_) => "Checking the kernel".to_owned(),
    }
}
