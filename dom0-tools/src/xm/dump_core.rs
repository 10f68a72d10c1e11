//! `xm dump-core`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Parser;
use domus_privcmd::client::Client;
use guest_abi::{
    addr::DomId,
    sched::{SHUTDOWN_CRASH, SHUTDOWN_REBOOT},
};

use super::{Session, error::XmError, host::Host, progress::Progress, table::Subcommand};
use crate::{
    coredump::{self, Format, Living, Written},
    paths,
};

/// Write a domain's memory and registers to a file, for gdb and crash.
#[derive(Debug, Parser)]
#[command(
    after_help = "The domain is paused meanwhile, unless -L is given. The file is sparse: what was
never used takes no room.

Examples:
  xm dump-core web1 web1.core
  gdb vmlinux web1.core
  xm dump-core -F xen web1 web1.xen
  crash vmlinux web1.xen
  xm dump-core -C web1           and crash the domain afterwards"
)]
pub struct DumpCore {
    #[arg(value_name = "Domain")]
    domain: String,
    /// Where to (default: dump/NAME-ID.core under the log directory)
    #[arg(value_name = "File")]
    file: Option<PathBuf>,
    /// For which reader
    #[arg(short = 'F', long, value_enum, default_value = "gdb")]
    format: Format,
    /// Let the domain run meanwhile: the dump is of no one moment
    #[arg(short = 'L', long)]
    live: bool,
    /// Crash the domain afterwards
    #[arg(short = 'C', long, conflicts_with = "reset")]
    crash: bool,
    /// Reboot the domain afterwards
    #[arg(short = 'R', long)]
    reset: bool,
}

impl Subcommand for DumpCore {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find_guest(&self.domain, "dump-core")?;
        let path = match &self.file {
            Some(path) => path.clone(),
            None => default_path(&domain.name, domain.id())?,
        };
        let paused = (!self.live)
            .then(|| Paused::new(&host.hypervisor, domain.id()))
            .transpose()?;
        let progress = Progress::new(false);
        let written = dump(&host.hypervisor, domain.id(), self.format, &path, &progress)?;
        drop(paused);
        eprintln!("{}", describe(&path, &written));
        let end = match (self.crash, self.reset) {
            (true, _) => SHUTDOWN_CRASH,
            (_, true) => SHUTDOWN_REBOOT,
            _ => return Ok(()),
        };
        Ok(host.hypervisor.shutdown_domain(domain.id(), end)?)
    }
}

/// A domain that does not run as long as this lives.
struct Paused<'a> {
    hypervisor: &'a Client,
    dom: DomId,
}

impl<'a> Paused<'a> {
    fn new(hypervisor: &'a Client, dom: DomId) -> Result<Self, XmError> {
        hypervisor.pause_domain(dom)?;
        Ok(Paused { hypervisor, dom })
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // One that has gone meanwhile needs it no more.
        let _ = self.hypervisor.unpause_domain(self.dom);
    }
}

/// Where dumps go that nobody named.
///
/// # Errors
/// The directory can't be made.
pub fn default_path(name: &str, dom: DomId) -> Result<PathBuf, XmError> {
    let dir = paths::log_dir().join("dump");
    let made = fs::create_dir_all(&dir);
    made.map_err(|error| XmError::Failed(format!("{}: {error}", dir.display())))?;
    let base = format!("{name}-{dom}");
    let mut path = dir.join(format!("{base}.core"));
    let mut number = 1;
    while path.exists() {
        number += 1;
        path = dir.join(format!("{base}.{number}.core"));
    }
    Ok(path)
}

/// Dumps a domain to a new file.
///
/// # Errors
/// There is no such domain; the file can't be written: then there is none.
pub fn dump(
    hypervisor: &Client,
    dom: DomId,
    format: Format,
    path: &Path,
    progress: &Progress,
) -> Result<Written, XmError> {
    let source = Living::open(hypervisor, dom)?;
    let all = coredump::Source::frames(&source).len() as u64;
    let written = coredump::write_file(&source, format, path, |done| {
        let percent = done * 100 / all.max(1);
        progress.step(&format!("Dumping {} MiB: {percent} %", all >> 8));
    });
    progress.end();
    written.map_err(|error| XmError::Failed(explain(path, &error)))
}

fn explain(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            format!("{path}: there is such a file; remove it or name another")
        }
        io::ErrorKind::StorageFull => {
            format!("{path}: the disk is full; the dump was removed again")
        }
        _ => format!("{path}: {error}; nothing is left of the dump"),
    }
}

/// What became of a dump, for people.
#[must_use]
pub fn describe(path: &Path, written: &Written) -> String {
    let Written {
        pages,
        holes,
        runs,
        cut_off,
    } = written;
    let note = if *cut_off {
        "; the page tables have more entries than were followed"
    } else {
        ""
    };
    let ranges = match runs {
        0 => String::new(),
        runs => format!("; {runs} ranges of virtual addresses{note}"),
    };
    format!(
        "{}: {pages} pages, {holes} of them zero{ranges}.",
        path.display()
    )
}
