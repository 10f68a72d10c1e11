//! `xm`: the operator's program. The same program answers to `xl`.
//!
//! ```text
//!   args --resolve--> Command --clap--> its arguments --run--> output, exit code
//!         (table)              (usage)
//! ```
//!
//! Law: scripts read what this prints. Columns, error texts and exit codes
//! are an interface (they live in [`columns`] and [`error`]); everything that
//! is for people only goes to stderr.

pub mod block;
pub mod boot;
pub mod columns;
pub mod console;
pub mod crash;
pub mod create;
pub mod devices;
pub mod dmesg;
pub mod dump_core;
pub mod engine;
pub mod error;
pub mod gdb;
pub mod help;
pub mod host;
pub mod hotplug;
pub mod image;
pub mod info;
mod last_words;
pub mod life;
pub mod list;
pub mod monitor;
pub mod names;
pub mod network;
pub mod nodes;
pub mod output;
pub mod pause;
pub mod progress;
pub mod record;
pub mod shutdown;
pub mod signals;
pub mod stop_services;
pub mod table;
pub mod trace;
pub mod uptime;
pub mod usage;
pub mod vcpus;

use std::{ffi::OsString, path::Path, process::ExitCode};

use error::XmError;
use table::{Kind, Resolved};

/// What every subcommand is given.
#[derive(Debug, Clone)]
pub struct Session {
    /// `xm` or `xl`, as it was called.
    pub program: &'static str,
}

/// Runs the program with its arguments, its own name first.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let session = Session {
        program: program_name(args.next()),
    };
    let args: Vec<String> = match args.map(OsString::into_string).collect() {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("Error: the argument {wrong:?} is not UTF-8.");
            return ExitCode::FAILURE;
        }
    };
    match dispatch(&session, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(&session),
    }
}

fn program_name(argv0: Option<OsString>) -> &'static str {
    let name = argv0.as_deref().map(Path::new).and_then(Path::file_name);
    match name {
        Some(name) if name == "xl" => "xl",
        _ => "xm",
    }
}

fn dispatch(session: &Session, args: &[String]) -> Result<(), XmError> {
    let Some((word, rest)) = args.split_first() else {
        return Err(XmError::NoCommand);
    };
    match word.as_str() {
        "-h" | "--help" => return help::print_all(session),
        "-V" | "--version" => {
            return output::line(&format!(
                "{} (Domus) {}",
                session.program,
                env!("CARGO_PKG_VERSION")
            ));
        }
        monitor::ARGUMENT => return monitor::main(rest),
        _ => {}
    }
    let command = match table::resolve(word) {
        Resolved::Found(command) => command,
        Resolved::Renamed { command, old } => {
            eprintln!(
                "Command {old} is deprecated.  Please use {} {} instead.",
                session.program, command.name
            );
            command
        }
        Resolved::Ambiguous(names) => {
            return Err(XmError::Ambiguous {
                word: word.clone(),
                names,
            });
        }
        Resolved::Unknown => return Err(XmError::NoSubcommand(word.clone())),
    };
    match command.kind {
        Kind::Ready { run, .. } => run(session, command, rest),
        Kind::Absent { why } => Err(XmError::Absent {
            program: session.program,
            command: command.name,
            why,
        }),
    }
}
