//! `xm create`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Parser;

use super::{
    Session, console,
    error::XmError,
    host::Host,
    life::{self, Images, LifeError, Making, Origin},
    monitor, nodes, output,
    progress::Progress,
    signals::Held,
    table::Subcommand,
};
use crate::config::{
    self, DomainConfig, Loaded,
    vif::{Mac, Vif},
};
use guest_abi::addr::DomId;
use uuid::Uuid;

/// Where configuration files are looked for that are named without a `/`.
const SEARCH: &str = ".:/etc/xen";
/// A configuration file is a page of text, not a disk image.
const MAX_FILE: u64 = 1 << 20;

/// Create a domain based on <ConfigFile>.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm create web1.cfg                     from ./web1.cfg or /etc/xen/web1.cfg
  xm create -c web1.cfg                  and stay at its console; Ctrl+] leaves it
  xm create web1.cfg memory=512 vcpus=2  with settings that override the file's
  xm create -n web1.cfg                  check the file and the kernel, create nothing
  xm create -f /dev/null name=t kernel=/boot/vmlinuz ramdisk=/boot/initrd.img

A configuration file holds settings such as
  name    = \"web1\"
  kernel  = \"/boot/vmlinuz\"
  ramdisk = \"/boot/initrd.img\"
  memory  = 256
  extra   = \"console=hvc0\"")]
pub struct Create {
    /// The configuration file, and settings for this once
    #[arg(value_name = "ConfigFile|key=value")]
    words: Vec<String>,
    /// The configuration file
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    file: Option<String>,
    /// Where files are looked for that are named without a '/'
    #[arg(long, value_name = "DIR:DIR", default_value = SEARCH)]
    path: String,
    /// Connect to the console
    #[arg(short = 'c', long = "console_autoconnect")]
    console: bool,
    /// Leave the domain paused
    #[arg(short, long)]
    paused: bool,
    /// Check and print the configuration, and create nothing
    #[arg(short = 'n', long)]
    dryrun: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl Subcommand for Create {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let config = self.config()?;
        let progress = Progress::new(self.quiet);
        let images = Images::open(&config, &progress)?;
        for warning in &images.warnings {
            eprintln!("Warning: {warning}");
        }
        if self.dryrun {
            progress.end();
            return output::json(&config);
        }
        let mut host = Host::connect()?;
        refuse_taken_name(&mut host, &config)?;
        let dom = self.start(&mut host, &config, &images, &progress)?;
        progress.end();
        self.say(&format!("Started domain {} (id={dom})", config.name))?;
        if self.console {
            return console::stay(&mut host, dom);
        }
        Ok(())
    }
}

impl Create {
    fn start(
        &self,
        host: &mut Host,
        config: &DomainConfig,
        images: &Images,
        progress: &Progress,
    ) -> Result<DomId, XmError> {
        let held = Held::hold();
        let making = Making {
            origin: Origin::default(),
            progress,
            held: &held,
        };
        let record = life::create(host, config, images, &making)?;
        let (dom, uuid) = (record.dom(), record.uuid);
        let mut set_going = || -> Result<(), XmError> {
            monitor::start(&record)?;
            progress.step("Connecting the devices");
            life::wait_for_devices(&mut host.store, &record, |_| Ok(!held.arrived()))?;
            if !self.paused {
                host.hypervisor.unpause_domain(dom)?;
            }
            Ok(())
        };
        match set_going() {
            Ok(()) => Ok(dom),
            Err(error) => {
                life::destroy(host, dom, uuid)?;
                Err(error)
            }
        }
    }

    fn config(&self) -> Result<DomainConfig, XmError> {
        let (file, overrides) = self.split_words();
        let (name, text) = match &file {
            Some(file) => self.read(file)?,
            None if overrides.is_empty() => {
                return Err(XmError::Failed(
                    "no configuration file is given; 'xm help create' has examples".into(),
                ));
            }
            None => ("command line".to_owned(), String::new()),
        };
        let Loaded {
            mut config,
            warnings,
        } = config::load(&name, &text, overrides)?;
        for warning in warnings {
            eprintln!("Warning: {warning}");
        }
        warn_of_no_effect(&config);
        // A restart happens in another working directory.
        config.kernel = config.kernel.as_deref().map(absolute).transpose()?;
        config.ramdisk = config.ramdisk.as_deref().map(absolute).transpose()?;
        number_vifs(&mut config.vifs);
        Ok(config)
    }

    /// The first word without '=' is the file, unless `-f` names one.
    fn split_words(&self) -> (Option<String>, &[String]) {
        if self.file.is_some() {
            return (self.file.clone(), &self.words);
        }
        match self.words.split_first() {
            Some((first, rest)) if !first.contains('=') => (Some(first.clone()), rest),
            _ => (None, &self.words),
        }
    }

    /// The file's name as found, and its text.
    fn read(&self, file: &str) -> Result<(String, String), XmError> {
        let path = self.find(file)?;
        let shown = path.display().to_string();
        if !self.dryrun {
            self.say(&format!("Using config file \"{shown}\"."))?;
        }
        let text = read_text(&path)
            .map_err(|e| XmError::Failed(format!("Unable to read config file {shown}: {e}")))?;
        Ok((shown, text))
    }

    fn find(&self, file: &str) -> Result<PathBuf, XmError> {
        let dirs: Vec<&str> = if file.contains('/') {
            vec![""]
        } else {
            self.path.split(':').filter(|d| !d.is_empty()).collect()
        };
        let found = dirs
            .iter()
            .map(|dir| Path::new(dir).join(file))
            .find(|p| p.exists());
        found.ok_or_else(|| {
            let place = if file.contains('/') {
                "no such file".to_owned()
            } else {
                format!("it is not in {}", dirs.join(" or "))
            };
            XmError::Failed(format!("Unable to open config file: {file}: {place}"))
        })
    }

    fn say(&self, what: &str) -> Result<(), XmError> {
        if self.quiet {
            return Ok(());
        }
        output::line(what)
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|n| n > MAX_FILE) {
        return Err(io::Error::other(
            "larger than 1 MiB: this is no configuration file",
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        io::Error::other(format!("line {line}: not UTF-8 text"))
    })
}

fn absolute(path: &Path) -> Result<PathBuf, XmError> {
    std::path::absolute(path)
        .map_err(|e| XmError::Failed(format!("can't tell where {} is: {e}", path.display())))
}

/// What a restart is to find as it was: numbers and addresses.
fn number_vifs(vifs: &mut [Vif]) {
    for (index, vif) in (0..).zip(vifs) {
        vif.devid = Some(index);
        vif.mac = vif.mac.or_else(|| Some(random_mac()));
    }
}

/// An address that the configuration leaves open.
pub(super) fn random_mac() -> Mac {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    Mac::from_random([a, b, c])
}

fn warn_of_no_effect(config: &DomainConfig) {
    for (set, key) in [
        (config.cpu_weight != 256, "cpu_weight"),
        (config.cpu_cap != 0, "cpu_cap"),
        (config.features.is_some(), "features"),
    ] {
        if set {
            eprintln!("Warning: ignored: '{key}' has no effect in this version");
        }
    }
}

/// Early, so that the usual mistake costs no domain. [`nodes::claim`] decides.
fn refuse_taken_name(host: &mut Host, config: &DomainConfig) -> Result<(), XmError> {
    let name = config.name.as_str();
    match host.domains()?.into_iter().find(|d| d.name == name) {
        None => Ok(()),
        Some(taken) => Err(XmError::Life(LifeError::Name(nodes::NameError::Taken {
            name: name.to_owned(),
            dom: taken.id(),
        }))),
    }
}
