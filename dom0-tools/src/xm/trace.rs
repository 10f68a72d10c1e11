//! `xm trace`: strace for hypercalls.

use std::{
    fs::File,
    io::BufWriter,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use domus_privcmd::trace::{Record, What, kind};
use guest_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND};
use serde_json::json;

use super::{
    Session, error::XmError, host::Domain, host::Host, output, signals::Held, table::Subcommand,
};
use crate::{
    trace::{Line, Ports, chrome, decode, summary::Summary},
    xenstore::client::{Client as Store, Nodes},
};

/// How long one read waits: how soon Ctrl+C and `--seconds` act.
const PATIENCE_MS: u32 = 200;
/// Ports are looked up again so often, at most.
const LOOK_UP: Duration = Duration::from_secs(2);

/// Show what a domain asks of the hypervisor, as it does.
#[derive(Debug, Parser)]
#[command(
    after_help = "Each line: system time in s, vCPU, what, <time in the hypervisor>. A line that begins
with a dot is an element of the multicall that follows it.

Examples:
  xm trace web1
  xm trace web1 -e hypercalls,exceptions --only mmu
  xm trace web1 -c -t 10         ten seconds, then a table
  xm trace web1 -o web1.json     for https://ui.perfetto.dev or chrome://tracing
  xm create -p web1.cfg && (sleep 1; xm unpause web1) & xm trace -c web1   a whole boot"
)]
pub struct Trace {
    #[arg(value_name = "Domain")]
    domain: String,
    /// What to record
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = [Kind::Hypercalls, Kind::Exceptions, Kind::Events])]
    events: Vec<Kind>,
    /// Only what has this in its name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Count: a table of counts and times at the end
    #[arg(short, long)]
    count: bool,
    /// End after so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<u64>,
    /// End after so many seconds
    #[arg(short = 't', long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Write a file for a trace viewer (Chrome's JSON)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// One JSON object a line; with -c, the table
    #[arg(long)]
    json: bool,
}

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Hypercalls.
    Hypercalls,
    /// Exceptions.
    Exceptions,
    /// Events that are delivered, and waiting for them.
    Events,
    /// System calls of user programs.
    Syscalls,
    /// All of them.
    All,
}

impl Kind {
    fn bits(self) -> u32 {
        match self {
            Kind::Hypercalls => kind::HYPERCALL,
            Kind::Exceptions => kind::EXCEPTION,
            Kind::Events => kind::EVENT,
            Kind::Syscalls => kind::SYSCALL,
            Kind::All => kind::ALL,
        }
    }
}

impl Subcommand for Trace {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find(&self.domain)?;
        if domain.is_dom0() {
            return Err(XmError::Failed(
                "Domain-0 is made of ordinary processes: trace those with strace.".into(),
            ));
        }
        let info = host.hypervisor.domain_info(domain.id())?;
        if let Some(reason) = info.shutdown {
            return Err(XmError::Failed(format!(
                "domain {} {}: there is nothing left to trace",
                domain.name,
                end_of(reason)
            )));
        }
        let kinds = self.events.iter().fold(0, |all, it| all | it.bits());
        let mut sink = Sink::new(&self, &domain)?;
        let held = Held::hold();
        host.hypervisor.trace_start(domain.id(), kinds)?;
        eprintln!(
            "Tracing domain {} (id={}); Ctrl+C ends it.",
            domain.name,
            domain.id().0
        );
        if info.paused {
            let name = &domain.name;
            eprintln!("xm trace: it is paused, and does nothing until `xm unpause {name}`.");
        }
        let ended = self.follow(&mut host, &domain, &mut sink, &held);
        // An interruption is how a trace usually ends: its table is still due.
        sink.finish()?;
        ended
    }
}

impl Trace {
    fn follow(
        &self,
        host: &mut Host,
        domain: &Domain,
        sink: &mut Sink<'_>,
        held: &Held,
    ) -> Result<(), XmError> {
        let end = self
            .seconds
            .map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut names = Names::new(domain);
        loop {
            let batch = host.hypervisor.trace_read(PATIENCE_MS)?;
            names.refresh(&mut host.store);
            for record in &batch.records {
                let line = decode(record, &names.ports);
                if self.only.as_ref().is_some_and(|it| !line.name.contains(it)) {
                    continue;
                }
                sink.take(record, &line)?;
                if self.lines.is_some_and(|most| sink.taken >= most) {
                    return Ok(());
                }
            }
            if batch.lost != 0 {
                sink.lost += batch.lost;
                eprintln!(
                    "xm trace: {} records were lost: this is too slow for them (-c, -e or -o help).",
                    batch.lost
                );
            }
            if batch.ended {
                eprintln!("xm trace: the domain has ended.");
                return Ok(());
            }
            if batch.records.is_empty()
                && let Some(reason) = shutdown_of(host, domain)
            {
                eprintln!("xm trace: the domain has ended: it {}.", end_of(reason));
                return Ok(());
            }
            if held.arrived() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
        }
    }
}

/// Why a domain that is kept does nothing any more.
fn shutdown_of(host: &Host, domain: &Domain) -> Option<u32> {
    let info = host.hypervisor.domain_info(domain.id()).ok()?;
    info.shutdown
}

fn end_of(reason: u32) -> String {
    match reason {
        SHUTDOWN_POWEROFF => "has powered off".into(),
        SHUTDOWN_REBOOT => "has rebooted".into(),
        SHUTDOWN_SUSPEND => "has suspended itself".into(),
        SHUTDOWN_CRASH => "has crashed".into(),
        other => format!("has shut down (reason {other})"),
    }
}

/// Whose the ports are, as the front ends wrote into the store.
struct Names {
    ports: Ports,
    directory: String,
    looked: Option<Instant>,
}

impl Names {
    fn new(domain: &Domain) -> Self {
        Names {
            ports: Ports::new(),
            directory: format!("/local/domain/{}", domain.id().0),
            looked: None,
        }
    }

    fn refresh(&mut self, store: &mut Store) {
        if self.looked.is_some_and(|when| when.elapsed() < LOOK_UP) {
            return;
        }
        self.looked = Some(Instant::now());
        for (node, name) in [("store/port", "xenstore"), ("console/port", "console")] {
            self.look(store, &format!("{}/{node}", self.directory), name);
        }
        for class in ["vbd", "vif"] {
            let devices = format!("{}/device/{class}", self.directory);
            for device in store.list(&devices).unwrap_or_default() {
                let name = format!("{class}/{device}");
                for node in ["event-channel", "event-channel-tx", "event-channel-rx"] {
                    self.look(store, &format!("{devices}/{device}/{node}"), &name);
                }
            }
        }
    }

    fn look(&mut self, store: &mut Store, node: &str, name: &str) {
        let value = store.find(node).ok().flatten();
        if let Some(port) = value.and_then(|text| text.parse().ok()) {
            self.ports.insert(port, name.to_owned());
        }
    }
}

/// Where lines go.
struct Sink<'a> {
    how: &'a Trace,
    summary: Summary,
    file: Option<(chrome::Writer<BufWriter<File>>, PathBuf)>,
    taken: u64,
    lost: u64,
}

impl<'a> Sink<'a> {
    fn new(how: &'a Trace, domain: &Domain) -> Result<Self, XmError> {
        let file = how.output.as_ref().map(|path| {
            let made = File::create(path).and_then(|file| {
                chrome::Writer::new(BufWriter::new(file), domain.id().0, &domain.name)
            });
            made.map(|writer| (writer, path.clone()))
                .map_err(|error| cannot_write(path, &error))
        });
        Ok(Sink {
            how,
            summary: Summary::default(),
            file: file.transpose()?,
            taken: 0,
            lost: 0,
        })
    }

    fn take(&mut self, record: &Record, line: &Line) -> Result<(), XmError> {
        self.taken += 1;
        if let Some((writer, path)) = &mut self.file {
            writer
                .add(record, line)
                .map_err(|error| cannot_write(path, &error))?;
        }
        if self.how.count {
            self.summary.add(record, line);
        } else if self.how.json {
            output::line(&json_line(record, line).to_string())?;
        } else if self.file.is_none() {
            output::line(&text_line(record, line))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), XmError> {
        if let Some((writer, path)) = self.file {
            writer
                .finish()
                .map_err(|error| cannot_write(&path, &error))?;
            eprintln!("xm trace: {} records in {}.", self.taken, path.display());
        }
        if !self.how.count {
            return Ok(());
        }
        if self.how.json {
            return output::json(&json!({
                "lost": self.lost,
                "time": self.summary.shares(),
                "names": self.summary.rows(),
            }));
        }
        output::lines(&self.summary.table())
    }
}

fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> XmError {
    XmError::Failed(format!("{}: {error}", path.display()))
}

fn text_line(record: &Record, line: &Line) -> String {
    let dot = if in_multicall(record) { ". " } else { "" };
    format!(
        "{:5}.{:06} v{} {dot}{} <{}.{:03} us>",
        record.time_ns / 1_000_000_000,
        record.time_ns % 1_000_000_000 / 1000,
        record.vcpu,
        line.text(),
        record.took_ns / 1000,
        record.took_ns % 1000
    )
}

fn in_multicall(record: &Record) -> bool {
    matches!(
        record.what,
        What::Hypercall {
            in_multicall: true,
            ..
        }
    )
}

fn json_line(record: &Record, line: &Line) -> serde_json::Value {
    let args: Vec<_> = line
        .args
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({
        "time_ns": record.time_ns,
        "took_ns": record.took_ns,
        "vcpu": record.vcpu,
        "name": line.name,
        "args": args,
        "result": line.result,
        "failed": line.failed,
        "in_multicall": in_multicall(record),
    })
}
